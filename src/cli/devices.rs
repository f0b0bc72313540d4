//! Which devices serve: what was asked for against what is there, and why.

use std::fmt;

use anyhow::bail;

use crate::config::DeviceKind;
use crate::ops::exec::cuda;
use crate::power::nvml;

/// The devices, each an engine, and a word on the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub devices: Vec<DeviceKind>,
    pub why: String,
}

/// # Errors
/// A CUDA device where there is none, or none of that number.
pub fn choose(asked: &[DeviceKind]) -> anyhow::Result<Chosen> {
    let all = |count: usize| (0..count).map(DeviceKind::Cuda).collect::<Vec<_>>();
    match asked {
        [DeviceKind::Auto] => Ok(match cuda::count() {
            Ok(count) if count > 0 => {
                Chosen { devices: all(count), why: format!("all {count} visible GPUs") }
            }
            Ok(_) => Chosen { devices: vec![DeviceKind::Cpu], why: "no GPU is visible".into() },
            Err(problem) => Chosen { devices: vec![DeviceKind::Cpu], why: not_used(&problem.to_string()) },
        }),
        [DeviceKind::AllCuda] => match cuda::count()? {
            0 => bail!("device = cuda: no GPU is visible to this process"),
            count => Ok(Chosen { devices: all(count), why: "as asked".into() }),
        },
        devices => {
            let highest = devices.iter().filter_map(|d| match d {
                DeviceKind::Cuda(ordinal) => Some(*ordinal),
                _ => None,
            });
            if let Some(highest) = highest.max() {
                let count = cuda::count()?;
                if highest >= count {
                    bail!("device = cuda:{highest}: {count} GPUs are visible, numbered from 0");
                }
            }
            Ok(Chosen { devices: devices.to_vec(), why: "as asked".into() })
        }
    }
}

/// `cpu`, `cpu,cpu`, `cuda:0,cuda:1`.
pub fn list(devices: &[DeviceKind]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Why a machine's GPUs are left alone, if it has any.
fn not_used(problem: &str) -> String {
    match nvml::boards(None).map(|b| b.len()) {
        Ok(boards) if boards > 0 => format!("{boards} NVIDIA boards are here and not used: {problem}"),
        _ => "no GPU was found".into(),
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceKind::Auto => f.write_str("auto"),
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::AllCuda => f.write_str("cuda"),
            DeviceKind::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_taken_as_asked_and_gpus_only_where_they_are() {
        let two = [DeviceKind::Cpu, DeviceKind::Cpu];
        assert_eq!(choose(&two).unwrap().devices, two);
        if cfg!(feature = "cuda") {
            return;
        }
        assert_eq!(choose(&[DeviceKind::Auto]).unwrap().devices, [DeviceKind::Cpu]);
        for asked in [DeviceKind::AllCuda, DeviceKind::Cuda(0)] {
            let error = choose(&[asked]).unwrap_err().to_string();
            assert!(error.contains("this build has no CUDA"), "{error}");
        }
    }
}
