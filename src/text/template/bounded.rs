//! The filter that [`super::growth`] puts behind every expression that makes a value of others: what it lets pass can
//! be printed, compared and freed in little time, memory and stack, and so can what the engine makes of it unpaid.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::view::View;
use super::{MAX_DEPTH, MAX_TIME, refused};
use crate::clock::Clock;

/// By which a source calls it; no template has a name like that.
pub const NAME: &str = "_bounded";
/// The same for what becomes a member of a namespace.
pub const NAME_OF_MEMBER: &str = "_bounded_member";

/// Bytes that a value may have when each value is written out as often as it occurs.
const MAX_BYTES: usize = 32 << 20;
/// Bytes that a value takes beside its text.
const BYTES_OF_ONE: usize = 32;
/// Values that one step pays for.
const VALUES_OF_A_STEP: usize = 8;

/// Since when a template runs.
struct Begun(Clock);

/// The value, lists that are made as they are read (sums, repetitions, slices) made at once.
pub fn bounded(state: &mut State, value: &Value) -> Result<Value, Error> {
    in_time(state)?;
    let mut walk = Walk { state, bytes: 0, values: 0, of_member: false };
    Ok(walk.settled(value, 0)?.unwrap_or_else(|| value.clone()))
}

/// What becomes a member of a namespace holds none: it could hold itself.
pub fn bounded_member(state: &mut State, value: &Value) -> Result<Value, Error> {
    in_time(state)?;
    let mut walk = Walk { state, bytes: 0, values: 0, of_member: true };
    Ok(walk.settled(value, 0)?.unwrap_or_else(|| value.clone()))
}

fn in_time(state: &mut State) -> Result<(), Error> {
    let begun = state.get_or_insert_extension_with(|| Begun(Clock::system()));
    match begun.0.now().since(Default::default()) > MAX_TIME {
        true => Err(refused(&format!("it took more than {} seconds", MAX_TIME.as_secs()))),
        false => Ok(()),
    }
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
        let Some(object) = value.as_object() else { return Ok(None) };
        if self.of_member && object.type_name().ends_with("::Namespace") {
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
        Ok((!changed.is_empty()).then(|| all().chain(changed).collect()))
    }
}
