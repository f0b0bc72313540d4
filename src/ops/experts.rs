//! Routed experts: feed-forward networks of which each row takes a few.
//!
//! A router's logits choose experts for every row ([`Route`]); rows are laid out by expert ([`GroupRows`]), so that each
//! expert's matrix meets all of its rows in one product ([`GroupedLinear`]); a row then takes what its experts gave,
//! the chosen first ([`Combine`]). A place is one row with one of its experts: there are `rows × per_token` of them. What
//! a row gets does not depend on the others: products do not, and the order of the additions is the row's own.

use std::ops::Range;

use candle_core::{CpuStorage, CudaStorage, InplaceOp2, Layout, Result, Storage, Tensor, bail};

use super::activation::exp;
use super::cpu::Element;
use super::exec::Exec;
use super::launch::Place;
use super::linear::Linear;
use super::storage::{self, ActivationsMut, RowsMut, for_rows};
use super::weight::Weight;

mod kernels;

/// How a router chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gating {
    pub experts: usize,
    /// Experts of a row; 1 to `experts`.
    pub per_token: usize,
    /// The weights of a row's experts add up to 1; else each is its part of the softmax over all.
    pub normalised: bool,
}

/// Where a [`Route`] is kept: u32 `[words(rows)]`.
///
/// In this order: of each place its row; of each row and choice its place; of each row and choice its weight, as bits of
/// an f32; of each expert its first place, and the end of the last; of each row and choice its expert; the number of
/// experts that have any place, and these.
#[derive(Debug, Clone, Copy)]
struct Table {
    places: usize,
    experts: usize,
}

impl Gating {
    /// Words of a route of so many rows.
    pub fn words(&self, rows: usize) -> usize {
        self.table(rows).taken().end
    }

    /// Of so many bytes of all experts, those that one row does not read.
    pub fn unread(&self, bytes: u64) -> u64 {
        bytes / self.experts.max(1) as u64 * (self.experts - self.per_token) as u64
    }

    fn table(&self, rows: usize) -> Table {
        Table { places: rows * self.per_token, experts: self.experts }
    }
}

impl Table {
    fn rows(self) -> Range<usize> {
        0..self.places
    }
    fn place_of(self) -> Range<usize> {
        self.places..2 * self.places
    }
    fn weights(self) -> Range<usize> {
        2 * self.places..3 * self.places
    }
    fn starts(self) -> Range<usize> {
        3 * self.places..3 * self.places + self.experts + 1
    }
    fn chosen(self) -> Range<usize> {
        let start = self.starts().end;
        start..start + self.places
    }
    fn taken(self) -> Range<usize> {
        let start = self.chosen().end;
        start..start + self.experts + 1
    }
}

/// Reads a route that a step has left.
fn with_route<R>(
    route: &Tensor,
    words: usize,
    op: &str,
    read: impl FnOnce(&[u32]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = route.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::U32(all)) => match all[storage::range(layout, op)?].get(..words) {
            Some(route) => read(route),
            None => bail!("{op}: a route of {words} words does not fit the given tensor"),
        },
        _ => bail!("{op}: routes are u32 on the processor"),
    }
}

/// `dst` = the experts of the first `rows` rows and their weights; src: the router's logits, f32 `[capacity, experts]`;
/// dst: u32, at least [`Gating::words`]. Of equal logits the first expert is taken.
pub struct Route<'a> {
    pub gating: Gating,
    pub rows: usize,
    pub on: &'a Exec,
}

impl InplaceOp2 for Route<'_> {
    fn name(&self) -> &'static str {
        "route"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        self.check()?;
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let Gating { experts, per_token, .. } = self.gating;
        let table = self.gating.table(self.rows);
        let logits = storage::read_f32(src, sl, self.name())?;
        let CpuStorage::U32(words) = dst else { bail!("route: the destination is not u32") };
        let words = &mut words[storage::range(dl, self.name())?];
        if logits.len() < self.rows * experts || words.len() < self.gating.words(self.rows) {
            bail!("route: {} rows do not fit the given tensors", self.rows);
        }
        let (before, choices) = words[..table.chosen().end].split_at_mut(table.chosen().start);
        let (choices, weights) =
            (RowsMut::new(choices, per_token), RowsMut::new(&mut before[table.weights()], per_token));
        for_rows(&self.on.pool, self.rows, experts * per_token, &|row| {
            // SAFETY: each task is given its own row.
            let (chosen, weights) = unsafe { (choices.row(row), weights.row(row)) };
            choose(&logits[row * experts..][..experts], self.gating.normalised, chosen, weights);
        });
        self.lay_out(words, table);
        Ok(())
    }
}

