//! A model cut for several ranks, each a thread, gives what the whole one gives.

use std::sync::Arc;

use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::ops::all_reduce::Rank;
use serde_json::Value;

use crate::support::{Shape, Steps, decoder, llama, others, prompt, qwen3};

const TOKENS: usize = 6;

type Logits = Vec<Vec<Vec<f32>>>;

/// What each rank has for the same prompts.
fn together(whole: &Decoder, ranks: usize, prompts: &[Vec<u32>]) -> Vec<Logits> {
    let parts: Vec<_> =
        Rank::group(ranks).into_iter().map(|rank| Arc::new(whole.shard(rank).unwrap())).collect();
    std::thread::scope(|scope| {
        let run = |part: Arc<Decoder>| {
            scope.spawn(move || Steps::new(&part, Shape::default()).run(prompts, TOKENS))
        };
        let running: Vec<_> = parts.into_iter().map(run).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
}

#[test]
fn ranks_give_the_logits_and_the_tokens_of_one() {
    let prompts = [1usize, 17, 40].map(|n| prompt(n, 517, n as u64));
    let even = |mut config: Value| {
        config["intermediate_size"] = 332.into();
        config
    };
    for (name, config, ranks) in [
        ("llama, GQA 2", even(llama(2)), 2),
        ("llama, one K/V head for two ranks", even(llama(1)), 2),
        ("llama, four ranks", even(llama(4)), 4),
        ("qwen3, norms of heads", even(qwen3(2)), 2),
        ("gemma2, norms behind branches", even(others().swap_remove(0).1), 2),
    ] {
        let whole = decoder(&config, Precision::F32);
        let want = Steps::new(&whole, Shape::default()).run(&prompts, TOKENS);
        let all = together(&whole, ranks, &prompts);
        for got in &all {
            assert_eq!(got, &all[0], "{name}: the ranks disagree");
        }
        let scale = want.iter().flatten().flatten().fold(0f32, |m, x| m.max(x.abs()));
        for (want, got) in want.iter().flatten().zip(all[0].iter().flatten()) {
            let off = want.iter().zip(got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-4 * scale, "{name}: {off} of {scale}");
            assert_eq!(largest(want), largest(got), "{name}");
        }
    }
}

#[test]
fn ranks_that_cannot_share_are_refused_and_a_rank_that_fails_ends_the_others() {
    let whole = decoder(&llama(2), Precision::F32);
    for (ranks, word) in [(3, "4 heads"), (8, "4 heads"), (4, "331 intermediate")] {
        let rank = Rank::group(ranks).remove(0);
        let error = whole.shard(rank).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut config = llama(2);
    config["intermediate_size"] = 332.into();
    let whole = decoder(&config, Precision::F32);
    let mut ranks = Rank::group(2).into_iter();
    let (first, second) = (ranks.next().unwrap(), ranks.next().unwrap());
    let part = Arc::new(whole.shard(first).unwrap());
    drop(second);
    let prompts = [prompt(3, 517, 1)];
    let alone = std::thread::spawn(move || Steps::new(&part, Shape::default()).run(&prompts, 1));
    assert!(alone.join().is_err(), "it went on without the others");
}
