//! The snapshot's file: written whole or not at all, and never over one that a person wrote.
//!
//! A first line marks what `market fetch` wrote. What a person added to such a file, token prices and the range
//! of the hashprice, is carried into the next one. Knows nothing of servers.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::MarketError;
use crate::economics::market::Market;

/// How the first line of a fetched file begins.
const MARK: &str = "# Written by `hashwatt market fetch`";
const REST: &str =
    "; the next fetch overwrites it.\n# Token prices and a hashprice range added here are kept.\n";
/// No snapshot is larger.
const MAX_BYTES: u64 = 1024 * 1024;

/// A place that a snapshot may be written to.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    /// What stands there now, if it is a market and no example.
    before: Option<Market>,
}

impl Target {
    /// Before anything is fetched: may this file be written?
    ///
    /// # Errors
    /// [`MarketError::Kept`] for a file that a person wrote, unless forced; [`MarketError::File`].
    pub fn open(path: &Path, force: bool) -> Result<Target, MarketError> {
        let wrong = |problem: String| MarketError::File { path: path.display().to_string(), problem };
        // Behind a link the file is replaced, not the link.
        let path = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(e) if e.kind() == ErrorKind::NotFound => path.to_path_buf(),
            Err(e) => return Err(wrong(e.to_string())),
        };
        let length = match fs::metadata(&path) {
            Ok(file) if !file.is_file() => return Err(wrong("not a file".into())),
            Ok(file) => file.len(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Target { path, before: None }),
            Err(e) => return Err(wrong(e.to_string())),
        };
        let bytes = if length > MAX_BYTES {
            Vec::new()
        } else {
            fs::read(&path).map_err(|e| wrong(e.to_string()))?
        };
        let text = String::from_utf8_lossy(&bytes);
        if !force && length > 0 && !text.starts_with(MARK) {
            return Err(MarketError::Kept { path: path.display().to_string() });
        }
        // Someone added to a fetched file and slipped: what they added is not thrown away.
        let before = match Market::parse(&text) {
            Ok(before) => Some(before).filter(|b| !b.example),
            Err(_) if force || length == 0 => None,
            Err(e) => return Err(wrong(format!("no longer a market; --force overwrites it: {e}"))),
        };
        Ok(Target { path, before })
    }

    /// The snapshot that is there now.
    pub fn before(&self) -> Option<&Market> {
        self.before.as_ref()
    }

    /// Replaces the file at once: readers see the old one or the new one, whole. Gives what was written.
    ///
    /// # Errors
    /// [`MarketError::File`]; the old file is then untouched.
    pub fn write(&self, market: &Market) -> Result<Market, MarketError> {
        let mut market = market.clone();
        if let Some(before) = &self.before {
            market.token_price.clone_from(&before.token_price);
            market.hashprice_low_usd_per_ph_day = before.hashprice_low_usd_per_ph_day;
            market.hashprice_high_usd_per_ph_day = before.hashprice_high_usd_per_ph_day;
            market.hashprice_range.clone_from(&before.hashprice_range);
        }
        let text = format!("{MARK}{REST}\n{}", market.to_toml());
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let written =
            write_synced(&temporary, text.as_bytes()).and_then(|()| fs::rename(&temporary, &self.path));
        written.map_err(|e| {
            // Only what this call made is removed.
            let _ = fs::remove_file(&temporary);
            MarketError::File { path: self.path.display().to_string(), problem: e.to_string() }
        })?;
        Ok(market)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // What a killed process of the same number left goes; a link planted there is not followed.
    let _ = fs::remove_file(path);
    let mut file = fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
