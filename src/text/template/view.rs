//! What `keys()`, `values()` and `items()` of a dictionary give: it can be looped over, but is no list. It has no places
//! and no JSON, and Python prints its kind.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{DynObject, Enumerator, Object, ObjectExt, ObjectRepr, Tuple};

#[derive(Debug)]
pub struct View {
    map: DynObject,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Keys,
    Values,
    Items,
}

impl View {
    /// `None` of what is no dictionary.
    pub fn of(value: &Value, method: &str) -> Option<Value> {
        let kind = match method {
            "keys" => Kind::Keys,
            "values" => Kind::Values,
            _ => Kind::Items,
        };
        Some(Value::from_object(View { map: value.as_object()?.clone(), kind }))
    }

    /// As Python names it.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Keys => "dict_keys",
            Kind::Values => "dict_values",
            Kind::Items => "dict_items",
        }
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|view| {
            let Some(pairs) = view.map.try_iter_pairs() else { return Box::new(std::iter::empty()) };
            let kind = view.kind;
            Box::new(pairs.map(move |(key, value)| match kind {
                Kind::Keys => key,
                Kind::Values => value,
                Kind::Items => Value::from(Tuple::from([key, value])),
            }))
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.map.enumerator_len()
    }
}
