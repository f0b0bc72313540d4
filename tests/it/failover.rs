//! Two replicas, and what happens to everyone when one of them fails: for real, on two engines of the CPU, with
//! faults that come on order.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hashwatt::clock::Clock;
use hashwatt::engine::constraint::{ConstraintError, TokenConstraint};
use hashwatt::engine::event::{EngineError, GenerateRequest, TokenEvent};
use hashwatt::engine::fault::{Fault, Faults};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{EngineConfig, Limits, spawn};
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::unit::{Answer, Unit};

use crate::support::{decoder, greedy, llama, pool, prompt, request};

const VOCAB: usize = 517;

pub fn model() -> Arc<Decoder> {
    decoder(&llama(1), Precision::F32)
}

/// A unit of two replicas; the first one meets the faults.
pub fn unit(model: &Arc<Decoder>, faults: Faults) -> Arc<Unit> {
    let unit = Unit::new(Clock::system());
    let engine = |faults| {
        let capacity = Capacity { rows: 64, logit_rows: 64 };
        let runner = Runner::new(model.clone(), pool(1), capacity, 256).unwrap();
        let config = EngineConfig {
            device: "test".into(),
            limits: Limits { max_rows: 8, max_tokens: 64, duty: 1.0 },
            prefix_caching: true,
            run_ahead: false,
            speculative_tokens: 0,
            max_queue: 64,
            faults,
        };
        spawn(runner, config, unit.clock().clone(), Observed::default()).unwrap().0
    };
    unit.open(vec![engine(faults), engine(Faults::default())]);
    unit
}

/// Drawn at random, so that only the same seed gives the same tokens.
fn sampled(i: u64) -> GenerateRequest {
    let sampling = SamplingParams { seed: i, ..SamplingParams::default() };
    request(&prompt(20 + i as usize, VOCAB, i), 12, sampling)
}

fn wait<R>(work: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(work)
}

/// The tokens, and how it ended.
async fn read(mut answer: Answer) -> (Vec<u32>, Result<(), EngineError>) {
    let mut tokens = Vec::new();
    loop {
        match poll_fn(|cx| answer.poll_next(cx)).await.expect("a last event") {
            TokenEvent::Token { id, .. } => tokens.push(id),
            TokenEvent::Finished { .. } => return (tokens, Ok(())),
            TokenEvent::Failed(error) => return (tokens, Err(*error)),
            TokenEvent::Anew => tokens.clear(),
            TokenEvent::Admitted { .. } | TokenEvent::Prompt(_) => {}
        }
    }
}

/// Submits them all, then reads them all.
fn run(unit: &Arc<Unit>, requests: Vec<GenerateRequest>) -> Vec<(Vec<u32>, Result<(), EngineError>)> {
    let answers: Vec<_> = requests.into_iter().map(|r| unit.submit(r).unwrap()).collect();
    wait(async {
        let mut all = Vec::new();
        for answer in answers {
            all.push(read(answer).await);
        }
        all
    })
}

pub fn is_in(unit: &Unit) -> Vec<bool> {
    unit.replicas().iter().map(|r| r.is_in()).collect()
}

fn nothing_is_left(unit: &Unit) {
    let (stats, waited) = (unit.replicas()[1].stats(), Clock::system());
    let begun = waited.now();
    // A client that has its answer may be ahead of the last count by a moment.
    while stats.blocks_held.load(Ordering::Acquire) > 0 || unit.live_requests() > 0 {
        assert!(waited.now().since(begun) < Duration::from_secs(20), "blocks or requests are left");
        std::thread::yield_now();
    }
}

fn goes_on_elsewhere(fault: Fault) {
    let model = model();
    let want = run(&unit(&model, Faults::default()), (0..6).map(sampled).collect());
    assert!(want.iter().all(|(tokens, end)| tokens.len() == 12 && end.is_ok()));
    let unit = unit(&model, Faults::new([(0, fault)]));
    unit.watch(Duration::from_secs(2)).unwrap();
    assert_eq!(run(&unit, (0..6).map(sampled).collect()), want);
    assert_eq!(is_in(&unit), [false, true]);
    assert!(unit.replicas()[0].moved() > 0, "the first replica had no share of the requests");
    assert!(unit.is_ready());
    // The rest of the unit goes on.
    assert_eq!(run(&unit, vec![sampled(3)]), want[3..4]);
    nothing_is_left(&unit);
}

#[test]
fn a_lost_device_is_taken_out_and_its_requests_go_on_elsewhere() {
    goes_on_elsewhere(Fault::DeviceLost);
}

#[test]
fn a_hang_is_noticed_and_its_requests_go_on_elsewhere() {
    goes_on_elsewhere(Fault::Hang(Duration::from_secs(12)));
}

