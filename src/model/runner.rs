//! What one device needs to run steps: the model, its workspace, its cache, its threads.
//!
//! `launch` starts a step; the logits are read from the `InFlight` it returns, and the sampled tokens
//! are left with the runner, so that the next step may name them before the host has seen them.

use std::sync::Arc;

use candle_core::{CpuStorage, Device, Result, Storage};

use super::decoder::Decoder;
use super::input::StepInput;
use super::kv_cache::KvCache;
use super::workspace::{Capacity, Workspace};
use crate::ops::pool::Pool;

/// Runs steps of one model on one device.
pub struct Runner {
    decoder: Arc<Decoder>,
    workspace: Workspace,
    cache: KvCache,
    pool: Arc<Pool>,
    /// Tokens sampled from the last step, by index of their logit row.
    sampled: Vec<u32>,
    forwards: u64,
}

/// A step that has been launched. Reading its logits waits for it.
pub struct InFlight<'a> {
    runner: &'a mut Runner,
    logit_rows: usize,
}

impl Runner {
    pub fn new(decoder: Arc<Decoder>, pool: Arc<Pool>, capacity: Capacity, blocks: usize) -> Result<Runner> {
        let (device, x) = (Device::Cpu, decoder.activations());
        let workspace = Workspace::new(decoder.spec(), capacity, x, &device)?;
        let cache = KvCache::new(decoder.spec(), blocks, x, &device)?;
        let sampled = vec![0; capacity.logit_rows];
        Ok(Runner { decoder, workspace, cache, pool, sampled, forwards: 0 })
    }

    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
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
        self.forwards += 1;
        self.decoder.forward(input, &self.workspace, &self.cache, &self.pool)?;
        let logit_rows = input.logit_rows.len();
        Ok(InFlight { runner: self, logit_rows })
    }
}

impl InFlight<'_> {
    /// Calls `sample` with the step's logits `[logit_rows, vocab]` and the place of the sampled tokens,
    /// one per logit row.
    pub fn sample<R>(self, sample: impl FnOnce(&[f32], &mut [u32], &Pool) -> R) -> Result<R> {
        let vocab = self.runner.decoder.spec().vocab;
        let (storage, layout) = self.runner.workspace.logits.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(logits)) = &*storage else {
            candle_core::bail!("logits are not f32 on the CPU");
        };
        let start = layout.start_offset();
        let logits = &logits[start..start + self.logit_rows * vocab];
        Ok(sample(logits, &mut self.runner.sampled[..self.logit_rows], &self.runner.pool))
    }
}
