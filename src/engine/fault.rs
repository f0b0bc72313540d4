//! Faults on order: what a device or its driver may do to an engine, made to happen at a step.
//!
//! For tests and drills of failover: the worker asks before each step. An engine without orders, as servers start
//! them, never hits one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device answers every call with an error from now on.
    DeviceLost,
    /// The step takes so long.
    Hang(Duration),
    /// The thread panics in the step.
    Panic,
    /// The step wants so many bytes, and the device has them not.
    NoMemory(usize),
    /// One row of logits is not finite.
    NotFinite,
    /// No logits are finite from now on.
    NeverFinite,
    /// The draft model's step fails.
    Draft,
}

/// Faults by the number of the step before which they happen, counted from the engine's first as 0. Clones share
/// the orders.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<VecDeque<(u64, Fault)>>>);

impl Faults {
    /// # Panics
    /// When the steps do not ascend.
    pub fn new(orders: impl IntoIterator<Item = (u64, Fault)>) -> Faults {
        let orders: VecDeque<_> = orders.into_iter().collect();
        assert!(orders.iter().is_sorted_by_key(|(step, _)| *step), "faults in the order of their steps");
        Faults(Arc::new(Mutex::new(orders)))
    }

    /// One more, before the next step.
    pub fn order_next(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_front((0, fault));
    }

    /// The fault that is due before this step, once.
    pub fn due(&self, step: u64) -> Option<Fault> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, fault) = *orders.front()?;
        (at <= step).then(|| {
            orders.pop_front();
            fault
        })
    }
}
