//! L4d. Measuring: what the command line and the criterion suites share.

pub mod baseline;
pub mod compare;
pub mod economics;
pub mod economics_table;
pub mod html;
pub mod lengths;
pub mod load;
pub mod plot;
pub mod point;
pub mod report;
pub mod statistics;
pub mod target;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod window;
