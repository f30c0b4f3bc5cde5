//! `meridian-bench-queue`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use meridian_bench::program;
use meridian_bench::queue::{self, Options};

fn main() -> ExitCode {
    program::run(queue::measure(&Options::parse()))
}
