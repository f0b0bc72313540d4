//! Polls all meters of a process, integrates, and handles wraps, resets, gaps and losses.
//!
//! Readings → a running total of each meter ([`Monitor::meters`]), closed [`EnergyWindow`]s for attribution,
//! and [`Span`]s for benches. Totals only grow. A window ends where its meter's reading moved, so that a
//! counter's ticks are never cut; sums over windows are exact differences of the counter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::{
    BoardState, Boundary, MeterInfo, PowerError, PowerMeter, Reading, SHORT_WINDOW_PERIODS, Throttle,
};
use crate::clock::{Clock, Tick};
use crate::quantity::{Joules, Watts};

/// More than this inside a boundary is no reading, but a slip of the instrument or a counter that began anew.
fn plausible_watts(boundary: Boundary) -> f64 {
    match boundary {
        Boundary::GpuBoard | Boundary::CpuPackage | Boundary::Dram => 20e3,
        Boundary::Node => 1e6,
        Boundary::Site => 1e9,
    }
}

/// A meter without a reading for so many periods has a gap: the energy is bridged, and that is said.
const GAP_PERIODS: u32 = 5;
/// A meter whose reading has not moved for so long tells nothing of now.
const SILENT: Duration = Duration::from_secs(10);
const BOARD_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_LOST: Duration = Duration::from_secs(5);
/// Longest wait for a meter to move when a span begins.
const LONGEST_ALIGNMENT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonitorConfig {
    pub poll: Duration,
    /// Length of the windows that attribution works on.
    pub window: Duration,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        MonitorConfig { poll: Duration::from_millis(50), window: Duration::from_secs(1) }
    }
}

/// Energy of one meter between two moments at which its reading moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnergyWindow {
    /// Index among the monitor's meters.
    pub meter: usize,
    pub start: Tick,
    pub end: Tick,
    pub joules: Joules,
    /// Part of it was bridged, not read.
    pub gap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No reading yet, or it works.
    Working,
    Failing(String),
    Lost(String),
}

/// A meter as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct MeterState {
    pub info: MeterInfo,
    /// Since the monitor began.
    pub joules: Joules,
    /// When the reading last moved.
    pub at: Tick,
    /// Mean power up to `at`; `None` before there were two readings.
    pub watts: Option<Watts>,
    /// Times the reading moved.
    pub edges: u64,
    pub status: Status,
    /// Times a counter began anew without a wrap.
    pub resets: u64,
    /// Time bridged for want of readings.
    pub bridged: Duration,
    pub board: Option<BoardState>,
    /// Time under each of [`Throttle::ALL`].
    pub throttled: [Duration; Throttle::ALL.len()],
    /// Sum of what the board said of its power by another path, and how often it did.
    pub instantaneous: (Watts, u32),
}

struct Polled {
    meter: Box<dyn PowerMeter>,
    state: MeterState,
    /// The last reading and when it was taken.
    last: Option<(Reading, Tick)>,
    window_start: Option<(Tick, Joules)>,
    window_gap: bool,
    board_at: Option<Tick>,
    retry_at: Tick,
}

pub type WindowSink = Box<dyn Fn(&EnergyWindow) + Send + Sync>;

/// The meters of a process. [`Monitor::start`] polls by a thread of its own, which ends with the monitor.
pub struct Monitor {
    clock: Clock,
    config: MonitorConfig,
    polled: Mutex<Vec<Polled>>,
    /// As of the last poll: who asks never waits for an instrument.
    states: Mutex<Arc<Vec<MeterState>>>,
    sinks: RwLock<Vec<WindowSink>>,
}

impl Monitor {
    /// A monitor that its owner polls.
    pub fn new(meters: Vec<Box<dyn PowerMeter>>, clock: Clock, config: MonitorConfig) -> Monitor {
        let polled: Vec<Polled> = meters.into_iter().map(|meter| Polled::new(meter, clock.now())).collect();
        let states = Mutex::new(Arc::new(polled.iter().map(|p| p.state.clone()).collect()));
        Monitor { clock, config, polled: Mutex::new(polled), states, sinks: RwLock::new(Vec::new()) }
    }

