//! Sampling: rows of logits and what each is for → a token a row, with log-probabilities where they are wanted.
//!
//! Penalties, bias, bans and a mask make a row's adjusted logits; of these the draw keeps what temperature, min-p,
//! top-k and top-p (in this order) leave. A draw is a function of the row and of its own 64 random bits: masses are
//! fixed-point numbers, so that no order of additions matters. Log-probabilities are those of the raw logits.

use candle_core::{
    CpuStorage, CudaStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail,
};

use super::cpu::pick;
use super::exec::Exec;
use super::launch::{Arguments, Launch, Launcher, Mirrored, Place};
use super::storage;

/// Alternatives that a row can report at most.
pub const MAX_TOP: usize = 20;
/// Words of a row's result: token, whether the logits were finite, log-probability, number of alternatives; then
/// token and log-probability of each.
pub const RESULT_WORDS: usize = 4 + 2 * MAX_TOP;
/// Instead of a token, a place in the words, or a number of alternatives: there is none.
pub const NONE: u32 = u32::MAX;

/// Of the kernels' blocks.
const THREADS: u32 = 512;

/// Successive words of [`Samples::words`]; pairs count as one each.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct List {
    pub begin: u32,
    pub len: u32,
}

/// What one row of logits is for.
#[repr(C)] // as the kernel has it: words of four bytes, no padding
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1.0 keeps all.
    pub top_p: f32,
    /// Natural logarithm of min-p; −∞ keeps all.
    pub ln_min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// A token whose log-probability is wanted, in place of a draw; or [`NONE`].
    pub score: u32,
    /// Random bits, low word first.
    pub random: [u32; 2],
    /// Pairs (token, times in the output; 0 for one of the prompt alone), each token once.
    pub seen: List,
    /// Pairs (token, bits of the f32 that is added), each token once.
    pub bias: List,
    /// Tokens that may not come.
    pub banned: List,
    /// Where a mask of one bit a token begins, least significant first; or [`NONE`].
    pub mask: u32,
    /// Alternatives to report; [`NONE`] reports no log-probability at all.
    pub top: u32,
}

const TASK_WORDS: usize = size_of::<Task>() / 4;
const _: () = assert!(size_of::<Task>().is_multiple_of(4) && align_of::<Task>() == 4);

impl Task {
    /// The most likely token, nothing else.
    pub const GREEDY: Task = Task {
        temperature: 0.0,
        top_p: 1.0,
        ln_min_p: f32::NEG_INFINITY,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_k: 0,
        score: NONE,
        random: [0; 2],
        seen: List { begin: 0, len: 0 },
        bias: List { begin: 0, len: 0 },
        banned: List { begin: 0, len: 0 },
        mask: NONE,
        top: NONE,
    };

    /// True when the adjusted logits are others than the raw ones.
    pub fn adjusts(&self) -> bool {
        self.score == NONE
            && (self.seen.len > 0 || self.bias.len > 0 || self.banned.len > 0 || self.mask != NONE)
    }
}

/// The tasks of a step, one a row of logits, as flat arrays that keep their memory from step to step.
#[derive(Debug, Default, Clone)]
pub struct Samples {
    pub tasks: Vec<Task>,
    pub words: Vec<u32>,
}

impl Samples {
    pub fn clear(&mut self) {
        self.tasks.clear();
        self.words.clear();
    }

    /// Appends pairs, for [`Task::seen`] and [`Task::bias`].
    pub fn pairs(&mut self, pairs: impl Iterator<Item = [u32; 2]>) -> List {
        let begin = self.words.len();
        self.words.extend(pairs.flatten());
        List { begin: begin as u32, len: ((self.words.len() - begin) / 2) as u32 }
    }

    /// Appends tokens, for [`Task::banned`].
    pub fn tokens(&mut self, tokens: &[u32]) -> List {
        let begin = self.words.len() as u32;
        self.words.extend_from_slice(tokens);
        List { begin, len: tokens.len() as u32 }
    }

    /// Appends a mask, for [`Task::mask`].
    pub fn mask(&mut self, mask: &[u32]) -> u32 {
        self.tokens(mask).begin
    }

    /// The tasks as kernels read them.
    pub fn task_words(&self) -> &[u32] {
        // SAFETY: a task is TASK_WORDS words without padding.
        unsafe { std::slice::from_raw_parts(self.tasks.as_ptr().cast(), self.tasks.len() * TASK_WORDS) }
    }

