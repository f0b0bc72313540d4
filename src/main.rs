//! The binary: hands the command line to `cli`, prints what went wrong, and is the only place that exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    plain_errors();
    match hashwatt::cli::run(std::env::args_os()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hashwatt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// candle's errors carry a backtrace where there is one, into whatever shows them: logs, answers, this program's own
/// messages. Panics keep theirs.
#[allow(clippy::disallowed_methods)] // it is the standard library that is configured here
fn plain_errors() {
    const SWITCH: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: no other thread has been started.
        unsafe { std::env::set_var(SWITCH, "0") };
    }
}
