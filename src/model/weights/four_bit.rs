//! What `quantization_config` says of matrices of four bits, as AutoAWQ and GPTQ's tools write it.
//!
//! Which modules are packed need not be read: a packed module has `qweight` where others have `weight`.

use serde_json::Value;

/// Who packed the matrices, and so in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Awq,
    Gptq,
}

impl Method {
    pub const fn name(self) -> &'static str {
        match self {
            Method::Awq => "AWQ",
            Method::Gptq => "GPTQ",
        }
    }
}

/// Which matrices have four bits, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FourBit {
    Packed(Packing),
    /// Experts in stacks, as gpt-oss has them.
    Mxfp4,
}

impl FourBit {
    pub const fn name(self) -> &'static str {
        match self {
            FourBit::Packed(packing) => packing.method.name(),
            FourBit::Mxfp4 => "MXFP4",
        }
    }
}

/// How a checkpoint's matrices of four bits are packed into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    pub method: Method,
    /// Inputs that share a scale and a zero point; all of them where there is no number.
    pub group: Option<usize>,
    /// Zero points are stored less one (GPTQ's first format).
    pub less_one: bool,
    /// Inputs may belong to groups in any order, which `g_idx` has.
    pub act_order: bool,
}

/// A key of the section, and what is wrong with its value.
pub type Problem = (&'static str, String);

impl Packing {
    /// # Errors
    /// Bits other than 4, groups and formats that are not read here.
    pub fn of(method: Method, section: &Value) -> Result<Packing, Problem> {
        only(section, "bits", &Value::from(4), true)?;
        let formats: &[&str] = match method {
            Method::Awq => &["gemm"],
            Method::Gptq => &["gptq", "gptq_v2"],
        };
        let mut format = formats[0];
        for key in ["version", "format", "checkpoint_format"] {
            // GPTQ's tools put their own version there.
            if key == "version" && method == Method::Gptq {
                continue;
            }
            let Some(value) = given(section, key) else { continue };
            let found = value.as_str().map(str::to_lowercase);
            let known = formats.iter().find(|f| found.as_deref() == Some(**f));
            format = *known
                .ok_or_else(|| (key, format!("{value} is not read here, only {}", formats.join(" and "))))?;
        }
        match method {
            Method::Awq => only(section, "zero_point", &Value::from(true), false)?,
            Method::Gptq => {
                only(section, "is_marlin_format", &Value::from(false), false)?;
                only(section, "pack_dtype", &Value::from("int32"), false)?;
            }
        }
        if let Some(names) = given(section, "modules_to_not_convert")
            && !names.as_array().is_some_and(|all| all.iter().all(Value::is_string))
        {
            return Err(("modules_to_not_convert", format!("{names} is not a list of names")));
        }
        let act_order = match given(section, "desc_act") {
            None => false,
            Some(value) => {
                value.as_bool().ok_or_else(|| ("desc_act", format!("{value} is not true or false")))?
            }
        };
        let act_order = act_order && method == Method::Gptq;
        Ok(Packing { method, group: group(section)?, less_one: format == "gptq", act_order })
    }
}

fn given<'a>(section: &'a Value, key: &str) -> Option<&'a Value> {
    section.get(key).filter(|v| !v.is_null())
}

/// Refuses another value of a key.
fn only(section: &Value, key: &'static str, wanted: &Value, needed: bool) -> Result<(), Problem> {
    match given(section, key) {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err((key, format!("{found} is not read here; {wanted} is"))),
        None if needed => Err((key, format!("is missing; {wanted} is read"))),
        None => Ok(()),
    }
}

fn group(section: &Value) -> Result<Option<usize>, Problem> {
    const KEY: &str = "group_size";
    let Some(value) = given(section, KEY) else { return Err((KEY, "is missing".into())) };
    match value.as_i64() {
        Some(-1) => Ok(None),
        Some(size @ 1..=0x0100_0000) if size % 32 == 0 => Ok(Some(size as usize)),
        _ => Err((KEY, format!("{value} is not read here; -1 and multiples of 32 are"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn section(change: &Value) -> Value {
        let mut section = json!({"bits": 4, "group_size": 128});
        section.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        section
    }

    #[test]
    fn what_the_tools_write_is_read() {
        let (awq, gptq) = (Method::Awq, Method::Gptq);
        let plain = |method| Packing { method, group: Some(128), less_one: method == gptq, act_order: false };
        for (method, change, wanted) in [
            (awq, json!({"version": "gemm", "zero_point": true, "modules_to_not_convert": null}), plain(awq)),
            (
                awq,
                json!({"version": "GEMM", "modules_to_not_convert": ["gate"], "backend": "auto"}),
                plain(awq),
            ),
            (awq, json!({"group_size": -1, "desc_act": true}), Packing { group: None, ..plain(awq) }),
            (gptq, json!({"sym": true, "desc_act": false, "version": "0.9"}), plain(gptq)),
            (
                gptq,
                json!({"checkpoint_format": "gptq", "format": "gptq", "is_marlin_format": false}),
                plain(gptq),
            ),
            (gptq, json!({"checkpoint_format": "gptq_v2"}), Packing { less_one: false, ..plain(gptq) }),
            (
                gptq,
                json!({"desc_act": true, "group_size": 32}),
                Packing { act_order: true, group: Some(32), ..plain(gptq) },
            ),
        ] {
            assert_eq!(Packing::of(method, &section(&change)), Ok(wanted), "{change}");
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        let (awq, gptq) = (Method::Awq, Method::Gptq);
        for (method, key, value, said) in [
            (gptq, "bits", json!(3), "3 is not read here; 4 is"),
            (gptq, "bits", json!(8), "8 is not read here; 4 is"),
            (awq, "bits", json!(null), "is missing; 4 is read"),
            (awq, "group_size", json!(0), "0 is not read here; -1 and multiples of 32 are"),
            (awq, "group_size", json!(16), "16 is not read"),
            (gptq, "group_size", json!(-2), "-2 is not read"),
            (gptq, "group_size", json!(null), "is missing"),
            (awq, "version", json!("gemv"), "\"gemv\" is not read here, only gemm"),
            (awq, "zero_point", json!(false), "false is not read here; true is"),
            (gptq, "checkpoint_format", json!("marlin"), "\"marlin\" is not read"),
            (gptq, "is_marlin_format", json!(true), "true is not read"),
            (gptq, "desc_act", json!("yes"), "\"yes\" is not true or false"),
            (awq, "modules_to_not_convert", json!("gate"), "\"gate\" is not a list of names"),
        ] {
            let (named, problem) = Packing::of(method, &section(&json!({key: value}))).unwrap_err();
            assert_eq!(named, key);
            assert!(problem.contains(said), "{problem}");
        }
    }
}
