//! Putting a unit together: checkpoint → decoder → one engine per device → the service.
//!
//! In two halves: `open` checks everything that can be known without reading weights, so that the port
//! may open; `start` reads them, warms the engines up and opens the unit.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use candle_core::Device;

use super::draft;
use super::encoders::{self, OpenedEncoder};
use super::room::{self, Cache, GpuMemory, GpuNeeds, MIN_LOGIT_ROWS};
use super::{machine, served};
use crate::clock::Clock;
use crate::config::value::without_credentials;
use crate::config::{Config, DeviceKind};
use crate::energy::Ledger;
use crate::engine::encode::HostedEncoder;
use crate::engine::event::EngineError;
use crate::engine::fault::Faults;
use crate::engine::step_log::Observed;
use crate::engine::worker::{self, EngineConfig, EngineHandle, Limits, Models};
use crate::model::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::encoder::EncoderCheckpoint;
use crate::model::runner::Runner;
use crate::model::workspace::Capacity;
use crate::ops::exec::{Exec, cuda};
use crate::ops::pool::Pool;
use crate::power::monitor::{Monitor, MonitorConfig};
use crate::power::spec::{self, MeterContext, MeterSpec};
use crate::service::Service;
use crate::unit::Unit;

/// How often boards that are not metered are looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// How large the parts of a unit are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub threads_per_device: usize,
    pub blocks_per_device: usize,
    pub max_model_len: usize,
    pub kv_bytes: u64,
}

/// Models that have been opened and checked.
pub struct Opened {
    /// The one that generates text, if any.
    pub checkpoint: Option<Checkpoint>,
    /// Guesses what that one will say.
    pub draft: Option<Checkpoint>,
    pub encoders: Vec<OpenedEncoder>,
    pub sizes: Sizes,
    pub service: Arc<Service>,
}

impl Opened {
    /// The model that generates text.
    ///
    /// # Errors
    /// Where there are encoders only.
    pub fn chat(&self) -> anyhow::Result<&Checkpoint> {
        self.checkpoint.as_ref().ok_or_else(|| anyhow!("--model: no model that generates text is among them"))
    }
}

fn pool_for(config: &Config) -> Arc<Pool> {
    Arc::new(Pool::new(config.threads.unwrap_or_else(machine::cores)))
}

/// Opens the models and works out all sizes.
///
/// # Errors
/// What is wrong with the checkpoint or does not fit the machine, by file and setting.
pub fn open(config: &Config, unit: &Arc<Unit>) -> anyhow::Result<Opened> {
    let pool = pool_for(config);
    let (mut chat, mut encoders) = (None, Vec::new());
    for (source, names) in config.models.iter().zip(served::names(config)) {
        if EncoderCheckpoint::is_one(&source.model) {
            encoders.push(OpenedEncoder::open(config, source, names, &pool)?);
        } else if let Some((first, _)) = chat.replace((source, names)) {
            let (one, other) = (&first.model, &source.model);
            bail!("--model: {one} and {other} both generate text; one such model is served, beside encoders");
        }
    }
    let beside = encoders.iter().map(OpenedEncoder::bytes).sum();
    let (mut models, mut checkpoint, mut draft) = (Vec::new(), None, None);
    let mut sizes = sizes_of_encoders(config);
    if let Some((source, names)) = chat {
        let mut opened = Checkpoint::open(&source.model, &pool)?;
        settle_context(config, &mut opened);
        check_fits(config, &opened)?;
        let mut served = served::served_model(config, &opened, names, unit)?;
        draft = draft::open(config, &served.tokenizer, opened.spec.max_positions, &pool)?;
        sizes = self::sizes(config, &opened, draft.as_ref(), beside)?;
        served.max_model_len = sizes.max_model_len;
        models.push(served);
        checkpoint = Some(opened);
    }
    if config.speculation.is_some() && models.is_empty() {
        bail!("--speculative, --draft-model: no model that generates text is among --model");
    }
    let chat_names = models.iter().flat_map(|m| std::iter::once(&m.id).chain(&m.aliases));
    served::check_names(chat_names.chain(encoders.iter().flat_map(|e| &e.names)))?;
    let service = Service::new(models, unit.clone()).with_encoders(encoders::served(&encoders, unit)?);
    Ok(Opened { checkpoint, draft, encoders, sizes, service: Arc::new(service) })
}

/// Settles what depends on the longest sequence that is served, with a word where short texts lose by it.
fn settle_context(config: &Config, opened: &mut Checkpoint) {
    let usual = opened.spec.usual_context();
    opened.spec.settle_context(config.max_model_len);
    if opened.spec.max_positions > usual {
        tracing::warn!(
            "beyond {usual} tokens the model has other frequencies (LongRoPE), which now hold for all texts, short \
             ones too: where those are all, take --max-model-len {usual}"
        );
    }
}

