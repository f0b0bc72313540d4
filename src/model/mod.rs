//! L2. A transformer as data: what a checkpoint says it is, its weights, and one step through it.
//!
//! `checkpoint` opens a folder, a preset or the embedded demo; `arch` turns its configuration into a
//! `DecoderSpec`; `decoder` runs any spec; `runner` owns what a device needs to run steps. `encoder` is for models that
//! embed or score texts.

pub mod arch;
pub mod checkpoint;
pub mod decoder;
pub mod encoder;
pub mod gguf;
pub mod graphs;
pub mod input;
pub mod kv_cache;
pub mod pooling;
pub mod runner;
pub mod spec;
pub mod weights;
pub mod workspace;

pub use checkpoint::Checkpoint;

/// Why a checkpoint cannot be served. Names the file and the tensor or key.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    // No source: who prints the chain would say it twice.
    #[error("{file}: {problem}")]
    Io { file: String, problem: std::io::Error },
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error("{file}: {key}: {problem}")]
    Config { file: String, key: String, problem: String },
    #[error("{file}: tensor `{tensor}`: {problem}")]
    Tensor { file: String, tensor: String, problem: String },
    #[error(
        "no model `{0}`: not a folder with a config.json, no GGUF file, not `demo`, not a preset (see `hashwatt models`), no org/name of the hub"
    )]
    Unknown(String),
    #[error("the device could not hold the model: {0}")]
    Device(String),
}

impl LoadError {
    pub(crate) fn io(file: impl AsRef<std::path::Path>, problem: std::io::Error) -> LoadError {
        LoadError::Io { file: file.as_ref().display().to_string(), problem }
    }
    pub(crate) fn file(file: impl AsRef<std::path::Path>, problem: impl ToString) -> LoadError {
        LoadError::File { file: file.as_ref().display().to_string(), problem: told(&problem.to_string()) }
    }
    pub(crate) fn tensor(file: &str, tensor: &str, problem: impl ToString) -> LoadError {
        let (tensor, problem) = (told(tensor), told(&problem.to_string()));
        LoadError::Tensor { file: file.into(), tensor, problem }
    }
    pub(crate) fn config(file: &str, key: impl Into<String>, problem: impl ToString) -> LoadError {
        LoadError::Config { file: file.into(), key: key.into(), problem: told(&problem.to_string()) }
    }
}

/// What a file says of itself, as a message has it: on one line, and not as long as its author likes.
fn told(text: &str) -> String {
    const MOST: usize = 800;
    crate::error::printable(text, MOST)
}

impl crate::error::Classified for LoadError {
    fn class(&self) -> crate::error::Class {
        crate::error::Class::Configuration
    }
}
