//! Launches of the kernels of `ops/cuda/experts.cu`, and of the products of each expert's rows (`gemv.cu`, `blocks.cu`,
//! `grouped.cu`).

use candle_core::{DType, Result, Tensor, bail};

use super::{Combine, GateRows, GroupRows, GroupedLinear, Route};
use crate::ops::blocks::GROUP;
use crate::ops::gemv;
use crate::ops::launch::{self, Arguments, Launch, Launcher, Place, Product};
use crate::ops::weight::WeightType;

/// As `ops/cuda/experts.cu` has them.
const WARP: u32 = 32;
const CHOOSE_WARPS: u32 = 4;
const LAY_OUT_WARPS: u32 = 32;
/// Of a block of the kernels that do the same to each element.
const THREADS: u32 = 256;
/// Bytes that `group_rows` copies at once.
const PIECE: usize = 16;
/// As `ops/cuda/grouped.cu` has them.
const TILE: usize = 64;
const TILE_BYTES: usize = 3 * 2 * TILE * (TILE + 8) * 2;
const TILE_THREADS: u32 = 128;
/// Places of an expert, on average, up to which weights of FP8 or in blocks are read as they are.
const MOST_OF_ROUNDED: usize = 32;

/// Of a route, an address for each of its parts.
struct Words {
    start: u64,
}

impl Words {
    fn of(route: Place, words: usize, operation: &str) -> Result<Words> {
        Ok(Words { start: route.holds(words, operation)?.is(DType::U32, operation)?.address })
    }

    fn read(route: &Tensor, words: usize, operation: &str) -> Result<Words> {
        Words::of(Place::of_tensor(route)?, words, operation)
    }

    fn at(&self, part: std::ops::Range<usize>) -> u64 {
        self.start + 4 * part.start as u64
    }
}

impl Route<'_> {
    pub(super) fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        self.check()?;
        let (gating, table) = (self.gating, self.gating.table(self.rows));
        let src = src.holds(self.rows * gating.experts, "route")?.is(DType::F32, "route")?;
        let words = Words::of(dst, gating.words(self.rows), "route")?;
        let (rows, experts, per_token) = (self.rows as u32, gating.experts as u32, gating.per_token as u32);
        let choose = Launch {
            kernel: "route_choose",
            types: &[],
            grid: [rows.div_ceil(CHOOSE_WARPS), 1, 1],
            threads: CHOOSE_WARPS * WARP,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(words.at(table.chosen()))
                .with(words.at(table.weights()))
                .with(src.address)
                .with(rows)
                .with(experts)
                .with(per_token)
                .with(u32::from(gating.normalised)),
        };
        let lay_out = Launch {
            kernel: "route_lay_out",
            types: &[],
            grid: [1, 1, 1],
            threads: LAY_OUT_WARPS * WARP,
            shared_bytes: 4 * experts,
            arguments: Arguments::default()
                .with(words.at(table.rows()))
                .with(words.at(table.place_of()))
                .with(words.at(table.starts()))
                .with(words.at(table.taken()))
                .with(words.at(table.chosen()))
                .with(table.places as u32)
                .with(experts)
                .with(per_token),
        };
        // SAFETY: the places hold the logits and the route of so many rows, as checked.
        unsafe {
            launcher.launch(&choose)?;
            launcher.launch(&lay_out)
        }
    }
}

impl GroupRows<'_> {
    pub(super) fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let (gating, table) = (self.gating, self.gating.table(self.rows));
        let words = Words::read(self.route, gating.words(self.rows), "group_rows")?;
        let dst = dst.holds(table.places * self.width, "group_rows")?;
        let src = src.holds(self.rows * self.width, "group_rows")?.is(dst.dtype, "group_rows")?;
        let bytes = self.width * dst.dtype.size_in_bytes();
        if !bytes.is_multiple_of(PIECE) || [dst, src].iter().any(|p| !p.address.is_multiple_of(PIECE as u64))
        {
            bail!("group_rows: rows of {bytes} bytes, where the kernel copies {PIECE} at once")
        }
        let launch = Launch {
            kernel: "group_rows",
            types: &[],
            grid: [table.places as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(dst.address)
                .with(src.address)
                .with(words.at(table.rows()))
                .with((bytes / PIECE) as u32),
        };
        // SAFETY: both hold their rows, as checked; the route names rows of this step.
        unsafe { launcher.launch(&launch) }
    }
}

