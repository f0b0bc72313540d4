//! Typed reads from a checkpoint's configuration; every error names the file and the key.

use crate::model::LoadError;
use crate::model::spec::{FloatType, RopeScaling, RopeSpec};

/// A `config.json` that is known to be an object.
#[derive(Clone)]
pub struct ConfigReader<'a> {
    file: &'a str,
    map: &'a serde_json::Map<String, serde_json::Value>,
    /// What an architecture has for keys that are not there.
    defaults: Vec<(&'static str, serde_json::Number)>,
}

impl<'a> ConfigReader<'a> {
    pub fn new(file: &'a str, value: &'a serde_json::Value) -> Result<Self, LoadError> {
        let map = value
            .as_object()
            .ok_or_else(|| LoadError::File { file: file.into(), problem: "is not a JSON object".into() })?;
        Ok(ConfigReader { file, map, defaults: Vec::new() })
    }

    pub fn error(&self, key: &str, problem: impl ToString) -> LoadError {
        LoadError::config(self.file, key, problem)
    }

    /// The same with a number for a key that is not there.
    #[must_use]
    pub fn or(&self, key: &'static str, default: impl Into<serde_json::Value>) -> Self {
        let mut with = self.clone();
        if let serde_json::Value::Number(number) = default.into() {
            with.defaults.push((key, number));
        }
        with
    }

    fn default(&self, key: &str) -> Option<&serde_json::Number> {
        self.defaults.iter().find(|(name, _)| *name == key).map(|(_, number)| number)
    }