/// Whether any engine is a GPU's.
pub fn on_gpus(config: &Config) -> bool {
    config.devices.iter().any(|d| matches!(d, DeviceKind::Cuda(_)))
}

/// UUIDs of the engines' boards, in their order, an empty one for a CPU; none where a board does not tell (a slice).
pub fn gpu_uuids(config: &Config) -> Vec<String> {
    let uuid = |device: &DeviceKind| match device {
        DeviceKind::Cuda(ordinal) => cuda::uuid(*ordinal).ok(),
        _ => Some(String::new()),
    };
    config.devices.iter().map(uuid).collect::<Option<_>>().unwrap_or_default()
}

/// Bytes of the KV cache that a GPU has room for beside the weights and the workspace.
fn gpu_room(config: &Config, checkpoint: &Checkpoint, beside: u64, ordinal: usize) -> anyhow::Result<u64> {
    let (free, total) = cuda::memory(ordinal)?;
    let needs = GpuNeeds::of(config, checkpoint, beside);
    room::gpu_cache(config, &needs, &format!("cuda:{ordinal}"), GpuMemory { total, free })
}

/// Whether there are products for the weights, and memory.
fn check_fits(config: &Config, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    room::check_products(config, checkpoint)?;
    if let Some(word) = room::word_of_multiplied_out(config, checkpoint) {
        tracing::warn!("{word}");
    }
    let Some(memory) = machine::memory().filter(|_| !on_gpus(config)) else { return Ok(()) };
    if let Some(word) = room::check_weights(config, checkpoint, memory.available)? {
        tracing::warn!("{word}");
    }
    Ok(())
}

fn threads_per_device(config: &Config) -> usize {
    (config.threads.unwrap_or_else(machine::cores) / config.devices.len()).max(1)
}

fn sizes_of_encoders(config: &Config) -> Sizes {
    let threads_per_device = threads_per_device(config);
    Sizes { threads_per_device, blocks_per_device: 0, max_model_len: 0, kv_bytes: 0 }
}

/// `beside`: bytes of other models on each device.
fn sizes(
    config: &Config,
    checkpoint: &Checkpoint,
    draft: Option<&Checkpoint>,
    beside: u64,
) -> anyhow::Result<Sizes> {
    let beside = beside + draft::bytes(config, draft);
    let devices = config.devices.len() as u64;
    let rooms = config.devices.iter().filter_map(|d| match d {
        DeviceKind::Cuda(ordinal) => Some(gpu_room(config, checkpoint, beside, *ordinal)),
        _ => None,
    });
    let smallest = rooms.collect::<anyhow::Result<Vec<u64>>>()?.into_iter().min();
    let budget = match (config.kv_memory, smallest) {
        (Some(bytes), _) => bytes / devices,
        (None, Some(room)) => room,
        (None, None) => {
            let share = |m: machine::Memory| room::processor_cache(config, checkpoint, draft, m.available);
            machine::memory().map_or(1 << 30, share) / devices
        }
    };
    let cache = Cache::of(config, checkpoint, draft, budget)?;
    Ok(Sizes {
        threads_per_device: threads_per_device(config),
        blocks_per_device: cache.blocks,
        max_model_len: cache.max_model_len,
        kv_bytes: cache.blocks as u64 * cache.block_bytes * devices,
    })
}

/// Does `work`, which tells the share that is done, with a progress bar where there is a terminal.
fn with_bar<R>(message: &'static str, work: impl FnOnce(&dyn Fn(f32)) -> R) -> anyhow::Result<R> {
    let bar = match std::io::stderr().is_terminal() {
        true => indicatif::ProgressBar::new(100).with_message(message),
        false => indicatif::ProgressBar::hidden(),
    };
    bar.set_style(indicatif::ProgressStyle::with_template("{msg} [{bar:30}] {percent} % {eta}")?);
    let result = work(&|share| bar.set_position((share * 100.0) as u64));
    bar.finish_and_clear();
    Ok(result)
}

/// Reads the weights.
///
/// # Errors
/// A tensor that is not what the configuration says, or holds numbers that are not finite.
pub fn load(config: &Config, checkpoint: &Checkpoint, scan_all: bool) -> anyhow::Result<Decoder> {
    let load =
        |progress: &dyn Fn(f32)| checkpoint.load_as(config.quantize, config.precision, scan_all, progress);
    let decoder = with_bar("loading weights", load)??;
    Ok(match config.cache {
        Some(cache) => decoder.with_cache(cache),
        None => decoder,
    })
}

