//! A checkpoint's tensors as candle-transformers asks for them: by name, f32, on a device.
//!
//! Names below [`BASE`] are those of the model without its head; a checkpoint keeps them under a prefix of its own. The
//! first tensor that is not as it should be is remembered with file and name, which candle's errors would lose. Without
//! reading, the same questions give the list of a model's tensors.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::model::LoadError;
use crate::model::weights::WeightSource;

/// Where the model without its head is asked for. (ModernBERT's implementation has it in its own names.)
pub const BASE: &str = "model";

/// A tensor by name, and its shape.
pub type TensorShape = (String, Vec<usize>);

pub struct Weights<'a> {
    source: &'a WeightSource,
    /// What stands in the checkpoint for `model.`.
    prefix: &'a str,
    /// A tensor that may be absent.
    optional: Option<String>,
    reads: bool,
    asked: Mutex<Vec<TensorShape>>,
    problem: Mutex<Option<LoadError>>,
}

impl<'a> Weights<'a> {
    pub fn new(source: &'a WeightSource, prefix: &'a str, optional: Option<&str>, reads: bool) -> Self {
        Weights {
            source,
            prefix,
            optional: optional.map(|name| format!("{prefix}{name}")),
            reads,
            asked: Mutex::default(),
            problem: Mutex::default(),
        }
    }

    pub fn builder(&self, device: &Device) -> VarBuilder<'_> {
        VarBuilder::from_backend(Box::new(Asked(self)), DType::F32, device.clone())
    }

    /// All tensors that were asked for and are there.
    ///
    /// # Errors
    /// The first that was not as it should be.
    pub fn finish(self) -> std::result::Result<Vec<TensorShape>, LoadError> {
        match self.problem.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => Err(problem),
            None => Ok(self.asked.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn name(&self, name: &str) -> String {
        match name.strip_prefix(BASE).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => name.to_string(),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> std::result::Result<Tensor, LoadError> {
        let failed = |e: candle_core::Error| LoadError::Device(format!("tensor `{name}`: {e}"));
        if !self.reads {
            self.source.check(name, shape)?;
            return Tensor::zeros((), DType::F32, device).and_then(|z| z.broadcast_as(shape)).map_err(failed);
        }
        let weight = self.source.weight(name, shape)?;
        if let Some(index) = weight.first_non_finite() {
            let problem = format!("number {index} is not finite");
            return Err(LoadError::tensor(&self.source.file_of(name), name, problem));
        }
        Tensor::from_vec(weight.to_f32().f32s().to_vec(), shape, device).map_err(failed)
    }
}

struct Asked<'a>(&'a Weights<'a>);

impl SimpleBackend for Asked<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let weights = self.0;
        let name = weights.name(name);
        if weights.optional.as_ref() == Some(&name) && !weights.source.has(&name) {
            candle_core::bail!("`{name}` is absent, and may be");
        }
        match weights.tensor(&name, shape.dims(), device) {
            Ok(tensor) => {
                let mut asked = weights.asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.push((name, shape.into_dims()));
                Ok(tensor)
            }
            Err(error) => {
                let text = error.to_string();
                let mut problem = weights.problem.lock().unwrap_or_else(PoisonError::into_inner);
                problem.get_or_insert(error);
                candle_core::bail!("{text}")
            }
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("the shape of `{name}` must be known")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.source.has(&self.0.name(name))
    }
}