    /// Everything that the loops and kernels rely on without looking again.
    fn check(&self, vocab: usize) -> Result<()> {
        let holds = |begin: u32, words: usize| begin as usize + words <= self.words.len();
        for (row, t) in self.tasks.iter().enumerate() {
            let lists = [(t.seen, 2), (t.bias, 2), (t.banned, 1)];
            if lists.iter().any(|(list, each)| !holds(list.begin, list.len as usize * each)) {
                bail!("sample: a list of row {row} ends beyond {} words", self.words.len())
            }
            if t.mask != NONE && !holds(t.mask, vocab.div_ceil(32)) {
                bail!("sample: the mask of row {row} ends beyond {} words", self.words.len())
            }
            if t.score != NONE && t.score as usize >= vocab {
                bail!("sample: token {} is outside the vocabulary of {vocab}", t.score)
            }
            if t.top != NONE && t.top as usize > MAX_TOP {
                bail!("sample: {} alternatives where {MAX_TOP} are the most", t.top)
            }
        }
        Ok(())
    }
}

/// One row's outcome, as it lies in the results.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a>(&'a [u32]);

impl<'a> Outcome<'a> {
    /// Row `row` of results `[rows, RESULT_WORDS]`.
    pub fn of(results: &'a [u32], row: usize) -> Outcome<'a> {
        Outcome(&results[row * RESULT_WORDS..(row + 1) * RESULT_WORDS])
    }

    /// `None` when the row of logits held a number that is not finite.
    pub fn token(self) -> Option<u32> {
        (self.0[1] == 1).then_some(self.0[0])
    }

    /// Of the token, natural logarithm; meaningless where none was asked for.
    pub fn logprob(self) -> f32 {
        f32::from_bits(self.0[2])
    }

    /// Alternatives, most likely first.
    pub fn top(self) -> impl ExactSizeIterator<Item = (u32, f32)> + 'a {
        let pairs = self.0[4..4 + 2 * (self.0[3] as usize).min(MAX_TOP)].chunks_exact(2);
        pairs.map(|pair| (pair[0], f32::from_bits(pair[1])))
    }
}

/// What sampling a step needs beside its tensors.
pub struct Sample<'a> {
    pub samples: &'a Samples,
    /// [`Samples::task_words`] and [`Samples::words`].
    pub tasks: Mirrored<'a, u32>,
    pub words: Mirrored<'a, u32>,
    pub vocab: usize,
    pub on: &'a Exec,
}

/// Samples each row that has a task. logits: f32 `[capacity, vocab]`; adjusted: the same, overwritten; results: u32
/// `[capacity, RESULT_WORDS]`, see [`Outcome`].
///
/// # Errors
/// Tasks that do not fit their lists, the vocabulary or the tensors.
pub fn sample(logits: &Tensor, adjusted: &Tensor, results: &Tensor, op: &Sample<'_>) -> Result<()> {
    op.samples.check(op.vocab)?;
    if op.samples.tasks.iter().any(Task::adjusts) {
        adjusted.inplace_op2(logits, &Adjust(op))?;
    }
    results.inplace_op3(logits, adjusted, &Pick(op))
}

impl Sample<'_> {
    fn rows(&self) -> usize {
        self.samples.tasks.len()
    }

    fn launch(&self, kernel: &'static str, shared_bytes: u32, arguments: Arguments) -> Launch {
        let arguments = arguments.with(self.tasks.address).with(self.words.address).with(self.vocab as u32);
        Launch {
            kernel,
            types: &[],
            grid: [self.rows() as u32, 1, 1],
            threads: THREADS,
            shared_bytes,
            arguments,
        }
    }

    fn logits(&self, place: Place) -> Result<Place> {
        place.holds(self.rows() * self.vocab, "sample")?.is(DType::F32, "sample")
    }
}

/// Adjusted logits of the rows that have any.
struct Adjust<'a>(&'a Sample<'a>);

impl InplaceOp2 for Adjust<'_> {
    fn name(&self) -> &'static str {
        "sample_adjust"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        self.launch(self.0.on.launcher(self.name())?, Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let Sample { samples, vocab, on, .. } = *self.0;
        if let Some(launcher) = &on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let (logits, dst) =
            (storage::read_f32(src, sl, self.name())?, storage::write_f32(dst, dl, self.name())?);
        if logits.len().min(dst.len()) < self.0.rows() * vocab {
            bail!("sample: {} rows of {vocab} in {} logits", self.0.rows(), logits.len().min(dst.len()))
        }
        let out = storage::RowsMut::new(dst, vocab);
        storage::for_rows(&on.pool, self.0.rows(), vocab, &|row| {
            let task = &samples.tasks[row];
            if task.adjusts() {
                // SAFETY: each task is given its own row.
                let to = unsafe { out.row(row) };
                to.copy_from_slice(&logits[row * vocab..(row + 1) * vocab]);
                pick::adjust(to, task, &samples.words);
            }
        });
        Ok(())
    }
}

