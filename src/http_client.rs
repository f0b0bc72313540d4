//! L1. The one outgoing HTTP client: blocking, JSON in and out, every wait and every body bounded.
//!
//! A URL and perhaps credentials → a JSON value or a typed error. Redirects are never followed: the error says
//! where they lead. Errors name the URL without user, password and query, for those may hold secrets. Plain
//! `http` goes straight to the host (the site's own network); `https` takes the system's proxy if it has one.
//! Knows nothing of meters, markets or miners.

#[cfg(test)]
pub mod testing;
pub mod transfer;

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::printable;
use crate::tls;

/// The largest answer that is read.
pub const MAX_BODY_BYTES: u64 = 8 * 1024 * 1024;
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How much of an error's body is shown.
const DETAIL_CHARS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the first look-up to the last byte.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(5), total: Duration::from_secs(20) }
    }
}

/// User and password for HTTP basic authentication. Not printable.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    user: String,
    password: String,
}

impl BasicAuth {
    /// `user:password`, as a cookie file of Bitcoin Core holds it.
    pub fn parse(text: &str) -> Option<BasicAuth> {
        let (user, password) = text.trim().split_once(':')?;
        (!user.is_empty()).then(|| BasicAuth { user: user.into(), password: password.into() })
    }

    pub fn new(user: &str, password: &str) -> BasicAuth {
        BasicAuth { user: user.into(), password: password.into() }
    }

    fn header(&self) -> String {
        format!("Basic {}", base64(format!("{}:{}", self.user, self.password).as_bytes()))
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("BasicAuth(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("{url}: not a URL that can be asked: {problem}")]
    Url { url: String, problem: String },
    #[error("{url}: no connection: {problem}")]
    Connect { url: String, problem: String },
    #[error("{url}: no full answer in time ({waited})")]
    Timeout { url: String, waited: String },
    #[error("{url}: HTTP {code}: {detail}")]
    Status { url: String, code: u16, detail: String },
    /// 429 or 503: the server asks for patience.
    #[error("{url}: HTTP {code}, the server limits requests; try again {}", after(*.retry_after_seconds))]
    Busy { url: String, code: u16, retry_after_seconds: Option<u64> },
    #[error(
        "{url}: HTTP {code} leads to {to:?}, which is not followed; give that address if it is the right one"
    )]
    Redirect { url: String, code: u16, to: String },
    #[error("{url}: the answer is larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{url}: the answer is not JSON: {at}")]
    NotJson { url: String, at: String },
}

fn after(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "later".into(), |s| format!("in {s} s"))
}

/// Keeps connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpClient {
    plain: Agent,
    secure: Agent,
}

impl Default for HttpClient {
    fn default() -> Self {
        HttpClient::new(Timeouts::default())
    }
}

impl HttpClient {
    pub fn new(timeouts: Timeouts) -> HttpClient {
        let config = || {
            Agent::config_builder()
                .timeout_connect(Some(timeouts.connect))
                .timeout_global(Some(timeouts.total))
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_response_header_size(MAX_HEADER_BYTES)
                .user_agent(concat!("hashwatt/", env!("CARGO_PKG_VERSION")))
                .accept("application/json")
        };
        HttpClient {
            plain: config().proxy(None).build().into(),
            secure: config().tls_config(trusting()).build().into(),
        }
    }

    /// # Errors
    /// [`HttpError`]; everything but a 2xx answer of JSON is one.
    pub fn get_json(&self, url: &str) -> Result<Value, HttpError> {
        self.send(url, None, None)
    }

    /// # Errors
    /// [`HttpError`].
    pub fn get_json_with(&self, url: &str, auth: &BasicAuth) -> Result<Value, HttpError> {
        self.send(url, Some(auth), None)
    }

    /// # Errors
    /// [`HttpError`].
    pub fn post_json(&self, url: &str, auth: Option<&BasicAuth>, body: &Value) -> Result<Value, HttpError> {
        self.send(url, auth, Some(body))
    }

    fn send(&self, url: &str, auth: Option<&BasicAuth>, body: Option<&Value>) -> Result<Value, HttpError> {
        let target = Target::parse(url)?;
        let auth = auth.or(target.auth.as_ref()).map(BasicAuth::header);
        let agent = if target.secure { &self.secure } else { &self.plain };
        let answer = match body {
            None => {
                let request = agent.get(&target.uri);
                auth.iter().fold(request, |r, a| r.header(header::AUTHORIZATION, a)).call()
            }
            Some(body) => {
                let request = agent.post(&target.uri).content_type("application/json");
                auth.iter().fold(request, |r, a| r.header(header::AUTHORIZATION, a)).send(body.to_string())
            }
        };
        read(&target.name, answer.map_err(|e| failure(&target.name, e))?)
    }
}

