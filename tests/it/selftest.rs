//! The self-test on the CPU, and on the kernels run on the host; and that it notices what is wrong.

use std::sync::Arc;

use candle_core::Result;
use hashwatt::model::decoder::Precision;
use hashwatt::ops::exec::Exec;
use hashwatt::ops::launch::{ArrayKind, Captured, Launch, Launcher, Product};
use hashwatt::selftest::{Outcome, Size, model, operations};

use crate::host_kernels::kernels;
use crate::support::{decoder, llama};

fn all_pass(outcomes: &[Outcome]) {
    for o in outcomes {
        assert!(o.passed(), "{}: {}: {} of the tolerance: {}", o.operation, o.case, o.error, o.worst);
    }
}

#[test]
fn the_cpus_operations_pass() {
    let all = operations(&Exec::cpu(2), Size::Full, &|_| true);
    all_pass(&all);
    let names: std::collections::BTreeSet<_> = all.iter().map(|o| o.operation).collect();
    assert_eq!(names.len(), 15, "{names:?}");
    assert_eq!(operations(&Exec::cpu(1), Size::Small, &|name| name == "linear").len(), 12);
}

#[test]
fn a_model_passes_beside_itself() {
    let [fine, coarse] = [Precision::F32, Precision::Bf16].map(|p| decoder(&llama(1), p));
    let on = Exec::cpu(2);
    all_pass(&[
        model::parity("small", &fine, &coarse, &on),
        model::repeats("small", &coarse, &on, 3),
        model::company("small", &coarse, &on, 64),
    ]);
    let layers = model::layers("small", &fine, &coarse, &on);
    assert_eq!(layers.len(), fine.spec().layers);
    all_pass(&layers);
    // Another model is noticed, in each of its layers.
    let other = decoder(&llama(2), Precision::F32);
    assert!(!model::parity("other", &fine, &other, &on).passed());
    assert!(model::layers("other", &fine, &other, &on).iter().all(|o| !o.passed()));
}

#[test]
fn the_kernels_pass_as_a_device() {
    let Some(on) = kernels() else { return };
    let all = operations(&on, Size::Small, &|_| true);
    all_pass(&all);
    assert!(all.iter().any(|o| o.operation == "norm_product"));
    let mut config = llama(2);
    config["num_hidden_layers"] = 1.into();
    let there = Arc::new(decoder(&config, Precision::Bf16).on_device(&on.device).unwrap());
    all_pass(&model::graphs("small", &there, &on, 3, &|| None));
    // Where the batch must not matter there are no products of other widths.
    config["intermediate_size"] = 320.into();
    let there = Arc::new(decoder(&config, Precision::Bf16).on_device(&on.device).unwrap());
    all_pass(&[model::company("small", &there, &on, 64)]);
    all_pass(&model::layers("small", &decoder(&config, Precision::F32), &there, &on));
}

/// Passes everything on, but loses the last block of each launch of one kernel. (Those of `gemv` share the work of any
/// number of blocks.)
struct Broken(Arc<dyn Launcher>, &'static str);

impl Launcher for Broken {
    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let mut launch = launch.clone();
        if launch.kernel.starts_with(self.1) {
            launch.grid[0] -= launch.grid[0].min(1);
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(&launch) }
    }
    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.product(product) }
    }
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy(to, from, bytes) }
    }
    fn mirror(&self, kind: ArrayKind, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()> {
        self.0.mirror(kind, arrays, addresses)
    }
    unsafe fn read(&self, from: u64, to: &mut [f32]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.read(from, to) }
    }
    unsafe fn fetch(&self, from: u64, words: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.fetch(from, words) }
    }
    fn collect(&self, to: &mut [u32]) -> Result<()> {
        self.0.collect(to)
    }
    fn room(&self, bytes: usize) -> Result<u64> {
        self.0.room(bytes)
    }
    fn begin_capture(&self) -> Result<()> {
        self.0.begin_capture()
    }
    fn end_capture(&self) -> Result<Box<dyn Captured>> {
        self.0.end_capture()
    }
}

#[test]
fn kernels_that_lose_a_block_are_noticed() {
    let Some(on) = kernels() else { return };
    for (kernel, operation) in [
        ("gather", "gather"),
        ("rms_norm", "rms_norm"),
        ("rope_angles", "rope_angles"),
        ("rope_kv_write", "rope_kv_write"),
        ("attention", "paged_attention"),
        ("silu_mul", "gate_mul"),
        ("route_choose", "experts"),
        ("route_lay_out", "experts"),
        ("group_rows", "experts"),
        ("combine", "experts"),
        ("gate_rows", "gate_rows"),
        ("soft_cap", "soft_cap"),
        ("sample_pick", "sample"),
    ] {
        let launcher = on.launcher.clone().unwrap();
        let broken = Exec { launcher: Some(Arc::new(Broken(launcher, kernel))), ..on.clone() };
        let all = operations(&broken, Size::Small, &|name| name == operation);
        assert!(all.iter().any(|o| !o.passed()), "{kernel} lost a block and nothing was noticed");
    }
}
