//! `hashwatt serve`: a unit behind a port, from start to drain.
//!
//! The port opens when the checkpoint is known to be sound; weights are read while probes and
//! `/v1/models` already answer. SIGTERM or Ctrl-C drains; a second one ends every stream at once. SIGHUP reads the
//! certificate again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::assemble::{self, Metered, Opened};
use super::devices::Chosen;
use super::encoders::OpenedEncoder;
use super::{Exit, accounts, machine};
use crate::access::Access;
use crate::api::{
    ApiConfig, ApiState, BodyLimits, MetricsAccess, Origins, Server, ServerConfig, TimeLimits, Tls,
    energy_source, engine_source,
};
use crate::clock::Clock;
use crate::config::{Config, MetricsFor};
use crate::metrics::{Metrics, MetricsConfig};
use crate::power::{MeterInfo, Method};
use crate::unit::Unit;
use crate::wire::fields::UnknownParameters;

/// Bytes of request bodies that may be in memory at once.
const BODY_MEMORY: usize = 512 << 20;

/// Validates everything, weights included.
pub fn check(config: &Config) -> Exit {
    config.check_exposure(accounts::has_keys(config))?;
    tls(config)?;
    let unit = Unit::new(Clock::system());
    let opened = assemble::open(config, &unit)?;
    let decoder = opened.checkpoint.as_ref().map(|c| assemble::load(config, c, true)).transpose()?;
    let bytes = decoder.as_ref().map_or(0, |d| d.weight_bytes());
    let metered = assemble::meters(config, unit.clock())?;
    let infos = metered.monitor.infos();
    assemble::start_engines(config, &opened, decoder, unit.clock(), metered.observed, &[])?;
    if let Some(checkpoint) = &opened.checkpoint {
        println!(
            "ok: {} ({} parameters, {:.1} MB), context {}, every weight finite, warm-up passed; power: {}",
            checkpoint.name,
            checkpoint.spec.parameters(),
            bytes as f64 / 1e6,
            opened.sizes.max_model_len,
            named(&infos)
        );
    }
    for OpenedEncoder { checkpoint, max_model_len, .. } in &opened.encoders {
        println!(
            "ok: {} ({} parameters), texts of up to {max_model_len} tokens, every weight finite, warm-up passed",
            checkpoint.name,
            checkpoint.parameters()
        );
    }
    Ok(0)
}

