//! Keys themselves: 256 random bits, of which only the SHA-256 is kept.
//!
//! So much chance needs no slow hash, and a slow one would be work that strangers can order.

use sha2::{Digest, Sha256};

use super::AccessError;
use crate::store::{Limits, Scopes};

const PREFIX: &str = "hw-";
/// What ids begin with.
const ID: &str = "key_";
/// Characters of a key that are kept to tell it from others: 24 bits of 256.
const SHOWN: usize = PREFIX.len() + 6;

/// A new key's text.
pub struct Secret(String);

fn random<const N: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

impl Secret {
    /// # Errors
    /// A system without random bytes.
    pub fn new() -> Result<Secret, getrandom::Error> {
        Ok(Secret(format!("{PREFIX}{}", random::<32>()?)))
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A new key's id.
pub fn id() -> Result<String, getrandom::Error> {
    Ok(format!("{ID}{}", random::<8>()?))
}

pub fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// What the value of an `Authorization` header carries, if it is a bearer's.
pub fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
}

/// What of a key may be shown.
pub fn shown(secret: &str) -> String {
    format!("{}…", secret.get(..SHOWN).unwrap_or(PREFIX))
}

/// Refuses names, scopes and limits that cannot be meant.
pub fn check(name: &str, scopes: &Scopes, limits: &Limits) -> Result<(), AccessError> {
    let invalid = |param, message: String| Err(AccessError::Invalid { param, message });
    let fine = |c: char| c.is_alphanumeric() || "-_.@ +/".contains(c);
    if name.is_empty() || name.chars().count() > 64 || name.trim() != name || !name.chars().all(fine) {
        let message = "name: 1 to 64 letters, digits and - _ . @ + / or spaces between them".into();
        return invalid("name", message);
    }
    if name == super::GIVEN || name.starts_with(ID) {
        return invalid("name", format!("name: {name:?} is taken, or looks like an id"));
    }
    if let Some(tier) = scopes.tiers.iter().find(|t| !["priority", "default", "flex"].contains(&t.as_str())) {
        return invalid("tiers", format!("tiers: {tier:?} is not priority, default or flex"));
    }
    for (param, limit) in [
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("concurrent", limits.concurrent),
        ("tokens_per_day", limits.tokens_per_day),
    ] {
        if limit == Some(0) {
            return invalid(param, format!("{param}: 0 lets nothing pass; revoke the key instead"));
        }
    }
    match limits.joules_per_day {
        Some(joules) if !(joules.is_finite() && joules > 0.0) => {
            invalid("joules_per_day", format!("joules_per_day: {joules} is not more than 0"))
        }
        _ => Ok(()),
    }
}
