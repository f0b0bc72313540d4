//! The answer for people: a table a device, no wider than 100 columns.

use super::row::Row;
use super::target::Target;
use super::{Answer, Fitted};
use crate::cli::report::columns;
use crate::cli::room::gib;
use crate::measure::table::EXAMPLE;

const WIDTH: usize = 100;

const HEAD: [&str; 10] =
    ["model", "weights", "GiB", "tokens", "longest", "at once", "tok/s", "tok/J", "$/kWh", ""];
/// The column that is left out without a market.
const MONEY: usize = 8;
const LEGEND: &str = "GiB: of weights. tokens: what the KV cache of a device holds. longest: one sequence alone. \
    at once: so many sequences of that length, on all devices. tok/s, tok/J: output tokens; roofline is an upper bound \
    for that load, by the bandwidth and rate of the data sheet, at its full watts; measured is of a report, at the \
    report's load.";
const LEGEND_OF_MONEY: &str = "$/kWh: what output tokens sell for (measured: whole requests), for the energy of the \
    board alone. What a site earns is for `bench` and `report verdict` to say.";

pub(super) fn text(answer: &Answer) -> String {
    let mut out = String::new();
    if answer.example {
        out += &format!("{EXAMPLE}\n\n");
    }
    let priced = answer.mining.is_some();
    answer.devices.iter().for_each(|fitted| out += &device(fitted, priced));
    out += &wrapped("", LEGEND);
    if let Some(mining) = &answer.mining {
        out += &wrapped("", LEGEND_OF_MONEY);
        let line = format!(
            "mining earns {:.4} $/kWh inside the machine, with the thriftiest of the table ({}), market of {}.",
            mining.usd_per_kwh, mining.machine, mining.as_of
        );
        out += &wrapped("", &line);
    }
    answer.notes.iter().for_each(|note| out += &wrapped("note: ", note));
    out
}

fn device(fitted: &Fitted, priced: bool) -> String {
    let Fitted { target, rows } = fitted;
    let mut out = wrapped("", &header(target, rows));
    let (good, bad): (Vec<&Row>, Vec<&Row>) = rows.iter().filter(|r| r.runs).partition(|r| r.fits);
    if !good.is_empty() {
        let mut table = vec![HEAD.map(String::from).to_vec()];
        table.extend(good.into_iter().map(cells));
        if !priced {
            table.iter_mut().for_each(|row| drop(row.remove(MONEY)));
        }
        out += &columns(&table);
    }
    match bad.as_slice() {
        [] => {}
        // Few enough to say why.
        few if rows.len() <= super::TYPES.len() => few.iter().for_each(|row| {
            let problem = row.problem.as_deref().unwrap_or_default();
            out += &wrapped("does not fit: ", &format!("{} {}: {problem}", row.model, row.weights));
        }),
        many => out += &wrapped("does not fit: ", &names(many)),
    }
    let mut problems: Vec<&str> =
        rows.iter().filter(|r| !r.runs).filter_map(|r| r.problem.as_deref()).collect();
    problems.sort_unstable();
    problems.dedup();
    for problem in problems {
        let mut models: Vec<&str> =
            rows.iter().filter(|r| r.problem.as_deref() == Some(problem)).map(|r| r.model.as_str()).collect();
        models.dedup();
        out += &wrapped("", &format!("{problem}: {}", models.join(", ")));
    }
    out + "\n"
}

fn header(target: &Target, rows: &[Row]) -> String {
    let many = if target.count > 1 { format!("{} engines, each a ", target.count) } else { String::new() };
    let memory = format!("{:.1} GiB ({})", gib(target.memory_bytes), target.memory_from);
    let speed = target.board.as_ref().map_or_else(String::new, |board| {
        let (bandwidth, watts) = (board.memory_gigabytes_per_second, board.watts);
        format!(", {bandwidth} GB/s, {} TFLOP/s of bf16, {watts} W", board.bf16_teraflops)
    });
    let caches = rows.iter().filter_map(|r| r.cache.as_ref());
    let mut types: Vec<&str> = caches.clone().map(|c| c.dtype.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    let longest = caches.map(|c| c.context_tokens).max();
    let cache = longest.map_or_else(String::new, |tokens| {
        format!(
            "; KV cache in {}, sequences of {tokens} tokens, or of a model's whole context",
            types.join(", ")
        )
    });
    format!("{many}{}: {memory}{speed}{cache}", target.name)
}

fn cells(row: &Row) -> Vec<String> {
    let dash = || "-".to_string();
    let cache =
        |of: &dyn Fn(&super::row::Room) -> usize| row.cache.as_ref().map_or_else(dash, |c| of(c).to_string());
    let speed = |of: &dyn Fn(&super::row::Speed) -> String| row.speed.as_ref().map_or_else(dash, of);
    vec![
        row.model.clone(),
        row.weights.into(),
        format!("{:.1}", gib(row.weight_bytes)),
        cache(&|c| c.tokens),
        cache(&|c| c.longest_context_tokens),
        cache(&|c| c.sequences),
        speed(&|s| format!("{:.0}", s.output_tokens_per_second)),
        speed(&|s| format!("{:.3}", s.output_tokens_per_joule)),
        row.serving_usd_per_kwh.map_or_else(dash, |usd| format!("{usd:.4}")),
        speed(&|s| s.basis.clone()),
    ]
}

/// Rows by model: `llama-3.3-70b (bf16, fp8)`.
fn names(rows: &[&Row]) -> String {
    let mut models: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows {
        match models.iter_mut().find(|(model, _)| *model == row.model) {
            Some((_, types)) => types.push(row.weights),
            None => models.push((&row.model, vec![row.weights])),
        }
    }
    let each = models.iter().map(|(model, types)| format!("{model} ({})", types.join(", ")));
    each.collect::<Vec<_>>().join(", ")
}

/// In lines that are not too long.
fn wrapped(before: &str, text: &str) -> String {
    let (mut out, mut line) = (String::new(), before.trim_end().to_string());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out += &format!("{line}\n");
            line = word.into();
        } else {
            line += if line.is_empty() { "" } else { " " };
            line += word;
        }
    }
    out + &format!("{line}\n")
}
