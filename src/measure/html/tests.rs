//! The page against a strict little checker, with friendly and with hostile reports.

use proptest::prelude::*;

use super::*;
use crate::economics::estimate::Estimate;
use crate::economics::market::Market;
use crate::economics::site::Site;
use crate::measure::economics::{Given, judge};
use crate::measure::report::*;
use crate::measure::testing;
use crate::power::{Boundary, Method};

/// What the page may hold.
const ELEMENTS: &[&str] = &[
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "p",
    "h1",
    "h2",
    "h3",
    "ul",
    "li",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "figcaption",
    "svg",
    "desc",
    "line",
    "polyline",
    "polygon",
    "rect",
    "circle",
    "text",
];
const ATTRIBUTES: &[&str] = &[
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "class",
    "tabindex",
    "scope",
    "xmlns",
    "viewBox",
    "role",
    "x",
    "y",
    "dy",
    "width",
    "height",
    "x1",
    "y1",
    "x2",
    "y2",
    "cx",
    "cy",
    "r",
    "points",
    "fill",
    "stroke",
    "stroke-width",
    "opacity",
    "font-family",
    "font-size",
    "font-weight",
    "text-anchor",
    "transform",
];
const VOID: &[&str] = &["meta"];

/// Tags balanced, nothing but what is listed, every attribute quoted, no stray `<`, `>` or `&` in text.
/// Gives the text of each element of a kind, in order, with the texts inside it.
fn check(page: &str) -> Vec<(String, String)> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("no doctype");
    let mut open: Vec<(String, String)> = Vec::new();
    let mut closed = Vec::new();
    while let Some((text, after)) = rest.split_once('<') {
        if open.last().is_none_or(|(name, _)| name != "style") {
            text_is_plain(text);
        }
        open.iter_mut().for_each(|(_, inner)| inner.push_str(text));
        let (tag, after) = after.split_once('>').expect("an open tag");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let (opened, inner) = open.pop().unwrap_or_else(|| panic!("</{name}> closes nothing"));
            assert_eq!(opened, name, "unbalanced");
            closed.push((opened, inner));
            continue;
        }
        let (tag, itself) = tag.strip_suffix('/').map_or((tag, false), |t| (t, true));
        let name = tag.split_whitespace().next().unwrap();
        assert!(ELEMENTS.contains(&name), "<{name}> is not allowed");
        let attributes = attributes(tag[name.len()..].trim());
        if name == "svg" {
            let has = |n: &str| attributes.iter().any(|(name, _)| name == n);
            assert!(has("viewBox") && has("role") && !has("width") && !has("height"), "{tag}");
        }
        if !itself && !VOID.contains(&name) {
            open.push((name.into(), String::new()));
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    assert!(rest.trim().is_empty());
    closed
}

fn attributes(mut tag: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    while !tag.is_empty() {
        let (name, rest) = tag.split_once("=\"").unwrap_or_else(|| panic!("attribute without quotes: {tag}"));
        let (value, rest) = rest.split_once('"').expect("attribute without an end");
        assert!(ATTRIBUTES.contains(&name), "attribute {name} is not allowed: {tag}");
        text_is_plain(value);
        let loads = value.contains("url(") || value.contains("://") || value.contains("javascript:");
        assert!(!loads || (name == "xmlns" && value == "http://www.w3.org/2000/svg"), "{name}={value}");
        all.push((name.to_owned(), value.to_owned()));
        tag = rest.trim_start();
    }
    all
}

fn text_is_plain(text: &str) {
    assert!(!text.contains(['<', '>', '"']), "{text}");
    let known = ["amp;", "lt;", "gt;", "quot;", "#39;", "apos;"];
    for after in text.split('&').skip(1) {
        assert!(known.iter().any(|k| after.starts_with(k)), "a stray & in {text}");
    }
    let hidden = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(hidden), "{text:?}");
}

fn real() -> Given {
    let mut market = Market::parse(include_str!("../../../benches/market.example.toml")).unwrap();
    let mut site = Site::parse(include_str!("../../../benches/site.example.toml")).unwrap();
    (market.example, site.example) = (false, false);
    Given { market: Some(market), site: Some(site), ..Given::default() }
}

