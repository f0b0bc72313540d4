//! `hashwatt chat`: a conversation in the terminal, streaming, in this process or with a running unit.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use clap::ArgMatches;
use serde_json::{Value, json};

use super::{Exit, assemble};
use crate::clock::Clock;
use crate::config::Config;
use crate::service::{Delta, Service};
use crate::unit::Unit;
use crate::wire::client::Client;
use crate::wire::fields::UnknownParameters;
use crate::wire::request::ChatRequest;

/// Who answers.
enum Partner {
    Here(std::sync::Arc<Service>),
    There(Client),
}

/// Reads questions until the end of input or an empty line.
pub fn run(config: &Config, matches: &ArgMatches) -> Exit {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let partner = match matches.get_one::<String>("url") {
        Some(url) => Partner::There(Client::new(url)?.with_api_key(config.api_key.clone())),
        None => {
            let unit = Unit::new(Clock::system());
            let opened = assemble::open(config, &unit)?;
            opened.chat()?;
            assemble::start(config, &opened, &unit)?;
            Partner::Here(opened.service)
        }
    };
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = matches.get_one::<String>("system") {
        messages.push(json!({"role": "system", "content": system}));
    }
    let prompt = std::io::stdin().is_terminal();
    if prompt {
        println!("Ask something; an empty line ends the conversation.");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if prompt {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.next().transpose()?.filter(|l| !l.trim().is_empty()) else { return Ok(0) };
        messages.push(json!({"role": "user", "content": line}));
        let answer = runtime.block_on(partner.answer(&messages))?;
        println!();
        messages.push(json!({"role": "assistant", "content": answer}));
    }
}

fn show(text: &str) -> anyhow::Result<()> {
    print!("{text}");
    std::io::stdout().flush()?;
    Ok(())
}

impl Partner {
    /// Prints the answer as it comes; returns it whole.
    async fn answer(&self, messages: &[Value]) -> anyhow::Result<String> {
        let body = json!({"messages": messages, "stream": true}).to_string();
        match self {
            Partner::Here(service) => answer_here(service, body.as_bytes()).await,
            Partner::There(client) => answer_there(client, body.as_bytes()).await,
        }
    }
}

async fn answer_here(service: &Service, body: &[u8]) -> anyhow::Result<String> {
    let request = ChatRequest::parse(body, UnknownParameters::Refuse)?;
    let mut generation = service.chat(&request)?;
    let mut answer = String::new();
    while let Some(delta) = generation.next().await {
        match delta {
            Delta::Text { text, .. } => {
                show(&text)?;
                answer += &text;
            }
            // To be read, and not to be sent back as what was answered.
            Delta::Reasoning { text, .. } => show(&text)?,
            // It is given no tools.
            Delta::Call { .. } | Delta::Arguments { .. } => {}
            Delta::Finish { .. } | Delta::Anew { .. } => {}
            Delta::Failed(e) => return Err(e.into()),
        }
    }
    Ok(answer)
}

async fn answer_there(client: &Client, body: &[u8]) -> anyhow::Result<String> {
    let mut response = client.post_json("/v1/chat/completions", body).await?;
    if response.status != 200 {
        let text = String::from_utf8_lossy(&response.bytes().await?).into_owned();
        bail!("the unit answered {}: {text}", response.status);
    }
    let mut answer = String::new();
    while let Some(event) = response.next_event().await?.filter(|e| !e.is_done()) {
        let chunk: Value = serde_json::from_str(&event.data).context("a chunk that is not JSON")?;
        if let Some(error) = chunk.pointer("/error/message").and_then(Value::as_str) {
            bail!("the unit ended the answer: {error}");
        }
        if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str) {
            show(text)?;
            answer += text;
        }
    }
    Ok(answer)
}