/// Captures decode steps, and says what that costs. A device that captures none goes on without.
fn capture(runner: &mut Runner, sequences: usize, ordinal: usize) -> anyhow::Result<()> {
    let free = || cuda::memory(ordinal).map_or(0, |(free, _)| free);
    let before = free();
    match with_bar("capturing graphs", |progress| runner.capture(sequences, progress))? {
        Ok(report) => tracing::info!(
            "cuda:{ordinal}: {} graphs of decode steps of 1 to {} rows, {} kernels each, {} MiB",
            report.sizes.len(),
            report.sizes.last().unwrap_or(&0),
            report.nodes.kernels,
            before.saturating_sub(free()) >> 20
        ),
        Err(error) => {
            tracing::warn!(%error, "cuda:{ordinal}: no graphs; steps are launched one operation at a time");
        }
    }
    Ok(())
}

fn exec_of_gpu(config: &Config, ordinal: usize, pool: Arc<Pool>) -> anyhow::Result<Exec> {
    let mut on = Exec::cuda(ordinal, pool, config.enable_pdl)?;
    on.batch_invariant = config.batch_invariant;
    Ok(on)
}

/// What runs a decoder on the device of that index.
fn runner(
    config: &Config,
    sizes: Sizes,
    decoder: &Arc<Decoder>,
    on: &Exec,
    index: usize,
) -> anyhow::Result<Runner> {
    let capacity =
        Capacity { rows: config.batched_tokens(), logit_rows: config.sequences().max(MIN_LOGIT_ROWS) };
    let there = match on.device {
        Device::Cpu => decoder.clone(),
        _ => Arc::new(decoder.on_device(&on.device)?),
    };
    let mut runner = Runner::new(there, on.clone(), capacity, sizes.blocks_per_device)?;
    if let DeviceKind::Cuda(ordinal) = config.devices[index]
        && !config.enforce_eager
    {
        capture(&mut runner, config.sequences(), ordinal)?;
    }
    Ok(runner)
}

/// Why an engine did not start. Where it is a number of the weights, only a scan of all of them can tell which one.
fn of_warm_up(error: &EngineError) -> String {
    match error {
        EngineError::NonFiniteLogits => {
            "the first logits are not finite: a weight is not, or is too large for \
             --dtype; `hashwatt serve --check` with the same settings scans every weight and names it"
                .into()
        }
        other => other.to_string(),
    }
}

/// One engine per device, warmed up, all of one decoder. `faults`: what is to go wrong with each, for tests and drills;
/// an engine beyond its end has none.
///
/// # Errors
/// A device that cannot hold its cache, or a warm-up with logits that are not finite.
pub fn start_engines(
    config: &Config,
    opened: &Opened,
    decoder: Option<Decoder>,
    clock: &Clock,
    observed: Vec<Observed>,
    faults: &[Faults],
) -> anyhow::Result<Vec<EngineHandle>> {
    let (decoder, sizes) = (decoder.map(Arc::new), opened.sizes);
    let draft = opened.draft.as_ref().map(|draft| load(config, draft, false)).transpose()?.map(Arc::new);
    let mut engines = Vec::new();
    // The processor's engines share them.
    let on_cpu = match on_gpus(config) {
        true => Vec::new(),
        false => encoders::load(opened, &Exec::from(pool_for(config)))?,
    };
    for (index, observed) in observed.into_iter().enumerate() {
        let pool = Arc::new(Pool::new(sizes.threads_per_device));
        let (device, on, encoders) = match config.devices[index] {
            DeviceKind::Cuda(ordinal) => {
                let on = exec_of_gpu(config, ordinal, pool)?;
                let encoders = encoders::load(opened, &on)?;
                (format!("cuda:{ordinal}"), on, encoders)
            }
            _ => {
                let on = Exec::from(pool);
                let here = |hosted: HostedEncoder| HostedEncoder { on: on.clone(), ..hosted };
                (format!("cpu:{index}"), on.clone(), on_cpu.iter().cloned().map(here).collect())
            }
        };
        let runner = |decoder: &Arc<Decoder>, on: &Exec| {
            runner(config, sizes, decoder, on, index).with_context(|| format!("device {device}"))
        };
        let draft = match (&draft, config.devices[index]) {
            (None, _) => None,
            // With launches of its own: what a captured step reads does not move.
            (Some(draft), DeviceKind::Cuda(ordinal)) => {
                Some(runner(draft, &exec_of_gpu(config, ordinal, on.pool.clone())?)?)
            }
            (Some(draft), _) => Some(runner(draft, &on)?),
        };
        let runner = decoder.as_ref().map(|decoder| runner(decoder, &on)).transpose()?;
        let engine = EngineConfig {
            device: device.clone(),
            limits: Limits { max_rows: config.sequences(), max_tokens: config.batched_tokens(), duty: 1.0 },
            prefix_caching: config.prefix_caching,
            run_ahead: config
                .async_scheduling
                .unwrap_or(runner.as_ref().is_some_and(Runner::is_asynchronous)),
            speculative_tokens: config.speculation.as_ref().map_or(0, |s| s.tokens),
            max_queue: config.max_queue,
            faults: faults.get(index).cloned().unwrap_or_default(),
        };
        let models = Models { decoder: runner, draft, encoders };
        let (handle, _thread) = worker::spawn_with(models, engine, clock.clone(), observed)
            .map_err(|e| anyhow!("device {device}: {}", of_warm_up(&e)))?;
        engines.push(handle);
    }
    Ok(engines)
}

