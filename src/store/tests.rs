//! The store on real files: versions, modes, one holder, copies, sums.

use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;

use super::*;

fn key(name: &str, byte: u8) -> KeyRecord {
    KeyRecord {
        id: format!("key_{name}"),
        name: name.into(),
        digest: [byte; 32],
        shown: "hw-abc…".into(),
        created: 100 + u64::from(byte),
        revoked: None,
        scopes: Scopes { models: vec!["demo".into()], ..Scopes::default() },
        limits: Limits { joules_per_day: Some(1.5), concurrent: Some(3), ..Limits::default() },
        previous: None,
    }
}

fn record(key: &str, ended: u64) -> UsageRecord {
    UsageRecord {
        ended,
        key: key.into(),
        model: "demo".into(),
        endpoint: "/v1/chat/completions".into(),
        tier: "default",
        prompt_tokens: 10,
        cached_tokens: 4,
        completion_tokens: 5,
        energy: Some(energy(1.0, 2.0, "assumed")),
        first_token_seconds: Some(0.1),
        seconds: 0.5,
        finish: "stop",
    }
}

fn energy(prefill_joules: f64, decode_joules: f64, method: &str) -> Energy {
    Energy { prefill_joules, decode_joules, method: method.into(), boundary: "cpu_package" }
}

fn all() -> UsageQuery {
    UsageQuery { by: vec![By::Key, By::Day], ..UsageQuery::default() }
}

#[test]
fn keys_are_kept_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a/b");
    assert!(!Store::has_keys(&folder).unwrap());
    {
        let store = Store::open(&folder).unwrap();
        assert!(!Store::has_keys(&folder).unwrap());
        store.add_key(key("one", 1)).unwrap();
        store.add_key(key("two", 2)).unwrap();
        let again = store.add_key(KeyRecord { name: "one".into(), ..key("three", 3) });
        assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");
        assert!(Store::has_keys(&folder).unwrap(), "while it is held, too");
    }
    let store = Store::open(&folder).unwrap();
    assert_eq!(store.keys().unwrap(), [key("one", 1), key("two", 2)]);
    store.rotate_key("key_one", [9; 32], "hw-new…".into(), Some(500)).unwrap();
    let rotated = store.keys().unwrap().remove(0);
    assert_eq!((rotated.digest, rotated.previous), ([9; 32], Some(([1; 32], 500))));
    store.rotate_key("key_one", [8; 32], "hw-new…".into(), None).unwrap();
    assert_eq!(store.keys().unwrap()[0].previous, None);
    store.revoke_key("key_one", 600).unwrap();
    store.revoke_key("key_one", 700).unwrap();
    assert_eq!(store.keys().unwrap()[0].revoked, Some(600));
    assert!(matches!(store.revoke_key("key_x", 1), Err(StoreError::Unknown { .. })));
    let revoked = store.rotate_key("key_one", [7; 32], String::new(), None);
    assert!(matches!(revoked, Err(StoreError::Unknown { .. })));
}

#[test]
fn only_its_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let store = Store::open(&folder).unwrap();
    store.add_key(key("one", 1)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let copy = dir.path().join("copy.db");
    store.backup(&copy).unwrap();
    assert_eq!(mode(&copy), 0o600);
}

#[test]
fn one_process_holds_it_and_says_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held = |dir: &Path| match Store::open(dir) {
        Err(StoreError::Held { holder, .. }) => holder,
        other => panic!("{other:?}"),
    };
    assert_eq!(held(dir.path()), Holder { process: std::process::id(), socket: None });
    store.tell(Some(Path::new("/run/a.sock"))).unwrap();
    assert_eq!(held(dir.path()).socket, Some("/run/a.sock".into()));
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn an_older_file_is_brought_forward() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    {
        let mut old = Connection::open(&path).unwrap();
        schema::bring_forward(&mut old, 0, 1).unwrap();
        old.execute_batch(
            "INSERT INTO keys VALUES ('key_a', 'a', x'0101010101010101010101010101010101010101010101010101010101010101',
                'hw-1…', 5, NULL, '{}', '{\"concurrent\": 2}');
             INSERT INTO usage VALUES (1, 86400, 'key_a', 'demo', '/v1/completions', 'flex', 7, 0, 3, NULL, NULL,
                NULL, NULL, 0, NULL, 1.0, 'length');",
        )
        .unwrap();
        assert_eq!(old.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), 1);
    }
    let store = Store::open(dir.path()).unwrap();
    let keys = store.keys().unwrap();
    assert_eq!((keys[0].digest, keys[0].limits.concurrent), ([1; 32], Some(2)));
    store.rotate_key("key_a", [2; 32], String::new(), Some(9)).unwrap();
    let sums = store.usage(&all()).unwrap();
    assert_eq!((sums[0].day.as_deref(), sums[0].prompt_tokens), (Some("1970-01-02"), 7));
    drop(store);
    let version = Connection::open(&path).unwrap();
    assert_eq!(version.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), VERSION);
}

