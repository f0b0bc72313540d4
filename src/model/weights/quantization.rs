//! `quantization_config` of a checkpoint: whether its quantised weights can be read, and in which blocks.
//!
//! What it says of single tensors need not be read: a tensor's own type tells whether it has scales. Activations
//! are never quantised here, so what is said of theirs does not matter.

use serde_json::Value;

use super::four_bit::{FourBit, Method, Packing, Problem};
use crate::model::LoadError;

pub const KEY: &str = "quantization_config";

/// How a checkpoint's weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Rows and columns of the blocks that have a scale each; without them scales are per tensor or per row.
    Fp8 {
        block: Option<(usize, usize)>,
    },
    FourBit(FourBit),
}

/// What a `config.json` says of its weights; `None` when they are not quantised.
///
/// # Errors
/// A method or a number format that this server does not read; names it.
pub fn of_config(file: &str, config: &Value) -> Result<Option<Quantization>, LoadError> {
    let Some(section) = config.get(KEY).filter(|v| !v.is_null()) else { return Ok(None) };
    let fail = |key: &str, problem: String| LoadError::config(file, format!("{KEY}.{key}"), problem);
    match section.get("quant_method").and_then(Value::as_str) {
        Some("fp8" | "fbgemm_fp8") => {
            if let Some(format) = section.get("fmt").filter(|f| **f != "e4m3") {
                return Err(fail("fmt", format!("{format} is not \"e4m3\"")));
            }
            let key = "weight_block_size";
            let block = block(section.get(key)).map_err(|problem| fail(key, problem))?;
            Ok(Some(Quantization::Fp8 { block }))
        }
        Some("awq") => of_four_bits(Method::Awq, section).map_err(|(key, problem)| fail(key, problem)),
        Some("gptq") => of_four_bits(Method::Gptq, section).map_err(|(key, problem)| fail(key, problem)),
        Some("mxfp4") => Ok(Some(Quantization::FourBit(FourBit::Mxfp4))),
        Some("compressed-tensors") => {
            if let Some(format) = section.get("format").filter(|f| **f == "pack-quantized") {
                let problem = format!("{format} (packed integers) is not read here; awq and gptq are");
                return Err(fail("format", problem));
            }
            let Some(groups) = section.get("config_groups").and_then(Value::as_object) else {
                return Err(fail("config_groups", "is missing or not an object".into()));
            };
            let mut found = None;
            for (name, group) in groups {
                let key = format!("config_groups.{name}.weights");
                let weights = group.get("weights").unwrap_or(&Value::Null);
                if weights.get("type") != Some(&"float".into()) || weights.get("num_bits") != Some(&8.into())
                {
                    return Err(fail(&key, format!("{weights}: only 8 bits of type \"float\" are read")));
                }
                let block = block(weights.get("block_structure")).map_err(|p| fail(&key, p))?;
                if found.is_some_and(|f| f != block) {
                    return Err(fail(&key, "blocks of several sizes are not read".into()));
                }
                found = Some(block);
            }
            Ok(Some(Quantization::Fp8 { block: found.flatten() }))
        }
        Some(other) => Err(fail(
            "quant_method",
            format!(
                "`{other}` is not read here; awq, gptq, mxfp4, fp8, fbgemm_fp8 and compressed-tensors (8-bit float) are"
            ),
        )),
        None => Err(fail("quant_method", "is missing or not a string".into())),
    }
}

fn of_four_bits(method: Method, section: &Value) -> Result<Option<Quantization>, Problem> {
    Packing::of(method, section).map(|read| Some(Quantization::FourBit(FourBit::Packed(read))))
}

/// `[rows, columns]`
fn block(value: Option<&Value>) -> Result<Option<(usize, usize)>, String> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    let side = |i: usize| value.get(i)?.as_u64().filter(|n| (1..=1 << 24).contains(n)).map(|n| n as usize);
    match (value.as_array().map(Vec::len), side(0), side(1)) {
        (Some(2), Some(rows), Some(cols)) => Ok(Some((rows, cols))),
        _ => Err(format!("{value} is not two sizes of a block")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_told_from_what_is_not() {
        let read = |section: Value| of_config("config.json", &json!({KEY: section}));
        let block = |found: Result<Option<Quantization>, LoadError>| match found.unwrap().unwrap() {
            Quantization::Fp8 { block } => block,
            Quantization::FourBit(read) => panic!("{read:?}"),
        };
        assert_eq!(of_config("config.json", &json!({})).unwrap(), None);
        assert_eq!(block(read(json!({"quant_method": "fp8", "activation_scheme": "static"}))), None);
        let blocks = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 64]});
        assert_eq!(block(read(blocks)), Some((128, 64)));
        let group = |weights: Value| json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}});
        assert_eq!(block(read(group(json!({"type": "float", "num_bits": 8, "strategy": "channel"})))), None);
        let structure = json!({"type": "float", "num_bits": 8, "block_structure": [128, 128]});
        assert_eq!(block(read(group(structure))), Some((128, 128)));
        let four = read(json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": true}));
        let wanted = Packing { method: Method::Gptq, group: None, less_one: true, act_order: true };
        assert_eq!(four.unwrap(), Some(Quantization::FourBit(FourBit::Packed(wanted))));
        for (section, named) in [
            (json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
            (json!({"quant_method": "gptq", "bits": 3, "group_size": 128}), "quantization_config.bits: 3"),
            (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), "pack-quantized"),
            (json!({}), "quant_method"),
            (json!({"quant_method": "fp8", "fmt": "e5m2"}), "e5m2"),
            (json!({"quant_method": "fp8", "weight_block_size": [128]}), "weight_block_size"),
            (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size"),
            (group(json!({"type": "int", "num_bits": 4})), "config_groups.group_0.weights"),
            (json!({"quant_method": "compressed-tensors"}), "config_groups"),
        ] {
            let error = read(section).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(KEY) && error.contains(named), "{error}");
        }
    }
}
