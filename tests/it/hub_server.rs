//! A server that plays the model hub on loopback: listings, small files by itself, large ones by a "CDN" on another
//! port, and what goes wrong with them on the way.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const REPO: &str = "site/tiny";
pub const COMMIT: &str = "1111111111111111111111111111111111111111";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Asked of the other port.
    pub cdn: bool,
}

/// What becomes of one answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// So many bytes come, then the connection ends.
    Cut(usize),
    /// Another status, with a header.
    Status(u16, &'static str),
    /// The right length, a wrong byte.
    Wrong,
    /// The whole file whatever was asked for.
    NoRange,
}

#[derive(Default)]
pub struct State {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// In the place of the files' own listing.
    pub siblings: Option<Value>,
    /// What must be shown to be let in.
    pub token: Option<&'static str>,
    /// For the requests whose path ends so, in their order.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// Headers of small files name no checksum, and the listing neither.
    pub bare: bool,
    cdn: String,
    log: Vec<Asked>,
}

#[derive(Clone)]
pub struct HubServer {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> HubServer {
        let (hub, cdn) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let state = State { commit: COMMIT.into(), files, cdn: url(&cdn), ..State::default() };
        let server = HubServer { url: url(&hub), state: Arc::new(Mutex::new(state)) };
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let server = server.clone();
            // It ends with the tests' process.
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let server = server.clone();
                    std::thread::spawn(move || {
                        let _ = server.answer(stream, is_cdn);
                    });
                }
            });
        }
        server
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn fault(&self, of: &'static str, fault: Fault) {
        self.change(|s| s.faults.push_back((of, fault)));
    }

    /// What was asked since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn answer(&self, stream: TcpStream, cdn: bool) -> std::io::Result<()> {
        let asked = read(&stream, cdn)?;
        let (code, headers, body, cut) = {
            let mut state = self.state.lock().unwrap();
            state.log.push(asked.clone());
            state.answer(&asked)
        };
        let length = body.len();
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {code} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        )?;
        if asked.method == "GET" {
            stream.write_all(&body[..cut.unwrap_or(length).min(length)])?;
        }
        Ok(())
    }
}

fn read(stream: &TcpStream, cdn: bool) -> std::io::Result<Asked> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let mut words = lines.first().map(String::as_str).unwrap_or_default().split(' ').map(str::to_string);
    let header = |name: &str| {
        let found =
            lines.iter().filter_map(|l| l.split_once(':')).find(|(k, _)| k.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.trim().to_string())
    };
    Ok(Asked {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: header("range"),
        authorization: header("authorization"),
        cdn,
    })
}

type Answer = (u16, String, Vec<u8>, Option<usize>);

impl State {
    fn answer(&mut self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap().to_string();
        let of_bytes = asked.cdn || !self.is_large(path.rsplit('/').next().unwrap());
        let by_itself = asked.method == "GET" && of_bytes;
        let wanted = |(of, _): &(&str, Fault)| path.ends_with(of) && (path.starts_with("/api/") || by_itself);
        let at = self.faults.iter().position(wanted);
        let fault = at.and_then(|at| self.faults.remove(at)).map(|(_, fault)| fault);
        if let Some(Fault::Status(code, header)) = fault {
            let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
            return (code, header, b"as told".to_vec(), None);
        }
        let known = asked.authorization.as_ref().and_then(|a| a.strip_prefix("Bearer "));
        if !asked.cdn && self.token.is_some() && known != self.token {
            return (401, "X-Error-Code: RepoNotFound\r\n".into(), Vec::new(), None);
        }
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
            return self.listing(revision);
        }
        let file = match asked.cdn {
            true => path.strip_prefix("/cdn/"),
            false => path.strip_prefix(&format!("/{REPO}/resolve/{}/", self.commit)),
        };
        let Some(content) = file.and_then(|f| self.files.get(f)) else {
            return (404, "X-Error-Code: EntryNotFound\r\n".into(), Vec::new(), None);
        };
        let file = file.unwrap();
        let commit = format!("X-Repo-Commit: {}\r\n", self.commit);
        if self.is_large(file) && !asked.cdn {
            let (etag, size) = (sha256(content), content.len());
            let to = format!("Location: {}/cdn/{file}?signature=x\r\n", self.cdn);
            let linked = format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n");
            return (302, format!("{commit}{to}{linked}"), Vec::new(), None);
        }
        let etag = if self.bare { format!("no-checksum-{}", content.len()) } else { git(content) };
        bytes(content, asked, format!("{commit}ETag: \"{etag}\"\r\n"), fault)
    }

    fn is_large(&self, file: &str) -> bool {
        file.ends_with(".safetensors") || file.ends_with(".gguf")
    }

    fn listing(&self, revision: &str) -> Answer {
        if !["main", "refs%2Fpr%2F1", self.commit.as_str()].contains(&revision) {
            return (404, "X-Error-Code: RevisionNotFound\r\n".into(), Vec::new(), None);
        }
        let of = |(name, content): (&String, &Vec<u8>)| {
            let mut file = json!({"rfilename": name});
            if !self.bare {
                file["size"] = content.len().into();
                file["blobId"] = git(content).into();
            }
            if self.is_large(name) && !self.bare {
                file["lfs"] = json!({"sha256": sha256(content), "size": content.len(), "pointerSize": 130});
            }
            file
        };
        let all = self.siblings.clone().unwrap_or_else(|| self.files.iter().map(of).collect());
        (200, String::new(), json!({"sha": self.commit, "siblings": all}).to_string().into(), None)
    }
}

fn bytes(content: &[u8], asked: &Asked, headers: String, fault: Option<Fault>) -> Answer {
    let from = asked.range.as_ref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from = from.filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let (code, range, mut body) = match from {
        None => (200, String::new(), content.to_vec()),
        Some(from) if from >= content.len() => return (416, headers, Vec::new(), None),
        Some(from) => {
            let (last, total) = (content.len() - 1, content.len());
            (206, format!("Content-Range: bytes {from}-{last}/{total}\r\n"), content[from..].to_vec())
        }
    };
    let cut = if let Some(Fault::Cut(at)) = fault { Some(at) } else { None };
    if let (Some(Fault::Wrong), Some(byte)) = (&fault, body.last_mut()) {
        *byte ^= 1;
    }
    (code, headers + &range, body, cut)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub fn git(content: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
}
