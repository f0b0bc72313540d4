//! Keys and limits on a clock that is moved by hand.

use std::time::Duration;

use super::window::Window;
use super::*;
use crate::clock::Tick;
use crate::store::Energy;

fn account(limits: Limits) -> (Arc<Account>, Clock) {
    let clock = Clock::fake();
    let key = KeyRecord {
        id: "key_a".into(),
        name: "a".into(),
        digest: [0; 32],
        shown: String::new(),
        created: 0,
        revoked: None,
        scopes: Scopes::default(),
        limits,
        previous: None,
    };
    (Arc::new(Account::new(&key, clock.clone())), clock)
}

fn size(prompt_tokens: u64, most_tokens: u64) -> Size {
    Size { prompt_tokens, most_tokens, said: true }
}

fn wait<T: std::fmt::Debug>(refused: Result<T, Refusal>) -> Duration {
    match refused.unwrap_err() {
        Refusal::Rate { retry_after, .. } | Refusal::Quota { retry_after, .. } => retry_after,
        other => panic!("{other}"),
    }
}

#[test]
fn bearers_lead_to_accounts() {
    let access = Access::fixed(Some("a-long-key"), Clock::fake());
    for good in ["Bearer a-long-key", "bearer a-long-key", "Bearer  a-long-key "] {
        let account = access.identify(Some(good.as_bytes())).unwrap().unwrap();
        assert_eq!(account.id, "api-key", "{good}");
    }
    for bad in
        ["", "Bearer", "Bearer ", "Bearer a-long-ke", "Basic a-long-key", "a-long-key", "Bearer a-long-key x"]
    {
        assert_eq!(access.identify(Some(bad.as_bytes())).unwrap_err(), Denied::Wrong, "{bad}");
    }
    assert_eq!(access.identify(None).unwrap_err(), Denied::Missing);
    let open = Access::fixed(None, Clock::fake());
    assert!(open.identify(Some(b"Bearer whatever")).unwrap().is_none() && open.is_open());
}

#[test]
fn keys_are_made_replaced_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fake();
    let access = Access::with_store(None, Store::open(dir.path()).unwrap(), true, clock.clone()).unwrap();
    assert!(access.is_open());
    let admits = |secret: &str| access.identify(Some(format!("Bearer {secret}").as_bytes())).is_ok();
    assert!(admits("anything"));
    let limits = Limits { requests_per_minute: Some(2), ..Limits::default() };
    let made = access.create("shop", Scopes::default(), limits).unwrap();
    assert!(made.secret.starts_with("hw-") && made.secret.len() == 3 + 64, "256 bits");
    assert!(!access.is_open() && admits(&made.secret) && !admits("anything"));
    let account = access.identify(Some(format!("Bearer {}", made.secret).as_bytes())).unwrap().unwrap();
    let _running = account.begin().unwrap();

    let second = access.rotate("shop", Duration::from_secs(10)).unwrap();
    assert!(second.secret != made.secret && admits(&made.secret) && admits(&second.secret));
    let same = access.identify(Some(format!("Bearer {}", second.secret).as_bytes())).unwrap().unwrap();
    assert_eq!(same.allowances()[0].unwrap().remaining, 1, "its counts go on");
    clock.advance(Duration::from_secs(10));
    assert!(!admits(&made.secret) && admits(&second.secret));
    assert!(matches!(
        access.rotate("shop", Duration::from_secs(u64::MAX)),
        Err(AccessError::Invalid { param: "grace_seconds", .. })
    ));
    let third = access.rotate(&made.key.id, Duration::ZERO).unwrap();
    assert!(!admits(&second.secret) && admits(&third.secret));

    access.revoke("shop").unwrap();
    assert!(!admits(&third.secret) && !admits("anything"), "the last key's end opens nothing");
    assert!(matches!(access.revoke("nobody"), Err(AccessError::Unknown(_))));
    for (name, tiers, limits) in [
        ("", vec![], Limits::default()),
        ("a\nb", vec![], Limits::default()),
        ("x", vec!["gold".to_string()], Limits::default()),
        ("x", vec![], Limits { concurrent: Some(0), ..Limits::default() }),
        ("x", vec![], Limits { joules_per_day: Some(f64::NAN), ..Limits::default() }),
    ] {
        let refused = access.create(name, Scopes { tiers, ..Scopes::default() }, limits);
        assert!(matches!(refused, Err(AccessError::Invalid { .. })), "{name:?} {refused:?}");
    }
}

