//! Models by name: from a server that plays the hub into a cache, through what goes wrong on the way, and served.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use hashwatt::cli::hub::resolve_cached;
use hashwatt::config::Resolved;
use hashwatt::hub::{self, HubName, Progress, Settings, Snapshot, Token};
use hashwatt::wire::client::Client;
use serde_json::{Value, json};

use crate::hub_server::{Asked, COMMIT, Fault, HubServer, REPO, git, sha256};

const WEIGHTS: &str = "model.safetensors";
const SECRET: &str = "hf_secret_of_the_test";

/// The demo as a repository, with what is not to be fetched beside it.
fn demo() -> BTreeMap<String, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    let read = || {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("demo");
        let wrote = program(dir.path(), "http://127.0.0.1:9")
            .args(["models", "write", "demo"])
            .arg(&folder)
            .output()
            .unwrap();
        assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
        let entries = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
        let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
        let mut files: BTreeMap<_, _> = entries.map(|p| (name(&p), std::fs::read(&p).unwrap())).collect();
        for other in ["README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"] {
            files.insert(other.into(), b"not asked for".to_vec());
        }
        files
    };
    FILES.get_or_init(read).clone()
}

/// A repository of few bytes that passes for a model until its weights are read.
fn small() -> BTreeMap<String, Vec<u8>> {
    let mut files = demo();
    files.insert(WEIGHTS.into(), (0..5000u32).flat_map(u32::to_le_bytes).collect());
    files
}

fn program(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
        command.env_remove(variable);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint).env("HASHWATT_STATE_DIR", home.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    (text(&output.stdout), text(&output.stderr))
}

/// What was said while files came.
#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Progress for Said {
    fn begin(&self, file: &str, _: u64, there: u64) {
        self.note(&format!("{file} from {there}"));
    }
    fn reached(&self, _: u64) {}
    fn end(&self) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

/// A cache of its own, and who asks for it.
struct Cache {
    dir: tempfile::TempDir,
    settings: Settings,
    said: Said,
}

impl Cache {
    fn new(hub: &HubServer) -> Cache {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: hub.url.clone(),
            cache: dir.path().join("hub"),
            token: None,
            offline: false,
            pause: Duration::from_millis(1),
        };
        Cache { dir, settings, said: Said::default() }
    }

    fn fetch(&self, name: &str) -> Result<Snapshot, String> {
        let name = HubName::parse(name).unwrap().unwrap();
        hub::fetch(&self.settings, &name, &|_| Ok(()), &self.said).map_err(|e| e.to_string())
    }

    fn error(&self, name: &str, words: &[&str]) {
        let error = self.fetch(name).unwrap_err();
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} are not in: {error}");
        assert!(!error.contains(SECRET), "{error}");
    }

    fn repo(&self) -> PathBuf {
        self.settings.cache.join("models--site--tiny")
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.repo().join("snapshots").join(COMMIT).join(name)).unwrap()
    }

    fn left_over(&self) -> bool {
        let blobs = std::fs::read_dir(self.repo().join("blobs")).into_iter().flatten();
        blobs.filter_map(Result::ok).any(|e| e.file_name().to_string_lossy().ends_with(".incomplete"))
    }

    fn offline(&mut self) -> &Cache {
        self.settings.offline = true;
        self
    }
}

/// The offsets at which the weights were asked for.
fn ranges(asked: &[Asked]) -> Vec<Option<&str>> {
    let gets = asked.iter().filter(|a| a.cdn && a.method == "GET");
    gets.map(|a| a.range.as_deref()).collect()
}

