//! Placement and boards, on engines that are nothing but their counters.

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Unit;
use crate::clock::Clock;
use crate::energy::Ledger;
use crate::engine::event::{EventSender, GenerateRequest, Guess, Tier, TokenEvent};
use crate::engine::sampler::SamplingParams;
use crate::engine::step_log::StepLog;
use crate::engine::worker::{Command, EngineHandle};
use crate::power::monitor::{Monitor, MonitorConfig};
use crate::power::testing::{FakeBoard, Faults};

const SLOTS: usize = 64;
const BLOCKS: usize = 100;
const BLOCK: usize = 16;

/// A unit of so many engines, and where their commands arrive.
fn unit(clock: &Clock, engines: usize) -> (Arc<Unit>, Vec<mpsc::Receiver<Command>>) {
    let unit = Unit::new(clock.clone());
    let (handles, inboxes) = (0..engines)
        .map(|_| {
            let (commands, inbox) = mpsc::channel();
            let handle = EngineHandle { commands, stats: Arc::default(), slots: SLOTS, max_queue: 8 };
            let stats = handle.stats();
            stats.blocks_total.store(BLOCKS, Release);
            stats.block_size.store(BLOCK, Release);
            stats.prefix_caching.store(true, Release);
            stats.ready.store(true, Release);
            stats.beat(clock.now());
            (handle, inbox)
        })
        .unzip();
    unit.open(handles);
    (unit, inboxes)
}

/// Requests that run there, and pages that they hold.
fn busy(unit: &Unit, replica: usize, running: usize, held: usize) {
    let stats = unit.replicas()[replica].stats();
    stats.running.store(running, Release);
    stats.blocks_held.store(held, Release);
}

fn request(seed: u32, tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: (0..tokens as u32).map(|i| seed * 1000 + i).collect(),
        sampling: SamplingParams::default(),
        max_tokens: 4,
        min_tokens: 0,
        prediction: Arc::new([]),
        stop_token_ids: Arc::new([]),
        prompt_logprobs: None,
        tier: Tier::Default,
        cache_salt: 0,
        account: 0,
        constraint: None,
    }
}

#[test]
fn of_two_with_as_many_requests_the_one_with_more_free_pages_is_chosen() {
    let (unit, _inboxes) = unit(&Clock::fake(), 2);
    busy(&unit, 0, 4, 80);
    busy(&unit, 1, 4, 10);
    assert_eq!(unit.place(&request(1, 40)), Ok(1));
    busy(&unit, 1, 4, 90);
    assert_eq!(unit.place(&request(2, 40)), Ok(0));
    // One request more weighs less than most of a cache, and as many pages leave it to the requests.
    busy(&unit, 0, 4, 90);
    busy(&unit, 1, 5, 10);
    assert_eq!(unit.place(&request(3, 40)), Ok(1));
    busy(&unit, 1, 5, 90);
    assert_eq!(unit.place(&request(4, 40)), Ok(0));
}

#[test]
fn a_prefix_is_followed_where_the_cache_has_room_for_the_prompt() {
    let (unit, _inboxes) = unit(&Clock::fake(), 2);
    let prompt = || request(1, 10 * BLOCK);
    busy(&unit, 1, 1, 1);
    assert_eq!(unit.place(&prompt()), Ok(0));
    // Less free now, and followed nevertheless.
    busy(&unit, 0, 1, BLOCKS - 10);
    assert_eq!(unit.place(&prompt()), Ok(0));
    busy(&unit, 0, 1, BLOCKS - 9);
    assert_eq!(unit.place(&prompt()), Ok(1));
}

#[test]
fn a_full_queue_is_passed_over_while_another_has_places() {
    let (unit, _inboxes) = unit(&Clock::fake(), 2);
    busy(&unit, 0, SLOTS + 8, 0);
    busy(&unit, 1, SLOTS, BLOCKS);
    assert_eq!(unit.place(&request(1, 40)), Ok(1));
    busy(&unit, 1, SLOTS + 8, BLOCKS);
    assert_eq!(unit.place(&request(1, 40)), Ok(0), "it says that it is full");
}

#[test]
fn a_process_that_stood_still_takes_nobody_out() {
    let clock = Clock::fake();
    let (unit, _inboxes) = unit(&clock, 1);
    let patience = Duration::from_secs(60);
    clock.advance(2 * patience);
    assert!(!unit.is_ready());
    unit.thawed(clock.now());
    assert!(unit.is_ready());
    clock.advance(patience);
    unit.inspect(patience);
    assert!(unit.replicas()[0].is_in() && unit.is_ready());
    clock.advance(Duration::from_secs(1));
    unit.inspect(patience);
    assert!(!unit.replicas()[0].is_in());
}

