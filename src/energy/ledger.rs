//! The ledger: accounts of requests, the steps that are still to be settled, and a book for each meter.
//!
//! Fed by the monitor (windows) and the engines' step logs; asked by the service (one request) and the
//! metrics (everything). One short lock; nothing here runs on an engine's thread.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::book::{Book, MeterTotals, Piece};
use super::intervals::Interval;
use super::{RequestEnergy, relative_power};
use crate::clock::{Clock, Tick};
use crate::engine::step_log::{OVERHEAD, Share, StepLog, Steps};
use crate::power::monitor::{EnergyWindow, MeterState, Monitor};
use crate::power::{Boundary, Method};
use crate::quantity::{Joules, Watts};

/// Steps that no meter has settled for so long (a lost meter) are let go.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// How often requests that end look after what a lost meter leaves behind.
const TEND: Duration = Duration::from_secs(5);
/// Which boundary requests are told: the innermost that sees the devices' work.
const TOLD: [Boundary; 4] = [Boundary::GpuBoard, Boundary::CpuPackage, Boundary::Node, Boundary::Site];

struct Step {
    time: Interval,
    relative_power: f64,
    overhead: bool,
    shares: Box<[Share]>,
    work: f64,
}

impl Step {
    fn weight(&self) -> f64 {
        self.time.length().as_secs_f64() * self.relative_power
    }

    /// An account's part of the step, prefill and decode.
    fn part(&self, share: &Share) -> [f64; 2] {
        if self.work > 0.0 { [share.prefill / self.work, share.decode / self.work] } else { [0.0, 0.0] }
    }
}

struct Engine {
    log: StepLog,
    /// The log's emptied twin.
    twin: Steps,
    /// Not settled by every meter yet, in order of time.
    steps: VecDeque<Step>,
    last_end: Tick,
    /// Its device failed: what it still does is nobody's.
    disowned: bool,
    /// Settled joules of its steps inside the told boundary: prefill, decode, overhead.
    joules: [f64; 3],
}

#[derive(Default)]
struct Account {
    /// By told meter.
    settled: Vec<[f64; 2]>,
    /// Modelled weight that each told meter has still to settle.
    pending: Vec<[f64; 2]>,
    /// Its request ended or left.
    closed: Option<Tick>,
    /// Nobody will ask any more.
    dropped: bool,
}

struct Inner {
    engines: Vec<Engine>,
    books: Vec<Book>,
    /// Indices of the books whose joules requests are told.
    told: Vec<usize>,
    accounts: HashMap<u64, Account>,
    last_account: u64,
    /// When what is settled was last forgotten.
    tended: Tick,
}

/// Shared by the service, the metrics and the monitor's thread.
pub struct Ledger {
    clock: Clock,
    boundary: Boundary,
    method: Method,
    monitor: Arc<Monitor>,
    inner: Mutex<Inner>,
}

/// One request's account; counts on until it is dropped.
pub struct AccountHandle {
    ledger: Arc<Ledger>,
    pub id: u64,
}