#[test]
fn a_repository_becomes_a_snapshot_of_what_is_needed() {
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    let snapshot = cache.fetch(REPO).unwrap();
    assert_eq!(
        (snapshot.commit.as_str(), snapshot.path.clone()),
        (COMMIT, cache.repo().join("snapshots").join(COMMIT))
    );
    let mut there: Vec<_> =
        std::fs::read_dir(&snapshot.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    there.sort();
    let want = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(there, want);
    let all = small();
    for file in want {
        assert_eq!(cache.file(file), all[file], "{file}");
        let etag = if file == WEIGHTS { sha256(&all[file]) } else { git(&all[file]) };
        let link = std::fs::read_link(snapshot.path.join(file)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag));
    }
    assert_eq!(std::fs::read_to_string(cache.repo().join("refs/main")).unwrap(), COMMIT);
    assert!(cache.repo().join(".no_exist").join(COMMIT).join("chat_template.jinja").is_file());
    assert!(!cache.left_over());
    assert_eq!(snapshot.bytes, want.iter().map(|f| all[*f].len() as u64).sum::<u64>());

    // A branch asks what it is now, and no more; its commit asks nothing.
    hub.asked();
    assert_eq!(cache.fetch(REPO).unwrap().bytes, 0);
    let again = hub.asked();
    assert!(again.len() == 1 && again[0].path.starts_with("/api/"), "{again:?}");
    assert_eq!(cache.fetch(&format!("{REPO}@{COMMIT}")).unwrap().path, snapshot.path);
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_stopped() {
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    hub.fault(WEIGHTS, Fault::Cut(1000));
    hub.fault(WEIGHTS, Fault::Cut(500));
    cache.fetch(REPO).unwrap();
    assert_eq!(ranges(&hub.asked()), [None, Some("bytes=1000-"), Some("bytes=1500-")]);
    assert_eq!(cache.file(WEIGHTS), small()[WEIGHTS]);

    // In another process the same: what is there is hashed and kept.
    let cache = Cache::new(&hub);
    hub.fault(WEIGHTS, Fault::Cut(1000));
    hub.fault(WEIGHTS, Fault::Status(404, ""));
    cache.error(REPO, &[REPO, WEIGHTS]);
    assert!(cache.left_over() && !cache.repo().join("refs/main").exists());
    hub.asked();
    cache.fetch(REPO).unwrap();
    assert_eq!(ranges(&hub.asked()), [Some("bytes=1000-")]);
    assert!(cache.said.0.lock().unwrap().contains(&format!("{WEIGHTS} from 1000")));
    assert_eq!(cache.file(WEIGHTS), small()[WEIGHTS]);

    // Without end it is not tried.
    let cache = Cache::new(&hub);
    (0..5).for_each(|_| hub.fault(WEIGHTS, Fault::Cut(0)));
    cache.error(REPO, &[WEIGHTS, "byte 0 of 20000"]);
}

#[test]
fn a_server_that_begins_anew_and_a_file_that_changed_end_well() {
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    hub.fault(WEIGHTS, Fault::Cut(1000));
    hub.fault(WEIGHTS, Fault::NoRange);
    cache.fetch(REPO).unwrap();
    assert_eq!(cache.file(WEIGHTS), small()[WEIGHTS]);

    // Between two tries the branch moves on: of its old file nothing is used.
    let cache = Cache::new(&hub);
    hub.fault(WEIGHTS, Fault::Cut(1000));
    hub.fault(WEIGHTS, Fault::Status(404, ""));
    cache.fetch(REPO).unwrap_err();
    let moved = "2222222222222222222222222222222222222222";
    hub.change(|s| {
        s.commit = moved.into();
        s.files.insert(WEIGHTS.into(), b"other weights".to_vec());
    });
    hub.asked();
    let snapshot = cache.fetch(REPO).unwrap();
    assert_eq!(ranges(&hub.asked()), [None]);
    assert_eq!(std::fs::read(snapshot.path.join(WEIGHTS)).unwrap(), b"other weights");
    assert_eq!(std::fs::read_to_string(cache.repo().join("refs/main")).unwrap(), moved);
    // The small files are the same blobs.
    assert_eq!(snapshot.bytes, 13);
}

#[test]
fn what_its_checksum_does_not_confirm_is_not_kept() {
    for file in [WEIGHTS, "tokenizer.json"] {
        let hub = HubServer::start(small());
        let cache = Cache::new(&hub);
        hub.fault(file, Fault::Wrong);
        cache.fetch(REPO).unwrap();
        assert_eq!(cache.file(file), small()[file]);
        let cache = Cache::new(&hub);
        (0..2).for_each(|_| hub.fault(file, Fault::Wrong));
        cache.error(REPO, &[file, "checksum"]);
        assert!(!cache.left_over() && !cache.repo().join("snapshots").join(COMMIT).join(file).exists());
        cache.fetch(REPO).unwrap();
    }
    // A blob of the wrong length is none.
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    cache.fetch(REPO).unwrap();
    let blob = cache.repo().join("blobs").join(sha256(&small()[WEIGHTS]));
    std::fs::write(blob, b"short").unwrap();
    cache.fetch(REPO).unwrap();
    assert_eq!(cache.file(WEIGHTS), small()[WEIGHTS]);
    // Where a server has no checksums, that is said.
    hub.change(|s| s.bare = true);
    let cache = Cache::new(&hub);
    cache.fetch(REPO).unwrap();
    let said = cache.said.0.lock().unwrap().join("\n");
    assert!(
        said.contains("tokenizer.json: the server has no checksum") && !said.contains("safetensors: the"),
        "{said}"
    );
}

#[test]
fn each_refusal_says_what_to_do() {
    let hub = HubServer::start(small());
    let mut cache = Cache::new(&hub);
    cache.error(&format!("{REPO}@v9"), &[REPO, "v9"]);
    cache.error("site/none", &["site/none", &hub.url, "no such path", "HF_TOKEN"]);
    hub.change(|s| s.token = Some(SECRET));
    cache.error(REPO, &[REPO, "HF_TOKEN", "401"]);
    cache.settings.token = Token::new("another");
    cache.error(REPO, &[REPO, "HF_TOKEN", "401"]);
    hub.fault("main", Fault::Status(403, "X-Error-Code: GatedRepo"));
    cache.settings.token = Token::new(SECRET);
    cache.error(REPO, &[REPO, "gated", "403"]);
    hub.asked();
    cache.fetch(REPO).unwrap();
    // The token is the hub's, not the CDN's.
    let asked = hub.asked();
    let bearer = format!("Bearer {SECRET}");
    assert!(
        asked.iter().all(|a| a.authorization.as_deref() == Some(bearer.as_str()).filter(|_| !a.cdn)),
        "{asked:?}"
    );
    assert!(asked.iter().any(|a| a.cdn));
    assert!(!format!("{:?}", cache.settings).contains(SECRET));
    // Too long a wait is not waited.
    hub.fault("main", Fault::Status(429, "Retry-After: 4000"));
    Cache::new(&hub).error(REPO, &["429", "4000 s"]);
}

#[test]
fn what_passes_is_tried_again() {
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    hub.fault("main", Fault::Status(429, "Retry-After: 1"));
    hub.fault("main", Fault::Status(503, ""));
    hub.fault("config.json", Fault::Status(500, ""));
    hub.fault(WEIGHTS, Fault::Status(502, ""));
    cache.fetch(REPO).unwrap();
    let said = cache.said.0.lock().unwrap().join("\n");
    assert!(["429", "503", "500", "502", "trying again in 1.0 s"].iter().all(|w| said.contains(w)), "{said}");
    (0..5).for_each(|_| hub.fault("main", Fault::Status(500, "")));
    let empty = Cache::new(&hub);
    empty.error(REPO, &[REPO, "no path here", "500", "as told"]);
    // With the branch in the cache the hub may be away.
    (0..5).for_each(|_| hub.fault("main", Fault::Status(500, "")));
    cache.fetch(REPO).unwrap();
    assert!(cache.said.0.lock().unwrap().iter().any(|s| s.contains("as it is in the cache")));
}

#[test]
fn offline_asks_nobody_and_names_what_is_missing() {
    let hub = HubServer::start(small());
    let mut cache = Cache::new(&hub);
    cache.offline().error(REPO, &["HF_HUB_OFFLINE", "main", "models pull site/tiny"]);
    cache.settings.offline = false;
    let whole = cache.fetch(REPO).unwrap();
    hub.asked();
    assert_eq!(cache.offline().fetch(REPO).unwrap(), Snapshot { bytes: 0, ..whole.clone() });
    assert_eq!(cache.fetch(&format!("{REPO}@{COMMIT}")).unwrap().path, whole.path);
    cache.error(&format!("{REPO}@refs/pr/1"), &["refs/pr/1"]);
    cache.error(&format!("{REPO}:b.gguf"), &["b.gguf"]);
    for file in [WEIGHTS, "tokenizer.json"] {
        std::fs::remove_file(whole.path.join(file)).unwrap();
        cache.error(REPO, &["HF_HUB_OFFLINE", file]);
    }
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_command_that_only_looks_finds_what_is_there() {
    let hub = HubServer::start(demo());
    let cache = Cache::new(&hub);
    let there = cache.fetch(REPO).unwrap().path;
    let flags = [("model", "site/other"), ("draft-model", REPO)].map(|(name, value)| (name, value.into()));
    let mut config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
    config.hub.cache = Some(cache.settings.cache.clone());
    resolve_cached(&mut config);
    assert_eq!(config.speculation.unwrap().draft.as_deref(), there.to_str());
    assert_eq!((config.models[0].model.as_str(), config.model.as_str()), ("site/other", "site/other"));
}

#[test]
fn what_is_no_model_is_refused_before_it_is_fetched() {
    let of = |files: &[&str]| files.iter().map(|f| (f.to_string(), b"{}".to_vec())).collect();
    for (files, words) in [
        (
            &["config.json", "tokenizer.json", "pytorch_model.bin"][..],
            &["pytorch_model.bin", "pickle", "safetensors"][..],
        ),
        (&["adapter_config.json", "adapter_model.safetensors"], &["adapter_config.json", "adapter"]),
        (&["q4.gguf"], &["site/tiny:FILE", "q4.gguf"]),
        (&["config.json", WEIGHTS, "tokenizer.json", "../../../../evil"], &["../../../../evil"]),
    ] {
        let hub = HubServer::start(of(files));
        let cache = Cache::new(&hub);
        cache.error(REPO, words);
        assert_eq!(hub.asked().len(), 1);
        assert!(!cache.dir.path().join("hub").exists());
    }
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    let name = HubName::parse(REPO).unwrap().unwrap();
    let refused = hub::fetch(&cache.settings, &name, &|_| Err("of no kind".into()), &cache.said).unwrap_err();
    assert_eq!(refused.to_string(), "site/tiny: of no kind");
    assert!(!hub.asked().iter().any(|a| a.path.contains(WEIGHTS)));
    // A file that no disk holds.
    let file = |name: &str, size: u64| json!({"rfilename": name, "size": size});
    let mut siblings: Vec<Value> = small().iter().map(|(f, c)| file(f, c.len() as u64)).collect();
    siblings.retain(|f| f["rfilename"] != WEIGHTS);
    siblings.push(file(WEIGHTS, 1 << 60));
    hub.change(|s| s.siblings = Some(siblings.into()));
    cache.error(REPO, &["1152921504606846976 bytes are wanted"]);
}

#[test]
fn shards_and_single_files_are_fetched_by_name() {
    let mut files = small();
    let weights = files.remove(WEIGHTS).unwrap();
    files.insert("model-1.safetensors".into(), weights.clone());
    files.insert("model-2.safetensors".into(), b"the rest".to_vec());
    files.insert("q/tiny q4.gguf".into(), b"GGUF".to_vec());
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    let hub = HubServer::start(files);
    let cache = Cache::new(&hub);
    let snapshot = cache.fetch(&format!("{REPO}@refs/pr/1")).unwrap();
    assert_eq!(cache.file("model-1.safetensors"), weights);
    assert_eq!(std::fs::read_to_string(cache.repo().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(!snapshot.path.join("consolidated.safetensors").exists());
    // A shard that is gone makes the commit incomplete.
    std::fs::remove_file(snapshot.path.join("model-2.safetensors")).unwrap();
    cache.fetch(&format!("{REPO}@{COMMIT}")).unwrap();
    assert_eq!(cache.file("model-2.safetensors"), b"the rest");
    let names: Vec<_> = hub::cached(&cache.settings.cache).into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["site/tiny@refs/pr/1"]);
    cache.error(&format!("{REPO}:q8.gguf"), &["q8.gguf", "q/tiny q4.gguf"]);
}

#[test]
fn two_that_want_the_same_fetch_it_once() {
    let hub = HubServer::start(small());
    let cache = Cache::new(&hub);
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| cache.fetch(REPO).unwrap()), scope.spawn(|| cache.fetch(REPO).unwrap())];
        let [one, other] = both.map(|t| t.join().unwrap());
        assert_eq!(one.path, other.path);
    });
    assert_eq!(ranges(&hub.asked()), [None]);
    assert_eq!(cache.file(WEIGHTS), small()[WEIGHTS]);
}