#[test]
fn a_day_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Access::with_store(None, Store::open(dir.path()).unwrap(), true, Clock::fake()).unwrap();
    let access = open();
    let limits = Limits { tokens_per_day: Some(100), ..Limits::default() };
    let made = access.create("a", Scopes::default(), limits).unwrap();
    let record = UsageRecord {
        ended: 5,
        key: made.key.id.clone(),
        model: "m".into(),
        endpoint: "/v1/completions".into(),
        tier: "default",
        prompt_tokens: 60,
        cached_tokens: 0,
        completion_tokens: 30,
        energy: Some(Energy {
            prefill_joules: 3.0,
            decode_joules: 6.0,
            method: "counter".into(),
            boundary: "cpu_package",
        }),
        first_token_seconds: None,
        seconds: 1.0,
        finish: "stop",
    };
    access.record(record, None);
    drop(access);
    let access = open();
    let account = access.identify(Some(format!("Bearer {}", made.secret).as_bytes())).unwrap().unwrap();
    assert_eq!(account.today().0, 90);
    let cost = access.costs().of(size(60, 30));
    assert!(cost.is_some_and(|joules| joules > 9.0), "what tokens cost is remembered: {cost:?}");
    assert!(matches!(account.reserve(size(5, 6), None), Err(Refusal::Quota { .. })));
    account.reserve(size(5, 5), None).unwrap();
}

#[test]
fn a_window_holds_every_minute() {
    let mut window = Window::default();
    let at = |ms: u64| Tick(ms * 1_000_000);
    for ms in [0, 30, 40_000] {
        window.take(at(ms), 1);
    }
    assert_eq!(window.sum(at(59_999)), 3);
    assert_eq!(window.wait(at(50_000), 1, 3).unwrap(), Duration::from_millis(10_100));
    assert_eq!(window.sum(at(60_100)), 1);
    assert_eq!(window.reset(at(60_100)), Duration::from_millis(40_000));
    assert_eq!(window.wait(at(60_100), 4, 3), None);
    let slot = window.take(at(61_000), 10);
    window.give_back(slot, 7);
    window.give_back(Tick(1), 5);
    assert_eq!(window.sum(at(61_001)), 4);
    assert_eq!(window.sum(at(200_000)), 0);
}

#[test]
fn a_retry_after_is_true_to_the_tenth() {
    let (account, clock) = account(Limits { requests_per_minute: Some(3), ..Limits::default() });
    for _ in 0..3 {
        drop(account.begin().unwrap());
        clock.advance(Duration::from_millis(700));
    }
    let after = wait(account.begin());
    clock.advance(after - Duration::from_millis(101));
    assert!(account.begin().is_err());
    clock.advance(Duration::from_millis(101));
    account.begin().unwrap();
    let [requests, tokens] = account.allowances();
    assert_eq!((requests.unwrap().limit, requests.unwrap().remaining, tokens), (3, 0, None));
}

#[test]
fn tokens_are_reserved_and_settled() {
    let (account, clock) = account(Limits { tokens_per_minute: Some(100), ..Limits::default() });
    let first = account.reserve(size(10, 50), None).unwrap();
    assert!(wait(account.reserve(size(10, 31), None)) > Duration::from_secs(59));
    let second = account.reserve(size(10, 30), None).unwrap();
    first.settle(15, 0.0);
    drop(second);
    assert_eq!(account.allowances()[1].unwrap().remaining, 85);
    let asked = account.reserve(size(60, 60), None).unwrap_err();
    assert!(matches!(asked, Refusal::TooLarge { asked: 120, limit: 100, .. }), "{asked}");
    // Without a length: what is left, and the next one waits; what it took is what counts.
    let unsaid = account.reserve(Size { said: false, ..size(10, 4000) }, None).unwrap();
    assert_eq!(account.allowances()[1].unwrap().remaining, 0);
    wait(account.reserve(size(1, 1), None));
    unsaid.settle(95, 0.0);
    assert_eq!(account.allowances()[1].unwrap().remaining, 0, "one request over");
    clock.advance(Duration::from_secs(61));
    assert_eq!(account.allowances()[1].unwrap().remaining, 100);
}

#[test]
fn days_end_at_midnight() {
    let limits = Limits { tokens_per_day: Some(100), joules_per_day: Some(10.0), ..Limits::default() };
    let (account, clock) = account(limits);
    clock.advance(Duration::from_secs(86_000));
    // Nothing is known of joules yet: one at a time.
    let first = account.reserve(size(10, 10), None).unwrap();
    assert_eq!(wait(account.reserve(size(10, 10), None)), Duration::from_secs(1));
    let first = first.settle(20, 12.0);
    // An estimate that is too high is no reason to send anybody away until tomorrow.
    assert_eq!(wait(account.reserve(size(10, 10), Some(4.0))), Duration::from_secs(1));
    assert_eq!(account.today().1, 12.0, "an estimate");
    wait(account.reserve(size(10, 10), Some(4.0)));
    first.settle(4.0);
    let second = account.reserve(size(10, 10), Some(4.0)).unwrap();
    wait(account.reserve(size(10, 10), Some(2.1)));
    let third = account.reserve(size(10, 10), Some(2.0)).unwrap();
    second.settle(20, 7.0).settle(7.0);
    drop(third);
    assert_eq!(account.today(), (40, 11.0));
    let over = account.reserve(size(10, 10), Some(4.0)).unwrap_err();
    assert!(
        matches!(&over, Refusal::Quota { what: "joules per day", retry_after, .. } if retry_after.as_secs() == 400)
    );
    clock.advance(Duration::from_secs(400));
    assert_eq!(account.today(), (0, 0.0));
    let over = account.reserve(size(70, 31), Some(0.02)).unwrap_err();
    assert!(matches!(over, Refusal::TooLarge { what: "tokens per day", .. }), "{over}");
    let late = account.reserve(size(30, 30), Some(1.0)).unwrap();
    let ended = account.reserve(size(5, 5), Some(8.0)).unwrap().settle(10, 0.5);
    clock.advance(Duration::from_secs(86_400));
    late.settle(50, 1.0).settle(1.0);
    assert_eq!(account.today(), (50, 1.0), "it ended today");
    ended.settle(6.0);
    assert_eq!(account.today().1, 1.0, "yesterday's joules are yesterday's");
    account.reserve(size(5, 5), Some(9.0)).unwrap();
}

