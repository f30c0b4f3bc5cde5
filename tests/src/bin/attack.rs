//! `meridian-attack`: see `--help`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use meridian_tests::attack::{Attacker, Input, Row, Siege, Target, attack, name_of};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Carries out all known attacks on a cluster of its own, and reports their effect on another
/// client.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a cluster of six nodes, carries out one attack after the other, and prints a table.
    /// Fails if a process ends, a shard fails over, a node takes more memory than it may, or
    /// requests of the bystander fail or exceed their p99.
    Soak {
        /// Seconds for each attacker
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The p99 that the bystander's requests may have, in milliseconds
        #[arg(long, default_value_t = 200)]
        p99_ms: u64,
        /// Only these attackers
        #[arg(long, value_enum, value_delimiter = ',')]
        attacker: Vec<Attacker>,
        /// Only these attacks, one after the other
        #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "attacker")]
        input: Vec<Input>,
    },
    /// Carries out this attack at once on a cluster that is described on the standard input. `soak`
    /// starts such processes.
    With {
        #[arg(value_enum)]
        inputs: Vec<Input>,
        #[arg(long)]
        seconds: u64,
    },
}

/// Rows that are written and deleted before.
const DELETED_ROWS: usize = 200_000;
/// The time for watching the cluster without an attack.
const QUIET: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::With { inputs, seconds } => {
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
            let mut target = Vec::new();
            std::io::stdin().read_to_end(&mut target).unwrap();
            let target: Target = serde_json::from_slice(&target).unwrap();
            attack(&inputs, Arc::new(target), Duration::from_secs(seconds)).await;
            // Exits without closing connections, and without waiting.
            std::process::exit(0);
        }
        Command::Soak { seconds, p99_ms, attacker, input } => {
            let attackers = if attacker.is_empty() { Attacker::ALL } else { &attacker };
            let rows: Vec<(String, Vec<Input>)> = if input.is_empty() {
                attackers
                    .iter()
                    .map(|attacker| (name_of(*attacker), attacker.inputs().to_vec()))
                    .collect()
            } else {
                input.iter().map(|input| (name_of(*input), vec![*input])).collect()
            };
            tokio::select! {
                code = soak(&rows, Duration::from_secs(seconds), Duration::from_millis(p99_ms)) => code,
                // The nodes end when their owner is dropped.
                () = asked_to_stop() => ExitCode::FAILURE,
            }
        }
    }
}

async fn asked_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn soak(attackers: &[(String, Vec<Input>)], duration: Duration, p99: Duration) -> ExitCode {
    let mut siege = Siege::start(std::env::current_exe().unwrap(), DELETED_ROWS).await;
    let mut bad = Vec::new();
    println!(
        "{:<10} {:^39} {:^39} {:>7} {:>15}",
        "", "strong reads, ms", "writes, ms", "failed", "memory, MiB"
    );
    let columns = format!("{:>9} {:>9} {:>9} {:>9}", "number", "p50", "p99", "longest");
    println!("{:<10} {columns} {columns}", "attacker");
    let quiet = ("quiet".to_owned(), Vec::new());
    for (name, inputs) in std::iter::once(&quiet).chain(attackers) {
        let row = siege
            .row(name, inputs, if inputs.is_empty() { QUIET.min(duration) } else { duration })
            .await;
        println!("{}", line(&row));
        bad.extend(
            row.faults.iter().chain(&row.seen.failures).map(|what| format!("{}: {what}", row.name)),
        );
        for (what, latencies) in [("reads", &row.seen.reads), ("writes", &row.seen.writes)] {
            if latencies.count() == 0 || latencies.quantile(990) > p99 {
                bad.push(format!(
                    "{}: {what} take longer than {} ms at p99",
                    row.name,
                    p99.as_millis()
                ));
            }
        }
        if let Some((mb, node)) = row.memory.filter(|(mb, _)| *mb > row.max_memory_mb) {
            bad.push(format!(
                "{}: node {node} took {mb} MiB of memory, and may take {}",
                row.name, row.max_memory_mb
            ));
        }
    }
    if bad.is_empty() {
        println!(
            "no process ended, no shard failed over, every request of the bystander was answered"
        );
        return ExitCode::SUCCESS;
    }
    bad.iter().for_each(|what| eprintln!("{what}"));
    eprintln!("the logs of the nodes are in {}", siege.keep_folder().display());
    ExitCode::FAILURE
}

fn line(row: &Row) -> String {
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
    let [reads, writes] = [&row.seen.reads, &row.seen.writes].map(|latencies| {
        let (p50, p99, longest) =
            (ms(latencies.quantile(500)), ms(latencies.quantile(990)), ms(latencies.longest()));
        format!("{:>9} {p50:>9} {p99:>9} {longest:>9}", latencies.count())
    });
    let memory = row
        .memory
        .map_or_else(|| "-".to_owned(), |(mb, _)| format!("{mb} of {}", row.max_memory_mb));
    format!("{:<10} {reads} {writes} {:>7} {memory:>15}", row.name, row.seen.failed)
}
