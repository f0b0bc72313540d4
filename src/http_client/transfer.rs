//! Requests whose answers are files: read as they come, bounded by silence instead of by time.
//!
//! A URL, perhaps a bearer token and an offset → status, headers and a reader. Redirects are followed one by one; the
//! token goes to the origin that was asked and to no other, and what began as https does not go on as http.
//! Knows nothing of what the files are.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

use super::{HttpError, MAX_BODY_BYTES, MAX_HEADER_BYTES, Target, failure, plain, shown, trusting};

const MAX_REDIRECTS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub connect: Duration,
    /// From the request to the head of its answer, and from one piece of a body to the next.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { connect: Duration::from_secs(10), silence: Duration::from_secs(60) }
    }
}

/// Keeps connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Transfer {
    plain: Agent,
    secure: Agent,
}

/// An answer, its body unread. Any status.
pub struct Reply {
    /// As messages name it.
    pub url: String,
    answer: Response<Body>,
}

impl Transfer {
    pub fn new(patience: Patience) -> Transfer {
        let config = || {
            Agent::config_builder()
                .timeout_connect(Some(patience.connect))
                .timeout_recv_response(Some(patience.silence))
                .timeout_per_read(Some(patience.silence))
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_response_header_size(MAX_HEADER_BYTES)
                .user_agent(concat!("hashwatt/", env!("CARGO_PKG_VERSION")))
                // A packed body has neither the length nor the offsets of the file.
                .accept_encoding("identity")
        };
        Transfer {
            plain: config().proxy(None).build().into(),
            secure: config().tls_config(trusting()).build().into(),
        }
    }

    /// What the server says of a file. Only redirects within the server are followed: the answer that leads elsewhere
    /// has the headers that the file's owner gives.
    ///
    /// # Errors
    /// No answer, or a redirect that is none.
    pub fn head(&self, url: &str, token: Option<&str>) -> Result<Reply, HttpError> {
        self.follow(url, token, None)
    }

    /// The file's bytes from an offset on, if the server can; it answers 200 where it begins anew.
    ///
    /// # Errors
    /// As [`Transfer::head`]; too many redirects.
    pub fn get(&self, url: &str, token: Option<&str>, from: u64) -> Result<Reply, HttpError> {
        self.follow(url, token, Some(from))
    }

    /// `from`: none asks for the head only.
    fn follow(&self, url: &str, token: Option<&str>, from: Option<u64>) -> Result<Reply, HttpError> {
        let mut target = Target::parse(url)?;
        let first = origin(&target.uri);
        let credentials = token.map(|t| format!("Bearer {t}"));
        let credentials = credentials.or_else(|| Some(target.auth.as_ref()?.header()));
        for _ in 0..=MAX_REDIRECTS {
            let name = target.name.clone();
            let agent = if target.secure { &self.secure } else { &self.plain };
            let mut request = match from {
                None => agent.head(&target.uri),
                Some(_) => agent.get(&target.uri),
            };
            if let Some(credentials) = credentials.as_ref().filter(|_| origin(&target.uri) == first) {
                request = request.header(header::AUTHORIZATION, credentials);
            }
            if let Some(from) = from.filter(|from| *from > 0) {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let answer = request.call().map_err(|e| failure(&name, e))?;
            let reply = Reply { url: name, answer };
            let Some(next) = reply.leads_to(&target)? else { return Ok(reply) };
            // By its path alone a file has another name here; a whole URL is where its bytes are.
            if from.is_none() && !reply.header("location").is_some_and(is_path) {
                return Ok(reply);
            }
            target = next;
        }
        Err(HttpError::Url {
            url: shown(url),
            problem: format!("it leads on more than {MAX_REDIRECTS} times"),
        })
    }
}

impl Reply {
    pub fn status(&self) -> u16 {
        self.answer.status().as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name)?.to_str().ok()
    }

    /// What the server says of the body's length.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The beginning of what an error's body says.
    pub fn detail(mut self) -> String {
        let body = self.answer.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
        body.map(|b| plain(&String::from_utf8_lossy(&b))).unwrap_or_default()
    }

    /// # Errors
    /// A body that is larger than what is read, is cut, or is not JSON.
    pub fn json(mut self) -> Result<Value, HttpError> {
        let body = self.answer.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
        let body = body.map_err(|e| failure(&self.url, e))?;
        serde_json::from_slice(&body).map_err(|e| HttpError::NotJson { url: self.url, at: e.to_string() })
    }

    /// The body as it comes. An end before [`Reply::length`] is an error of the reader.
    pub fn reader(self) -> impl Read {
        self.answer.into_body().into_reader()
    }

    fn leads_to(&self, from: &Target) -> Result<Option<Target>, HttpError> {
        if !matches!(self.status(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let wrong = |problem: &str| HttpError::Url { url: self.url.clone(), problem: problem.into() };
        let to = self.header("location").ok_or_else(|| wrong("it leads on and does not say where"))?;
        let next = match is_path(to) {
            true => Target::parse(&format!("{}{to}", origin(&from.uri)))?,
            false => Target::parse(to)?,
        };
        match from.secure && !next.secure {
            true => Err(wrong("it leads from https to http, which is not followed")),
            false => Ok(Some(next)),
        }
    }
}

fn is_path(location: &str) -> bool {
    location.starts_with('/') && !location.starts_with("//")
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map(|a| a.as_str().to_ascii_lowercase()).unwrap_or_default();
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::super::testing::{Answer, Server};
    use super::*;

    #[test]
    fn redirects_end_and_none_leaves_https() {
        let server = Server::start(|_| Answer::code(302, "Location: /again", ""));
        let error = Transfer::new(Patience::default()).get(&server.url, Some("SECRET"), 0).err().unwrap();
        assert!(error.to_string().contains("more than 5"), "{error}");
        assert_eq!(server.asked().len(), 6);
        let reply = |to: &str| {
            let answer =
                Response::builder().status(302).header("location", to).body(Body::builder().data(""));
            Reply { url: "https://h/a".into(), answer: answer.unwrap() }
        };
        let leads = |to: &str| {
            let next = reply(to).leads_to(&Target::parse("https://h:1/a?b").unwrap());
            next.map(|t| t.unwrap().uri.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(leads("/c?d").unwrap(), "https://h:1/c?d");
        assert_eq!(leads("https://cdn/x").unwrap(), "https://cdn/x");
        assert!(leads("http://h:1/c").unwrap_err().contains("from https to http"));
        assert!(leads("file:///etc/passwd").is_err() && leads("c").is_err());
    }

    #[test]
    fn silence_in_the_middle_of_a_body_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (over, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").unwrap();
            let _ = wait.recv();
        });
        let quick = Patience { silence: Duration::from_millis(200), ..Patience::default() };
        let mut body = Vec::new();
        let reply = Transfer::new(quick).get(&url, None, 0).unwrap();
        let error = reply.reader().read_to_end(&mut body).unwrap_err();
        assert!(body == b"abc" && error.to_string().contains("timeout"), "{error}");
        drop(over);
        thread.join().unwrap();
    }
}
