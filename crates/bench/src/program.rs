//! A program that measures one thing, and prints its figures.

use std::fmt::Display;
use std::process::ExitCode;

use crate::error::BenchError;

/// Runs it on threads of its own, and prints what it gives, or why it gives nothing.
pub fn run<T: Display>(measure: impl Future<Output = Result<T, BenchError>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured = runtime
        .map_err(|error| format!("cannot start the runtime: {error}"))
        .and_then(|runtime| runtime.block_on(measure).map_err(|error| error.to_string()));
    match measured {
        Ok(measured) => {
            print!("{measured}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
