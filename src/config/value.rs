//! Readers of single values: sizes, times, devices, number types.

use std::time::Duration;

use super::{DeviceKind, ModelSource};
use crate::model::decoder::{Precision, Quantize};
use crate::model::kv_cache::CacheType;

/// `512`, `512KiB`, `2GiB`, `2GB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("is not a size such as 512MiB or 2GiB".into()),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * (factor as f64) < 1e18 => Ok((n * factor as f64) as u64),
        _ => Err("is not a size such as 512MiB or 2GiB".into()),
    }
}

/// `30`, `30s`, `500ms`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let (number, seconds) = if let Some(n) = text.strip_suffix("ms") {
        (n, 1e-3)
    } else if let Some(n) = text.strip_suffix('m') {
        (n, 60.0)
    } else if let Some(n) = text.strip_suffix('h') {
        (n, 3600.0)
    } else if let Some(n) = text.strip_suffix('d') {
        (n, 86_400.0)
    } else {
        (text.strip_suffix('s').unwrap_or(text), 1.0)
    };
    match number.trim().parse::<f64>() {
        Ok(n) if (0.0..1e7).contains(&n) => Ok(Duration::from_secs_f64(n * seconds)),
        _ => Err("is not a time such as 500ms, 30s, 15m, 24h or 7d".into()),
    }
}

/// One or more of `MODEL` and `NAME=MODEL`, separated by commas. Before the `=` of a path there is a `/`.
pub fn parse_models(text: &str) -> Result<Vec<ModelSource>, String> {
    let one = |text: String| match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() && !name.contains('/') => {
            ModelSource { name: Some(name.into()), model: model.into() }
        }
        _ => ModelSource { name: None, model: text },
    };
    match super::list(text) {
        all if all.is_empty() => Err("names no model".into()),
        all => Ok(all.into_iter().map(one).collect()),
    }
}

/// vLLM's names of number types.
pub fn parse_precision(text: &str) -> Result<Precision, String> {
    match text {
        "auto" => Ok(Precision::AsStored),
        "float32" | "float" => Ok(Precision::F32),
        "float16" | "half" => Ok(Precision::F16),
        "bfloat16" => Ok(Precision::Bf16),
        _ => Err("is not auto, float32, float16 or bfloat16".into()),
    }
}

/// Origins as browsers write them, separated by commas; `*` is any.
pub fn parse_origins(text: &str) -> Result<Vec<String>, String> {
    let all = super::list(text);
    let fine = |origin: &String| {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        origin == "*"
            || (!host.is_empty() && !host.contains('/') && origin.bytes().all(|b| b.is_ascii_graphic()))
    };
    match all.iter().find(|origin| !fine(origin)) {
        Some(origin) => Err(format!("{origin:?} is not an origin, as https://app.example, nor *")),
        None => Ok(all),
    }
}

/// vLLM's names of what weights are rounded to when they are loaded.
pub fn parse_quantization(text: &str) -> Result<Quantize, String> {
    match text {
        "" | "none" => Ok(Quantize::AsStored),
        "fp8" => Ok(Quantize::Fp8),
        _ => Quantize::blocks(text).ok_or_else(|| {
            let formats = Quantize::block_names().join(", ");
            format!(
                "is not fp8, nor one of {formats}; checkpoints that are quantised already need no setting"
            )
        }),
    }
}

/// vLLM's names of types of the KV cache, and llama.cpp's of 8 bits; `None` is the type of the activations.
pub fn parse_cache(text: &str) -> Result<Option<CacheType>, String> {
    match text {
        "auto" => Ok(None),
        "fp8" | "fp8_e4m3" => Ok(Some(CacheType::Fp8)),
        "q8" | "q8_0" | "int8" => Ok(Some(CacheType::Q8)),
        _ => Err("is not auto, fp8 (fp8_e4m3) or q8 (q8_0, int8)".into()),
    }
}

/// A list of devices; one engine each.
pub fn parse_devices(text: &str) -> Result<Vec<DeviceKind>, String> {
    const MOST: usize = 64;
    let number = |n: &str| n.parse().ok().filter(|n| *n < MOST);
    let devices: Option<Vec<DeviceKind>> = match text.trim() {
        "auto" => Some(vec![DeviceKind::Auto]),
        "cuda" => Some(vec![DeviceKind::AllCuda]),
        text => match text.strip_prefix("cuda:") {
            Some(list) => list.split(',').map(|n| number(n.trim()).map(DeviceKind::Cuda)).collect(),
            None => text.split(',').map(|d| (d.trim() == "cpu").then_some(DeviceKind::Cpu)).collect(),
        },
    };
    let once = |all: &Vec<DeviceKind>| {
        let twice = |(i, d): (usize, &DeviceKind)| *d != DeviceKind::Cpu && all[..i].contains(d);
        all.len() <= MOST && !all.iter().enumerate().any(twice)
    };
    devices
        .filter(once)
        .ok_or_else(|| "is not auto, cpu, cpu,cpu, cuda, or cuda:0,2 with each GPU once".into())
}

/// The text without user and password of a URL in it (`http:http://user:password@pdu/…`), to be shown.
pub fn without_credentials(text: &str) -> String {
    let Some(begin) = text.find("://").map(|at| at + 3) else { return text.into() };
    let end = text[begin..].find(['/', '?', '#']).map_or(text.len(), |at| begin + at);
    match text[begin..end].rfind('@') {
        Some(at) => format!("{}***{}", &text[..begin], &text[begin + at..]),
        None => text.into(),
    }
}

const TOOL_PARSERS: [&str; 7] =
    ["auto", "none", "hermes", "llama3_json", "mistral", "phi4_mini_json", "openai"];

pub fn parse_tool_parser(value: &str) -> Result<&'static str, String> {
    let known = TOOL_PARSERS.into_iter().find(|name| *name == value);
    known.ok_or_else(|| format!("is none of {}", TOOL_PARSERS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        for (text, shown) in [
            ("http:http://me:p@w@pdu:80/a#b@site", "http:http://***@pdu:80/a#b@site"),
            ("http://pdu/a#b@site", "http://pdu/a#b@site"),
            ("declared:1,2", "declared:1,2"),
            ("https://u@h", "https://***@h"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn models_may_have_names() {
        let of = |text: &str| {
            let all = parse_models(text).unwrap();
            all.into_iter().map(|m| (m.name.unwrap_or_default(), m.model)).collect::<Vec<_>>()
        };
        let pair = |name: &str, model: &str| (name.to_string(), model.to_string());
        assert_eq!(of("demo"), [pair("", "demo")]);
        assert_eq!(of("demo, mini=/a/b=c"), [pair("", "demo"), pair("mini", "/a/b=c")]);
        assert_eq!(of("./a=b"), [pair("", "./a=b")]);
        assert!(parse_models(" , ").is_err());
    }

    #[test]
    fn sizes_and_times_are_read() {
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "-1", "1XB", "NaN", "1e400"] {
            assert!(parse_bytes(bad).is_err() && parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_devices("cpu,cpu").unwrap().len(), 2);
        assert_eq!(parse_devices("auto"), Ok(vec![DeviceKind::Auto]));
        assert_eq!(parse_devices("cuda"), Ok(vec![DeviceKind::AllCuda]));
        assert_eq!(parse_devices("cuda:0, 2"), Ok(vec![DeviceKind::Cuda(0), DeviceKind::Cuda(2)]));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:0,0", "cuda:99", "cuda,cpu", "auto,cpu", "cpu,cuda:0"]
        {
            assert!(parse_devices(bad).is_err(), "{bad}");
        }
    }
}
