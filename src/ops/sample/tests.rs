//! Sampling against sorting in f64, and what each adjustment and each misfit does.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::*;

fn run(rows: &[Vec<f32>], samples: &Samples) -> Vec<u32> {
    let vocab = rows[0].len();
    let logits = Tensor::from_vec(rows.concat(), (rows.len(), vocab), &Device::Cpu).unwrap();
    let adjusted = Tensor::full(f32::NAN, (rows.len(), vocab), &Device::Cpu).unwrap();
    let results = Tensor::zeros((rows.len() + 1, RESULT_WORDS), DType::U32, &Device::Cpu).unwrap();
    let on = Exec::cpu(1);
    let (tasks, words) = (samples.task_words().into(), samples.words.as_slice().into());
    sample(&logits, &adjusted, &results, &Sample { samples, tasks, words, vocab, on: &on }).unwrap();
    let mut out = vec![0; rows.len() * RESULT_WORDS];
    read_results(&results, &mut out).unwrap();
    out
}

fn one(row: &[f32], task: Task, words: &[u32]) -> Vec<u32> {
    run(&[row.to_vec()], &Samples { tasks: vec![task], words: words.to_vec() })
}

fn random(task: Task, share: f64) -> Task {
    let bits = (share * 2f64.powi(64)) as u64;
    Task { random: [bits as u32, (bits >> 32) as u32], ..task }
}

/// What may be drawn, most likely first with their masses, by sorting and in f64.
fn oracle(row: &[f32], task: &Task) -> Vec<(usize, f64)> {
    let t = f64::from(task.temperature);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut kept: Vec<(usize, f64)> = row
        .iter()
        .enumerate()
        .filter(|(_, x)| x.is_finite() && **x >= max + task.temperature * task.ln_min_p)
        .map(|(i, x)| (i, (f64::from(x - max) / t).exp()))
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if task.top_k > 0 {
        kept.truncate(task.top_k as usize);
    }
    if task.top_p < 1.0 {
        let target = kept.iter().map(|k| k.1).sum::<f64>() * f64::from(task.top_p);
        let mut reached = 0.0;
        let enough = kept.iter().position(|k| {
            reached += k.1;
            reached >= target
        });
        kept.truncate(enough.map_or(kept.len(), |i| i + 1));
    }
    kept
}

proptest! {
    /// Each entry is drawn for just that share of the random numbers that its mass is of all masses kept.
    #[test]
    fn draws_follow_the_masses_of_what_is_kept(
        row in prop::collection::vec((-60i32..60).prop_map(|x| x as f32 / 4.0), 1..90),
        temperature in prop::sample::select(vec![0.05f32, 0.7, 1.0, 2.5]),
        top_k in prop::sample::select(vec![0u32, 1, 2, 7, 1000]),
        top_p in prop::sample::select(vec![1.0f32, 0.95, 0.5, 0.01]),
        min_p in prop::sample::select(vec![0.0f32, 0.05]),
        share in 0.0f64..1.0,
    ) {
        let task = Task { temperature, top_k, top_p, ln_min_p: min_p.ln(), ..Task::GREEDY };
        let kept = oracle(&row, &task);
        let token = Outcome::of(&one(&row, random(task, share), &[]), 0).token().unwrap() as usize;
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let before: f64 = kept.iter().filter(|k| k.0 < token).map(|k| k.1).sum::<f64>() / total;
        let own = kept.iter().find(|k| k.0 == token);
        prop_assert!(own.is_some(), "{token} is not among {kept:?}");
        let after = before + own.unwrap().1 / total;
        prop_assert!(before - 1e-6 <= share && share <= after + 1e-6, "{share} is not in {before}..{after}");
    }

    #[test]
    fn the_greedy_choice_is_the_first_of_the_largest(row in prop::collection::vec(-5i32..5, 1..70)) {
        let row: Vec<f32> = row.into_iter().map(|x| x as f32).collect();
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let want = row.iter().position(|x| *x == max).unwrap() as u32;
        prop_assert_eq!(Outcome::of(&one(&row, Task::GREEDY, &[]), 0).token(), Some(want));
    }
}

