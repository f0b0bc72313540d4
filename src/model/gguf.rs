//! Models of one GGUF file (llama.cpp's format): weights, configuration, tokenizer and chat template.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

mod config;
mod cursor;
mod header;
mod tokenizer;

use config::Described;
pub use header::HeaderError;

#[cfg(test)]
mod tests;

use header::{Entry, Header, Metadata};

use super::LoadError;
use super::arch;
use super::checkpoint::{Checkpoint, TextFiles, TokenizerSource};
use super::decoder;
use super::spec::{DecoderSpec, ExpertSpec};
use super::weights::{WeightSource, rows_cols};
use crate::ops::blocks::Blocks;
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightType};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// An open file, its header read.
pub struct GgufTable {
    file: String,
    map: Arc<Mmap>,
    header: Header,
    /// Puts blocks into our layout.
    pool: Arc<Pool>,
}

impl GgufTable {
    /// # Errors
    /// A file that cannot be read, or whose header says what it does not hold.
    pub fn open(path: &Path, pool: &Arc<Pool>) -> Result<GgufTable, LoadError> {
        let file = File::open(path).map_err(|e| LoadError::io(path, e))?;
        // SAFETY: the file is mapped read-only; one that is rewritten while it is served is the operator's fault and
        // documented as such.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(path, e))?;
        let header = Header::read(&map).map_err(|e| LoadError::file(path, e))?;
        Ok(GgufTable { file: path.display().to_string(), map: Arc::new(map), header, pool: pool.clone() })
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata { header: &self.header, bytes: &self.map }
    }

    /// All of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// What a tensor of HuggingFace's name is called here, and which expert's part of it is meant.
    fn own_name(&self, name: &str) -> Result<(String, Option<usize>), LoadError> {
        let described = Described::of(self.metadata()).map_err(|e| LoadError::file(&self.file, e))?;
        let own = described.name(name);
        own.ok_or_else(|| LoadError::tensor(&self.file, name, "GGUF has no name for it"))
    }

    /// Bytes of all weights as they will be held, and of those that a step reads: the embedding only where it is the
    /// head, too.
    /// Of `experts` a step of one row reads its own.
    pub fn held_bytes(&self, experts: Option<&ExpertSpec>) -> (u64, u64) {
        let held = |entry: Entry| entry.kind.size(entry.shape().iter().product::<usize>()) as u64;
        let metadata = self.metadata();
        let all = metadata.tensors().map(|(_, entry)| held(entry)).sum();
        let looked_up = match metadata.tensor(HEAD) {
            Some(_) => metadata.tensor(EMBEDDING).map_or(0, held),
            None => 0,
        };
        let stacked: u64 =
            metadata.tensors().filter(|(name, _)| is_stack(name)).map(|(_, entry)| held(entry)).sum();
        (all, all - looked_up - experts.map_or(0, |experts| experts.gating.unread(stacked)))
    }

    pub fn has_blocks(&self) -> bool {
        self.metadata().tensors().any(|(_, entry)| matches!(entry.kind, WeightType::Blocks(_)))
    }

