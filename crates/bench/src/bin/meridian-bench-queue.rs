//! `meridian-bench-queue`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use meridian_bench::queue::{self, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured =
        runtime.map_err(|error| format!("cannot start the runtime: {error}")).and_then(|runtime| {
            runtime.block_on(queue::measure(&options)).map_err(|error| error.to_string())
        });
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
