//! Where a decoder's numbers come from: safetensors or GGUF files, bytes in the binary, or a seed.
//!
//! A source answers by tensor name; it checks name, shape and type before it reads a number.

pub mod four_bit;
pub mod packed;
pub mod quantization;
pub mod safetensors;
mod stacks;
pub mod synthetic;

use crate::model::LoadError;
use crate::model::gguf::GgufTable;
use crate::ops::weight::Weight;

/// One of the places weights come from.
pub enum WeightSource {
    Safetensors(safetensors::TensorTable),
    Gguf(GgufTable),
    Synthetic(synthetic::Generator),
}

impl WeightSource {
    /// Checks that the tensor is there with this shape, reading no weights.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        match self {
            WeightSource::Safetensors(table) => table.check(name, shape),
            WeightSource::Gguf(table) => table.check(name, shape),
            WeightSource::Synthetic(_) => Ok(()),
        }
    }

    /// Whether there is a tensor of this name. A seed makes those that are asked for, and has none by itself.
    pub fn has(&self, name: &str) -> bool {
        match self {
            WeightSource::Safetensors(table) => table.has(name),
            WeightSource::Gguf(table) => table.has(name),
            WeightSource::Synthetic(_) => false,
        }
    }

    /// The tensor as stored; a vector is one row.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
        match self {
            WeightSource::Safetensors(table) => table.weight(name, shape),
            WeightSource::Gguf(table) => table.weight(name, shape),
            WeightSource::Synthetic(generator) => Ok(generator.weight(name, shape)),
        }
    }

    /// A tensor of one number, where the checkpoint has it.
    pub fn scalar(&self, name: &str) -> Result<Option<f32>, LoadError> {
        match self {
            WeightSource::Safetensors(table) => table.scalar(name),
            WeightSource::Gguf(_) | WeightSource::Synthetic(_) => Ok(None),
        }
    }

    /// The file a tensor lies in, for messages.
    pub fn file_of(&self, name: &str) -> String {
        match self {
            WeightSource::Safetensors(table) => table.file_of(name),
            WeightSource::Gguf(table) => table.file().into(),
            WeightSource::Synthetic(_) => "synthetic weights".into(),
        }
    }

    /// True when the configuration says that products have FP8 weights.
    pub fn is_fp8(&self) -> bool {
        matches!(self, WeightSource::Safetensors(t) if t.is_fp8())
    }

    /// The matrices of four bits, when the configuration says that there are such.
    pub fn four_bit(&self) -> Option<&packed::FourBitTable> {
        match self {
            WeightSource::Safetensors(table) => table.four_bit(),
            WeightSource::Gguf(_) | WeightSource::Synthetic(_) => None,
        }
    }

    /// True when weights stay in mapped files.
    pub fn is_mapped(&self) -> bool {
        matches!(self, WeightSource::Safetensors(t) if t.is_mapped())
    }

    /// True when the experts of a layer lie in one tensor, out of which each is copied.
    pub fn has_stacks(&self) -> bool {
        matches!(self, WeightSource::Safetensors(t) if t.has_stacks())
    }
}

/// `[rows, cols]` of a tensor of one or two dimensions.
pub(crate) fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match shape {
        [cols] => (1, *cols),
        [rows, cols] => (*rows, *cols),
        _ => (1, shape.iter().product()),
    }
}