    /// # Errors
    /// When the thread cannot start.
    pub fn start(
        meters: Vec<Box<dyn PowerMeter>>,
        clock: Clock,
        config: MonitorConfig,
    ) -> std::io::Result<Arc<Monitor>> {
        let monitor = Arc::new(Monitor::new(meters, clock, config));
        let weak = Arc::downgrade(&monitor);
        std::thread::Builder::new().name("hashwatt-meter".into()).spawn(move || {
            while let Some(monitor) = weak.upgrade() {
                monitor.poll();
                drop(monitor);
                std::thread::sleep(config.poll);
            }
        })?;
        Ok(monitor)
    }

    /// Calls `sink` for each window that closes from now on, on the polling thread. Windows begin anew, so
    /// that none reaches back to what ran before anyone asked.
    pub fn on_window(&self, sink: WindowSink) {
        for polled in self.polled.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            polled.window_start = polled.window_start.map(|_| (polled.state.at, polled.state.joules));
        }
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).push(sink);
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Reads every meter once.
    pub fn poll(&self) {
        let mut closed = Vec::new();
        // What a meter that panicked left is its state before that reading.
        let mut all = self.polled.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, polled) in all.iter_mut().enumerate() {
            polled.poll(&self.clock);
            closed.extend(polled.close_window(index, self.config.window));
        }
        *self.states() = Arc::new(all.iter().map(|p| p.state.clone()).collect());
        drop(all);
        let sinks = self.sinks.read().unwrap_or_else(PoisonError::into_inner);
        for window in &closed {
            sinks.iter().for_each(|sink| sink(window));
        }
    }

    fn states(&self) -> MutexGuard<'_, Arc<Vec<MeterState>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The meters as of the last poll; waits for nothing.
    pub fn snapshot(&self) -> Arc<Vec<MeterState>> {
        self.states().clone()
    }

    /// The same as a value of one's own.
    pub fn meters(&self) -> Vec<MeterState> {
        self.snapshot().to_vec()
    }

    pub fn infos(&self) -> Vec<MeterInfo> {
        self.snapshot().iter().map(|m| m.info.clone()).collect()
    }

    /// Begins a span once every meter's reading has moved, so that no tick is cut at its beginning.
    /// Meters that do not move within three seconds are not waited for.
    pub fn open_span(&self) -> Span {
        // A move since the last poll is not one that happens now.
        self.poll();
        let before: Vec<u64> = self.meters().iter().map(|m| m.edges).collect();
        let begun = self.clock.now();
        let moved = |m: &[MeterState]| {
            m.iter().zip(&before).all(|(m, before)| m.edges > *before || matches!(m.status, Status::Lost(_)))
        };
        loop {
            self.poll();
            let meters = self.meters();
            if moved(&meters) || self.clock.now().since(begun) > LONGEST_ALIGNMENT {
                return Span { at: self.clock.now(), meters };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Energy since the span began. What a counter has not shown yet (at most its last tick) is taken at
    /// its last mean power.
    pub fn close_span(&self, span: Span) -> Vec<SpanEnergy> {
        self.poll();
        let now = self.clock.now();
        let time = now.since(span.at);
        let pairs = span.meters.into_iter().zip(self.meters());
        pairs.map(|(before, after)| SpanEnergy::between(&before, after, span.at, now, time)).collect()
    }
}

/// A measurement under way.
pub struct Span {
    at: Tick,
    meters: Vec<MeterState>,
}

/// What one meter says of a span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanEnergy {
    pub info: MeterInfo,
    pub joules: Joules,
    pub time: Duration,
    /// Fewer than [`SHORT_WINDOW_PERIODS`] periods of the meter.
    pub short: bool,
    /// Why the figure cannot be trusted: lost, no reading, bridged, reset, stuck.
    pub problem: Option<String>,
    pub throttled: [Duration; Throttle::ALL.len()],
    /// As it stood at the end.
    pub board: Option<BoardState>,
    /// Mean of the board's power by another path than the readings.
    pub instantaneous: Option<Watts>,
}

impl MeterState {
    /// It gave a reading when it was last asked.
    pub fn is_up(&self) -> bool {
        self.status == Status::Working
    }

    /// What it said last is of the past: it is lost, or its reading has stood still for long.
    pub fn is_silent(&self, now: Tick) -> bool {
        let longest = SILENT.max(self.info.period * SHORT_WINDOW_PERIODS);
        matches!(self.status, Status::Lost(_)) || now.since(self.at) > longest
    }

    /// Time under each reason for throttling that was met, seconds.
    pub fn throttled_seconds(&self) -> Vec<(&'static str, f64)> {
        let all = Throttle::ALL.iter().zip(self.throttled);
        all.filter(|(_, t)| !t.is_zero()).map(|(r, t)| (r.as_str(), t.as_secs_f64())).collect()
    }

    /// Total at a moment after `at`: the tick under way is taken at the last mean power.
    fn joules_at(&self, now: Tick) -> Joules {
        let open = now.since(self.at).min(self.info.period * 3);
        self.joules + self.watts.map_or(Joules::ZERO, |w| w * open)
    }
}

impl SpanEnergy {
    fn between(before: &MeterState, after: MeterState, start: Tick, end: Tick, time: Duration) -> SpanEnergy {
        let problem = match &after.status {
            Status::Lost(why) => Some(format!("lost: {why}")),
            Status::Failing(why) => Some(why.clone()),
            Status::Working if after.edges == before.edges => Some("the reading did not move".into()),
            Status::Working if after.resets > before.resets => Some("the counter began anew".into()),
            Status::Working if after.bridged > before.bridged => Some(format!(
                "{:.1} s without readings were bridged",
                (after.bridged - before.bridged).as_secs_f64()
            )),
            Status::Working => None,
        };
        let mut throttled = after.throttled;
        throttled.iter_mut().zip(before.throttled).for_each(|(t, before)| *t -= before);
        let (sum, count) = after.instantaneous;
        let (sum, count) = (sum.0 - before.instantaneous.0.0, count - before.instantaneous.1);
        SpanEnergy {
            instantaneous: (count > 0).then(|| Watts(sum / f64::from(count))),
            joules: after.joules_at(end) - before.joules_at(start),
            time,
            short: time < after.info.period * SHORT_WINDOW_PERIODS,
            problem,
            throttled,
            board: after.board,
            info: after.info,
        }
    }
}

impl Polled {
    fn new(meter: Box<dyn PowerMeter>, now: Tick) -> Polled {
        let state = MeterState {
            info: meter.info().clone(),
            joules: Joules::ZERO,
            at: now,
            watts: None,
            edges: 0,
            status: Status::Working,
            resets: 0,
            bridged: Duration::ZERO,
            board: None,
            throttled: Default::default(),
            instantaneous: (Watts(0.0), 0),
        };
        Polled {
            meter,
            state,
            last: None,
            window_start: None,
            window_gap: false,
            board_at: None,
            retry_at: now,
        }
    }

    fn poll(&mut self, clock: &Clock) {
        if matches!(self.state.status, Status::Lost(_)) && clock.now() < self.retry_at {
            return;
        }
        let lost =
            |problem: &str| PowerError::Lost { meter: self.state.info.name.clone(), problem: problem.into() };
        let reading = catch_unwind(AssertUnwindSafe(|| self.meter.read()))
            .unwrap_or_else(|_| Err(lost("reading it panicked")))
            .and_then(|reading| self.plausible(reading));
        let now = clock.now();
        match reading {
            Ok(reading) => {
                if self.state.status != Status::Working {
                    tracing::info!(meter = %self.state.info.name, "the meter gives readings again");
                }
                self.state.status = Status::Working;
                self.take(reading, now);
            }
            Err(error) => self.fail(&error, now),
        }
        self.ask_board(now);
    }

    /// One absurd number would stay in every total.
    fn plausible(&self, reading: Reading) -> Result<Reading, PowerError> {
        let info = &self.state.info;
        let fine = match reading {
            Reading::Power(watts) => (0.0..=plausible_watts(info.boundary)).contains(&watts.0),
            Reading::Counter(joules) => joules.0.is_finite(),
        };
        let problem = || format!("{reading:?} is not plausible for a {}", info.boundary);
        if fine {
            Ok(reading)
        } else {
            Err(PowerError::Unreadable { meter: info.name.clone(), problem: problem() })
        }
    }

    fn fail(&mut self, error: &PowerError, now: Tick) {
        let status = match error {
            PowerError::Lost { .. } => Status::Lost(error.to_string()),
            _ => Status::Failing(error.to_string()),
        };
        if std::mem::discriminant(&status) != std::mem::discriminant(&self.state.status) {
            tracing::warn!(%error, "a meter gives no reading");
        }
        if matches!(status, Status::Lost(_)) {
            // Nothing is known of it any more, nor for how long it was throttled.
            (self.state.board, self.board_at, self.state.watts) = (None, None, None);
        }
        self.retry_at = now + RETRY_LOST;
        self.state.status = status;
    }

    fn take(&mut self, reading: Reading, now: Tick) {
        let Some((last, last_at)) = self.last else {
            self.last = Some((reading, now));
            self.state.at = now;
            self.window_start = Some((now, self.state.joules));
            if let Reading::Power(watts) = reading {
                self.state.watts = Some(watts);
            }
            return;
        };
        let time = now.since(last_at);
        let since_moved = now.since(self.state.at);
        let added = match (last, reading) {
            (Reading::Power(before), Reading::Power(after)) => {
                if time > self.state.info.period.max(Duration::from_millis(50)) * GAP_PERIODS {
                    self.bridge(time);
                }
                Some(Watts((before.0 + after.0) / 2.0) * time)
            }
            (Reading::Counter(before), Reading::Counter(after)) if after == before => None,
            (Reading::Counter(before), Reading::Counter(after)) => {
                Some(self.counted(before, after, since_moved))
            }
            // A meter that changes its kind of reading has begun anew.
            _ => Some(self.begun_anew(since_moved)),
        };
        if let Some(added) = added {
            if !since_moved.is_zero() {
                self.state.watts = Some(added / since_moved);
            }
            if let Reading::Power(watts) = reading {
                self.state.watts = Some(watts);
            }
            self.state.joules += added;
            self.state.edges += 1;
            self.state.at = now;
        }
        self.last = Some((reading, now));
    }

    /// What a counter that moved has counted, `time` after it moved before.
    fn counted(&mut self, before: Joules, after: Joules, time: Duration) -> Joules {
        let most = Joules(plausible_watts(self.state.info.boundary) * time.as_secs_f64().max(0.01));
        let added = match self.state.info.wraps_at {
            Some(range) if after < before => range - before + after,
            _ => after - before,
        };
        if added.0 >= 0.0 && added <= most { added } else { self.begun_anew(time) }
    }

    /// A counter without a past: the time since is bridged at the last mean power.
    fn begun_anew(&mut self, time: Duration) -> Joules {
        self.state.resets += 1;
        self.bridge(time);
        tracing::warn!(meter = %self.state.info.name, "the counter began anew; the gap is bridged");
        self.state.watts.map_or(Joules::ZERO, |w| w * time)
    }

    fn bridge(&mut self, time: Duration) {
        self.state.bridged += time;
        self.window_gap = true;
    }

    fn close_window(&mut self, meter: usize, length: Duration) -> Option<EnergyWindow> {
        let (start, before) = self.window_start?;
        let end = self.state.at;
        if end.since(start) < length {
            return None;
        }
        let window = EnergyWindow {
            meter,
            start,
            end,
            joules: self.state.joules - before,
            gap: std::mem::take(&mut self.window_gap),
        };
        self.window_start = Some((end, self.state.joules));
        Some(window)
    }

    fn ask_board(&mut self, now: Tick) {
        let since = self.board_at.map_or(BOARD_INTERVAL, |at| now.since(at));
        if since < BOARD_INTERVAL || matches!(self.state.status, Status::Lost(_)) {
            return;
        }
        if let (Some(board), Some(_)) = (&self.state.board, self.board_at) {
            for (time, reason) in self.state.throttled.iter_mut().zip(Throttle::ALL) {
                if board.throttles.contains(&reason) {
                    *time += since;
                }
            }
        }
        self.board_at = Some(now);
        self.state.board = self.meter.board();
        if let Some(watts) = self.state.board.as_ref().and_then(|b| b.instantaneous_watts) {
            let (sum, count) = self.state.instantaneous;
            self.state.instantaneous = (Watts(sum.0 + watts), count + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testing::{FakeBoard, Faults, IDLE};
    use crate::power::{Boundary, Method};

    const POLL: Duration = Duration::from_millis(50);

    struct Bench {
        clock: Clock,
        board: FakeBoard,
        monitor: Monitor,
    }

    fn bench(faults: Faults) -> Bench {
        let clock = Clock::fake();
        clock.advance(Duration::from_millis(333));
        let board = FakeBoard::new(clock.clone(), faults);
        let monitor = Monitor::new(vec![board.meter(Some(0))], clock.clone(), MonitorConfig::default());
        monitor.poll();
        Bench { clock, board, monitor }
    }

    impl Bench {
        fn run(&self, rows: usize, time: Duration) {
            self.board.run(rows);
            for _ in 0..time.as_nanos() / POLL.as_nanos() {
                self.clock.advance(POLL);
                self.monitor.poll();
            }
        }
        fn state(&self) -> MeterState {
            self.monitor.meters().remove(0)
        }
    }

    #[test]
    fn the_energy_of_a_varying_load_is_recovered_through_ticks_jitter_wraps_and_dropouts() {
        let b = bench(Faults::default());
        let begun = b.board.drawn(b.clock.now());
        for (rows, seconds) in [(0, 4), (1, 7), (256, 11), (8, 3), (0, 5), (64, 9), (1, 2), (256, 6)] {
            b.run(rows, Duration::from_millis(seconds * 1000 + 37 * rows as u64));
        }
        let truth = (b.board.drawn(b.clock.now()) - begun).0;
        let found = b.state();
        assert!((found.joules.0 / truth - 1.0).abs() < 0.01, "{} of {truth}", found.joules);
        assert_eq!((found.resets, &found.status), (0, &Status::Working));
        assert!(truth > 5000.0 * 3.0, "the counter wrapped several times");
    }

    #[test]
    fn windows_end_where_the_counter_moved_and_add_up_to_its_total() {
        let b = bench(Faults::default());
        let windows = Arc::new(Mutex::new(Vec::new()));
        let sink = windows.clone();
        b.monitor.on_window(Box::new(move |w| sink.lock().unwrap().push(*w)));
        b.run(16, Duration::from_secs(10));
        b.run(0, Duration::from_secs(3));
        let windows = windows.lock().unwrap();
        assert!((10..=13).contains(&windows.len()), "{}", windows.len());
        assert!(windows.windows(2).all(|w| w[0].end == w[1].start));
        assert!(windows.iter().all(|w| w.end.since(w.start) >= Duration::from_secs(1) && !w.gap));
        let sum: f64 = windows.iter().map(|w| w.joules.0).sum();
        let rest = b.state().joules.0 - sum;
        assert!((0.0..=IDLE.0 * 1.2).contains(&rest), "{rest}");
    }

    #[test]
    fn a_counter_that_begins_anew_is_bridged_and_said() {
        let b = bench(Faults { wraps_at: None, ..Faults::default() });
        let begun = b.board.drawn(b.clock.now());
        b.run(1, Duration::from_secs(10));
        b.board.reset_counter();
        b.run(1, Duration::from_secs(10));
        let (found, truth) = (b.state(), (b.board.drawn(b.clock.now()) - begun).0);
        assert_eq!(found.resets, 1);
        assert!(found.bridged > Duration::ZERO);
        assert!((found.joules.0 / truth - 1.0).abs() < 0.02, "{} of {truth}", found.joules);
    }

    #[test]
    fn a_lost_device_keeps_its_total_is_named_and_may_come_back() {
        let b = bench(Faults { dropout_every: 0, ..Faults::default() });
        b.run(1, Duration::from_secs(5));
        let span = Span { at: b.clock.now(), meters: b.monitor.meters() };
        b.board.set_lost(true);
        b.run(1, Duration::from_secs(5));
        assert!(matches!(b.state().status, Status::Lost(_)));
        let lost = b.monitor.close_span(span).remove(0);
        assert!(lost.problem.unwrap().contains("fallen off"));
        b.board.set_lost(false);
        b.run(1, Duration::from_secs(10));
        let found = b.state();
        assert_eq!((found.status, found.resets), (Status::Working, 0), "its counter had gone on");
    }

    #[test]
    fn short_windows_and_meters_that_stand_still_are_flagged() {
        let b = bench(Faults { dropout_every: 0, ..Faults::default() });
        b.run(1, Duration::from_secs(2));
        let open = || Span { at: b.clock.now(), meters: b.monitor.meters() };
        let span = open();
        b.run(1, Duration::from_millis(1900));
        assert!(b.monitor.close_span(span).remove(0).short, "19 ticks");
        let span = open();
        b.run(1, Duration::from_millis(2100));
        let long = b.monitor.close_span(span).remove(0);
        assert!(!long.short && long.problem.is_none());
        assert!((long.joules.0 / (300.0 * 2.1) - 1.0).abs() < 0.02, "{}", long.joules);
        let span = open();
        assert_eq!(b.monitor.close_span(span).remove(0).problem.unwrap(), "the reading did not move");
    }

    /// Power readings, one each poll, that stop for a while.
    struct Watt(MeterInfo, Clock);

    impl PowerMeter for Watt {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&mut self) -> Result<Reading, PowerError> {
            let seconds = self.1.now().0 as f64 * 1e-9;
            if (4.0..6.0).contains(&seconds) {
                return Err(PowerError::Unreadable { meter: "w".into(), problem: "busy".into() });
            }
            Ok(Reading::Power(Watts(100.0 + 10.0 * seconds)))
        }
        fn board(&mut self) -> Option<BoardState> {
            Some(BoardState { throttles: vec![Throttle::Thermal], ..BoardState::default() })
        }
    }

    #[test]
    fn power_is_integrated_by_trapezoids_across_gaps_and_throttling_is_timed() {
        let clock = Clock::fake();
        let info = MeterInfo {
            name: "w".into(),
            device: None,
            boundary: Boundary::Node,
            method: Method::Integrated,
            period: Duration::from_millis(100),
            lag: Duration::ZERO,
            full: None,
            wraps_at: None,
            gain_error: 0.05,
        };
        let monitor =
            Monitor::new(vec![Box::new(Watt(info, clock.clone()))], clock.clone(), MonitorConfig::default());
        monitor.poll();
        for _ in 0..200 {
            clock.advance(POLL);
            monitor.poll();
        }
        let found = &monitor.meters()[0];
        // ∫ 100 + 10 t over ten seconds.
        assert!((found.joules.0 - 1500.0).abs() < 1e-6, "{}", found.joules);
        assert!((2.0..2.2).contains(&found.bridged.as_secs_f64()), "{:?}", found.bridged);
        let thermal = found.throttled[1].as_secs_f64();
        assert!((8.5..=10.0).contains(&thermal), "{thermal}");
    }

    /// A counter of 500 W that moves every 100 ms; each reading takes a millisecond of the clock.
    struct Slow(MeterInfo, Clock);

    impl PowerMeter for Slow {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&mut self) -> Result<Reading, PowerError> {
            self.1.advance(Duration::from_millis(1));
            let ticks = self.1.now().0 / 100_000_000;
            Ok(Reading::Counter(Joules(50.0 * ticks as f64)))
        }
    }

    fn slow(period: Duration) -> (Monitor, Clock) {
        let clock = Clock::fake();
        clock.advance(Duration::from_millis(1037));
        let info = MeterInfo {
            name: "slow".into(),
            device: None,
            boundary: Boundary::Node,
            method: Method::Counter,
            period,
            lag: Duration::ZERO,
            full: None,
            wraps_at: None,
            gain_error: 0.05,
        };
        let meter = Box::new(Slow(info, clock.clone()));
        (Monitor::new(vec![meter], clock.clone(), MonitorConfig::default()), clock)
    }

    #[test]
    fn a_span_begins_where_the_counter_moves() {
        let (monitor, clock) = slow(Duration::from_millis(100));
        // Each begins at another phase of the tick.
        for phase in [0, 13, 49, 88] {
            clock.advance(Duration::from_millis(phase));
            let span = monitor.open_span();
            let into_tick = span.at.0 % 100_000_000;
            assert!(into_tick <= 2_000_000, "{into_tick} ns after the tick");
            for _ in 0..60 {
                clock.advance(POLL);
                monitor.poll();
            }
            let found = monitor.close_span(span).remove(0);
            let truth = 500.0 * found.time.as_secs_f64();
            assert!((found.joules.0 / truth - 1.0).abs() < 0.01, "{} of {truth}", found.joules);
            assert_eq!((found.short, found.problem), (false, None));
        }
    }

    /// 20 polls a second may cost 0.5 % of a core: 250 microseconds each, of CPU time and not of the wall's.
    #[test]
    fn a_poll_of_eight_boards_costs_less_than_its_share_of_a_core() {
        const POLLS: u32 = 400;
        let clock = Clock::fake();
        let board = FakeBoard::new(clock.clone(), Faults::default());
        let meters = (0..8).map(|i| board.meter(Some(i))).collect();
        let monitor = Monitor::new(meters, clock.clone(), MonitorConfig::default());
        board.run(8);
        let before = thread_cpu();
        for _ in 0..POLLS {
            clock.advance(POLL);
            monitor.poll();
        }
        let each = (thread_cpu() - before) / POLLS;
        assert!(each < Duration::from_micros(250), "{each:?}");
    }

    fn thread_cpu() -> Duration {
        // SAFETY: an all-zero `timespec` is valid, and the call only writes into it.
        let time = unsafe {
            let mut time: libc::timespec = std::mem::zeroed();
            assert_eq!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time), 0);
            time
        };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// Says what it is told, once a poll.
    struct Script(MeterInfo, Vec<f64>);

    impl PowerMeter for Script {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&mut self) -> Result<Reading, PowerError> {
            Ok(Reading::Power(Watts(self.1.remove(0))))
        }
    }

    #[test]
    fn absurd_readings_are_failures_and_a_meter_that_panics_is_lost() {
        let clock = Clock::fake();
        let board = FakeBoard::new(clock.clone(), Faults::default());
        let info = MeterInfo { method: Method::Integrated, ..board.meter(None).info().clone() };
        let said = vec![100.0, 1e308, f64::NAN, -5.0, 100.0];
        let meter = Box::new(Script(info, said));
        let monitor = Monitor::new(vec![meter], clock.clone(), MonitorConfig::default());
        for n in 0..6 {
            monitor.poll();
            let status = monitor.meters().remove(0).status;
            match n {
                0 | 4 => assert_eq!(status, Status::Working),
                1..=3 => assert!(
                    matches!(&status, Status::Failing(why) if why.contains("plausible")),
                    "{status:?}"
                ),
                _ => assert!(matches!(&status, Status::Lost(why) if why.contains("panicked")), "{status:?}"),
            }
            clock.advance(POLL);
        }
        assert!((monitor.meters()[0].joules.0 - 100.0 * 0.2).abs() < 1e-9);
    }
}
