//! `meridian-sim-nodes`: one seed, or many, each in a process of its own.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use meridian_sim_kernel as kernel;
use meridian_sim_nodes::{Bug, Options, Outcome, World, run};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// A seed takes seconds on a machine with nothing else to do.
const LONGEST: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(20);

/// Runs clusters of whole nodes from seeds, and says which seed violates an invariant.
#[derive(Debug, Parser)]
struct Arguments {
    /// Run the seeds A up to and without B.
    #[arg(long, value_name = "A..B", default_value = "0..100", value_parser = seeds)]
    seeds: Range<u64>,
    /// Run one seed, and say what happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    #[arg(long, default_value = "one-region")]
    world: World,
    /// Plant a bug.
    #[arg(long)]
    bug: Option<Bug>,
    /// How long things go wrong, in seconds of simulated time.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Run each seed twice, and compare what the two record.
    #[arg(long)]
    twice: bool,
    /// Write the histories of a seed to this file.
    #[arg(long, requires = "seed")]
    history: Option<PathBuf>,
    /// Write the nodes' logs to standard error, by a filter such as `meridian=debug`.
    #[arg(long, requires = "seed")]
    log: Option<String>,
    /// So many at a time; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let (from, to) = text.split_once("..").context("A..B is wanted")?;
    Ok(from.parse()?..to.parse()?)
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(&arguments, seed),
        None => many(&arguments),
    }
}

/// Simulated time, and the machine.
struct Place;

impl FormatTime for Place {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        match kernel::here() {
            Some(machine) => write!(to, "{:10.4} {machine}", kernel::now().as_secs_f64()),
            None => write!(to, "outside"),
        }
    }
}

fn one(arguments: &Arguments, seed: u64) -> anyhow::Result<ExitCode> {
    let options = Options {
        seed,
        world: arguments.world,
        bug: arguments.bug,
        lasts: Duration::from_secs(arguments.seconds),
        is_told: true,
    };
    if let Some(filter) = &arguments.log {
        let to = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?);
        to.with_ansi(false).with_timer(Place).with_writer(std::io::stderr).init();
    }
    // A panic is a broken invariant, on whichever machine.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(machine) = kernel::here() {
            eprintln!("on {machine} at {:?}:", kernel::now());
        }
        report(panic);
        std::process::abort();
    }));
    let outcome = run(&options);
    let is_well = match &outcome {
        Ok(outcome) => tell(arguments, seed, outcome)?,
        Err(error) => {
            println!("seed {seed}: {error:#}");
            false
        }
    };
    kernel::exit(i32::from(!is_well))
}

/// Whether all is well.
fn tell(arguments: &Arguments, seed: u64, outcome: &Outcome) -> anyhow::Result<bool> {
    for violation in &outcome.violations {
        println!("seed {seed}: {violation}");
    }
    if let Some(path) = &arguments.history {
        std::fs::File::create(path)?.write_all(&outcome.history)?;
    }
    let mut hash = DefaultHasher::new();
    outcome.history.hash(&mut hash);
    println!(
        "seed {seed}: {} operations, {} commits, {} failovers in {:.1} s; history {:016x}, decisions {:016x}",
        outcome.operations,
        outcome.committed,
        outcome.failovers,
        outcome.took.as_secs_f64(),
        hash.finish(),
        outcome.digest
    );
    Ok(outcome.violations.is_empty())
}

/// The arguments of a run of one seed.
fn again(arguments: &Arguments, seed: u64) -> Vec<String> {
    let value = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let world = value(arguments.world.to_possible_value());
    let bug = arguments.bug.map(|bug| format!("--bug={}", value(bug.to_possible_value())));
    let run = [
        format!("--seed={seed}"),
        format!("--seconds={}", arguments.seconds),
        format!("--world={world}"),
    ];
    run.into_iter().chain(bug).collect()
}

/// The output of a seed's process, and whether all was well. A seed that does not end is ended.
fn child(arguments: &Arguments, seed: u64) -> anyhow::Result<(String, bool)> {
    let mut output = tempfile::tempfile()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(again(arguments, seed)).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    let (mut child, began) = (command.spawn()?, Instant::now());
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if began.elapsed() > LONGEST => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let mut said = Vec::new();
    output.seek(SeekFrom::Start(0))?;
    output.read_to_end(&mut said)?;
    let mut said = String::from_utf8_lossy(&said).into_owned();
    if status.is_none() {
        said.push_str(&format!("seed {seed} does not end within {LONGEST:?}\n"));
    }
    Ok((said, status.is_some_and(|status| status.success())))
}

/// The fault of a seed, if there is one.
fn judge(arguments: &Arguments, seed: u64) -> anyhow::Result<Option<String>> {
    let (said, is_well) = child(arguments, seed)?;
    if !is_well {
        return Ok(Some(said));
    }
    if arguments.twice {
        let (again, _) = child(arguments, seed)?;
        if again != said {
            return Ok(Some(format!("two runs differ:\n{said}\n{again}")));
        }
    }
    Ok(None)
}

fn many(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let seeds = &arguments.seeds;
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or(available).max(1);
    let (next, began) = (AtomicU64::new(seeds.start), Instant::now());
    let failed = Mutex::new(Vec::new());
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(());
            }
            if let Some(why) = judge(arguments, seed)? {
                println!("{why}");
                println!("again: scripts/sim --nodes {}", again(arguments, seed).join(" "));
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seed);
            }
        }
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });
    for worker in ended {
        match worker {
            Ok(worked) => worked?,
            Err(_) => bail!("a worker ended: see above"),
        }
    }
    let count = seeds.end.saturating_sub(seeds.start);
    let mut failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failed.sort_unstable();
    println!("{count} seeds in {:.1} s, failed: {failed:?}", began.elapsed().as_secs_f64());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