    /// The type that most numbers of the layers have, and that of the head.
    pub fn kinds(&self) -> (WeightType, WeightType) {
        let metadata = self.metadata();
        let head =
            metadata.tensor(HEAD).or_else(|| metadata.tensor(EMBEDDING)).map_or(WeightType::F32, |e| e.kind);
        let mut numbers: Vec<(WeightType, usize)> = Vec::new();
        for (_, entry) in metadata.tensors().filter(|(name, _)| name.starts_with("blk.")) {
            let count: usize = entry.shape().iter().product();
            match numbers.iter_mut().find(|(kind, _)| *kind == entry.kind) {
                Some((_, all)) => *all += count,
                None => numbers.push((entry.kind, count)),
            }
        }
        (numbers.into_iter().max_by_key(|(_, count)| *count).map_or(head, |(kind, _)| kind), head)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.own_name(name).is_ok_and(|(own, _)| self.metadata().has_tensor(&own))
    }

    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.entry(name, shape).map(|_| ())
    }

    /// The name of a tensor, its entry, and where what is meant of it lies.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<(String, Entry, Range<usize>), LoadError> {
        let (own, expert) = self.own_name(name)?;
        let fail = |problem: String| LoadError::tensor(&self.file, &own, problem);
        let Some(entry) = self.metadata().tensor(&own) else { return Err(fail("is missing".into())) };
        let (place, found) = (entry.place(), entry.shape());
        // A product of one output may be a vector.
        let same = |found: &[usize]| found == shape || shape.first() == Some(&1) && found == &shape[1..];
        let part = match (expert, found) {
            (None, whole) if same(whole) => Some(place),
            (Some(expert), [experts, one @ ..]) if expert < *experts && same(one) => {
                let bytes = place.len() / experts;
                Some(place.start + expert * bytes..place.start + (expert + 1) * bytes)
            }
            _ => None,
        };
        match (part, expert) {
            (Some(part), _) => Ok((own, entry, part)),
            (None, None) => Err(fail(format!("has shape {found:?}, the metadata asks for {shape:?}"))),
            (None, Some(expert)) => Err(fail(format!(
                "has shape {found:?}, the metadata asks for {shape:?} of each of more than {expert}"
            ))),
        }
    }

    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight, LoadError> {
        let (own, entry, place) = self.entry(name, shape)?;
        let (rows, cols) = rows_cols(shape);
        let file = &self.file;
        match entry.kind {
            WeightType::Blocks(format) => {
                let (bytes, pool) = (&self.map[place], &self.pool);
                let blocks = match entry.mxfp4 {
                    true => Blocks::from_ggml_mxfp4(bytes, (rows, cols), pool),
                    false => Blocks::from_ggml(format, bytes, (rows, cols), pool),
                };
                Ok(Weight::from_blocks(blocks.map_err(|e| LoadError::tensor(file, &own, e))?))
            }
            kind => Weight::mapped(self.map.clone(), place.start, rows, cols, kind)
                .map_err(|e| LoadError::tensor(file, &own, e)),
        }
    }

    /// A tensor that the architecture does not have would change what the model says, if it were read.
    fn check_all_are_used(&self, spec: &DecoderSpec) -> Result<(), LoadError> {
        /// Read apart, or made anew from the metadata.
        const BESIDE: [&str; 3] =
            ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
        // No more than the file has, whatever the metadata says of layers and experts.
        let mut own = HashSet::new();
        for (name, _) in decoder::tensors(spec) {
            let (name, _) = self.own_name(&name)?;
            if self.metadata().has_tensor(&name) {
                own.insert(name);
            }
        }
        let known = |name: &str| own.contains(name) || BESIDE.contains(&name);
        let experts = spec.experts.as_ref().map_or(0, |experts| experts.gating.experts);
        if let Some((name, entry)) = self
            .metadata()
            .tensors()
            .find(|(name, entry)| is_stack(name) && entry.shape().first() != Some(&experts))
        {
            let problem = format!("has shape {:?}, and there are {experts} experts", entry.shape());
            return Err(LoadError::tensor(&self.file, name, problem));
        }
        match self.metadata().tensors().find(|(name, _)| !known(name)) {
            Some((name, _)) => Err(LoadError::tensor(
                &self.file,
                name,
                "is none of this architecture's, as it is known here",
            )),
            None => Ok(()),
        }
    }

    /// A vector by its own name, widened.
    fn vector(&self, own: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(entry) = self.metadata().tensor(own) else { return Ok(None) };
        let cols = entry.shape().iter().product();
        if let WeightType::Blocks(format) = entry.kind {
            let problem = format!("is {}; F32, F16 and BF16 are read here", format.name());
            return Err(LoadError::tensor(&self.file, own, problem));
        }
        let weight = Weight::mapped(self.map.clone(), entry.place().start, 1, cols, entry.kind);
        let weight = weight.map_err(|e| LoadError::tensor(&self.file, own, e))?;
        Ok(Some(weight.to_f32().f32s().to_vec()))
    }
}

/// Whether a tensor holds a matrix for each expert.
fn is_stack(name: &str) -> bool {
    name.ends_with("_exps.weight") || name.ends_with("_exps.bias")
}

/// Opens a model.
///
/// # Errors
/// As [`Checkpoint::open`]; each names the file and the key or the tensor.
pub(super) fn open(path: &Path, pool: &Arc<Pool>) -> Result<Checkpoint, LoadError> {
    let table = GgufTable::open(path, pool)?;
    let fail = |e: HeaderError| LoadError::file(path, e);
    let metadata = table.metadata();
    let parts = metadata.whole("split.count").map_err(fail)?;
    if parts.is_some_and(|parts| parts > 1) {
        return Err(LoadError::file(
            path,
            "is one of several parts; merge them (`llama-gguf-split --merge`)",
        ));
    }
    let described = Described::of(metadata).map_err(fail)?;
    let config = described.config().map_err(fail)?;
    let own_words = |e| described.in_own_words(e);
    let mut spec = arch::spec_of(&table.file, &config).map_err(own_words)?;
    described.adjust(&mut spec, fail, |name| table.vector(name))?;
    arch::check(&table.file, &config, &spec).map_err(own_words)?;
    table.check_all_are_used(&spec)?;
    // Before a tokenizer is made, which takes more room than the file has bytes for it.
    decoder::tensors(&spec).try_for_each(|(name, shape)| table.check(&name, &shape))?;
    let text = tokenizer::Text::of(metadata).map_err(fail)?;
    let text = TextFiles {
        tokenizer: TokenizerSource::Json { file: table.file.clone(), bytes: text.tokenizer },
        tokenizer_config: text.config,
        chat_template: text.chat_template,
        generation_config: text.generation,
    };
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    Ok(Checkpoint { name, spec, config, text, source: WeightSource::Gguf(table), folder: None })
}
