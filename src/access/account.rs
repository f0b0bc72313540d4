//! One key's account: what it may do, and what it has used, in memory.
//!
//! A request is counted when it comes, its tokens and joules are reserved when its size is known and settled when it
//! has ended, so that many at once cannot pass a limit together. Its joules are known a window of the meter later only:
//! until then what was set aside for them stays set aside. Where a request does not say how long its answer may
//! be, it reserves what its limit has left, no more than the answer can have: then the others wait for it, and a limit
//! is passed by one request at most. Days are UTC's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DAY;
use super::window::Window;
use crate::clock::{Clock, Tick};
use crate::store::{KeyRecord, Limits, Scopes};

/// When to come back for what others may give back at any time.
const SOON: Duration = Duration::from_secs(1);

/// Why an account does not let a request pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("This key is limited to {limit} {what}; try again in {:.1} s", retry_after.as_secs_f64())]
    Rate { what: &'static str, limit: u64, retry_after: Duration },
    #[error("This request may take {asked} {what} and the key is limited to {limit}")]
    TooLarge {
        what: &'static str,
        limit: u64,
        asked: u64,
        /// Some of it is the answer's: `max_tokens` makes it smaller.
        answers: bool,
    },
    #[error("This key has used its {limit} {what} of today (UTC)")]
    Quota { what: &'static str, limit: u64, retry_after: Duration },
    #[error("This key may not use {what} `{name}`")]
    Forbidden { what: &'static str, name: String },
    #[error("This key is limited in joules, and this unit's meter tells none")]
    NoMeter,
}

/// How large a request may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub prompt_tokens: u64,
    /// Of the answer, at most.
    pub most_tokens: u64,
    /// Whether the request said so itself.
    pub said: bool,
}

/// What is left of a limit by the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is free again.
    pub reset: Duration,
}

#[derive(Debug, Default)]
struct Used {
    requests: Window,
    tokens: Window,
    running: u64,
    /// Days since 1970.
    day: u64,
    day_tokens: u64,
    reserved_tokens: u64,
    day_joules: f64,
    /// Of requests whose joules are not known yet, which are this many.
    reserved_joules: f64,
    unsettled: u64,
    /// Requests whose joules the meters have told.
    known: u64,
}

impl Used {
    /// Whether a request that may cost so much may run beside those that have joules set aside already. What may not fit
    /// runs alone, and so does everything as long as nothing is known of its cost. Near the limit as many run at a time
    /// as have settled before, and one more: who comes into a crowd costs more than who was measured alone.
    fn has_room_for(&self, joules: Option<f64>, left: f64) -> bool {
        /// Of what is left: so much set aside is far from the limit, however wrong it is.
        const FAR: f64 = 1.0 / 8.0;
        let Some(joules) = joules else { return false };
        let all = self.reserved_joules + joules;
        all <= left && (all <= FAR * left || self.unsettled <= self.known)
    }

    /// A request that had this set aside has none any more.
    fn settled(&mut self, joules: f64) {
        self.unsettled -= 1;
        // Of many f64 a remainder would stay.
        self.reserved_joules = if self.unsettled == 0 { 0.0 } else { self.reserved_joules - joules };
    }
}

/// A key in force.
#[derive(Debug)]
pub struct Account {
    pub id: String,
    pub name: String,
    pub scopes: Scopes,
    pub limits: Limits,
    clock: Clock,
    used: Mutex<Used>,
}

/// A request that is under way; its end is the end of this.
#[derive(Debug)]
pub struct Running(Arc<Account>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.used().running -= 1;
    }
}

/// Tokens and joules set aside for a request. Dropped unsettled, it used none.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    slot: Tick,
    tokens: u64,
    joules: f64,
    open: bool,
}

/// Joules of a request that has ended, until its meters know them. Dropped unsettled, the estimate of its end stands.
#[derive(Debug)]
pub struct Unsettled {
    account: Arc<Account>,
    /// The day it counts for, in days since 1970.
    day: u64,
    estimate: f64,
    /// Set aside beyond the estimate.
    reserved: f64,
}

