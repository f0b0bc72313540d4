//! The cache's folders: `models--org--name/{blobs,refs,snapshots}`, as Hugging Face's tools lay them out and share them.
//!
//! A blob is a file's content under its etag, a snapshot a folder of links to blobs, a ref a branch's commit;
//! `.no_exist` holds the names of files that a commit is known to lack. `hf-hub` names folders and writes refs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::listing::{CONFIG, INDEX, OPTIONAL, TOKENIZER, WEIGHTS, shards};
use super::name::is_commit;
use super::{Cached, HubError, HubName};

/// Of an index of weights: what is read at most.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Folders in a ref's name, as in `refs/pr/1`.
const REF_DEPTH: usize = 6;

pub struct CachedRepo<'a> {
    cache: Cache,
    repo: Repo,
    name: &'a HubName,
}

impl<'a> CachedRepo<'a> {
    pub fn new(cache: &Path, name: &'a HubName) -> CachedRepo<'a> {
        let repo = Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone());
        CachedRepo { cache: Cache::new(cache.into()), repo, name }
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    /// The commit that the name's revision was when it was last fetched.
    pub fn commit(&self) -> Option<String> {
        if self.name.is_commit() {
            return Some(self.name.revision.clone());
        }
        let text = fs::read_to_string(self.folder().join("refs").join(self.repo.revision())).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// What is there of a blob that is being fetched.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether a commit's file is there, of the size that is said of it.
    pub fn has(&self, commit: &str, file: &str, size: Option<u64>) -> bool {
        let found = fs::metadata(self.snapshot(commit).join(file));
        found.is_ok_and(|m| m.is_file() && size.is_none_or(|size| m.len() == size))
    }

    /// The files that the named model needs and a snapshot lacks. `surely`: files that a model may have count as
    /// lacking until the commit is known not to have them.
    pub fn missing(&self, commit: &str, surely: bool) -> Vec<String> {
        let snapshot = self.snapshot(commit);
        let lacks = |file: &str| !snapshot.join(file).is_file();
        if let Some(file) = &self.name.file {
            return Some(file.clone()).filter(|file| lacks(file)).into_iter().collect();
        }
        let mut wanted = vec![CONFIG.to_string(), TOKENIZER.to_string()];
        match lacks(INDEX) {
            true => wanted.push(WEIGHTS.into()),
            false => match read_index(&snapshot.join(INDEX)) {
                Some(shards) => wanted.extend(shards),
                None => return vec![INDEX.into()],
            },
        }
        let known_absent = |file: &str| self.absent(commit, file).is_file();
        let optional = OPTIONAL.iter().filter(|file| surely && !known_absent(file));
        wanted.extend(optional.map(ToString::to_string));
        wanted.retain(|file| lacks(file));
        wanted
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(file)
    }

    pub fn note_absent(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.absent(commit, file);
        make_parent(&path)?;
        File::create(&path).map(drop).map_err(|e| HubError::io(&path, e))
    }

    /// From now on the name's revision is this commit.
    pub fn set_ref(&self, commit: &str) -> Result<(), HubError> {
        if self.name.is_commit() || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let refs = self.folder().join("refs");
        self.cache.repo(self.repo.clone()).create_ref(commit).map_err(|e| HubError::io(&refs, e))
    }

    /// Waits until no other process fetches this blob, Hugging Face's own tools included.
    pub fn lock(&self, etag: &str, waits: impl FnOnce()) -> Result<File, HubError> {
        let folder = self.cache.path().join(".locks").join(self.repo.folder_name());
        let path = folder.join(format!("{etag}.lock"));
        make_parent(&path)?;
        make_parent(&self.blob(etag))?;
        let fail = |e| HubError::io(&path, e);
        let file = File::options().create(true).append(true).open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                waits();
                file.lock().map_err(fail)?;
            }
            // Then the checksum alone tells that two have written.
            Err(fs::TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
            Err(fs::TryLockError::Error(e)) => return Err(fail(e)),
        }
        Ok(file)
    }

    /// Makes a snapshot's file be this blob.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(HubError::io(&path, e)),
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &path).map_err(|e| HubError::io(&path, e))
    }
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| HubError::io(parent, e))
}

/// The shards of an index in the cache; `None` where it is none.
pub fn read_index(path: &Path) -> Option<Vec<String>> {
    if fs::metadata(path).ok()?.len() > MAX_INDEX_BYTES {
        return None;
    }
    let index: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    shards(&index)
}

/// Bytes that may still be written below a folder; `None` where the system does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros are a value of this struct of numbers, the path ends with a zero and outlives the call.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        let told = libc::statvfs(path.as_ptr(), &mut found) == 0;
        told.then(|| found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Every snapshot of a model, under each revision that leads to it.
pub fn list(cache: &Path) -> Vec<Cached> {
    let mut found = Vec::new();
    for folder in entries(cache) {
        let Some(repo) = file_name(&folder).strip_prefix("models--").map(|r| r.replacen("--", "/", 1)) else {
            continue;
        };
        let mut refs = Vec::new();
        read_refs(&folder.join("refs"), "", REF_DEPTH, &mut refs);
        for snapshot in entries(&folder.join("snapshots")) {
            let commit = file_name(&snapshot);
            let mut names: Vec<String> = refs
                .iter()
                .filter(|(_, to)| *to == commit)
                .map(|(name, _)| if name == "main" { repo.clone() } else { format!("{repo}@{name}") })
                .collect();
            if names.is_empty() {
                names.push(format!("{repo}@{commit}"));
            }
            let of = |name| Cached { name, commit: commit.clone(), folder: snapshot.clone() };
            found.extend(names.into_iter().map(of));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn read_refs(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, String)>) {
    for entry in entries(folder) {
        let name = format!("{prefix}{}", file_name(&entry));
        match fs::read_to_string(&entry) {
            Ok(commit) => found.push((name, commit.trim().to_string())),
            Err(_) if depth > 0 => read_refs(&entry, &format!("{name}/"), depth - 1, found),
            Err(_) => {}
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
