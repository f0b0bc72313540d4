//! The mission in its thinnest form: what a megawatt-hour earns serving, beside what it earns mining.

use std::fmt::Write;

use crate::economics::market::Market;
use crate::economics::miners::Miner;
use crate::economics::{inference, mining};
use crate::power::{Method, Power};
use crate::quantity::{TokensPerJoule, TokensPerSecond};

/// A rate of serving and the power it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    pub label: String,
    pub rate: TokensPerSecond,
    pub power: Power,
}

impl Served {
    pub fn efficiency(&self) -> TokensPerJoule {
        self.rate / self.power.watts
    }
}

/// The table as text. `usd_per_million_tokens` is what a token is taken to sell for.
pub fn render(served: &[Served], market: &Market, miners: &[Miner], usd_per_million_tokens: f64) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut out, served, market, miners, usd_per_million_tokens);
    out
}

fn write_table(
    out: &mut String,
    served: &[Served],
    market: &Market,
    miners: &[Miner],
    price: f64,
) -> std::fmt::Result {
    let assumed = served.iter().any(|s| s.power.method == Method::Assumed);
    if market.example || assumed {
        writeln!(out, "EXAMPLE: not a measurement of what this site earns")?;
    }
    writeln!(out, "\nserving, every token sold at ${price} per million")?;
    writeln!(out, "  {:<34} {:>10} {:>9} {:>15} {:>14}", "", "token/s", "watts", "token/J", "$/MWh")?;
    for s in served {
        let earned = inference::revenue(s.efficiency(), price);
        writeln!(
            out,
            "  {:<34} {:>10.1} {:>9.1} {:>15.3} {:>14.2}   ({}, {})",
            s.label,
            s.rate.0,
            s.power.watts.0,
            s.efficiency().0,
            earned.0,
            s.power.boundary,
            s.power.method
        )?;
    }
    let hashprice = mining::hashprice(market);
    let example = if market.example { "EXAMPLE market" } else { "market" };
    writeln!(out, "\nmining at {hashprice} ({example} of {}, nameplate watts at the machine)", market.as_of)?;
    for m in miners {
        let earned = mining::revenue(hashprice, m.efficiency());
        writeln!(out, "  {:<34} {:>36} {:>14.2}", m.name, m.efficiency().to_string(), earned.0)?;
    }
    if assumed {
        writeln!(
            out,
            "\nverdict: UNKNOWN. The watts are assumed, not measured; the rows show the arithmetic."
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::miners;
    use crate::power::assumed;

    #[test]
    fn the_table_says_what_it_is() {
        let market = Market::parse(include_str!("../../benches/market.example.toml")).unwrap();
        let miners = miners::parse(miners::BUILT_IN).unwrap();
        let served = Served {
            label: "demo, 8 sequences".into(),
            rate: TokensPerSecond(1120.0),
            power: assumed::cpu(2, 1.0),
        };
        assert_eq!(served.efficiency(), TokensPerJoule(100.0));
        let text = render(&[served], &market, &miners[..3], 0.02);
        for want in [
            "EXAMPLE: not a measurement",
            "100.000        7200.00   (CPU package, assumed)",
            "28.68 $/PH/day (EXAMPLE market of 2026-06-26",
            "Antminer S19j Pro",
            "40.5",
            "verdict: UNKNOWN",
        ] {
            assert!(text.contains(want), "`{want}` is not in\n{text}");
        }
    }
}