    fn get(&self, key: &str) -> Option<&'a serde_json::Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let whole = |n: u64| usize::try_from(n).ok();
        match self.get(key) {
            None => Ok(self.default(key).and_then(serde_json::Number::as_u64).and_then(whole)),
            Some(v) => {
                let found = v.as_u64().and_then(whole);
                found.map(Some).ok_or_else(|| self.error(key, format!("{v} is not a whole number ≥ 0")))
            }
        }
    }

    pub fn usize(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_usize(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A number from which something is made for each, before any tensor says that it is there.
    pub fn usize_up_to(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        match self.usize(key)? {
            value if (1..=most).contains(&value) => Ok(value),
            value => Err(self.error(key, format!("{value} is not between 1 and {most}"))),
        }
    }

    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.get(key) {
            None => Ok(self.default(key).and_then(serde_json::Number::as_f64)),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.error(key, format!("{v} is not a number"))),
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        let list = |v: &serde_json::Value| {
            v.as_array()?.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<f64>>>()
        };
        self.get(key).map(|v| list(v).ok_or_else(|| self.error(key, "is not a list of numbers"))).transpose()
    }

    /// Windows of layers: of all, or of those that `layer_types` names, or else of those that `slides` does.
    pub fn windows(
        &self,
        layers: usize,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, LoadError> {
        let Some(window) = self.optional_usize("sliding_window")? else { return Ok(Vec::new()) };
        if window == 0 {
            return Err(self.error("sliding_window", "0 leaves a row nothing to see"));
        }
        let slides: Vec<bool> = match self.strings("layer_types")? {
            None => (0..layers).map(slides).collect(),
            Some(types) if types.len() == layers => types
                .into_iter()
                .map(|kind| match kind {
                    "sliding_attention" => Ok(true),
                    "full_attention" => Ok(false),
                    other => {
                        Err(self.error("layer_types", format!("`{other}` is not a kind of attention here")))
                    }
                })
                .collect::<Result<_, _>>()?,
            Some(types) => {
                return Err(
                    self.error("layer_types", format!("has {} entries for {layers} layers", types.len()))
                );
            }
        };
        Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, LoadError> {
        let list = |v: &'a serde_json::Value| {
            v.as_array()?.iter().map(serde_json::Value::as_str).collect::<Option<Vec<&str>>>()
        };
        self.get(key).map(|v| list(v).ok_or_else(|| self.error(key, "is not a list of strings"))).transpose()
    }

    /// A number above 0 that a model may do without.
    pub fn optional_cap(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.optional_f64(key)? {
            Some(cap) if cap.is_nan() || cap <= 0.0 => Err(self.error(key, format!("{cap} is not above 0"))),
            cap => Ok(cap.map(|cap| cap as f32)),
        }
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
            Some(v) if v != wanted && !(v.is_number() && v.as_f64() == wanted.as_f64()) => {
                Err(self.error(key, format!("{v} is not supported; only {wanted} is")))
            }
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

    /// `rope_theta`, `partial_rotary_factor` and `rope_scaling`, or all inside `rope_parameters` as newer files have them.
    pub fn rope(&self, head_dim: usize) -> Result<RopeSpec, LoadError> {
        let key = if self.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        self.rope_of(key, head_dim)
    }

    /// The same of the layers of one kind, where `rope_parameters` has an object for each.
    pub fn rope_of_kind(&self, kind: &str, head_dim: usize) -> Result<Option<RopeSpec>, LoadError> {
        let all = self.get("rope_parameters").and_then(|v| v.as_object());
        let Some(map) = all.filter(|all| all.contains_key(kind)) else { return Ok(None) };
        ConfigReader { file: self.file, map, defaults: Vec::new() }.rope_of(kind, head_dim).map(Some)
    }

    fn rope_of(&self, key: &str, head_dim: usize) -> Result<RopeSpec, LoadError> {
        let inner = match self.get(key) {
            None => None,
            Some(v) => Some(
                v.as_object()
                    .map(|map| ConfigReader { file: self.file, map, defaults: Vec::new() })
                    .ok_or_else(|| self.error(key, "is not an object"))?,
            ),
        };
        let inner_theta = inner.as_ref().map_or(Ok(None), |r| r.optional_f64("rope_theta"))?;
        let theta = inner_theta.or(self.optional_f64("rope_theta")?).unwrap_or(10_000.0);
        if theta.is_nan() || theta <= 1.0 {
            return Err(self.error("rope_theta", format!("{theta} is not greater than 1")));
        }
        let inner_part = inner.as_ref().map_or(Ok(None), |r| r.optional_f64("partial_rotary_factor"))?;
        let part = inner_part.or(self.optional_f64("partial_rotary_factor")?).unwrap_or(1.0);
        if !(0.0..=1.0).contains(&part) {
            return Err(self.error("partial_rotary_factor", format!("{part} is not between 0 and 1")));
        }
        let scaling = inner.map_or(Ok(RopeScaling::None), |r| r.scaling(key, self))?;
        // Rounded only where a file gives the share of a whole number.
        let turned = (head_dim as f64 * part + 1e-6) as usize;
        Ok(RopeSpec { scaling, turned, ..RopeSpec::plain(theta, head_dim) })
    }

    /// `whole`: the file that this is a part of.
    fn scaling(&self, parent: &str, whole: &ConfigReader) -> Result<RopeScaling, LoadError> {
        let kind = match self.optional_str("rope_type")? {
            Some(kind) => Some(kind),
            None => self.optional_str("type")?,
        };
        let number = |key: &str| {
            self.optional_f64(key)?.filter(|v| (1e-6..=1e9).contains(v)).ok_or_else(|| {
                self.error(&format!("{parent}.{key}"), "is missing or not between 1e-6 and 1e9")
            })
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
            Some("yarn") => {
                let factor = number("factor")?;
                let or = |key: &str, default: f64| match self.optional_f64(key)? {
                    Some(found) if !(1e-6..=1e6).contains(&found) => {
                        let problem = format!("{found} is not between 1e-6 and 1e6");
                        Err(self.error(&format!("{parent}.{key}"), problem))
                    }
                    found => Ok::<_, LoadError>(found.unwrap_or(default)),
                };
                let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
                let length = match (self.optional_f64("mscale")?, self.optional_f64("mscale_all_dim")?) {
                    (Some(of), Some(all)) if of != 0.0 && all != 0.0 => scale(of) / scale(all),
                    _ => scale(1.0),
                };
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: or("beta_fast", 32.0)?,
                    beta_slow: or("beta_slow", 1.0)?,
                    original_max_positions: original(self, whole)?,
                    truncate: self.bool_or("truncate", true)?,
                    length: or("attention_factor", length)?,
                })
            }
            Some("longrope" | "su") => {
                let factors = |key: &str| {
                    let found = self.numbers(key)?;
                    let found = found.ok_or_else(|| self.error(&format!("{parent}.{key}"), "is missing"))?;
                    Ok::<Vec<f32>, LoadError>(found.into_iter().map(|f| f as f32).collect())
                };
                let original = original(self, whole)?;
                let factor = whole.optional_f64("max_position_embeddings")?.unwrap_or(original) / original;
                let longer = (1.0 + factor.ln() / original.ln()).sqrt();
                let length = if factor <= 1.0 { 1.0 } else { longer };
                Ok(RopeScaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    original_max_positions: original as usize,
                    length: self.optional_f64("attention_factor")?.unwrap_or(length),
                })
            }
            Some(other) => {
                let known = "default, linear, llama3, yarn, longrope are";
                Err(self.error(parent, format!("type `{other}` is not supported ({known})")))
            }
        }
    }
}

/// The context that a model was trained with first.
fn original(scaling: &ConfigReader, whole: &ConfigReader) -> Result<f64, LoadError> {
    const KEY: &str = "original_max_position_embeddings";
    let found = match scaling.optional_f64(KEY)? {
        None => whole.optional_f64(KEY)?,
        found => found,
    };
    let found = match found {
        None => whole.optional_f64("max_position_embeddings")?,
        found => found,
    };
    found.filter(|v| *v > 1.0).ok_or_else(|| whole.error(KEY, "is missing or not greater than 1"))
}