/// The next request that an engine was sent: its seed, and where its events go.
fn taken(inbox: &mpsc::Receiver<Command>) -> (u64, EventSender) {
    match inbox.try_recv() {
        Ok(Command::Submit { request, events }) => (request.sampling.seed, events),
        _ => panic!("no request came"),
    }
}

#[test]
fn a_request_moves_while_nobody_has_seen_it_until_two_engines_were_lost_with_it() {
    let (unit, inboxes) = unit(&Clock::fake(), 4);
    let asked = GenerateRequest {
        sampling: SamplingParams { seed: 7, ..SamplingParams::default() },
        ..request(1, 20)
    };
    let mut answer = unit.submit(asked).unwrap();
    answer.hold();
    let mut next = || match answer.poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    };
    let token = |id| TokenEvent::Token { id, logprob: None, guess: Guess::default() };
    // It only waits there: it is not to blame.
    unit.take_out(0, "Xid 79");
    assert_eq!(next(), None);
    for replica in [1, 2] {
        let (seed, events) = taken(&inboxes[replica]);
        events.send(token(replica as u32));
        assert_eq!((seed, next()), (7, Some(token(replica as u32))));
        unit.take_out(replica, "Xid 48");
        match next() {
            Some(TokenEvent::Anew) => assert_eq!(replica, 1),
            Some(TokenEvent::Failed(error)) => {
                assert!(replica == 2 && error.to_string().contains("Xid 48"), "{error}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(unit.replicas().iter().map(|r| r.moved()).collect::<Vec<_>>(), [1, 1, 0, 0]);
    assert!(inboxes[3].try_recv().is_err(), "the last engine is spared");
}

#[test]
fn what_is_placed_is_counted_where_it_went() {
    let (unit, inboxes) = unit(&Clock::fake(), 2);
    busy(&unit, 0, 3, 0);
    let _answer = unit.submit(request(1, 20)).unwrap();
    assert_eq!(unit.replicas().iter().map(|r| r.placed()).collect::<Vec<_>>(), [0, 1]);
    assert!(matches!(inboxes[1].try_recv(), Ok(Command::Submit { .. })));
}

/// Meters in another order than the engines, as where `CUDA_VISIBLE_DEVICES` turns the boards round.
#[test]
fn a_critical_xid_takes_out_the_engine_of_that_meter() {
    let clock = Clock::fake();
    let (unit, _inboxes) = unit(&clock, 3);
    let boards: Vec<_> = (0..3).map(|_| FakeBoard::new(clock.clone(), Faults::default())).collect();
    let devices = [Some(2), Some(0), None];
    let meters = boards.iter().zip(devices).map(|(board, device)| board.meter(device)).collect();
    let monitor = Arc::new(Monitor::new(meters, clock.clone(), MonitorConfig::default()));
    let logs = (0..3).map(|_| StepLog::default()).collect();
    unit.meter(Ledger::start(&monitor, logs).unwrap());
    let inspect = || {
        clock.advance(Duration::from_secs(2));
        monitor.poll();
        unit.inspect(Duration::from_secs(3600));
        unit.replicas().iter().map(|r| r.is_in()).collect::<Vec<_>>()
    };
    // An application's fault; a board that no engine of this unit is on.
    boards[0].set_xid(31);
    boards[2].set_xid(79);
    assert_eq!(inspect(), [true, true, true]);
    boards[0].set_xid(79);
    assert_eq!(inspect(), [true, true, false]);
    assert!(unit.replicas()[2].why_out().is_some_and(|why| why.contains("Xid 79")));
    boards[1].set_xid(48);
    assert_eq!(inspect(), [false, true, false]);
    assert!(unit.submit(request(1, 20)).is_ok());
}

/// The same where joules are counted by others, or not at all.
#[test]
fn boards_that_are_not_metered_are_watched() {
    let clock = Clock::fake();
    let (unit, _inboxes) = unit(&clock, 2);
    let board = FakeBoard::new(clock.clone(), Faults::default());
    let monitor = Monitor::new(vec![board.meter(Some(1))], clock.clone(), MonitorConfig::default());
    let monitor = Arc::new(monitor);
    unit.watch_boards(monitor.clone());
    board.set_xid(119);
    clock.advance(Duration::from_secs(2));
    monitor.poll();
    unit.inspect(Duration::from_secs(3600));
    assert_eq!(unit.replicas().iter().map(|r| r.is_in()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_unit_that_is_down_names_each_engines_reason() {
    let (unit, _inboxes) = unit(&Clock::fake(), 2);
    unit.take_out(0, "Xid 79");
    unit.take_out(1, "no sign of life for 60s");
    assert_eq!(
        unit.place(&request(1, 20)).unwrap_err().to_string(),
        "the engine is not running: no engine is left (engine 0: Xid 79; engine 1: no sign of life for 60s)"
    );
}
