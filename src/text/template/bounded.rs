//! The filter that [`super::growth`] puts behind every expression that makes a value of others: what it lets pass can
//! be printed, compared and freed in little time, memory and stack, and so can what the engine makes of it unpaid.

use minijinja::functions::namespace;
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::view::View;
use super::{MAX_DEPTH, MAX_TIME, refused};
use crate::clock::Clock;

/// By which a source calls it; no template has a name like that.
pub const NAME: &str = "_bounded";
/// The same for what becomes a member of a namespace.
pub const NAME_OF_MEMBER: &str = "_bounded_member";

/// Around what a value is indexed by: finding a place in a text takes as long as the text is, unpaid.
pub const NAME_OF_INDEX: &str = "_timely";

/// Bytes that a value may have when each value is written out as often as it occurs.
const MAX_BYTES: usize = 32 << 20;
/// Bytes that a value takes beside its text.
const BYTES_OF_ONE: usize = 32;
/// Values that one step pays for.
const VALUES_OF_A_STEP: usize = 64;

/// Since when a template runs.
struct Begun(Clock);

/// Lets all pass while there is time: what stands in front costs more than its fuel.
pub fn timely(state: &mut State, value: &Value) -> Result<Value, Error> {
    in_time(state)?;
    Ok(value.clone())
}

/// The value, lists that are made as they are read (sums, repetitions, slices) made at once.
pub fn bounded(state: &mut State, value: &Value) -> Result<Value, Error> {
    settled(state, value, false)
}

/// What becomes a member of a namespace holds none: it could hold itself.
pub fn bounded_member(state: &mut State, value: &Value) -> Result<Value, Error> {
    settled(state, value, true)
}

fn settled(state: &mut State, value: &Value, of_member: bool) -> Result<Value, Error> {
    in_time(state)?;
    let mut walk = Walk { state, bytes: 0, values: 0, of_member };
    Ok(walk.settled(value, 0)?.unwrap_or_else(|| value.clone()))
}

pub(super) fn in_time(state: &mut State) -> Result<(), Error> {
    let begun = state.get_or_insert_extension_with(|| Begun(Clock::system()));
    match begun.0.now().since(Default::default()) > MAX_TIME {
        true => Err(refused(&format!("it took more than {} seconds", MAX_TIME.as_secs()))),
        false => Ok(()),
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

struct Walk<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    bytes: usize,
    values: usize,
    of_member: bool,
}

impl Walk<'_, '_, '_> {
    /// Another value in its place, where it has lists that are made as they are read.
    fn settled(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        if depth > MAX_DEPTH {
            return Err(refused("a value that is nested too deeply"));
        }
        self.bytes = self.bytes.saturating_add(BYTES_OF_ONE + value.as_str().map_or(0, str::len));
        if self.bytes > MAX_BYTES {
            return Err(refused(&format!("a value of more than {MAX_BYTES} bytes")));
        }
        self.values += 1;
        if self.values.is_multiple_of(VALUES_OF_A_STEP) {
            self.state.consume_fuel(1)?;
        }
        if self.of_member && is_namespace(value) {
            return Err(refused("a namespace inside a namespace"));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::Map => self.map(value, depth),
            _ => Ok(None),
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let is_view = value.downcast_object_ref::<View>().is_some();
        let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
        let is_lazy = !is_view && !is_tuple && value.downcast_object_ref::<Vec<Value>>().is_none();
        let mut items = is_lazy.then(Vec::new);
        for (i, item) in value.try_iter()?.enumerate() {
            let settled = self.settled(&item, depth + 1)?.filter(|_| !is_view);
            if settled.is_some() && items.is_none() {
                items = Some(value.try_iter()?.take(i).collect());
            }
            items.iter_mut().for_each(|items| items.push(settled.as_ref().unwrap_or(&item).clone()));
        }
        Ok(items.map(|items| if is_tuple { Value::from(Tuple::from(items)) } else { Value::from(items) }))
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let Some(pairs) = value.as_object().and_then(|object| object.try_iter_pairs()) else {
            return Ok(None);
        };
        let mut changed = Vec::new();
        for (key, member) in pairs {
            self.settled(&key, depth + 1)?;
            changed.extend(self.settled(&member, depth + 1)?.map(|member| (key, member)));
        }
        let all = || value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
        if changed.is_empty() {
            return Ok(None);
        }
        let settled = Value::from_pairs(all().chain(changed));
        match is_namespace(value) {
            true => namespace(Some(settled.into())).map(Some),
            false => Ok(Some(settled)),
        }
    }
}
