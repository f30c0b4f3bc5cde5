//! A run, from a seed to its outcome.

use std::time::Duration;

use meridian_checker::check_with;
use meridian_drills::loss::allowance;
use meridian_sim_kernel::{self as kernel, Chance, LinkProfile, Settings};

use crate::bugs::Bug;
use crate::clients::{Clients, Records};
use crate::cluster::Cluster;
use crate::faults::Faults;
use crate::story::Story;

/// Until the cluster serves for the first time.
const BEGINNING: Duration = Duration::from_secs(4);
/// After all faults: beyond the time for which a request is tried inside the cluster.
const QUIESCENCE: Duration = Duration::from_secs(15);
/// An fsync of a file beside the database.
const FILE_FSYNC_NS: std::ops::RangeInclusive<u64> = 200_000..=2_500_000;
/// Operations without which a history tells nothing.
const LEAST_OPERATIONS: usize = 100;

/// The cluster of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum World {
    /// Three nodes of one region.
    OneRegion,
    /// Seven nodes of three regions, of which one is lost.
    ThreeRegions,
}

impl World {
    fn counts(self) -> &'static [usize] {
        match self {
            Self::OneRegion => &[3],
            Self::ThreeRegions => &[3, 2, 2],
        }
    }
}

/// The options of a run.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub world: World,
    pub bug: Option<Bug>,
    /// How long things go wrong, in simulated time.
    pub lasts: Duration,
    /// Whether what happens is printed at once.
    pub is_told: bool,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Outcome {
    pub story: Vec<String>,
    /// All that is wrong.
    pub violations: Vec<String>,
    /// The histories of all databases, as bytes.
    pub history: Vec<u8>,
    /// Of every decision of the kernel: which thread ran when, and what arrived when.
    pub digest: u64,
    pub operations: usize,
    pub committed: usize,
    pub failovers: usize,
    /// Simulated.
    pub took: Duration,
}

/// Runs a cluster. A process has one run.
///
/// # Errors
/// When the run itself fails, as by a node that does not stop, or a cluster that does not heal.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    kernel::begin(settings(options));
    let mut chance = Chance::new(options.seed);
    // Runs of one seed at a time would draw the same name.
    let own = format!("meridian-sim-{:010}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&own).tempdir()?;
    let mut story = Story::new(options.is_told);
    let counts = options.world.counts();
    let mut cluster = Cluster::new(counts, &mut chance, options.bug, folder.path())?;
    for node in cluster.nodes() {
        cluster.start(node)?;
    }
    let clients = Clients::start(&cluster, options.seed);
    std::thread::sleep(BEGINNING);
    story.say("faults begin");
    let mut faults = Faults {
        cluster: &mut cluster,
        chance: chance.fork(),
        story: &mut story,
        regions: counts.len(),
    };
    faults.run(options.lasts)?;
    story.say("all is well again");
    std::thread::sleep(BEGINNING);
    let clients = clients.stop()?;
    std::thread::sleep(QUIESCENCE);
    story.say("clients have stopped");
    let records = clients.finish()?;
    Ok(judge(records, story))
}

fn settings(options: &Options) -> Settings {
    let mut chance = Chance::new(options.seed ^ 0x5eed);
    Settings {
        seed: options.seed,
        link: LinkProfile { latency_ns: 150_000, jitter_ns: 100_000, lost_ppm: 0 },
        fsync_ns: FILE_FSYNC_NS,
        // Some runs change threads often at places where they need not.
        preempted_ppm: chance.pick(&[0, 1_000, 20_000]).copied().unwrap_or(0),
    }
}

fn judge(records: Records, mut story: Story) -> Outcome {
    let mut violations = records.oddities;
    let (mut history, mut operations, mut committed, mut failovers) = (Vec::new(), 0, 0, 0);
    for (database, (recorded, reports)) in records.databases.iter().enumerate() {
        for report in reports {
            story.say(&format!(
                "database {database}: epoch {} began in {} at {:?}, lost {} (exact: {}, planned: {})",
                report.epoch,
                report.to_region,
                report.base,
                report.loss.transactions,
                report.loss.exact,
                report.planned
            ));
        }
        failovers += reports.len();
        let report = check_with(recorded, &allowance(reports));
        if !report.is_clean() {
            violations.push(format!("database {database}: {report}"));
        }
        operations += report.statistics.operations;
        committed += report.statistics.committed;
        if let Err(error) = recorded.write(&mut history) {
            violations.push(format!("the history cannot be written: {error}"));
        }
    }
    if operations < LEAST_OPERATIONS || committed == 0 {
        violations.push(format!("{operations} operations, {committed} commits tell nothing"));
    }
    Outcome {
        story: story.into_lines(),
        violations,
        history,
        digest: kernel::digest(),
        operations,
        committed,
        failovers,
        took: kernel::now(),
    }
}