/// Taken out for what its board says, a replica still lives, and ends what it has by itself.
#[test]
fn a_replica_that_is_taken_out_alive_hands_its_requests_on() {
    let model = model();
    let want = run(&unit(&model, Faults::default()), (0..6).map(sampled).collect());
    // Long enough in its first step that all are there.
    let unit = unit(&model, Faults::new([(0, Fault::Hang(Duration::from_millis(300)))]));
    let answers: Vec<_> = (0..6).map(|i| unit.submit(sampled(i)).unwrap()).collect();
    unit.take_out(0, "Xid 79");
    unit.drain();
    // Its own last words are there before anyone reads.
    std::thread::sleep(Duration::from_millis(600));
    let got = wait(async {
        let mut all = Vec::new();
        for answer in answers {
            all.push(read(answer).await);
        }
        all
    });
    assert_eq!(got, want);
    assert!(unit.replicas()[0].moved() > 0);
}

#[test]
fn what_was_told_is_not_told_again() {
    let model = model();
    let unit = unit(&model, Faults::new([(4, Fault::DeviceLost)]));
    let all = run(&unit, vec![sampled(0)]);
    let (tokens, end) = &all[0];
    assert!(!tokens.is_empty() && tokens.len() < 12);
    assert!(matches!(end, Err(EngineError::Device(_))), "{end:?}");
    assert_eq!(is_in(&unit), [false, true]);
    assert!(run(&unit, vec![sampled(1)])[0].1.is_ok());
}

/// Nobody was shown what a reader holds back: it hears the whole answer again.
#[test]
fn what_was_told_and_not_shown_is_told_again() {
    let model = model();
    let want = run(&unit(&model, Faults::default()), vec![sampled(0)]);
    let unit = unit(&model, Faults::new([(4, Fault::DeviceLost)]));
    let mut answer = unit.submit(sampled(0)).unwrap();
    answer.hold();
    assert_eq!(wait(read(answer)), want[0]);
    assert_eq!((is_in(&unit), unit.replicas()[0].moved()), (vec![false, true], 1));
    nothing_is_left(&unit);
}

#[test]
fn what_was_shown_is_not_told_again() {
    let unit = unit(&model(), Faults::new([(4, Fault::DeviceLost)]));
    let mut answer = unit.submit(sampled(0)).unwrap();
    answer.hold();
    answer.shown();
    let (tokens, end) = wait(read(answer));
    assert!(!tokens.is_empty() && matches!(end, Err(EngineError::Device(_))), "{tokens:?} {end:?}");
    assert_eq!(unit.replicas()[0].moved(), 0);
}

/// Every `n`-th token only; of the largest `n` that is the token 0, after which it fails.
struct Multiples(u32);

impl TokenConstraint for Multiples {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError> {
        let tokens = (0..mask.len() as u32 * 32).filter(|t| t % self.0 == 0);
        tokens.for_each(|t| mask[t as usize / 32] |= 1 << (t % 32));
        Ok(true)
    }
    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        match (token, token % self.0) {
            (0, _) if self.0 == u32::MAX => Err(ConstraintError("nought".into())),
            (_, 0) => Ok(true),
            _ => Err(ConstraintError(format!("{token} was not allowed"))),
        }
    }
    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Multiples(self.0))
    }
}

#[test]
fn a_request_under_a_constraint_moves_too() {
    let model = model();
    let constrained = || GenerateRequest { constraint: Some(Box::new(Multiples(7))), ..sampled(0) };
    let want = run(&unit(&model, Faults::default()), vec![constrained()]);
    assert!(want[0].0.len() == 12 && want[0].0.iter().all(|t| t % 7 == 0), "{want:?}");
    let unit = unit(&model, Faults::new([(0, Fault::DeviceLost)]));
    assert_eq!(run(&unit, vec![constrained()]), want);
    assert_eq!(is_in(&unit), [false, true]);
}

#[test]
fn a_constraint_that_fails_ends_its_request_alone() {
    let unit = unit(&model(), Faults::default());
    let failing = GenerateRequest { constraint: Some(Box::new(Multiples(u32::MAX))), ..sampled(0) };
    let all = run(&unit, vec![failing, sampled(1)]);
    assert_eq!(all[0].1, Err(EngineError::Constraint(ConstraintError("nought".into()))));
    assert_eq!((all[1].0.len(), &all[1].1), (12, &Ok(())));
    assert_eq!(is_in(&unit), [true, true]);
    nothing_is_left(&unit);
}

#[test]
fn logits_that_are_not_finite_end_their_request_alone() {
    let unit = unit(&model(), Faults::new([(2, Fault::NotFinite)]));
    let all = run(&unit, (0..6).map(sampled).collect());
    let failed: Vec<_> = all.iter().filter(|(_, end)| end.is_err()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].1, Err(EngineError::NonFiniteLogits));
    assert_eq!(is_in(&unit), [true, true], "the self-test was fine");
    nothing_is_left(&unit);
}

