//! The hub's endpoint: what it is asked, what its answers mean, and how often it is asked again.

use std::time::Duration;

use super::listing::Listing;
use super::{HubError, HubName, Progress, Settings};
use crate::error::printable;
use crate::http_client::transfer::{Patience, Reply, Transfer};
use crate::http_client::{HttpError, shown};

/// How often the same is tried without getting further.
const TRIES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A server that asks for more patience than this is left alone.
const LONGEST_WAIT_SECONDS: u64 = 300;

pub struct Server<'a> {
    settings: &'a Settings,
    transfer: Transfer,
    progress: &'a dyn Progress,
}

/// What the endpoint says of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Names the blob; fit for a file name.
    pub etag: String,
    pub size: Option<u64>,
}

impl<'a> Server<'a> {
    pub fn new(settings: &'a Settings, progress: &'a dyn Progress) -> Server<'a> {
        Server { settings, transfer: Transfer::new(Patience::default()), progress }
    }

    fn token(&self) -> Option<&str> {
        self.settings.token.as_ref().map(|t| t.0.as_str())
    }

    pub fn listing(&self, name: &HubName) -> Result<Listing, HubError> {
        let (endpoint, repo, revision) =
            (&self.settings.endpoint, &name.repo, escaped(&name.revision, false));
        let url = format!("{endpoint}/api/models/{repo}/revision/{revision}?blobs=true");
        self.patiently(|| {
            let reply = self.transfer.get(&url, self.token(), 0)?;
            let reply = self.accepted(reply, name, None)?;
            Listing::parse(&shown(&url), &reply.json()?)
        })
    }

    pub fn file_url(&self, name: &HubName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, name.repo, escaped(file, true))
    }

    pub fn head(&self, name: &HubName, commit: &str, file: &str) -> Result<Head, HubError> {
        let url = self.file_url(name, commit, file);
        self.patiently(|| {
            let reply = self.transfer.head(&url, self.token())?;
            let leads_on = (300..400).contains(&reply.status());
            let reply = if leads_on { reply } else { self.accepted(reply, name, Some(file))? };
            let etag = reply.header("x-linked-etag").or(reply.header("etag")).unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
            let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.bytes().all(fine) {
                let problem = format!("its ETag {:?} names no content", printable(&etag, 80));
                return Err(HubError::Answer { url: shown(&url), problem });
            }
            let linked = reply.header("x-linked-size").and_then(|v| v.trim().parse().ok());
            // Of a redirect the length is its own.
            let size = linked.or_else(|| reply.length().filter(|_| !leads_on));
            Ok(Head { etag, size })
        })
    }

    /// One try: the answer with a file's bytes from an offset on.
    pub fn open(&self, name: &HubName, commit: &str, file: &str, from: u64) -> Result<Reply, HubError> {
        let reply = self.transfer.get(&self.file_url(name, commit, file), self.token(), from)?;
        // 416: there are no bytes behind the offset.
        if reply.status() == 416 { Ok(reply) } else { self.accepted(reply, name, Some(file)) }
    }

    /// Repeats what failed and may go well later.
    fn patiently<T>(&self, work: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut tries = 1;
        loop {
            match work() {
                Err(error) if error.is_transient() => self.pause(&mut tries, error)?,
                outcome => return outcome,
            }
        }
    }

    /// Waits before the next try, or gives the error back where there is none.
    pub fn pause(&self, tries: &mut u32, error: HubError) -> Result<(), HubError> {
        if *tries >= TRIES {
            return Err(error);
        }
        let mut pause = (self.settings.pause * 2u32.pow(*tries - 1)).min(LONGEST_PAUSE);
        if let HubError::Http(HttpError::Busy { retry_after_seconds: Some(seconds), .. }) = &error {
            if *seconds > LONGEST_WAIT_SECONDS {
                return Err(error);
            }
            pause = pause.max(Duration::from_secs(*seconds));
        }
        self.progress.note(&format!("{error}; trying again in {:.1} s", pause.as_secs_f64()));
        std::thread::sleep(pause);
        *tries += 1;
        Ok(())
    }

    /// The answer, if it is one; else what its status means. `file`: what was asked for, of the repository.
    fn accepted(&self, reply: Reply, name: &HubName, file: Option<&str>) -> Result<Reply, HubError> {
        let code = reply.status();
        if (200..300).contains(&code) {
            return Ok(reply);
        }
        let (repo, url) = (name.repo.clone(), reply.url.clone());
        let endpoint = shown(&self.settings.endpoint);
        let kind = reply.header("x-error-code").unwrap_or_default().to_string();
        let with_token = self.settings.token.is_some();
        match (code, kind.as_str()) {
            (403, _) | (_, "GatedRepo") => {
                let token = if with_token { "with the token's account" } else { "and set HF_TOKEN" };
                let hint = format!("it is gated or private: ask for access at {endpoint}/{repo} {token}");
                Err(HubError::Access { repo, code, hint })
            }
            // The hub does not tell strangers whether there is such a repository.
            (401, _) => {
                let hint = match with_token {
                    true => "there is no such repository, or the token (HF_TOKEN) is not one for it",
                    false => {
                        "there is no such repository (nor such a path here), or it wants a token: set HF_TOKEN"
                    }
                };
                Err(HubError::Access { repo, code, hint: hint.into() })
            }
            (404, "RevisionNotFound") => Err(HubError::NoRevision { repo, revision: name.revision.clone() }),
            (404, _) => match file {
                Some(file) => Err(HubError::NoFile { repo, file: file.into(), hint: String::new() }),
                None => {
                    let hint = if with_token { "" } else { "; a private one wants HF_TOKEN" };
                    Err(HubError::NoRepository { repo, endpoint, hint: hint.into() })
                }
            },
            (429 | 503, _) => {
                let retry_after_seconds = reply.header("retry-after").and_then(|v| v.trim().parse().ok());
                Err(HttpError::Busy { url, code, retry_after_seconds }.into())
            }
            _ => Err(HttpError::Status { url, code, detail: reply.detail() }.into()),
        }
    }
}

/// A part of a URL's path. `slashes` stay as they are in file names.
fn escaped(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if slashes => out.push('/'),
            _ if byte.is_ascii_alphanumeric() => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_escaped_as_urls_want_them() {
        assert_eq!(super::escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(super::escaped("a b/ü?#%.gguf", true), "a%20b/%C3%BC%3F%23%25.gguf");
    }
}
