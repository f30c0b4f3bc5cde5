//! The tests: which there are, which mutants each of them reaches, and running one with a mutant.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::mutant::number;
use crate::viable::Artifact;

/// The package whose tests start whole clusters.
const CLUSTERS: &str = "meridian-tests";

/// A test's address space: a mutant that allocates without an end should not take the machine
/// along.
const MAX_ADDRESS_SPACE_BYTES: u64 = 12 << 30;

/// How long a test may take that runs without a mutant.
pub const BASE_LIMIT: Duration = Duration::from_secs(300);

/// How much later than its limit a test ends whose watcher is gone.
const GRACE: Duration = Duration::from_secs(30);

/// One test of one program.
#[derive(Debug, Clone)]
pub struct Test {
    pub artifact: Arc<Artifact>,
    /// As the program names it.
    pub path: String,
    /// With the package and the target before it.
    pub name: String,
}

impl Test {
    pub fn is_of_clusters(&self) -> bool {
        self.artifact.package == CLUSTERS
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    TimedOut,
}

/// The mode that a process of a test runs in.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// A mutant, by its index.
    Mutant(usize),
    /// None; which are reached is written to this file.
    Trace(&'a Path),
}

/// All tests of `artifacts` that are not ignored; those of whole clusters only `with_clusters`.
pub fn list(artifacts: Vec<Artifact>, with_clusters: bool) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for artifact in artifacts {
        if artifact.package == CLUSTERS && !with_clusters {
            continue;
        }
        let ignored: BTreeSet<String> = names(&artifact, &["--ignored"])?.into_iter().collect();
        let artifact = Arc::new(artifact);
        for path in names(&artifact, &[])? {
            if !ignored.contains(&path) {
                tests.push(Test {
                    artifact: Arc::clone(&artifact),
                    name: format!("{} {path}", artifact.name),
                    path,
                });
            }
        }
    }
    Ok(tests)
}

fn names(artifact: &Artifact, arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(&artifact.program)
        .current_dir(&artifact.folder)
        .args(["--list", "--format", "terse"])
        .args(arguments)
        .output()
        .with_context(|| format!("{} does not run", artifact.program.display()))?;
    ensure!(output.status.success(), "{} does not list its tests", artifact.program.display());
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test").map(str::to_owned)).collect())
}

/// Limits what tests may take, from now on. They inherit it from this process. Not those of whole
/// clusters: Deno maps more before it begins than any of ours ever does.
pub fn limit_memory(clusters: bool) -> Result<()> {
    let core = rustix::process::getrlimit(Resource::Core).maximum;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: core })?;
    if clusters {
        return Ok(());
    }
    let maximum = rustix::process::getrlimit(Resource::As).maximum;
    let limit =
        maximum.map_or(MAX_ADDRESS_SPACE_BYTES, |maximum| maximum.min(MAX_ADDRESS_SPACE_BYTES));
    rustix::process::setrlimit(Resource::As, Rlimit { current: Some(limit), maximum })?;
    Ok(())
}

/// A place where one test at a time runs.
#[derive(Debug)]
pub struct Seat {
    folder: PathBuf,
}

impl Seat {
    /// A place for temporary files, and for what the last test has printed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The output of the last test.
    pub fn output(&self) -> PathBuf {
        self.folder.join("output")
    }

    /// Runs a test in a process of its own, and ends all processes of its group behind it.
    pub fn run(&self, test: &Test, mode: Mode<'_>, limit: Duration) -> Result<(Outcome, Duration)> {
        let temporary = self.folder.join("tmp");
        if temporary.exists() {
            fs::remove_dir_all(&temporary)
                .with_context(|| format!("removing {}", temporary.display()))?;
        }
        fs::create_dir_all(&temporary)?;
        let output = File::create(self.output())?;
        // Should this process be stopped, a mutant that never ends has to end all the same.
        let mut command = Command::new("timeout");
        command
            .arg("--signal=KILL")
            .arg((limit + GRACE).as_secs().to_string())
            .arg(&test.artifact.program)
            .current_dir(&test.artifact.folder)
            .args([&test.path, "--exact", "--nocapture", "--test-threads=1"])
            .env("TMPDIR", &temporary)
            .env("CARGO_MANIFEST_DIR", &test.artifact.folder)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        match mode {
            Mode::Mutant(index) => command.env("MERIDIAN_MUTANT", number(index).to_string()),
            Mode::Trace(file) => command.env("MERIDIAN_MUTANT_TRACE", file),
        };
        let began = Instant::now();
        let mut child = command.spawn().context("timeout, of coreutils, does not run")?;
        let outcome = wait(&mut child, began + limit)?;
        let took = began.elapsed();
        // Ends the processes that the test has started, and the test itself if its time was over.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // Fails where none of them is left.
            rustix::process::kill_process_group(group, Signal::KILL).ok();
        }
        child.wait()?;
        Ok((outcome, took))
    }

    /// Runs a test without a mutant. The indices are of the mutants that it reaches.
    pub fn trace(&self, test: &Test) -> Result<(Outcome, Duration, Vec<usize>)> {
        fs::create_dir_all(&self.folder)?;
        let trace = self.folder.join("trace");
        let mut reached = BTreeSet::new();
        let mut run = || -> Result<(Outcome, Duration)> {
            if trace.exists() {
                fs::remove_file(&trace)?;
            }
            let outcome = self.run(test, Mode::Trace(&trace), BASE_LIMIT)?;
            let lines = if trace.exists() { fs::read_to_string(&trace)? } else { String::new() };
            let numbers = lines.lines().filter_map(|line| line.parse::<usize>().ok());
            reached.extend(numbers.filter_map(|number| number.checked_sub(1)));
            Ok(outcome)
        };
        let mut result = run()?;
        if result.0 != Outcome::Passed {
            // Once is an accident.
            result = run()?;
        }
        Ok((result.0, result.1, reached.into_iter().collect()))
    }
}

fn wait(child: &mut Child, deadline: Instant) -> Result<Outcome> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() { Outcome::Passed } else { Outcome::Failed });
        }
        if Instant::now() >= deadline {
            return Ok(Outcome::TimedOut);
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
}
