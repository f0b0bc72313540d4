//! Load on a target: so many requests at once, arrivals by chance, or arrivals as recorded.
//!
//! [`Load::start`] runs on a runtime until it is dropped; [`Tally`] counts what comes of it. It knows no
//! watts: whoever measures reads the tally at both ends of a window.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lengths::{Lengths, Random};
use super::target::{Ask, Counts, Target, TargetError};
use super::trace::Arrival;
use crate::clock::{BusyTime, Clock, Tick};

/// Requests of an open loop that may run at once; more are counted as failed.
const MOST_RUNNING: usize = 4096;
/// After so many failures in a row a closed loop gives the target up; in an open one, a target that cannot
/// keep up refuses many.
const FAILURES_IN_A_ROW: u64 = 8;
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Latencies a request keeps to itself before it hands them over.
const HANDED_OVER: usize = 64;

/// When requests begin.
#[derive(Debug, Clone)]
pub enum Arrivals {
    /// Each ends before its successor begins.
    Closed { concurrency: usize },
    /// By chance at a mean rate, whatever runs (Poisson).
    Open { requests_per_second: f64 },
    /// As recorded; `speed` 2 is twice as fast.
    Recorded { arrivals: Arc<[Arrival]>, speed: f64 },
}

/// What is asked, and when.
#[derive(Debug, Clone)]
pub struct Shape {
    pub arrivals: Arrivals,
    pub input: Lengths,
    pub output: Lengths,
    /// Prompt and answer together have no more tokens than this.
    pub context: Option<usize>,
    pub seed: u64,
}

/// What came of a load so far.
pub struct Tally {
    clock: Clock,
    input: AtomicU64,
    output: AtomicU64,
    running: AtomicUsize,
    /// A recording of arrivals has ended, and its last request too.
    over: AtomicU64,
    state: Mutex<State>,
    gives_up: bool,
    /// Time with a request running: the utilisation of a server that tells none.
    busy: BusyTime,
    busy_since: Mutex<Option<Tick>>,
}

/// What is kept between [`Tally::record`] and [`Tally::take`].
#[derive(Debug, Default)]
pub struct Records {
    pub requests: u64,
    pub failed: u64,
    /// Of the requests that ended.
    pub counts: Counts,
    pub most_running: usize,
    pub ttft_seconds: Vec<f64>,
    pub itl_seconds: Vec<f64>,
    /// The first failure.
    pub problem: Option<String>,
    /// Requests cut to the context.
    pub cut: u64,
}

#[derive(Default)]
struct State {
    recording: bool,
    records: Records,
    failures_in_a_row: u64,
    given_up: Option<String>,
}

impl Tally {
    fn new(clock: Clock, busy: BusyTime, gives_up: bool) -> Tally {
        Tally {
            clock,
            input: AtomicU64::new(0),
            output: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            over: AtomicU64::new(0),
            state: Mutex::default(),
            gives_up,
            busy,
            busy_since: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts that a panic left behind are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Input tokens (a prompt counts when its first output token comes) and output tokens so far.
    pub fn tokens(&self) -> (u64, u64) {
        (self.input.load(Ordering::Relaxed), self.output.load(Ordering::Relaxed))
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) > 0
    }

    /// Why nothing more can be expected of the target.
    pub fn given_up(&self) -> Option<String> {
        self.state().given_up.clone()
    }

    /// From now on requests and latencies are kept.
    pub fn record(&self) {
        let mut state = self.state();
        state.recording = true;
        // Requests that run already were cut when they were made.
        state.records = Records { cut: state.records.cut, ..Records::default() };
    }

    /// What was kept; nothing more is.
    pub fn take(&self) -> Records {
        let mut state = self.state();
        state.recording = false;
        std::mem::take(&mut state.records)
    }

    fn begin(&self) {
        let running = self.running.fetch_add(1, Ordering::AcqRel) + 1;
        let mut state = self.state();
        state.records.most_running = state.records.most_running.max(running);
        drop(state);
        self.tell_busy();
    }

    /// Adds what has passed since the last call if something ran.
    pub fn tell_busy(&self) {
        let mut since = self.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if let Some(since) = since.take() {
            self.busy.add(now.since(since));
        }
        *since = (self.running() > 0).then_some(now);
    }

    fn end(&self, outcome: Result<Counts, TargetError>) {
        let mut state = self.state();
        let State { recording, records, failures_in_a_row, given_up } = &mut *state;
        match outcome {
            Ok(counts) => {
                *failures_in_a_row = 0;
                if *recording {
                    records.requests += 1;
                    records.counts.input_tokens += counts.input_tokens;
                    records.counts.output_tokens += counts.output_tokens;
                }
            }
            Err(error) => {
                records.failed += u64::from(*recording);
                *failures_in_a_row += 1;
                let problem = error.to_string();
                if self.gives_up && *failures_in_a_row >= FAILURES_IN_A_ROW {
                    given_up.get_or_insert_with(|| problem.clone());
                }
                records.problem.get_or_insert(problem);
            }
        }
    }
}

/// Counts a request as running, until it is dropped.
struct Running<'a>(&'a Tally);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.tell_busy();
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.tell_busy();
    }
}

