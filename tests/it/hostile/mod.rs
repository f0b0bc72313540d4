//! Files that attack: none ends the process, takes memory or time beyond its size, or leaves anyone in doubt what is wrong.
//!
//! `cases/corpus/` has sound inputs and those that once did harm; `cargo test` tries them all. `fuzz` makes new ones:
//! `CONTRIBUTING.md` says how.

use std::path::{Path, PathBuf};
use std::time::Duration;

mod fuzz;
pub mod gguf_file;
mod header;
pub mod inputs;
mod mutation;
mod random;
pub mod seeds;

use inputs::{Bench, Outcome, Target};

/// For one input, whatever it says. They take milliseconds, but for templates, which have a budget of steps.
const LONGEST: Duration = Duration::from_secs(60);
/// Bytes of an error.
const LONGEST_ERROR: usize = 1500;

fn corpus(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases/corpus").join(target.name())
}

/// What is wrong with how an input was answered; `None` where all is as it should be.
fn harm(target: Target, length: usize, outcome: &Outcome) -> Option<String> {
    let Outcome { result, peak, took } = outcome;
    let file = match target {
        Target::Gguf => "model.gguf",
        Target::Folder => "folder",
        Target::Tokenizer => "tokenizer.json",
        Target::Template => "chat_template.jinja",
    };
    if *peak > target.allowed(length) {
        return Some(format!("{peak} bytes for an input of {length}"));
    }
    if *took > LONGEST {
        return Some(format!("{took:?}"));
    }
    match result {
        Err(panic) => Some(format!("panics: {panic}")),
        Ok(Err(error)) if !error.contains(file) => Some(format!("does not name {file}: {error}")),
        Ok(Err(error)) if error.len() > LONGEST_ERROR => Some(format!("an error of {} bytes", error.len())),
        Ok(Err(error)) if error.contains(|c: char| c.is_control()) && target != Target::Template => {
            Some(format!("a control character in {error:?}"))
        }
        Ok(_) => None,
    }
}

/// `UPDATE_CASES=1 cargo test` writes the sound ones anew.
#[test]
#[allow(clippy::disallowed_methods)] // the one switch of this test
fn the_corpus_does_no_harm() {
    let (bench, mut wrong, mut total) = (Bench::new(), Vec::new(), 0);
    for target in [Target::Gguf, Target::Folder, Target::Tokenizer, Target::Template] {
        let folder = corpus(target);
        if std::env::var("UPDATE_CASES").is_ok() {
            std::fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in seeds::of(target).iter().take(4) {
                std::fs::write(folder.join(format!("sound-{name}")), bytes).unwrap();
            }
        }
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let mut sound = 0;
        for path in &files {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(path).unwrap();
            total += bytes.len();
            let outcome = bench.tried(target, &bytes);
            let told = |problem: &str| format!("{}/{name}: {problem}", target.name());
            wrong.extend(harm(target, bytes.len(), &outcome).map(|problem| told(&problem)));
            match (&outcome.result, name.starts_with("sound-")) {
                (Ok(Ok(())), true) => sound += 1,
                (Ok(Err(error)), true) => wrong.push(told(error)),
                (Ok(Ok(())), false) => wrong.push(told("is taken")),
                _ => {}
            }
        }
        assert!(sound >= 2 && files.len() > sound, "{}: {sound} of {} are sound", target.name(), files.len());
    }
    assert!(wrong.is_empty(), "{} do harm:\n{}", wrong.len(), wrong.join("\n"));
    assert!(total < 200 << 10, "the corpus has {total} bytes");
}