/// The experts of a row, the best first, and the bits of their weights. What is no number is chosen or not, and one that is makes NaN.
fn choose(logits: &[f32], normalised: bool, chosen: &mut [u32], weights: &mut [u32]) {
    let after = |a: (f32, usize), b: (f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).is_gt();
    let mut last = None;
    for choice in chosen.iter_mut() {
        let all = logits.iter().copied().zip(0..);
        let left = all.filter(|expert| last.is_none_or(|last| after(*expert, last)));
        let best = left.reduce(|best, expert| if after(best, expert) { expert } else { best });
        last = best.or(last);
        *choice = last.map_or(0, |(_, index)| index as u32);
    }
    let largest = logits[chosen[0] as usize];
    let raised = |logit: f32| exp(logit - largest);
    let sum: f32 = match normalised {
        true => chosen.iter().map(|i| raised(logits[*i as usize])).sum(),
        false => logits.iter().map(|x| raised(*x)).sum(),
    };
    for (weight, expert) in weights.iter_mut().zip(chosen) {
        *weight = (raised(logits[*expert as usize]) / sum).to_bits();
    }
}

impl Route<'_> {
    fn check(&self) -> Result<()> {
        let Gating { experts, per_token, .. } = self.gating;
        if per_token == 0 || per_token > experts {
            bail!("route: {per_token} of {experts} experts for a row");
        }
        Ok(())
    }

    /// Turns each row's experts into places, those of an expert side by side in the order of their rows.
    fn lay_out(&self, words: &mut [u32], table: Table) {
        let (rows, rest) = words.split_at_mut(table.place_of().start);
        let (place_of, rest) = rest.split_at_mut(table.places);
        let (starts, rest) = rest[table.places..].split_at_mut(table.experts + 1);
        let (chosen, taken) = rest.split_at_mut(table.places);
        starts.fill(0);
        for expert in chosen.iter() {
            starts[*expert as usize + 1] += 1;
        }
        taken[0] = 0;
        for expert in 0..table.experts {
            if starts[expert + 1] > 0 {
                taken[0] += 1;
                taken[taken[0] as usize] = expert as u32;
            }
            starts[expert + 1] += starts[expert];
        }
        for (choice, (expert, place)) in chosen.iter().zip(place_of).enumerate() {
            let next = &mut starts[*expert as usize];
            rows[*next as usize] = (choice / self.gating.per_token) as u32;
            *place = *next;
            *next += 1;
        }
        // Each now is where the next begins.
        starts.copy_within(0..table.experts, 1);
        starts[0] = 0;
    }
}

/// `dst[place] = src[its row]`; src `[capacity, width]`, dst `[capacity × per_token, width]`, both f32 or both bf16.
pub struct GroupRows<'a> {
    pub gating: Gating,
    pub route: &'a Tensor,
    pub rows: usize,
    pub width: usize,
    pub on: &'a Exec,
}

impl GroupRows<'_> {
    fn copy<T: Copy + Send + Sync>(&self, dst: &mut [T], src: &[T], rows: &[u32]) -> Result<()> {
        if dst.len() < rows.len() * self.width || src.len() < self.rows * self.width {
            bail!("group_rows: {} rows do not fit the given tensors", self.rows);
        }
        let places = RowsMut::new(dst, self.width);
        for_rows(&self.on.pool, rows.len(), self.width, &|place| {
            // SAFETY: each task is given its own place.
            unsafe { places.row(place) }
                .copy_from_slice(&src[rows[place] as usize * self.width..][..self.width]);
        });
        Ok(())
    }
}

impl InplaceOp2 for GroupRows<'_> {
    fn name(&self) -> &'static str {
        "group_rows"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let table = self.gating.table(self.rows);
        with_route(self.route, self.gating.words(self.rows), self.name(), |route| {
            let rows = &route[table.rows()];
            match (storage::write(dst, dl, self.name())?, storage::read(src, sl, self.name())?) {
                (ActivationsMut::F32(dst), storage::Activations::F32(src)) => self.copy(dst, src, rows),
                (ActivationsMut::Bf16(dst), storage::Activations::Bf16(src)) => self.copy(dst, src, rows),
                _ => bail!("group_rows: source and destination are of two types"),
            }
        })
    }
}

/// [`Linear`] of each expert's matrix with its places: `dst[place, column..column + N] = src[place, K] · weightᵀ`.
///
/// dst: f32 `[capacity × per_token, ≥ column + N]`, src: f32 or bf16 `[capacity × per_token, K]`.
pub struct GroupedLinear<'a> {
    pub gating: Gating,
    pub route: &'a Tensor,
    /// `[N, K]` each, or on a device one `[experts × N, K]`.
    pub weights: &'a [Weight],
    /// f32 `[1, N]` each, or on a device one `[1, experts × N]`; or none at all.
    pub biases: &'a [Weight],
    pub rows: usize,
    pub column: usize,
    pub on: &'a Exec,
}

impl GroupedLinear<'_> {
    /// N
    pub fn outputs(&self) -> usize {
        let rows: usize = self.weights.iter().map(Weight::rows).sum();
        rows / self.gating.experts
    }
}