/// A request's own view of its tokens.
struct Watch<'a> {
    tally: &'a Tally,
    asked: Ask,
    begun: Tick,
    last: Option<Tick>,
    tokens: usize,
    gaps: Vec<f64>,
}

impl Watch<'_> {
    fn came(&mut self, tokens: usize) {
        let new = tokens.saturating_sub(self.tokens);
        if new == 0 {
            return;
        }
        let now = self.tally.clock.now();
        self.tokens = tokens;
        self.tally.output.fetch_add(new as u64, Ordering::Relaxed);
        match self.last {
            None => {
                self.tally.input.fetch_add(self.asked.input_tokens as u64, Ordering::Relaxed);
                let mut state = self.tally.state();
                if state.recording {
                    state.records.ttft_seconds.push(now.since(self.begun).as_secs_f64());
                }
            }
            Some(last) => {
                let each = now.since(last).as_secs_f64() / new as f64;
                self.gaps.extend(std::iter::repeat_n(each, new));
            }
        }
        self.last = Some(now);
        if self.gaps.len() >= HANDED_OVER {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let mut state = self.tally.state();
        if state.recording {
            state.records.itl_seconds.append(&mut self.gaps);
        }
        self.gaps.clear();
    }
}

async fn one(target: &Target, tally: &Tally, ask: Ask) {
    tally.begin();
    let running = Running(tally);
    let mut watch =
        Watch { tally, asked: ask, begun: tally.clock.now(), last: None, tokens: 0, gaps: Vec::new() };
    let outcome = target.ask(ask, &mut |tokens| watch.came(tokens)).await;
    // What usage says of the prompt is right where the asked length was only aimed at.
    if let (Ok(counts), Some(_)) = (&outcome, watch.last) {
        let more = counts.input_tokens as u64;
        tally.input.fetch_add(more.wrapping_sub(ask.input_tokens as u64), Ordering::Relaxed);
    }
    watch.hand_over();
    let failed = outcome.is_err();
    drop(running);
    tally.end(outcome);
    if failed {
        tokio::time::sleep(AFTER_FAILURE).await;
    }
}

/// Draws requests, each with a prompt of its own.
struct Asks {
    random: Random,
    shape: Shape,
}

impl Asks {
    fn next(&mut self, tally: &Tally) -> Ask {
        let input = self.shape.input.draw(&mut self.random);
        let output = self.shape.output.draw(&mut self.random);
        self.fitted(input, output, tally)
    }

