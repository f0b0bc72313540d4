//! Experts that a checkpoint has in one tensor, as gpt-oss has them: each expert's own matrices out of it.
//!
//! `gate_up_proj` is `[experts, inputs, 2 × outputs]`, a gate and an up in turn, `down_proj` `[experts, inputs, outputs]`:
//! the matrices lie on their sides. In MXFP4 (OCP Microscaling Formats 1.0) they do not: of each row of outputs there are
//! `…_blocks` `[experts, outputs, inputs / 32, 16]`, two numbers a byte, and `…_scales` `[experts, outputs, inputs / 32]`,
//! exponents of two (`ops::blocks::mxfp4`).

use safetensors::Dtype;

use super::rows_cols;
use super::safetensors::TensorTable;
use crate::model::LoadError;
use crate::ops::blocks::{Blocks, TILE, mxfp4};
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightSlice};

/// Rows and columns that are turned at once, so that what is read and what is written stay cached.
const SIDE: usize = 32;

/// Whether a tensor holds the plain matrices of all experts.
pub(super) fn is_stack(name: &str) -> bool {
    name.ends_with(".mlp.experts.gate_up_proj")
}

/// What a tensor of one expert is within a stack.
pub(super) struct Stacked {
    /// Name of the stack, without what stands behind it for MXFP4.
    pub tensor: String,
    expert: usize,
    /// Every `step`-th output from `first` on.
    first: usize,
    step: usize,
    is_bias: bool,
}

impl Stacked {
    /// What a name stands for, such as `model.layers.0.mlp.experts.7.up_proj.weight`.
    pub fn of(name: &str) -> Option<Stacked> {
        let (before, after) = name.split_once(".mlp.experts.")?;
        let (expert, part) = after.split_once('.')?;
        let (matrix, kind) = part.split_once('.')?;
        let (stack, first, step) = match matrix {
            "gate_proj" => ("gate_up_proj", 0, 2),
            "up_proj" => ("gate_up_proj", 1, 2),
            "down_proj" => ("down_proj", 0, 1),
            _ => return None,
        };
        let (suffix, is_bias) = match kind {
            "weight" => ("", false),
            "bias" => ("_bias", true),
            _ => return None,
        };
        let tensor = format!("{before}.mlp.experts.{stack}{suffix}");
        Some(Stacked { tensor, expert: expert.parse().ok()?, first, step, is_bias })
    }

    /// That a stack has this expert, of this shape: how many experts there are.
    fn experts(&self, table: &TensorTable, tensor: &str, of_expert: &[usize]) -> Result<usize, LoadError> {
        match table.shape(tensor) {
            Some([experts, one @ ..]) if *experts > self.expert && one == of_expert => Ok(*experts),
            found => {
                let found = found.unwrap_or_default();
                let problem = match found {
                    [] => "is missing".into(),
                    found => format!(
                        "has shape {found:?}, the configuration asks for {of_expert:?} of each of at least {} experts",
                        self.expert + 1
                    ),
                };
                Err(LoadError::tensor(&table.file_of(tensor), tensor, problem))
            }
        }
    }

    /// Checks shapes and reads no numbers; `shape`: of the expert's own tensor.
    pub fn check(&self, table: &TensorTable, shape: &[usize]) -> Result<(), LoadError> {
        let (rows, cols) = rows_cols(shape);
        match self.is_bias {
            true => self.experts(table, &self.tensor, &[cols * self.step])?,
            false => self.experts(table, &self.tensor, &[cols, rows * self.step])?,
        };
        Ok(())
    }

    /// The expert's tensor, of the stack's type.
    pub fn weight(&self, table: &TensorTable, shape: &[usize]) -> Result<Weight, LoadError> {
        self.check(table, shape)?;
        let (rows, cols) = rows_cols(shape);
        let all = table.whole(&self.tensor)?;
        Ok(match all.slice() {
            WeightSlice::F32(all) => Weight::from_f32(self.turned(all, (rows, cols)), rows, cols),
            WeightSlice::F16(all) => Weight::from_f16(self.turned(all, (rows, cols)), rows, cols),
            WeightSlice::Bf16(all) => Weight::from_bf16(self.turned(all, (rows, cols)), rows, cols),
            WeightSlice::Fp8(_) | WeightSlice::Blocks(_) => {
                let problem = format!("is {}; F32, F16 and BF16 are read here", all.kind().name());
                return Err(LoadError::tensor(&table.file_of(&self.tensor), &self.tensor, problem));
            }
        })
    }

