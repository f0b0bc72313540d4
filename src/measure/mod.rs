//! L4d. Measuring: what the command line and the criterion suites share.

pub mod baseline;
pub mod ceilings;
pub mod compare;
pub mod criterion_results;
pub mod economics;
pub mod files;
pub mod hardware;
pub mod html;
pub mod lengths;
pub mod load;
pub mod plot;
pub mod point;
pub mod record;
pub mod report;
pub mod statistics;
pub mod sweep;
pub mod table;
pub mod target;
#[cfg(test)]
pub(crate) mod testing;
pub mod trace;
pub mod window;
pub mod worth;