    fn fitted(&mut self, input: usize, output: usize, tally: &Tally) -> Ask {
        let seed = self.random.bits();
        let context = self.shape.context.unwrap_or(usize::MAX).max(2);
        if input.saturating_add(output) <= context {
            return Ask { input_tokens: input, output_tokens: output, seed };
        }
        tally.state().records.cut += 1;
        let output_tokens = output.min(context / 2).max(context.saturating_sub(input).min(output));
        Ask { input_tokens: input.min(context - output_tokens), output_tokens, seed }
    }
}

/// A load that runs until it is dropped.
pub struct Load {
    pub tally: Arc<Tally>,
    _stop: DropGuard,
}

impl Load {
    /// `busy` hears of the time with a request running, for targets that keep no such time themselves.
    pub fn start(runtime: &Handle, target: Arc<Target>, shape: Shape, clock: &Clock, busy: BusyTime) -> Load {
        let gives_up = matches!(shape.arrivals, Arrivals::Closed { .. });
        let tally = Arc::new(Tally::new(clock.clone(), busy, gives_up));
        let stop = CancellationToken::new();
        let work = run(target, tally.clone(), shape);
        let until = stop.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = work => {}
            }
        });
        Load { tally, _stop: stop.drop_guard() }
    }
}

async fn run(target: Arc<Target>, tally: Arc<Tally>, shape: Shape) {
    let mut requests = JoinSet::new();
    match shape.arrivals.clone() {
        Arrivals::Closed { concurrency } => {
            for client in 0..concurrency {
                let shape = Shape { seed: shape.seed.wrapping_add((client as u64) << 32), ..shape.clone() };
                requests.spawn(closed(target.clone(), tally.clone(), shape));
            }
        }
        Arrivals::Open { requests_per_second } => {
            let mut asks = Asks { random: Random::new(shape.seed), shape };
            let (begun, mut at) = (tally.clock.now(), 0.0);
            loop {
                at += asks.random.waiting(requests_per_second);
                wait(&tally.clock, begun, at).await;
                let ask = asks.next(&tally);
                spawn(&mut requests, &target, &tally, ask);
            }
        }
        Arrivals::Recorded { arrivals, speed } => {
            let mut asks = Asks { random: Random::new(shape.seed), shape };
            let begun = tally.clock.now();
            for arrival in arrivals.iter() {
                wait(&tally.clock, begun, arrival.seconds / speed).await;
                let ask = asks.fitted(arrival.input_tokens, arrival.output_tokens, &tally);
                spawn(&mut requests, &target, &tally, ask);
            }
        }
    }
    while requests.join_next().await.is_some() {}
    tally.over.store(1, Ordering::Release);
}

/// Sleeps until so many seconds after `begun`; not at all when that has passed.
async fn wait(clock: &Clock, begun: Tick, seconds: f64) {
    let left = Duration::from_secs_f64(seconds).saturating_sub(clock.now().since(begun));
    tokio::time::sleep(left).await;
}

/// One client: a request when the one before has ended. The first answer is cut by chance, so that clients
/// do not step together.
async fn closed(target: Arc<Target>, tally: Arc<Tally>, shape: Shape) {
    let mut asks = Asks { random: Random::new(shape.seed), shape };
    let mut first = asks.next(&tally);
    first.output_tokens = (first.output_tokens as f64 * asks.random.share()).ceil().max(1.0) as usize;
    one(&target, &tally, first).await;
    while tally.given_up().is_none() {
        let ask = asks.next(&tally);
        one(&target, &tally, ask).await;
    }
}

