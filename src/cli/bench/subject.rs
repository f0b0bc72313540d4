//! What a bench measures, put together: the unit of this process, candle-transformers, or a server behind a
//! URL; with its meters, its controls and what the report says of it.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use anyhow::bail;
use candle_core::{DType, Device};
use clap::ArgMatches;
use tokio::runtime::Handle;

use super::arguments::Takes;
use crate::cli::held::{self, Held};
use crate::cli::{assemble, devices, machine};
use crate::clock::{BusyTime, Clock};
use crate::config::{Config, DeviceKind};
use crate::engine::worker::Limits;
use crate::error::printable;
use crate::http_client::shown;
use crate::measure::baseline::{Baseline, quantised_file};
use crate::measure::ceilings::{self, Engine};
use crate::measure::hardware::sha256;
use crate::measure::report::{self, Setting};
use crate::measure::sweep::Controls;
use crate::measure::target::{MOST_OF_A_NAME, Sequential, Server, Target, check_meter_sees, is_here};
use crate::model::Checkpoint;
use crate::model::checkpoint::SYNTHETIC_SEED;
use crate::model::decoder::{Precision, Quantize};
use crate::model::kv_cache::CacheType;
use crate::model::spec::FloatType;
use crate::model::weights::WeightSource;
use crate::ops::exec::Exec;
use crate::ops::pool::Pool;
use crate::ops::weight::WeightType;
use crate::power::caps::{self, Cap};
use crate::power::monitor::Monitor;
use crate::power::nvml;
use crate::power::spec::MeterContext;
use crate::quantity::Watts;
use crate::unit::Unit;

/// Requests at once that a server is tried with.
const MOST_AT_ONCE_OF_A_SERVER: u32 = 256;

pub struct Subject {
    pub target: Arc<Target>,
    pub takes: Takes,
    pub controls: Controls,
    /// Hears when requests run.
    pub busy: BusyTime,
    pub monitor: Arc<Monitor>,
    pub notes: Vec<String>,
    /// Of the devices; none of a server's.
    pub ceilings: Option<report::Ceilings>,
    pub model: report::Model,
    pub described: report::Target,
}

/// Opens what the arguments name.
///
/// # Errors
/// A model, server or meter that is not there; a meter that cannot see the server.
pub fn open(
    config: &Config,
    matches: &ArgMatches,
    runtime: &Handle,
    clock: &Clock,
) -> anyhow::Result<Subject> {
    let mut subject = match (matches.get_one::<String>("url"), matches.get_one::<String>("baseline")) {
        (Some(url), _) => server(config, matches, url, runtime, clock)?,
        (None, Some(name)) if name == "candle-transformers" => baseline(config, clock)?,
        (None, Some(name)) => bail!("--baseline {name}: there is candle-transformers"),
        (None, None) => in_process(config, clock)?,
    };
    // A limit of this host's boards is none of a server elsewhere.
    if matches.get_one::<String>("url").is_none_or(|url| is_here(url)) {
        subject.controls.power_cap = Some(power_cap());
    }
    Ok(subject)
}

fn in_process(config: &Config, clock: &Clock) -> anyhow::Result<Subject> {
    let unit = Unit::new(clock.clone());
    let opened = assemble::open(config, &unit)?;
    // While there is room: the engines take what a device has.
    let pools = opened.sizes.threads_per_device;
    let held = held::held(config, opened.chat()?);
    let step_bytes = held::weight_bytes(config, opened.chat()?).1;
    let measured = ceilings(config, opened.chat()?, (held, step_bytes), pools, clock);
    let mut metered = assemble::meters(config, clock)?;
    let (monitor, mut notes) = (metered.monitor.clone(), std::mem::take(&mut metered.notes));
    let ceilings = measured.map_err(|why| notes.push(why)).ok();
    assemble::start_metered(config, &opened, &unit, metered)?;
    let limits = Limits { max_rows: config.sequences(), max_tokens: config.batched_tokens(), duty: 1.0 };
    let set_duty = move |duty| unit.set_limits(Limits { duty, ..limits });
    Ok(Subject {
        target: Arc::new(Target::InProcess(opened.service.clone())),
        takes: Takes {
            most_at_once: config.sequences() as u32,
            context: Some(opened.sizes.max_model_len),
            duty: true,
        },
        controls: Controls { duty: Some(Box::new(set_duty)), power_cap: None },
        // The engine tells its own busy time.
        busy: BusyTime::default(),
        monitor,
        notes,
        ceilings,
        model: model(opened.chat()?, config, held.layers),
        described: report::Target::InProcess {
            settings: settings(&[
                ("device", devices::list(&config.devices)),
                ("threads-per-device", opened.sizes.threads_per_device.to_string()),
                ("max-num-seqs", config.sequences().to_string()),
                ("max-num-batched-tokens", config.batched_tokens().to_string()),
                ("max-model-len", opened.sizes.max_model_len.to_string()),
                ("kv-memory-bytes", opened.sizes.kv_bytes.to_string()),
                ("enable-prefix-caching", config.prefix_caching.to_string()),
                ("weights", held.layers.name().into()),
                ("head", held.head.name().into()),
                ("activations", text(held.activations)),
                ("kv-cache", held.cache.name().into()),
                ("batch-invariant", config.batch_invariant.to_string()),
                ("enforce-eager", config.enforce_eager.to_string()),
                ("async-scheduling", config.async_scheduling.map_or("auto".into(), |on| on.to_string())),
                ("enable-pdl", config.enable_pdl.to_string()),
                ("gpu-memory-utilization", config.gpu_memory_utilization.to_string()),
            ]),
        },
    })
}

