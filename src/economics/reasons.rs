//! The paragraph under a verdict: [`Outcome`] → words that an operator can read and check.

use super::estimate::{Estimate, Figure};
use super::gaps::Complete;
use super::market::Market;
use super::verdict::{BreakEven, Comparison, Hours, NEVER_ABOVE, Outcome, Row, Verdict};

pub(super) fn paragraph(outcome: &Outcome, complete: &Complete) -> String {
    let mut parts = Vec::new();
    if let Verdict::Unknown { reasons } = &outcome.verdict {
        let names: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        parts.push(format!("UNKNOWN. Missing: {}.", names.join("; ")));
        if !outcome.rows.is_empty() {
            parts.push("What follows shows the arithmetic and decides nothing.".into());
        }
    }
    if !outcome.taken.is_empty() {
        parts.push(format!("Taken instead: {}.", outcome.taken.join("; ")));
    }
    if let Some(row) = outcome.rows.first() {
        parts.push(headline(outcome, complete, row));
        parts.push(break_evens(chosen(outcome, row)));
        parts.extend(firm_differs(outcome));
        parts.extend(capital_differs(outcome, row));
        parts.push(rests_on(outcome, complete));
    }
    parts.join(" ")
}

fn chosen<'a>(outcome: &Outcome, row: &'a Row) -> &'a Comparison {
    match &row.loaded {
        Some(loaded) if outcome.fully_loaded => loaded,
        _ => &row.marginal,
    }
}

fn span(figure: &Figure) -> String {
    format!("{} ({} to {})", dollars(figure.value), dollars(figure.low), dollars(figure.high))
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = if value > 0.0 { (2.0 - value.log10().floor()).clamp(0.0, 9.0) } else { 0.0 };
    format!("{value:.*}", digits as usize)
}

/// `$1,234`, cents below a hundred.
pub(super) fn dollars(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    let magnitude = value.abs();
    if magnitude < 99.995 {
        return format!("{sign}${magnitude:.2}");
    }
    let digits = format!("{magnitude:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    format!("{sign}${out}")
}

fn headline(outcome: &Outcome, complete: &Complete, row: &Row) -> String {
    let c = chosen(outcome, row);
    let best = complete.own.iter().min_by(|a, b| a.efficiency().0.total_cmp(&b.efficiency().0));
    let machine = best.map_or("mining", |m| &m.name);
    let serving = outcome.serving.as_ref();
    let model = serving.map_or("", |s| s.model.as_str());
    let at_once = serving.map_or(0, |s| s.concurrency);
    let capital = if outcome.fully_loaded { "capital counted" } else { "capital sunk" };
    let u = complete.utilisation;
    let judged = match &outcome.verdict {
        Verdict::Serve => "Serving leads over the whole interval: SERVE.",
        Verdict::Mine => "Mining leads over the whole interval: MINE.",
        Verdict::Neither => "Neither earns more than standing still, anywhere in the interval: NEITHER.",
        Verdict::TooClose => "The interval holds more than one answer: TOO CLOSE.",
        Verdict::Unknown { .. } => "",
    };
    // It earns what standing still does because it does stand still.
    let mining = match c.mine.high <= c.off.high {
        true => format!("{machine} would earn less than standing still"),
        false => format!("{machine} earns {}", span(&c.mine)),
    };
    let range = match u.low == u.high {
        true => String::new(),
        false => format!(", {:.0} to {:.0}", u.low * 100.0, u.high * 100.0),
    };
    let text = format!(
        "Per MWh of allocated power, after power and with {capital}, serving {model} ({at_once} at once, {:.0} % \
         utilised{range}) earns {}; {mining}; standing still earns {}. {judged}",
        u.value * 100.0,
        span(&c.serve),
        dollars(c.off.value),
    );
    text.trim_end().into()
}

fn break_evens(c: &Comparison) -> String {
    let BreakEven { utilisation, price_factor, output_price, hashprice } = &c.break_even;
    let mut met = Vec::new();
    if let Some(u) = utilisation.as_ref().filter(|u| u.value < NEVER_ABOVE) {
        let note = if u.value > 1.0 { ", which cannot be reached" } else { "" };
        met.push(format!("a utilisation of {:.1} %{note}", u.value * 100.0));
    }
    if let Some(factor) = price_factor {
        let output = output_price.as_ref();
        let output =
            output.map_or(String::new(), |p| format!(" (${} per million of output)", short(p.value)));
        met.push(format!("all token prices × {}{output}", short(factor.value)));
    }
    if let Some(price) = hashprice {
        met.push(format!("a hashprice of {:.2} $/PH/day", price.value));
    }
    match met.as_slice() {
        [] => "No single input makes the two sides meet.".into(),
        _ => format!("Moved alone, the sides meet at {}.", met.join(", or ")),
    }
}

fn firm_differs(outcome: &Outcome) -> Option<String> {
    let of = |hours| outcome.rows.iter().find(|r| r.hours == hours).map(|r| chosen(outcome, r));
    let (firm, loose) = (of(Hours::Firm)?, of(Hours::Interruptible)?);
    let lost = loose.serve.value - firm.serve.value;
    let verdicts = match &firm.verdict {
        Verdict::Unknown { .. } => String::new(),
        verdict => format!(" Firm hours alone: {verdict}; interruptible ones: {}.", loose.verdict),
    };
    (lost > 0.005).then(|| {
        format!(
            "A promise to run costs {} per MWh: in firm hours serving pays every hour's price and gives up the \
             credit, in interruptible ones it may stop.{verdicts}",
            dollars(lost),
        )
    })
}

fn capital_differs(outcome: &Outcome, row: &Row) -> Option<String> {
    let loaded = row.loaded.as_ref()?;
    let (named, other) = match outcome.fully_loaded {
        true => ("With capital sunk", &row.marginal),
        false => ("With capital counted", loaded),
    };
    let verdict = match &other.verdict {
        Verdict::Unknown { .. } => String::new(),
        verdict if *verdict == outcome.verdict => format!(": also {verdict}"),
        verdict => format!(": {verdict}"),
    };
    Some(format!("{named} serving earns {}{verdict}.", span(&other.serve)))
}

fn rests_on(outcome: &Outcome, complete: &Complete) -> String {
    let watts = outcome.serving.as_ref().map_or("", |s| s.load_watts.method.as_str());
    let market = complete.market.map_or("", |m| m.as_of.as_str());
    let halving = match complete.share_after_halving {
        share if share > 0.0 => format!(", {:.0} % of the horizon after the halving", share * 100.0),
        _ => String::new(),
    };
    let spread = |e: Option<Estimate>| e.is_some_and(|e| e.low < e.high);
    let ranges = [
        (spread(complete.market.map(Market::hashprice)), "the range of the hashprice"),
        (spread(Some(complete.utilisation)), "the range of the utilisation"),
    ];
    let mut carried = vec!["the measurement's", "the sensor's gain", "5 % on nameplates"];
    carried.extend(ranges.iter().filter(|(is, _)| *is).map(|(_, what)| *what));
    let last = carried.pop().unwrap_or_default();
    format!(
        "Watts: {watts}. Market of {market}{halving}. The interval carries {} and {last}.",
        carried.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_read_as_people_write_them() {
        for (value, text) in [
            (0.0, "$0.00"),
            (12.345, "$12.35"),
            (-3.5, "-$3.50"),
            (99.999, "$100"),
            (1234.6, "$1,235"),
            (1_234_567.0, "$1,234,567"),
        ] {
            assert_eq!(dollars(value), text);
        }
    }
}
