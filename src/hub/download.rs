//! One file of a repository into a blob: goes on where an earlier try stopped, and is believed only by its checksum.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::cache::{CachedRepo, free_bytes};
use super::checksum::{Checksum, Hasher};
use super::listing::Listed;
use super::server::Server;
use super::{HubError, HubName, Progress};
use crate::http_client::shown;
use crate::http_client::transfer::Reply;

const PIECE_BYTES: usize = 1 << 20;

pub struct Download<'a> {
    pub server: &'a Server<'a>,
    pub cached: &'a CachedRepo<'a>,
    pub name: &'a HubName,
    pub commit: &'a str,
    pub file: &'a str,
    pub progress: &'a dyn Progress,
}

impl Download<'_> {
    /// Puts the file into the snapshot; the bytes that came over the network. `listed`: what the repository says of it.
    pub fn run(&self, listed: &Listed) -> Result<u64, HubError> {
        let head = self.server.head(self.name, self.commit, self.file)?;
        let url = || shown(&self.server.file_url(self.name, self.commit, self.file));
        let Some(size) = listed.size.or(head.size) else {
            return Err(HubError::Answer { url: url(), problem: "it does not say how long it is".into() });
        };
        let checksum = listed.checksum.clone().or_else(|| Checksum::of_etag(&head.etag));
        if checksum.is_none() {
            self.progress.note(&format!(
                "{}: the server has no checksum of it; only its length is compared",
                self.file
            ));
        }
        let waits = || self.progress.note(&format!("{}: another process fetches it; waiting", self.file));
        let lock = self.cached.lock(&head.etag, waits)?;
        let blob = self.cached.blob(&head.etag);
        let mut bytes = 0;
        // The wrong length is no blob of ours: it is fetched anew.
        if !fs::metadata(&blob).is_ok_and(|m| m.is_file() && m.len() == size) {
            let mut partial = Partial::open(self.cached.partial(&head.etag), self.file, size, checksum)?;
            self.progress.begin(self.file, size, partial.length);
            let outcome = self.fill(&mut partial);
            self.progress.end();
            bytes = partial.came;
            outcome?;
            partial.become_blob(&blob)?;
        }
        self.cached.link(&head.etag, self.commit, self.file)?;
        drop(lock);
        Ok(bytes)
    }

    /// Until the whole file is there and right. What is wrong is fetched once more from its beginning.
    fn fill(&self, partial: &mut Partial) -> Result<(), HubError> {
        partial.check_room()?;
        let (mut tries, mut furthest, mut wrong) = (1, partial.length, false);
        loop {
            if partial.length == partial.size {
                match partial.verify() {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        partial.reset()?;
                        if std::mem::replace(&mut wrong, true) {
                            partial.remove();
                            return Err(error);
                        }
                        self.progress.note(&format!("{}: its checksum is wrong; once more", self.file));
                        furthest = 0;
                        continue;
                    }
                }
            }
            let outcome = self.append(partial);
            if partial.length > furthest {
                (tries, furthest) = (1, partial.length);
            }
            match outcome {
                Ok(()) => {}
                Err(error) if error.is_transient() => self.server.pause(&mut tries, error)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// One request: as many bytes as come.
    fn append(&self, partial: &mut Partial) -> Result<(), HubError> {
        let reply = self.server.open(self.name, self.commit, self.file, partial.length)?;
        let url = reply.url.clone();
        let wrong = |problem: String| HubError::Answer { url: url.clone(), problem };
        match (reply.status(), partial.length) {
            // It begins at its beginning, whatever was asked for.
            (200, _) => partial.reset()?,
            (206, length) => {
                let range =
                    Range::of(&reply).ok_or_else(|| wrong("it is a part and does not say which".into()))?;
                if range.total.is_some_and(|total| total != partial.size) || range.first != length {
                    partial.reset()?;
                    return Err(partial.cut("the part that came is not the one that was asked for"));
                }
            }
            (416, 1..) => return partial.reset(),
            (code, _) => return Err(wrong(format!("HTTP {code}"))),
        }
        self.progress.reached(partial.length);
        if reply.status() == 200 && reply.length().is_some_and(|n| n != partial.size) {
            return Err(wrong(format!(
                "{} bytes come instead of {}",
                reply.length().unwrap_or(0),
                partial.size
            )));
        }
        let mut reader = reply.reader();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match reader.read(&mut piece) {
                Ok(0) if partial.length == partial.size => return Ok(()),
                Ok(0) => return Err(partial.cut("no more came")),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(partial.cut(&e.to_string())),
            };
            if partial.length + read as u64 > partial.size {
                return Err(wrong(format!("more than {} bytes come", partial.size)));
            }
            partial.append(&piece[..read])?;
            self.progress.reached(partial.length);
        }
    }
}

