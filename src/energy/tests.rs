//! The ledger on a board whose true power is known: shares, sums, estimates.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::book::{Book, Piece};
use super::intervals::Interval;
use super::*;
use crate::clock::{Clock, Tick};
use crate::engine::step_log::{OVERHEAD, Share, StepLog, StepRecord};
use crate::power::MeterInfo;
use crate::power::monitor::{EnergyWindow, Monitor, MonitorConfig};
use crate::power::testing::{FakeBoard, Faults, IDLE, power};
use crate::quantity::Watts;

const POLL: Duration = Duration::from_millis(50);

/// One engine on one board, on a clock moved by hand; the monitor polls every 50 ms.
struct Bench {
    clock: Clock,
    board: FakeBoard,
    monitor: Arc<Monitor>,
    log: StepLog,
    ledger: Arc<Ledger>,
    next_poll: Tick,
    drawn_before: Joules,
}

fn bench(faults: Faults) -> Bench {
    bench_beside(faults, Some(0), &[])
}

/// A bench whose board is `device`'s alone or shared, with more engines that log there.
fn bench_beside(faults: Faults, device: Option<usize>, others: &[StepLog]) -> Bench {
    let clock = Clock::fake();
    let board = FakeBoard::new(clock.clone(), faults);
    let monitor = Arc::new(Monitor::new(vec![board.meter(device)], clock.clone(), MonitorConfig::default()));
    let log = StepLog::default();
    let logs = std::iter::once(&log).chain(others).cloned().collect();
    let ledger = Ledger::start(&monitor, logs).unwrap();
    monitor.poll();
    let drawn_before = board.drawn(clock.now());
    Bench { next_poll: clock.now() + POLL, clock, board, monitor, log, ledger, drawn_before }
}

/// (account, prefill work, decode work)
type Work = (u64, f64, f64);

impl Bench {
    fn advance(&mut self, mut time: Duration) {
        while !time.is_zero() {
            let step = self.next_poll.since(self.clock.now()).min(time);
            self.clock.advance(step);
            time -= step;
            if self.clock.now() >= self.next_poll {
                self.monitor.poll();
                self.next_poll = self.next_poll + POLL;
            }
        }
    }

    fn idle(&mut self, time: Duration) {
        self.board.run(0);
        self.advance(time);
    }

    fn step(&mut self, rows: usize, time: Duration, work: &[Work], overhead: bool) {
        let started = self.clock.now();
        self.board.run(rows);
        self.log.begin(started);
        self.advance(time);
        let ended = self.clock.now();
        let record = StepRecord { started, ended, rows, sequences: work.len(), overhead, shares: 0 };
        let share = |(account, prefill, decode): &Work| Share {
            account: *account,
            prefill: *prefill,
            decode: *decode,
        };
        self.log.end(record, work.iter().map(share));
    }

    fn steps(&mut self, count: usize, rows: usize, time: Duration, work: &[Work]) {
        for _ in 0..count {
            self.step(rows, time, work, false);
        }
    }

    fn totals(&self) -> MeterTotals {
        self.ledger.meters()[0].1
    }
}

fn near(got: Joules, want: f64, share: f64) {
    assert!((got.0 / want - 1.0).abs() <= share, "{} is not {want:.1} ± {} %", got, share * 100.0);
}

const STEP: Duration = Duration::from_millis(20);

#[test]
fn a_request_alone_gets_the_busy_part_of_the_total() {
    let mut b = bench(Faults::default());
    b.idle(Duration::from_secs(6));
    let request = b.ledger.open();
    b.steps(40, 64, STEP, &[(request.id, 9.0, 0.0)]);
    b.steps(400, 1, STEP, &[(request.id, 0.0, 1.0)]);
    request.close();
    b.idle(Duration::from_secs(4));
    let energy = request.energy().unwrap();
    assert!(energy.settled);
    assert_eq!((energy.method, energy.boundary), (Method::Counter, Boundary::GpuBoard));
    let busy = power(64).0 * 0.8 + power(1).0 * 8.0;
    near(energy.total(), busy, 0.02);
    let totals = b.totals();
    let idle_measured = b.ledger.idle_power(0).unwrap();
    assert!(idle_measured.1 && (idle_measured.0.0 - IDLE.0).abs() < 2.0, "{idle_measured:?}");
    assert!((totals.attributed().0 - totals.total).abs() < 1e-6);
}

#[test]
fn eight_times_the_work_is_eight_times_the_joules() {
    let mut b = bench(Faults::default());
    b.idle(Duration::from_secs(5));
    let (small, large) = (b.ledger.open(), b.ledger.open());
    // Together in the same steps, then each by itself in steps alike.
    b.steps(300, 9, STEP, &[(small.id, 0.0, 1.0), (large.id, 0.0, 8.0)]);
    b.steps(30, 4, STEP, &[(small.id, 0.0, 1.0)]);
    b.steps(240, 4, STEP, &[(large.id, 0.0, 1.0)]);
    small.close();
    large.close();
    b.idle(Duration::from_secs(4));
    let ratio = large.energy().unwrap().total().0 / small.energy().unwrap().total().0;
    assert!((ratio / 8.0 - 1.0).abs() < 0.05, "{ratio}");
}