impl Adjust<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let (dst, src) = (self.0.logits(dst)?, self.0.logits(src)?);
        let arguments = Arguments::default().with(dst.address).with(src.address);
        // SAFETY: both places hold the rows; `check` has seen the tasks.
        unsafe { launcher.launch(&self.0.launch(self.name(), 0, arguments)) }
    }
}

/// The results, from raw and adjusted logits.
struct Pick<'a>(&'a Sample<'a>);

impl InplaceOp3 for Pick<'_> {
    fn name(&self) -> &'static str {
        "sample_pick"
    }

    fn cuda_fwd(
        &self,
        dst: &mut CudaStorage,
        dl: &Layout,
        logits: &CudaStorage,
        ll: &Layout,
        adjusted: &CudaStorage,
        al: &Layout,
    ) -> Result<()> {
        let launcher = self.0.on.launcher(self.name())?;
        self.launch(
            launcher,
            Place::of_cuda(dst, dl)?,
            Place::of_cuda(logits, ll)?,
            Place::of_cuda(adjusted, al)?,
        )
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        dl: &Layout,
        logits: &CpuStorage,
        ll: &Layout,
        adjusted: &CpuStorage,
        al: &Layout,
    ) -> Result<()> {
        let Sample { samples, vocab, on, .. } = *self.0;
        if let Some(launcher) = &on.launcher {
            return self.launch(
                &**launcher,
                Place::of_cpu(dst, dl)?,
                Place::of_cpu(logits, ll)?,
                Place::of_cpu(adjusted, al)?,
            );
        }
        let range = storage::range(dl, self.name())?;
        let CpuStorage::U32(dst) = dst else { bail!("sample: results are words of 32 bits") };
        let (logits, adjusted) =
            (storage::read_f32(logits, ll, self.name())?, storage::read_f32(adjusted, al, self.name())?);
        let rows = (logits.len().min(adjusted.len()) / vocab).min(range.len() / RESULT_WORDS);
        if rows < self.0.rows() {
            bail!("sample: {} tasks for {rows} rows", self.0.rows())
        }
        let out = storage::RowsMut::new(&mut dst[range], RESULT_WORDS);
        storage::for_rows(&on.pool, self.0.rows(), vocab, &|row| {
            let task = &samples.tasks[row];
            let own = row * vocab..(row + 1) * vocab;
            let from = if task.adjusts() { &adjusted[own.clone()] } else { &logits[own.clone()] };
            // SAFETY: each task is given its own row.
            pick::pick(unsafe { out.row(row) }, task, &logits[own], from);
        });
        Ok(())
    }
}

impl Pick<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, logits: Place, adjusted: Place) -> Result<()> {
        let dst = dst.holds(self.0.rows() * RESULT_WORDS, self.name())?.is(DType::U32, self.name())?;
        let (logits, adjusted) = (self.0.logits(logits)?, self.0.logits(adjusted)?);
        // As `ops/cuda/sample.cu` lays it out: bins, a word and a mass a warp, and what all threads are told.
        let shared = 8 * (256 + 3 * (THREADS / 32) + 8);
        let arguments = Arguments::default().with(dst.address).with(logits.address).with(adjusted.address);
        // SAFETY: the places hold the rows; `check` has seen the tasks.
        unsafe { launcher.launch(&self.0.launch(self.name(), shared, arguments)) }
    }
}

/// Copies a step's results to the host's `to`, when they lie in its own memory.
///
/// # Errors
/// Results elsewhere, or fewer than asked for.
pub fn read_results(results: &Tensor, to: &mut [u32]) -> Result<()> {
    let (storage, layout) = results.storage_and_layout();
    let (Storage::Cpu(CpuStorage::U32(all)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("sample: the results are not on the CPU")
    };
    match all[start..end].get(..to.len()) {
        Some(own) => to.copy_from_slice(own),
        None => bail!("sample: {} words of results of {}", to.len(), end - start),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