/// What the devices do at their best, and what the model asks of them; or why nobody knows.
fn ceilings(
    config: &Config,
    checkpoint: &Checkpoint,
    (held, step_weight_bytes): (Held, u64),
    threads_per_device: usize,
    clock: &Clock,
) -> Result<report::Ceilings, String> {
    let engine = |(i, device): (usize, &DeviceKind)| -> candle_core::Result<Engine> {
        let pool = Arc::new(Pool::new(threads_per_device));
        Ok(match device {
            DeviceKind::Cuda(ordinal) => {
                Engine { name: device.to_string(), on: Exec::cuda(*ordinal, pool, false)? }
            }
            _ => Engine { name: format!("cpu:{i}"), on: pool.into() },
        })
    };
    let engines: candle_core::Result<Vec<Engine>> = config.devices.iter().enumerate().map(engine).collect();
    let devices = engines.and_then(|engines| ceilings::measure(&engines, held.activations, clock));
    let devices =
        devices.map_err(|e| format!("no copy bandwidth and no GEMM rate beside the figures: {e}"))?;
    let spec = &checkpoint.spec;
    Ok(report::Ceilings {
        devices,
        step_weight_bytes,
        kv_bytes_per_token: spec.kv_bytes_per_token(held.cache) as u64,
        flops_per_token: spec.row_flops(0, false) - spec.flops_per_key(),
        flops_per_key: spec.flops_per_key(),
    })
}

fn settings(all: &[(&str, String)]) -> Vec<Setting> {
    all.iter().map(|(name, value)| Setting { name: (*name).into(), value: value.clone() }).collect()
}

fn baseline(config: &Config, clock: &Clock) -> anyhow::Result<Subject> {
    let busy = BusyTime::default();
    let mut context = MeterContext::new(clock.clone(), vec![busy.clone()], machine::cores());
    context.gpus = assemble::on_gpus(config);
    let (monitor, notes) = assemble::monitor(config, &context)?;
    let pool = Arc::new(Pool::new(config.threads.unwrap_or_else(machine::cores)));
    let checkpoint = Checkpoint::open(&config.model, &pool)?;
    let device = match config.devices.as_slice() {
        [DeviceKind::Cuda(ordinal)] => Device::new_cuda(*ordinal)?,
        [_, _, ..] => bail!("--baseline: the rival runs on one device; name it, as --device cuda:0"),
        _ => Device::Cpu,
    };
    let (held, step_bytes) = held_by_candle(config, &checkpoint, &device)?;
    let mut notes = notes;
    let ceilings = ceilings(config, &checkpoint, (held, step_bytes), pool.threads(), clock)
        .map_err(|why| notes.push(why))
        .ok();
    let baseline = Baseline::new(&checkpoint, held.activations, &device)?;
    let context = baseline.max_positions();
    let rival = Sequential { model: Arc::new(Mutex::new(baseline)), busy, clock: clock.clone() };
    let model = model(&checkpoint, config, held.layers);
    Ok(Subject {
        target: Arc::new(Target::Baseline(rival)),
        takes: Takes { most_at_once: 1, context: Some(context), duty: false },
        controls: Controls::default(),
        busy: BusyTime::default(),
        monitor,
        notes,
        ceilings,
        model,
        described: report::Target::CandleTransformers {
            settings: settings(&[
                ("device", devices::list(&config.devices)),
                ("threads", candle_core::utils::get_num_threads().to_string()),
            ]),
        },
    })
}

/// What candle holds the model's parts in, and the bytes of weights that a step of one row reads.
fn held_by_candle(config: &Config, checkpoint: &Checkpoint, device: &Device) -> anyhow::Result<(Held, u64)> {
    if config.quantize != Quantize::AsStored {
        bail!("--baseline: candle-transformers takes weights as they are stored; leave out --quantization");
    }
    let of = |activations: DType, layers: WeightType, head: WeightType| Held {
        activations,
        layers,
        head,
        cache: CacheType::like(activations),
    };
    if let Some(file) = quantised_file(checkpoint) {
        if matches!(config.precision, Precision::Bf16 | Precision::F16) {
            bail!("--baseline: candle's quantised models compute in f32; leave out --dtype");
        }
        let (layers, head) = file.kinds();
        return Ok((of(DType::F32, layers, head), file.held_bytes(checkpoint.spec.experts.as_ref()).1));
    }
    let dtype = match (config.precision, checkpoint.spec.float_type) {
        (Precision::Bf16, _) => DType::BF16,
        // On a CPU its bf16 is slower than its f32.
        (Precision::AsStored, FloatType::Bf16) if device.is_cuda() => DType::BF16,
        (Precision::F16, _) | (Precision::AsStored, FloatType::F16) if device.is_cuda() => DType::F16,
        _ => DType::F32,
    };
    // All weights are of this one type.
    let weights = WeightType::of(dtype).unwrap_or(WeightType::F32);
    let (layers, head) = checkpoint.spec.step_parameters();
    Ok((of(dtype, weights, weights), weights.size(layers + head) as u64))
}

