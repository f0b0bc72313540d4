//! L4a. Who may ask for what, and how much: the keys of a unit in memory, their limits, and what they used.
//!
//! A bearer's digest in, the account it belongs to out; an account admits requests and tokens, and is told what they
//! came to. Everything a request needs is in memory; the store is told of changes and of usage. Knows no HTTP.

mod account;
mod key;
mod window;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use subtle::ConstantTimeEq;

pub use account::{Account, Allowance, Refusal, Reservation, Running, Size, Unsettled};
pub use key::{Secret, bearer, digest, shown};

use crate::clock::{Clock, Tick};
use crate::error::{Class, Classified};
use crate::store::{By, KeyRecord, Later, Limits, Scopes, Store, StoreError, Sum, UsageQuery, UsageRecord};

/// Seconds of a day, which begins at midnight UTC.
pub const DAY: u64 = 86_400;
/// A key that is replaced still holds for so long at most.
const LONGEST_GRACE: Duration = Duration::from_secs(366 * DAY);
/// The id of the key that is given by `--api-key`.
const GIVEN: &str = "api-key";

/// Why a bearer is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    Missing,
    Wrong,
}

/// One way to an account: a digest, and until when it leads there.
struct Way {
    digest: [u8; 32],
    until: Option<u64>,
    account: Arc<Account>,
}

/// What tokens cost at most of late, by what the meters said when they had settled. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Costs(Arc<[Dearest; 2]>);

impl Costs {
    /// Joules that a request of this size may take; `None` while nothing is known of its tokens.
    pub fn of(&self, size: Size) -> Option<f64> {
        let [prompt, answer] = &*self.0;
        // An answer's first token is what the prompt's last step gives.
        Some(prompt.of(size.prompt_tokens)? + answer.of(size.most_tokens.saturating_sub(1))?)
    }

    /// The joules of computed tokens of prompts, and of tokens of answers.
    pub fn note(&self, prompt: (f64, u64), answer: (f64, u64)) {
        for (dearest, (joules, tokens)) in self.0.iter().zip([prompt, answer]) {
            dearest.note(joules, tokens);
        }
    }
}

/// Joules a token: the bits of an f64, 0 while nothing is known; and of how many requests.
#[derive(Debug, Default)]
struct Dearest {
    each: AtomicU64,
    seen: AtomicU64,
}

impl Dearest {
    fn each(&self) -> f64 {
        f64::from_bits(self.each.load(Ordering::Relaxed))
    }

    /// Of so many tokens at most: a few times what the dearest cost, and many times as much while few are known.
    fn of(&self, tokens: u64) -> Option<f64> {
        let (each, seen) = (self.each(), self.seen.load(Ordering::Relaxed).max(1));
        let margin = 4.0 + 96.0 / (7.0 + seen as f64);
        (tokens == 0 || each > 0.0).then_some(margin * each * tokens as f64)
    }

    /// Many at once are cheaper than one alone, and a limit must hold for both: so the dearest counts, and is forgotten
    /// slowly.
    fn note(&self, joules: f64, tokens: u64) {
        const FORGOTTEN: f64 = 0.01;
        if joules > 0.0 && tokens > 0 {
            let (this, old) = (joules / tokens as f64, self.each());
            self.each.store(this.max(old - FORGOTTEN * (old - this)).to_bits(), Ordering::Relaxed);
            self.seen.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All keys as they stand.
#[derive(Default)]
struct Table {
    /// By the digest's first bytes; all that share them are compared in constant time.
    ways: HashMap<[u8; 8], Vec<Way>>,
    accounts: HashMap<String, Arc<Account>>,
    /// Some key was made once, even if it is revoked: then everybody needs one.
    any: bool,
}

impl Table {
    fn add(&mut self, digest: [u8; 32], until: Option<u64>, account: &Arc<Account>) {
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        self.ways.entry(first).or_default().push(Way { digest, until, account: account.clone() });
    }

    fn find(&self, digest: &[u8; 32], now: u64) -> Option<Arc<Account>> {
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let fits =
            |way: &&Way| bool::from(way.digest.ct_eq(digest)) && way.until.is_none_or(|until| now < until);
        self.ways.get(&first)?.iter().find(fits).map(|way| way.account.clone())
    }
}

/// The keys of a unit.
pub struct Access {
    clock: Clock,
    table: RwLock<Table>,
    /// Held while keys are read again, so that the last to read has seen every change.
    reading: Mutex<()>,
    store: Option<Store>,
    /// The key of the settings, which no store holds.
    given: Option<[u8; 32]>,
    /// Without any key everybody may ask: the network is this machine's, or is trusted.
    open: bool,
    /// A store that another process holds, which may get keys: then nobody is let in here.
    beside: Option<Beside>,
    costs: Costs,
    /// Questions about usage that are being answered.
    asked: AtomicUsize,
}

/// A folder with a store of another process, and when it was looked at last.
struct Beside {
    folder: PathBuf,
    looked: Mutex<(Tick, bool)>,
}

impl Beside {
    /// Looked at once a second.
    fn has_keys(&self, clock: &Clock) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        if !looked.1 && now.since(looked.0) >= Duration::from_secs(1) {
            *looked = (now, Store::has_keys(&self.folder).unwrap_or(true));
            if looked.1 {
                tracing::error!(
                    "keys were made in a store that another unit holds: nobody is let in here any more"
                );
            }
        }
        looked.1
    }
}

/// Questions about usage that are answered at a time.
const MOST_ASKED: usize = 2;

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({} keys)", self.read().accounts.len())
    }
}

