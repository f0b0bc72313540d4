//! The criterion suites, as one binary: `cargo bench --bench hashwatt`.
//!
//! `decode` measures seconds per engine step on the demo model; `economics` repeats it in joules, on
//! assumed watts, and prints what the tokens would earn beside three mining machines, headed EXAMPLE.

#[path = "suites/decode.rs"]
mod decode;
#[path = "suites/economics.rs"]
mod economics;
#[path = "suites/joules.rs"]
mod joules;

fn main() {
    let mut seconds = criterion::Criterion::default().configure_from_args();
    decode::run(&mut seconds);
    seconds.final_summary();
    economics::run();
}
