//! Makes inputs from the seeds and the corpus, tries them, and keeps what did harm. What is answered in a new way is
//! changed further, so that it gets deeper than chance would.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use hashwatt::clock::Clock;

use super::inputs::{Bench, Target};
use super::mutation::changed;
use super::random::Random;
use super::{corpus, harm, seeds};

/// Kept of a target at most: then something is to be mended first.
const MOST_FOUND: usize = 20;

/// The answer without its numbers, names and values: which place of the code gave it.
fn way(answer: &Result<Result<(), String>, String>) -> String {
    let text = match answer {
        Ok(Ok(())) => "taken",
        Ok(Err(text)) | Err(text) => text,
    };
    text.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
        .take(14)
        .collect::<Vec<_>>()
        .join(" ")
}

fn kept(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn fuzz(target: Target, seconds: u64, seed: u64, folder: &Path) -> Vec<String> {
    let (bench, mut random, clock) = (Bench::new(), Random::new(seed), Clock::system());
    let mut pool: Vec<Vec<u8>> = seeds::of(target).into_iter().map(|(_, bytes)| bytes).collect();
    pool.extend(
        std::fs::read_dir(corpus(target))
            .into_iter()
            .flatten()
            .map(|f| std::fs::read(f.unwrap().path()).unwrap()),
    );
    let (mut ways, mut harms, mut found, mut tries) = (HashSet::new(), HashSet::new(), Vec::new(), 0u64);
    let (mut largest, mut slowest) = (0.0f64, std::time::Duration::ZERO);
    let begun = clock.now();
    while clock.now().since(begun).as_secs() < seconds && found.len() < MOST_FOUND {
        let (one, other) = (random.below(pool.len()), random.below(pool.len()));
        let input = changed(target, &pool[one], &pool[other], &mut random);
        // What kills the process is found here.
        kept(folder, &format!("{}-last", target.name()), &input);
        let outcome = bench.tried(target, &input);
        tries += 1;
        largest = largest.max(outcome.peak as f64 / target.allowed(input.len()) as f64);
        slowest = slowest.max(outcome.took);
        if let Some(problem) = harm(target, input.len(), &outcome)
            && harms.insert(way(&Ok(Err(problem.clone()))))
        {
            let path = kept(folder, &format!("{}-{seed}-{tries}", target.name()), &input);
            found.push(format!("{}: {problem}", path.display()));
        }
        if ways.insert(way(&outcome.result)) && pool.len() < 5000 {
            pool.push(input);
        }
    }
    println!(
        "{}, seed {seed}: {tries} inputs in {seconds} s, {} ways to answer, {:.0} % of the memory allowed at most, {slowest:?} at most",
        target.name(),
        ways.len(),
        100.0 * largest
    );
    found
}

/// `FUZZ=gguf,folder,tokenizer,template FUZZ_SECONDS=60 FUZZ_SEED=1 cargo test --test it -- --ignored --nocapture fuzz`
#[test]
#[ignore = "takes as long as it is told to"]
#[allow(clippy::disallowed_methods)] // its settings
fn fuzzing_finds_no_harm() {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let chosen = setting("FUZZ", "gguf,folder,tokenizer,template");
    let seconds = setting("FUZZ_SECONDS", "30").parse().unwrap();
    let seed = setting("FUZZ_SEED", "1").parse().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    // Panics are caught and told with their input; thousands of them are not to be read.
    std::panic::set_hook(Box::new(|_| {}));
    let targets = Target::ALL.into_iter().filter(|t| chosen.split(',').any(|name| name == t.name()));
    let found: Vec<String> = targets.flat_map(|target| fuzz(target, seconds, seed, &folder)).collect();
    drop(std::panic::take_hook());
    assert!(found.is_empty(), "{} inputs do harm:\n{}", found.len(), found.join("\n"));
}