fn server(
    config: &Config,
    matches: &ArgMatches,
    url: &str,
    runtime: &Handle,
    clock: &Clock,
) -> anyhow::Result<Subject> {
    check_meter_sees(url, &config.meter.to_string())?;
    let busy = BusyTime::default();
    let mut context = MeterContext::new(clock.clone(), vec![busy.clone()], machine::cores());
    // It may run on this host's boards.
    context.gpus = true;
    let (monitor, mut notes) = assemble::monitor(config, &context)?;
    let named = matches.get_one::<String>("url-model").cloned();
    let server = runtime.block_on(Server::open(url, config.api_key.clone(), named))?;
    if !server.ignores_eos {
        notes.push(format!("{} does not take ignore_eos: answers end where the model ends them", shown(url)));
    }
    if !is_here(url) {
        notes.push(
            "the server is on another host: hardware and fingerprint are of the machine that sent the load"
                .into(),
        );
    }
    let most_at_once = MOST_AT_ONCE_OF_A_SERVER;
    Ok(Subject {
        takes: Takes { most_at_once, context: server.context, duty: false },
        controls: Controls::default(),
        busy,
        monitor,
        notes,
        ceilings: None,
        model: report::Model {
            id: printable(&server.model.clone().unwrap_or_default(), MOST_OF_A_NAME),
            ..report::Model::default()
        },
        described: report::Target::Url { url: shown(url), server: server.software.clone() },
        target: Arc::new(Target::Url(server)),
    })
}

/// As reports name a number type.
fn text(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// `layers`: what the matrices of its layers are held in.
fn model(checkpoint: &Checkpoint, config: &Config, layers: WeightType) -> report::Model {
    let (sha256, of) = weights_hash(checkpoint);
    report::Model {
        id: config.served_model_names.first().unwrap_or(&checkpoint.name).clone(),
        architecture: Some(checkpoint.spec.architecture.into()),
        parameters: Some(checkpoint.spec.parameters() as u64),
        dtype: Some(layers.name().into()),
        sha256: Some(sha256),
        sha256_of: Some(of.into()),
    }
}

/// Of the bytes of the safetensors files one after another (one file: what `sha256sum` prints), or of
/// what synthetic weights follow from.
fn weights_hash(checkpoint: &Checkpoint) -> (String, &'static str) {
    match &checkpoint.source {
        WeightSource::Safetensors(table) => {
            let files: Vec<&[u8]> = table.files().collect();
            (sha256(&files), if checkpoint.folder.is_some() { "safetensors" } else { "demo" })
        }
        WeightSource::Gguf(table) => (sha256(&[table.bytes()]), "gguf"),
        WeightSource::Synthetic(_) => {
            let seed = SYNTHETIC_SEED.to_string();
            let specification = format!("{}\n{}\n{seed}", checkpoint.name, checkpoint.config);
            (sha256(&[specification.as_bytes()]), "synthetic specification")
        }
    }
}

/// What NVML says of this host's boards; none without a driver.
pub fn boards() -> Vec<report::Gpu> {
    let boards = nvml::boards(None).unwrap_or_default();
    let gpu = |b: nvml::BoardIdentity| report::Gpu {
        name: b.name,
        uuid: Some(b.uuid),
        driver: Some(b.driver),
        power_limit_watts: b.power_limit_watts,
        minimum_power_limit_watts: b.least_power_limit_watts,
        maximum_power_limit_watts: b.greatest_power_limit_watts,
        memory_bytes: b.memory_bytes,
    };
    boards.into_iter().map(gpu).collect()
}

/// Limits every board; what was set before goes back when the next limit comes, and at the end.
fn power_cap() -> Box<dyn Fn(Option<f64>) -> Result<(), String>> {
    let in_force: RefCell<Vec<Cap>> = RefCell::default();
    Box::new(move |watts| {
        let mut in_force = in_force.borrow_mut();
        let put_back: Vec<String> =
            in_force.iter_mut().filter_map(|cap| cap.restore().err()).map(|e| e.to_string()).collect();
        in_force.clear();
        if !put_back.is_empty() {
            return Err(put_back.join("; "));
        }
        let Some(watts) = watts else { return Ok(()) };
        for board in nvml::boards(None).map_err(|e| e.to_string())? {
            match caps::set(None, board.index, Watts(watts)) {
                Ok(cap) => in_force.push(cap),
                Err(error) => {
                    // All boards or none: a point is of one limit.
                    in_force.clear();
                    return Err(error.to_string());
                }
            }
        }
        Ok(())
    })
}
