//! `cargo xtask bench`.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match lb_bench::Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