impl Ledger {
    /// Listens to the engines' logs and to the monitor from now on. `None` without a meter.
    pub fn start(monitor: &Arc<Monitor>, logs: Vec<StepLog>) -> Option<Arc<Ledger>> {
        let infos = monitor.infos();
        let boundary = TOLD.into_iter().find(|b| infos.iter().any(|i| i.boundary == *b))?;
        let told: Vec<usize> = (0..infos.len()).filter(|i| infos[*i].boundary == boundary).collect();
        // The least trustworthy of them, if they differ.
        let method = told.iter().map(|i| infos[*i].method).max()?;
        let begun = monitor.clock().now();
        let engine = |log: StepLog| {
            log.listen();
            let (twin, steps) = Default::default();
            Engine { log, twin, steps, last_end: begun, disowned: false, joules: [0.0; 3] }
        };
        let inner = Inner {
            engines: logs.into_iter().map(engine).collect(),
            books: infos.into_iter().map(Book::new).collect(),
            told,
            accounts: HashMap::new(),
            last_account: OVERHEAD,
            tended: begun,
        };
        let clock = monitor.clock().clone();
        let ledger = Ledger { clock, boundary, method, monitor: monitor.clone(), inner: Mutex::new(inner) };
        let ledger = Arc::new(ledger);
        // The monitor must not keep the ledger, which keeps the monitor.
        let weak = Arc::downgrade(&ledger);
        monitor.on_window(Box::new(move |window| {
            if let Some(ledger) = weak.upgrade() {
                ledger.close(window);
            }
        }));
        Some(ledger)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn boundary(&self) -> Boundary {
        self.boundary
    }

    pub fn method(&self) -> Method {
        self.method
    }

    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// Opens an account for a request.
    pub fn open(self: &Arc<Ledger>) -> AccountHandle {
        let mut inner = self.inner();
        inner.last_account += 1;
        let id = inner.last_account;
        let pending = vec![[0.0; 2]; inner.told.len()];
        let account = Account { settled: pending.clone(), pending, ..Account::default() };
        inner.accounts.insert(id, account);
        AccountHandle { ledger: self.clone(), id }
    }

    /// An engine's device failed: what it still logs is overhead.
    pub fn disown(&self, engine: usize) {
        let mut inner = self.inner();
        inner.take_steps();
        if let Some(engine) = inner.engines.get_mut(engine) {
            engine.disowned = true;
        }
    }

    /// An account's request begins anew elsewhere: what this engine did for it was a failed attempt, overhead. (What
    /// a meter that sees several engines has settled already stays where it is.)
    pub fn forfeit(&self, account: u64, engine: usize) {
        let mut inner = self.inner();
        inner.take_steps();
        let Inner { engines, books, told, accounts, .. } = &mut *inner;
        let (Some(engine_steps), Some(found)) = (engines.get_mut(engine), accounts.get_mut(&account)) else {
            return;
        };
        for step in &mut engine_steps.steps {
            let (weight, work) = (step.weight(), step.work);
            for share in step.shares.iter_mut().filter(|s| s.account == account) {
                share.account = OVERHEAD;
                if work <= 0.0 || step.overhead {
                    continue;
                }
                for (slot, _) in told.iter().enumerate().filter(|(_, m)| books[**m].info.device.is_none()) {
                    found.pending[slot][0] -= share.prefill / work * weight;
                    found.pending[slot][1] -= share.decode / work * weight;
                }
            }
        }
        for (slot, meter) in told.iter().enumerate() {
            if books[*meter].info.device == Some(engine) {
                books[*meter].owe(std::mem::take(&mut found.settled[slot]));
                found.pending[slot] = [0.0; 2];
            }
        }
    }

    /// Settles a window, or lets it wait for the steps that run in it.
    pub fn close(&self, window: &EnergyWindow) {
        let mut inner = self.inner();
        inner.books[window.meter].waiting.push_back(*window);
        inner.settle_all(self.clock.now());
    }

    /// What each meter's energy went to so far, with the meter as it stands.
    pub fn meters(&self) -> Vec<(MeterState, MeterTotals)> {
        let states = self.monitor.meters();
        let inner = self.inner();
        states.into_iter().zip(inner.books.iter().map(|b| b.totals)).collect()
    }

    /// Idle power of a meter, and whether it was measured in quiet windows.
    pub fn idle_power(&self, meter: usize) -> Option<(Watts, bool)> {
        self.inner().books[meter].idle_power()
    }

    /// Accounts and steps that are still kept.
    #[cfg(test)]
    pub fn held(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.accounts.len(), inner.engines.iter().map(|e| e.steps.len()).sum())
    }

    /// Settled joules of each engine's steps inside the told boundary: prefill, decode, overhead. Where engines share
    /// a meter, by the share of their steps.
    pub fn engine_totals(&self) -> Vec<[f64; 3]> {
        self.inner().engines.iter().map(|e| e.joules).collect()
    }

    /// Settled joules of requests inside the told boundary, prefill and decode.
    pub fn told_totals(&self) -> [f64; 2] {
        let inner = self.inner();
        let totals = inner.told.iter().map(|m| inner.books[*m].totals);
        totals.fold([0.0; 2], |[prefill, decode], t| [prefill + t.prefill, decode + t.decode])
    }
}

impl AccountHandle {
    /// The request has ended: nothing is added any more but what is still to be settled.
    pub fn close(&self) {
        let now = self.ledger.clock.now();
        if let Some(account) = self.ledger.inner().accounts.get_mut(&self.id) {
            account.closed.get_or_insert(now);
        }
    }