/// Serves until told to stop.
pub fn run(config: Config, chosen: &Chosen) -> Exit {
    let unit = Unit::new(Clock::system());
    let access = accounts::open(&config, unit.clock())?;
    config.check_exposure(access.has_keys())?;
    let opened = assemble::open(&config, &unit)?;
    let metered = assemble::meters(&config, unit.clock())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores().clamp(1, 4))
        .enable_all()
        .build()
        .context("the runtime could not start")?;
    let outcome = runtime.block_on(serve(Arc::new(config), chosen, opened, unit, metered, access));
    // Blocking work that is left (a load that was interrupted) must not hold the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(
    config: Arc<Config>,
    chosen: &Chosen,
    opened: Opened,
    unit: Arc<Unit>,
    metered: Metered,
    access: Arc<Access>,
) -> Exit {
    // First, so that no signal is missed.
    let mut signals = Signals::new()?;
    let address = SocketAddr::new(config.host, config.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let state = state_for(&config, &opened, &unit, access);
    let shutdown = CancellationToken::new();
    let admin = accounts::listen(&config, &state).await?;
    let tls = tls(&config)?;
    let server = Server { tls: tls.clone(), ..Server::new(server_config(&config)) };
    let mut server = tokio::spawn(server.run(listener, state.clone(), shutdown.clone()));
    let opened = Arc::new(opened);
    for note in &metered.notes {
        tracing::info!("{note}");
    }
    let power = named(&metered.monitor.infos());
    let mut loading = {
        let (config, opened, unit) = (config.clone(), opened.clone(), unit.clone());
        tokio::task::spawn_blocking(move || assemble::start_metered(&config, &opened, &unit, metered))
    };
    let running = async {
        (&mut loading).await.context("loading the model panicked")??;
        banner(&config, chosen, &opened, address, &power, (&state.config.access, &admin.lines));
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        failed = running => failed?,
        () = reload(tls.as_deref()) => {}
        ended = &mut server => {
            ended.context("the server panicked")??;
            anyhow::bail!("the server ended by itself");
        }
        () = signals.next() => {}
    }
    let outcome = drain(&config, &unit, &shutdown, server, &mut signals).await;
    // The operator's listeners still have the store: the process does not wait for them.
    let written = tokio::task::spawn_blocking(move || {
        if let Some(store) = state.config.access.store() {
            store.finish();
        }
    });
    written.await.context("the store's last records")?;
    outcome
}

/// Not ready, no new requests; what runs may finish until the timeout or the next signal.
async fn drain(
    config: &Config,
    unit: &Unit,
    shutdown: &CancellationToken,
    mut server: tokio::task::JoinHandle<std::io::Result<()>>,
    signals: &mut Signals,
) -> Exit {
    let running = unit.live_requests();
    tracing::info!(running, timeout = ?config.drain_timeout, "draining; a second signal ends at once");
    unit.drain();
    shutdown.cancel();
    tokio::select! {
        ended = &mut server => {
            ended.context("the server panicked")??;
            return Ok(0);
        }
        () = tokio::time::sleep(config.drain_timeout) => tracing::warn!("the drain timeout is over"),
        () = signals.next() => tracing::warn!("ending at once"),
    }
    unit.abort();
    // Each stream gets its error and closes; a connection that does not take it is not waited for.
    let patience = std::time::Duration::from_secs(5);
    match tokio::time::timeout(patience, server).await {
        Ok(ended) => ended.context("the server panicked")??,
        Err(_) => tracing::warn!("connections were left open"),
    }
    Ok(0)
}

/// The certificate that clients are shown, if they are shown one.
fn tls(config: &Config) -> anyhow::Result<Option<Arc<Tls>>> {
    let open = |(certificate, key): &(PathBuf, PathBuf)| Tls::open(certificate, key).map(Arc::new);
    config.tls.as_ref().map(open).transpose().context("ssl-certfile, ssl-keyfile")
}

/// Reads the certificate again at each SIGHUP, for ever. Without one the signal is only noted: a unit that was started
/// from a terminal outlives it.
async fn reload(tls: Option<&Tls>) {
    let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let Ok(mut hangup) = hangup else { return std::future::pending().await };
    while hangup.recv().await.is_some() {
        match tls.map(Tls::reload) {
            Some(Ok(())) => tracing::info!("the certificate was read again"),
            Some(Err(error)) => tracing::error!(%error, "the certificate stays as it was"),
            None => tracing::info!("SIGHUP: there is nothing to read again"),
        }
    }
    std::future::pending().await
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn server_config(config: &Config) -> ServerConfig {
    let limits = TimeLimits {
        header: config.header_timeout,
        idle: config.idle_timeout,
        write_stall: config.write_timeout,
        ..TimeLimits::default()
    };
    ServerConfig { max_connections: config.max_connections, limits, ..ServerConfig::default() }
}

/// What the HTTP layer is given where nothing is kept.
pub fn api_state(config: &Config, opened: &Opened, unit: &Arc<Unit>) -> Arc<ApiState> {
    let access = Access::fixed(config.api_key.as_deref(), unit.clock().clone());
    state_for(config, opened, unit, access)
}

/// The same, with keys and usage of a store.
pub fn state_for(config: &Config, opened: &Opened, unit: &Arc<Unit>, access: Arc<Access>) -> Arc<ApiState> {
    let metrics = MetricsConfig { model_name: first_model(opened).into(), vllm_names: config.vllm_metrics };
    let unknown_parameters = match config.refuse_unknown_parameters {
        true => UnknownParameters::Refuse,
        false => UnknownParameters::Warn,
    };
    let metrics =
        Arc::new(Metrics::with_energy(metrics, engine_source(unit.clone()), energy_source(unit.clone())));
    let api = ApiConfig {
        access,
        metrics: match config.metrics {
            MetricsFor::Auto if config.host.is_loopback() => MetricsAccess::Open,
            MetricsFor::Open => MetricsAccess::Open,
            MetricsFor::Auto | MetricsFor::Key => MetricsAccess::Key,
            MetricsFor::AdminOnly => MetricsAccess::AdminOnly,
        },
        origins: Origins { hosts: config.allowed_hosts.clone(), pages: config.allowed_origins.clone() },
        body: BodyLimits::new(config.max_body_bytes, config.body_timeout, BODY_MEMORY),
        keep_alive: config.keep_alive,
        unknown_parameters,
        ..ApiConfig::default()
    };
    ApiState::new(opened.service.clone(), metrics, api)
}

/// The name of the model that generates text, else of the first encoder.
fn first_model(opened: &Opened) -> &str {
    let chat = opened.service.models().first().map(|m| &m.id);
    chat.or(opened.service.encoders().first().map(|e| &e.id)).map_or("", String::as_str)
}

/// Meters for people: name, boundary, method.
fn named(meters: &[MeterInfo]) -> String {
    let one = |m: &MeterInfo| match m.method {
        Method::Assumed => format!("{} ({}, assumed: EXAMPLE, not measured)", m.name, m.boundary),
        method => format!("{} ({}, {method})", m.name, m.boundary),
    };
    meters.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn banner(
    config: &Config,
    chosen: &Chosen,
    opened: &Opened,
    address: SocketAddr,
    power: &str,
    (access, admin): (&Access, &[String]),
) {
    let Opened { checkpoint, sizes, encoders, .. } = opened;
    let model = first_model(opened);
    let key = if access.is_open() { "" } else { " -H \"Authorization: Bearer $HASHWATT_API_KEY\"" };
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_string() } else { address.ip().to_string() };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let base = match address.ip() {
        std::net::IpAddr::V6(ip) if !ip.is_unspecified() => format!("{scheme}://[{host}]:{}", address.port()),
        _ => format!("{scheme}://{host}:{}", address.port()),
    };
    let demo =
        if config.model == "demo" { " (a small demonstration; --model DIR serves a real one)" } else { "" };
    println!("hashwatt {} serves {model}{demo}", env!("CARGO_PKG_VERSION"));
    if let Some(checkpoint) = checkpoint {
        println!(
            "  model    {:.1} M parameters, {:?}, context {}",
            checkpoint.spec.parameters() as f64 / 1e6,
            checkpoint.spec.float_type,
            sizes.max_model_len
        );
    }
    for OpenedEncoder { checkpoint, max_model_len, names } in encoders {
        println!(
            "  encoder  {}: {}, {:.1} M parameters, texts of up to {max_model_len} tokens",
            names.join(", "),
            checkpoint.spec.architecture.as_str(),
            checkpoint.parameters() as f64 / 1e6
        );
    }
    println!(
        "  device   {}, {} threads each, {}; KV cache {} tokens ({:.0} MB at most)",
        chosen,
        sizes.threads_per_device,
        machine::instructions(),
        sizes.blocks_per_device * crate::model::input::BLOCK_SIZE * config.devices.len(),
        sizes.kv_bytes as f64 / 1e6
    );
    println!("  power    {power}");
    let auth = match access.is_open() {
        false => "API key required",
        true => "no key exists: authentication is off; hashwatt keys create NAME turns it on",
    };
    println!("  listen   {base}/v1 ({auth})");
    if config.metrics != MetricsFor::AdminOnly {
        println!("  metrics  {base}/metrics");
    }
    if let Some(store) = access.store() {
        println!("  state    {}", store.path().display());
    }
    admin.iter().for_each(|line| println!("  admin    {line}"));
    let (path, body) = match (checkpoint, opened.service.encoders().first()) {
        (None, Some(encoder)) if encoder.is_reranker() => {
            ("rerank", r#"{"query": "What is hashprice?", "documents": ["USD per TH per day", "A beach"]}"#)
        }
        (None, _) => ("embeddings", r#"{"input": "What is hashprice?"}"#),
        _ => ("chat/completions", r#"{"messages": [{"role": "user", "content": "What is hashprice?"}]}"#),
    };
    println!("  try      curl {base}/v1/{path}{key} -H 'Content-Type: application/json' \\");
    println!("             -d '{body}'");
}
