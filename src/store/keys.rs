//! Keys as they are kept: who may do what, and how much. Of a key itself only its digest.

use rusqlite::{Connection, OptionalExtension, Row, named_params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// What a key may be used for; an empty list is no restriction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scopes {
    pub models: Vec<String>,
    /// Paths, as `/v1/chat/completions`.
    pub endpoints: Vec<String>,
    pub tiers: Vec<String>,
}

/// How much a key may be used; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub concurrent: Option<u64>,
    pub tokens_per_day: Option<u64>,
    pub joules_per_day: Option<f64>,
}

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRecord {
    pub id: String,
    pub name: String,
    pub digest: [u8; 32],
    /// Its first characters, to tell keys apart.
    pub shown: String,
    /// Unix seconds.
    pub created: u64,
    pub revoked: Option<u64>,
    pub scopes: Scopes,
    pub limits: Limits,
    /// The one before, and until when it holds.
    pub previous: Option<([u8; 32], u64)>,
}

pub(super) fn exist(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))
}

fn record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    let json = |name: &str| row.get::<_, String>(name);
    // What a newer minor version may have written is refused, not guessed at.
    let wrong = |e: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e))
    };
    let previous: Option<[u8; 32]> = row.get("previous_digest")?;
    let until: Option<u64> = row.get("previous_until")?;
    Ok(KeyRecord {
        id: row.get("id")?,
        name: row.get("name")?,
        digest: row.get("digest")?,
        shown: row.get("shown")?,
        created: row.get("created")?,
        revoked: row.get("revoked")?,
        scopes: serde_json::from_str(&json("scopes")?).map_err(wrong)?,
        limits: serde_json::from_str(&json("limits")?).map_err(wrong)?,
        previous: previous.zip(until),
    })
}

impl Store {
    /// All keys, in the order they were made.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.run(|connection| {
            let mut all = connection.prepare("SELECT * FROM keys ORDER BY created, id")?;
            let found = all.query_map([], record)?.collect::<Result<_, _>>()?;
            Ok(found)
        })
    }

    /// # Errors
    /// A name that is taken.
    pub fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        self.run(move |connection| {
            let taken = "SELECT 1 FROM keys WHERE name = ?1";
            if connection.query_row(taken, [&key.name], |_| Ok(())).optional()?.is_some() {
                return Err(StoreError::Refused(format!("a key named `{}` exists already", key.name)));
            }
            let json = |value: serde_json::Result<String>| {
                value.map_err(|e| StoreError::Refused(format!("the key cannot be written: {e}")))
            };
            connection.execute(
                "INSERT INTO keys (id, name, digest, shown, created, scopes, limits)
                 VALUES (:id, :name, :digest, :shown, :created, :scopes, :limits)",
                named_params! {
                    ":id": key.id, ":name": key.name, ":digest": key.digest, ":shown": key.shown,
                    ":created": key.created, ":scopes": json(serde_json::to_string(&key.scopes))?,
                    ":limits": json(serde_json::to_string(&key.limits))?,
                },
            )?;
            Ok(())
        })
    }

    /// A key holds no more, nor does the one before it.
    ///
    /// # Errors
    /// A key that does not exist.
    pub fn revoke_key(&self, id: &str, now: u64) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.run(move |connection| {
            let changed = connection.execute(
                "UPDATE keys SET revoked = coalesce(revoked, ?2), previous_digest = NULL, previous_until = NULL
                 WHERE id = ?1",
                (&id, now),
            )?;
            if changed == 0 { Err(StoreError::Unknown { what: "key", name: id }) } else { Ok(()) }
        })
    }

    /// Puts another secret in place of a key's; the old one holds until then.
    ///
    /// # Errors
    /// A key that does not exist or is revoked.
    pub fn rotate_key(
        &self,
        id: &str,
        digest: [u8; 32],
        shown: String,
        old_until: Option<u64>,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.run(move |connection| {
            let changed = connection.execute(
                "UPDATE keys SET previous_digest = CASE WHEN ?4 IS NULL THEN NULL ELSE digest END,
                    previous_until = ?4, digest = ?2, shown = ?3 WHERE id = ?1 AND revoked IS NULL",
                (&id, digest, shown, old_until),
            )?;
            if changed == 0 { Err(StoreError::Unknown { what: "key in force", name: id }) } else { Ok(()) }
        })
    }
}
