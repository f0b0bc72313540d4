//! Which devices serve: what was asked for against what is there, and why.

use std::fmt;

use anyhow::bail;

use crate::config::DeviceKind;
use crate::ops::exec::cuda;
use crate::power::nvml;

/// The devices, each an engine, and a word on the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    pub devices: Vec<DeviceKind>,
    pub why: String,
    /// There are boards that nobody asked to be left alone.
    pub leaves_boards: bool,
    /// What was asked for is not there; then nothing is served.
    pub problem: Option<String>,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ({})", list(&self.devices), self.why)
    }
}

/// Kernels are made for cards from this on.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// # Errors
/// A CUDA device where there is none, or none of that number.
pub fn choose(asked: &[DeviceKind]) -> anyhow::Result<Chosen> {
    match asked {
        [DeviceKind::Auto] => Ok(match cuda::count() {
            Ok(count) => of_capabilities((0..count).map(cuda::capability).collect::<Result<Vec<_>, _>>()?),
            Err(problem) => on_cpu(not_used(&problem.to_string())),
        }),
        [DeviceKind::AllCuda] => match cuda::count()? {
            0 => bail!("device = cuda: no GPU is visible to this process"),
            count => Ok(as_asked((0..count).map(DeviceKind::Cuda).collect())),
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
            Ok(as_asked(devices.to_vec()))
        }
    }
}

fn as_asked(devices: Vec<DeviceKind>) -> Chosen {
    Chosen { devices, why: "as asked".into(), ..Chosen::default() }
}

fn on_cpu((why, leaves_boards): (String, bool)) -> Chosen {
    Chosen { devices: vec![DeviceKind::Cpu], why, leaves_boards, problem: None }
}

/// All visible GPUs that there are kernels for, by their compute capabilities.
fn of_capabilities(capabilities: Vec<(i32, i32)>) -> Chosen {
    let count = capabilities.len();
    let (new, old): (Vec<_>, Vec<_>) =
        capabilities.into_iter().enumerate().partition(|(_, capability)| *capability >= LEAST_CAPABILITY);
    let named = |(i, (major, minor)): &(usize, (i32, i32))| format!("cuda:{i} of {major}.{minor}");
    let left = old.iter().map(named).collect::<Vec<_>>().join(", ");
    let least = format!(
        "kernels are made for compute capability {}.{} and newer",
        LEAST_CAPABILITY.0, LEAST_CAPABILITY.1
    );
    match (new.is_empty(), old.is_empty()) {
        (true, true) => on_cpu(("no GPU is visible".into(), false)),
        (true, false) => on_cpu((format!("not {left}: {least}"), true)),
        (false, is_all) => Chosen {
            devices: new.iter().map(|(i, _)| DeviceKind::Cuda(*i)).collect(),
            why: match is_all {
                true => format!("all {count} visible GPUs"),
                false => format!("{} of {count} visible GPUs, not {left}: {least}", new.len()),
            },
            leaves_boards: !is_all,
            problem: None,
        },
    }
}

/// `cpu`, `cpu,cpu`, `cuda:0,cuda:1`.
pub fn list(devices: &[DeviceKind]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Why a machine's GPUs are left alone, and whether it has any.
fn not_used(problem: &str) -> (String, bool) {
    match nvml::boards(None).map(|b| b.len()) {
        Ok(boards) if boards > 0 => {
            (format!("{boards} NVIDIA boards are here and not used: {problem}"), true)
        }
        _ => ("no GPU was found".into(), false),
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
    fn gpus_that_there_are_no_kernels_for_are_left_alone_and_named() {
        let all = of_capabilities(vec![(9, 0), (8, 6)]);
        assert_eq!(all.to_string(), "cuda:0,cuda:1 (all 2 visible GPUs)");
        let some = of_capabilities(vec![(7, 5), (8, 9)]);
        assert_eq!(some.devices, [DeviceKind::Cuda(1)]);
        assert!(some.leaves_boards && some.why.contains("1 of 2 visible GPUs, not cuda:0 of 7.5"), "{some}");
        let none = of_capabilities(vec![(7, 0)]);
        assert!(none.devices == [DeviceKind::Cpu] && none.leaves_boards, "{none}");
        assert!(!of_capabilities(Vec::new()).leaves_boards);
    }

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
