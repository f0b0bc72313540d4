//! Tells a release build which commit it is made from, so that reports can say it (`HASHWATT_COMMIT`).
//! Development builds do not ask: they would be made anew after each commit.

#![allow(clippy::disallowed_methods)] // cargo speaks to a build script through the environment

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    println!("cargo:rerun-if-changed=src");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    // Only of this repository: a source archive unpacked inside another one is not that one's commit.
    let own = git(&["rev-parse", "--show-toplevel"]) == std::env::var("CARGO_MANIFEST_DIR").ok();
    if let Some(commit) = own.then(|| git(&["describe", "--always", "--dirty", "--abbrev=12"])).flatten() {
        println!("cargo:rustc-env=HASHWATT_COMMIT={commit}");
    }
}
