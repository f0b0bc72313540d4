//! From a vector a token to one a text: which tokens count, and whether the result has length 1.
//!
//! The files of sentence-transformers (`modules.json`, `1_Pooling/config.json`) → [`Pooling`]; hidden states
//! `[texts, tokens, hidden]` → `[texts, hidden]`. What the files ask for and is not here is refused by its name.

use std::path::Path;

use candle_core::{D, IndexOp, Result, Tensor};
use serde_json::Value;

use super::LoadError;

/// Which of a text's tokens stand for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    Mean,
    /// The first.
    Cls,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    pub pool: Pool,
    /// Vectors are scaled to length 1.
    pub normalize: bool,
}

/// What may stand in `1_Pooling/config.json`, and what of it is here.
const MODES: [(&str, Option<Pool>); 6] = [
    ("pooling_mode_mean_tokens", Some(Pool::Mean)),
    ("pooling_mode_cls_token", Some(Pool::Cls)),
    ("pooling_mode_lasttoken", Some(Pool::Last)),
    ("pooling_mode_max_tokens", None),
    ("pooling_mode_mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", None),
];

impl Pooling {
    /// What a folder's files say; `default` and length 1 where they say nothing.
    ///
    /// # Errors
    /// Modules and modes that are not here, files that cannot be read.
    pub fn of_folder(folder: &Path, default: Pool) -> std::result::Result<Pooling, LoadError> {
        let modules = folder.join("modules.json");
        let mut pooling = Pooling { pool: default, normalize: true };
        let mut config = folder.join("1_Pooling/config.json");
        if modules.is_file() {
            pooling.normalize = false;
            let all = read(&modules)?;
            for module in all.as_array().into_iter().flatten() {
                let kind = module["type"].as_str().unwrap_or_default();
                match kind.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => {}
                    "Pooling" => {
                        let path = module["path"].as_str().unwrap_or("1_Pooling");
                        config = folder.join(path).join("config.json");
                    }
                    "Normalize" => pooling.normalize = true,
                    _ => return Err(unsupported(&modules, "type", kind)),
                }
            }
        }
        if config.is_file() {
            pooling.pool = Pooling::mode(&config, &read(&config)?)?.unwrap_or(default);
        }
        Ok(pooling)
    }

    fn mode(file: &Path, config: &Value) -> std::result::Result<Option<Pool>, LoadError> {
        if let Some(word) = config.get("pooling_mode").and_then(Value::as_str) {
            return match word {
                "mean" => Ok(Some(Pool::Mean)),
                "cls" => Ok(Some(Pool::Cls)),
                "lasttoken" => Ok(Some(Pool::Last)),
                _ => Err(unsupported(file, "pooling_mode", word)),
            };
        }
        let on: Vec<_> = MODES.iter().filter(|(key, _)| config[*key] == true).collect();
        match on.as_slice() {
            [] => Ok(None),
            [(_, Some(pool))] => Ok(Some(*pool)),
            [(key, None)] => Err(unsupported(file, key, "true")),
            several => Err(unsupported(file, several[1].0, &format!("true beside `{}`", several[0].0))),
        }
    }

    /// One vector a text. `hidden`: `[texts, tokens, width]`, padded at the end; `lengths` are the texts' own.
    ///
    /// # Errors
    /// What candle answers.
    pub fn apply(self, hidden: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let (texts, tokens, _) = hidden.dims3()?;
        let pooled = match self.pool {
            Pool::Cls => hidden.i((.., 0))?.contiguous()?,
            Pool::Last => {
                let rows = lengths.iter().enumerate().map(|(text, length)| hidden.i((text, length - 1)));
                Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)?
            }
            Pool::Mean => {
                let share =
                    |(length, token): (usize, usize)| if token < length { 1.0 / length as f32 } else { 0.0 };
                let shares: Vec<f32> =
                    lengths.iter().flat_map(|length| (0..tokens).map(move |t| share((*length, t)))).collect();
                let shares = Tensor::from_vec(shares, (texts, 1, tokens), hidden.device())?;
                shares.to_dtype(hidden.dtype())?.matmul(&hidden.contiguous()?)?.squeeze(1)?
            }
        };
        if self.normalize { unit_length(&pooled) } else { Ok(pooled) }
    }
}

