//! L1. Where watts come from. Every figure carries its method and its boundary.
//!
//! So far only `assumed`: a nameplate, so that the chain from tokens to money can run on a machine
//! without a meter. Whatever rests on it is headed EXAMPLE.

pub mod assumed;

use std::fmt;

use crate::quantity::Watts;

/// How a figure was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read from a table of nameplates; not measured on this machine.
    Assumed,
}

/// What a figure includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// The processor packages, without memory, disks, fans and losses.
    CpuPackage,
}

/// Power with what must be known to read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub watts: Watts,
    pub method: Method,
    pub boundary: Boundary,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Method::Assumed => "assumed",
        })
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Boundary::CpuPackage => "CPU package",
        })
    }
}