impl GroupedLinear<'_> {
    pub(super) fn launch(
        &self,
        launcher: &dyn Launcher,
        stride: usize,
        dst: Place,
        src: Place,
    ) -> Result<()> {
        let [weight] = self.weights else {
            bail!("grouped_linear: {} matrices, where a device has one of all experts", self.weights.len())
        };
        let (gating, table) = (self.gating, self.gating.table(self.rows));
        let (n, k) = (self.outputs(), weight.cols());
        if stride < self.column + n || n * gating.experts != weight.rows() {
            bail!("grouped_linear: {n} outputs from column {} on in rows of {stride}", self.column)
        }
        let bias = match self.biases {
            [] => 0,
            [all] if all.rows() * all.cols() == weight.rows() && all.kind() == WeightType::F32 => {
                all.address()
            }
            _ => bail!("grouped_linear: biases that are not {} of f32", weight.rows()),
        };
        let words = Words::read(self.route, gating.words(self.rows), "grouped_linear")?;
        let dst = dst.holds(table.places * stride, "grouped_linear")?.is(DType::F32, "grouped_linear")?;
        let src = src.holds(table.places * k, "grouped_linear")?;
        let product = Product {
            dst: dst.address + 4 * self.column as u64,
            dst_stride: stride,
            src: src.address,
            src_type: src.dtype,
            weight: weight.address(),
            weight_type: weight.kind(),
            scales: weight.place_of_scales(),
            bias,
            rows: table.places,
            n: weight.rows(),
            k,
            accumulate: false,
        };
        let grouped = Grouped {
            product,
            outputs: n,
            starts: words.at(table.starts()),
            taken: words.at(table.taken()),
            experts: gating.experts.min(table.places),
        };
        // SAFETY: the places hold the rows, and a row the outputs, as checked; a route names places of this step.
        unsafe { grouped.run(launcher, self.takes_few(&product)) }
    }

    /// Whether weights are read as they are, by the kernels of few rows: of a route's places each expert has its share.
    fn takes_few(&self, product: &Product) -> bool {
        let by_tensor_cores = matches!(product.src_type, DType::BF16 | DType::F16);
        if self.on.batch_invariant || !by_tensor_cores {
            return true;
        }
        match product.weight_type {
            WeightType::Fp8 | WeightType::Blocks(_) => product.rows <= MOST_OF_ROUNDED * self.gating.experts,
            _ => self.rows <= gemv::MOST_ROWS,
        }
    }
}

/// A product of all experts' matrices, one below the other: `product.n` are the outputs of all.
struct Grouped {
    product: Product,
    /// Of an expert.
    outputs: usize,
    starts: u64,
    taken: u64,
    /// That have a place, at most.
    experts: usize,
}

impl Grouped {
    /// # Safety
    /// As [`Launcher::product`]; the route is of so many rows.
    unsafe fn run(self, launcher: &dyn Launcher, few: bool) -> Result<()> {
        // SAFETY: the caller's promise; the room is as large as the matrix.
        unsafe {
            if few {
                return launcher.launch(&self.few()?);
            }
            let p = &self.product;
            let Some(scales) = p.scales else { return launcher.launch(&self.many()?) };
            let room = launcher.room(p.n * p.k * p.src_type.size_in_bytes())?;
            let (multiply_out, product) = p.dequantised(scales, room)?;
            launcher.launch(&multiply_out)?;
            launcher.launch(&Grouped { product, ..self }.many()?)
        }
    }