/// A unit in a process of its own; its URL.
fn serve(home: &Path, endpoint: &str) -> (Child, String) {
    let mut child = program(home, endpoint)
        .args(["serve", "--model", REPO, "--port", "0", "--threads", "1", "--device", "cpu"])
        .args(["--admin-listen", "none"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut url = String::new();
    for line in lines {
        if let Some(at) = line.find("http://").filter(|_| line.trim_start().starts_with("listen")) {
            url = line[at..].split("/v1").next().unwrap().to_string();
        }
        if line.contains("'{\"messages\"") {
            break;
        }
    }
    (child, url)
}

#[test]
fn the_program_pulls_lists_and_serves_and_its_port_fetches_nothing() {
    let hub = HubServer::start(demo());
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| program(home.path(), &hub.url).args(arguments).output().unwrap();
    // Whoever plays the hub may be cut in the middle.
    hub.fault(WEIGHTS, Fault::Cut(100_000));
    let (folder, said) = text(&run(&["models", "pull", REPO]));
    assert!(folder.ends_with(&format!("models--site--tiny/snapshots/{COMMIT}")), "{folder}\n{said}");
    assert!(said.contains("fetching model.safetensors") && said.contains("trying again"), "{said}");
    assert!(said.lines().count() < 20, "{said}");
    let (pulled, _) = text(&run(&["models", "pull", REPO, "--json"]));
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!((&pulled["path"], &pulled["fetched_bytes"]), (&json!(folder), &json!(0)));
    let (listed, _) = text(&run(&["models", "--json"]));
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let row = listed.iter().find(|row| row["model"] == REPO).unwrap();
    assert!(row["about"].as_str().unwrap().contains("parameters") && row["path"] == folder.as_str(), "{row}");

    let (mut unit, url) = serve(home.path(), &hub.url);
    let asked = hub.asked();
    assert!(asked.iter().any(|a| a.path.starts_with("/api/models/site/tiny")), "{asked:?}");
    let client = Client::new(&url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let post = |path: &str, body: Value| {
        runtime.block_on(async {
            let mut response = client.post_json(path, body.to_string().as_bytes()).await.unwrap();
            let bytes = response.bytes().await.unwrap();
            (response.status, serde_json::from_slice::<Value>(&bytes).unwrap_or_default())
        })
    };
    let chat = |model: &str| json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "What is PUE?"}]});
    let (status, answer) = post("/v1/chat/completions", chat(REPO));
    assert_eq!((status, answer["model"].as_str()), (200, Some(REPO)), "{answer}");
    // Nothing that a client says leads to the hub: neither another name nor a route of other servers.
    for model in ["site/other", "site/tiny@v2", "site/tiny:q4.gguf", folder.as_str()] {
        assert_eq!(post("/v1/chat/completions", chat(model)).0, 404, "{model}");
        assert_eq!(post("/v1/embeddings", json!({"model": model, "input": "a"})).0, 404, "{model}");
    }
    for route in ["/api/pull", "/v1/models", "/v1/load_lora_adapter", "/models/load", "/v1/models/pull"] {
        let (status, _) = post(route, json!({"model": "site/other", "name": "site/other"}));
        assert!([404, 405].contains(&status), "{route}: {status}");
    }
    assert_eq!(hub.asked(), []);
    unit.kill().unwrap();
    unit.wait().unwrap();

    // Offline it starts all the same; what is not there is one clear line.
    let offline = |arguments: &[&str]| {
        program(home.path(), &hub.url).env("HF_HUB_OFFLINE", "1").args(arguments).output().unwrap()
    };
    let checked = offline(&["serve", "--check", "--model", REPO, "--threads", "1", "--device", "cpu"]);
    assert!(checked.status.success() && text(&checked).0.contains("ok: site/tiny"), "{checked:?}");
    let missing = offline(&["serve", "--check", "--model", "site/other", "--device", "cpu"]);
    assert!(!missing.status.success());
    assert!(text(&missing).1.contains("HF_HUB_OFFLINE"), "{missing:?}");
    let (doctor, _) = text(&run(&["doctor", "--model", "site/other", "--device", "cpu"]));
    assert!(doctor.contains("models pull site/other"), "{doctor}");
    assert_eq!(hub.asked(), []);
}
