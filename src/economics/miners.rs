//! Mining machines as data: one row of `miners.toml` each. No code per machine.

use serde::{Deserialize, Serialize};

use super::{EconomicsError, plausible};
use crate::quantity::JoulesPerTerahash;

/// The table that ships: nameplates, each with its source and date.
pub const BUILT_IN: &str = include_str!("miners.toml");

/// A machine at its nameplate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Miner {
    pub name: String,
    pub terahash_per_second: f64,
    pub watts: f64,
    pub source: String,
    /// When the row was last compared with its source, `YYYY-MM-DD`.
    pub date: String,
    /// What the reader should know: announced, unverified, computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    miner: Vec<Miner>,
}

impl Miner {
    pub fn efficiency(&self) -> JoulesPerTerahash {
        JoulesPerTerahash(self.watts / self.terahash_per_second)
    }
}

/// The machines of a table.
///
/// # Errors
/// Text that is not such a table, or a row whose numbers cannot be right.
pub fn parse(text: &str) -> Result<Vec<Miner>, EconomicsError> {
    let table: Table = toml::from_str(text).map_err(|e| EconomicsError::Toml(e.to_string()))?;
    for m in &table.miner {
        plausible(&m.name, "terahash_per_second", m.terahash_per_second, 1.0..=1e5, "1 to 1e5 TH/s")?;
        plausible(&m.name, "watts", m.watts, 10.0..=1e6, "10 to 1e6 W")?;
        plausible(&m.name, "watts / terahash_per_second", m.efficiency().0, 3.0..=200.0, "3 to 200 J/TH")?;
    }
    Ok(table.miner)
}

/// The built-in table with a site's own file laid over it: a row of the same name replaces, others are added.
///
/// # Errors
/// As [`parse`].
pub fn with_own(own: Option<&str>) -> Result<Vec<Miner>, EconomicsError> {
    let mut all = parse(BUILT_IN)?;
    for miner in own.map(parse).transpose()?.unwrap_or_default() {
        match all.iter_mut().find(|m| m.name.eq_ignore_ascii_case(&miner.name)) {
            Some(same) => *same = miner,
            None => all.push(miner),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_is_sound() {
        let miners = parse(BUILT_IN).unwrap();
        assert!(miners.len() >= 20);
        let of = |name: &str| miners.iter().find(|m| m.name == name).unwrap().efficiency().0;
        assert!((of("Antminer S21") - 17.5).abs() < 0.05 && (of("Antminer S19j Pro") - 29.5).abs() < 0.05);
        assert!(miners.iter().all(|m| !m.source.is_empty() && m.date.len() == 10));
    }

    #[test]
    fn a_bad_row_is_named() {
        let row = |th: &str| {
            format!(
                "[[miner]]\nname = \"X\"\nterahash_per_second = {th}\nwatts = 3000\nsource = \"s\"\ndate = \"2026-01-01\"\n"
            )
        };
        assert!(parse(&row("200")).is_ok());
        assert!(parse(&row("0")).unwrap_err().to_string().starts_with("X: terahash_per_second"));
        assert!(parse(&row("5000")).unwrap_err().to_string().contains("J/TH"));
    }
}
