//! L4a. Fetches what mining pays now into one dated snapshot: `hashwatt market fetch`. Nothing else asks the network.
//!
//! A mempool-compatible server, or Bitcoin Core and a price → [`Market`] with warnings where sources disagree.
//! What is missing or implausible is an error that names the endpoint and the field, never a guess.
//! Knows nothing of flags, benches and verdicts.

use crate::http_client::{BasicAuth, HttpError};

/// Sources further apart than this are told.
pub const DISAGREEMENT: f64 = 0.03;

/// Who is asked for the chain.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A mempool-compatible REST server, by its root: `https://mempool.space`.
    Mempool { url: String },
    /// Bitcoin Core's RPC, which knows no price.
    Core { url: String, auth: BasicAuth },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub source: Source,
    /// Dollars for a bitcoin, by the operator; wins over a fetched one, and is compared with it.
    pub btc_usd: Option<f64>,
    /// Share the pool keeps.
    pub pool_fee: f64,
    /// A second mempool-compatible server to compare with.
    pub cross_check: Option<String>,
    /// An index's figure to compare with, $/PH/day before the pool's fee.
    pub hashprice: Option<f64>,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MarketError {
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The answer lacks what its endpoint should say.
    #[error("{endpoint}: {field}: {problem}")]
    Field { endpoint: String, field: String, problem: String },
    #[error("Bitcoin Core: {method}: {message} (code {code})")]
    Rpc { method: String, code: i64, message: String },
    #[error("no {field}: {hint}")]
    Missing { field: &'static str, hint: &'static str },
    #[error("{path} was not written by `hashwatt market fetch`; --force overwrites it")]
    Kept { path: String },
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}
