//! Running ahead: a step is launched before the last one's tokens are read, and nobody can tell from the answers.

use std::sync::Arc;

use hashwatt::clock::Clock;
use hashwatt::engine::constraint::{ConstraintError, TokenConstraint};
use hashwatt::engine::event::{GenerateRequest, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::step_log::{Observed, Steps};
use hashwatt::engine::worker::{EngineConfig, EngineHandle, Limits, spawn};
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::exec::Exec;

use crate::host_kernels::kernels;
use crate::support::{decoder, drain, greedy, llama, pool, prompt, request};

const VOCAB: usize = 517;
const BLOCKS: usize = 24;

/// Even tokens only; ends after `left` of them. Forces tokens before the first and after every third.
#[derive(Clone)]
struct Even {
    left: usize,
    of: usize,
    forces: bool,
}

impl Even {
    fn new(of: usize, forces: bool) -> Even {
        Even { left: of, of, forces }
    }
}

impl TokenConstraint for Even {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError> {
        mask.fill(0x5555_5555);
        Ok(true)
    }
    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        assert_eq!(token % 2, 0, "the mask was not heeded");
        self.left -= 1;
        Ok(self.left > 0)
    }
    fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, ConstraintError> {
        if self.forces && self.left.is_multiple_of(3) {
            let forced = [31, 33, 35];
            tokens.extend_from_slice(&forced[..most.min(1 + self.left % forced.len())]);
        }
        Ok(true)
    }
    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Even::new(self.of, self.forces))
    }
}

fn engine(model: &Arc<Decoder>, on: Exec, run_ahead: bool, graphs: bool) -> (EngineHandle, Observed) {
    let capacity = Capacity { rows: 48, logit_rows: 64 };
    let mut runner = Runner::new(model.clone(), on, capacity, BLOCKS).unwrap();
    if graphs {
        let report = runner.capture(8, &|_| {}).unwrap();
        assert_eq!((report.sizes, report.memory_nodes), (vec![1, 2, 4, 8], 0));
    }
    let limits = Limits { max_rows: 8, max_tokens: 48, duty: 1.0 };
    let config = EngineConfig {
        device: "ahead".into(),
        limits,
        prefix_caching: true,
        run_ahead,
        speculative_tokens: 0,
        max_queue: 64,
        faults: Default::default(),
    };
    let observed = Observed::default();
    observed.steps.listen();
    (spawn(runner, config, Clock::system(), observed.clone()).unwrap().0, observed)
}

/// Requests that end in each of the ways there are, and sample in each of the ways.
fn requests() -> Vec<GenerateRequest> {
    let plain = SamplingParams { seed: 5, ..SamplingParams::default() };
    (0..20)
        .map(|i| {
            let sampling = match i % 5 {
                0 => greedy(),
                1 => SamplingParams { top_p: 0.8, logprobs: Some(3), ..plain.clone() },
                2 => SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.2, ..plain.clone() },
                3 => SamplingParams { top_k: 5, temperature: 0.7, ..plain.clone() },
                _ => SamplingParams { logit_bias: vec![(7, 3.0), (9, -5.0)], min_p: 0.02, ..plain.clone() },
            };
            let mut r = request(&prompt(1 + 7 * i, VOCAB, i as u64), 1 + 3 * i, sampling);
            if i % 4 == 1 {
                // A tenth of the vocabulary ends it.
                r.stop_token_ids = (0..VOCAB as u32).step_by(10).collect();
                r.min_tokens = i / 4;
            }
            r.prompt_logprobs = (i == 6).then_some(2);
            r.constraint =
                (i % 3 == 0).then(|| Box::new(Even::new(9, i % 6 == 3)) as Box<dyn TokenConstraint>);
            r.account = 1 + i as u64;
            r
        })
        .collect()
}

/// All events of a request but the times.
fn answers(engine: &EngineHandle, count: usize) -> Vec<String> {
    let streams: Vec<_> = requests().into_iter().take(count).map(|r| engine.submit(r).unwrap()).collect();
    let texts = streams.into_iter().map(|mut stream| {
        let mut text = String::new();
        while let Some(event) = stream.next_blocking() {
            match event {
                TokenEvent::Admitted { .. } => {}
                TokenEvent::Finished { reason, stats } => {
                    text += &format!("{reason:?} after {}", stats.generated_tokens);
                }
                other => text += &format!("{other:?}\n"),
            }
        }
        text
    });
    texts.collect()
}

#[test]
fn answers_are_the_same_when_steps_run_ahead() {
    let model = decoder(&llama(1), Precision::F32);
    let run = |run_ahead| {
        let (engine, observed) = engine(&model, pool(1).into(), run_ahead, false);
        let answers = answers(&engine, 20);
        let mut steps = Steps::default();
        observed.steps.take(&mut steps);
        for pair in steps.records.windows(2) {
            assert!(pair[0].ended <= pair[1].started, "{pair:?} overlap");
        }
        let stats = engine.stats();
        assert_eq!(stats.blocks_held.load(std::sync::atomic::Ordering::Acquire), 0);
        assert!(stats.preemptions.load(std::sync::atomic::Ordering::Relaxed) > 0, "nothing was preempted");
        // Everyone's work is somebody's: what is done for an ended sequence is nobody's.
        assert!((1..=20).all(|a| steps.shares.iter().any(|s| s.account == a)));
        answers
    };
    let want = run(false);
    assert!(want.iter().any(|a| a.contains("Stop after")) && want.iter().any(|a| a.contains("Length after")));
    for (i, (want, got)) in want.iter().zip(run(true)).enumerate() {
        assert_eq!(*want, got, "request {i}");
    }
}

/// The same by kernels: replayed graphs ahead of the host against one operation after another.
#[test]
fn kernels_give_the_same_answers_from_graphs_and_ahead() {
    let Some(on) = kernels() else { return };
    let mut config = llama(2);
    config["num_hidden_layers"] = 1.into();
    let model = Arc::new(decoder(&config, Precision::F32).on_device(&on.device).unwrap());
    let want = answers(&engine(&model, on.clone(), false, false).0, 7);
    let got = answers(&engine(&model, on, true, true).0, 7);
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        assert_eq!(*want, got, "request {i}");
    }
}

#[test]
fn a_client_that_leaves_takes_only_itself_away() {
    let model = decoder(&llama(4), Precision::F32);
    let (engine, _) = engine(&model, pool(1).into(), true, false);
    let stays = |seed| engine.submit(request(&prompt(9, VOCAB, seed), 40, greedy())).unwrap();
    let alone = drain(stays(1)).0;
    for _ in 0..20 {
        let leaves = stays(2);
        let kept = stays(1);
        drop(leaves);
        assert_eq!(drain(kept).0, alone);
    }
    assert_eq!(engine.stats().blocks_held.load(std::sync::atomic::Ordering::Acquire), 0);
}
