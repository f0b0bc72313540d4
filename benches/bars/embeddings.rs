//! Embeddings against HuggingFace transformers: 512 texts of 8 to 512 tokens, MiniLM's shape, f32, the same threads.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::Device;
use hashwatt::clock::Clock;
use hashwatt::engine::encode::{EncodeRequest, HostedEncoder};
use hashwatt::engine::event::Tier;
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{self, EngineConfig, EngineHandle, Limits, Models};
use hashwatt::model::encoder::{EncoderCheckpoint, EncoderText};
use hashwatt::ops::exec::Exec;
use hashwatt::ops::pool::Pool;
use serde_json::json;

use crate::Report;

const MODEL: &str = "synthetic:minilm-l6";
const TEXTS: usize = 512;
const ROUNDS: usize = 5;
/// Texts of a batch of the rival's, as sentence-transformers has it.
const BATCH: usize = 32;

/// Token ids of log-uniform lengths, from a fixed sequence.
fn texts() -> Vec<Vec<u32>> {
    let mut state = 7u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..TEXTS)
        .map(|_| {
            let length = (8.0 * 64f64.powf(draw())) as usize;
            (0..length).map(|_| 1 + (draw() * 30_000.0) as u32).collect()
        })
        .collect()
}

fn engine(threads: usize) -> EngineHandle {
    let checkpoint = EncoderCheckpoint::open(MODEL, &Arc::new(Pool::new(threads))).expect("the preset opens");
    let encoder = Arc::new(checkpoint.load(&Device::Cpu).expect("the preset loads"));
    let config = EngineConfig {
        device: "bench".into(),
        // As a server on a processor has it.
        limits: Limits { max_rows: 64, max_tokens: 512, duty: 1.0 },
        prefix_caching: false,
        run_ahead: false,
        speculative_tokens: 0,
        max_queue: 16,
        faults: Default::default(),
    };
    let hosted =
        vec![HostedEncoder { encoder, threads, on: Exec::cpu(threads), longest: checkpoint.spec.max_tokens }];
    worker::spawn_with(
        Models { encoders: hosted, ..Models::default() },
        config,
        Clock::system(),
        Observed::default(),
    )
    .expect("an engine")
    .0
}

struct Rival {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Rival {
    /// `None` where there is no Python with transformers.
    fn start(folder: &Path, texts: &[Vec<u32>], threads: usize) -> Option<Rival> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/huggingface_embed.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take()?));
        let mut rival = Rival { child, to, from };
        rival.say(&json!({"texts": texts, "batch": BATCH, "threads": threads}).to_string())?;
        rival.hear().filter(|line| line == "ready").map(|_| rival)
    }

    fn say(&mut self, line: &str) -> Option<()> {
        writeln!(self.to.as_mut()?, "{line}").ok()
    }

    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        self.from.read_line(&mut line).ok()?;
        Some(line.trim().to_string()).filter(|l| !l.is_empty())
    }

    /// Seconds of a round.
    fn round(&mut self) -> Option<f64> {
        self.say("go")?;
        self.hear()?.parse().ok()
    }

    /// Its first vector, after the last round.
    fn end(mut self) -> Vec<f32> {
        self.to = None;
        let line = self.hear().unwrap_or_default();
        let _ = self.child.wait();
        serde_json::from_str(&line).unwrap_or_default()
    }
}

pub fn run(report: &mut Report) {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (texts, clock) = (texts(), Clock::system());
    let tokens: usize = texts.iter().map(Vec::len).sum();
    println!("{TEXTS} texts, {tokens} tokens, {threads} threads");
    let handle = engine(threads);
    let own: Arc<[EncoderText]> =
        texts.iter().map(|ids| EncoderText { ids: ids.clone(), types: Vec::new() }).collect();
    let ours_once = || {
        let begun = clock.now();
        let request = EncodeRequest { encoder: 0, texts: own.clone(), tier: Tier::Default, account: 0 };
        let reply = handle.encode(request).expect("a place in the queue");
        let vectors = reply.blocking_recv().expect("an answer").expect("vectors");
        (clock.now().since(begun).as_secs_f64(), vectors)
    };
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("model");
    let write = ["hashwatt", "models", "write", MODEL, folder.to_str().expect("a path in UTF-8")];
    hashwatt::cli::run(write.map(Into::into)).expect("the model is written");
    let mut rival = Rival::start(&folder, &texts, threads);
    if rival.is_none() {
        println!(
            "no rival: python3 has no torch and transformers (pip install torch transformers safetensors)"
        );
    }
    let (mut ours, mut theirs, mut first) = (Vec::new(), Vec::new(), Vec::new());
    // The first round warms both up.
    for round in 0..=ROUNDS {
        let (seconds, vectors) = ours_once();
        let other = rival.as_mut().and_then(Rival::round);
        if round > 0 {
            ours.push(tokens as f64 / seconds);
            theirs.extend(other.map(|seconds| tokens as f64 / seconds));
        }
        first = vectors.into_iter().next().unwrap_or_default();
    }
    report.row("embeddings, this server", "tok/s", &ours, None);
    let stats = handle.stats();
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let (own, padding) = (of(&stats.encoded_tokens), of(&stats.padding_tokens));
    report.row("padding of all tokens computed", "share", &[padding / (own + padding)], Some(("≤", 0.1)));
    let Some(rival) = rival.filter(|_| theirs.len() == ours.len()) else { return };
    let other = rival.end();
    let off = first.iter().zip(&other).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    report.row("embeddings, HuggingFace transformers", "tok/s", &theirs, None);
    report.row("largest difference of the first vector", "", &[off], Some(("≤", 1e-4)));
    report.ratio("embeddings / HuggingFace transformers", &ours, &theirs, Some(1.0));
}
