//! A small HTTP/1.1 client: JSON out, a body or SSE events back.
//!
//! For the load generator and `hashwatt chat --url`; knows nothing of the process behind the URL.
//! One connection a request (`Connection: close`), so a measured request owes nothing to others.
//! Dropping a [`Response`] closes its connection, which cancels the request at the server.

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::tls;
use crate::wire::sse::{Event, Parser, SseError};

/// Longest answer head, and longest whole body [`Response::bytes`] takes.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is not a URL of the form http[s]://host[:port][/path]")]
    Url(String),
    #[error("{authority}: {source}")]
    Io { authority: String, source: std::io::Error },
    #[error("the answer is not HTTP: {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Sse(#[from] SseError),
}

/// Where a server is and how to sign in there. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    authority: String,
    /// `host:port` to connect to.
    address: String,
    prefix: String,
    api_key: Option<String>,
    /// A socket of this machine instead of an address.
    socket: Option<std::path::PathBuf>,
    /// For `https`.
    secure: Option<Box<(TlsConnector, ServerName<'static>)>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// # Errors
    /// What is no `http` or `https` URL of a host.
    pub fn new(url: &str) -> Result<Client, ClientError> {
        let bad = || ClientError::Url(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(bad()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let clean = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if authority.is_empty() || authority.contains('@') || !clean(rest) {
            return Err(bad());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        let prefix = path.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        let secure = match scheme {
            "https" => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(|_| bad())?;
                Some(Box::new((TlsConnector::from(tls::client_config()), name)))
            }
            _ => None,
        };
        Ok(Client { authority: authority.to_owned(), address, prefix, api_key: None, socket: None, secure })
    }

    /// Of a server on a Unix socket.
    pub fn of_socket(path: &std::path::Path) -> Client {
        let (authority, socket) = ("localhost".to_owned(), Some(path.to_owned()));
        Client {
            address: String::new(),
            authority,
            prefix: String::new(),
            api_key: None,
            socket,
            secure: None,
        }
    }

    pub fn with_api_key(mut self, key: Option<String>) -> Client {
        self.api_key = key.filter(|k| k.bytes().all(|b| b.is_ascii_graphic()));
        self
    }

    /// # Errors
    /// Connection failures and answers that are not HTTP; any status is a success here.
    pub async fn get(&self, path: &str) -> Result<Response, ClientError> {
        self.send("GET", path, None).await
    }

    /// # Errors
    /// As [`Client::get`].
    pub async fn post_json(&self, path: &str, body: &[u8]) -> Result<Response, ClientError> {
        self.send("POST", path, Some(body)).await
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        if let Some(path) = &self.socket {
            return Ok(Box::new(UnixStream::connect(path).await?));
        }
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.secure {
            Some(secure) => Box::new(secure.0.connect(secure.1.clone(), tcp).await?),
            None => Box::new(tcp),
        })
    }

    async fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response, ClientError> {
        let io = |source| ClientError::Io { authority: self.authority.clone(), source };
        let mut stream = self.connect().await.map_err(io)?;
        let mut request = format!(
            "{method} {}{path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\naccept: */*\r\n",
            self.prefix, self.authority
        );
        if let Some(key) = &self.api_key {
            request += &format!("authorization: Bearer {key}\r\n");
        }
        if let Some(body) = body {
            request += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        let mut request = (request + "\r\n").into_bytes();
        request.extend_from_slice(body.unwrap_or_default());
        stream.write_all(&request).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        Response::read_head(stream, self.authority.clone()).await
    }
}

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Bytes left.
    Length(usize),
    /// Bytes left of the chunk under way; a size line is next when none are.
    Chunked(usize),
    UntilClose,
    Ended,
}

/// An answer whose head has arrived.
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    stream: Box<dyn Stream>,
    authority: String,
    buffer: Vec<u8>,
    framing: Framing,
    parser: Parser,
    events: std::collections::VecDeque<Event>,
}

