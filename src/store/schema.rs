//! The tables, version by version: an older file is brought forward step by step in one transaction, a newer one
//! is refused.
//!
//! A step that was released is never changed; a new one is added.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::StoreError;

/// "hswt": which program's file this is.
const APPLICATION: i64 = 0x6873_7774;

pub(super) const STEPS: &[&str] = &[
    // 1: keys and usage.
    "CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL UNIQUE,
        shown TEXT NOT NULL,
        created INTEGER NOT NULL,
        revoked INTEGER,
        scopes TEXT NOT NULL,
        limits TEXT NOT NULL
     ) STRICT;
     CREATE TABLE usage (
        id INTEGER PRIMARY KEY,
        ended INTEGER NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        tier TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        prefill_joules REAL,
        decode_joules REAL,
        method TEXT,
        boundary TEXT,
        settled INTEGER NOT NULL,
        first_token_seconds REAL,
        seconds REAL NOT NULL,
        finish TEXT NOT NULL
     ) STRICT;",
    // 2: a key that was replaced holds for a while; sums of a key's day are looked up at each start.
    "ALTER TABLE keys ADD COLUMN previous_digest BLOB;
     ALTER TABLE keys ADD COLUMN previous_until INTEGER;
     CREATE INDEX usage_by_time ON usage (ended, key);",
];

/// Version of the files this program writes.
pub const VERSION: i64 = STEPS.len() as i64;

/// Sets the connection up and brings the file forward.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::from_secs(5))?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let found = number("user_version")?;
    let application = number("application_id")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && (application != 0 || tables > 0) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if found > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found });
    }
    // Answers with the mode that it has become.
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // A commit outlives the machine's power, too; it is off every request's path.
    connection.pragma_update(None, "synchronous", "full")?;
    bring_forward(connection, found, VERSION)
}

pub(super) fn bring_forward(connection: &mut Connection, from: i64, to: i64) -> Result<(), StoreError> {
    if from == to {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for (_, step) in STEPS.iter().enumerate().filter(|(i, _)| (from..to).contains(&(*i as i64))) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", to)?;
    transaction.commit()?;
    Ok(())
}
