//! What one device needs to run steps: the model, its workspace, its cache, its threads.
//!
//! `launch` starts a step and `sample` the choice of its tokens; `collect` waits for them. What was
//! sampled stays on the device, so that the next step may name it before the host has seen it. A decode step is
//! replayed from a captured graph where there is one for its size.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Storage, bail};

use super::decoder::Decoder;
use super::graphs::{GraphReport, Graphs};
use super::input::{BLOCK_SIZE, StepInput, StepView};
use super::kv_cache::KvCache;
use super::workspace::{Capacity, Workspace};
use crate::ops::exec::Exec;
use crate::ops::launch::{ArrayKind, Launcher, Mirrored, Place};
use crate::ops::paged_attention::Cutting;
use crate::ops::paged_attention::kernels::SPLIT_TILES;
use crate::ops::pool::Pool;
use crate::ops::sample::{self, RESULT_WORDS, Sample, Samples};

/// Runs steps of one model on one device.
pub struct Runner {
    /// First: graphs go before the kernels that they launch.
    graphs: Graphs,
    /// Decode steps that were replayed from a graph so far.
    replays: u64,
    decoder: Arc<Decoder>,
    workspace: Workspace,
    cache: KvCache,
    on: Exec,
    /// A launcher's logits, copied here to be read.
    logits: Vec<f32>,
    /// Results of the last sampling, as many rows as it had.
    results: Vec<u32>,
    sampled: usize,
    /// Of the step launched last.
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
        // Rows of no sequence (a graph's filling, the warm-up's) write to a block of their own.
        let cache = KvCache::new(decoder.spec(), blocks, 1, decoder.cache_type(), &on.device)?;
        let results = vec![0; capacity.logit_rows * RESULT_WORDS];
        let graphs = Graphs::default();
        Ok(Runner {
            graphs,
            replays: 0,
            decoder,
            workspace,
            cache,
            on,
            logits: Vec::new(),
            results,
            sampled: 0,
            logit_rows: 0,
        })
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

    /// True when steps are done beside the host: launching one does not wait for it.
    pub fn is_asynchronous(&self) -> bool {
        self.on.launcher.is_some()
    }

    /// Steps that were replayed from a graph so far.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// Captures decode steps of up to `sequences` rows, graphs for some sizes. `progress` is told the share
    /// done, 0..=1. Not while a step is in flight.
    ///
    /// # Errors
    /// Where there are no graphs to capture, or a step cannot be captured; steps then run without.
    pub fn capture(&mut self, sequences: usize, progress: &dyn Fn(f32)) -> Result<GraphReport> {
        let Some(launcher) = self.on.launcher.clone() else { bail!("the CPU captures no graphs") };
        let most = sequences.min(self.capacity().logit_rows).min(self.capacity().rows);
        self.graphs = Graphs::default();
        let mut graphs = Graphs::of_words(self.reserve_arrays(&*launcher, most)?);
        // A matrix that is dequantised in a captured step is so at an address that must not move either.
        match self.decoder.dequantised_bytes() {
            0 => {}
            bytes => _ = launcher.room(bytes)?,
        }
        let sizes: Vec<_> = Graphs::sizes(most)
            .into_iter()
            .flat_map(|rows| Graphs::tile_sizes(rows).into_iter().map(move |tiles| (rows, tiles)))
            .collect();
        let mut input = StepInput::with_capacity(most, most, most, most);
        for (done, size) in sizes.iter().enumerate().rev() {
            input.clear();
            input.pad(size.0, self.spare_slot());
            input.pad_tiles(size.1);
            let view = self.prepare(&mut input, ArrayKind::Captured, &*launcher)?;
            // Once as it is: what is looked up or prepared on first use must not be looked up in a graph.
            self.decoder.forward(&view, &self.workspace, &self.cache, &self.on)?;
            launcher.begin_capture()?;
            let captured = self.decoder.forward(&view, &self.workspace, &self.cache, &self.on);
            // Ended in any case: a stream that captures does nothing else.
            let graph = launcher.end_capture();
            captured?;
            graphs.add(*size, view.addresses(), graph?);
            progress(1.0 - done as f32 / sizes.len() as f32);
        }
        self.graphs = graphs;
        Ok(self.graphs.report())
    }

    /// Makes a launcher's memory for the arrays of captured steps: they are read where they lie, so it must not move.
    /// A block that is shared is listed for each sequence; the rare step that lists more than four times the blocks
    /// there are is not replayed.
    fn reserve_arrays(&self, launcher: &dyn Launcher, rows: usize) -> Result<usize> {
        // Tokens, positions, slots, logit rows, spans, tiles.
        let words = 8 * rows + 4 * (SPLIT_TILES + rows) + 4 * self.blocks();
        launcher.mirror(ArrayKind::Captured, &[&vec![0; words]], &mut [0])?;
        Ok(words)
    }

    /// Starts a step. Pending rows get the tokens the previous step sampled.
    ///
    /// # Errors
    /// When the step is larger than the workspace, or an operation fails.
    pub fn launch(&mut self, input: &mut StepInput) -> Result<()> {
        let capacity = self.workspace.capacity;
        if input.rows() > capacity.rows || input.logit_rows.len() > capacity.logit_rows {
            bail!(
                "a step of {} rows and {} logit rows does not fit a workspace of {} and {}",
                input.rows(),
                input.logit_rows.len(),
                capacity.rows,
                capacity.logit_rows
            );
        }
        if let Some((row, index)) = input.pending.iter().find(|p| p.1 as usize >= self.sampled) {
            bail!("row {row} waits for sample {index} of {}", self.sampled);
        }
        self.logit_rows = input.logit_rows.len();
        match self.on.launcher.clone() {
            None => {
                if !input.pending.is_empty() {
                    let results = &mut self.results[..self.sampled * RESULT_WORDS];
                    sample::read_results(&self.workspace.results, results)?;
                }
                for &(row, index) in &input.pending {
                    input.tokens[row as usize] = self.results[index as usize * RESULT_WORDS];
                }
                let view = input.view(None)?;
                self.decoder.forward(&view, &self.workspace, &self.cache, &self.on)
            }
            Some(launcher) => {
                input.mark_pending();
                match self.graphs.size_for(input) {
                    Some(rows) => self.replay(input, rows, &*launcher),
                    None => self.eager(input, &*launcher),
                }
            }
        }
    }

