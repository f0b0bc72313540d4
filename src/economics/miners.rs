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

    /// # Errors
    /// A number that cannot be right; no name, source or day.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let wrong = |entry: &str, problem: &str| {
            Err(EconomicsError::Invalid { entry: entry.into(), problem: problem.into() })
        };
        if self.name.trim().is_empty() || self.name.chars().any(char::is_control) {
            return wrong("a mining machine", "its name is empty or holds control characters");
        }
        if self.source.trim().is_empty() {
            return wrong(&self.name, "it has no source");
        }
        if self.date.parse::<jiff::civil::Date>().is_err() {
            return wrong(&self.name, "its date is not a day (YYYY-MM-DD)");
        }
        let check = |field, value, range, expected| plausible(&self.name, field, value, range, expected);
        check("terahash_per_second", self.terahash_per_second, 1.0..=1e5, "1 to 1e5 TH/s")?;
        check("watts", self.watts, 10.0..=1e6, "10 to 1e6 W")?;
        check("watts / terahash_per_second", self.efficiency().0, 3.0..=200.0, "3 to 200 J/TH")
    }
}

/// The machines of a table.
///
/// # Errors
/// Text that is not such a table, or a row whose numbers cannot be right.
pub fn parse(text: &str) -> Result<Vec<Miner>, EconomicsError> {
    let table: Table = toml::from_str(text).map_err(|e| EconomicsError::Toml(e.to_string()))?;
    for (i, miner) in table.miner.iter().enumerate() {
        miner.check()?;
        if table.miner[..i].iter().any(|m| m.name.eq_ignore_ascii_case(&miner.name)) {
            let problem = "the table has two rows of this name".into();
            return Err(EconomicsError::Invalid { entry: miner.name.clone(), problem });
        }
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
    fn every_published_machine_is_there() {
        let miners = parse(BUILT_IN).unwrap();
        let expected = [
            ("Antminer S19j Pro", 29.5),
            ("Antminer S19k Pro", 23.0),
            ("Antminer S19 XP", 21.5),
            ("Antminer S21", 17.5),
            ("Antminer S21+", 15.2),
            ("Antminer S21 Pro", 15.0),
            ("Antminer S21 XP", 13.5),
            ("Antminer S21 XP Hyd", 12.0),
            ("Antminer S21 XP+ Hyd", 11.0),
            ("Antminer S21e XP Hyd 3U", 13.0),
            ("Antminer S23", 11.0),
            ("Antminer S23 Hyd", 9.5),
            ("Antminer S23 Hyd 3U", 9.5),
            ("Whatsminer M50S", 26.0),
            ("Whatsminer M50S++", 22.0),
            ("Whatsminer M60S", 18.5),
            ("Whatsminer M66S", 18.0),
            ("Whatsminer M70S", 13.5),
            ("Avalon A16", 13.8),
            ("Avalon A16XP", 12.8),
            ("SEALMINER A4 Ultra Hyd", 9.45),
            ("Proto Rig", 14.65),
        ];
        assert_eq!(miners.len(), expected.len());
        for (name, efficiency) in expected {
            let miner = miners.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}"));
            assert!((miner.efficiency().0 - efficiency).abs() <= 0.051, "{name}: {}", miner.efficiency());
            assert!(!miner.source.is_empty() && miner.date.parse::<jiff::civil::Date>().is_ok(), "{name}");
        }
    }

    #[test]
    fn an_own_file_replaces_and_adds() {
        let own = r#"
            [[miner]]
            name = "antminer s21"
            terahash_per_second = 190
            watts = 3500
            source = "our meter"
            date = "2026-11-01"
            [[miner]]
            name = "Ours"
            terahash_per_second = 100
            watts = 2000
            source = "our meter"
            date = "2026-11-01"
        "#;
        let (table, all) = (parse(BUILT_IN).unwrap(), with_own(Some(own)).unwrap());
        assert_eq!(all.len(), table.len() + 1);
        assert_eq!(all.iter().filter(|m| m.name.eq_ignore_ascii_case("Antminer S21")).count(), 1);
        assert!(all.iter().any(|m| m.terahash_per_second == 190.0));
        assert_eq!(with_own(None).unwrap(), table);
        assert!(with_own(Some("[[miner]]")).is_err());
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
        let (good, twice) = (row("200"), row("200") + &row("201"));
        assert!(parse(&twice).unwrap_err().to_string().contains("two rows"));
        for (from, to, name) in [
            ("\"X\"", "\" \"", "name"),
            ("\"X\"", "\"\\u001b[31mX\"", "control"),
            ("\"s\"", "\"\"", "source"),
            ("2026-01-01", "yesterday", "day"),
        ] {
            let error = parse(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(name), "{to}: {error}");
        }
    }
}
