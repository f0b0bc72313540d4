//! What one device needs to run steps: the model, its workspace, its cache, its threads.
//!
//! `launch` starts a step; the logits are read from the `InFlight` it returns, and the sampled tokens
//! are left with the runner, so that the next step may name them before the host has seen them.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Storage};

use super::decoder::Decoder;
use super::input::StepInput;
use super::kv_cache::KvCache;
use super::workspace::{Capacity, Workspace};
use crate::ops::exec::Exec;
use crate::ops::launch::Place;
use crate::ops::paged_attention;
use crate::ops::pool::Pool;

/// Runs steps of one model on one device.
pub struct Runner {
    decoder: Arc<Decoder>,
    workspace: Workspace,
    cache: KvCache,
    on: Exec,
    /// Tokens sampled from the last step, by index of their logit row.
    sampled: Vec<u32>,
    /// A launcher's logits, copied here to be sampled.
    logits: Vec<f32>,
    forwards: u64,
}

/// A step that has been launched. Reading its logits waits for it.
pub struct InFlight<'a> {
    runner: &'a mut Runner,
    logit_rows: usize,
}

impl Runner {
    /// # Errors
    /// A device without room for the cache or the workspace.
    pub fn new(
        decoder: Arc<Decoder>,
        on: impl Into<Exec>,
        capacity: Capacity,
        blocks: usize,
    ) -> Result<Runner> {
        let (on, x) = (on.into(), decoder.activations());
        let workspace = Workspace::new(decoder.spec(), capacity, x, &on.device)?;
        let cache = KvCache::new(decoder.spec(), blocks, decoder.cache_type(), &on.device)?;
        let sampled = vec![0; capacity.logit_rows];
        let logits = match on.launcher {
            Some(_) => vec![0.0; capacity.logit_rows * decoder.spec().vocab],
            None => Vec::new(),
        };
        Ok(Runner { decoder, workspace, cache, on, sampled, logits, forwards: 0 })
    }

    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.on.pool
    }

    pub fn capacity(&self) -> Capacity {
        self.workspace.capacity
    }

    pub fn blocks(&self) -> usize {
        self.cache.blocks()
    }

    /// Forward passes so far: one a step, whatever the step holds.
    pub fn forwards(&self) -> u64 {
        self.forwards
    }

    /// Starts a step. Pending rows get the tokens the previous step sampled.
    ///
    /// # Errors
    /// When the step is larger than the workspace, or an operation fails.
    pub fn launch(&mut self, input: &mut StepInput) -> Result<InFlight<'_>> {
        let capacity = self.workspace.capacity;
        if input.rows() > capacity.rows || input.logit_rows.len() > capacity.logit_rows {
            candle_core::bail!(
                "a step of {} rows and {} logit rows does not fit a workspace of {} and {}",
                input.rows(),
                input.logit_rows.len(),
                capacity.rows,
                capacity.logit_rows
            );
        }
        for &(row, index) in &input.pending {
            input.tokens[row as usize] = self.sampled[index as usize];
        }
        if self.on.launcher.is_some() {
            let spec = self.decoder.spec();
            paged_attention::tiles(&input.spans, spec.heads, spec.kv_heads, &mut input.tiles);
        }
        self.forwards += 1;
        let view = input.view(self.on.launcher.as_deref())?;
        self.decoder.forward(&view, &self.workspace, &self.cache, &self.on)?;
        let logit_rows = input.logit_rows.len();
        Ok(InFlight { runner: self, logit_rows })
    }
}

impl InFlight<'_> {
    /// Calls `sample` with the step's logits `[logit_rows, vocab]` and the place of the sampled tokens,
    /// one per logit row.
    pub fn sample<R>(self, sample: impl FnOnce(&[f32], &mut [u32], &Pool) -> R) -> Result<R> {
        let vocab = self.runner.decoder.spec().vocab;
        let runner = self.runner;
        if let Some(launcher) = &runner.on.launcher {
            let place =
                Place::of_tensor(&runner.workspace.logits)?.holds(self.logit_rows * vocab, "logits")?;
            let logits = &mut runner.logits[..self.logit_rows * vocab];
            // SAFETY: the place holds so many, as checked.
            unsafe { launcher.read(place.address, logits)? };
            return Ok(sample(logits, &mut runner.sampled[..self.logit_rows], &runner.on.pool));
        }
        let (storage, layout) = runner.workspace.logits.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(logits)) = &*storage else {
            candle_core::bail!("logits are not f32 on the CPU");
        };
        let start = layout.start_offset();
        let logits = &logits[start..start + self.logit_rows * vocab];
        Ok(sample(logits, &mut runner.sampled[..self.logit_rows], &runner.on.pool))
    }
}
