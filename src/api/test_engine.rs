//! An engine for tests: a thread that answers every request with the same words at a steady pace.
//!
//! A request with [`FAILING_SEED`] fails after two tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::engine::event::{
    EngineError, EventSender, FinishReason, GenerateRequest, Guess, SequenceStats, TokenEvent, TokenLogprob,
};
use crate::engine::stats::EngineStats;
use crate::engine::worker::{Command, EngineHandle};

pub const FAILING_SEED: u64 = 666;

#[derive(Clone, Copy)]
pub struct Pace {
    pub step: Duration,
    /// Sequences computed at a time; the others wait.
    pub slots: usize,
    pub max_queue: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { step: Duration::from_millis(1), slots: 256, max_queue: 512 }
    }
}

struct Live {
    request: Box<GenerateRequest>,
    events: EventSender,
    queued_at: Tick,
    scheduled_at: Tick,
    made: usize,
}

/// Starts the thread; `reply` are the tokens it says again and again.
pub fn start(clock: Clock, pace: Pace, reply: Vec<u32>) -> EngineHandle {
    let (commands, receiver) = channel();
    let stats = Arc::new(EngineStats::default());
    stats.blocks_total.store(64, Ordering::Release);
    stats.block_size.store(16, Ordering::Release);
    stats.beat(clock.now());
    stats.ready.store(true, Ordering::Release);
    let handle =
        EngineHandle { commands, stats: stats.clone(), slots: pace.slots, max_queue: pace.max_queue };
    std::thread::spawn(move || run(&receiver, &stats, &clock, pace, &reply));
    handle
}

fn run(commands: &Receiver<Command>, stats: &EngineStats, clock: &Clock, pace: Pace, reply: &[u32]) {
    let mut waiting: Vec<Live> = Vec::new();
    let mut running: Vec<Live> = Vec::new();
    loop {
        match commands.recv_timeout(pace.step) {
            Ok(Command::Submit { request, events }) => {
                let now = clock.now();
                waiting.push(Live { request, events, queued_at: now, scheduled_at: now, made: 0 });
                continue;
            }
            Ok(Command::Abort) => {
                for live in waiting.iter().chain(&running) {
                    live.events.send(TokenEvent::failed(EngineError::Aborted));
                }
                waiting.clear();
                running.clear();
            }
            Ok(Command::SetLimits(_) | Command::Encode { .. }) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.retain(|l| !l.events.is_closed());
        while running.len() < pace.slots && !waiting.is_empty() {
            let mut live = waiting.remove(0);
            live.scheduled_at = clock.now();
            running.push(live);
        }
        running.retain_mut(|live| step(live, clock, reply));
        stats.waiting.store(waiting.len(), Ordering::Release);
        stats.running.store(running.len(), Ordering::Release);
        stats.beat(clock.now());
    }
}

fn scored(request: &GenerateRequest, id: u32) -> TokenLogprob {
    let top = (0..request.sampling.logprobs.unwrap_or(0)).map(|i| (97 + i as u32, -0.5)).collect();
    TokenLogprob { id, logprob: -0.25, top }
}

/// One token of one sequence; false when the sequence is over.
fn step(live: &mut Live, clock: &Clock, reply: &[u32]) -> bool {
    let request = &live.request;
    if live.made == 0 && request.prompt_logprobs.is_some() {
        let scores = request.prompt.iter().skip(1).map(|&id| scored(request, id)).collect();
        live.events.send(TokenEvent::Prompt(scores));
    }
    if request.sampling.seed == FAILING_SEED && live.made == 2 {
        live.events.send(TokenEvent::failed(EngineError::NonFiniteLogits));
        return false;
    }
    let id = reply[live.made % reply.len()];
    let logprob = request.sampling.logprobs.map(|_| scored(request, id));
    live.made += 1;
    if !live.events.send(TokenEvent::Token { id, logprob: logprob.map(Box::new), guess: Guess::default() }) {
        return false;
    }
    if live.made < request.max_tokens {
        return true;
    }
    let now = clock.now();
    let stats = SequenceStats {
        prompt_tokens: request.prompt.len(),
        cached_tokens: 1,
        generated_tokens: live.made,
        queued_at: live.queued_at,
        scheduled_at: live.scheduled_at,
        first_token_at: now,
        finished_at: now,
        ..SequenceStats::default()
    };
    live.events.send(TokenEvent::Finished { reason: FinishReason::Length, stats: Box::new(stats) });
    false
}
