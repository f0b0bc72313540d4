//! Typed reads from a checkpoint's configuration; every error names the file and the key.

use crate::model::LoadError;
use crate::model::spec::{FloatType, RopeScaling, RopeSpec};

/// A `config.json` that is known to be an object.
pub struct ConfigReader<'a> {
    file: &'a str,
    map: &'a serde_json::Map<String, serde_json::Value>,
}

impl<'a> ConfigReader<'a> {
    pub fn new(file: &'a str, value: &'a serde_json::Value) -> Result<Self, LoadError> {
        let map = value
            .as_object()
            .ok_or_else(|| LoadError::File { file: file.into(), problem: "is not a JSON object".into() })?;
        Ok(ConfigReader { file, map })
    }

    pub fn error(&self, key: &str, problem: impl ToString) -> LoadError {
        LoadError::Config { file: self.file.into(), key: key.into(), problem: problem.to_string() }
    }

    fn get(&self, key: &str) -> Option<&'a serde_json::Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.get(key)
            .map(|v| {
                v.as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| self.error(key, format!("{v} is not a whole number ≥ 0")))
            })
            .transpose()
    }

    pub fn usize(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_usize(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key)
            .map(|v| v.as_f64().ok_or_else(|| self.error(key, format!("{v} is not a number"))))
            .transpose()
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool().ok_or_else(|| self.error(key, format!("{v} is not true or false")))
        })
    }

    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.get(key)
            .map(|v| v.as_str().ok_or_else(|| self.error(key, format!("{v} is not a string"))))
            .transpose()
    }

    pub fn first_string(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_array()?.first()?.as_str()
    }

    /// Refuses a key that is set to something else than the one value this server implements.
    pub fn require(&self, key: &str, wanted: &serde_json::Value) -> Result<(), LoadError> {
        match self.get(key) {
            Some(v) if v != wanted => Err(self.error(key, format!("{v} is not supported; only {wanted} is"))),
            _ => Ok(()),
        }
    }

    /// The type weights were saved in; bf16 when the file does not say.
    pub fn float_type(&self) -> Result<FloatType, LoadError> {
        let key = if self.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        match self.optional_str(key)? {
            Some("float32") => Ok(FloatType::F32),
            Some("float16") => Ok(FloatType::F16),
            Some("bfloat16") | None => Ok(FloatType::Bf16),
            Some(other) => Err(self.error(key, format!("`{other}` is not float32, float16 or bfloat16"))),
        }
    }

    /// `rope_theta` and `rope_scaling`, or both inside `rope_parameters` as newer files have them.
    pub fn rope(&self) -> Result<RopeSpec, LoadError> {
        let key = if self.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let inner = match self.get(key) {
            None => None,
            Some(v) => Some(
                v.as_object()
                    .map(|map| ConfigReader { file: self.file, map })
                    .ok_or_else(|| self.error(key, "is not an object"))?,
            ),
        };
        let inner_theta = inner.as_ref().map_or(Ok(None), |r| r.optional_f64("rope_theta"))?;
        let theta = inner_theta.or(self.optional_f64("rope_theta")?).unwrap_or(10_000.0);
        if theta.is_nan() || theta <= 1.0 {
            return Err(self.error("rope_theta", format!("{theta} is not greater than 1")));
        }
        let scaling = inner.map_or(Ok(RopeScaling::None), |r| r.scaling(key))?;
        Ok(RopeSpec { theta, scaling })
    }

    fn scaling(&self, parent: &str) -> Result<RopeScaling, LoadError> {
        let kind = match self.optional_str("rope_type")? {
            Some(kind) => Some(kind),
            None => self.optional_str("type")?,
        };
        let number = |key: &str| {
            self.optional_f64(key)?
                .filter(|v| *v > 0.0)
                .ok_or_else(|| self.error(&format!("{parent}.{key}"), "is missing or not greater than 0"))
        };
        match kind {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_positions: number("original_max_position_embeddings")?,
            }),
            Some(other) => {
                Err(self
                    .error(parent, format!("type `{other}` is not supported (default, linear, llama3 are)")))
            }
        }
    }
}
