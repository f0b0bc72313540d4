//! What is measured, and of what.

use std::path::Path;

use super::*;
use crate::cli::room;
use crate::config::Resolved;
use crate::measure::report::{self, Gpu, Kind, Report, Setting};
use crate::measure::testing;
use crate::power::{Boundary, Method};

/// A bench of `synthetic:llama-3.1-8b` on an H100: 1970 tokens for 100 joules.
fn measured() -> Report {
    let device = Setting { name: "device".into(), value: "cuda:0".into() };
    let mut report = testing::report();
    report.model = report::Model {
        id: "synthetic:llama-3.1-8b".into(),
        dtype: Some("bf16".into()),
        ..report::Model::default()
    };
    report.target = report::Target::InProcess { settings: vec![device] };
    report.hardware.gpus = vec![Gpu { name: "NVIDIA H100 80GB HBM3".into(), ..Gpu::default() }];
    report.points = vec![testing::point(Kind::Concurrency, 64, 1970.0, 100.0)];
    report
}

/// What is said of a card, with reports in a folder and the example market.
fn answer(folder: &Path, gpu: &str) -> Row {
    let market = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/market.example.toml");
    let reports = folder.to_str().unwrap();
    let arguments = ["fit", "--gpu", gpu, "--reports", reports, "--market", market];
    let matches = command().try_get_matches_from(arguments).unwrap();
    let config = Resolved::merge(&[], &[]).unwrap().config().unwrap();
    let money = Money::read(&matches).unwrap();
    let question = Question { config: &config, context: None, money: &money };
    let target = target::targets(&config, &matches).unwrap().remove(0);
    let pool = Arc::new(Pool::new(1));
    let checkpoint = Checkpoint::open("synthetic:llama-3.1-8b", &pool).unwrap();
    Row::of(&question, &checkpoint, Some("meta-llama/Llama-3.1-8B"), Quantize::AsStored, &target)
}

#[test]
fn a_report_of_the_same_model_type_and_card_is_what_counts() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, report: &Report| {
        std::fs::write(folder.path().join(name), serde_json::to_string(report).unwrap()).unwrap();
    };
    let basis = |gpu: &str| answer(folder.path(), gpu).speed.unwrap().basis;
    assert_eq!(basis("H100 SXM"), "roofline");
    put("report.json", &measured());
    let row = answer(folder.path(), "H100 SXM");
    let speed = row.speed.unwrap();
    assert_eq!((speed.basis.as_str(), speed.boundary.as_str()), ("measured", "cpu_package"));
    assert_eq!((speed.output_tokens_per_second, speed.concurrency), (1970.0, 64));
    assert_eq!(speed.output_tokens_per_joule, 19.7);
    // As many input tokens as output tokens were sold: 0.02 and 0.03 dollars a million.
    let earned = 19.7 * 3.6e6 * (0.02 + 0.03) * 1e-6;
    assert!((row.serving_usd_per_kwh.unwrap() / earned - 1.0).abs() < 1e-9);
    // Another card, two of them, another type, another server, an example, half a bench: each is another matter.
    assert_eq!((basis("H100 PCIe"), basis("H100 SXMx2")), ("roofline".into(), "roofline".into()));
    let others: [fn(&mut Report); 5] = [
        |r| r.model.dtype = Some("fp8".into()),
        |r| r.target = report::Target::Url { url: "http://h".into(), server: None },
        |r| r.example = true,
        |r| r.complete = false,
        |r| r.model.id = "Qwen3-8B".into(),
    ];
    for change in others {
        let mut other = measured();
        change(&mut other);
        put("report.json", &other);
        assert_eq!(basis("H100 SXM"), "roofline");
    }
    // By the name of its folder; the newer of two; watts that nobody measured are called what they are.
    let mut newer = measured();
    newer.model.id = "Llama-3.1-8B".into();
    newer.created_unix_seconds += 1;
    newer.primary = Some(report::Scope { boundary: Boundary::CpuPackage, method: Method::Declared });
    newer.points[0].energy[0].method = Method::Declared;
    newer.points[0].energy[0].measured = false;
    put("report.json", &measured());
    put("report-2.json", &newer);
    assert_eq!(basis("H100 SXM"), "declared");
    std::fs::write(folder.path().join("report-3.json"), "{}").unwrap();
    assert_eq!(basis("H100 SXM"), "declared");
}

/// `serve` takes the contexts that `models fit` says there is room for, and no others.
#[test]
fn long_contexts_are_there_where_they_are_asked_for() {
    let pool = Arc::new(Pool::new(1));
    let opened = |asked: Option<usize>| {
        let flag = asked.map(|n| ("max-model-len", n.to_string()));
        let config = Resolved::merge(flag.as_slice(), &[]).unwrap().config().unwrap();
        let mut checkpoint = Checkpoint::open("synthetic:phi-4-mini", &pool).unwrap();
        checkpoint.spec.settle_context(config.max_model_len);
        let cache = room::Cache::of(&config, &checkpoint, None, 64 << 30);
        cache.map(|cache| cache.max_model_len).map_err(|e| e.to_string())
    };
    assert_eq!((opened(None), opened(Some(4096)), opened(Some(4097))), (Ok(4096), Ok(4096), Ok(4097)));
    assert_eq!(opened(Some(131_072)), Ok(131_072));
    assert!(opened(Some(131_073)).unwrap_err().contains("131072 tokens"));
    let matches = command().try_get_matches_from(["fit", "--gpu", "H100 SXM"]).unwrap();
    let config = Resolved::merge(&[], &[]).unwrap().config().unwrap();
    let money = Money::read(&matches).unwrap();
    let target = target::targets(&config, &matches).unwrap().remove(0);
    let checkpoint = Checkpoint::open("synthetic:phi-4-mini", &pool).unwrap();
    for (context, wanted) in [(None, 4096), (Some(131_072), 131_072)] {
        let question = Question { config: &config, context, money: &money };
        let row = Row::of(&question, &checkpoint, None, Quantize::AsStored, &target);
        let room = row.cache.unwrap();
        assert_eq!((room.context_tokens, room.longest_context_tokens), (wanted, 131_072));
    }
}

#[test]
fn the_cache_of_a_processor_leaves_room_for_all_weights_that_are_made() {
    let pool = Arc::new(Pool::new(1));
    let config = Resolved::merge(&[], &[]).unwrap().config().unwrap();
    let [large, small] = ["synthetic:qwen3-0.6b", "synthetic:smollm2-135m"]
        .map(|model| Checkpoint::open(model, &pool).unwrap());
    let [of_large, of_small] = [&large, &small].map(|model| crate::cli::held::weight_bytes(&config, model).0);
    let cache = |draft, available| room::processor_cache(&config, &large, draft, available);
    let tight = of_large + of_small + 1000;
    assert_eq!((cache(Some(&small), tight), cache(None, tight)), (1000, of_small + 1000));
    assert_eq!(cache(Some(&small), 8 * tight), 2 * tight);
}