fn spawn(requests: &mut JoinSet<()>, target: &Arc<Target>, tally: &Arc<Tally>, ask: Ask) {
    while requests.try_join_next().is_some() {}
    if requests.len() >= MOST_RUNNING {
        let problem = format!("{MOST_RUNNING} requests run already");
        return tally.end(Err(TargetError::Failed { target: target.name().into(), problem }));
    }
    let (target, tally) = (target.clone(), tally.clone());
    requests.spawn(async move { one(&target, &tally, ask).await });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(input: usize, output: usize, context: Option<usize>) -> Shape {
        Shape {
            arrivals: Arrivals::Closed { concurrency: 1 },
            input: Lengths::Fixed(input),
            output: Lengths::Fixed(output),
            context,
            seed: 1,
        }
    }

    proptest! {
        /// What is asked fits the context, loses no more than it must, and never vanishes.
        #[test]
        fn asks_fit(input in 1usize..5000, output in 1usize..5000, context in 2usize..6000) {
            let tally = Tally::new(Clock::fake(), BusyTime::default(), true);
            let mut asks = Asks { random: Random::new(1), shape: shape(input, output, Some(context)) };
            let ask = asks.next(&tally);
            prop_assert!(ask.input_tokens >= 1 && ask.output_tokens >= 1);
            prop_assert_eq!(ask.input_tokens + ask.output_tokens, (input + output).min(context));
            prop_assert!(ask.input_tokens <= input && ask.output_tokens <= output);
            prop_assert_eq!(tally.take().cut, u64::from(input + output > context));
        }
    }

    #[test]
    fn latencies_are_of_tokens_and_only_while_recorded() {
        let clock = Clock::fake();
        let tally = Tally::new(clock.clone(), BusyTime::default(), true);
        let asked = Ask { input_tokens: 7, output_tokens: 9, seed: 0 };
        let mut watch =
            Watch { tally: &tally, asked, begun: clock.now(), last: None, tokens: 0, gaps: Vec::new() };
        tally.record();
        clock.advance(Duration::from_millis(30));
        watch.came(1);
        clock.advance(Duration::from_millis(10));
        watch.came(1);
        watch.came(2);
        clock.advance(Duration::from_millis(40));
        watch.came(6);
        watch.hand_over();
        assert_eq!(tally.tokens(), (7, 6));
        let records = tally.take();
        assert_eq!(records.ttft_seconds, [0.03]);
        assert_eq!(records.itl_seconds, [0.01, 0.01, 0.01, 0.01, 0.01]);
        watch.came(8);
        watch.hand_over();
        assert_eq!((tally.tokens(), tally.take().itl_seconds.len()), ((7, 8), 0));
    }

    #[test]
    fn a_target_that_fails_again_and_again_is_given_up() {
        let tally = Tally::new(Clock::fake(), BusyTime::default(), true);
        let fail = || Err(TargetError::Failed { target: "x".into(), problem: "gone".into() });
        tally.record();
        for _ in 1..FAILURES_IN_A_ROW {
            tally.end(fail());
        }
        tally.end(Ok(Counts::default()));
        assert_eq!(tally.given_up(), None);
        (0..FAILURES_IN_A_ROW).for_each(|_| tally.end(fail()));
        assert_eq!(tally.given_up().as_deref(), Some("x: gone"));
        let records = tally.take();
        assert_eq!((records.requests, records.failed), (1, 2 * FAILURES_IN_A_ROW - 1));
        let patient = Tally::new(Clock::fake(), BusyTime::default(), false);
        (0..FAILURES_IN_A_ROW).for_each(|_| patient.end(fail()));
        assert_eq!(patient.given_up(), None);
    }

    #[test]
    fn requests_cut_before_the_windows_stay_cut() {
        let tally = Tally::new(Clock::fake(), BusyTime::default(), true);
        tally.state().records.cut = 3;
        tally.record();
        assert_eq!(tally.take().cut, 3);
    }

    #[test]
    fn time_with_a_request_is_busy() {
        let (clock, busy) = (Clock::fake(), BusyTime::default());
        let tally = Tally::new(clock.clone(), busy.clone(), true);
        let second = Duration::from_secs(1);
        clock.advance(second);
        tally.begin();
        let (one, two) = (Running(&tally), Running(&tally));
        tally.running.fetch_add(1, Ordering::AcqRel);
        clock.advance(second);
        drop(one);
        clock.advance(second);
        tally.tell_busy();
        assert_eq!(busy.total(), 2 * second);
        drop(two);
        clock.advance(second);
        tally.tell_busy();
        assert_eq!(busy.total(), 2 * second);
    }
}
