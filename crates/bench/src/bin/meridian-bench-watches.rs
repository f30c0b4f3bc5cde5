//! `meridian-bench-watches`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use meridian_bench::program;
use meridian_bench::watches::{self, Options};

fn main() -> ExitCode {
    program::run(watches::measure(&Options::parse()))
}
