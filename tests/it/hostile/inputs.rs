//! What is tried with an input: it is opened as a server opens it, as far as it lets itself be opened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hashwatt::clock::Clock;
use hashwatt::model::Checkpoint;
use hashwatt::model::checkpoint::TokenizerSource;
use hashwatt::model::decoder::Precision;
use hashwatt::model::encoder::EncoderCheckpoint;
use hashwatt::ops::pool::Pool;
use hashwatt::text::chat_template::{ChatTemplate, Message};
use hashwatt::text::tokenizer::Tokenizer;

use crate::allocation::peak_of;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A GGUF file.
    Gguf,
    /// A folder of HuggingFace's, as [`folder_of`] has it in one.
    Folder,
    /// A `tokenizer.json`.
    Tokenizer,
    /// A chat template.
    Template,
}

impl Target {
    pub const ALL: [Target; 4] = [Target::Gguf, Target::Folder, Target::Tokenizer, Target::Template];

    pub fn name(self) -> &'static str {
        match self {
            Target::Gguf => "gguf",
            Target::Folder => "folder",
            Target::Tokenizer => "tokenizer",
            Target::Template => "template",
        }
    }

    /// Bytes that an input of `length` may take: a vocabulary becomes JSON and then maps, a template has steps for so
    /// much text. (The header of a GGUF file alone has a bound of its own.)
    pub fn allowed(self, length: usize) -> usize {
        match self {
            Target::Gguf | Target::Folder | Target::Tokenizer => (8 << 20) + 64 * length,
            Target::Template => 384 << 20,
        }
    }
}

/// Files in one: of each its name and its length on a line, then its bytes.
pub fn folder_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let one = |(name, content): &(String, Vec<u8>)| {
        [format!("{name} {}\n", content.len()).into_bytes(), content.clone(), b"\n".to_vec()].concat()
    };
    files.iter().flat_map(one).collect()
}

/// The files of a folder; what is no more of that form is left out.
pub fn files_of(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut files, mut rest) = (Vec::new(), bytes);
    while let Some((name, content, after)) = first_file(rest) {
        files.push((name.to_owned(), content.to_vec()));
        rest = after;
    }
    files
}

fn first_file(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let line = bytes.iter().position(|b| *b == b'\n')?;
    let (name, length) = std::str::from_utf8(&bytes[..line]).ok()?.split_once(' ')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = name.len() < 100 && name.chars().all(plain) && !name.trim_matches('.').is_empty();
    let content = &bytes[line + 1..];
    let (content, after) = content.split_at(length.parse::<usize>().ok()?.min(content.len()));
    is_name.then_some((name, content, after.get(1..).unwrap_or_default()))
}

/// What came of an input.
pub struct Outcome {
    /// `Err` is the error's text; the outer one a panic.
    pub result: Result<Result<(), String>, String>,
    pub peak: usize,
    pub took: Duration,
}

/// Where inputs are tried.
pub struct Bench {
    folder: tempfile::TempDir,
    pool: Arc<Pool>,
    clock: Clock,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), pool: Arc::new(Pool::new(1)), clock: Clock::system() }
    }

    pub fn tried(&self, target: Target, bytes: &[u8]) -> Outcome {
        let path = self.laid_out(target, bytes);
        let begun = self.clock.now();
        let work = || match target {
            Target::Gguf | Target::Folder => self.opened(&path),
            Target::Tokenizer => tokenizer("tokenizer.json", bytes),
            Target::Template => rendered(&String::from_utf8_lossy(bytes)),
        };
        let (result, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(work)));
        let told = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => other.downcast::<&str>().map_or_else(|_| "a panic".into(), |text| text.to_string()),
        };
        Outcome { result: result.map_err(told), peak, took: self.clock.now().since(begun) }
    }

    /// Puts it where it is opened from.
    fn laid_out(&self, target: Target, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.folder.path().join(match target {
            Target::Gguf => "model.gguf",
            _ => "folder",
        });
        match target {
            Target::Gguf => std::fs::write(&path, bytes).unwrap(),
            Target::Folder => {
                let _ = std::fs::remove_dir_all(&path);
                std::fs::create_dir(&path).unwrap();
                files_of(bytes)
                    .iter()
                    .for_each(|(name, content)| std::fs::write(path.join(name), content).unwrap());
            }
            Target::Tokenizer | Target::Template => {}
        }
        path
    }

    fn opened(&self, path: &Path) -> Result<(), String> {
        let name = path.to_str().unwrap();
        if EncoderCheckpoint::is_one(name) {
            let opened = EncoderCheckpoint::open(name, &self.pool).map_err(|e| e.to_string())?;
            return source(&opened.tokenizer);
        }
        let opened = Checkpoint::open(name, &self.pool).map_err(|e| e.to_string())?;
        opened.end_tokens().map_err(|e| e.to_string())?;
        source(&opened.text.tokenizer)?;
        let template = (opened.text.chat_template.as_deref(), &opened.text.tokenizer_config);
        ChatTemplate::of_checkpoint(template.0, template.1).map_err(|e| format!("{name}: {e}"))?;
        opened.load(Precision::AsStored, true, &|_| {}).map(drop).map_err(|e| e.to_string())
    }
}

fn source(of: &TokenizerSource) -> Result<(), String> {
    match of {
        TokenizerSource::Json { file, bytes } => tokenizer(file, bytes),
        TokenizerSource::Synthetic { .. } => Ok(()),
    }
}

/// Opened, and used: what goes wrong with a text must be an error, too.
fn tokenizer(file: &str, bytes: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::from_json(file, bytes).map_err(|e| e.to_string())?;
    for text in ["", "a", "Grüße, 12345 — 漢字🙂\n\n\u{0}", "aaaa bbbb <s> </s> ab", &"ab ".repeat(100)]
    {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = (tokenizer.decode(&ids), tokenizer.decode_all(&ids), tokenizer.encode_pair(text, "b"));
        ids.iter().for_each(|id| drop((tokenizer.token_bytes(*id), tokenizer.is_special(*id))));
    }
    Ok(())
}

fn rendered(source: &str) -> Result<(), String> {
    let message = |role: &str, content: String| Message { role: role.into(), content, ..Message::default() };
    let messages = [message("user", "y".repeat(4096)), message("assistant", "A b, <c> é".into())];
    let told = |e: hashwatt::text::TextError| format!("chat_template.jinja: {e}");
    let template = ChatTemplate::new(source, "<s>", "</s>").map_err(told)?;
    let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    template.render_with(&messages, true, Some(&tools), &Default::default()).map(drop).map_err(told)
}
