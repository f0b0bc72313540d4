//! An encoder that lives on a device: requests of texts in, a vector a text out, in batches of about one length.
//!
//! One call of `step` computes some groups of texts of any requests, beside each other on the
//! device's threads. A request is answered when its last text is computed; one whose client is gone is dropped with
//! what it has left. A failed step ends the requests that had a text in it, and nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::Device;
use rayon::prelude::*;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::engine::buckets::{Buckets, Waiting, computed};
use crate::engine::event::{EngineError, Tier};
use crate::engine::fault::Fault;
use crate::engine::resident::StepReport;
use crate::engine::sequence::Rank;
use crate::engine::stats::EngineStats;
use crate::engine::step_log::{OVERHEAD, Observed, Share, StepRecord};
use crate::model::encoder::{CausalEncoder, Encoder};
pub use crate::model::encoder::{EncoderText, Purpose};
use crate::ops::exec::Exec;

/// Tokens of a decoder's step at most.
const ROWS: usize = 512;

/// Texts to be encoded together, at one of an engine's encoders.
#[derive(Clone)]
pub struct EncodeRequest {
    /// Number of the encoder, in the order the engine was given them.
    pub encoder: usize,
    /// At least one, each no longer than the encoder takes.
    pub texts: Arc<[EncoderText]>,
    pub tier: Tier,
    /// Whose joules its work is.
    pub account: u64,
}

/// A vector a text, in the request's order.
pub type Encoded = Vec<Vec<f32>>;
pub type EncodeResult = Result<Encoded, EngineError>;

/// An encoder, and how many threads of its own it gets on a processor.
#[derive(Clone)]
pub struct HostedEncoder {
    pub encoder: Arc<Encoder>,
    pub threads: usize,
    /// Where one that is a decoder runs.
    pub on: Exec,
    /// Tokens of its texts at most.
    pub longest: usize,
}

/// A request under way.
struct Job {
    request: EncodeRequest,
    reply: oneshot::Sender<EncodeResult>,
    outputs: Encoded,
    left: usize,
}

pub(super) struct EncoderResident {
    encoder: Arc<Encoder>,
    /// Where candle's operations run on a processor; a GPU needs none.
    threads: Option<rayon::ThreadPool>,
    /// Of a decoder: what runs it.
    causal: Option<RefCell<CausalEncoder>>,
    buckets: Buckets,
    jobs: BTreeMap<Rank, Job>,
    /// Why the device serves nobody any more.
    lost: Option<EngineError>,
    clock: Clock,
    stats: Arc<EngineStats>,
    observed: Observed,
}

impl EncoderResident {
    /// # Errors
    /// Threads that cannot start.
    pub fn new(
        hosted: HostedEncoder,
        device: &str,
        clock: Clock,
        stats: Arc<EngineStats>,
        observed: Observed,
    ) -> Result<EncoderResident, EngineError> {
        let name = device.to_string();
        let encoder = &hosted.encoder;
        let causal = encoder.causal(&hosted.on, ROWS.min(hosted.longest), hosted.longest);
        let causal = causal.map_err(|e| EngineError::of_step(&e))?.map(RefCell::new);
        let threads = match encoder.device() {
            Device::Cpu if causal.is_none() => {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(hosted.threads.max(1))
                    .thread_name(move |i| format!("hashwatt-{name}-enc{i}"))
                    .build();
                Some(pool.map_err(|e| EngineError::Dead(format!("its threads could not start: {e}")))?)
            }
            _ => None,
        };
        let (buckets, jobs) = Default::default();
        Ok(EncoderResident {
            encoder: hosted.encoder,
            threads,
            causal,
            buckets,
            jobs,
            lost: None,
            clock,
            stats,
            observed,
        })
    }