/// One of everything.
fn full() -> Report {
    let mut report = testing::report();
    report.model.id = "Qwen3-8B".into();
    report.points = [(1, 102.0, 300.0), (8, 780.0, 480.0), (32, 2900.0, 560.0), (128, 8200.0, 640.0)]
        .map(|(at, rate, watts)| testing::point(Kind::Concurrency, at, rate, watts))
        .into();
    report.points.push(testing::point(Kind::Prefill, 1, 30_000.0, 690.0));
    report.points.push(Point { duty: Some(0.5), ..testing::point(Kind::Duty, 32, 1450.0, 320.0) });
    report
        .points
        .push(Point { power_cap_watts: Some(400.0), ..testing::point(Kind::PowerCap, 32, 2300.0, 400.0) });
    report.points.push(testing::point(Kind::Sustained, 128, 8100.0, 640.0));
    for (i, point) in report.points.iter_mut().enumerate() {
        point.start_seconds = 10.0 + 60.0 * i as f64;
        point.boards =
            vec![Board { meter: "nvml:0".into(), temperature_celsius: Some(61.0), ..Board::default() }];
        let energy = &mut point.energy[0];
        (energy.boundary, energy.meter) = (Boundary::GpuBoard, "nvml:0 NVIDIA H100".into());
        energy.idle_subtracted_tokens_per_joule = energy.tokens_per_joule.map(|e| e.scaled(1.15));
    }
    report.primary = Some(Scope { boundary: Boundary::GpuBoard, method: Method::Counter });
    report.meters = vec![Meter {
        name: "nvml:0 NVIDIA H100".into(),
        boundary: Boundary::GpuBoard,
        method: Method::Counter,
        period_seconds: 0.1,
        lag_seconds: 0.05,
        gain_error: 0.05,
        problem: None,
    }];
    report.idle = vec![Idle {
        meter: "nvml:0 NVIDIA H100".into(),
        boundary: Boundary::GpuBoard,
        method: Method::Counter,
        watts_before: Some(78.0),
        watts_after: Some(84.0),
    }];
    let watts = |t: f64| {
        let at = report.points.iter().find(|p| (p.start_seconds..p.start_seconds + p.seconds).contains(&t));
        at.map_or(80.0, |p| p.energy[0].watts.value) + (t * 7.3).sin() * 6.0
    };
    let seconds_watts = (0..5000).map(|i| f64::from(i) / 10.0).map(|t| [t, watts(t)]).collect();
    report.power = vec![PowerTrace {
        meter: "nvml:0 NVIDIA H100".into(),
        boundary: Boundary::GpuBoard,
        method: Method::Counter,
        seconds_watts,
    }];
    report.hardware.gpus = vec![Gpu { name: "NVIDIA H100".into(), ..Gpu::default() }];
    report.economics = Some(judge(&report, real(), 1_782_432_000 + 3600).unwrap());
    report
}

fn texts<'a>(all: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    all.iter().filter(|(n, _)| n == name).map(|(_, text)| text.as_str()).collect()
}

#[test]
fn the_page_loads_nothing_and_says_what_each_figure_is() {
    let report = full();
    let page = render(&report);
    let elements = check(&page);
    assert_eq!(texts(&elements, "svg").len(), 4, "efficiency, revenue, break-even, power");
    let captions = texts(&elements, "figcaption");
    assert_eq!(captions.len(), texts(&elements, "figure").len());
    assert_eq!(captions.len(), 4 + texts(&elements, "table").len());
    assert!(captions.len() >= 11, "{captions:#?}");
    for caption in captions {
        let lower = caption.to_lowercase();
        let says = lower.contains("method") && lower.contains("boundary");
        assert!(says || lower.contains("no energy"), "{caption}");
    }
    assert!(page.contains("default-src 'none'; style-src 'unsafe-inline'"));
    assert_eq!(page.matches("<style>").count(), 1);
    for loads in ["@import", "url(", "src=", "href="] {
        assert!(!page.contains(loads), "{loads}");
    }
    let verdict = &report.economics.as_ref().unwrap().outcome;
    assert!(page.contains(&format!("<p class=\"verdict\">{}</p>", verdict.verdict)));
    assert!(page.contains(&escape(&verdict.reasons)));
    assert!(!page.contains("class=\"banner\""));
    for point in &report.points {
        assert!(page.contains(&crate::measure::table::label(point)));
    }
}