proptest::proptest! {
    /// A meter tells the truth a while after a request has ended, and until then a third of it. Some requests
    /// are ten times as dear as others.
    #[test]
    fn joules_that_settle_late_pass_a_limit_by_one_request_at_most(
        moves in proptest::collection::vec((0..3, 0..100_usize, 1..=10), 2000),
    ) {
        const DEAREST: f64 = 0.3;
        let (account, _clock) = account(Limits { joules_per_day: Some(5.0), ..Limits::default() });
        let costs = Costs::default();
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        let mut spent = 0.0;
        for (what, which, tenths) in moves {
            let joules = DEAREST * f64::from(tenths) / 10.0;
            match what {
                0 => running.extend(account.reserve(size(10, 10), costs.of(size(10, 10)))),
                1 if !running.is_empty() => {
                    let reserved = running.swap_remove(which % running.len());
                    spent += joules;
                    ended.push((reserved.settle(20, joules / 3.0), joules));
                }
                2 if !ended.is_empty() => {
                    let (unsettled, joules) = ended.swap_remove(which % ended.len());
                    costs.note((joules / 2.0, 10), (joules / 2.0, 10));
                    unsettled.settle(joules);
                }
                _ => {}
            }
        }
        spent += DEAREST * running.len() as f64;
        proptest::prop_assert!(spent < 5.0 + DEAREST, "{spent} J");
    }
}

#[test]
fn what_requests_may_cost_is_learnt() {
    let costs = Costs::default();
    assert_eq!(costs.of(size(10, 1)), None);
    // Of one token there is the prompt's cost alone.
    costs.note((1.0, 10), (0.0, 0));
    assert_eq!(costs.of(size(10, 1)), Some(16.0), "many times as much while one is known");
    assert_eq!(costs.of(size(10, 2)), None);
    for _ in 0..1000 {
        costs.note((0.5, 10), (2.0, 10));
    }
    let prompt = costs.of(size(10, 0)).unwrap();
    assert!((2.0..2.2).contains(&prompt), "four times the dearest, which is forgotten: {prompt}");
    assert!((costs.of(size(10, 11)).unwrap() - prompt - 8.0).abs() < 0.9);
}

#[test]
fn a_hundred_at_once_pass_no_limit() {
    let limits = Limits {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(1000),
        concurrent: Some(40),
        ..Limits::default()
    };
    let (account, _clock) = account(limits);
    let (most, running) = (AtomicU64::new(0), AtomicU64::new(0));
    let tokens = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let Ok(_running) = account.begin() else { continue };
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    if let Ok(reserved) = account.reserve(size(7, 20), None) {
                        tokens.fetch_add(27, Ordering::SeqCst);
                        reserved.settle(27, 0.0);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let [requests, by_tokens] = account.allowances();
    assert_eq!(requests.unwrap().remaining, 0);
    let used = tokens.load(Ordering::SeqCst);
    assert!(used <= 1000 && used > 1000 - 27 && by_tokens.unwrap().remaining == 1000 - used, "{used}");
    assert!(most.load(Ordering::SeqCst) <= 40);
}

/// What a request costs the processor here, printed; the bound of all layers together is 150 µs.
#[test]
fn what_a_request_costs() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let access = Access::with_store(None, Store::open(dir.path()).unwrap(), true, clock.clone()).unwrap();
    let limits = Limits {
        requests_per_minute: Some(1 << 40),
        tokens_per_minute: Some(1 << 40),
        joules_per_day: Some(1e12),
        ..Limits::default()
    };
    let secret = access.create("a", Scopes::default(), limits).unwrap().secret;
    let bearer = format!("Bearer {secret}");
    const TIMES: u32 = 2000;
    let begun = clock.now();
    for _ in 0..TIMES {
        let account = access.identify(Some(bearer.as_bytes())).unwrap().unwrap();
        let running = account.begin().unwrap();
        let reserved = account.reserve(size(100, 100), Some(0.1)).unwrap();
        let _ = account.allowances();
        reserved.settle(150, 3.0);
        drop(running);
    }
    println!("identify, begin, reserve, settle: {:?} a request", clock.now().since(begun) / TIMES);
}