    fn few(&self) -> Result<Launch> {
        let (p, n) = (&self.product, self.outputs);
        if let (WeightType::Blocks(format), Some(heads)) = (p.weight_type, p.scales) {
            if !n.is_multiple_of(GROUP) || p.src_type != DType::BF16 {
                bail!(
                    "grouped_linear: no product of {n} outputs of {} weights with {:?} activations",
                    format.name(),
                    p.src_type
                )
            }
            let before = Arguments::default().with(p.dst).with(p.src).with(p.weight).with(heads.address);
            return Ok(Launch {
                kernel: format.grouped_kernel(),
                types: &[],
                grid: [(n / GROUP) as u32, self.experts as u32, 1],
                threads: gemv::BLOCKS_THREADS,
                shared_bytes: gemv::BLOCKS_THREADS * gemv::MOST_ROWS as u32 * 4,
                arguments: self.end(before),
            });
        }
        let Some(types) = gemv::types(p.k, p.weight_type, p.scales, p.src_type) else {
            bail!(
                "grouped_linear: no product of {} weights of {} inputs with {:?} activations",
                p.weight_type.name(),
                p.k,
                p.src_type
            )
        };
        let before = Arguments::default().with(p.dst).with(p.src).with(gemv::Matrix::new(p.weight, p.scales));
        Ok(Launch {
            kernel: "grouped_gemv",
            types,
            grid: [n.div_ceil(gemv::WARPS) as u32, self.experts as u32, 1],
            threads: gemv::THREADS,
            shared_bytes: 0,
            arguments: self.end(before),
        })
    }

    fn many(&self) -> Result<Launch> {
        let (p, n) = (&self.product, self.outputs);
        if !p.k.is_multiple_of(8) {
            bail!("grouped_linear: {} inputs, where the kernel reads 8 at once", p.k)
        }
        Ok(Launch {
            kernel: "grouped_product",
            types: launch::types(p.src_type)?,
            grid: [n.div_ceil(TILE) as u32, self.experts as u32, 1],
            threads: TILE_THREADS,
            shared_bytes: TILE_BYTES as u32,
            arguments: self.end(Arguments::default().with(p.dst).with(p.src).with(p.weight)),
        })
    }

    /// What all of these kernels take last.
    fn end(&self, arguments: Arguments) -> Arguments {
        arguments
            .with(self.product.bias)
            .with(self.starts)
            .with(self.taken)
            .with(self.outputs as u32)
            .with(self.product.k as u32)
            .with(self.product.dst_stride as u32)
    }
}

impl Combine<'_> {
    pub(super) fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let (gating, table) = (self.gating, self.gating.table(self.rows));
        let words = Words::read(self.route, gating.words(self.rows), "combine")?;
        let dst = dst.holds(self.rows * self.width, "combine")?.is(DType::F32, "combine")?;
        let src = src.holds(table.places * self.width, "combine")?.is(DType::F32, "combine")?;
        let width = self.width as u32;
        let launch = Launch {
            kernel: "combine",
            types: &[],
            grid: [self.rows as u32, width.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(dst.address)
                .with(src.address)
                .with(words.at(table.place_of()))
                .with(words.at(table.weights()))
                .with(gating.per_token as u32)
                .with(width),
        };
        // SAFETY: both hold their rows, as checked; the route names places of this step.
        unsafe { launcher.launch(&launch) }
    }
}

impl GateRows<'_> {
    pub(super) fn launch(&self, launcher: &dyn Launcher, dst: Place, gates: Place) -> Result<()> {
        let dst = dst.holds(self.rows * self.width, "gate_rows")?;
        let gates = gates.holds(self.rows, "gate_rows")?.is(DType::F32, "gate_rows")?;
        let width = self.width as u32;
        let launch = Launch {
            kernel: "gate_rows",
            types: launch::types(dst.dtype)?,
            grid: [self.rows as u32, width.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default().with(dst.address).with(gates.address).with(width),
        };
        // SAFETY: both hold the rows, as checked.
        unsafe { launcher.launch(&launch) }
    }
}