#[test]
fn what_is_assumed_or_partial_is_headed_so() {
    let banner = |change: &dyn Fn(&mut Report)| {
        let mut report = full();
        change(&mut report);
        let page = render(&report);
        texts(&check(&page), "p").into_iter().take(2).collect::<Vec<_>>().join("; ")
    };
    assert!(!banner(&|_| ()).contains("EXAMPLE"));
    type Change<'a> = &'a dyn Fn(&mut Report);
    let examples: [Change; 5] = [
        &|r| r.example = true,
        &|r| r.points[2].energy[0].method = Method::Assumed,
        &|r| r.meters[0].method = Method::Assumed,
        &|r| r.economics.as_mut().unwrap().inputs.market.as_mut().unwrap().example = true,
        &|r| r.economics.as_mut().unwrap().inputs.site.as_mut().unwrap().example = true,
    ];
    for change in examples {
        assert!(banner(change).starts_with("EXAMPLE"));
    }
    let partial = banner(&|r| (r.complete, r.partial_because) = (false, Some("interrupted".into())));
    assert!(partial.contains("PARTIAL: interrupted"), "{partial}");
}

#[test]
fn a_report_with_nothing_in_it_is_a_page() {
    let mut report = testing::report();
    (report.primary, report.complete) = (None, false);
    let page = render(&report);
    let elements = check(&page);
    assert!(texts(&elements, "svg").is_empty());
    assert!(page.contains("There was no meter") && page.contains(">UNKNOWN<"), "{page}");
    // Without a market there is still the efficiency.
    let mut report = full();
    report.economics = Some(judge(&report, Given::default(), 0).unwrap());
    report.economics.as_mut().unwrap().inputs.market = None;
    assert!(texts(&check(&render(&report)), "h3").contains(&"What is missing"));
}

/// Every string of the report becomes this one.
fn poisoned(poison: &str) -> Report {
    fn walk(value: &mut serde_json::Value, poison: &str) {
        match value {
            serde_json::Value::String(s) => *s = poison.to_owned(),
            serde_json::Value::Array(all) => all.iter_mut().for_each(|v| walk(v, poison)),
            serde_json::Value::Object(all) => {
                // Names of variants are not free text.
                const FIXED: [&str; 6] = ["kind", "method", "boundary", "verdict", "hours", "missing"];
                all.iter_mut()
                    .filter(|(k, _)| !FIXED.contains(&k.as_str()))
                    .for_each(|(_, v)| walk(v, poison));
            }
            _ => {}
        }
    }
    let mut value = serde_json::to_value(full()).unwrap();
    walk(&mut value, poison);
    let mut report: Report = serde_json::from_value(value).unwrap();
    let figures = report.economics.as_mut().unwrap().outcome.serving.as_mut().unwrap();
    (figures.allocated_usd_per_mwh.method, figures.allocated_usd_per_mwh.boundary) =
        (poison.into(), poison.into());
    report
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn hostile_names_never_break_out(
        head in prop::sample::select(vec![
            "<script>alert(1)</script>", "</title></style></svg><img src=x onerror=alert(1)>", "\" onload=\"x", "' x='",
            "<!--", "-->", "]]>", "&lt;b&gt;", "&#60;", "\u{202e}txet", "\0\u{1b}[31m", "javascript:alert(1)", "",
        ]),
        tail in ".{0,60}",
    ) {
        let page = render(&poisoned(&format!("{head}{tail}")));
        let elements = check(&page);
        prop_assert!(texts(&elements, "script").is_empty());
        prop_assert_eq!(texts(&elements, "svg").len(), 4);
    }

    /// Numbers of a foreign report may be anything that JSON can say.
    #[test]
    fn hostile_numbers_draw_or_stay_away(
        a in prop::num::f64::NORMAL | prop::num::f64::ZERO, b in prop::num::f64::NORMAL, at in 0u32..u32::MAX
    ) {
        let mut report = full();
        for point in &mut report.points {
            (point.concurrency, point.start_seconds, point.seconds) = (at, a, b);
            point.energy[0].tokens_per_joule = Some(Estimate { value: a, low: b, high: a });
        }
        report.power[0].seconds_watts = vec![[a, b], [b, a]];
        let outcome = &mut report.economics.as_mut().unwrap().outcome;
        outcome.miners[0].meter_usd_per_mwh.value = a;
        outcome.curve[3].marginal.low = b;
        check(&render(&report));
    }
}
