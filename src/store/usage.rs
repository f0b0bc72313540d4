//! What requests came to: one record each, never a word of text; and sums over them.

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, named_params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// Joules of a request, as far as they are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Energy {
    pub prefill_joules: f64,
    pub decode_joules: f64,
    /// How they were measured, and inside which boundary.
    pub method: String,
    pub boundary: &'static str,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct UsageRecord {
    /// Unix seconds of its end.
    pub ended: u64,
    /// The key's id; empty where nobody had to show one.
    pub key: String,
    pub model: String,
    pub endpoint: String,
    pub tier: &'static str,
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// An estimate until it is settled.
    pub energy: Option<Energy>,
    pub first_token_seconds: Option<f64>,
    pub seconds: f64,
    /// `stop`, `length`, `tool_calls`, `abort` or `error`.
    pub finish: &'static str,
}

/// What sums are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Key,
    /// Of UTC.
    Day,
    Model,
    Endpoint,
}

impl By {
    const ALL: [By; 4] = [By::Key, By::Day, By::Model, By::Endpoint];

    pub fn word(self) -> &'static str {
        match self {
            By::Key => "key",
            By::Day => "day",
            By::Model => "model",
            By::Endpoint => "endpoint",
        }
    }
}

impl std::str::FromStr for By {
    type Err = String;
    fn from_str(text: &str) -> Result<By, String> {
        let found = By::ALL.into_iter().find(|by| by.word() == text);
        found.ok_or_else(|| format!("{text:?} is not key, day, model or endpoint"))
    }
}

/// Which records are summed up, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageQuery {
    pub by: Vec<By>,
    /// Unix seconds: from, and up to but not at.
    pub since: Option<u64>,
    pub until: Option<u64>,
    /// Of one key only.
    pub key: Option<String>,
}

/// A sum. Joules of another method or boundary are never added up, so they have sums of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    pub requests: u64,
    /// Of these, failed by our fault; their tokens are not counted.
    pub failed: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub prefill_joules: f64,
    pub decode_joules: f64,
    pub method: Option<String>,
    pub boundary: Option<String>,
    /// Requests whose joules are an estimate.
    pub unsettled: u64,
}

/// `settled`: its joules are known for good.
pub(super) fn insert(connection: &Connection, record: &UsageRecord, settled: bool) -> rusqlite::Result<i64> {
    let energy = record.energy.as_ref();
    connection
        .prepare_cached(
            "INSERT INTO usage (ended, key, model, endpoint, tier, prompt_tokens, cached_tokens,
                completion_tokens, prefill_joules, decode_joules, method, boundary, settled,
                first_token_seconds, seconds, finish)
             VALUES (:ended, :key, :model, :endpoint, :tier, :prompt, :cached, :completion, :prefill, :decode,
                :method, :boundary, :settled, :first, :seconds, :finish)",
        )?
        .execute(named_params! {
            ":ended": record.ended, ":key": record.key, ":model": record.model, ":endpoint": record.endpoint,
            ":tier": record.tier, ":prompt": record.prompt_tokens, ":cached": record.cached_tokens,
            ":completion": record.completion_tokens, ":prefill": energy.map(|e| e.prefill_joules),
            ":decode": energy.map(|e| e.decode_joules), ":method": energy.map(|e| &e.method),
            ":boundary": energy.map(|e| e.boundary), ":settled": settled, ":first": record.first_token_seconds,
            ":seconds": record.seconds, ":finish": record.finish,
        })?;
    Ok(connection.last_insert_rowid())
}

/// The joules of a record are known for good.
pub(super) fn settle(connection: &Connection, id: i64, energy: &Energy) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached(
        "UPDATE usage SET prefill_joules = ?2, decode_joules = ?3, method = ?4, boundary = ?5, settled = 1
         WHERE id = ?1",
    )?;
    update.execute((id, energy.prefill_joules, energy.decode_joules, &energy.method, energy.boundary))?;
    Ok(())
}

impl Store {
    /// # Errors
    /// A file that cannot be read.
    pub fn usage(&self, query: &UsageQuery) -> Result<Vec<Sum>, StoreError> {
        // Up to what was recorded before; then beside the thread that writes, which it may take long to ask.
        self.run(|_| Ok(()))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        Ok(sums(&Connection::open_with_flags(&self.path, flags)?, query)?)
    }
}

fn sums(connection: &Connection, query: &UsageQuery) -> rusqlite::Result<Vec<Sum>> {
    let of = |by: By, column: &'static str| if query.by.contains(&by) { column } else { "NULL" };
    let (mut wheres, mut values) = (vec!["1"], Vec::new());
    for (value, condition) in [(query.since, "ended >= ?"), (query.until, "ended < ?")] {
        if let Some(value) = value {
            wheres.push(condition);
            values.push(Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
        }
    }
    if let Some(key) = &query.key {
        wheres.push("key = ?");
        values.push(Value::Text(key.clone()));
    }
    let sql = format!(
        "SELECT {}, {}, {}, {}, count(*), sum(finish = 'error'),
            sum(iif(finish = 'error', 0, prompt_tokens)), sum(iif(finish = 'error', 0, cached_tokens)),
            sum(iif(finish = 'error', 0, completion_tokens)), total(prefill_joules), total(decode_joules),
            method, boundary, sum(settled = 0)
         FROM usage WHERE {} GROUP BY 1, 2, 3, 4, method, boundary ORDER BY 2, 1, 3, 4, method, boundary",
        of(By::Key, "key"),
        of(By::Day, "strftime('%Y-%m-%d', ended, 'unixepoch')"),
        of(By::Model, "model"),
        of(By::Endpoint, "endpoint"),
        wheres.join(" AND ")
    );
    let mut statement = connection.prepare(&sql)?;
    let found = statement.query_map(params_from_iter(values), |row| {
        Ok(Sum {
            key: row.get(0)?,
            day: row.get(1)?,
            model: row.get(2)?,
            endpoint: row.get(3)?,
            requests: row.get(4)?,
            failed: row.get(5)?,
            prompt_tokens: row.get(6)?,
            cached_tokens: row.get(7)?,
            completion_tokens: row.get(8)?,
            prefill_joules: row.get(9)?,
            decode_joules: row.get(10)?,
            method: row.get(11)?,
            boundary: row.get(12)?,
            unsettled: row.get(13)?,
        })
    })?;
    found.collect()
}
