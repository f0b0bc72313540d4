//! From a name to a snapshot: what is cached is taken, what is missing is fetched, small files first.
//!
//! A commit that is whole in the cache asks nobody. A branch asks what it is now; where the hub cannot be reached, what
//! it was last serves, with a warning. A revision leads to its new commit only when all of that is there.

use std::path::Path;

use super::cache::{CachedRepo, read_index};
use super::download::Download;
use super::listing::{CONFIG, INDEX, Listing, OPTIONAL};
use super::server::Server;
use super::{HubError, HubName, Progress, Settings, Snapshot};

pub struct Fetch<'a> {
    pub settings: &'a Settings,
    pub server: Server<'a>,
    pub name: &'a HubName,
    pub check: &'a dyn Fn(&Path) -> Result<(), String>,
    pub progress: &'a dyn Progress,
}

impl Fetch<'_> {
    pub fn run(&self) -> Result<Snapshot, HubError> {
        let cached = CachedRepo::new(&self.settings.cache, self.name);
        let commit = cached.commit();
        if self.name.is_commit() && cached.missing(&self.name.revision, true).is_empty() {
            return Ok(self.snapshot(&cached, &self.name.revision, 0));
        }
        if self.settings.offline {
            return self.as_cached(&cached, commit.as_deref());
        }
        let listing = match self.server.listing(self.name) {
            // Refused or away: what is there is served.
            Err(error) => match self.as_cached(&cached, commit.as_deref()) {
                Ok(found) => {
                    self.progress.note(&format!("{}: as it is in the cache; {error}", self.name));
                    return Ok(found);
                }
                Err(_) if !error.is_transient() => return Err(error),
                Err(_) => {
                    return Err(HubError::Away { name: self.name.to_string(), problem: error.to_string() });
                }
            },
            Ok(listing) => listing,
        };
        self.all(&cached, &listing)
    }

    fn all(&self, cached: &CachedRepo, listing: &Listing) -> Result<Snapshot, HubError> {
        let (commit, mut bytes) = (&listing.commit, 0);
        let mut get = |file: &str| -> Result<(), HubError> {
            let listed = &listing.files[file];
            // A commit's file does not change: what is there is not asked for again.
            if cached.has(commit, file, listed.size) {
                return Ok(());
            }
            let (server, name, progress) = (&self.server, self.name, self.progress);
            let download = Download { server, cached, name, commit, file, progress };
            bytes += download.run(listed)?;
            Ok(())
        };
        let small = listing.small_files(self.name)?;
        small.iter().try_for_each(|file| get(file))?;
        let folder = cached.snapshot(commit);
        if small.iter().any(|file| file == CONFIG) {
            let refused = |problem| HubError::Unusable { repo: self.name.to_string(), problem };
            (self.check)(&folder).map_err(refused)?;
        }
        let index = match small.iter().any(|file| file == INDEX) {
            false => None,
            true => Some(read_index(&folder.join(INDEX)).ok_or_else(|| HubError::Unusable {
                repo: self.name.to_string(),
                problem: format!("{INDEX}: `weight_map` does not name safetensors files"),
            })?),
        };
        listing.weights(self.name, index)?.iter().try_for_each(|file| get(file))?;
        if self.name.file.is_none() {
            let absent = OPTIONAL.iter().filter(|file| !listing.files.contains_key(**file));
            absent.into_iter().try_for_each(|file| cached.note_absent(commit, file))?;
        }
        cached.set_ref(commit)?;
        Ok(self.snapshot(cached, commit, bytes))
    }

    /// What there is without asking.
    fn as_cached(&self, cached: &CachedRepo, commit: Option<&str>) -> Result<Snapshot, HubError> {
        let missing = match commit {
            None => vec![format!("the revision {}", self.name.revision)],
            Some(commit) => cached.missing(commit, false),
        };
        match (commit, missing.is_empty()) {
            (Some(commit), true) => Ok(self.snapshot(cached, commit, 0)),
            _ => Err(HubError::Offline {
                name: self.name.to_string(),
                cache: self.settings.cache.display().to_string(),
                missing: missing.join(", "),
            }),
        }
    }

    fn snapshot(&self, cached: &CachedRepo, commit: &str, bytes: u64) -> Snapshot {
        let folder = cached.snapshot(commit);
        let path = self.name.file.as_ref().map_or_else(|| folder.clone(), |file| folder.join(file));
        Snapshot { path, commit: commit.into(), bytes }
    }
}