    /// Joules so far: what is settled, and an estimate of the rest. `None` where the meters say nothing: lost,
    /// silent, or nothing yet of steps.
    pub fn energy(&self) -> Option<RequestEnergy> {
        self.told().filter(|energy| energy.total().0 > 0.0)
    }

    /// The same of what took nothing, too.
    pub fn told(&self) -> Option<RequestEnergy> {
        let states = self.ledger.monitor.snapshot();
        let now = self.ledger.clock.now();
        let mut inner = self.ledger.inner();
        inner.take_steps();
        let told = inner.told.clone();
        if told.iter().filter_map(|meter| states.get(*meter)).any(|m| m.is_silent(now)) {
            return None;
        }
        let account = inner.accounts.get(&self.id);
        let sum = |[a, b]: [f64; 2], [c, d]: &[f64; 2]| [a + c, b + d];
        let mut joules = account.map_or([0.0; 2], |a| a.settled.iter().fold([0.0; 2], sum));
        let mut settled = account.is_some_and(|a| a.closed.is_some());
        for (slot, meter) in told.iter().enumerate() {
            let book = &inner.books[*meter];
            let Some(account) = account else { continue };
            for (joules, weight) in joules.iter_mut().zip(account.pending[slot]) {
                *joules += book.estimate(weight.max(0.0))?;
            }
            settled &= account.closed.is_some_and(|at| book.settled_until >= at);
        }
        let energy = RequestEnergy {
            prefill: Joules(joules[0]),
            decode: Joules(joules[1]),
            method: self.ledger.method,
            boundary: self.ledger.boundary,
            settled,
        };
        Some(energy)
    }
}

impl Drop for AccountHandle {
    fn drop(&mut self) {
        self.close();
        let mut inner = self.ledger.inner();
        if let Some(account) = inner.accounts.get_mut(&self.id) {
            account.dropped = true;
        }
        // Windows do this too, but a meter that is lost closes none.
        let now = self.ledger.clock.now();
        if now.since(inner.tended) > TEND {
            inner.take_steps();
            inner.forget(now);
        }
    }
}

impl Inner {
    /// Takes what the engines have logged, and notes it as pending in its accounts.
    fn take_steps(&mut self) {
        let Inner { engines, books, told, accounts, .. } = self;
        for (index, engine) in engines.iter_mut().enumerate() {
            engine.log.take(&mut engine.twin);
            let Engine { twin, steps, last_end, disowned, .. } = engine;
            let mut shares = twin.shares.iter();
            for record in &twin.records {
                let mut shares: Box<[Share]> = shares.by_ref().take(record.shares).copied().collect();
                if *disowned {
                    shares.iter_mut().for_each(|s| s.account = OVERHEAD);
                }
                let step = Step {
                    time: Interval { start: record.started, end: record.ended },
                    relative_power: relative_power(record.rows),
                    overhead: record.overhead,
                    work: shares.iter().map(|s| s.prefill + s.decode).sum(),
                    shares,
                };
                *last_end = record.ended;
                let sees = |meter: usize| books[meter].info.device.is_none_or(|d| d == index);
                for (slot, _) in told.iter().enumerate().filter(|(_, meter)| sees(**meter)) {
                    add_pending(accounts, &step, slot, step.weight());
                }
                steps.push_back(step);
            }
        }
    }

    fn settle_all(&mut self, now: Tick) {
        // In this order: a step that is seen to have ended is then in the log.
        let running: Vec<Option<Tick>> = self.engines.iter().map(|e| e.log.running_since()).collect();
        self.take_steps();
        for meter in 0..self.books.len() {
            while let Some(window) = self.books[meter].waiting.front().copied() {
                let span = self.books[meter].steps_of(&window);
                let device = self.books[meter].info.device;
                let runs = |engine: usize, since: Option<Tick>| {
                    device.is_none_or(|d| d == engine) && since.is_some_and(|s| s < span.end)
                };
                let open = running.iter().enumerate().any(|(engine, since)| runs(engine, *since));
                // A step that hangs must not hold the books open for ever, nor at all where its engine is out.
                let awaited = running.iter().zip(&self.engines).enumerate();
                let awaited =
                    awaited.filter(|(_, (_, e))| !e.disowned).any(|(i, (since, _))| runs(i, *since));
                if awaited && now.since(window.end) < LONGEST_WAIT {
                    break;
                }
                self.books[meter].waiting.pop_front();
                self.settle(meter, &window, open);
            }
        }
        self.forget(now);
    }

