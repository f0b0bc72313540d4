//! Power over the whole bench: one thread that writes down what each meter last said.
//!
//! Few enough samples to draw: when there are too many, every second one is dropped and the pace halved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::report::PowerTrace;
use super::window::Instruments;
use crate::power::monitor::Monitor;

const FIRST_PACE: Duration = Duration::from_millis(250);
/// How soon the thread notices that it should end.
const SLICE: Duration = Duration::from_millis(50);
const MOST_SAMPLES: usize = 1000;

/// Ends with its owner.
pub struct Recorder {
    traces: Arc<Mutex<Vec<PowerTrace>>>,
    ended: Arc<AtomicBool>,
}

impl Recorder {
    /// `None` without meters.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start(instruments: &Instruments) -> std::io::Result<Option<Recorder>> {
        let Some(monitor) = instruments.monitor.clone() else { return Ok(None) };
        let empty = monitor.infos().into_iter().map(|info| PowerTrace {
            meter: info.name,
            boundary: info.boundary,
            method: info.method,
            seconds_watts: Vec::new(),
        });
        let traces = Arc::new(Mutex::new(empty.collect()));
        let ended = Arc::new(AtomicBool::new(false));
        let recorder = Recorder { traces: traces.clone(), ended: ended.clone() };
        let instruments = instruments.clone();
        std::thread::Builder::new().name("hashwatt-power".into()).spawn(move || {
            let mut pace = FIRST_PACE;
            while !ended.load(Ordering::Acquire) {
                let due = instruments.clock.now() + pace;
                let mut traces = traces.lock().unwrap_or_else(PoisonError::into_inner);
                add(&mut traces, &monitor, instruments.seconds());
                if thin(&mut traces) {
                    pace *= 2;
                }
                drop(traces);
                while !ended.load(Ordering::Acquire) && instruments.clock.now() < due {
                    std::thread::sleep(SLICE);
                }
            }
        })?;
        Ok(Some(recorder))
    }

    pub fn traces(&self) -> Vec<PowerTrace> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

fn add(traces: &mut [PowerTrace], monitor: &Monitor, seconds: f64) {
    let round = |x: f64| (x * 100.0).round() / 100.0;
    for (trace, meter) in traces.iter_mut().zip(monitor.meters()) {
        if let Some(watts) = meter.watts {
            trace.seconds_watts.push([round(seconds), round(watts.0)]);
        }
    }
}

/// True when samples were dropped.
fn thin(traces: &mut [PowerTrace]) -> bool {
    let full = traces.iter().any(|t| t.seconds_watts.len() > MOST_SAMPLES);
    if full {
        for trace in traces {
            let mut index = 0;
            trace.seconds_watts.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::{Boundary, Method};

    #[test]
    fn a_long_bench_keeps_few_samples_of_its_whole_length() {
        let mut traces = [PowerTrace {
            meter: "m".into(),
            boundary: Boundary::Node,
            method: Method::Integrated,
            seconds_watts: Vec::new(),
        }];
        for i in 0..10 * MOST_SAMPLES {
            traces[0].seconds_watts.push([i as f64, 1.0]);
            thin(&mut traces);
            assert!(traces[0].seconds_watts.len() <= MOST_SAMPLES);
        }
        assert_eq!(traces[0].seconds_watts[0], [0.0, 1.0]);
        assert!(traces[0].seconds_watts.is_sorted_by(|a, b| a[0] < b[0]));
    }
}
