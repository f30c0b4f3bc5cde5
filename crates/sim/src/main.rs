//! `meridian-sim`: many seeds, or one of them again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use meridian_sim::{Bug, Counts};

/// Simulates failovers from seeds, and says which seed violates an invariant.
#[derive(Debug, Parser)]
struct Arguments {
    /// Run the seeds A up to and without B.
    #[arg(long, value_name = "A..B", default_value = "0..10000", value_parser = seeds)]
    seeds: Range<u64>,
    /// Run one seed, and say what happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Plant a bug.
    #[arg(long)]
    bug: Option<Bug>,
    /// So many at a time; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let (from, to) = text.split_once("..").context("A..B is wanted")?;
    Ok(from.parse()?..to.parse()?)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return match meridian_sim::run(seed, arguments.bug, true) {
            Ok(counts) => {
                println!("seed {seed} is well: {counts:?}");
                Ok(())
            }
            Err(violation) => bail!("seed {seed}: {violation}"),
        };
    }
    run_all(&arguments)
}

fn run_all(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { seeds, bug, .. } = arguments;
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or(available).max(1);
    let (next, began) = (AtomicU64::new(seeds.start), Instant::now());
    let work = || {
        let (mut total, mut failed) = (Counts::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (total, failed);
            }
            match meridian_sim::run(seed, *bug, false) {
                Ok(counts) => total += counts,
                Err(violation) => {
                    eprintln!("seed {seed}: {violation}");
                    failed.push(seed);
                }
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });
    let (mut total, mut failed) = (Counts::default(), Vec::new());
    for result in results {
        let Ok((counts, seeds)) = result else { bail!("a worker ended: see above") };
        total += counts;
        failed.extend(seeds);
    }
    let (count, took) = (seeds.end.saturating_sub(seeds.start), began.elapsed().as_secs_f64());
    println!("{count} seeds in {took:.1} s, {:.1} a second: {total:?}", count as f64 / took);
    failed.sort_unstable();
    if let Some(first) = failed.first() {
        let planted = bug.map(|bug| format!(" --bug {}", name_of(bug))).unwrap_or_default();
        bail!(
            "{} failed; to see the first again: meridian-sim --seed {first}{planted}",
            failed.len()
        );
    }
    Ok(())
}

fn name_of(bug: Bug) -> String {
    clap::ValueEnum::to_possible_value(&bug)
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
