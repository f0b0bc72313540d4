//! L4. Models of a hub that speaks Hugging Face's protocol, fetched into the cache that its own tools use.
//!
//! A name → a snapshot's folder (or its one GGUF file), whole and with every checksum right, or an error that says what to
//! do. Never a pickle. The layout of the cache is `hf-hub`'s; the transfer is ours, for hf-hub's own neither verifies
//! nor bounds a wait, and would bring a second HTTP client. Only `cli` asks: no request of a client leads here.
//! Without the feature `hub` names are known, and refused.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod checksum;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod listing;
mod name;
#[cfg(feature = "hub")]
mod server;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::name::HubName;
use crate::http_client::HttpError;

/// A secret that the hub wants for some repositories. Not printable.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None`: there is nothing but space.
    pub fn new(text: &str) -> Option<Token> {
        Some(Token(text.trim().to_string())).filter(|t| !t.0.is_empty())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Without a slash at its end.
    pub endpoint: String,
    pub cache: PathBuf,
    pub token: Option<Token>,
    /// Ask nobody.
    pub offline: bool,
    /// Before the first repetition of a request that failed; each further one waits twice as long.
    pub pause: Duration,
}

/// What is fetched, for who watches.
pub trait Progress {
    /// `there`: bytes of an earlier try.
    fn begin(&self, file: &str, size: u64, there: u64);
    fn reached(&self, bytes: u64);
    fn end(&self);
    /// Why it takes longer.
    fn note(&self, text: &str);
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder, or the GGUF file that was asked for.
    pub path: PathBuf,
    pub commit: String,
    /// Fetched now.
    pub bytes: u64,
}

/// A snapshot that is in the cache, whole or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// `org/name`, with the revision where that is not `main`.
    pub name: String,
    pub commit: String,
    pub folder: PathBuf,
}

/// Why a model cannot be had. Names repository and file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{name}: {problem}")]
    Name { name: String, problem: String },
    #[error(
        "{0}: this binary was built without the feature `hub`: give a folder or a GGUF file, or build with it"
    )]
    NotBuilt(String),
    #[error("{repo}: {endpoint} has no such repository (and there is no such path here){hint}")]
    NoRepository { repo: String, endpoint: String, hint: String },
    #[error("{repo}: has no branch, tag or commit {revision:?}")]
    NoRevision { repo: String, revision: String },
    #[error("{repo}: has no file {file}{hint}")]
    NoFile { repo: String, file: String, hint: String },
    #[error("{repo}: access is not given (HTTP {code}): {hint}")]
    Access { repo: String, code: u16, hint: String },
    #[error(
        "{name}: HF_HUB_OFFLINE is set, and {cache} lacks {missing}: fetch it with `hashwatt models pull {name}` online"
    )]
    Offline { name: String, cache: String, missing: String },
    #[error("{name}: is no path here and not in the hub's cache, and the hub cannot be asked: {problem}")]
    Away { name: String, problem: String },
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{file}: the connection ended at byte {at} of {size}: {problem}")]
    Cut { file: String, at: u64, size: u64, problem: String },
    #[error("{url}: the answer is not a hub's: {problem}")]
    Answer { url: String, problem: String },
    #[error(
        "{repo}: {file} is a pickle, which is a program, and never loaded; safetensors and GGUF are read"
    )]
    Pickle { repo: String, file: String },
    #[error(
        "{repo}: {file} says that this is an adapter, which is no model by itself: whole models are served, in \
         safetensors or GGUF"
    )]
    Adapter { repo: String, file: String },
    #[error("{repo}: {problem}")]
    Unusable { repo: String, problem: String },
    #[error("{file}: is not what its checksum says, twice: {got} instead of {expected}")]
    Checksum { file: String, expected: String, got: String },
    #[error("{path}: {needed} bytes are wanted and {free} are free")]
    DiskFull { path: String, needed: u64, free: u64 },
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
}

#[cfg(feature = "hub")]
impl HubError {
    fn io(path: &Path, source: std::io::Error) -> HubError {
        HubError::Io { path: path.display().to_string(), source }
    }

    /// Whether the same may go well a little later.
    fn is_transient(&self) -> bool {
        match self {
            HubError::Cut { .. } => true,
            HubError::Http(HttpError::Status { code, .. }) => *code >= 500,
            HubError::Http(error) => {
                matches!(
                    error,
                    HttpError::Connect { .. } | HttpError::Timeout { .. } | HttpError::Busy { .. }
                )
            }
            _ => false,
        }
    }
}

/// Finds or fetches a model. `check` sees the folder as soon as the small files are there, before the weights.
///
/// # Errors
/// [`HubError`].
#[cfg(feature = "hub")]
pub fn fetch(
    settings: &Settings,
    name: &HubName,
    check: &dyn Fn(&Path) -> Result<(), String>,
    progress: &dyn Progress,
) -> Result<Snapshot, HubError> {
    fetch::Fetch { settings, server: server::Server::new(settings, progress), name, check, progress }.run()
}

/// Refuses.
///
/// # Errors
/// Always: it takes the feature `hub`.
#[cfg(not(feature = "hub"))]
pub fn fetch(
    _: &Settings,
    name: &HubName,
    _: &dyn Fn(&Path) -> Result<(), String>,
    _: &dyn Progress,
) -> Result<Snapshot, HubError> {
    Err(HubError::NotBuilt(name.to_string()))
}

/// What the cache holds of models, by name.
pub fn cached(cache: &Path) -> Vec<Cached> {
    #[cfg(feature = "hub")]
    return cache::list(cache);
    #[cfg(not(feature = "hub"))]
    {
        let _ = cache;
        Vec::new()
    }
}
