//! Polls all meters of a process, integrates, and handles wraps, resets, gaps and losses.
//!
//! Readings → a running total of each meter ([`Monitor::meters`]), closed [`EnergyWindow`]s for attribution,
//! and [`Span`]s for benches. Totals only grow. A window ends where its meter's reading moved, so that a
//! counter's ticks are never cut; sums over windows are exact differences of the counter.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::{BoardState, MeterInfo, PowerError, PowerMeter, Reading, SHORT_WINDOW_PERIODS, Throttle};
use crate::clock::{Clock, Tick};
use crate::quantity::{Joules, Watts};

/// More than this is not a reading of one machine, but a counter that began anew.
const PLAUSIBLE_WATTS: f64 = 200_000.0;
/// A meter without a reading for so many periods has a gap: the energy is bridged, and that is said.
const GAP_PERIODS: u32 = 5;
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
    meters: Mutex<Vec<Polled>>,
    sinks: RwLock<Vec<WindowSink>>,
}

impl Monitor {
    /// A monitor that its owner polls.
    pub fn new(meters: Vec<Box<dyn PowerMeter>>, clock: Clock, config: MonitorConfig) -> Monitor {
        let meters = meters.into_iter().map(|meter| Polled::new(meter, clock.now())).collect();
        Monitor { clock, config, meters: Mutex::new(meters), sinks: RwLock::new(Vec::new()) }
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

    /// Calls `sink` for each window that closes from now on, on the polling thread.
    pub fn on_window(&self, sink: WindowSink) {
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).push(sink);
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn polled(&self) -> MutexGuard<'_, Vec<Polled>> {
        // What a meter that panicked left is its state before that reading.
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every meter once.
    pub fn poll(&self) {
        let mut closed = Vec::new();
        for (index, polled) in self.polled().iter_mut().enumerate() {
            polled.poll(&self.clock);
            closed.extend(polled.close_window(index, self.config.window));
        }
        let sinks = self.sinks.read().unwrap_or_else(PoisonError::into_inner);
        for window in &closed {
            sinks.iter().for_each(|sink| sink(window));
        }
    }

    pub fn meters(&self) -> Vec<MeterState> {
        self.polled().iter().map(|p| p.state.clone()).collect()
    }

    pub fn infos(&self) -> Vec<MeterInfo> {
        self.polled().iter().map(|p| p.state.info.clone()).collect()
    }

    /// Begins a span once every meter's reading has moved, so that no tick is cut at its beginning.
    /// Meters that do not move within three seconds are not waited for.
    pub fn open_span(&self) -> Span {
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
}

impl MeterState {
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
        SpanEnergy {
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
        let reading = self.meter.read();
        let now = clock.now();
        match reading {
            Ok(reading) => {
                self.state.status = Status::Working;
                self.take(reading, now);
            }
            Err(error) => self.fail(&error, now),
        }
        self.ask_board(now);
    }

    fn fail(&mut self, error: &PowerError, now: Tick) {
        let status = match error {
            PowerError::Lost { .. } => Status::Lost(error.to_string()),
            _ => Status::Failing(error.to_string()),
        };
        if std::mem::discriminant(&status) != std::mem::discriminant(&self.state.status) {
            tracing::warn!(%error, "a meter gives no reading");
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
        let most = Joules(PLAUSIBLE_WATTS * time.as_secs_f64().max(0.01));
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
    }
}
