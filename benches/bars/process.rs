//! The binary as a process: how soon it answers, and how much memory of its own it takes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashwatt::clock::Clock;

use crate::Report;

const BINARY: &str = env!("CARGO_BIN_EXE_hashwatt");
const ROUNDS: usize = 5;
const KV_BYTES: u64 = 64 << 20;

struct Server {
    child: Child,
    /// Its state, apart from the user's.
    _state: tempfile::TempDir,
    port: u16,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let state = tempfile::tempdir().expect("a folder");
        let child = Command::new(BINARY)
            .args(["serve", "--port", &port.to_string(), "--log-level", "error", "--admin-listen", "none"])
            .env("HASHWATT_STATE_DIR", state.path())
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Server { child, port, _state: state }
    }

    /// One chat request; true when it was answered.
    fn ask(&self, max_tokens: usize) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let body = format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is hashprice?\"}}], \"max_tokens\": {max_tokens}}}"
        );
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    fn wait(&self) {
        while !self.ask(1) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is a bench: nothing is lost when it cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn start(report: &mut Report) {
    let clock = Clock::system();
    let seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = clock.now();
            let server = Server::start(&[]);
            server.wait();
            clock.now().since(begin).as_secs_f64()
        })
        .collect();
    report.row("demo: first answered request after the start", "s", &seconds, Some(("≤", 1.0)));
}

/// Anonymous resident memory now, in bytes.
fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Peak anonymous memory of a server from its start through a few requests.
fn peak(model: &str) -> u64 {
    let kv = KV_BYTES.to_string();
    let server = Server::start(&["--model", model, "--kv-memory", &kv]);
    let (pid, done) = (server.child.id(), Arc::new(AtomicBool::new(false)));
    let highest = Arc::new(AtomicU64::new(0));
    let watcher = {
        let (done, highest) = (done.clone(), highest.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                highest.fetch_max(anonymous(pid), Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    };
    server.wait();
    assert!((0..3).all(|_| server.ask(16)), "requests are answered");
    done.store(true, Ordering::Release);
    watcher.join().expect("the watcher ends");
    highest.load(Ordering::Acquire)
}

pub fn memory(report: &mut Report) {
    const MODEL: &str = "synthetic:qwen3-0.6b";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model");
    let path = path.to_str().expect("a path of text");
    let wrote =
        Command::new(BINARY).args(["models", "write", MODEL, path]).status().expect("the binary runs");
    assert!(wrote.success());
    let weights = std::fs::metadata(Path::new(path).join("model.safetensors")).expect("weights").len() as f64;
    let share = |model: &str| (peak(model).saturating_sub(KV_BYTES)) as f64 / weights;
    report.row("folder: (peak anonymous − KV) ÷ weight bytes", "×", &[share(path)], Some(("≤", 0.25)));
    report.row("synthetic: (peak anonymous − KV) ÷ weight bytes", "×", &[share(MODEL)], Some(("≤", 1.25)));
}