/// What a `Content-Range` says.
struct Range {
    first: u64,
    total: Option<u64>,
}

impl Range {
    fn of(reply: &Reply) -> Option<Range> {
        let (range, total) = reply.header("content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
        Some(Range { first: range.split_once('-')?.0.trim().parse().ok()?, total: total.trim().parse().ok() })
    }
}

/// The bytes that are there, and their hash so far.
struct Partial {
    path: PathBuf,
    /// As messages name it.
    name: String,
    file: File,
    length: u64,
    size: u64,
    checksum: Option<Checksum>,
    hasher: Option<Hasher>,
    /// Bytes that came over the network.
    came: u64,
}

impl Partial {
    /// Reads what an earlier try left.
    fn open(path: PathBuf, name: &str, size: u64, checksum: Option<Checksum>) -> Result<Partial, HubError> {
        let fail = |e| HubError::io(&path, e);
        let options = || File::options().create(true).read(true).append(true).open(&path);
        let file = options().map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let hasher = checksum.as_ref().map(|c| c.hasher(size));
        let mut partial =
            Partial { path: path.clone(), name: name.into(), file, length, size, checksum, hasher, came: 0 };
        if length > size {
            partial.reset()?;
        }
        let mut piece = vec![0; PIECE_BYTES];
        while let (Some(hasher), read @ 1..) =
            (&mut partial.hasher, partial.file.read(&mut piece).map_err(|e| HubError::io(&path, e))?)
        {
            hasher.update(&piece[..read]);
        }
        Ok(partial)
    }

    fn check_room(&self) -> Result<(), HubError> {
        let needed = self.size - self.length;
        match self.path.parent().and_then(free_bytes) {
            Some(free) if free < needed => {
                Err(HubError::DiskFull { path: self.path.display().to_string(), needed, free })
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, piece: &[u8]) -> Result<(), HubError> {
        self.file.write_all(piece).map_err(|e| HubError::io(&self.path, e))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        self.length += piece.len() as u64;
        self.came += piece.len() as u64;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), HubError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|e| HubError::io(&self.path, e))?;
        self.length = 0;
        self.hasher = self.checksum.as_ref().map(|c| c.hasher(self.size));
        Ok(())
    }

    fn verify(&mut self) -> Result<(), HubError> {
        let (Some(checksum), Some(hasher)) = (&self.checksum, self.hasher.take()) else { return Ok(()) };
        let got = hasher.hex();
        match got == checksum.hex() {
            true => Ok(()),
            false => {
                Err(HubError::Checksum { file: self.name.clone(), expected: checksum.hex().into(), got })
            }
        }
    }

    fn cut(&self, problem: &str) -> HubError {
        HubError::Cut { file: self.name.clone(), at: self.length, size: self.size, problem: problem.into() }
    }

    fn remove(&self) {
        // It is empty: what stays costs nothing.
        let _ = fs::remove_file(&self.path);
    }

    /// On the disk before it has its name: after a power cut a blob is whole.
    fn become_blob(self, blob: &Path) -> Result<(), HubError> {
        self.file.sync_all().and_then(|()| fs::rename(&self.path, blob)).map_err(|e| HubError::io(blob, e))
    }
}