/// What is said when a key is made or replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub key: KeyRecord,
    /// Shown this once.
    pub secret: String,
}

/// A key that cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("this unit keeps no keys: {0}")]
    NoStore(&'static str),
    #[error("other questions about usage are being answered")]
    Busy,
    #[error("{message}")]
    Invalid { param: &'static str, message: String },
    #[error("there is no key `{0}`")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl Classified for AccessError {
    fn class(&self) -> Class {
        match self {
            AccessError::NoStore(_) => Class::Unavailable,
            AccessError::Busy => Class::Overloaded,
            AccessError::Invalid { .. } => Class::InvalidRequest,
            AccessError::Unknown(_) => Class::NotFound,
            AccessError::Store(e) => e.class(),
            AccessError::Random(_) => Class::Internal,
        }
    }
}

impl Access {
    /// Keys of the settings only, kept nowhere; without one everybody may ask.
    pub fn fixed(key: Option<&str>, clock: Clock) -> Arc<Access> {
        Arc::new(Access::new(key, None, true, clock))
    }

    /// The same beside a store that another process holds: with the first key in it, nobody is let in.
    pub fn beside(key: Option<&str>, folder: PathBuf, clock: Clock) -> Arc<Access> {
        let looked = Mutex::new((clock.now(), false));
        let access = Access::new(key, None, true, clock);
        Arc::new(Access { beside: Some(Beside { folder, looked }), ..access })
    }

    /// With the keys of a store. `open`: without any key everybody may ask.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn with_store(
        key: Option<&str>,
        store: Store,
        open: bool,
        clock: Clock,
    ) -> Result<Arc<Access>, StoreError> {
        let access = Access::new(key, Some(store), open, clock);
        access.reload()?;
        access.remember()?;
        Ok(Arc::new(access))
    }

    fn new(key: Option<&str>, store: Option<Store>, open: bool, clock: Clock) -> Access {
        let given = key.map(|key| digest(key.as_bytes()));
        let mut table = Table::default();
        if let Some(digest) = given {
            table.add_given(digest, &clock);
        }
        let costs = Costs::default();
        let (table, reading) = (RwLock::new(table), Mutex::new(()));
        let (beside, asked) = (None, AtomicUsize::new(0));
        Access { clock, table, reading, store, given, open, beside, costs, asked }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether anybody may ask, whatever bearer they show.
    pub fn is_open(&self) -> bool {
        self.open
            && !self.has_keys()
            && !self.beside.as_ref().is_some_and(|beside| beside.has_keys(&self.clock))
    }

    /// Whether a key was ever made, or is given.
    pub fn has_keys(&self) -> bool {
        self.read().any
    }

    /// Sums of usage, a few questions at a time.
    ///
    /// # Errors
    /// Too many questions, no store, or one that cannot be read.
    pub fn usage(&self, query: &UsageQuery) -> Result<Vec<Sum>, AccessError> {
        let store = self.kept()?;
        let taken = self.asked.fetch_add(1, Ordering::AcqRel);
        let sums = match taken < MOST_ASKED {
            true => store.usage(query).map_err(AccessError::from),
            false => Err(AccessError::Busy),
        };
        self.asked.fetch_sub(1, Ordering::AcqRel);
        sums
    }

    /// Whose key the value of an `Authorization` header carries; `None` where anybody may ask.
    ///
    /// # Errors
    /// No key, or none that is in force.
    pub fn identify(&self, authorization: Option<&[u8]>) -> Result<Option<Arc<Account>>, Denied> {
        if self.is_open() {
            return Ok(None);
        }
        let key = bearer(authorization.ok_or(Denied::Missing)?).ok_or(Denied::Wrong)?;
        let digest = digest(key);
        self.read().find(&digest, self.clock.unix_seconds()).map(Some).ok_or(Denied::Wrong)
    }

    /// Reads the store's keys again; accounts that go on keep their counts.
    fn reload(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = store.keys()?;
        let mut guard = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table { any: !keys.is_empty(), ..Table::default() };
        if let Some(digest) = self.given {
            match guard.accounts.get(GIVEN).cloned() {
                Some(account) => table.add_account(digest, account),
                None => table.add_given(digest, &self.clock),
            }
        }
        for key in keys.into_iter().filter(|key| key.revoked.is_none()) {
            let account = guard.accounts.get(&key.id).cloned();
            let account = account.unwrap_or_else(|| Arc::new(Account::new(&key, self.clock.clone())));
            if let Some((digest, until)) = key.previous {
                table.add(digest, Some(until), &account);
            }
            table.add_account(key.digest, account);
        }
        *guard = table;
        Ok(())
    }

    /// What each key used of its day before this process began, and what tokens cost in the last week: as long as
    /// nobody knows, one request reserves all the joules that a key may use.
    fn remember(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let today = self.clock.unix_seconds() / DAY * DAY;
        let since = |since: u64, by: Vec<By>| {
            store.usage(&UsageQuery { by, since: Some(since), ..UsageQuery::default() })
        };
        let table = self.read();
        for sum in since(today, vec![By::Key])? {
            if let Some(account) = table.accounts.get(sum.key.as_deref().unwrap_or_default()) {
                let joules = sum.prefill_joules + sum.decode_joules;
                account.used_before(sum.prompt_tokens + sum.completion_tokens, joules);
            }
        }
        // Means, so they count as one request of each model.
        for sum in since(today.saturating_sub(6 * DAY), vec![By::Model])? {
            let computed = sum.prompt_tokens.saturating_sub(sum.cached_tokens);
            let answers = sum.completion_tokens.saturating_sub(sum.requests);
            self.costs.note((sum.prefill_joules, computed), (sum.decode_joules, answers));
        }
        Ok(())
    }

    fn kept(&self) -> Result<&Store, AccessError> {
        self.store.as_ref().ok_or(AccessError::NoStore("it runs without a state directory"))
    }

    /// All keys, revoked ones too.
    ///
    /// # Errors
    /// No store, or one that cannot be read.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, AccessError> {
        Ok(self.kept()?.keys()?)
    }

    /// # Errors
    /// A name or a limit that cannot be, a name that is taken, no store.
    pub fn create(&self, name: &str, scopes: Scopes, limits: Limits) -> Result<Made, AccessError> {
        key::check(name, &scopes, &limits)?;
        let secret = Secret::new().map_err(AccessError::Random)?;
        let key = KeyRecord {
            id: key::id().map_err(AccessError::Random)?,
            name: name.to_owned(),
            digest: digest(secret.text().as_bytes()),
            shown: shown(secret.text()),
            created: self.clock.unix_seconds(),
            revoked: None,
            scopes,
            limits,
            previous: None,
        };
        self.kept()?.add_key(key.clone())?;
        self.reload()?;
        Ok(Made { key, secret: secret.text().to_owned() })
    }

    /// Copies the store into a new file.
    ///
    /// # Errors
    /// No store, a file that is there or cannot be written.
    pub fn backup(&self, to: &std::path::Path) -> Result<(), AccessError> {
        Ok(self.kept()?.backup(to)?)
    }

    /// The id under which a key's use is recorded, by its id or its name.
    ///
    /// # Errors
    /// An unknown key, no store.
    pub fn id_of(&self, named: &str) -> Result<String, AccessError> {
        if named == GIVEN { Ok(GIVEN.into()) } else { Ok(self.find(named)?.id) }
    }

    /// By id or by name.
    fn find(&self, named: &str) -> Result<KeyRecord, AccessError> {
        let found = self.keys()?.into_iter().find(|k| k.id == named || k.name == named);
        found.ok_or_else(|| AccessError::Unknown(named.chars().take(64).collect()))
    }

    /// From now on the key is refused.
    ///
    /// # Errors
    /// An unknown key, no store.
    pub fn revoke(&self, named: &str) -> Result<KeyRecord, AccessError> {
        let key = self.find(named)?;
        self.kept()?.revoke_key(&key.id, self.clock.unix_seconds())?;
        self.reload()?;
        self.find(&key.id)
    }

    /// A new secret for the same key; the old one holds for `grace` more.
    ///
    /// # Errors
    /// A key that is unknown or revoked, more than a year, no store.
    pub fn rotate(&self, named: &str, grace: Duration) -> Result<Made, AccessError> {
        if grace > LONGEST_GRACE {
            let message = "grace_seconds: at most a year".into();
            return Err(AccessError::Invalid { param: "grace_seconds", message });
        }
        let key = self.find(named)?;
        let secret = Secret::new().map_err(AccessError::Random)?;
        let until = (!grace.is_zero()).then(|| self.clock.unix_seconds().saturating_add(grace.as_secs()));
        let text = secret.text();
        self.kept()?.rotate_key(&key.id, digest(text.as_bytes()), shown(text), until)?;
        self.reload()?;
        Ok(Made { key: self.find(&key.id)?, secret: text.to_owned() })
    }

    /// What tokens cost of late.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// Notes what a request came to, where there is a store.
    pub fn record(&self, record: UsageRecord, later: Option<Later>) {
        if let Some(store) = &self.store {
            store.record(record, later);
        }
    }
}

impl Table {
    fn add_account(&mut self, digest: [u8; 32], account: Arc<Account>) {
        self.add(digest, None, &account);
        self.accounts.insert(account.id.clone(), account);
        self.any = true;
    }

    fn add_given(&mut self, digest: [u8; 32], clock: &Clock) {
        let account = Account::unlimited(GIVEN, clock.clone());
        self.add_account(digest, Arc::new(account));
    }
}
