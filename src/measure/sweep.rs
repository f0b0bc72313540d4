//! The bench from start to end: idle, concurrency, prefill, duty, power caps, arrivals, sustained, idle.
//!
//! [`Plan`] → [`Report`], which is handed on after every point so that nothing is lost. It knows neither
//! files nor terminals, and changes limits only through the [`Controls`] it is given.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::economics::{Given, judge, operating_point};
use super::lengths::Lengths;
use super::load::{Arrivals, Load, Shape};
use super::point::{Setup, fill, point};
use super::record::Recorder;
use super::report::{Idle, Kind, Point, Report};
use super::target::Target;
use super::trace::Arrival;
use super::window::{Instruments, Interrupted, of_scope, primary, scope, scopes};
use crate::clock::{BusyTime, unix_seconds};
use crate::power::Method;
use crate::power::monitor::{SpanEnergy, Status};

/// Requests at once while prompts are measured: enough that the target never waits.
const PREFILL_CONCURRENCY: u32 = 4;
/// A board that worked needs this long to come to rest.
const COOLDOWN: Duration = Duration::from_secs(5);
/// A recording may take this many times its length.
const PATIENCE_WITH_TRACES: usize = 10;

/// What is measured, and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub concurrencies: Vec<u32>,
    /// Length of the prompts of the prefill point; `None` leaves it out.
    pub prefill_tokens: Option<usize>,
    pub duties: Vec<f64>,
    pub power_caps_watts: Vec<f64>,
    pub requests_per_second: Vec<f64>,
    pub trace: Option<(Arc<[Arrival]>, f64)>,
    pub sustained: Duration,
    pub input: Lengths,
    pub output: Lengths,
    pub context: Option<usize>,
    pub windows: usize,
    pub window: Duration,
    /// As the protocol of measurement asks: windows as long as the meters need, steady power first.
    pub thorough: bool,
    pub warm_up: Duration,
    pub idle: Duration,
    pub seed: u64,
    /// Points after these are left out.
    pub most_points: usize,
}

pub type SetCap = Box<dyn Fn(Option<f64>) -> Result<(), String>>;

/// What of the target can be changed from here.
#[derive(Default)]
pub struct Controls {
    /// Sets the share of time the engine may be busy.
    pub duty: Option<Box<dyn Fn(f64)>>,
    /// Sets the board's limit in watts; `None` puts back what it was.
    pub power_cap: Option<SetCap>,
}

/// How far the bench is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub label: String,
    pub done_seconds: f64,
    pub total_seconds: f64,
}

/// Hears of the bench while it runs.
pub trait Listener {
    fn progress(&mut self, progress: Progress);
    /// After every point.
    fn report(&mut self, report: &Report);
}

/// A bench about to run.
pub struct Bench<'a> {
    pub plan: Plan,
    pub instruments: Instruments,
    pub runtime: Handle,
    pub target: Arc<Target>,
    /// Hears when requests run; of use where the target keeps no such time itself.
    pub busy: BusyTime,
    pub controls: Controls,
    pub given: Given,
    pub report: Report,
    pub listener: &'a mut dyn Listener,
}

/// One thing to do; a point's concurrency may depend on the points before it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Concurrency(u32),
    Prefill(usize),
    Duty(f64),
    PowerCap(f64),
    Open(f64),
    Trace,
    Sustained,
}

/// Why a bench ended before its end.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
enum Cut {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{0}")]
    Target(String),
}

impl Plan {
    fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = self.concurrencies.iter().map(|c| Step::Concurrency(*c)).collect();
        steps.extend(self.prefill_tokens.map(Step::Prefill));
        steps.extend(self.duties.iter().map(|d| Step::Duty(*d)));
        steps.extend(self.power_caps_watts.iter().map(|w| Step::PowerCap(*w)));
        steps.extend(self.requests_per_second.iter().map(|r| Step::Open(*r)));
        steps.extend(self.trace.as_ref().map(|_| Step::Trace));
        steps.extend((!self.sustained.is_zero()).then_some(Step::Sustained));
        steps.truncate(self.most_points);
        steps
    }

    /// Windows of a step of this length.
    fn windows(&self, step: Step, length: Duration) -> usize {
        let of = |time: f64| (time / length.as_secs_f64()).ceil().max(1.0) as usize;
        match (step, &self.trace) {
            (Step::Sustained, _) => of(self.sustained.as_secs_f64()).max(self.windows),
            (Step::Trace, Some((arrivals, speed))) => of(arrivals.last().map_or(0.0, |a| a.seconds / speed)),
            _ => self.windows,
        }
    }
}

