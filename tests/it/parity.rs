//! Our logits against candle-transformers', and against themselves however the work is cut.

use std::collections::HashSet;

use candle_core::{DType, Device};
use hashwatt::measure::baseline::Baseline;
use hashwatt::model::decoder::Precision;
use serde_json::Value;

use crate::support::{Shape, Steps, checkpoint, decoder, llama, others, prompt, qwen3, routed};

const VOCAB: usize = 517;

fn models() -> Vec<(&'static str, Value)> {
    vec![
        ("llama, GQA 4", llama(1)),
        ("llama, GQA 1", llama(4)),
        ("qwen3, GQA 4", qwen3(1)),
        ("qwen3, GQA 1", qwen3(4)),
    ]
}

#[test]
fn logits_equal_candle_transformers() {
    // candle scales no positions but Llama's, and has neither Granite's multipliers nor a Gemma 3 that runs, nor gpt-oss.
    let without = ["GraniteForCausalLM", "Gemma3ForCausalLM", "GptOssForCausalLM"];
    let others = others().into_iter().chain(routed()).filter(|(name, _)| !without.contains(name)).map(
        |(name, mut config)| {
            config["rope_scaling"] = Value::Null;
            // Nor windows as they are: HuggingFace transformers' logits have those (`architectures`).
            if config.get("sliding_window").is_some() {
                config["sliding_window"] = 4096.into();
            }
            (name, config, &[17, 60][..])
        },
    );
    let models = models().into_iter().map(|(name, config)| (name, config, &[1, 17, 300][..]));
    for (name, config, lengths) in models.chain(others) {
        let ours = decoder(&config, Precision::F32);
        let mut theirs = Baseline::new(&checkpoint(config), DType::F32, &Device::Cpu).unwrap();
        for &length in lengths {
            let prompt = prompt(length, VOCAB, length as u64);
            let logits = Steps::new(&ours, Shape::default()).run(std::slice::from_ref(&prompt), 4).remove(0);
            theirs.reset().unwrap();
            let mut input = prompt;
            for (step, ours) in logits.iter().enumerate() {
                let theirs = theirs.forward(&input).unwrap();
                let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
                let worst = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    worst <= 1e-4 * scale,
                    "{name}, prompt of {length}, token {step}: {worst} of {scale}"
                );
                let best = (0..ours.len()).max_by(|a, b| ours[*a].total_cmp(&ours[*b])).unwrap();
                input = vec![best as u32];
            }
        }
    }
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits()))
}

#[test]
fn logits_are_the_same_bits_however_the_work_is_cut() {
    const GENERATE: usize = 20;
    let lengths = [1, 17, 300, 700];
    let prompts: Vec<Vec<u32>> =
        (0..16).map(|i| prompt(if i < 4 { lengths[i] } else { 5 + 23 * i }, VOCAB, 100 + i as u64)).collect();
    for (name, config) in models().into_iter().chain(others()).chain(routed()) {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = decoder(&config, precision);
            let alone: Vec<_> = prompts
                .iter()
                .map(|p| {
                    Steps::new(&model, Shape::default()).run(std::slice::from_ref(p), GENERATE).remove(0)
                })
                .collect();
            let best = |row: &Vec<f32>| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            let distinct: HashSet<usize> = alone.iter().flatten().map(best).collect();
            assert!(
                distinct.len() >= 16,
                "{name}: only {} distinct ids, the test proves little",
                distinct.len()
            );
            let check = |what: &str, got: &[Vec<Vec<f32>>]| {
                for (i, (alone, got)) in alone.iter().zip(got).enumerate() {
                    assert!(same(alone, got), "{name} {precision:?} {what}: prompt {i} differs");
                }
            };
            for threads in [1, 2] {
                let shape = Shape { threads, ..Shape::default() };
                let mut steps = Steps::new(&model, Shape { tokens: 4096, ..shape });
                check("in a batch of 16", &steps.run(&prompts, GENERATE));
                assert_eq!(steps.largest_step, 16);
                check("with a prefix hit", &steps.run(&prompts, GENERATE));
                assert!(steps.prefix_hits > 1000, "{} tokens hit", steps.prefix_hits);

                check(
                    "with chunked prefill",
                    &Steps::new(&model, Shape { tokens: 37, ..shape }).run(&prompts, GENERATE),
                );
                let mut tight = Steps::new(&model, Shape { blocks: 60, tokens: 128, ..shape });
                check("after preemption", &tight.run(&prompts, GENERATE));
                assert!(tight.preemptions > 0, "the cache was large enough after all");
            }
        }
    }
}

