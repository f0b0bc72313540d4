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
}

impl TensorTable {
    /// The tensors of a folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn open(folder: &Path) -> Result<TensorTable, LoadError> {
        let index = folder.join("model.safetensors.index.json");
        let files = if index.is_file() {
            shard_files(folder, &index)?
        } else {
            vec![folder.join("model.safetensors")]
        };
        let mut table =
            TensorTable { folder: folder.display().to_string(), shards: Vec::new(), entries: HashMap::new() };
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
        let mut table = TensorTable { folder: file.into(), shards: Vec::new(), entries: HashMap::new() };
        table.add(file.into(), Bytes::Static(bytes))?;
        Ok(table)
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
            other => Err(LoadError::tensor(
                &file,
                name,
                format!("has type {other:?}; F32, F16 and BF16 are supported"),
            )),
        }
    }

    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
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
