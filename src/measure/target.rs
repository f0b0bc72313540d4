//! What a load can be sent to: this process's engine, candle-transformers, or a server behind a URL.
//!
//! [`Ask`] → tokens as they come → token counts. Counts are the target's own (`usage`), never chunks.

use std::net::{TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::baseline::Baseline;
use super::lengths::Random;
use crate::clock::{BusyTime, Clock};
use crate::error::printable;
use crate::http_client::shown;
use crate::service::{Delta, Service};
use crate::wire::client::{Client, Response};
use crate::wire::fields::UnknownParameters;
use crate::wire::request::CompletionRequest;

/// Ids below this are ordinary tokens in every vocabulary met so far.
const LEAST_ID: u32 = 3;
const MOST_ID: u32 = 1000;
/// Each is one token in most vocabularies, the space included.
const WORDS: [&str; 16] = [
    " time", " water", " house", " light", " number", " people", " world", " power", " river", " north",
    " paper", " money", " music", " table", " story", " green",
];
/// A server that was asked a handful of tokens answers within this, its own warm-up included.
const FIRST_ANSWER: Duration = Duration::from_secs(120);
/// Under load a request may wait in a queue; one that hears nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(600);
/// Tokenizers differ, and templates add tokens; but a usage above this many times the request is none.
const MOST_TIMES_ASKED: usize = 16;
/// Characters of what a server calls itself.
pub const MOST_OF_A_NAME: usize = 100;
/// Longest piece of an error's body that is repeated.
const ERROR_CHARS: usize = 300;

/// One request of a load. No two prompts begin alike, so no prefix cache shortens the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub input_tokens: usize,
    pub output_tokens: usize,
    /// What the prompt is drawn with.
    pub seed: u64,
}

/// Counts of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub input_tokens: usize,
    pub output_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TargetError {
    #[error("{target}: {problem}")]
    Failed { target: String, problem: String },
    #[error(
        "{url} is on another host, and `--meter {meter}` reads this one: give `--meter http:URL#PATH` (or declared watts) of that host"
    )]
    Elsewhere { url: String, meter: String },
}

pub enum Target {
    InProcess(Arc<Service>),
    Baseline(Sequential),
    Url(Server),
}

/// candle-transformers: one sequence at a time, the others wait.
pub struct Sequential {
    pub model: Arc<Mutex<Baseline>>,
    pub busy: BusyTime,
    pub clock: Clock,
}

/// A server that speaks OpenAI's protocol, and what it was found to take.
#[derive(Clone)]
pub struct Server {
    client: Client,
    pub url: String,
    pub model: Option<String>,
    /// Its `server` header, or whom it says its models belong to.
    pub software: Option<String>,
    /// Longest prompt and answer together, where it says so.
    pub context: Option<usize>,
    /// Token ids as prompts; else text.
    ids: bool,
    /// The server takes vLLM's `ignore_eos`.
    pub ignores_eos: bool,
}

impl Ask {
    fn ids(&self) -> Vec<u32> {
        let mut random = Random::new(self.seed);
        let span = u64::from(MOST_ID - LEAST_ID);
        (0..self.input_tokens).map(|_| LEAST_ID + (random.bits() % span) as u32).collect()
    }

    fn text(&self) -> String {
        let mut random = Random::new(self.seed);
        (0..self.input_tokens).map(|_| WORDS[(random.bits() % WORDS.len() as u64) as usize]).collect()
    }

