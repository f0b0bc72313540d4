//! L4d. Measuring: what the command line and the criterion suites share.

pub mod baseline;
pub mod criterion_results;
