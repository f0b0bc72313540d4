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

use super::quantization::Quantization;
use super::rows_cols;
use crate::model::LoadError;
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

/// Every tensor of a checkpoint by name.
pub struct TensorTable {
    folder: String,
    shards: Vec<Shard>,
    entries: HashMap<String, Entry>,
    quantization: Option<Quantization>,
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
            quantization: None,
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
            quantization: None,
        };
        table.add(file.into(), Bytes::Static(bytes))?;
        Ok(table)
    }

    /// What the configuration says of FP8 weights.
    #[must_use]
    pub fn with_quantization(mut self, quantization: Option<Quantization>) -> TensorTable {
        self.quantization = quantization;
        self
    }

    /// The bytes of each file, in order.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.shards.iter().map(|s| s.bytes.as_slice())
    }

    fn add(&mut self, file: String, bytes: Bytes) -> Result<(), LoadError> {
        let shard = self.shards.len();
        {
            let slice = bytes.as_slice();
            let tensors = SafeTensors::deserialize(slice).map_err(|e| LoadError::file(&file, e))?;
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
        self.quantization.is_some()
    }

    pub fn is_mapped(&self) -> bool {
        self.shards.iter().all(|s| matches!(s.bytes, Bytes::Mapped(_)))
    }

    pub fn file_of(&self, name: &str) -> String {
        match (self.entries.get(name), self.shards.as_slice()) {
            (Some(entry), shards) => shards[entry.shard].file.clone(),
            (None, [only]) => only.file.clone(),
            (None, _) => self.folder.clone(),
        }
    }

    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<WeightType, LoadError> {
        let file = self.file_of(name);
        let entry = self.entries.get(name).ok_or_else(|| LoadError::tensor(&file, name, "is missing"))?;
        if entry.shape != shape {
            let problem = format!("has shape {:?}, the configuration asks for {shape:?}", entry.shape);
            return Err(LoadError::tensor(&file, name, problem));
        }
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

    /// The tensor as stored, FP8 with its scales.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
        let weight = self.numbers(name, shape)?;
        if weight.kind() != WeightType::Fp8 {
            return Ok(weight);
        }
        let (scales, file, data) = self.scales_of(name)?;
        let (rows, cols) = (weight.rows(), weight.cols());
        let block = self.block_of_scales(&scales, rows, cols).ok_or_else(|| {
            let found = &self.entries[&scales].shape;
            let blocks = match self.quantization.and_then(|q| q.block) {
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
        if let Some((r, c)) = self.quantization.and_then(|q| q.block)
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
        let kind = self.check(name, shape)?;
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
