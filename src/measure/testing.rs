//! A report for tests: two points, one measured scope, no economics.

use super::report::*;
use crate::economics::estimate::Estimate;
use crate::power::{Boundary, Method};

/// A report without points.
pub fn report() -> Report {
    Report {
        schema: SCHEMA,
        complete: true,
        partial_because: None,
        example: false,
        created_unix_seconds: 1_790_000_000,
        created: "2026-09-21T14:13:20Z".into(),
        version: "0.1.0".into(),
        commit: "unknown".into(),
        command: vec!["hashwatt".into(), "bench".into()],
        elapsed_seconds: 60.0,
        hardware: Hardware { cpu: "a processor".into(), cores: 2, ..Hardware::default() },
        model: Model { id: "demo".into(), ..Model::default() },
        target: Target::InProcess { settings: Vec::new() },
        ceilings: None,
        meters: Vec::new(),
        primary: Some(Scope { boundary: Boundary::CpuPackage, method: Method::Counter }),
        idle: Vec::new(),
        points: Vec::new(),
        power: Vec::new(),
        economics: None,
        warnings: Vec::new(),
    }
}

/// A point of so many tokens a second for so many watts.
pub fn point(kind: Kind, concurrency: u32, tokens_per_second: f64, watts: f64) -> Point {
    let rate = Estimate::within(tokens_per_second, 0.02);
    let (seconds, efficiency) = (50.0, Estimate::within(tokens_per_second / watts, 0.02));
    let tokens = (tokens_per_second * seconds) as u64;
    Point {
        kind,
        concurrency,
        requests_per_second: None,
        duty: None,
        power_cap_watts: None,
        asked_input_tokens: 128.0,
        asked_output_tokens: 128.0,
        mean_input_tokens: 128.0,
        mean_output_tokens: 128.0,
        start_seconds: 10.0,
        seconds,
        requests: 100,
        failed: 0,
        input_tokens: tokens,
        output_tokens: tokens,
        input_tokens_per_second: rate,
        output_tokens_per_second: rate,
        ttft_seconds: Some(Quantiles { p50: 0.1, p90: 0.2, p99: 0.3 }),
        itl_seconds: Some(Quantiles { p50: 0.01, p90: 0.02, p99: 0.03 }),
        copy_bandwidth_share: None,
        gemm_share: None,
        window_seconds: vec![5.0; 10],
        window_tokens: vec![tokens / 10; 10],
        energy: vec![Energy {
            meter: "rapl:package-0".into(),
            boundary: Boundary::CpuPackage,
            method: Method::Counter,
            measured: true,
            gain_error: 0.05,
            joules: watts * seconds,
            watts: Estimate::within(watts, 0.01),
            tokens_per_joule: Some(efficiency),
            joules_per_token: Some(Estimate::within(watts / tokens_per_second, 0.02)),
            idle_subtracted_joules: None,
            idle_subtracted_tokens_per_joule: None,
            joules_per_prefill_token: None,
            joules_per_decode_token: None,
            window_joules: vec![watts * seconds / 10.0; 10],
            problem: None,
        }],
        boards: Vec::new(),
        flags: Vec::new(),
    }
}

/// Equal, but for the last digits of numbers.
pub fn same(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (a, b) {
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Object(a), Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
        }
        (Number(a), Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-14 * a.abs().max(b.abs())
        }
        _ => a == b,
    }
}