    fn turned<T: Copy + Default>(&self, all: &[T], (rows, cols): (usize, usize)) -> Vec<T> {
        let own = &all[self.expert * rows * cols * self.step..][..rows * cols * self.step];
        if self.is_bias {
            return own.iter().skip(self.first).step_by(self.step).copied().collect();
        }
        let mut out = vec![T::default(); rows * cols];
        for first_row in (0..rows).step_by(SIDE) {
            for first_col in (0..cols).step_by(SIDE) {
                for row in first_row..(first_row + SIDE).min(rows) {
                    for col in first_col..(first_col + SIDE).min(cols) {
                        out[row * cols + col] = own[(col * rows + row) * self.step + self.first];
                    }
                }
            }
        }
        out
    }

    /// Whether a checkpoint has it in MXFP4.
    pub fn is_mxfp4(&self, table: &TensorTable) -> bool {
        !self.is_bias && table.has(&self.part("blocks"))
    }

    fn part(&self, part: &str) -> String {
        format!("{}_{part}", self.tensor)
    }

    /// Of MXFP4: checks the shapes; how many experts there are.
    pub fn check_mxfp4(&self, table: &TensorTable, (rows, cols): (usize, usize)) -> Result<usize, LoadError> {
        if !cols.is_multiple_of(TILE) {
            let (name, problem) =
                (self.part("blocks"), format!("is of rows of {cols}, which are no whole blocks"));
            return Err(LoadError::tensor(&table.file_of(&name), &name, problem));
        }
        let (outputs, blocks) = (rows * self.step, cols / TILE);
        self.experts(table, &self.part("scales"), &[outputs, blocks])?;
        self.experts(table, &self.part("blocks"), &[outputs, blocks, TILE / 2])
    }

    /// The expert's matrix out of MXFP4.
    ///
    /// # Errors
    /// Shapes and types of other things, a scale beyond f16.
    pub fn mxfp4(
        &self,
        table: &TensorTable,
        (rows, cols): (usize, usize),
        pool: &Pool,
    ) -> Result<Weight, LoadError> {
        let experts = self.check_mxfp4(table, (rows, cols))?;
        let (outputs, blocks) = (rows * self.step, cols / TILE);
        let codes = table.part(&self.part("blocks"), &[experts, outputs, blocks, TILE / 2], &[Dtype::U8])?;
        let scales = table.part(&self.part("scales"), &[experts, outputs, blocks], &[Dtype::U8])?;
        let place = |row: usize, block: usize| {
            (self.expert * outputs + row * self.step + self.first) * blocks + block
        };
        let made = Blocks::of_codes(mxfp4::FORMAT, (rows, cols), pool, &|row, block, to| {
            let at = place(row, block);
            for (two, byte) in to.chunks_exact_mut(2).zip(&codes.bytes[at * TILE / 2..][..TILE / 2]) {
                (two[0], two[1]) = (mxfp4::code(*byte), mxfp4::code(byte >> 4));
            }
            mxfp4::half_scale(scales.bytes[at])
        });
        made.map(Weight::from_blocks).map_err(|e| LoadError::tensor(scales.file, &scales.name, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_parts_of_stacks() {
        let of =
            |name: &str| Stacked::of(name).map(|s| (s.tensor.clone(), s.expert, s.first, s.step, s.is_bias));
        let stack = |name: &str| format!("model.layers.3.mlp.experts.{name}");
        assert_eq!(of(&stack("12.up_proj.weight")), Some((stack("gate_up_proj"), 12, 1, 2, false)));
        assert_eq!(of(&stack("0.gate_proj.bias")), Some((stack("gate_up_proj_bias"), 0, 0, 2, true)));
        assert_eq!(of(&stack("5.down_proj.weight")), Some((stack("down_proj"), 5, 0, 1, false)));
        for other in
            [stack("x.up_proj.weight"), stack("1.w1.weight"), "model.layers.3.mlp.up_proj.weight".into()]
        {
            assert_eq!(of(&other), None);
        }
    }
}
