//! L0. Quantities with their units in the type, so that watts and joules never meet by accident.
//!
//! At the edges (TOML, JSON, metrics) the unit is in the field's name instead.

use std::fmt;
use std::ops::{Add, AddAssign, Div, Mul, Sub};
use std::time::Duration;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $unit:literal, $decimals:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
        pub struct $name(pub f64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, concat!("{:.", $decimals, "} ", $unit), self.0)
            }
        }
    };
}

quantity!(
    /// Power, W.
    Watts,
    "W",
    "1"
);
quantity!(
    /// Energy, J.
    Joules,
    "J",
    "1"
);
quantity!(
    /// Tokens for a joule. One token per joule is one token a second for each watt.
    TokensPerJoule,
    "token/J",
    "3"
);
quantity!(
    /// Efficiency of a mining machine, J/TH.
    JoulesPerTerahash,
    "J/TH",
    "1"
);
quantity!(
    /// What a megawatt-hour earns or costs, $/MWh.
    UsdPerMwh,
    "$/MWh",
    "2"
);
quantity!(
    /// Expected mining revenue of a petahash per second over a day, $/PH/day.
    Hashprice,
    "$/PH/day",
    "2"
);

/// Joules in a megawatt-hour.
pub const JOULES_PER_MWH: f64 = 3.6e9;

impl Joules {
    pub const ZERO: Joules = Joules(0.0);
}

impl Add for Joules {
    type Output = Joules;
    fn add(self, other: Joules) -> Joules {
        Joules(self.0 + other.0)
    }
}

impl AddAssign for Joules {
    fn add_assign(&mut self, other: Joules) {
        self.0 += other.0;
    }
}

impl Sub for Joules {
    type Output = Joules;
    fn sub(self, other: Joules) -> Joules {
        Joules(self.0 - other.0)
    }
}

impl std::iter::Sum for Joules {
    fn sum<I: Iterator<Item = Joules>>(all: I) -> Joules {
        all.fold(Joules::ZERO, Add::add)
    }
}

/// Mean power over a time.
impl Div<Duration> for Joules {
    type Output = Watts;
    fn div(self, time: Duration) -> Watts {
        Watts(self.0 / time.as_secs_f64())
    }
}

impl Mul<Duration> for Watts {
    type Output = Joules;
    fn mul(self, time: Duration) -> Joules {
        Joules(self.0 * time.as_secs_f64())
    }
}

/// A rate of tokens, 1/s.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct TokensPerSecond(pub f64);

impl Div<Watts> for TokensPerSecond {
    type Output = TokensPerJoule;
    fn div(self, watts: Watts) -> TokensPerJoule {
        TokensPerJoule(self.0 / watts.0)
    }
}