impl InplaceOp2 for GroupedLinear<'_> {
    fn name(&self) -> &'static str {
        "grouped_linear"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let stride = dl.shape().dims2()?.1;
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, stride, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            let stride = dl.shape().dims2()?.1;
            return self.launch(&**launcher, stride, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let (matrices, biases) = (self.weights.len(), self.biases.len());
        if matrices != self.gating.experts || biases != matrices && biases != 0 {
            bail!("grouped_linear: {matrices} matrices, {biases} biases of {} experts", self.gating.experts);
        }
        let table = self.gating.table(self.rows);
        let ((capacity, out), (held, inputs)) = (dl.shape().dims2()?, sl.shape().dims2()?);
        let (to, from) = (storage::range(dl, self.name())?.start, storage::range(sl, self.name())?.start);
        if capacity < table.places || held < table.places {
            bail!("grouped_linear: {} places do not fit the given tensors", table.places);
        }
        with_route(self.route, self.gating.words(self.rows), self.name(), |route| {
            for (expert, place) in route[table.starts()].windows(2).enumerate() {
                let (first, rows) = (place[0] as usize, (place[1] - place[0]) as usize);
                if rows == 0 {
                    continue;
                }
                let part = |width: usize, start| {
                    Layout::contiguous_with_offset((rows, width), start + first * width)
                };
                let Self { column, on, .. } = *self;
                let (weight, bias) = (&self.weights[expert], self.biases.get(expert));
                let product = Linear { weight, bias, rows, column, accumulate: false, on };
                product.cpu_fwd(dst, &part(out, to), src, &part(inputs, from))?;
            }
            Ok(())
        })
    }
}

/// `dst[row] += Σ weight × src[place]` over the row's experts, the first choice first; dst f32 `[capacity, width]`, src
/// f32 `[capacity × per_token, width]`.
pub struct Combine<'a> {
    pub gating: Gating,
    pub route: &'a Tensor,
    pub rows: usize,
    pub width: usize,
    pub on: &'a Exec,
}

impl InplaceOp2 for Combine<'_> {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let (width, per_token) = (self.width, self.gating.per_token);
        let table = self.gating.table(self.rows);
        let (dst, src) =
            (storage::write_f32(dst, dl, self.name())?, storage::read_f32(src, sl, self.name())?);
        if dst.len() < self.rows * width || src.len() < table.places * width {
            bail!("combine: {} rows do not fit the given tensors", self.rows);
        }
        with_route(self.route, self.gating.words(self.rows), self.name(), |route| {
            let (place_of, weights) = (&route[table.place_of()], &route[table.weights()]);
            let out = RowsMut::new(dst, width);
            for_rows(&self.on.pool, self.rows, per_token * width, &|row| {
                // SAFETY: each task is given its own row.
                let out = unsafe { out.row(row) };
                for choice in row * per_token..(row + 1) * per_token {
                    let weight = f32::from_bits(weights[choice]);
                    let from = &src[place_of[choice] as usize * width..][..width];
                    out.iter_mut().zip(from).for_each(|(o, x)| *o += weight * x);
                }
            });
            Ok(())
        })
    }
}

/// `dst[row] *= σ(gate[row])` over the first `rows` rows; dst f32 or bf16 `[capacity, width]`, gate f32 `[capacity, 1]`.
pub struct GateRows<'a> {
    pub rows: usize,
    pub width: usize,
    pub on: &'a Exec,
}

impl InplaceOp2 for GateRows<'_> {
    fn name(&self) -> &'static str {
        "gate_rows"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, gate: &CudaStorage, gl: &Layout) -> Result<()> {
        let (dst, gates) = (Place::of_cuda(dst, dl)?, Place::of_cuda(gate, gl)?);
        self.launch(self.on.launcher(self.name())?, dst, gates)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, gate: &CpuStorage, gl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(gate, gl)?);
        }
        let gates = storage::read_f32(gate, gl, self.name())?;
        match storage::write(dst, dl, self.name())? {
            ActivationsMut::F32(dst) => self.gate(dst, gates),
            ActivationsMut::Bf16(dst) => self.gate(dst, gates),
        }
    }
}

impl GateRows<'_> {
    fn gate<T: Element>(&self, dst: &mut [T], gates: &[f32]) -> Result<()> {
        if gates.len() < self.rows || dst.len() < self.rows * self.width {
            bail!("gate_rows: {} rows do not fit the given tensors", self.rows);
        }
        let out = RowsMut::new(dst, self.width);
        for_rows(&self.on.pool, self.rows, self.width, &|row| {
            let open = 1.0 / (1.0 + exp(-gates[row]));
            // SAFETY: each task is given its own row.
            unsafe { out.row(row) }.iter_mut().for_each(|x| *x = T::narrow(x.widen() * open));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