/// As [`tls::client_config`].
fn trusting() -> TlsConfig {
    let system = tls::system_roots();
    let roots = match system.is_empty() {
        true => RootCerts::WebPki,
        false => system.iter().map(|root| Certificate::from_der(root)).into(),
    };
    TlsConfig::builder().root_certs(roots).build()
}

/// The URL without user, password and query, for messages and file headers.
pub fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, query) = rest.split_once(['?', '#']).map_or((rest, ""), |(rest, _)| (rest, "?…"));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{host}{path}{query}")
}

/// A URL taken apart: what is sent, what is shown.
struct Target {
    uri: Uri,
    name: String,
    secure: bool,
    auth: Option<BasicAuth>,
}

impl Target {
    fn parse(url: &str) -> Result<Target, HttpError> {
        let name = shown(url);
        let wrong = |problem: &str| HttpError::Url { url: name.clone(), problem: problem.into() };
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| wrong("it begins with http:// or https://"))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("only http and https are spoken")),
        };
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
        let auth = match user {
            None => None,
            Some(user) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                Some(BasicAuth::new(&decode(user), &decode(password)))
            }
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let uri: Uri = format!("{scheme}://{host}{slash}{}", encode(path))
            .parse()
            .map_err(|e: ureq::http::uri::InvalidUri| wrong(&e.to_string()))?;
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        if uri.port_u16().is_none() && uri.authority().is_some_and(|a| a.as_str() != host) {
            return Err(wrong("its port is none"));
        }
        Ok(Target { uri, name, secure, auth })
    }
}

/// Escapes what people write into a query (spaces, quotes, braces) and a URL may not hold.
fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                out.push_str(&format!("%{byte:02X}"))
            }
            b'!'..=b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `%41` to `A`; what is not such an escape stays.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let hex = |at: usize| (*bytes.get(at)? as char).to_digit(16);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for digit in 0..4 {
            let six = (word >> (18 - 6 * digit)) & 63;
            out.push(if digit > chunk.len() { '=' } else { DIGITS[six as usize] as char });
        }
    }
    out
}

fn read(name: &str, mut answer: Response<Body>) -> Result<Value, HttpError> {
    let url = || name.to_string();
    let code = answer.status().as_u16();
    let text = |key| answer.headers().get(key).and_then(|v| v.to_str().ok()).map(str::to_string);
    if code == 429 || code == 503 {
        let retry_after_seconds = text(header::RETRY_AFTER).and_then(|v| v.trim().parse().ok());
        return Err(HttpError::Busy { url: url(), code, retry_after_seconds });
    }
    if answer.status().is_redirection() {
        let to = text(header::LOCATION).map_or_else(String::new, |to| plain(&shown(&to)));
        return Err(HttpError::Redirect { url: url(), code, to });
    }
    let success = answer.status().is_success();
    let body = answer.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
    if !success {
        let detail = body.map(|b| plain(&String::from_utf8_lossy(&b))).unwrap_or_default();
        let detail = match (code, detail.as_str()) {
            (401, "") => "the user or the password is not right".into(),
            (_, "") => "no reason given".into(),
            _ => detail,
        };
        return Err(HttpError::Status { url: url(), code, detail });
    }
    let body = body.map_err(|e| failure(name, e))?;
    serde_json::from_slice(&body).map_err(|e| HttpError::NotJson { url: url(), at: e.to_string() })
}

fn plain(text: &str) -> String {
    printable(text, DETAIL_CHARS)
}

fn waited(what: &ureq::Timeout) -> String {
    match what {
        ureq::Timeout::Global => "from the first look-up to the last byte".into(),
        other => other.to_string(),
    }
}

