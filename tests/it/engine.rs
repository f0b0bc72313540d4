//! The engine as its callers see it: it answers, it never leaks, one bad request ends only itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hashwatt::engine::event::{EngineError, FinishReason, Tier, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::stats::EngineStats;
use hashwatt::engine::worker::Limits;
use hashwatt::model::decoder::Precision;

use crate::support::{decoder, drain, engine, first, greedy, llama, others, prompt, qwen3, request};

const VOCAB: usize = 517;

/// Waits until nothing runs; panics after a generous time.
fn settle(stats: &EngineStats) {
    for _ in 0..2000 {
        let idle = |x: &std::sync::atomic::AtomicUsize| x.load(Ordering::Acquire) == 0;
        if idle(&stats.running) && idle(&stats.waiting) && idle(&stats.blocks_held) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the engine did not come to rest: {stats:?}");
}

#[test]
fn a_request_gets_its_tokens_and_its_statistics() {
    let engine = engine(&decoder(&llama(1), Precision::F32), 2, 256, 64, 8);
    let p = prompt(100, VOCAB, 1);
    let (tokens, last) = drain(engine.submit(request(&p, 12, greedy())).unwrap());
    assert_eq!(tokens.len(), 12);
    let TokenEvent::Finished { reason: FinishReason::Length, stats } = last else { panic!("{last:?}") };
    assert_eq!((stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens), (100, 0, 12));
    assert!(stats.queued_at <= stats.scheduled_at && stats.scheduled_at < stats.first_token_at);
    assert!(stats.first_token_at < stats.finished_at);

    let (again, last) = drain(engine.submit(request(&p, 12, greedy())).unwrap());
    assert_eq!(again, tokens);
    let TokenEvent::Finished { stats, .. } = last else { panic!("{last:?}") };
    assert_eq!(stats.cached_tokens, 96, "six full blocks of the prompt");

    let mut stop = request(&p, 12, greedy());
    stop.stop_token_ids = Arc::new([tokens[3]]);
    let stops_at = tokens.iter().position(|t| *t == tokens[3]).unwrap();
    let (stopped, last) = drain(engine.submit(stop).unwrap());
    assert_eq!(stopped, tokens[..=stops_at]);
    assert!(matches!(last, TokenEvent::Finished { reason: FinishReason::Stop, .. }));

    let mut late = request(&p, 12, greedy());
    late.stop_token_ids = Arc::new([tokens[0]]);
    late.min_tokens = 5;
    let (late, _) = drain(engine.submit(late).unwrap());
    assert!(late.len() >= 5 && !late[..5].contains(&tokens[0]));
}

#[test]
fn sampling_is_reproducible_and_reports_log_probabilities() {
    let engine = engine(&decoder(&qwen3(1), Precision::Bf16), 2, 256, 64, 8);
    let p = prompt(9, VOCAB, 2);
    let params = SamplingParams {
        temperature: 0.8,
        top_k: 50,
        top_p: 0.9,
        seed: 11,
        frequency_penalty: 0.5,
        repetition_penalty: 1.1,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let run = |params: &SamplingParams| drain(engine.submit(request(&p, 16, params.clone())).unwrap()).0;
    let alone = run(&params);
    // Company changes nothing.
    let company: Vec<_> = (0..6)
        .map(|i| engine.submit(request(&prompt(30 + i, VOCAB, i as u64), 20, greedy())).unwrap())
        .collect();
    assert_eq!(run(&params), alone);
    company.into_iter().for_each(|s| drop(drain(s)));
    assert_ne!(run(&SamplingParams { seed: 12, ..params.clone() }), alone, "another seed");

    let mut stream = engine.submit(request(&p, 1, params)).unwrap();
    let TokenEvent::Token { id, logprob: Some(entry), .. } = first(&mut stream) else { panic!() };
    assert_eq!((entry.id, entry.top.len()), (id, 3));
    assert!(entry.top.windows(2).all(|w| w[0].1 >= w[1].1) && entry.logprob <= 0.0);

    let biased = SamplingParams { logit_bias: vec![(77, 100.0)], ..greedy() };
    assert_eq!(run(&biased), vec![77; 16]);
}

#[test]
fn prompt_log_probabilities_are_those_of_the_prompt() {
    let engine = engine(&decoder(&llama(4), Precision::F32), 1, 256, 32, 8);
    let p = prompt(150, VOCAB, 3);
    let mut r = request(&p, 1, greedy());
    r.prompt_logprobs = Some(2);
    let mut stream = engine.submit(r).unwrap();
    let TokenEvent::Prompt(scores) = first(&mut stream) else { panic!("scores come first") };
    assert_eq!(scores.len(), 149);
    assert!(scores.iter().zip(&p[1..]).all(|(s, t)| s.id == *t && s.top.len() == 2 && s.logprob < 0.0));
    // The score of a position is what sampling there reports.
    let biased = SamplingParams { logit_bias: vec![(p[60], 100.0)], logprobs: Some(0), ..greedy() };
    let mut stream = engine.submit(request(&p[..60], 1, biased)).unwrap();
    let TokenEvent::Token { id, logprob: Some(entry), .. } = first(&mut stream) else { panic!() };
    assert_eq!((id, entry.logprob.to_bits()), (p[60], scores[59].logprob.to_bits()));
}

#[test]
fn a_thousand_requests_a_third_of_them_cancelled_leave_nothing_behind() {
    let engine = engine(&decoder(&qwen3(4), Precision::Bf16), 2, 32, 48, 12);
    let mut random = prompt(8192, 1 << 20, 9).into_iter();
    let mut next = |below: usize| random.next().unwrap() as usize % below;
    let mut open = Vec::new();
    for i in 0..1000 {
        let (length, generate) = (1 + next(90), 1 + next(12));
        let mut r = request(&prompt(length, VOCAB, (i % 50) as u64), generate, greedy());
        r.tier = [Tier::Priority, Tier::Default, Tier::Flex][i % 3];
        let stream = engine.submit(r).unwrap();
        // A third are dropped: some at once, some after a while in the queue, some between tokens.
        open.push((stream, generate, (i % 3 == 0).then(|| next(generate))));
        if open.len() > 24 + next(40) {
            let (mut stream, generate, cancel_after) = open.swap_remove(next(open.len()));
            match cancel_after {
                Some(tokens) => (0..tokens).for_each(|_| drop(stream.next_blocking())),
                None => assert_eq!(drain(stream).0.len(), generate),
            }
        }
    }
    for (stream, generate, cancel_after) in open {
        if cancel_after.is_none() {
            assert_eq!(drain(stream).0.len(), generate);
        }
    }
    settle(engine.stats());
    assert!(engine.stats().preemptions.load(Ordering::Relaxed) > 0, "the cache was never full");
    // The engine still works.
    assert_eq!(drain(engine.submit(request(&[1, 2, 3], 4, greedy())).unwrap()).0.len(), 4);
    settle(engine.stats());
}

#[test]
fn limits_change_while_it_runs_and_abort_ends_every_stream() {
    let engine = engine(&decoder(&llama(1), Precision::F32), 1, 256, 64, 16);
    engine.set_limits(Limits { max_rows: 2, max_tokens: 8, duty: 0.5 });
    let streams: Vec<_> =
        (0..6).map(|i| engine.submit(request(&prompt(20, VOCAB, i), 10, greedy())).unwrap()).collect();
    streams.into_iter().for_each(|s| assert_eq!(drain(s).0.len(), 10));
    let stats = engine.stats();
    assert!(stats.max_sequences.load(Ordering::Relaxed) <= 2 && stats.max_rows.load(Ordering::Relaxed) <= 8);

    let streams: Vec<_> =
        (0..6).map(|i| engine.submit(request(&prompt(20, VOCAB, i), 1000, greedy())).unwrap()).collect();
    engine.abort();
    for s in streams {
        assert_eq!(drain(s).1, TokenEvent::failed(EngineError::Aborted));
    }
    settle(engine.stats());
}

#[test]
fn what_cannot_fit_is_refused_and_the_queue_is_bounded() {
    let engine = engine(&decoder(&llama(1), Precision::F32), 1, 8, 64, 16);
    let (_, last) = drain(engine.submit(request(&prompt(100, VOCAB, 1), 100, greedy())).unwrap());
    assert_eq!(last, TokenEvent::failed(EngineError::TooLargeForCache { needed: 13, total: 8 }));
    settle(engine.stats());
}

#[test]
fn a_model_with_numbers_that_are_not_finite_does_not_come_up() {
    use hashwatt::clock::Clock;
    use hashwatt::engine::step_log::Observed;
    use hashwatt::engine::worker::{EngineConfig, spawn};
    use hashwatt::model::runner::Runner;
    use hashwatt::model::workspace::Capacity;

    let granite = |(name, _): &(&str, serde_json::Value)| *name == "GraniteForCausalLM";
    let (_, mut config) = others().into_iter().find(granite).unwrap();
    // Scores of attention beyond all numbers.
    config["attention_multiplier"] = serde_json::json!(1e38);
    let model = decoder(&config, Precision::F32);
    let runner =
        Runner::new(model, crate::support::pool(1), Capacity { rows: 16, logit_rows: 4 }, 16).unwrap();
    let config = EngineConfig {
        device: "test".into(),
        limits: Limits { max_rows: 4, max_tokens: 16, duty: 1.0 },
        prefix_caching: true,
        run_ahead: false,
        faults: Default::default(),
        speculative_tokens: 0,
        max_queue: 4,
    };
    let error = spawn(runner, config, Clock::system(), Observed::default()).err().unwrap();
    assert_eq!(error, EngineError::NonFiniteLogits);
}