#[test]
fn the_estimate_at_the_end_is_close_to_what_is_settled() {
    for rows in [1, 16, 256] {
        let mut b = bench(Faults::default());
        b.idle(Duration::from_secs(5));
        let request = b.ledger.open();
        b.steps(20, 64, STEP, &[(request.id, 9.0, 0.0)]);
        b.steps(230, rows, STEP, &[(request.id, 0.0, 1.0)]);
        request.close();
        let estimate = request.energy().unwrap();
        assert!(!estimate.settled);
        b.idle(Duration::from_secs(4));
        let settled = request.energy().unwrap();
        assert!(settled.settled);
        near(estimate.total(), settled.total().0, 0.05);
        assert!(settled.prefill.0 > 0.0 && settled.decode > settled.prefill);
    }
}

#[test]
fn a_first_request_before_any_window_is_estimated_by_the_boards_limit_or_not_at_all() {
    for (full, known) in [(None, false), (Some(Watts(690.0)), true)] {
        let mut b = bench(Faults { full, ..Faults::default() });
        b.idle(Duration::from_millis(300));
        let request = b.ledger.open();
        b.steps(20, 1, STEP, &[(request.id, 0.0, 1.0)]);
        let told = request.energy();
        assert_eq!(told.is_some(), known);
        if let Some(energy) = told {
            near(energy.total(), 690.0 * relative_power(1) * 0.4, 1e-6);
        }
        // With its first window there is a figure, of a request that nothing has settled before.
        b.steps(80, 1, STEP, &[(request.id, 0.0, 1.0)]);
        let energy = request.energy().unwrap();
        assert!(!energy.settled);
        near(energy.total(), power(1).0 * 2.0, 0.25);
        assert!(!b.ledger.idle_power(0).is_some_and(|(_, measured)| measured));
    }
}

#[test]
fn the_noise_of_an_idle_second_is_not_billed_to_a_short_step() {
    let second = |n: u64, watts: f64| EnergyWindow {
        meter: 0,
        start: Tick(n * 1_000_000_000),
        end: Tick((n + 1) * 1_000_000_000),
        joules: Joules(watts),
        gap: false,
    };
    let info = FakeBoard::new(Clock::fake(), Faults::default()).meter(Some(0)).info().clone();
    let mut book = Book::new(MeterInfo { full: Some(Watts(700.0)), lag: Duration::ZERO, ..info });
    for n in 0..5 {
        book.settle(&second(n, 100.0), &[], Duration::from_secs(10 + n));
    }
    let time = Interval { start: Tick(5_500_000_000), end: Tick(5_510_000_000) };
    let piece = Piece { time, relative_power: relative_power(256) };
    // 7 J at the most in 10 ms; the meter is 20 W high in this second.
    let per_weight = book.settle(&second(5, 125.0), &[piece], Duration::ZERO);
    let billed = per_weight * piece.weight();
    assert!((7.0..=7.0 * 1.25).contains(&billed), "{billed}");
    assert!((book.totals.idle + billed - 625.0).abs() < 1e-9);
}

#[test]
fn failed_steps_are_overhead_and_a_step_that_is_split_by_windows_is_settled_once() {
    let mut b = bench(Faults::default());
    b.idle(Duration::from_secs(5));
    let request = b.ledger.open();
    // One step longer than three windows.
    b.step(1, Duration::from_millis(3500), &[(request.id, 1.0, 1.0)], false);
    b.step(1, Duration::from_millis(2000), &[(request.id, 1.0, 1.0)], true);
    request.close();
    b.idle(Duration::from_secs(4));
    let energy = request.energy().unwrap();
    near(energy.total(), power(1).0 * 3.5, 0.03);
    assert!((energy.prefill.0 / energy.decode.0 - 1.0).abs() < 1e-9);
    near(Joules(b.totals().overhead), power(1).0 * 2.0, 0.05);
}

#[test]
fn accounts_and_steps_are_forgotten_once_settled() {
    let mut b = bench(Faults::default());
    for _ in 0..5 {
        let request = b.ledger.open();
        b.steps(20, 1, STEP, &[(request.id, 0.0, 1.0)]);
    }
    b.idle(Duration::from_secs(4));
    assert_eq!(b.ledger.held(), (0, 0));
}