impl Bench<'_> {
    /// Runs to the end, or to where it is cut; then the report says why it is partial.
    pub fn run(mut self) -> std::io::Result<Report> {
        let recorder = Recorder::start(&self.instruments)?;
        let outcome = self.all(recorder.as_ref());
        self.report.partial_because = outcome.err().map(|cut| cut.to_string());
        self.report.complete = self.report.partial_because.is_none();
        self.update(recorder.as_ref());
        Ok(self.report)
    }

    fn all(&mut self, recorder: Option<&Recorder>) -> Result<(), Cut> {
        let thorough = self.plan.thorough && self.instruments.measures();
        let wanted = self.plan.window;
        let length = if thorough { self.instruments.window_length(wanted) } else { wanted };
        let steps = self.plan.steps();
        let idle = if thorough { self.plan.idle.max(length) } else { self.plan.idle };
        let cooldown = if thorough { COOLDOWN } else { Duration::ZERO };
        let step_seconds =
            |s: &Step| (self.plan.warm_up + length * self.plan.windows(*s, length) as u32).as_secs_f64();
        let total_seconds = (2 * idle + cooldown).as_secs_f64() + steps.iter().map(step_seconds).sum::<f64>();
        let mut progress = Progress { label: "idle".into(), done_seconds: 0.0, total_seconds };
        self.listener.progress(progress.clone());
        self.report.primary = self.primary();
        let before = self.instruments.idle(idle)?;
        self.note_idle(&before, false);
        self.update(recorder);
        progress.done_seconds += idle.as_secs_f64();
        for step in steps {
            let seconds = (self.plan.warm_up + length * self.plan.windows(step, length) as u32).as_secs_f64();
            let done = self.step(step, length, &progress);
            self.update(recorder);
            done?;
            progress.done_seconds += seconds;
        }
        progress.label = "idle".into();
        self.listener.progress(progress);
        self.instruments.wait(cooldown)?;
        let after = self.instruments.idle(idle)?;
        self.note_idle(&after, true);
        Ok(())
    }

    fn primary(&self) -> Option<super::report::Scope> {
        let infos = self.instruments.monitor.as_ref().map(|m| m.infos()).unwrap_or_default();
        let all = infos.iter().map(|i| super::report::Scope { boundary: i.boundary, method: i.method });
        primary(&scopes(all), !matches!(*self.target, Target::Url(_)))
    }

    /// What each finished point changes of the rest, and whoever listens.
    fn update(&mut self, recorder: Option<&Recorder>) {
        let report = &mut self.report;
        report.elapsed_seconds = self.instruments.seconds();
        report.power = recorder.map(Recorder::traces).unwrap_or_default();
        let states = self.instruments.monitor.as_ref().map(|m| m.meters()).unwrap_or_default();
        for (meter, state) in report.meters.iter_mut().zip(states) {
            meter.problem = match state.status {
                Status::Working => None,
                Status::Failing(why) | Status::Lost(why) => Some(why),
            };
        }
        fill(report);
        report.example = report.primary.is_some_and(|p| p.method == Method::Assumed);
        match judge(report, self.given.clone(), unix_seconds()) {
            Ok(economics) => {
                report.example |= economics.outcome.example;
                report.economics = Some(economics);
            }
            Err(error) if !report.warnings.contains(&error.to_string()) => {
                report.warnings.push(error.to_string());
            }
            Err(_) => {}
        }
        self.listener.report(report);
    }

    fn note_idle(&mut self, spans: &[SpanEnergy], after: bool) {
        for of in scopes(spans.iter().map(scope)) {
            let sum = of_scope(spans, of);
            let time = spans.iter().find(|s| scope(s) == of).map_or(Duration::ZERO, |s| s.time);
            let watts = (sum.problem.is_none() && !time.is_zero()).then(|| (sum.joules / time).0);
            let known =
                self.report.idle.iter_mut().find(|i| (i.boundary, i.method) == (of.boundary, of.method));
            match known {
                Some(idle) if after => idle.watts_after = watts,
                Some(idle) => idle.watts_before = watts,
                None => self.report.idle.push(Idle {
                    meter: sum.meter,
                    boundary: of.boundary,
                    method: of.method,
                    watts_before: watts.filter(|_| !after),
                    watts_after: watts.filter(|_| after),
                }),
            }
        }
    }

    /// The concurrency that did best so far: by tokens for a joule, without a meter by tokens a second.
    fn best_concurrency(&self) -> u32 {
        let rate = |p: &&Point| p.output_tokens_per_second.value;
        let sweep = self.report.points.iter().filter(|p| p.kind == Kind::Concurrency);
        let fastest = sweep.max_by(|a, b| rate(a).total_cmp(&rate(b)));
        operating_point(&self.report).map(|(p, _)| p).or(fastest).map_or(1, |p| p.concurrency)
    }

    fn setup(&self, step: Step) -> Setup {
        let best = self.best_concurrency();
        let mut setup = Setup {
            kind: Kind::Concurrency,
            concurrency: best,
            requests_per_second: None,
            duty: None,
            power_cap_watts: None,
            asked_input_tokens: self.plan.input.mean(),
            asked_output_tokens: self.plan.output.mean(),
            start_seconds: 0.0,
            settled: true,
        };
        match step {
            Step::Concurrency(n) => setup.concurrency = n,
            Step::Prefill(tokens) => {
                setup.kind = Kind::Prefill;
                (setup.asked_input_tokens, setup.asked_output_tokens) = (tokens as f64, 1.0);
                let most = self.plan.concurrencies.iter().copied().max().unwrap_or(1);
                setup.concurrency = PREFILL_CONCURRENCY.min(most);
            }
            Step::Duty(duty) => (setup.kind, setup.duty) = (Kind::Duty, Some(duty)),
            Step::PowerCap(watts) => (setup.kind, setup.power_cap_watts) = (Kind::PowerCap, Some(watts)),
            Step::Open(rate) => (setup.kind, setup.requests_per_second) = (Kind::OpenLoop, Some(rate)),
            Step::Trace => setup.kind = Kind::Trace,
            Step::Sustained => setup.kind = Kind::Sustained,
        }
        setup
    }

    fn shape(&self, step: Step, setup: &Setup) -> Shape {
        let closed = Arrivals::Closed { concurrency: setup.concurrency as usize };
        let arrivals = match (step, &self.plan.trace) {
            (Step::Open(requests_per_second), _) => Arrivals::Open { requests_per_second },
            (Step::Trace, Some((arrivals, speed))) => {
                Arrivals::Recorded { arrivals: arrivals.clone(), speed: *speed }
            }
            _ => closed,
        };
        let (input, output) = match step {
            Step::Prefill(tokens) => (Lengths::Fixed(tokens), Lengths::Fixed(1)),
            _ => (self.plan.input, self.plan.output),
        };
        // No prompt of one point is met again in another.
        let seed = self.plan.seed.wrapping_add((self.report.points.len() as u64) << 56);
        Shape { arrivals, input, output, context: self.plan.context, seed }
    }

    /// Sets what the step changes, measures, and puts it back.
    fn step(&mut self, step: Step, length: Duration, progress: &Progress) -> Result<(), Cut> {
        let setup = self.setup(step);
        match step {
            Step::Duty(duty) => match &self.controls.duty {
                Some(set) => set(duty),
                None => return Ok(()),
            },
            Step::PowerCap(watts) => {
                let set = self.controls.power_cap.as_ref();
                let done =
                    set.map_or_else(|| Err("nothing here sets power limits".into()), |s| s(Some(watts)));
                if let Err(problem) = done {
                    self.report.warnings.push(format!("power cap of {watts} W: {problem}"));
                    return Ok(());
                }
            }
            _ => {}
        }
        let outcome = self.measure(step, setup, length, progress);
        match (step, &self.controls) {
            (Step::Duty(_), Controls { duty: Some(set), .. }) => set(1.0),
            (Step::PowerCap(_), Controls { power_cap: Some(set), .. }) => {
                if let Err(problem) = set(None) {
                    self.report.warnings.push(format!("the power limit could not be put back: {problem}"));
                }
            }
            _ => {}
        }
        outcome
    }

    fn measure(
        &mut self,
        step: Step,
        mut setup: Setup,
        length: Duration,
        progress: &Progress,
    ) -> Result<(), Cut> {
        let shape = self.shape(step, &setup);
        let instruments = self.instruments.clone();
        let (target, clock) = (self.target.clone(), &instruments.clock);
        let load = Load::start(&self.runtime, target, shape, clock, self.busy.clone());
        let tally = load.tally.clone();
        let mut progress = Progress { label: label(&setup), ..progress.clone() };
        self.listener.progress(progress.clone());
        if step != Step::Trace {
            let streams = if matches!(step, Step::Open(_)) { 1 } else { setup.concurrency as usize };
            setup.settled = instruments.settle(&tally, streams, self.plan.warm_up, self.plan.thorough)?;
        }
        let begun = progress.done_seconds + self.plan.warm_up.as_secs_f64();
        setup.start_seconds = instruments.seconds();
        tally.record();
        let mut count = self.plan.windows(step, length);
        if step == Step::Trace {
            // Until the last answer, which a target that cannot keep up gives long after the last arrival.
            count = count * PATIENCE_WITH_TRACES + self.plan.windows;
        }
        let mut windows = Vec::new();
        let outcome = instruments.windows(&tally, count, length, &mut windows, |number| {
            progress.done_seconds = begun + length.as_secs_f64() * number as f64;
            self.listener.progress(progress.clone());
        });
        let records = tally.take();
        drop(load);
        let given_up = tally.given_up();
        // Windows that were whole before the cut are a point too.
        self.report.points.extend(point(&setup, &windows, records));
        if let Some(problem) = given_up {
            return Err(Cut::Target(problem));
        }
        outcome?;
        Ok(())
    }
}

fn label(setup: &Setup) -> String {
    let Setup { kind, concurrency, .. } = setup;
    match (setup.duty, setup.power_cap_watts, setup.requests_per_second) {
        (Some(duty), _, _) => format!("duty {:.0} %", duty * 100.0),
        (_, Some(watts), _) => format!("power cap {watts:.0} W"),
        (_, _, Some(rate)) => format!("{rate} requests/s"),
        _ => match kind {
            Kind::Trace => "recorded arrivals".into(),
            _ => format!("{}, {concurrency} at once", kind.as_str()),
        },
    }
}