    fn body(&self, ids: bool, ignore_eos: bool, model: Option<&str>) -> Value {
        let mut body = json!({
            "prompt": if ids { json!(self.ids()) } else { json!(self.text()) },
            "max_tokens": self.output_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(model) = model {
            body["model"] = model.into();
        }
        if ignore_eos {
            body["ignore_eos"] = true.into();
        }
        body
    }
}

impl Target {
    /// For messages.
    pub fn name(&self) -> &str {
        match self {
            Target::InProcess(_) => "the engine",
            Target::Baseline(_) => "candle-transformers",
            Target::Url(server) => &server.url,
        }
    }

    /// Sends the request and reads the answer; `came` hears how many output tokens there are so far.
    ///
    /// # Errors
    /// Why there was no whole answer.
    pub async fn ask(&self, ask: Ask, came: &mut (dyn FnMut(usize) + Send)) -> Result<Counts, TargetError> {
        let answer = match self {
            Target::InProcess(service) => in_process(service, ask, came).await,
            Target::Baseline(one) => one.ask(ask, came).await,
            Target::Url(server) => server.ask(ask, came).await,
        };
        answer.map_err(|problem| TargetError::Failed { target: self.name().into(), problem })
    }
}

async fn in_process(
    service: &Service,
    ask: Ask,
    came: &mut (dyn FnMut(usize) + Send),
) -> Result<Counts, String> {
    let body = ask.body(true, true, None).to_string();
    let request =
        CompletionRequest::parse(body.as_bytes(), UnknownParameters::Refuse).map_err(|e| e.message)?;
    let mut generation = service.complete(&request).map_err(|e| e.to_string())?;
    let mut counted = 0;
    while let Some(delta) = generation.next().await {
        if let Delta::Failed(error) = delta {
            return Err(error.to_string());
        }
        let now = generation.usage().completion_tokens;
        if now > counted {
            counted = now;
            came(counted);
        }
    }
    let usage = generation.usage();
    Ok(Counts { input_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens })
}

impl Sequential {
    async fn ask(&self, ask: Ask, came: &mut (dyn FnMut(usize) + Send)) -> Result<Counts, String> {
        let (sender, mut tokens) = mpsc::unbounded_channel();
        let (model, busy, clock) = (self.model.clone(), self.busy.clone(), self.clock.clone());
        let work = tokio::task::spawn_blocking(move || {
            // What a panic left is reset before it is used.
            let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
            generate(&mut model, ask, &busy, &clock, &sender)
        });
        while let Some(count) = tokens.recv().await {
            came(count);
        }
        work.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok(Counts { input_tokens: ask.input_tokens, output_tokens: ask.output_tokens })
    }
}

/// Greedy; ends early when nobody listens any more.
fn generate(
    model: &mut Baseline,
    ask: Ask,
    busy: &BusyTime,
    clock: &Clock,
    tokens: &mpsc::UnboundedSender<usize>,
) -> candle_core::Result<()> {
    if tokens.is_closed() {
        return Ok(());
    }
    model.reset()?;
    let mut next = ask.ids();
    for count in 1..=ask.output_tokens {
        let start = clock.now();
        let logits = model.forward(&next)?;
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
        next = vec![best as u32];
        busy.add(clock.now().since(start));
        if tokens.send(count).is_err() {
            break;
        }
    }
    Ok(())
}

impl Server {
    /// Finds out the model and what the server takes: token ids or text, with `ignore_eos` or without.
    ///
    /// # Errors
    /// A server that does not answer, or refuses every way to ask.
    pub async fn open(url: &str, key: Option<String>, model: Option<String>) -> Result<Server, TargetError> {
        let fail = |problem: String| TargetError::Failed { target: url.into(), problem };
        let base = url.trim_end_matches('/').trim_end_matches("/v1");
        let client = Client::new(base).map_err(|e| fail(e.to_string()))?.with_api_key(key);
        // In reports and messages without what may be secret in it.
        let url = shown(url);
        let (software, context) = (None, None);
        let mut server = Server { client, url, model, software, context, ids: true, ignores_eos: true };
        within(FIRST_ANSWER, server.look()).await.map_err(fail)?;
        let probe = Ask { input_tokens: 8, output_tokens: 4, seed: 1 };
        let mut first = None;
        for (ids, ignores_eos) in [(true, true), (false, true), (true, false), (false, false)] {
            (server.ids, server.ignores_eos) = (ids, ignores_eos);
            match within(FIRST_ANSWER, server.ask(probe, &mut |_| {})).await {
                Ok(_) => return Ok(server),
                Err(problem) => first = first.or(Some(problem)),
            }
        }
        Err(fail(first.unwrap_or_default()))
    }

    async fn look(&mut self) -> Result<(), String> {
        let mut answer = self.client.get("/v1/models").await.map_err(|e| e.to_string())?;
        let header = answer.header("server").map(str::to_owned);
        let bytes = answer.bytes().await.map_err(|e| e.to_string())?;
        let models: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |path: &str| models.pointer(path).and_then(Value::as_str).map(str::to_owned);
        self.software = text("/data/0/owned_by").or(header).map(|name| printable(&name, MOST_OF_A_NAME));
        let context = models.pointer("/data/0/max_model_len").and_then(Value::as_u64);
        self.context = context.and_then(|n| usize::try_from(n).ok());
        self.model = self.model.take().or_else(|| text("/data/0/id"));
        Ok(())
    }

    async fn ask(&self, ask: Ask, came: &mut (dyn FnMut(usize) + Send)) -> Result<Counts, String> {
        let body = ask.body(self.ids, self.ignores_eos, self.model.as_deref()).to_string();
        let sent = self.client.post_json("/v1/completions", body.as_bytes());
        let mut answer = within(SILENCE, async { sent.await.map_err(|e| e.to_string()) }).await?;
        if answer.status != 200 {
            return Err(within(SILENCE, async { Ok(refusal(&mut answer).await) }).await?);
        }
        let kind = answer.header("content-type").unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(format!("answered with `{}` where a stream was asked for", printable(kind, 60)));
        }
        let (mut counts, mut chunks) = (None, 0);
        loop {
            let next = within(SILENCE, async { answer.next_event().await.map_err(|e| e.to_string()) });
            let Some(event) = next.await? else { break };
            if event.is_done() {
                break;
            }
            let chunk: Value =
                serde_json::from_str(&event.data).map_err(|e| format!("a chunk is not JSON: {e}"))?;
            if let Some(error) = chunk.get("error").filter(|e| !e.is_null()) {
                return Err(printable(&error.to_string(), ERROR_CHARS));
            }
            if chunk.pointer("/choices/0/text").and_then(Value::as_str).is_some_and(|t| !t.is_empty()) {
                chunks += 1;
                came(chunks);
            }
            counts = usage(&chunk).or(counts);
        }
        let counts: Counts = counts.ok_or("the answer ended without its usage: tokens cannot be counted")?;
        let most = [ask.input_tokens, ask.output_tokens.max(chunks)].map(|n| MOST_TIMES_ASKED * n + 1000);
        if counts.input_tokens > most[0] || counts.output_tokens > most[1] {
            return Err(format!(
                "its usage says {} input and {} output tokens where {} and {} were asked for",
                counts.input_tokens, counts.output_tokens, ask.input_tokens, ask.output_tokens
            ));
        }
        came(counts.output_tokens);
        Ok(counts)
    }
}

fn usage(chunk: &Value) -> Option<Counts> {
    let usage = chunk.get("usage")?;
    let count = |name: &str| usage.get(name)?.as_u64().and_then(|n| usize::try_from(n).ok());
    Some(Counts { input_tokens: count("prompt_tokens")?, output_tokens: count("completion_tokens")? })
}

/// # Errors
/// What `work` says, or that it took longer.
async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = || Err(format!("said nothing for {} s", patience.as_secs()));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| late())
}