/// The meters of a unit, with what they need to see of its engines.
pub struct Metered {
    pub observed: Vec<Observed>,
    pub monitor: Arc<Monitor>,
    /// The engines' boards, where the meters are others (a PDU): watched for faults, not counted.
    pub boards: Option<Arc<Monitor>>,
    /// What is to be said about the choice of meters.
    pub notes: Vec<String>,
}

/// Opens the meters that `--meter` asks for and begins to read them.
///
/// # Errors
/// A meter that is not there or may not be read; with `--require-measured`, one that measures nothing.
pub fn meters(config: &Config, clock: &Clock) -> anyhow::Result<Metered> {
    let observed: Vec<Observed> = config.devices.iter().map(|_| Observed::default()).collect();
    let busy = observed.iter().map(|o| o.busy.clone()).collect();
    let mut context = MeterContext::new(clock.clone(), busy, machine::cores());
    context.gpus = on_gpus(config);
    context.gpu_uuids = gpu_uuids(config);
    let (monitor, mut notes) = monitor(config, &context)?;
    let metered = matches!(config.meter, MeterSpec::Auto | MeterSpec::Nvml);
    let boards = (context.gpus && !metered).then(|| watched(&context));
    let boards = boards.and_then(|found| {
        found.map_err(|e| notes.push(format!("the boards are not watched for Xids: {e}"))).ok()
    });
    Ok(Metered { observed, monitor, boards, notes })
}

/// The engines' boards by NVML, to be watched.
fn watched(context: &MeterContext) -> anyhow::Result<Arc<Monitor>> {
    let meters = spec::open(&MeterSpec::Nvml, context)?.meters;
    let config = MonitorConfig { poll: WATCH_PERIOD, ..MonitorConfig::default() };
    Monitor::start(meters, context.clock.clone(), config).context("the boards' thread could not start")
}

/// The same without engines of this process: the meters that `--meter` asks for, being read.
///
/// # Errors
/// As [`meters`].
pub fn monitor(config: &Config, context: &MeterContext) -> anyhow::Result<(Arc<Monitor>, Vec<String>)> {
    let opened = spec::open(&config.meter, context)
        .with_context(|| format!("--meter {}", without_credentials(&config.meter.to_string())))?;
    if config.require_measured
        && let Some(meter) = opened.meters.iter().find(|m| !m.info().method.is_measured())
    {
        let info = meter.info();
        bail!(
            "--require-measured: the watts of {} are {}, not measured{}",
            info.name,
            info.method,
            opened.notes.iter().map(|n| format!("; {n}")).collect::<String>()
        );
    }
    let monitor = Monitor::start(opened.meters, context.clock.clone(), MonitorConfig::default())
        .context("the meters' thread could not start")?;
    Ok((monitor, opened.notes))
}

/// Loads and starts everything, with the meters the configuration asks for, and opens the unit.
///
/// # Errors
/// As [`load`], [`meters`] and [`start_engines`].
pub fn start(config: &Config, opened: &Opened, unit: &Arc<Unit>) -> anyhow::Result<()> {
    let metered = meters(config, unit.clock())?;
    start_metered(config, opened, unit, metered)
}

/// The same with meters that are open already.
///
/// # Errors
/// As [`load`] and [`start_engines`].
pub fn start_metered(
    config: &Config,
    opened: &Opened,
    unit: &Arc<Unit>,
    metered: Metered,
) -> anyhow::Result<()> {
    start_with_faults(config, opened, unit, metered, &[])
}

/// The same with engines that meet faults, as [`start_engines`].
///
/// # Errors
/// As [`start_metered`].
pub fn start_with_faults(
    config: &Config,
    opened: &Opened,
    unit: &Arc<Unit>,
    metered: Metered,
    faults: &[Faults],
) -> anyhow::Result<()> {
    let decoder = opened.checkpoint.as_ref().map(|c| load(config, c, false)).transpose()?;
    if let Some(boards) = metered.boards {
        unit.watch_boards(boards);
    }
    // Before the warm-up, whose joules are overhead; after the weights, which no request pays for.
    let logs = metered.observed.iter().map(|o| o.steps.clone()).collect();
    if let Some(ledger) = Ledger::start(&metered.monitor, logs) {
        unit.meter(ledger);
    }
    unit.open(start_engines(config, opened, decoder, unit.clock(), metered.observed, faults)?);
    unit.watch(config.longest_step()).context("the watchdog's thread could not start")
}