/// What it has left in the cache may be the cause, or as broken as its logits.
#[test]
fn nobody_finds_the_prefix_of_a_request_whose_logits_were_not_finite() {
    let unit = unit(&model(), Faults::new([(3, Fault::NotFinite)]));
    let ask = || run(&unit, vec![request(&prompt(120, VOCAB, 1), 6, greedy())]).remove(0).1;
    let hits = || unit.replicas()[0].stats().prefix_hits.load(Ordering::Relaxed);
    assert_eq!((ask(), hits()), (Err(EngineError::NonFiniteLogits), 0));
    assert_eq!((ask(), hits()), (Ok(()), 0));
    assert_eq!((ask(), hits()), (Ok(()), 112));
}

#[test]
fn a_device_whose_self_test_fails_too_is_taken_out() {
    let unit = unit(&model(), Faults::new([(2, Fault::NeverFinite)]));
    let all = run(&unit, (0..6).map(sampled).collect());
    assert!(all.iter().any(|(_, end)| *end == Err(EngineError::NonFiniteLogits)));
    for (tokens, end) in run(&unit, (0..4).map(sampled).collect()) {
        assert_eq!((tokens.len(), end), (12, Ok(())));
    }
    // Whether a request ran into it or not.
    unit.inspect(Duration::from_secs(60));
    assert_eq!(is_in(&unit), [false, true]);
}

#[test]
fn a_panic_ends_its_batch_and_nothing_else() {
    let unit = unit(&model(), Faults::new([(0, Fault::Panic)]));
    let all = run(&unit, (0..4).map(sampled).collect());
    assert!(all.iter().any(|(_, end)| matches!(end, Err(EngineError::Step(_)))));
    assert!(all.iter().any(|(_, end)| end.is_ok()));
    assert_eq!(is_in(&unit), [true, true]);
    assert!(run(&unit, (0..4).map(sampled).collect()).iter().all(|(_, end)| end.is_ok()));
}

#[test]
fn a_step_without_memory_ends_its_batch_and_says_how_much_it_wanted() {
    let unit = unit(&model(), Faults::new([(1, Fault::NoMemory(1 << 30))]));
    let all = run(&unit, (0..4).map(sampled).collect());
    let wanted = |end: &Result<(), EngineError>| matches!(end, Err(EngineError::Step(why)) if why.contains("1073741824 bytes"));
    assert!(all.iter().any(|(_, end)| wanted(end)), "{all:?}");
    assert_eq!(is_in(&unit), [true, true]);
    assert!(run(&unit, (0..4).map(sampled).collect()).iter().all(|(_, end)| end.is_ok()));
    nothing_is_left(&unit);
}

#[test]
fn a_unit_without_replicas_says_so() {
    let unit = unit(&model(), Faults::default());
    unit.take_out(0, "the first reason");
    unit.take_out(1, "another");
    assert!(!unit.is_ready());
    let error = unit.submit(sampled(0)).err().unwrap();
    assert!(matches!(&error, EngineError::Dead(why) if why.contains("the first reason")), "{error}");
}

#[test]
fn prompts_go_where_their_beginning_was_seen() {
    let unit = unit(&model(), Faults::default());
    let long = prompt(120, VOCAB, 1);
    let ask = |tail: u32| {
        let mut own = long.clone();
        own.push(tail);
        run(&unit, vec![request(&own, 2, greedy())]).remove(0).1.unwrap();
    };
    let hits =
        || unit.replicas().iter().map(|r| r.stats().prefix_hits.load(Ordering::Relaxed)).collect::<Vec<_>>();
    (0..4).for_each(ask);
    assert_eq!(hits(), [3 * 112, 0]);
    // Another prompt, while the first replica is busy, goes to the other one, and so do those like it.
    let busy = unit.submit(request(&long, 200, greedy())).unwrap();
    let other = prompt(120, VOCAB, 2);
    run(&unit, vec![request(&other, 2, greedy())]);
    drop(busy);
    run(&unit, vec![request(&other, 2, greedy())]);
    assert_eq!(hits()[1], 112);
    // A replica that is busier than the other does not get more for that.
    nothing_is_left(&unit);
    let placed = || unit.replicas().iter().map(|r| r.placed()).collect::<Vec<_>>();
    let before = placed();
    let crowd: Vec<_> = (0..4).map(|_| unit.submit(request(&long, 300, greedy())).unwrap()).collect();
    assert_eq!(placed(), [before[0] + 2, before[1] + 2], "some waited behind the crowd");
    drop(crowd);
}