#[test]
fn a_wrong_block_table_changes_the_logits() {
    use hashwatt::model::input::{AttentionSpan, StepInput};
    use hashwatt::model::runner::Runner;
    use hashwatt::model::workspace::Capacity;

    let model = decoder(&llama(1), Precision::F32);
    let tokens = prompt(40, VOCAB, 1);
    let run = |read_table: [u32; 3]| {
        let capacity = Capacity { rows: 64, logit_rows: 1 };
        let mut runner = Runner::new(model.clone(), crate::support::pool(1), capacity, 4).unwrap();
        let mut step = |range: std::ops::Range<u32>, table: [u32; 3]| {
            let mut input = StepInput::default();
            for p in range.clone() {
                input.tokens.push(tokens[p as usize]);
                input.positions.push(p);
                input.slots.push([0, 1, 2][p as usize / 16] * 16 + p % 16);
            }
            let (rows, first_position) = (range.len() as u32, range.start);
            input.spans.push(AttentionSpan { first_row: 0, rows, first_position, block_table: 0 });
            input.block_tables.extend(table);
            input.logit_rows.push(rows - 1);
            runner.launch(&mut input).unwrap();
            runner.logits(<[f32]>::to_vec).unwrap()
        };
        step(0..39, [0, 1, 2]);
        step(39..40, read_table)
    };
    let right = run([0, 1, 2]);
    assert!(right.iter().zip(&run([0, 1, 2])).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(right.iter().zip(&run([1, 0, 2])).any(|(a, b)| a != b), "swapped blocks went unnoticed");
}

#[test]
fn a_pending_row_reads_the_token_the_last_step_sampled() {
    use hashwatt::model::input::{AttentionSpan, StepInput};
    use hashwatt::model::runner::Runner;
    use hashwatt::model::workspace::Capacity;

    use hashwatt::ops::sample::{Samples, Task};

    let model = decoder(&qwen3(1), Precision::F32);
    let run = |pending: bool| {
        let capacity = Capacity { rows: 8, logit_rows: 2 };
        let mut runner = Runner::new(model.clone(), crate::support::pool(1), capacity, 2).unwrap();
        let mut input = StepInput::default();
        input.tokens.extend([3, 4]);
        input.positions.extend([0, 1]);
        input.slots.extend([0, 1]);
        input.spans.push(AttentionSpan { first_row: 0, rows: 2, first_position: 0, block_table: 0 });
        input.block_tables.push(0);
        input.logit_rows.push(1);
        runner.launch(&mut input).unwrap();
        // A score names its token: the sample is 99 whatever the logits are.
        runner.sample(&Samples { tasks: vec![Task { score: 99, ..Task::GREEDY }], words: vec![] }).unwrap();
        if !pending {
            assert_eq!(runner.collect().unwrap()[0], 99);
        }
        input.clear();
        input.tokens.push(if pending { 0 } else { 99 });
        input.positions.push(2);
        input.slots.push(2);
        input.spans.push(AttentionSpan { first_row: 0, rows: 1, first_position: 2, block_table: 0 });
        input.block_tables.push(0);
        input.logit_rows.push(0);
        if pending {
            input.pending.push((0, 0));
        }
        runner.launch(&mut input).unwrap();
        runner.logits(<[f32]>::to_vec).unwrap()
    };
    assert_eq!(run(true), run(false));
}
