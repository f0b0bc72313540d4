//! The binary: hands the command line to `cli`, prints what went wrong, and is the only place that exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    match hashwatt::cli::run(std::env::args_os()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hashwatt: {error:#}");
            ExitCode::FAILURE
        }
    }
}
