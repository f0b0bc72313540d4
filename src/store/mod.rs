//! L4a. The one SQLite file of a unit, under `--state-dir`: keys, and what was used with them.
//!
//! One process holds it at a time (a lock beside it says who); one thread writes. Records of usage come by a
//! channel and are committed in batches, questions and changes run on the same thread between two of them. A file
//! that a newer version has written is refused. Knows nothing of HTTP, of tokens or of meters.

mod keys;
mod schema;
mod usage;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

pub use keys::{KeyRecord, Limits, Scopes};
pub use schema::VERSION;
pub use usage::{By, Energy, Sum, UsageQuery, UsageRecord};
pub use writer::{Later, Settled};

use crate::error::{Class, Classified};
use writer::Command;

const FILE: &str = "hashwatt.db";
const LOCK: &str = "hashwatt.lock";
/// Records that wait for the writer; more are lost, and counted.
const WAITING: usize = 1 << 16;

/// Why the store cannot be used, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is held by the process {}", path.display(), holder.process)]
    Held { path: PathBuf, holder: Holder },
    #[error("{} has version {found}, this program knows {VERSION}: a newer hashwatt wrote it", path.display())]
    Newer { path: PathBuf, found: i64 },
    #[error("{} is a database of another program", path.display())]
    Foreign { path: PathBuf },
    #[error("the store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Refused(String),
    #[error("there is no {what} `{name}`")]
    Unknown { what: &'static str, name: String },
    #[error("the store's thread has ended")]
    Ended,
}

impl Classified for StoreError {
    fn class(&self) -> Class {
        match self {
            StoreError::Io { .. } | StoreError::Newer { .. } | StoreError::Foreign { .. } => {
                Class::Configuration
            }
            StoreError::Refused(_) => Class::InvalidRequest,
            StoreError::Unknown { .. } => Class::NotFound,
            StoreError::Held { .. } | StoreError::Ended => Class::Unavailable,
            StoreError::Sqlite(_) => Class::Internal,
        }
    }
}

/// Who has a store, as the lock's file tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    pub process: u32,
    /// Where it can be spoken to: a path of a socket.
    pub socket: Option<PathBuf>,
}

impl Holder {
    fn parse(text: &str) -> Holder {
        let mut lines = text.lines();
        let process = lines.next().and_then(|l| l.trim().parse().ok()).unwrap_or_default();
        Holder { process, socket: lines.next().map(PathBuf::from).filter(|p| !p.as_os_str().is_empty()) }
    }
}

/// A store that this process holds.
pub struct Store {
    commands: SyncSender<Command>,
    lost: Arc<AtomicU64>,
    path: PathBuf,
    writer: Option<JoinHandle<()>>,
    lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

impl Store {
    /// Takes the store in a folder; makes both where there is none.
    ///
    /// # Errors
    /// A folder that cannot be written, a store that another process holds, a newer or a foreign file.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io(folder))?;
        let private = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.open(path).map_err(io(path))
        };
        let lock_path = folder.join(LOCK);
        let mut lock = private(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                lock.read_to_string(&mut text).map_err(io(&lock_path))?;
                return Err(StoreError::Held { path: folder.to_owned(), holder: Holder::parse(&text) });
            }
            Err(TryLockError::Error(source)) => return Err(io(&lock_path)(source)),
        }
        let path = folder.join(FILE);
        // SQLite's own files beside it take its mode.
        drop(private(&path)?);
        let mut connection = Connection::open(&path)?;
        schema::prepare(&mut connection, &path)?;
        let (commands, received) = sync_channel(WAITING);
        let spawned = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer::Writer::new(connection).run(&received));
        let writer = Some(spawned.map_err(io(folder))?);
        let store = Store { commands, lost: Arc::default(), path, writer, lock };
        store.tell(None)?;
        Ok(store)
    }

    /// Whether the store in a folder has keys, without taking it.
    ///
    /// # Errors
    /// A file that is there and cannot be read: it may have some.
    pub fn has_keys(folder: &Path) -> Result<bool, StoreError> {
        let path = folder.join(FILE);
        let count = |connection: Connection| keys::exist(&connection);
        match path.try_exists() {
            Ok(false) => return Ok(false),
            Ok(true) => {}
            // Nothing could have been made in a folder that is none.
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(false),
            Err(source) => return Err(StoreError::Io { path, source }),
        }
        let found = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(count);
        // Where nothing may be written beside it. What lies in the log only would not be seen.
        let log = folder.join(format!("{FILE}-wal"));
        if found.is_err() && std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            return Ok(found?);
        }
        let unwritten = || {
            let uri = format!("file:{}?immutable=1", path.display());
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(uri, flags).and_then(count)
        };
        Ok(found.or_else(|_| unwritten())?)
    }

    /// Tells others where this process can be spoken to.
    ///
    /// # Errors
    /// A lock's file that cannot be written.
    pub fn tell(&self, socket: Option<&Path>) -> Result<(), StoreError> {
        let socket = socket.map(|s| s.display().to_string()).unwrap_or_default();
        let text = format!("{}\n{socket}\n", std::process::id());
        let mut lock = &self.lock;
        let wrote =
            lock.rewind().and_then(|()| lock.set_len(0)).and_then(|()| lock.write_all(text.as_bytes()));
        wrote.map_err(|source| StoreError::Io { path: self.path.with_file_name(LOCK), source })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what a request came to, without waiting: on disk within a second. `later` gives its joules once they are
    /// settled.
    pub fn record(&self, record: UsageRecord, later: Option<Later>) {
        if self.commands.try_send(Command::Record(Box::new(record), later)).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(lost, "a record of usage was lost: the store does not keep up");
        }
    }

    /// Runs on the writer's thread, after all that was recorded before. Blocks.
    pub(super) fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move |connection: &mut Connection| {
            // The asker may have gone.
            let _ = answer.send(work(connection));
        });
        self.commands.send(Command::Do(job)).map_err(|_| StoreError::Ended)?;
        answered.recv().map_err(|_| StoreError::Ended)?
    }

    /// Writes what is not on disk yet, before the process ends: whoever else still has the store may keep its thread.
    pub fn finish(&self) {
        let (done, answered) = sync_channel(1);
        if self.commands.send(Command::Finish(done)).is_ok() {
            let _ = answered.recv();
        }
    }

    /// Writes a copy of everything, as of now, into a new file.
    ///
    /// # Errors
    /// A file that is there already, or cannot be written.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let refused = |problem: &str| StoreError::Refused(format!("{}: {problem}", to.display()));
        if !to.is_absolute() {
            return Err(refused("a backup wants an absolute path"));
        }
        // Made here, so that nobody else may ever read it; VACUUM INTO takes an empty file.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        made.map_err(|source| StoreError::Io { path: to.to_owned(), source })?;
        let text = to.to_str().ok_or_else(|| refused("not a path in UTF-8"))?.to_owned();
        let written = self.run(move |connection| {
            connection.execute("VACUUM INTO ?1", [text])?;
            Ok(())
        });
        written.inspect_err(|_| drop(std::fs::remove_file(to)))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It writes what waits, then ends.
        let _ = self.commands.send(Command::End);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