fn failure(name: &str, error: ureq::Error) -> HttpError {
    let url = name.to_string();
    match error {
        ureq::Error::Timeout(what) => HttpError::Timeout { url, waited: waited(&what) },
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::TimedOut => {
            HttpError::Timeout { url, waited: e.to_string() }
        }
        ureq::Error::BodyExceedsLimit(limit) => HttpError::TooLarge { url, limit },
        ureq::Error::LargeResponseHeader(_, limit) => HttpError::TooLarge { url, limit: limit as u64 },
        // Their texts may repeat the URL with all it holds.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            HttpError::Url { url, problem: "it cannot be sent".into() }
        }
        other => HttpError::Connect { url, problem: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Answer, Server};
    use super::*;

    const QUICK: Timeouts = Timeouts { connect: Duration::from_secs(2), total: Duration::from_millis(400) };

    fn get(answer: Answer) -> Result<Value, HttpError> {
        let server = Server::start(move |_| answer.clone());
        HttpClient::new(Timeouts::default()).get_json(&format!("{}/a?token=SECRET", server.url))
    }

    #[test]
    fn json_comes_back_and_everything_else_is_a_typed_error() {
        assert_eq!(get(Answer::ok("[1]")).unwrap(), serde_json::json!([1]));
        let busy = get(Answer::code(429, "Retry-After: 30", "slow down")).unwrap_err();
        assert!(matches!(busy, HttpError::Busy { code: 429, retry_after_seconds: Some(30), .. }), "{busy}");
        let busy = get(Answer::code(503, "", "")).unwrap_err();
        assert!(matches!(busy, HttpError::Busy { code: 503, retry_after_seconds: None, .. }), "{busy}");
        let status = get(Answer::code(500, "", "it \u{1b}[31mbroke\n here")).unwrap_err();
        assert!(
            matches!(&status, HttpError::Status { code: 500, detail, .. } if detail == "it [31mbroke here")
        );
        let html = get(Answer::ok("<html>")).unwrap_err();
        assert!(matches!(&html, HttpError::NotJson { at, .. } if at.contains("line 1 column 1")), "{html}");
        let deep = get(Answer::ok("[".repeat(1_000_000))).unwrap_err();
        assert!(matches!(deep, HttpError::NotJson { .. }), "{deep}");
        let cut = get(Answer { length: Some(10), ..Answer::ok("[1,2]") }).unwrap_err();
        assert!(matches!(cut, HttpError::Connect { .. } | HttpError::Timeout { .. }), "{cut}");
        for error in [busy, status, html, deep, cut] {
            let text = error.to_string();
            assert!(text.starts_with("http://127.0.0.1:") && !text.contains("SECRET"), "{text}");
        }
    }

    #[test]
    fn no_redirect_is_followed_and_its_target_is_named() {
        let to = get(Answer::code(302, "Location: https://u:SECRET@elsewhere/x", "")).unwrap_err();
        assert!(
            matches!(&to, HttpError::Redirect { code: 302, to, .. } if to == "https://elsewhere/x"),
            "{to}"
        );
    }

    #[test]
    fn a_body_has_a_limit_and_a_wait_has_an_end() {
        let large = get(Answer::ok(vec![b' '; MAX_BODY_BYTES as usize + 1])).unwrap_err();
        assert!(matches!(large, HttpError::TooLarge { limit: MAX_BODY_BYTES, .. }), "{large}");
        let server = Server::start(|_| {
            std::thread::sleep(Duration::from_millis(900));
            Answer::ok("1")
        });
        let late = HttpClient::new(QUICK).get_json(&server.url).unwrap_err();
        assert!(matches!(late, HttpError::Timeout { .. }), "{late}");
        let gone = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let none = HttpClient::new(QUICK).get_json(&gone).unwrap_err();
        assert!(matches!(none, HttpError::Connect { .. }), "{none}");
    }

    #[test]
    fn credentials_go_into_the_header_and_nowhere_else() {
        let server = Server::start(|_| Answer::code(401, "", ""));
        let url = server.url.replace("http://", "http://root:p%40ss@");
        let error = HttpClient::default().get_json(&url).unwrap_err().to_string();
        assert!(!error.contains("root") && !error.contains("ss@"), "{error}");
        // RFC 7617's own example.
        let auth = BasicAuth::parse("Aladdin:open sesame\n").unwrap();
        assert_eq!(format!("{auth:?}"), "BasicAuth(…)");
        HttpClient::default().post_json(&server.url, Some(&auth), &serde_json::json!({"a": 1})).unwrap_err();
        let asked = server.asked();
        assert_eq!(asked[0].authorization.as_deref(), Some("Basic cm9vdDpwQHNz"));
        assert_eq!(asked[1].authorization.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!((asked[1].method.as_str(), asked[1].body.as_str()), ("POST", "{\"a\":1}"));
    }

    #[test]
    fn queries_are_written_as_people_write_them() {
        let server = Server::start(|_| Answer::ok("1"));
        let url = format!("{}?query=sum(x{{a=\"b c\"}})", server.url);
        HttpClient::default().get_json(&url).unwrap();
        assert_eq!(server.asked()[0].path, "/?query=sum(x%7Ba=%22b%20c%22%7D)");
    }

    #[test]
    fn what_is_no_url_is_told() {
        for url in
            ["", "pdu/x", "ftp://h/x", "file:///etc/passwd", "http://", "http:///x", "http://h:99999999/"]
        {
            let error = HttpClient::default().get_json(url).unwrap_err();
            assert!(matches!(error, HttpError::Url { .. }), "{url}: {error}");
        }
    }

    #[test]
    fn what_is_shown_has_no_secrets() {
        for (url, want) in [
            ("https://u:p@h:1/a?k=v#f", "https://h:1/a?…"),
            ("http://u:p@q@h", "http://h"),
            ("http://h/a@b", "http://h/a@b"),
            ("u:p@h/x", "h/x"),
        ] {
            assert_eq!(shown(url), want);
        }
    }
}