#[test]
fn penalties_bias_bans_and_masks_change_the_choice_and_not_the_log_probabilities() {
    let row = [1.0f32, 4.0, 3.5, 3.4, -1.0];
    let mut samples = Samples::default();
    let plain = Task { top: 2, ..Task::GREEDY };
    // Token 1 came twice: 4 / 1.1 − 0.1 × 2 − 0.3 = 3.136; token 2 is of the prompt alone: 3.5 / 1.1 = 3.18.
    let seen = samples.pairs([[1, 2], [2, 0]].into_iter());
    let penalised = Task {
        seen,
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        presence_penalty: 0.3,
        bias: samples.pairs([[3, (-0.3f32).to_bits()]].into_iter()),
        ..plain
    };
    let banned = Task { banned: samples.tokens(&[1, 2]), ..plain };
    let masked = Task { mask: samples.mask(&[0b10001]), ..plain };
    samples.tasks = vec![plain, penalised, banned, masked];
    let out = run(&vec![row.to_vec(); 4], &samples);
    let tokens: Vec<_> = (0..4).map(|i| Outcome::of(&out, i).token().unwrap()).collect();
    assert_eq!(tokens, [1, 2, 3, 0]);
    let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
    for (i, token) in tokens.iter().enumerate() {
        let outcome = Outcome::of(&out, i);
        let want = |t: u32| (f64::from(row[t as usize]) - sum.ln()) as f32;
        assert!((outcome.logprob() - want(*token)).abs() < 1e-6);
        let top: Vec<_> = outcome.top().collect();
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
        assert!(top.iter().all(|(t, p)| (p - want(*t)).abs() < 1e-6));
    }
}

#[test]
fn scores_are_given_without_a_draw_and_broken_rows_have_no_token() {
    let samples = Samples {
        tasks: vec![
            Task { score: 2, top: 0, ..Task::GREEDY },
            Task::GREEDY,
            Task { temperature: 1.0, ..Task::GREEDY },
        ],
        words: Vec::new(),
    };
    let out = run(&[vec![0.0; 3], vec![0.0, f32::NAN, 1.0], vec![f32::INFINITY, 0.0, 0.0]], &samples);
    assert_eq!(Outcome::of(&out, 0).token(), Some(2));
    assert!((Outcome::of(&out, 0).logprob() + 3f32.ln()).abs() < 1e-6);
    assert_eq!(Outcome::of(&out, 0).top().len(), 0);
    assert_eq!((Outcome::of(&out, 1).token(), Outcome::of(&out, 2).token()), (None, None));
}

#[test]
fn what_does_not_fit_is_an_error_that_says_so() {
    let logits = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    let results = Tensor::zeros((1, RESULT_WORDS), DType::U32, &Device::Cpu).unwrap();
    let on = Exec::cpu(1);
    for (task, word) in [
        (Task { seen: List { begin: 0, len: 1 }, ..Task::GREEDY }, "list"),
        (Task { mask: 0, ..Task::GREEDY }, "mask"),
        (Task { score: 4, ..Task::GREEDY }, "vocabulary"),
        (Task { top: 21, ..Task::GREEDY }, "alternatives"),
    ] {
        let samples = Samples { tasks: vec![task], words: Vec::new() };
        let (tasks, words) = (samples.task_words().into(), samples.words.as_slice().into());
        let op = Sample { samples: &samples, tasks, words, vocab: 4, on: &on };
        let error = sample(&logits, &logits.copy().unwrap(), &results, &op).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let samples = Samples { tasks: vec![Task::GREEDY; 2], words: Vec::new() };
    let (tasks, words) = (samples.task_words().into(), samples.words.as_slice().into());
    let op = Sample { samples: &samples, tasks, words, vocab: 4, on: &on };
    assert!(sample(&logits, &logits.copy().unwrap(), &results, &op).is_err());
}
