//! What an operator calls a model of the hub: `org/name`, `org/name@revision`, `org/name:file.gguf`.
//!
//! The text of `--model` → its parts, each safe as part of a path and of a URL. Knows no file system: that a folder
//! of that name wins is for the one who asks.

use std::fmt;

use super::HubError;

/// The longest part of a repository's name that the hub gives.
const LONGEST_PART: usize = 96;
const LONGEST_REVISION: usize = 256;
/// Files that hold a program, which is run when it is read.
pub(super) const PICKLES: [&str; 8] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `org/name`.
    pub repo: String,
    pub revision: String,
    /// The one file that is wanted, a GGUF.
    pub file: Option<String>,
}

impl HubName {
    /// `None`: `text` is something else, as a path is.
    ///
    /// # Errors
    /// A repository whose revision or file is none.
    pub fn parse(text: &str) -> Result<Option<HubName>, HubError> {
        let (rest, file) = text.split_once(':').map_or((text, None), |(rest, file)| (rest, Some(file)));
        let (repo, revision) = rest.split_once('@').map_or((rest, None), |(repo, r)| (repo, Some(r)));
        let Some((org, name)) = repo.split_once('/') else { return Ok(None) };
        // What looks like a file is a path with a slip of the pen.
        let is_file = revision.is_none()
            && file.is_none()
            && [".gguf", ".safetensors"].iter().any(|e| repo.ends_with(e));
        if !is_part(org) || !is_part(name) || is_file || is_pickle(repo) {
            return Ok(None);
        }
        let wrong = |problem: String| HubError::Name { name: text.into(), problem };
        let revision = revision.unwrap_or("main");
        if !is_revision(revision) {
            return Err(wrong(format!("{revision:?} is no branch, tag or commit")));
        }
        if let Some(file) = file {
            if is_pickle(file) {
                return Err(HubError::Pickle { repo: repo.into(), file: file.into() });
            }
            if !is_safe_path(file) || !file.ends_with(".gguf") {
                return Err(wrong(format!(
                    "after the colon stands a GGUF file of the repository, not {file:?}"
                )));
            }
        }
        let file = file.map(str::to_string);
        Ok(Some(HubName { repo: repo.into(), revision: revision.into(), file }))
    }

    /// A commit never changes; a branch or a tag may.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn is_pickle(file: &str) -> bool {
    PICKLES.iter().any(|ending| file.ends_with(ending))
}

/// A path below a folder, and nowhere else, whatever reads it.
pub(super) fn is_safe_path(path: &str) -> bool {
    let fine = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 512
        && path.split('/').all(fine)
        && path.chars().all(|c| !c.is_control() && !matches!(c, '\\' | ':'))
}

/// The hub's own rule: a double dash would be taken for the slash in the cache's folder names.
fn is_part(text: &str) -> bool {
    let edge = |c: char| matches!(c, '.' | '-');
    (1..=LONGEST_PART).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

fn is_revision(text: &str) -> bool {
    text.len() <= LONGEST_REVISION
        && is_safe_path(text)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_repository_a_revision_and_perhaps_a_file() {
        let of = |text: &str| {
            let name = HubName::parse(text).unwrap().unwrap();
            assert_eq!(name.to_string(), text);
            (name.repo, name.revision, name.file)
        };
        let parts = |repo: &str, revision: &str, file: Option<&str>| {
            (repo.to_string(), revision.to_string(), file.map(str::to_string))
        };
        assert_eq!(of("Qwen/Qwen3-0.6B"), parts("Qwen/Qwen3-0.6B", "main", None));
        assert_eq!(of("a/b@refs/pr/1"), parts("a/b", "refs/pr/1", None));
        assert_eq!(of("a/b-GGUF:q4/b.gguf"), parts("a/b-GGUF", "main", Some("q4/b.gguf")));
        assert_eq!(of("a/b@v1.0:b.gguf"), parts("a/b", "v1.0", Some("b.gguf")));
    }

    #[test]
    fn what_is_no_name_is_left_to_others_and_what_is_wrong_is_told() {
        for path in [
            "demo",
            "synthetic:qwen3-0.6b",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "a/../b",
            "a/.b",
            "a/b.gguf",
            "a/pytorch_model.bin",
            "a--b/c",
            "a/b c",
            "~/m",
            "",
        ] {
            assert_eq!(HubName::parse(path).unwrap(), None, "{path}");
        }
        for (text, word) in [
            ("a/b@", "branch"),
            ("a/b@../../x", "branch"),
            ("a/b:../x.gguf", "GGUF"),
            ("a/b:model.safetensors", "GGUF"),
            ("a/b:pytorch_model.bin", "pickle"),
        ] {
            let error = HubName::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("a/b"), "{error}");
        }
    }
}