    /// `open`: a step that was not waited for runs in the window.
    fn settle(&mut self, meter: usize, window: &EnergyWindow, open: bool) {
        let Inner { engines, books, told, accounts, .. } = self;
        let book = &mut books[meter];
        let span = book.steps_of(window);
        let device = book.info.device;
        let seen = || engines.iter().enumerate().filter(|(i, _)| device.is_none_or(|d| d == *i));
        let mut pieces = Vec::new();
        let mut of_steps = Vec::new();
        for (engine, step) in seen().flat_map(|(i, e)| e.steps.iter().map(move |step| (i, step))) {
            if let Some(time) = step.time.clipped(span) {
                pieces.push(Piece { time, relative_power: step.relative_power });
                of_steps.push((engine, step));
            }
        }
        // A step that began after the span says nothing about its quiet.
        let last_before = |e: &Engine| {
            let ended = e.steps.iter().filter(|s| s.time.start < span.end).map(|s| s.time.end).max();
            ended.unwrap_or(if e.last_end <= span.end { e.last_end } else { Tick(0) })
        };
        let last = seen().map(|(_, e)| last_before(e)).max().unwrap_or_default();
        let quiet_for = if open { Duration::ZERO } else { span.end.since(last) };
        let per_weight = book.settle(window, &pieces, quiet_for);
        let slot = told.iter().position(|m| *m == meter);
        let mut of_engines = vec![[0.0; 3]; engines.len()];
        for ((engine, step), piece) in of_steps.into_iter().zip(&pieces) {
            let joules = per_weight * piece.weight();
            let [of_prefill, of_decode, of_overhead] = &mut of_engines[engine];
            if step.overhead || step.work <= 0.0 {
                book.add_overhead(joules);
                *of_overhead += joules;
                continue;
            }
            for share in &step.shares {
                let [prefill, decode] = step.part(share).map(|part| part * joules);
                if share.account == OVERHEAD {
                    book.add_overhead(prefill + decode);
                    *of_overhead += prefill + decode;
                    continue;
                }
                let added = book.add([prefill, decode]);
                *of_prefill += added[0];
                *of_decode += added[1];
                *of_overhead += added[2];
                if let (Some(slot), Some(account)) = (slot, accounts.get_mut(&share.account)) {
                    account.settled[slot][0] += prefill;
                    account.settled[slot][1] += decode;
                }
            }
            if let Some(slot) = slot {
                add_pending(accounts, step, slot, -piece.weight());
            }
        }
        if slot.is_some() {
            for (engine, joules) in engines.iter_mut().zip(of_engines) {
                engine.joules.iter_mut().zip(joules).for_each(|(sum, more)| *sum += more);
            }
        }
    }

    /// Drops steps that every meter has settled, and accounts that are settled and asked no more.
    fn forget(&mut self, now: Tick) {
        self.tended = now;
        for (index, engine) in self.engines.iter_mut().enumerate() {
            let meters = self.books.iter().filter(|b| b.info.device.is_none_or(|d| d == index));
            let settled = meters.map(|b| b.settled_until).min().unwrap_or(now);
            while engine
                .steps
                .front()
                .is_some_and(|s| s.time.end <= settled || now.since(s.time.end) > LONGEST_WAIT)
            {
                engine.steps.pop_front();
            }
        }
        let told = self.told.iter().map(|m| self.books[*m].settled_until).min().unwrap_or(now);
        self.accounts.retain(|_, a| {
            !a.dropped || a.closed.is_some_and(|at| at > told && now.since(at) <= LONGEST_WAIT)
        });
    }
}

fn add_pending(accounts: &mut HashMap<u64, Account>, step: &Step, slot: usize, weight: f64) {
    if step.overhead {
        return;
    }
    for share in &step.shares {
        if let Some(account) = accounts.get_mut(&share.account) {
            for (pending, part) in account.pending[slot].iter_mut().zip(step.part(share)) {
                *pending += part * weight;
            }
        }
    }
}