    /// A forward pass over a text of nobody: touches the weights, and proves that what comes out is finite.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let text = EncoderText { ids: vec![self.encoder.spec().pad; 4], types: vec![0; 4] };
        let started = self.clock.now();
        self.observed.begin(started);
        let outputs = self.run(&[vec![&text]], None);
        let ended = self.clock.now();
        let record = StepRecord { started, ended, rows: 4, sequences: 1, overhead: true, shares: 0 };
        self.observed.end(record, std::iter::once(Share { account: OVERHEAD, prefill: 1.0, decode: 0.0 }));
        match outputs?.iter().flatten().flatten().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(EngineError::NonFiniteLogits),
        }
    }

    /// Of the request that is served first.
    pub fn first_rank(&self) -> Option<Rank> {
        self.jobs.keys().next().copied()
    }

    pub fn lost(&self) -> Option<&EngineError> {
        self.lost.as_ref()
    }

    pub fn add(&mut self, request: EncodeRequest, reply: oneshot::Sender<EncodeResult>, arrival: u64) {
        let rank = Rank { tier: request.tier, arrival };
        let lengths = request.texts.iter().map(|t| t.ids.len()).enumerate();
        self.buckets.add(lengths.map(|(text, length)| Waiting { length, rank, text }));
        let texts = request.texts.len();
        self.stats.encoder_texts.fetch_add(texts, Ordering::AcqRel);
        self.jobs.insert(rank, Job { request, reply, outputs: vec![Vec::new(); texts], left: texts });
    }

    /// Drops requests whose client is gone.
    pub fn drop_cancelled(&mut self) {
        let gone: Vec<Rank> =
            self.jobs.iter().filter(|(_, job)| job.reply.is_closed()).map(|(rank, _)| *rank).collect();
        gone.into_iter().for_each(|rank| self.end(rank, Err(EngineError::Aborted)));
    }

    pub fn fail_all(&mut self, error: &EngineError) {
        while let Some(rank) = self.first_rank() {
            self.end(rank, Err(error.clone()));
        }
    }

    /// Computes about so many tokens of what waits.
    pub fn step(&mut self, max_tokens: usize, fault: Option<Fault>) -> Option<StepReport> {
        let beside = self.threads.as_ref().map_or(1, rayon::ThreadPool::current_num_threads);
        let groups = self.buckets.take(max_tokens, beside);
        if groups.is_empty() {
            return None;
        }
        let texts: Vec<Vec<&EncoderText>> = groups
            .iter()
            .map(|g| g.iter().map(|w| &self.jobs[&w.rank].request.texts[w.text]).collect())
            .collect();
        let (rows, own) =
            (groups.iter().map(|g| self.computed(g)).sum(), groups.iter().flatten().map(|w| w.length).sum());
        let started = self.clock.now();
        self.observed.begin(started);
        let outcome = self.run(&texts, fault);
        let ended = self.clock.now();
        let sequences = groups.iter().map(Vec::len).sum();
        let share = |w: &Waiting| Share {
            account: self.jobs[&w.rank].request.account,
            prefill: w.length as f64,
            decode: 0.0,
        };
        let overhead = outcome.is_err();
        let record = StepRecord { started, ended, rows, sequences, overhead, shares: 0 };
        self.observed.end(record, groups.iter().flatten().map(share));
        self.count(sequences, own, rows - own);
        match outcome {
            Ok(outputs) => {
                for (waiting, output) in groups.into_iter().flatten().zip(outputs.into_iter().flatten()) {
                    self.apply(waiting, output);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a step of an encoder failed; its requests are ended");
                if error.is_of_the_device() {
                    self.lost = Some(error.clone());
                }
                groups.iter().flatten().for_each(|w| self.end(w.rank, Err(error.clone())));
            }
        }
        Some(StepReport { rows, sequences, started, ended })
    }

    fn run(&self, groups: &[Vec<&EncoderText>], fault: Option<Fault>) -> Result<Vec<Encoded>, EngineError> {
        let encoder = &self.encoder;
        let all = || -> candle_core::Result<Vec<Encoded>> {
            match fault {
                Some(Fault::DeviceLost) => candle_core::bail!("CUDA_ERROR_LAUNCH_FAILED, on order"),
                Some(Fault::NoMemory(bytes)) => {
                    candle_core::bail!("{bytes} bytes are not to be had, on order")
                }
                Some(Fault::Hang(time)) => std::thread::sleep(time),
                Some(Fault::Panic) => panic!("on order"),
                Some(Fault::NotFinite | Fault::NeverFinite | Fault::Draft) | None => {}
            }
            if let Some(causal) = &self.causal {
                let mut causal = causal.borrow_mut();
                return groups.iter().map(|g| causal.run(g)).collect();
            }
            match &self.threads {
                Some(threads) => threads.install(|| groups.par_iter().map(|g| encoder.run(g)).collect()),
                None => groups.iter().map(|g| encoder.run(g)).collect(),
            }
        };
        match catch_unwind(AssertUnwindSafe(all)) {
            Ok(outputs) => outputs.map_err(|e| EngineError::of_step(&e)),
            Err(panic) => Err(EngineError::of_panic(&*panic)),
        }
    }

    /// Tokens that a group computes: a decoder pads nothing.
    fn computed(&self, group: &[Waiting]) -> usize {
        match self.causal {
            Some(_) => group.iter().map(|w| w.length).sum(),
            None => computed(group),
        }
    }

    fn apply(&mut self, waiting: Waiting, output: Vec<f32>) {
        // Gone, when another of its texts has failed.
        let Some(job) = self.jobs.get_mut(&waiting.rank) else { return };
        if !output.iter().all(|x| x.is_finite()) {
            return self.end(waiting.rank, Err(EngineError::NonFiniteLogits));
        }
        job.outputs[waiting.text] = output;
        job.left -= 1;
        self.stats.encoder_texts.fetch_sub(1, Ordering::AcqRel);
        if job.left == 0 {
            let outputs = std::mem::take(&mut job.outputs);
            self.end(waiting.rank, Ok(outputs));
        }
    }

    /// A request leaves with what it has left; no longer counted, it is told.
    fn end(&mut self, rank: Rank, result: EncodeResult) {
        let Some(job) = self.jobs.remove(&rank) else { return };
        if job.left > 0 {
            self.buckets.remove(rank);
            self.stats.encoder_texts.fetch_sub(job.left, Ordering::AcqRel);
        }
        self.stats.encodes.fetch_sub(1, Ordering::AcqRel);
        // Whether anyone still listens makes no difference.
        let _ = job.reply.send(result);
    }

    fn count(&self, texts: usize, tokens: usize, padding: usize) {
        let add =
            |counter: &std::sync::atomic::AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        add(&self.stats.encoded_texts, texts);
        add(&self.stats.encoded_tokens, tokens);
        add(&self.stats.padding_tokens, padding);
    }
}
