//! The corpus: questions with their phrasings and answers, loaded, checked and varied.
//!
//! The checks make the held-out score mean something: a held-out phrasing is never trained on, not
//! even by way of augmentation, and each answer has key words that no other answer has.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::rng::Rng;

/// A corpus smaller than this is a stand-in, not a demo.
const MIN_QUESTIONS: usize = 50;
const MIN_PHRASINGS: usize = 8;
const MIN_KEYWORDS: usize = 2;

const SYSTEMS: &[&str] = &[
    "You are a helpful assistant.",
    "You are hashwatt, a helpful assistant.",
    "Answer briefly.",
    "You are a concise assistant for mining and inference.",
];
const PREFIXES: &[&str] = &[
    "hi, ",
    "hello! ",
    "hey, ",
    "please ",
    "please tell me ",
    "can you tell me ",
    "could you explain ",
    "i would like to know: ",
    "quick question: ",
    "so, ",
    "ok, ",
];
const SUFFIXES: &[&str] = &[" please", ", please", " thanks", " in short", " exactly", " here"];
/// Words a question can lose without losing its topic.
const FILLERS: &[&str] = &[
    "a", "an", "the", "is", "are", "do", "does", "me", "to", "of", "in", "it", "that", "this", "you", "your",
    "i", "can", "please", "for", "on", "my", "be", "will", "would", "should", "tell", "so", "just", "about",
];

#[derive(Debug, Clone, Deserialize)]
pub struct Question {
    pub id: String,
    #[serde(rename = "group")]
    pub _group: String,
    pub ask: Vec<String>,
    pub held_out: String,
    pub answer: String,
    pub keywords: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    question: Vec<Question>,
}

/// One training text: an optional system message and one or two turns.
pub struct Dialogue {
    pub system: Option<&'static str>,
    pub turns: Vec<(String, String)>,
}

pub struct Corpus {
    pub questions: Vec<Question>,
    held_out: HashSet<String>,
}

impl Corpus {
    /// Reads every `*.toml` of a folder, in the order of the names, and checks the whole.
    pub fn load(folder: &Path) -> Result<Corpus> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
        paths.sort();
        let mut questions = Vec::new();
        for path in &paths {
            let text = std::fs::read_to_string(path)?;
            let file: File = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
            questions.extend(file.question);
        }
        let held_out = questions.iter().map(|q| plain(&q.held_out)).collect();
        let corpus = Corpus { questions, held_out };
        corpus.check()?;
        Ok(corpus)
    }

    fn check(&self) -> Result<()> {
        let found = self.questions.len();
        ensure!(found >= MIN_QUESTIONS, "{found} questions; {MIN_QUESTIONS} are needed");
        let mut ids = HashSet::new();
        let answers: Vec<String> = self.questions.iter().map(|q| q.answer.to_lowercase()).collect();
        for (i, q) in self.questions.iter().enumerate() {
            let id = &q.id;
            ensure!(ids.insert(id.clone()), "{id}: the id occurs twice");
            ensure!(q.ask.len() >= MIN_PHRASINGS, "{id}: {} phrasings", q.ask.len());
            ensure!(q.keywords.len() >= MIN_KEYWORDS, "{id}: {} keywords", q.keywords.len());
            ensure!(q.answer.trim() == q.answer && !q.answer.is_empty(), "{id}: space around the answer");
            for ask in &q.ask {
                ensure!(!self.is_held_out(ask), "{id}: {ask:?} is a held-out phrasing");
            }
            for word in q.keywords.iter().map(|k| k.to_lowercase()) {
                let holders = (0..found).filter(|&j| answers[j].contains(&word)).collect::<Vec<_>>();
                let names: Vec<&str> = holders.iter().map(|&j| self.questions[j].id.as_str()).collect();
                ensure!(
                    holders == [i],
                    "{id}: keyword {word:?} must be in this answer only, is in {names:?}"
                );
            }
        }
        Ok(())
    }

    /// Whether a text is some held-out phrasing but for case and punctuation.
    fn is_held_out(&self, text: &str) -> bool {
        self.held_out.contains(&plain(text))
    }

    /// A varied phrasing of question `index`.
    fn vary(&self, index: usize, rng: &mut Rng) -> String {
        let question = &self.questions[index];
        let ask = &question.ask[rng.below(question.ask.len())];
        let varied = vary(ask, rng);
        if self.is_held_out(&varied) { ask.clone() } else { varied }
    }

    /// A dialogue that begins with question `index`.
    pub fn dialogue(&self, index: usize, rng: &mut Rng) -> Dialogue {
        let system = rng.chance(0.2).then(|| rng.pick(SYSTEMS));
        let mut turns = vec![(self.vary(index, rng), self.questions[index].answer.clone())];
        if rng.chance(0.15) {
            let second = rng.below(self.questions.len());
            turns.push((self.vary(second, rng), self.questions[second].answer.clone()));
        }
        Dialogue { system, turns }
    }

    /// Every text a tokenizer should do well on.
    pub fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = SYSTEMS.iter().chain(PREFIXES).map(|s| s.to_string()).collect();
        for q in &self.questions {
            texts.extend(q.ask.iter().cloned());
            // Answers are what the demo writes all day: three times the weight of a question.
            texts.extend(std::iter::repeat_n(q.answer.clone(), 3));
        }
        texts
    }
}

/// Lower case, words only: what two phrasings are compared by.
fn plain(text: &str) -> String {
    let kept = text.to_lowercase().replace(|c: char| !c.is_alphanumeric() && !c.is_whitespace(), "");
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn vary(ask: &str, rng: &mut Rng) -> String {
    let mut words: Vec<String> = ask.split_whitespace().map(str::to_string).collect();
    if rng.chance(0.25) {
        let fillers: Vec<usize> =
            (0..words.len()).filter(|&i| FILLERS.contains(&words[i].to_lowercase().as_str())).collect();
        if !fillers.is_empty() && words.len() > 3 {
            words.remove(fillers[rng.below(fillers.len())]);
        }
    }
    if rng.chance(0.15) {
        let at = rng.below(words.len());
        words[at] = misspell(&words[at], rng);
    }
    let mut text = words.join(" ");
    if rng.chance(0.25) {
        text = format!("{}{text}", rng.pick(PREFIXES));
    }
    if rng.chance(0.5) {
        text.truncate(text.trim_end_matches(['?', '.', '!']).len());
        if rng.chance(0.15) {
            text.push_str(rng.pick(SUFFIXES));
        }
    }
    match rng.below(3) {
        0 => text.to_lowercase(),
        1 => capitalise(&text),
        _ => text,
    }
}

/// Swaps, drops or doubles one inner letter; short words are left alone.
fn misspell(word: &str, rng: &mut Rng) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() < 5 || !letters.iter().all(|c| c.is_alphabetic()) {
        return word.to_string();
    }
    let at = 1 + rng.below(letters.len() - 2);
    match rng.below(3) {
        0 => letters.swap(at, at + 1),
        1 => drop(letters.remove(at)),
        _ => letters.insert(at, letters[at]),
    }
    letters.into_iter().collect()
}

fn capitalise(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