#[test]
fn a_package_meter_is_shared_by_all_engines() {
    let clock = Clock::fake();
    let board = FakeBoard::new(clock.clone(), Faults::default());
    let monitor = Arc::new(Monitor::new(vec![board.meter(None)], clock.clone(), MonitorConfig::default()));
    let logs = vec![StepLog::default(), StepLog::default()];
    let ledger = Ledger::start(&monitor, logs.clone()).unwrap();
    let (a, b) = (ledger.open(), ledger.open());
    board.run(1);
    for _ in 0..200 {
        let started = clock.now();
        clock.advance(POLL);
        monitor.poll();
        for (log, account) in logs.iter().zip([a.id, b.id]) {
            let record =
                StepRecord { started, ended: clock.now(), rows: 1, sequences: 1, overhead: false, shares: 0 };
            log.end(record, std::iter::once(Share { account, prefill: 0.0, decode: 1.0 }));
        }
    }
    let (a, b) = (a.energy().unwrap().total().0, b.energy().unwrap().total().0);
    assert!((a / b - 1.0).abs() < 1e-6 && a > 1000.0, "{a} {b}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever runs, with whatever faults: nothing is lost and nothing is made up.
    #[test]
    fn shares_idle_and_overhead_are_the_meters_total(
        plan in prop::collection::vec((0usize..5, 1u64..400, 1usize..300, 0u8..12), 1..60),
        jitter in 0u64..60,
        lag in 0u64..300,
        dropout in prop_oneof![Just(0u64), 3..20u64],
    ) {
        let mut b = bench(Faults {
            jitter: Duration::from_millis(jitter),
            lag: Duration::from_millis(lag),
            dropout_every: dropout,
            ..Faults::default()
        });
        let handles: Vec<_> = (0..4).map(|_| b.ledger.open()).collect();
        for (who, millis, rows, kind) in plan {
            let time = Duration::from_millis(millis);
            match handles.get(who) {
                None => b.idle(time * 5),
                Some(h) => {
                    let other = handles[(who + 1) % 4].id;
                    let work = [(h.id, 1.0, 0.5), (other, 0.0, 2.0), (OVERHEAD, 0.1, 0.0)];
                    b.step(rows, time, &work, kind == 0);
                }
            }
        }
        handles.iter().for_each(AccountHandle::close);
        b.idle(Duration::from_secs(4));
        let totals = b.totals();
        let told = || handles.iter().filter_map(AccountHandle::energy);
        let shares: f64 = told().map(|e| e.total().0).sum();
        prop_assert!(told().all(|e| e.settled));
        prop_assert!((shares + totals.idle + totals.overhead - totals.total).abs() < 1e-6 * totals.total.max(1.0));
        let of_engines: f64 = b.ledger.engine_totals().iter().flatten().sum();
        prop_assert!((of_engines + totals.idle - totals.total).abs() < 1e-6 * totals.total.max(1.0));
        prop_assert!(totals.idle >= 0.0 && totals.overhead >= 0.0 && shares >= 0.0);
        // And the total is what was drawn, up to the window that is still open.
        let drawn = (b.board.drawn(b.clock.now()) - b.drawn_before).0;
        let open = b.ledger.meters()[0].0.joules.0 - totals.total;
        prop_assert!((totals.total + open - drawn).abs() <= 0.01 * drawn + 2.0 * IDLE.0, "{} + {open} of {drawn}", totals.total);
    }
}

/// A request that begins anew elsewhere is not billed for the attempt that failed; nothing is lost, and no total
/// ever falls.
#[test]
fn a_failed_attempt_is_overhead() {
    let mut b = bench(Faults::default());
    b.idle(Duration::from_secs(5));
    let (moves, stays) = (b.ledger.open(), b.ledger.open());
    b.steps(100, 2, STEP, &[(moves.id, 1.0, 0.0), (stays.id, 1.0, 0.0)]);
    let before = b.totals();
    assert!(before.prefill > 0.0 && moves.energy().unwrap().total().0 > 0.0);
    b.ledger.forfeit(moves.id, 0);
    b.ledger.disown(0);
    assert!(moves.energy().is_none(), "the failed attempt is still billed");
    // What the engine logs after that is nobody's either.
    b.steps(50, 2, STEP, &[(stays.id, 1.0, 0.0)]);
    let after = b.totals();
    assert!(after.prefill >= before.prefill && after.overhead > before.overhead);
    b.idle(Duration::from_secs(3));
    let totals = b.totals();
    assert!((totals.attributed().0 - totals.total).abs() < 1e-6);
    assert!(totals.overhead > totals.prefill, "{totals:?}");
    let of_engine = b.ledger.engine_totals()[0];
    for (engine, meter) in of_engine.into_iter().zip([totals.prefill, totals.decode, totals.overhead]) {
        assert!((engine - meter).abs() < 1e-6, "{of_engine:?} of {totals:?}");
    }
}

/// One meter for two engines: the joules of the one that serves are settled although the other one's step hangs, and
/// each engine has its own.
#[test]
fn an_engine_that_is_out_keeps_no_window_open() {
    let hangs = StepLog::default();
    let mut b = bench_beside(Faults::default(), None, std::slice::from_ref(&hangs));
    b.idle(Duration::from_secs(3));
    let request = b.ledger.open();
    hangs.begin(b.clock.now());
    b.steps(200, 4, STEP, &[(request.id, 1.0, 1.0)]);
    assert_eq!(b.ledger.engine_totals(), [[0.0; 3]; 2], "the step may still end");
    b.ledger.disown(1);
    b.steps(200, 4, STEP, &[(request.id, 1.0, 1.0)]);
    let [serves, out] = b.ledger.engine_totals()[..] else { panic!("two engines") };
    assert!(serves[0] > 0.0 && serves[1] > 0.0 && serves[2] == 0.0, "{serves:?}");
    assert_eq!(out, [0.0; 3]);
}
