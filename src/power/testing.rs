//! A board for tests: its true power follows rows and busy time with a lag, its counter ticks, jitters,
//! wraps and drops out. On a clock that tests move.
//!
//! Idle 80 W, 300 W at one row, 690 W at 256, by the logarithm of the rows in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BoardState, Boundary, MeterInfo, Method, PowerError, PowerMeter, Reading};
use crate::clock::{Clock, Tick};
use crate::quantity::{Joules, Watts};

pub const IDLE: Watts = Watts(80.0);
const ONE_ROW: Watts = Watts(300.0);
const MOST_ROWS: Watts = Watts(690.0);

/// True power with so many rows in a step; idle with none.
pub fn power(rows: usize) -> Watts {
    match rows {
        0 => IDLE,
        n => Watts(ONE_ROW.0 + (MOST_ROWS.0 - ONE_ROW.0) * ((n as f64).log2() / 8.0).min(1.0)),
    }
}

/// What a fake board does wrong.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub tick: Duration,
    /// A tick comes up to this much later than it should.
    pub jitter: Duration,
    pub lag: Duration,
    pub wraps_at: Option<Joules>,
    /// Every so many readings one fails; 0 is never.
    pub dropout_every: u64,
    /// What it says it shows at most.
    pub full: Option<Watts>,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            tick: Duration::from_millis(100),
            jitter: Duration::from_millis(15),
            lag: Duration::from_millis(200),
            wraps_at: Some(Joules(5000.0)),
            dropout_every: 13,
            full: None,
        }
    }
}

struct State {
    /// (from when, rows), in order of time, as the engine did it.
    rows: Vec<(Tick, usize)>,
    reads: u64,
    /// Added to the counter; a driver reload takes it away.
    offset: f64,
    lost: bool,
    xid: Option<u64>,
}

/// Shared by the test, which says what runs, and the meter.
#[derive(Clone)]
pub struct FakeBoard {
    clock: Clock,
    faults: Faults,
    state: Arc<Mutex<State>>,
}

struct Meter {
    board: FakeBoard,
    info: MeterInfo,
}

impl FakeBoard {
    pub fn new(clock: Clock, faults: Faults) -> FakeBoard {
        let rows = vec![(clock.now(), 0)];
        let state = State { rows, reads: 0, offset: 0.0, lost: false, xid: None };
        FakeBoard { clock, faults, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From `at` on, steps of so many rows run; 0 is idle.
    pub fn set_rows(&self, at: Tick, rows: usize) {
        self.state().rows.push((at, rows));
    }

    /// From now on.
    pub fn run(&self, rows: usize) {
        self.set_rows(self.clock.now(), rows);
    }

    /// The counter begins anew, as after a reload of the driver.
    pub fn reset_counter(&self) {
        let drawn = self.drawn(self.clock.now()).0;
        self.state().offset = -drawn;
    }

    pub fn set_lost(&self, lost: bool) {
        self.state().lost = lost;
    }

    /// Its driver reports a fault code.
    pub fn set_xid(&self, xid: u64) {
        self.state().xid = Some(xid);
    }

    /// Energy truly drawn up to a moment: power follows the rows one lag later.
    pub fn drawn(&self, until: Tick) -> Joules {
        let lag = |t: Tick| t + self.faults.lag;
        let state = self.state();
        let first = state.rows[0].0;
        let mut total = IDLE * lag(first).min(until).since(first);
        for (at, (from, rows)) in state.rows.iter().enumerate() {
            let to = state.rows.get(at + 1).map_or(until, |next| lag(next.0).min(until));
            total += power(*rows) * to.since(lag(*from));
        }
        total
    }

    /// The board as a meter of engine `device`.
    pub fn meter(&self, device: Option<usize>) -> Box<dyn PowerMeter> {
        let info = MeterInfo {
            name: "fake:0".into(),
            device,
            boundary: Boundary::GpuBoard,
            method: Method::Counter,
            period: self.faults.tick,
            lag: self.faults.lag,
            full: self.faults.full,
            wraps_at: self.faults.wraps_at,
            gain_error: 0.05,
        };
        Box::new(Meter { board: self.clone(), info })
    }

    /// What the counter shows: the energy at its last tick, rounded to a millijoule.
    fn counter(&self, now: Tick) -> Joules {
        let tick = self.faults.tick.as_nanos() as u64;
        let number = now.0 / tick;
        // Jitter is a fixed pattern, so that a test repeats itself.
        let late = |n: u64| {
            let jitter = self.faults.jitter.as_nanos() as u64;
            if jitter == 0 { 0 } else { n.wrapping_mul(2_654_435_761) % jitter }
        };
        let shown = if now.0 >= number * tick + late(number) { number } else { number.saturating_sub(1) };
        let at = Tick((shown * tick + late(shown)).min(now.0));
        let first = self.state().rows[0].0;
        let drawn = self.drawn(at.max(first)).0 + self.state().offset;
        let whole = (drawn.max(0.0) * 1e3).floor() / 1e3;
        Joules(self.faults.wraps_at.map_or(whole, |range| whole % range.0))
    }
}

impl PowerMeter for Meter {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        let error = |problem: &str| (self.info.name.clone(), problem.to_string());
        let (lost, reads) = {
            let mut state = self.board.state();
            state.reads += 1;
            (state.lost, state.reads)
        };
        if lost {
            let (meter, problem) = error("fallen off the bus");
            return Err(PowerError::Lost { meter, problem });
        }
        if self.board.faults.dropout_every > 0 && reads % self.board.faults.dropout_every == 0 {
            let (meter, problem) = error("timeout");
            return Err(PowerError::Unreadable { meter, problem });
        }
        Ok(Reading::Counter(self.board.counter(self.board.clock.now())))
    }

    fn board(&mut self) -> Option<BoardState> {
        Some(BoardState { xid: self.board.state().xid, ..BoardState::default() })
    }
}
