//! GPUs as data: one row of `boards.toml` each, found by the name that the driver or a person gives them.
//!
//! Makers' figures, so whatever rests on them is assumed. No code per board.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The table.
pub const BUILT_IN: &str = include_str!("boards.toml");

/// Words of drivers that tell no board from another.
const SAY_NOTHING: [&str; 6] = ["nvidia", "geforce", "tesla", "graphics", "generation", "edition"];

/// Idle as a share of full watts where nobody says: that of an H200, 80 of 700 W.
const IDLE_SHARE: f64 = 80.0 / 700.0;

/// A GPU as its maker describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    pub name: String,
    /// As the driver has it.
    pub driver_name: String,
    /// All of it, as a CUDA program sees it.
    pub memory_gib: f64,
    pub memory_gigabytes_per_second: f64,
    /// Dense, sums in f32.
    pub bf16_teraflops: f64,
    /// `None` where there are no products of FP8.
    #[serde(default)]
    pub fp8_teraflops: Option<f64>,
    pub int8_teraops: f64,
    /// The most that the board draws.
    pub watts: f64,
    #[serde(default)]
    pub idle_watts: Option<f64>,
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    board: Vec<Board>,
}

/// A name that is not one board's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoardError {
    #[error("`{name}` is not in the table of boards; it has {known}")]
    Unknown { name: String, known: String },
    #[error("`{name}` could be {candidates}: say which")]
    Several { name: String, candidates: String },
    #[error("the table of boards: {0}")]
    Table(String),
}

impl Board {
    pub fn memory_bytes(&self) -> u64 {
        (self.memory_gib * f64::from(1 << 30)) as u64
    }

    /// With nothing to do; a share of its full watts where the table does not say.
    pub fn idle(&self) -> f64 {
        self.idle_watts.unwrap_or(self.watts * IDLE_SHARE)
    }
}

/// All boards, by name.
///
/// # Errors
/// None in practice: a test reads the table.
pub fn all() -> Result<Vec<Board>, BoardError> {
    let table: Table = toml::from_str(BUILT_IN).map_err(|e| BoardError::Table(e.to_string()))?;
    Ok(table.board)
}

/// The board of a name: `RTX 4090`, `4090`, `NVIDIA GeForce RTX 4090`. Each word of the name must be one of the board's:
/// an `RTX 4090 Laptop GPU` is another board.
///
/// # Errors
/// No board has these words, or several have.
pub fn find(name: &str) -> Result<Board, BoardError> {
    let all = all()?;
    let asked = words(name);
    let names = |b: &Board| [words(&b.name), words(&b.driver_name)];
    if let Some(same) = all.iter().find(|b| names(b).contains(&asked)) {
        return Ok(same.clone());
    }
    let has = |b: &&Board| !asked.is_empty() && names(b).iter().any(|own| asked.is_subset(own));
    let found: Vec<&Board> = all.iter().filter(has).collect();
    let list = |boards: &mut dyn Iterator<Item = &Board>, last: &str| {
        let mut names: Vec<&str> = boards.map(|b| b.name.as_str()).collect();
        let end = names.pop().unwrap_or_default();
        if names.is_empty() { end.to_string() } else { format!("{}{last}{end}", names.join(", ")) }
    };
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(BoardError::Unknown { name: name.into(), known: list(&mut all.iter(), " and ") }),
        several => Err(BoardError::Several {
            name: name.into(),
            candidates: list(&mut several.iter().copied(), " or "),
        }),
    }
}

/// Runs of letters and of digits, in small letters: `A100-SXM4-80GB` is `a 100 sxm 4 80 gb`.
fn words(name: &str) -> BTreeSet<String> {
    let mut words: Vec<String> = Vec::new();
    let mut last = None;
    for c in name.to_lowercase().chars() {
        let kind = (c.is_alphabetic(), c.is_ascii_digit());
        match kind {
            (false, false) => {}
            _ if last == Some(kind) => words.iter_mut().last().into_iter().for_each(|word| word.push(c)),
            _ => words.push(c.into()),
        }
        last = Some(kind);
    }
    words.into_iter().filter(|word| !SAY_NOTHING.contains(&word.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_plausible_and_found_by_both_their_names() {
        let all = all().unwrap();
        assert!(all.len() > 20);
        for board in &all {
            assert_eq!(find(&board.name).unwrap(), *board, "{}", board.name);
            assert_eq!(find(&board.driver_name).unwrap(), *board, "{}", board.driver_name);
            assert!(board.driver_name.starts_with("NVIDIA ") && !board.source.is_empty());
            assert!((8.0..400.0).contains(&board.memory_gib), "{}", board.name);
            assert!((200.0..20_000.0).contains(&board.memory_gigabytes_per_second), "{}", board.name);
            assert!((50.0..2000.0).contains(&board.watts) && board.idle() < board.watts / 4.0);
            // Products of a byte run twice as fast, or four times where bf16 is held back.
            let ratio = board.int8_teraops / board.bf16_teraflops;
            assert!((1.9..4.1).contains(&ratio), "{}: {ratio}", board.name);
            let fp8 = board.fp8_teraflops.map_or(2.0, |fp8| fp8 / board.bf16_teraflops);
            assert!((1.9..2.1).contains(&fp8), "{}: {fp8}", board.name);
        }
    }

    #[test]
    fn names_are_taken_as_people_write_them() {
        for name in ["rtx 4090", "4090", "RTX4090", "NVIDIA GeForce RTX 4090", "geforce rtx-4090"] {
            assert_eq!(find(name).unwrap().name, "RTX 4090", "{name}");
        }
        assert_eq!(find("A6000").unwrap().name, "RTX A6000");
        assert_eq!(find("h100 sxm").unwrap().name, "H100 SXM");
        assert_eq!(find("L40").unwrap().name, "L40");
        assert_eq!(find("NVIDIA H100 80GB HBM3").unwrap().name, "H100 SXM");
    }

    #[test]
    fn a_name_of_no_board_or_of_several_is_said() {
        let error = find("H100").unwrap_err().to_string();
        assert_eq!(error, "`H100` could be H100 NVL, H100 PCIe or H100 SXM: say which");
        for name in ["Voodoo 2", "NVIDIA GeForce RTX 4090 Laptop GPU", "", "NVIDIA"] {
            let error = find(name).unwrap_err().to_string();
            assert!(error.contains("not in the table") && error.contains("A10, A30"), "{error}");
        }
    }
}