/// A vector scaled to length 1.
pub(super) fn scaled(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    vector.iter().map(|x| x / length).collect()
}

fn unit_length(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    // As PyTorch's `normalize` has it: a vector of zeros stays one.
    vectors.broadcast_div(&length.maximum(1e-12)?)
}

pub(super) fn read(path: &Path) -> std::result::Result<Value, LoadError> {
    let bytes = std::fs::read(path).map_err(|e| LoadError::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::file(path, e))
}

fn unsupported(file: &Path, key: &str, value: &str) -> LoadError {
    LoadError::Config {
        file: file.display().to_string(),
        key: key.into(),
        problem: format!("{value} is not supported"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const POOLING: &str = "1_Pooling/config.json";

    #[test]
    fn the_files_say_how() {
        let of = |files: &[(&str, &str)]| Pooling::of_folder(folder(files).path(), Pool::Mean);
        assert_eq!(of(&[]).unwrap(), Pooling { pool: Pool::Mean, normalize: true });
        let cls = (POOLING, r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
        let modules = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}"#;
        let bare = format!("{modules}]");
        let normal = format!(r#"{modules}, {{"type": "sentence_transformers.models.Normalize"}}]"#);
        let dense = format!(r#"{modules}, {{"type": "sentence_transformers.models.Dense"}}]"#);
        assert_eq!(of(&[cls]).unwrap(), Pooling { pool: Pool::Cls, normalize: true });
        let bare = of(&[cls, ("modules.json", &bare)]).unwrap();
        assert_eq!(bare, Pooling { pool: Pool::Cls, normalize: false });
        assert!(of(&[cls, ("modules.json", &normal)]).unwrap().normalize);
        let last = (POOLING, r#"{"pooling_mode_lasttoken": true}"#);
        assert_eq!(of(&[last]).unwrap().pool, Pool::Last);
        for (files, word) in [
            (vec![cls, ("modules.json", dense.as_str())], "Dense"),
            (vec![(POOLING, r#"{"pooling_mode_max_tokens": true}"#)], "pooling_mode_max_tokens"),
            (
                vec![(POOLING, r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#)],
                "beside",
            ),
        ] {
            let error = of(&files).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn padding_is_no_part_of_a_text() {
        // Two texts of 3 and 1 tokens, width 2; what lies behind the second is not its own.
        let hidden = [1f32, 2., 3., 4., 5., 6., 3., 4., 100., 100., 100., 100.];
        let hidden = Tensor::from_slice(&hidden, (2, 3, 2), &Device::Cpu).unwrap();
        let pooled = |pool, normalize| {
            let pooled = Pooling { pool, normalize }.apply(&hidden, &[3, 1]).unwrap();
            pooled.to_vec2::<f32>().unwrap()
        };
        assert_eq!(pooled(Pool::Mean, false), [[3., 4.], [3., 4.]]);
        assert_eq!(pooled(Pool::Cls, false), [[1., 2.], [3., 4.]]);
        assert_eq!(pooled(Pool::Last, false), [[5., 6.], [3., 4.]]);
        let near = |a: &[f32], b: [f32; 2]| (a[0] - b[0]).abs() < 1e-6 && (a[1] - b[1]).abs() < 1e-6;
        assert!(near(&pooled(Pool::Mean, true)[0], [0.6, 0.8]));
        let zeros = hidden.zeros_like().unwrap();
        let zeros = Pooling { pool: Pool::Cls, normalize: true }.apply(&zeros, &[3, 1]).unwrap();
        assert_eq!(zeros.to_vec2::<f32>().unwrap(), [[0., 0.], [0., 0.]]);
    }
}