#[test]
fn newer_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let file = Connection::open(dir.path().join(FILE)).unwrap();
    file.pragma_update(None, "user_version", VERSION + 1).unwrap();
    drop(file);
    let newer = Store::open(dir.path()).unwrap_err();
    assert!(matches!(newer, StoreError::Newer { found, .. } if found == VERSION + 1), "{newer}");
    assert!(newer.to_string().contains("a newer hashwatt wrote it"));

    let other = tempfile::tempdir().unwrap();
    let file = Connection::open(other.path().join(FILE)).unwrap();
    file.execute_batch("CREATE TABLE songs (title TEXT)").unwrap();
    drop(file);
    assert!(matches!(Store::open(other.path()), Err(StoreError::Foreign { .. })));
}

#[test]
fn a_copy_is_whole_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.add_key(key("one", 1)).unwrap();
    store.record(record("key_one", 7), None);
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join(FILE);
    store.backup(&copy).unwrap();
    assert!(matches!(store.backup(&copy), Err(StoreError::Io { .. })));
    assert!(matches!(store.backup(Path::new("here.db")), Err(StoreError::Refused(_))));
    let copied = Store::open(other.path()).unwrap();
    assert_eq!(copied.keys().unwrap().len(), 1);
    assert_eq!(copied.usage(&all()).unwrap()[0].requests, 1);
}

#[test]
fn sums_keep_unlike_joules_apart_and_leave_out_what_failed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let day = 86_400;
    store.record(record("a", day), None);
    store.record(record("a", day + 5), None);
    store.record(UsageRecord { finish: "error", ..record("a", day + 6) }, None);
    store.record(UsageRecord { energy: Some(energy(1.0, 0.0, "counter")), ..record("a", day + 7) }, None);
    store.record(record("b", 2 * day), None);
    let sums = store.usage(&all()).unwrap();
    let seen: Vec<_> = sums
        .iter()
        .map(|s| (s.key.as_deref().unwrap(), s.method.as_deref().unwrap(), s.requests, s.prompt_tokens))
        .collect();
    assert_eq!(seen, [("a", "assumed", 3, 20), ("a", "counter", 1, 10), ("b", "assumed", 1, 10)]);
    assert_eq!((sums[0].failed, sums[0].decode_joules, sums[0].unsettled), (1, 6.0, 3));
    let later = UsageQuery { since: Some(2 * day), ..UsageQuery::default() };
    assert_eq!(store.usage(&later).unwrap()[0].requests, 1);
    let of_a = UsageQuery { key: Some("a".into()), until: Some(day + 6), ..UsageQuery::default() };
    assert_eq!(store.usage(&of_a).unwrap()[0].requests, 2);
}

#[test]
fn joules_are_settled_when_they_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut asked = 0;
    let later: Later = Box::new(move || {
        asked += 1;
        if asked < 2 { Settled::NotYet } else { Settled::Now(energy(3.0, 4.0, "counter")) }
    });
    store.record(record("a", 1), Some(later));
    for _ in 0..1000 {
        let sum = store.usage(&UsageQuery::default()).unwrap().remove(0);
        if sum.unsettled == 0 {
            assert_eq!((sum.prefill_joules, sum.decode_joules), (3.0, 4.0));
            return;
        }
        assert_eq!(sum.prefill_joules, 1.0, "the estimate, until then");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never settled");
}