impl Response {
    async fn read_head(stream: Box<dyn Stream>, authority: String) -> Result<Response, ClientError> {
        let mut response = Response {
            status: 0,
            headers: Vec::new(),
            stream,
            authority,
            buffer: Vec::with_capacity(4096),
            framing: Framing::UntilClose,
            parser: Parser::default(),
            events: std::collections::VecDeque::new(),
        };
        let head_end = loop {
            if let Some(at) = response.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if response.buffer.len() > MAX_HEAD || response.fill().await? == 0 {
                return Err(ClientError::Protocol("no complete head"));
            }
        };
        let rest = response.buffer.split_off(head_end + 4);
        let head = std::mem::replace(&mut response.buffer, rest);
        let head = String::from_utf8_lossy(&head);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
        response.status = status.ok_or(ClientError::Protocol("no status"))?;
        response.headers = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        response.framing = match (response.header("transfer-encoding"), response.header("content-length")) {
            (Some(_), _) => Framing::Chunked(0),
            (None, Some(n)) => Framing::Length(n.parse().map_err(|_| ClientError::Protocol("length"))?),
            (None, None) => Framing::UntilClose,
        };
        Ok(response)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Keep-alive comments seen so far.
    pub fn comments(&self) -> usize {
        self.parser.comments()
    }

    /// The next bytes of the body as they arrive; empty at its end.
    ///
    /// # Errors
    /// A body that breaks off or is framed wrongly.
    pub async fn chunk(&mut self) -> Result<Vec<u8>, ClientError> {
        loop {
            match self.framing {
                Framing::Ended | Framing::Length(0) => return Ok(Vec::new()),
                Framing::Chunked(0) => {
                    // A size line; what precedes it is the line end of the chunk before.
                    let start = usize::from(self.buffer.starts_with(b"\r\n")) * 2;
                    if let Some(end) = self.buffer[start..].windows(2).position(|w| w == b"\r\n") {
                        let line = String::from_utf8_lossy(&self.buffer[start..start + end]).into_owned();
                        let size = line.split(';').next().unwrap_or_default().trim();
                        let size = usize::from_str_radix(size, 16)
                            .map_err(|_| ClientError::Protocol("chunk size"))?;
                        self.buffer.drain(..start + end + 2);
                        self.framing = if size == 0 { Framing::Ended } else { Framing::Chunked(size) };
                        continue;
                    }
                }
                Framing::Length(left) | Framing::Chunked(left) if !self.buffer.is_empty() => {
                    let rest = self.buffer.split_off(left.min(self.buffer.len()));
                    let out = std::mem::replace(&mut self.buffer, rest);
                    let left = left - out.len();
                    self.framing = match self.framing {
                        Framing::Length(_) => Framing::Length(left),
                        _ => Framing::Chunked(left),
                    };
                    return Ok(out);
                }
                Framing::UntilClose if !self.buffer.is_empty() => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                _ => {}
            }
            if self.fill().await? == 0 {
                if self.framing == Framing::UntilClose {
                    return Ok(Vec::new());
                }
                return Err(ClientError::Protocol("the body broke off"));
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// As [`Response::chunk`]; a body above 256 MiB.
    pub async fn bytes(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk().await?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BODY {
                return Err(ClientError::Protocol("the body is too long"));
            }
        }
    }

    /// The next event of an SSE body; `None` at its end. `[DONE]` is an event.
    ///
    /// # Errors
    /// As [`Response::chunk`]; an event that is too long or not UTF-8.
    pub async fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        while self.events.is_empty() {
            let chunk = self.chunk().await?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let mut events = Vec::new();
            self.parser.push(&chunk, &mut events)?;
            self.events.extend(events);
        }
        Ok(self.events.pop_front())
    }

    async fn fill(&mut self) -> Result<usize, ClientError> {
        let source = self.stream.read_buf(&mut self.buffer).await;
        source.map_err(|source| ClientError::Io { authority: self.authority.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers one connection with the given pieces, each its own write.
    async fn answering(pieces: Vec<&'static [u8]>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = [0; 4096];
            let n = stream.read(&mut seen).await.unwrap();
            assert!(seen[..n].starts_with(b"GET /base/x HTTP/1.1\r\n"), "{:?}", &seen[..n]);
            for piece in pieces {
                stream.write_all(piece).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        Client::new(&url).unwrap()
    }

    #[tokio::test]
    async fn chunked_events_cut_anywhere() {
        let client = answering(vec![
            b"HTTP/1.1 200 OK\r\nTransfer-Enc",
            b"oding: chunked\r\n\r\n5\r\ndata:",
            b"\r\n4\r\n one\r",
            b"\n2\r\n\n\n\r\n10\r\ndata: [DONE]",
            b"\n\nxx\r\n0\r\n\r\n",
        ])
        .await;
        let mut response = client.get("/x").await.unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(response.next_event().await.unwrap().unwrap().data, "one");
        assert!(response.next_event().await.unwrap().unwrap().is_done());
        assert_eq!(response.next_event().await.unwrap(), None);
    }

    #[tokio::test]
    async fn lengths_and_breaks() {
        let client =
            answering(vec![b"HTTP/1.1 503 x\r\nContent-Length: 5\r\nRetry-After: 1\r\n\r\nhel", b"lo"]).await;
        let mut response = client.get("/x").await.unwrap();
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert_eq!(response.bytes().await.unwrap(), b"hello");
        let client = answering(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"]).await;
        assert!(client.get("/x").await.unwrap().bytes().await.is_err());
    }

    #[test]
    fn urls() {
        assert!(Client::new("ftp://a").is_err() && Client::new("http://").is_err());
        assert!(Client::new("http://a b").is_err() && Client::new("http://u@a").is_err());
        assert_eq!(Client::new("http://a").unwrap().address, "a:80");
        assert_eq!(Client::new("https://a/v1").unwrap().address, "a:443");
        assert!(Client::new("https://[::1]:8443").is_ok() && Client::new("https://a..b").is_err());
        assert_eq!(Client::new("http://a:81/v").unwrap().prefix, "/v");
    }
}
