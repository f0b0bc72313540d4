//! Guessing tokens changes how fast an answer comes, and no token of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashwatt::clock::Clock;
use hashwatt::engine::event::{EventStream, FinishReason, GenerateRequest, TokenEvent, TokenLogprob};
use hashwatt::engine::fault::{Fault, Faults};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{self, EngineConfig, EngineHandle, Models};
use hashwatt::model::decoder::{Decoder, Precision};

use crate::support::{
    decoder, engine, engine_config, engine_of, greedy, llama, others, prompt, qwen3, request, routed, runner,
};

const VOCAB: usize = 517;
const TOKENS: usize = 64;
const SEQUENCES: usize = 8;

/// Everything that a client sees but for times.
type Answer = (Vec<(u32, Option<TokenLogprob>)>, FinishReason);

fn answer(mut stream: EventStream) -> (Answer, [usize; 2]) {
    let (mut tokens, mut guesses) = (Vec::new(), [0, 0]);
    loop {
        match stream.next_blocking().expect("a last event") {
            TokenEvent::Token { id, logprob, guess } => {
                guesses[0] += usize::from(guess.computed);
                guesses[1] += usize::from(guess.right);
                tokens.push((id, logprob.map(|l| *l)));
            }
            TokenEvent::Finished { reason, stats } => {
                assert_eq!(stats.generated_tokens, tokens.len());
                return ((tokens, reason), guesses);
            }
            TokenEvent::Prompt(_) | TokenEvent::Admitted { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Requests of every kind: greedy and drawn, with log-probabilities, limits of a few tokens, penalties, repetition.
fn requests() -> Vec<GenerateRequest> {
    let drawn = |seed| SamplingParams { temperature: 0.9, top_k: 3, seed, ..SamplingParams::default() };
    // What repeats itself is easily guessed.
    let repeating = |sampling: SamplingParams| SamplingParams { logit_bias: vec![(9, 100.0)], ..sampling };
    let penalised = SamplingParams { frequency_penalty: 0.7, ..greedy() };
    let told = SamplingParams { logprobs: Some(2), ..repeating(greedy()) };
    let text = prompt(20, VOCAB, 5).repeat(4);
    let mut all = vec![
        request(&text, 50, greedy()),
        request(&text, 40, drawn(1)),
        request(&text[..31], 60, repeating(greedy())),
        request(&text[..7], 33, told),
        request(&text[..50], 30, penalised),
        request(&prompt(60, VOCAB, 8), 45, drawn(2)),
    ];
    all.extend((1..5).map(|most| request(&text, most, repeating(greedy()))));
    let mut stops = request(&text[..40], 30, drawn(3));
    (stops.stop_token_ids, stops.min_tokens) = ((0..60).collect(), 9);
    all.push(stops);
    all
}

fn run(engine: &EngineHandle) -> (Vec<Answer>, [usize; 2]) {
    // All at once, then one after the other, when prefixes are found.
    let streams: Vec<_> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut all: Vec<_> = streams.into_iter().map(answer).collect();
    all.extend(requests().into_iter().map(|r| answer(engine.submit(r).unwrap())));
    let counted = all.iter().fold([0, 0], |sum, (_, [a, b])| [sum[0] + a, sum[1] + b]);
    let stats = engine.stats();
    let total = [&stats.guessed_tokens, &stats.right_guesses].map(|n| n.load(Ordering::Relaxed) as usize);
    assert_eq!(counted, total);
    (all.into_iter().map(|(answer, _)| answer).collect(), counted)
}

fn speculating(
    model: &Arc<Decoder>,
    draft: Option<&Arc<Decoder>>,
    blocks: usize,
    most: usize,
) -> EngineHandle {
    let of = |model| runner(model, 2, blocks, TOKENS, SEQUENCES);
    let models = Models { decoder: Some(of(model)), draft: draft.map(of), ..Models::default() };
    engine_of(models, TOKENS, SEQUENCES, most)
}

#[test]
fn answers_are_the_same_tokens_with_guesses_and_without() {
    let shapes = [("llama", llama(2)), ("qwen3", qwen3(1)), others().swap_remove(0), routed().swap_remove(0)];
    for (name, config) in shapes {
        let model = decoder(&config, Precision::Bf16);
        let (plain, none) = run(&engine(&model, 2, 256, TOKENS, SEQUENCES));
        assert_eq!(none, [0, 0]);
        let mut smaller = config.clone();
        smaller["num_hidden_layers"] = 1.into();
        let smaller = decoder(&smaller, Precision::Bf16);
        for (source, draft, most) in [
            ("what was said", None, 3),
            ("what was said", None, 32),
            ("itself", Some(&model), 16),
            ("a smaller model", Some(&smaller), 5),
        ] {
            // With a cache too small for all, too.
            for blocks in [256, 24] {
                let (answers, [guessed, right]) = run(&speculating(&model, draft, blocks, most));
                let what = format!("{name}, guesses from {source}, {most} at most, {blocks} blocks");
                for (i, (plain, answer)) in plain.iter().zip(&answers).enumerate() {
                    assert_eq!(plain, answer, "{what}: request {i}");
                }
                println!("{what}: {right} of {guessed}");
                assert!(right > 40 && guessed >= right, "{what}: {right} of {guessed} guesses were right");
                if source == "itself" && blocks == 256 {
                    // Only what comes after an end is guessed in vain.
                    assert!(guessed - right < 40, "{what}: {right} of {guessed} guesses were right");
                }
            }
        }
    }
}

#[test]
fn a_draft_model_of_another_vocabulary_guesses_where_it_can() {
    let model = decoder(&llama(2), Precision::F32);
    let plain = run(&engine(&model, 2, 256, TOKENS, SEQUENCES)).0;
    for vocab in [100, VOCAB + 64] {
        let mut config = llama(2);
        config["vocab_size"] = vocab.into();
        let other = decoder(&config, Precision::F32);
        let (answers, [guessed, _]) = run(&speculating(&model, Some(&other), 256, 8));
        assert_eq!(plain, answers);
        assert_eq!(guessed > 0, vocab > VOCAB, "{guessed} guesses with {vocab} tokens");
    }
}

/// A failure costs its guesses and no answer; one after the other ends guessing, and steps run ahead again.
#[test]
fn a_draft_model_that_fails_is_asked_again_and_not_for_ever() {
    let model = decoder(&llama(2), Precision::F32);
    let of = |run_ahead, faults: Faults| {
        let of = |model| runner(model, 2, 256, TOKENS, SEQUENCES);
        let models = Models { decoder: Some(of(&model)), draft: Some(of(&model)), ..Models::default() };
        let config = EngineConfig { run_ahead, faults, ..engine_config(TOKENS, SEQUENCES, 8) };
        let observed = Observed::default();
        worker::spawn_with(models, config, Clock::system(), observed).unwrap().0
    };
    let plain = run(&engine(&model, 2, 256, TOKENS, SEQUENCES)).0;
    let [unhurt, once, always] = [0, 1, 1000].map(|failures| {
        let engine = of(true, Faults::new((0..failures).map(|_| (4, Fault::Draft))));
        let (answers, [_, right]) = run(&engine);
        assert_eq!(plain, answers, "{failures} failures");
        right
    });
    assert!(once > unhurt / 2, "{once} right guesses with a failure, {unhurt} without");
    // Those before the first.
    assert!(always < unhurt / 10, "{always} right guesses with failures only, {unhurt} without");
}