fn allowed(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|one| one == name)
}

impl Account {
    pub(super) fn new(key: &KeyRecord, clock: Clock) -> Account {
        Account {
            id: key.id.clone(),
            name: key.name.clone(),
            scopes: key.scopes.clone(),
            limits: key.limits.clone(),
            clock,
            used: Mutex::default(),
        }
    }

    pub(super) fn unlimited(id: &str, clock: Clock) -> Account {
        let (id, name) = (id.to_owned(), id.to_owned());
        Account {
            id,
            name,
            scopes: Scopes::default(),
            limits: Limits::default(),
            clock,
            used: Mutex::default(),
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let today = self.clock.unix_seconds() / DAY;
        if today > used.day {
            *used = Used {
                requests: std::mem::take(&mut used.requests),
                tokens: std::mem::take(&mut used.tokens),
                running: used.running,
                // What is under way will be counted today.
                reserved_tokens: used.reserved_tokens,
                reserved_joules: used.reserved_joules,
                unsettled: used.unsettled,
                known: used.known,
                day: today,
                ..Used::default()
            };
        }
        used
    }

    pub(super) fn used_before(&self, tokens: u64, joules: f64) {
        let mut used = self.used();
        used.day_tokens += tokens;
        used.day_joules += joules;
    }

    /// # Errors
    /// A path this key may not use.
    pub fn check_endpoint(&self, path: &str) -> Result<(), Refusal> {
        match allowed(&self.scopes.endpoints, path) {
            true => Ok(()),
            false => Err(Refusal::Forbidden { what: "the endpoint", name: path.chars().take(64).collect() }),
        }
    }

    pub fn may_use_model(&self, id: &str, aliases: &[String]) -> bool {
        allowed(&self.scopes.models, id) || aliases.iter().any(|alias| self.scopes.models.contains(alias))
    }

    pub fn may_use_tier(&self, tier: &str) -> bool {
        allowed(&self.scopes.tiers, tier)
    }

    /// A request has come.
    ///
    /// # Errors
    /// Too many within a minute, or at a time.
    pub fn begin(self: &Arc<Account>) -> Result<Running, Refusal> {
        let now = self.clock.now();
        let mut used = self.used();
        if let Some(limit) = self.limits.concurrent
            && used.running >= limit
        {
            return Err(Refusal::Rate { what: "requests at a time", limit, retry_after: SOON });
        }
        if let Some(limit) = self.limits.requests_per_minute {
            let wait = used.requests.wait(now, 1, limit).unwrap_or(SOON);
            if !wait.is_zero() {
                return Err(Refusal::Rate { what: "requests per minute", limit, retry_after: wait });
            }
            used.requests.take(now, 1);
        }
        used.running += 1;
        Ok(Running(self.clone()))
    }

    /// Sets aside what a request of this size may use. `joules`: what it may cost, `None` where nothing is known of it.
    ///
    /// # Errors
    /// A limit that has no room for it.
    pub fn reserve(self: &Arc<Account>, size: Size, joules: Option<f64>) -> Result<Reservation, Refusal> {
        let now = self.clock.now();
        let mut used = self.used();
        // The least it can be: an unsaid length is no reason to be refused while there is room for some answer.
        let least = size.prompt_tokens + if size.said { size.most_tokens } else { size.most_tokens.min(1) };
        let mut tokens = size.prompt_tokens + size.most_tokens;
        let answers = size.most_tokens > 0;
        if let Some(limit) = self.limits.tokens_per_minute {
            const WHAT: &str = "tokens per minute";
            match used.tokens.wait(now, least, limit) {
                None => return Err(Refusal::TooLarge { what: WHAT, limit, asked: least, answers }),
                Some(Duration::ZERO) => {}
                Some(retry_after) => return Err(Refusal::Rate { what: WHAT, limit, retry_after }),
            }
            tokens = tokens.min(limit - used.tokens.sum(now));
        }
        if let Some(limit) = self.limits.tokens_per_day {
            const WHAT: &str = "tokens per day";
            let left = limit.saturating_sub(used.day_tokens);
            if least > limit {
                return Err(Refusal::TooLarge { what: WHAT, limit, asked: least, answers });
            }
            if least > left {
                return Err(Refusal::Quota { what: WHAT, limit, retry_after: self.until_tomorrow() });
            }
            let free = left.saturating_sub(used.reserved_tokens);
            if least > free {
                return Err(Refusal::Rate { what: WHAT, limit, retry_after: SOON });
            }
            tokens = tokens.min(free);
        }
        let mut set_aside = 0.0;
        if let Some(limit) = self.limits.joules_per_day {
            let (what, shown) = ("joules per day", limit as u64);
            let left = limit - used.day_joules;
            if left <= 0.0 && used.unsettled == 0 {
                return Err(Refusal::Quota { what, limit: shown, retry_after: self.until_tomorrow() });
            }
            let free = left - used.reserved_joules;
            if used.unsettled > 0 && !used.has_room_for(joules, left) {
                return Err(Refusal::Rate { what, limit: shown, retry_after: SOON });
            }
            set_aside = joules.map_or(free, |joules| joules.min(free));
        }
        let slot = match self.limits.tokens_per_minute {
            Some(_) => used.tokens.take(now, tokens),
            None => now,
        };
        used.reserved_tokens += tokens;
        used.unsettled += 1;
        used.reserved_joules += set_aside;
        Ok(Reservation { account: self.clone(), slot, tokens, joules: set_aside, open: true })
    }

    fn until_tomorrow(&self) -> Duration {
        Duration::from_secs(DAY - self.clock.unix_seconds() % DAY)
    }

    /// What is left by the minute: of requests, of tokens.
    pub fn allowances(&self) -> [Option<Allowance>; 2] {
        let now = self.clock.now();
        let mut used = self.used();
        let Used { requests, tokens, .. } = &mut *used;
        let of = |window: &mut Window, limit: Option<u64>| {
            limit.map(|limit| Allowance {
                limit,
                remaining: limit.saturating_sub(window.sum(now)),
                reset: window.reset(now),
            })
        };
        [of(requests, self.limits.requests_per_minute), of(tokens, self.limits.tokens_per_minute)]
    }

    /// Tokens and joules of today, the joules of who has just ended as estimated.
    pub fn today(&self) -> (u64, f64) {
        let used = self.used();
        (used.day_tokens, used.day_joules)
    }
}

impl Reservation {
    /// The request has ended and used these tokens, and about these joules.
    pub fn settle(mut self, tokens: u64, estimate: f64) -> Unsettled {
        self.close(tokens, estimate)
    }

    fn close(&mut self, tokens: u64, estimate: f64) -> Unsettled {
        self.open = false;
        let mut used = self.account.used();
        match tokens.checked_sub(self.tokens) {
            Some(more) => used.tokens.add(self.slot, more),
            None => used.tokens.give_back(self.slot, self.tokens - tokens),
        }
        used.reserved_tokens = used.reserved_tokens.saturating_sub(self.tokens);
        // Of a request that ran over midnight, too: what it used is today's.
        used.day_tokens += tokens;
        used.day_joules += estimate;
        // What is counted is not set aside as well.
        let reserved = (self.joules - estimate).max(0.0);
        used.reserved_joules -= self.joules - reserved;
        Unsettled { account: self.account.clone(), day: used.day, estimate, reserved }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.close(0, 0.0);
        }
    }
}

impl Unsettled {
    /// The meters say it took this.
    pub fn settle(self, joules: f64) {
        let mut used = self.account.used();
        used.known += 1;
        if used.day == self.day {
            used.day_joules = (used.day_joules + joules - self.estimate).max(0.0);
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.account.used().settled(self.reserved);
    }
}