async fn refusal(answer: &mut Response) -> String {
    let body = answer.bytes().await.unwrap_or_default();
    format!("answered {}: {}", answer.status, printable(&String::from_utf8_lossy(&body), ERROR_CHARS))
}

/// Whether the server behind a URL runs on this host. A tunnel to another one cannot be told from it.
pub fn is_here(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // Only an address of this host can be listened on.
    (host, 0).to_socket_addrs().is_ok_and(|mut all| all.any(|a| TcpListener::bind(a).is_ok()))
}

/// # Errors
/// A meter of this host for a server on another one.
pub fn check_meter_sees(url: &str, meter: &str) -> Result<(), TargetError> {
    let of_elsewhere = ["http:", "https:", "declared:", "replay:"];
    if is_here(url) || of_elsewhere.iter().any(|m| meter.starts_with(m)) {
        return Ok(());
    }
    Err(TargetError::Elsewhere { url: url.into(), meter: meter.into() })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn prompts_differ_and_are_drawn_again() {
        let ask = |seed| Ask { input_tokens: 40, output_tokens: 2, seed };
        assert_eq!(ask(1).ids(), ask(1).ids());
        let beginnings: HashSet<Vec<u32>> = (0..100).map(|s| ask(s).ids()[..16].to_vec()).collect();
        assert_eq!(beginnings.len(), 100);
        assert!(ask(5).ids().iter().all(|id| (LEAST_ID..MOST_ID).contains(id)));
        assert_eq!(ask(5).text().split(' ').count(), 41);
    }

    #[test]
    fn a_local_meter_does_not_see_another_host() {
        for url in ["http://localhost:1", "http://127.0.0.1:8000/v1", "http://[::1]:80", "http://127.0.0.1"] {
            check_meter_sees(url, "auto").unwrap_or_else(|e| panic!("{e}"));
        }
        // Set aside for documentation (RFC 5737): nobody's.
        let there = "http://192.0.2.7:8000";
        for meter in ["auto", "nvml", "rapl", "assumed"] {
            let error = check_meter_sees(there, meter).unwrap_err().to_string();
            assert!(error.contains(there) && error.contains(meter) && error.contains("http:URL"), "{error}");
        }
        check_meter_sees(there, "http:http://192.0.2.8/pdu#watts").unwrap();
        check_meter_sees(there, "declared:80,600").unwrap();
    }

    /// Answers every connection with what `answer` makes of the request.
    async fn server(answer: fn(&str) -> String) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut seen = vec![0; 1 << 16];
                let n = stream.read(&mut seen).await.unwrap();
                let text = String::from_utf8_lossy(&seen[..n]).into_owned();
                stream.write_all(answer(&text).as_bytes()).await.unwrap();
            }
        });
        url
    }

    fn events(events: &[&str]) -> String {
        let body: String = events.iter().map(|e| format!("data: {e}\n\n")).collect();
        let head = "HTTP/1.1 200 OK\r\nserver: other\r\ncontent-type: text/event-stream; charset=utf-8";
        format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    /// Two tokens a chunk, no token ids, no `ignore_eos`: as strict as a server can be.
    fn strict(request: &str) -> String {
        if request.starts_with("GET") {
            return events(&[]);
        }
        if request.contains("ignore_eos") || request.contains("\"prompt\":[") {
            return "HTTP/1.1 400 no\r\ncontent-length: 7\r\n\r\nrefused".into();
        }
        events(&[
            r#"{"choices":[{"text":"a b"}]}"#,
            r#"{"choices":[{"text":""}]}"#,
            r#"{"choices":[{"text":"c d"}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#,
            "[DONE]",
        ])
    }

    #[tokio::test]
    async fn tokens_are_counted_by_usage_and_a_strict_server_is_asked_its_way() {
        let url = server(strict).await;
        let opened = Server::open(&format!("{url}/v1"), None, None).await.unwrap();
        assert_eq!((opened.ids, opened.ignores_eos), (false, false));
        assert_eq!(opened.software.as_deref(), Some("other"));
        let target = Target::Url(opened);
        let mut came = Vec::new();
        let ask = Ask { input_tokens: 8, output_tokens: 4, seed: 3 };
        let counts = target.ask(ask, &mut |n| came.push(n)).await.unwrap();
        assert_eq!(counts, Counts { input_tokens: 9, output_tokens: 4 });
        assert_eq!(came, [1, 2, 4]);
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
        let never = within(Duration::from_millis(1), std::future::pending::<Result<(), String>>()).await;
        assert!(never.unwrap_err().starts_with("said nothing for"));
    }

    #[tokio::test]
    async fn a_usage_that_cannot_be_is_no_count() {
        let url = server(|_| {
            events(&[
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4600000000}}"#,
                "[DONE]",
            ])
        })
        .await;
        let error = Server::open(&url, None, None).await.err().unwrap().to_string();
        assert!(error.contains("4600000000 output tokens where 8 and 4 were asked"), "{error}");
    }

    #[tokio::test]
    async fn failures_are_told() {
        let url = server(|_| "HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nfull".into()).await;
        let error = Server::open(&url, None, None).await.err().unwrap().to_string();
        assert!(error.contains(&url) && error.contains("503") && error.contains("full"), "{error}");
        let url = server(|_| events(&[r#"{"choices":[{"text":"a"}]}"#, "[DONE]"])).await;
        let error = Server::open(&url, None, None).await.err().unwrap().to_string();
        assert!(error.contains("usage"), "{error}");
        let url =
            server(|_| "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n".into())
                .await;
        let error = Server::open(&url, None, None).await.err().unwrap().to_string();
        assert!(error.contains("`text/html` where a stream was asked for"), "{error}");
    }
}
