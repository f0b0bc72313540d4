//! Tells a release build which commit it is made from, so that reports can say it (`BUILT_FROM_COMMIT`), and with
//! the feature `cuda` compiles the kernels of `src/ops/cuda` for every architecture that is served.
//! Development builds do not ask for the commit: they would be made anew after each one.

#![allow(clippy::disallowed_methods)] // cargo speaks to a build script through the environment

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels::compile();
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        commit();
    }
}

fn commit() {
    println!("cargo:rerun-if-changed=src");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    // Only of this repository: a source archive unpacked inside another one is not that one's commit.
    let own = git(&["rev-parse", "--show-toplevel"]) == std::env::var("CARGO_MANIFEST_DIR").ok();
    if let Some(commit) = own.then(|| git(&["describe", "--always", "--dirty", "--abbrev=12"])).flatten() {
        // Without the prefix of settings: `cargo run` hands this variable to the program too.
        println!("cargo:rustc-env=BUILT_FROM_COMMIT={commit}");
    }
}

#[cfg(feature = "cuda")]
mod kernels {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Ampere (A100, consumer), Ada, Hopper, Blackwell (data centre, consumer).
    const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100a", "120a"];
    /// Fewer of them, as `80 90a`, for a build that is used at home only: the code for what lies between covers the rest.
    const ARCHITECTURES_SET: &str = "CUDA_KERNEL_ARCHITECTURES";
    const SOURCES: &str = "src/ops/cuda";

    /// Writes `kernels.rs`: a list of fatbins, one a source.
    pub fn compile() {
        println!("cargo:rerun-if-changed={SOURCES}");
        println!("cargo:rerun-if-env-changed={ARCHITECTURES_SET}");
        let set = std::env::var(ARCHITECTURES_SET).ok();
        let architectures: Vec<&str> = match &set {
            Some(set) => set.split_whitespace().collect(),
            None => ARCHITECTURES.to_vec(),
        };
        let toolkit =
            cudaforge::CudaToolkit::detect().expect("the feature `cuda` wants the CUDA toolkit (nvcc)");
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names the folder for output"));
        let all = std::fs::read_dir(SOURCES).expect("the folder of kernels is there");
        let mut sources: Vec<PathBuf> = all.filter_map(|e| Some(e.ok()?.path())).collect();
        sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
        sources.sort();
        let running: Vec<_> = sources
            .iter()
            .map(|source| {
                let fatbin =
                    out.join(source.file_stem().expect("a source has a name")).with_extension("fatbin");
                (start(&toolkit.nvcc_path, &architectures, source, &fatbin), source, fatbin)
            })
            .collect();
        let mut list = String::from("pub static FATBINS: &[&[u8]] = &[\n");
        for (mut child, source, fatbin) in running {
            let status = child.wait().expect("nvcc was started");
            assert!(status.success(), "nvcc failed on {}", source.display());
            list += &format!("    include_bytes!({fatbin:?}),\n");
        }
        std::fs::write(out.join("kernels.rs"), list + "];\n").expect("the folder for output can be written");
    }

    fn start(nvcc: &Path, architectures: &[&str], source: &Path, fatbin: &Path) -> std::process::Child {
        let mut command = Command::new(nvcc);
        command.args(["-fatbin", "-std=c++17", "-O3", "-o"]).arg(fatbin).arg(source);
        for architecture in architectures {
            command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
        }
        // For devices between and after these: the driver takes the highest that a device has. From 9.0 on kernels
        // must wait for the one in front of them (device.cuh), so those devices get code that does.
        for portable in ["80", "90"] {
            command.arg(format!("-gencode=arch=compute_{portable},code=compute_{portable}"));
        }
        // What is set for candle's kernels is not meant for these.
        command.env_remove("NVCC_APPEND_FLAGS");
        command.spawn().expect("nvcc starts")
    }
}
