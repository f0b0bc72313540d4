//! A small HTTP server on loopback for tests: a closure answers each request, one at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    pub authorization: Option<String>,
    pub body: String,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    /// Lines of header, without their ends.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// Said instead of the body's true length.
    pub length: Option<usize>,
}

impl Answer {
    pub fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer { code: 200, headers: Vec::new(), body: body.into(), length: None }
    }
    pub fn code(code: u16, header: &str, body: &str) -> Answer {
        let headers = if header.is_empty() { Vec::new() } else { vec![header.into()] };
        Answer { code, headers, body: body.into(), length: None }
    }
}

/// Ends when dropped.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, end) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, ended) = (Arc::clone(&asked), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                // A client that went away is its own affair.
                let _ = stream.and_then(|stream| serve(stream, &answer, &log));
            }
        });
        Server { url, asked, end, thread: Some(thread) }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    stream: TcpStream,
    answer: &impl Fn(&Asked) -> Answer,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut asked = Asked::default();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if asked.method.is_empty() {
            let mut words = line.split(' ');
            asked.method = words.next().unwrap_or_default().into();
            asked.path = words.next().unwrap_or_default().into();
        } else if lower.starts_with("authorization:") {
            asked.authorization = Some(line["authorization:".len()..].trim().into());
        } else if let Some(n) = lower.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    asked.body = String::from_utf8(body).unwrap();
    let answer = answer(&asked);
    log.lock().unwrap().push(asked);
    let length = answer.length.unwrap_or(answer.body.len());
    let headers: String = answer.headers.iter().map(|h| format!("{h}\r\n")).collect();
    let code = answer.code;
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")?;
    stream.write_all(&answer.body)
}
