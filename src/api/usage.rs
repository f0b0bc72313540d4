//! `GET /v1/usage`: what a key used itself; and how questions about usage are read and answered, everybody's too.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::access::{Access, DAY};
use crate::api::ApiState;
use crate::api::admin::blocking;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::store::{By, UsageQuery};

/// Which days are asked about when nothing is said.
pub enum Days {
    All,
    /// The last thirty before this second.
    UpTo(u64),
}

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/v1/usage", get(own))
}

/// The key's own records, and no others: without keys there is one user, everybody.
async fn own(State(state): State<Arc<ApiState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let caller = Caller::of(&request);
    let now = caller.access().clock().unix_seconds();
    let query = parse(request.uri().query().unwrap_or_default(), &Days::UpTo(now))?;
    if query.key.is_some() || query.by.contains(&By::Key) {
        let param = if query.key.is_some() { "key" } else { "by" };
        return Err(ApiError::invalid("A key is told its own usage only", Some(param)));
    }
    let query = UsageQuery { key: Some(caller.id().to_owned()), ..query };
    let mut answer = answer(&state.config.access, query).await?;
    if let Some(account) = caller.account() {
        let (tokens, joules) = account.today();
        answer["today"] = json!({"tokens": tokens, "joules": joules});
        answer["limits"] = json!(account.limits);
    }
    Ok(answer)
}

/// Sums as JSON.
pub async fn answer(access: &Arc<Access>, query: UsageQuery) -> Result<Json<Value>, ApiError> {
    let data = blocking(access, move |access| access.usage(&query));
    Ok(Json(json!({"object": "usage", "data": data.await?})))
}

/// `by=day,model&since=2026-11-01&until=2026-12-01&key=ID`; `until` is the first day that is not asked about.
pub fn parse(text: &str, days: &Days) -> Result<UsageQuery, ApiError> {
    let mut query = UsageQuery::default();
    if let Days::UpTo(now) = days {
        query.since = Some((now / DAY).saturating_sub(30) * DAY);
        query.by = vec![By::Day];
    }
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let (name, value) = (&*name, value.into_owned());
        let wrong = |problem: String| ApiError::invalid(format!("{name}: {problem}"), Some(name));
        if seen.iter().any(|seen| seen == name) {
            return Err(wrong("is given twice".into()));
        }
        seen.push(name.to_owned());
        match name {
            "by" => {
                query.by.clear();
                for by in value.split(',').map(str::trim).filter(|s| !s.is_empty()) {
                    let by = by.parse().map_err(&wrong)?;
                    // Once is enough.
                    if !query.by.contains(&by) {
                        query.by.push(by);
                    }
                }
            }
            "since" => query.since = Some(day(&value).ok_or_else(|| wrong(not_a_day(&value)))?),
            "until" => query.until = Some(day(&value).ok_or_else(|| wrong(not_a_day(&value)))?),
            "key" => query.key = Some(value),
            _ => {
                let message = format!("Unknown query parameter: {name}");
                return Err(ApiError {
                    code: Some("unknown_parameter"),
                    ..ApiError::invalid(message, Some(name))
                });
            }
        }
    }
    Ok(query)
}

fn not_a_day(text: &str) -> String {
    format!("{text:?} is not a day of UTC, as 2026-11-27")
}

/// Unix seconds of a day's beginning, of years 1970 to 9999.
pub fn day(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, '-');
    let mut number = |digits: usize| {
        let part = parts.next().filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()))?;
        part.parse::<u64>().ok()
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = if leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    let length = *lengths.get(before)?;
    if year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    let years = (1970..year).map(|y| if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) { 366 } else { 365 });
    let days = years.sum::<u64>() + lengths[..before].iter().sum::<u64>() + day - 1;
    Some(days * DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_queries() {
        assert_eq!(day("1970-01-01"), Some(0));
        assert_eq!(day("2026-11-27"), Some(1_795_737_600));
        assert_eq!(day("2024-02-29").map(|s| s / DAY), Some(19_782));
        for bad in [
            "",
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "1969-01-01",
            "26-1-1",
            "2026-11-27x",
            "+026-01-01",
        ] {
            assert_eq!(day(bad), None, "{bad}");
        }
        let query = parse("by=key%2Cday&since=1970-01-02&key=key_1", &Days::All).unwrap();
        assert_eq!((query.by, query.since, query.until), (vec![By::Key, By::Day], Some(DAY), None));
        assert_eq!(parse("", &Days::UpTo(40 * DAY + 5)).unwrap().since, Some(10 * DAY));
        for (bad, param) in [("by=hour", "by"), ("since=x", "since"), ("x=1", "x"), ("key=a&key=b", "key")] {
            assert_eq!(parse(bad, &Days::All).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
