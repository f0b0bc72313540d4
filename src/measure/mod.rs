//! L4d. Measuring: what the command line and the criterion suites share.

pub mod baseline;
pub mod economics_table;
pub mod report;
