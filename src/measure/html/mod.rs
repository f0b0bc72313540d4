//! `report.html`: a [`Report`] → one file that loads nothing, runs nothing and reads on a phone and on paper.
//!
//! Whatever comes from the report is text to be escaped (`markup`): ids and names in it are anybody's. The
//! policy in the head forbids a browser to load or run anything even so.

mod figures;
mod markup;
mod money;
mod tables;
#[cfg(test)]
mod tests;

pub use figures::{Plot, break_even, power, revenue, tokens_per_joule};

use self::markup::{classed, figure, heading, list, paragraph};
use crate::economics::verdict::{Outcome, Verdict};
use crate::measure::plot::escape;
use crate::measure::report::Report;
use crate::measure::table::EXAMPLE;
use crate::power::Method;

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole page.
pub fn render(report: &Report) -> String {
    let title = format!("hashwatt bench: {}, {}", report.model.id, report.created);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        escape(&title),
        include_str!("style.css"),
    );
    page += &banners(report);
    page += &heading(1, &format!("{}: serve, mine or neither", report.model.id));
    page += &verdict(report);
    page += &plots(report);
    page += &heading(2, "Measurements");
    if report.points.is_empty() {
        page += &paragraph("No point was measured.");
    }
    page += &tables::points(report);
    page += &tables::latency(report);
    page += &tables::boards(report);
    page += &economics(report);
    page += &heading(2, "Machine, model, meters");
    page += &tables::setting(report);
    page += &tables::ceilings(report);
    page += &tables::meters(report);
    page += &how_to_read(report);
    page + "</main>\n</body>\n</html>\n"
}

/// Something in it is not real.
fn is_example(report: &Report) -> bool {
    let assumed = |method| method == Method::Assumed;
    let economics = report.economics.as_ref();
    report.example
        || report.points.iter().flat_map(|p| &p.energy).any(|e| assumed(e.method))
        || report.meters.iter().any(|m| assumed(m.method))
        || report.power.iter().any(|p| assumed(p.method))
        || economics.is_some_and(|e| e.outcome.example)
        || economics.is_some_and(|e| e.inputs.market.as_ref().is_some_and(|m| m.example))
        || economics.is_some_and(|e| e.inputs.site.as_ref().is_some_and(|s| s.example))
}

fn banners(report: &Report) -> String {
    let mut out = String::new();
    if is_example(report) {
        out += &classed("banner", &format!("{EXAMPLE}. Something in it is assumed or an example."));
    }
    if !report.complete {
        let because = report.partial_because.as_deref().unwrap_or("the bench did not end");
        out += &classed("banner", &format!("PARTIAL: {because}. What follows is what there was until then."));
    }
    out
}

fn verdict(report: &Report) -> String {
    let Some(outcome) = report.economics.as_ref().map(|e| &e.outcome) else {
        let text = "There is no verdict in this report: the bench ended before its economics were computed.";
        return classed("verdict", "UNKNOWN") + &paragraph(text) + &warnings(&report.warnings);
    };
    let mut out = classed("verdict", &outcome.verdict.to_string());
    if !matches!(outcome.verdict, Verdict::Unknown { .. }) {
        out += &paragraph(if outcome.fully_loaded {
            "All hours, with the price of the unit."
        } else {
            "All hours; the unit is there and paid for."
        });
    }
    out += &paragraph(&outcome.reasons);
    out += &missing(outcome);
    out += &warnings(report.warnings.iter().chain(&outcome.warnings));
    out + &money::rows(outcome)
}

fn missing(outcome: &Outcome) -> String {
    let Verdict::Unknown { reasons } = &outcome.verdict else { return String::new() };
    heading(3, "What is missing") + &list(reasons.iter().map(ToString::to_string))
}

fn warnings<'a>(all: impl IntoIterator<Item = &'a String>) -> String {
    let items = list(all);
    if items.is_empty() { items } else { heading(3, "Warnings") + &items }
}

fn plots(report: &Report) -> String {
    let plots = figures::all(report);
    let drawn: String = plots.iter().map(|p| figure(&p.svg, &p.caption)).collect();
    let mut out = heading(2, "Plots");
    if !drawn.is_empty() {
        out += &format!("<div class=\"plots\">\n{drawn}</div>\n");
    }
    if report.primary.is_none() {
        out += &paragraph("There was no meter: nothing of energy can be drawn.");
    }
    out
}

fn economics(report: &Report) -> String {
    let Some(outcome) = report.economics.as_ref().map(|e| &e.outcome) else { return String::new() };
    heading(2, "Serving and mining") + &money::figures(outcome) + &money::miners(outcome)
}

fn how_to_read(report: &Report) -> String {
    let mut lines = vec![
        "SERVE and MINE hold over the whole interval; NEITHER: standing still earns as much; TOO CLOSE: the \
         interval holds more than one answer; UNKNOWN: what is missing is named, and the arithmetic decides nothing.",
        "All ways are compared per megawatt-hour of the power that is allocated to the unit at the site, after the \
         price of power. A miner could have had that power while the unit idles.",
        "(low to high) is the worst and the best that the inputs allow together: a bound, not a probability.",
        "Marginal: what the unit should do tonight, now that it stands here. Fully loaded: whether to buy it.",
        "Method: counter and integrated are instruments; replayed is a recording; declared is the operator's word; \
         assumed is a nameplate and gives no verdict.",
        "Boundary: GPU board, CPU package and DRAM leave out the rest of the machine; node is the machine at its \
         plug; site includes cooling and losses.",
        "A verdict holds for the concurrency, the lengths and the model it was measured with.",
        "hashwatt report verdict judges this report again under another market, price, contract or utilisation.",
    ];
    if tables::has_prefill(report) {
        lines.push("In prefill rows a token is an input token; their tokens per joule do not compare with the others'.");
    }
    heading(2, "How to read this") + &list(lines)
}