    /// First place of the block that no sequence owns.
    fn spare_slot(&self) -> u32 {
        (self.cache.blocks() * BLOCK_SIZE) as u32
    }

    /// Cuts a step for attention's kernels.
    fn cut(&self, input: &mut StepInput) {
        let (spec, x) = (self.decoder.spec(), self.decoder.activations());
        let cutting = Cutting::new(spec.heads, spec.kv_heads, spec.head_dim, x, self.on.batch_invariant);
        input.split_tiles = cutting.cut(&input.spans, &mut input.tiles);
    }

    /// A step's arrays on the device.
    fn prepare<'a>(
        &self,
        input: &'a mut StepInput,
        kind: ArrayKind,
        launcher: &dyn Launcher,
    ) -> Result<StepView<'a>> {
        let mut view = input.view(Some((launcher, kind)))?;
        view.sampled = Place::of_tensor(&self.workspace.results)?.address;
        Ok(view)
    }

    fn eager(&self, input: &mut StepInput, launcher: &dyn Launcher) -> Result<()> {
        self.cut(input);
        let view = self.prepare(input, ArrayKind::Step, launcher)?;
        self.decoder.forward(&view, &self.workspace, &self.cache, &self.on)
    }

    fn replay(&mut self, input: &mut StepInput, rows: usize, launcher: &dyn Launcher) -> Result<()> {
        let slot = self.spare_slot();
        input.pad(rows, slot);
        self.cut(input);
        if let Some(tiles) = self.graphs.tiles_for(rows, input.tiles.len()) {
            input.pad_tiles(tiles);
        }
        let size = (rows, input.tiles.len());
        // Longer contexts than there are graphs for.
        if !self.graphs.has(size) || input.words() > self.graphs.words() {
            let view = self.prepare(input, ArrayKind::Step, launcher)?;
            return self.decoder.forward(&view, &self.workspace, &self.cache, &self.on);
        }
        let view = self.prepare(input, ArrayKind::Captured, launcher)?;
        let Some(graph) = self.graphs.get(size, &view.addresses()) else {
            bail!("the arrays of captured steps have moved")
        };
        // SAFETY: it was captured with these addresses, from a step of as many rows and tiles.
        unsafe { graph.replay()? };
        self.replays += 1;
        Ok(())
    }

    /// Starts sampling from the step launched last, a task a logit row. [`Runner::collect`] waits for the results.
    ///
    /// # Errors
    /// Tasks that do not fit the step.
    pub fn sample(&mut self, samples: &Samples) -> Result<()> {
        let Runner { workspace: ws, decoder, on, logit_rows, .. } = &*self;
        let rows = samples.tasks.len();
        if rows != *logit_rows {
            bail!("{rows} tasks for {logit_rows} rows of logits");
        }
        let mut tasks: Mirrored<'_, u32> = samples.task_words().into();
        let mut words: Mirrored<'_, u32> = samples.words.as_slice().into();
        if let Some(launcher) = &on.launcher {
            let mut to = [0; 2];
            launcher.mirror(ArrayKind::Samples, &[tasks.host, words.host], &mut to)?;
            (tasks.address, words.address) = (to[0], to[1]);
        }
        let op = Sample { samples, tasks, words, vocab: decoder.spec().vocab, on };
        sample::sample(&ws.logits, &ws.adjusted, &ws.results, &op)?;
        if let Some(launcher) = &on.launcher {
            let place = Place::of_tensor(&ws.results)?.holds(rows * RESULT_WORDS, "results")?;
            // SAFETY: the place holds so many, as checked.
            unsafe { launcher.fetch(place.address, rows * RESULT_WORDS)? };
        }
        self.sampled = rows;
        Ok(())
    }

    /// Waits for what was sampled last: its results, [`RESULT_WORDS`] a row.
    ///
    /// # Errors
    /// What went wrong on the device since it was last asked.
    pub fn collect(&mut self) -> Result<&[u32]> {
        let to = &mut self.results[..self.sampled * RESULT_WORDS];
        match &self.on.launcher {
            Some(launcher) => launcher.collect(to)?,
            None => sample::read_results(&self.workspace.results, to)?,
        }
        Ok(to)
    }

    /// Waits for the step launched last and calls `read` with its logits `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn logits<R>(&mut self, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let count = self.logit_rows * self.decoder.spec().vocab;
        if let Some(launcher) = &self.on.launcher {
            let place = Place::of_tensor(&self.workspace.logits)?.holds(count, "logits")?;
            self.logits.resize(count, 0.0);
            // SAFETY: the place holds so many, as checked.
            unsafe { launcher.read(place.address, &mut self.logits)? };
            return Ok(read(&self.logits));
        }
        let (storage, layout) = self.workspace.logits.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(logits)) = &*storage else { bail!("logits are not f32 on the CPU") };
        let start = layout.start_offset();
        Ok(read(&logits[start..start + count]))
    }
}
