//! L4d. Measuring: what the command line's `bench` and the criterion suites share.

pub mod baseline;
