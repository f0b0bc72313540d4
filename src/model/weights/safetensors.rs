//! Safetensors: one file, several with an index, or bytes in the binary.
//!
//! Files are mapped, so weights stay in the page cache. The crate's own checks cover the header
//! (size, overlaps, bounds); ours add the name, the shape and the type the decoder expects.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::packed::FourBitTable;
use super::quantization::Quantization;
use super::rows_cols;
use super::stacks::{self, Stacked};
use crate::model::LoadError;
use crate::model::spec::FloatType;
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightType};

enum Bytes {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(m) => m,
            Bytes::Static(s) => s,
        }
    }
}

struct Shard {
    file: String,
    bytes: Bytes,
}

#[derive(Clone)]
struct Entry {
    shard: usize,
    offset: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// A tensor's bytes.
pub(super) struct Part<'a> {
    pub file: &'a str,
    pub name: String,
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

/// Every tensor of a checkpoint by name.
pub struct TensorTable {
    folder: String,
    shards: Vec<Shard>,
    entries: HashMap<String, Entry>,
    /// Of FP8: the blocks that have a scale each, if there are such.
    fp8: Option<Option<(usize, usize)>>,
    four_bit: Option<FourBitTable>,
}

impl TensorTable {
    /// Whether a folder has what [`TensorTable::open`] reads.
    pub fn is_in(folder: &Path) -> bool {
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|file| folder.join(file).is_file())
    }

    /// The tensors of a folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn open(folder: &Path) -> Result<TensorTable, LoadError> {
        let index = folder.join("model.safetensors.index.json");
        let files = if index.is_file() {
            shard_files(folder, &index)?
        } else {
            vec![folder.join("model.safetensors")]
        };
        let mut table = TensorTable {
            folder: folder.display().to_string(),
            shards: Vec::new(),
            entries: HashMap::new(),
            fp8: None,
            four_bit: None,
        };
        for path in files {
            let file = File::open(&path).map_err(|e| LoadError::io(&path, e))?;
            // SAFETY: the file is mapped read-only; a checkpoint that is rewritten while it is served is
            // the operator's fault and documented as such.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(&path, e))?;
            table.add(path.display().to_string(), Bytes::Mapped(Arc::new(map)))?;
        }
        Ok(table)
    }

    /// The tensors of a file that is compiled into the binary.
    pub fn embedded(file: &str, bytes: &'static [u8]) -> Result<TensorTable, LoadError> {
        let mut table = TensorTable {
            folder: file.into(),
            shards: Vec::new(),
            entries: HashMap::new(),
            fp8: None,
            four_bit: None,
        };
        table.add(file.into(), Bytes::Static(bytes))?;
        Ok(table)
    }

    /// With what the configuration says of quantised weights. `tensors`: those of the model; `pool` lays out packed ones.
    ///
    /// # Errors
    /// Packed matrices that are not what the configuration says.
    pub fn with_quantization(
        mut self,
        quantization: Option<Quantization>,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
        pool: &Arc<Pool>,
    ) -> Result<TensorTable, LoadError> {
        match quantization {
            None => {}
            Some(Quantization::Fp8 { block }) => self.fp8 = Some(block),
            Some(Quantization::FourBit(how)) => {
                self.four_bit = Some(FourBitTable::of(&self, how, tensors, pool)?);
            }
        }
        Ok(self)
    }

    /// The bytes of each file, in order.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.shards.iter().map(|s| s.bytes.as_slice())
    }

    fn add(&mut self, file: String, bytes: Bytes) -> Result<(), LoadError> {
        let shard = self.shards.len();
        {
            let slice = bytes.as_slice();
            let tensors = SafeTensors::deserialize(slice)
                .map_err(|e| LoadError::file(&file, format!("is no whole safetensors file: {e}")))?;
            for (name, view) in tensors.iter() {
                let offset = view.data().as_ptr() as usize - slice.as_ptr() as usize;
                let entry = Entry { shard, offset, shape: view.shape().to_vec(), dtype: view.dtype() };
                if self.entries.insert(name.to_string(), entry).is_some() {
                    return Err(LoadError::tensor(&file, name, "is in more than one shard"));
                }
            }
        }
        self.shards.push(Shard { file, bytes });
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub fn is_fp8(&self) -> bool {
        self.fp8.is_some()
    }

    pub fn four_bit(&self) -> Option<&FourBitTable> {
        self.four_bit.as_ref()
    }

    pub fn is_mapped(&self) -> bool {
        self.shards.iter().all(|s| matches!(s.bytes, Bytes::Mapped(_)))
    }

    pub(super) fn has_stacks(&self) -> bool {
        self.entries.keys().any(|name| stacks::is_stack(name))
    }

    pub fn file_of(&self, name: &str) -> String {
        match (self.entries.get(name), self.shards.as_slice()) {
            (Some(entry), shards) => shards[entry.shard].file.clone(),
            (None, [only]) => only.file.clone(),
            (None, _) => self.folder.clone(),
        }
    }

    /// Whether a tensor can be read.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        match &self.four_bit {
            // It was checked when it was found.
            Some(packed) if packed.has(name) => Ok(()),
            _ => match self.stacked(name) {
                Some(stacked) => stacked.check(self, shape),
                None => self.check_plain(name, shape).map(|_| ()),
            },
        }
    }

    /// What stands for a tensor that is not there by itself.
    fn stacked(&self, name: &str) -> Option<Stacked> {
        Stacked::of(name).filter(|stacked| !self.has(name) && self.has(&stacked.tensor))
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A tensor of any shape, as one row.
    pub(super) fn whole(&self, name: &str) -> Result<Weight, LoadError> {
        let shape = self.shape(name).map(<[usize]>::to_vec).unwrap_or_default();
        self.numbers(name, &shape)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, LoadError> {
        let file = self.file_of(name);
        let Some(entry) = self.entries.get(name) else {
            return Err(LoadError::tensor(&file, name, self.missing(name)));
        };
        if entry.shape != shape {
            let problem = format!("has shape {:?}, the configuration asks for {shape:?}", entry.shape);
            return Err(LoadError::tensor(&file, name, problem));
        }
        Ok(entry)
    }

    /// That a tensor is missing, and what may be the reason.
    fn missing(&self, name: &str) -> String {
        let module = name.strip_suffix(".weight");
        match (module.map(|module| format!("{module}.qweight")), &self.four_bit) {
            (Some(packed), Some(_)) => format!("is missing, and so is `{packed}`"),
            (Some(packed), None) if self.has(&packed) => {
                format!("is missing; `{packed}` is there, and nothing says how it is packed")
            }
            _ => match Stacked::of(name).filter(|stacked| stacked.is_mxfp4(self)) {
                Some(stacked) => format!(
                    "is missing; `{}_blocks` is there, and no `quantization_config` says that it is mxfp4",
                    stacked.tensor
                ),
                None => "is missing".into(),
            },
        }
    }

    /// The type that a tensor's numbers are stored in; `None` where it is not there, or no plain number.
    pub fn float_type(&self, name: &str) -> Option<FloatType> {
        let stacked = self.stacked(name).map(|stacked| stacked.tensor);
        match self.entries.get(stacked.as_deref().unwrap_or(name))?.dtype {
            Dtype::F32 => Some(FloatType::F32),
            Dtype::F16 => Some(FloatType::F16),
            Dtype::BF16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    fn check_plain(&self, name: &str, shape: &[usize]) -> Result<WeightType, LoadError> {
        let (file, entry) = (self.file_of(name), self.entry(name, shape)?);
        match entry.dtype {
            Dtype::F32 => Ok(WeightType::F32),
            Dtype::F16 => Ok(WeightType::F16),
            Dtype::BF16 => Ok(WeightType::Bf16),
            Dtype::F8_E4M3 => Ok(WeightType::Fp8),
            other => Err(LoadError::tensor(
                &file,
                name,
                format!("has type {other:?}; F32, F16, BF16 and F8_E4M3 are supported"),
            )),
        }
    }

    /// The bytes of a tensor of this shape and one of these types.
    pub(super) fn part(&self, name: &str, shape: &[usize], types: &[Dtype]) -> Result<Part<'_>, LoadError> {
        let entry = self.entry(name, shape)?;
        let Shard { file, bytes } = &self.shards[entry.shard];
        if !types.contains(&entry.dtype) {
            let problem = format!("has type {:?}, and {types:?} is read", entry.dtype);
            return Err(LoadError::tensor(file, name, problem));
        }
        let length = shape.iter().product::<usize>() * entry.dtype.bitsize() / 8;
        let bytes = &bytes.as_slice()[entry.offset..][..length];
        Ok(Part { file, name: name.into(), dtype: entry.dtype, bytes })
    }

    /// Refuses a tensor that is there and has another number than 0.
    pub(super) fn check_zeros(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        if !self.has(name) {
            return Ok(());
        }
        match self.numbers(name, shape)?.to_f32().f32s().iter().find(|x| **x != 0.0) {
            None => Ok(()),
            Some(x) => {
                let problem = format!("has {x}, and the architecture has no such bias");
                Err(LoadError::tensor(&self.file_of(name), name, problem))
            }
        }
    }

    /// The tensor as stored, FP8 with its scales, four bits in blocks.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
        if let Some(packed) = self.four_bit.as_ref().filter(|packed| packed.has(name)) {
            return packed.weight(self, name, rows_cols(shape));
        }
        if let Some(stacked) = self.stacked(name) {
            return stacked.weight(self, shape);
        }
        let weight = self.numbers(name, shape)?;
        if weight.kind() != WeightType::Fp8 {
            return Ok(weight);
        }
        let (scales, file, data) = self.scales_of(name)?;
        let (rows, cols) = (weight.rows(), weight.cols());
        let block = self.block_of_scales(&scales, rows, cols).ok_or_else(|| {
            let found = &self.entries[&scales].shape;
            let blocks = match self.fp8.flatten() {
                Some((r, c)) => format!(", nor blocks of {r} × {c}"),
                None => String::new(),
            };
            let problem =
                format!("has shape {found:?}: not one scale, not one for each of {rows} rows{blocks}");
            LoadError::tensor(&file, &scales, problem)
        })?;
        weight.with_scales(data, block).map_err(|e| LoadError::tensor(&file, &scales, e))
    }

    /// The scales that belong to an FP8 tensor: their name, their file, the numbers.
    fn scales_of(&self, name: &str) -> Result<(String, String, Vec<f32>), LoadError> {
        let names = ["_scale_inv", "_scale"].map(|suffix| format!("{name}{suffix}"));
        let Some(scales) = names.iter().find(|n| self.entries.contains_key(*n)) else {
            let problem = format!("is FP8, and neither `{}` nor `{}` is there", names[0], names[1]);
            return Err(LoadError::tensor(&self.file_of(name), name, problem));
        };
        let data = self.numbers(scales, &self.entries[scales].shape)?.to_f32().f32s().to_vec();
        Ok((scales.clone(), self.file_of(scales), data))
    }

    /// Rows and columns of the blocks that a tensor of scales is for.
    fn block_of_scales(&self, scales: &str, rows: usize, cols: usize) -> Option<(usize, usize)> {
        let shape = self.entries[scales].shape.as_slice();
        if let Some((r, c)) = self.fp8.flatten()
            && shape == [rows.div_ceil(r), cols.div_ceil(c)]
        {
            return Some((r, c));
        }
        match shape {
            [] | [1] | [1, 1] => Some((rows, cols)),
            [n] | [n, 1] if *n == rows => Some((1, cols)),
            _ => None,
        }
    }

    /// A tensor of one number, where there is one.
    pub(super) fn scalar(&self, name: &str) -> Result<Option<f32>, LoadError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        match entry.shape.as_slice() {
            [] | [1] => Ok(Some(self.numbers(name, &entry.shape)?.get(0))),
            other => {
                let problem = format!("has shape {other:?} where one number is needed");
                Err(LoadError::tensor(&self.file_of(name), name, problem))
            }
        }
    }

    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
        let kind = self.check_plain(name, shape)?;
        let (rows, cols) = rows_cols(shape);
        let entry = &self.entries[name];
        let shard = &self.shards[entry.shard];
        match &shard.bytes {
            Bytes::Mapped(map) => Weight::mapped(map.clone(), entry.offset, rows, cols, kind)
                .map_err(|e| LoadError::tensor(&shard.file, name, e)),
            Bytes::Static(bytes) => {
                let data = &bytes[entry.offset..entry.offset + rows * cols * kind.bytes()];
                Ok(Weight::from_bytes(data, rows, cols, kind))
            }
        }
    }
}

/// The distinct shard files an index names. Only plain names inside the folder are followed.
fn shard_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let text = std::fs::read(index).map_err(|e| LoadError::io(index, e))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| LoadError::file(index, e))?;
    let map = json
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| LoadError::file(index, "has no object `weight_map`"))?;
    let mut files = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|f| {
            Path::new(f).components().count() == 1 && Path::new(f).file_name().is_some_and(|n| n == *f)
        });
        let name = name.ok_or_else(|| {
            LoadError::tensor(&index.display().to_string(), tensor, format!("{file} is not a file name"))
        })?;
        files.insert(folder.join(name));
    }
    Ok(files.into_iter().collect())
}
