//! `meridian drill`: runs drills and the suite of promises, and writes their reports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use meridian_drills::StageOptions;
use meridian_drills::drill::{Drill as Script, names};
use meridian_drills::promise::{Runs, rows};
use meridian_drills::report::{RunReport, html_page, run_text, runs_text, suite_text};
use meridian_drills::stage::Stage;
use meridian_drills::suite::{SuiteReport, run_suite};
use meridian_drills::verdict::{PromiseVerdict, Row};
use meridian_wan::WanPlan;
use serde::Serialize;

use super::{Counts, Hangup, asked_to_stop, parse_counts};

/// The extension of a script's file.
const SCRIPT_ENDING: &str = "drill";

#[derive(Args)]
pub(crate) struct Drill {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the drills with their descriptions.
    List,
    /// Runs one drill: starts a cluster of its own, breaks it under load, heals it, and reports the
    /// clients' view.
    ///
    /// Exits with an error if a run did not come to its end, if a client got an answer that no
    /// correct store gives, if the cluster's own report of a failover is wrong, or if the copies
    /// differ in the end.
    Run(Run),
    /// Runs every drill that the promises need, and compares the measurements with each promise.
    ///
    /// Exits with an error if a promise is missed, or as `run` does.
    Suite(Suite),
}

#[derive(Args)]
struct Run {
    /// Name from `meridian drill list`, or a file that ends in `.drill` (format: docs/drills.md).
    name: String,
    /// Number of runs, each in a cluster of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Duration of the fault, in seconds. Default: the drill's.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: Option<u64>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Suite {
    /// Number of runs of the loss of one data center.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Number of data centers in each region, the primary first; at most three regions and ten
    /// nodes.
    #[arg(long, default_value = "3,2,2", value_parser = parse_counts)]
    topology: Counts,
    /// Emulated round trips in ms from the first region to the second and the third, and within a
    /// region.
    #[arg(long, default_value = "90,190,dc=2", value_name = "MS,MS,dc=MS")]
    rtt: WanPlan,
    /// Seed of the clients' random operations. Default: another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// File for all measurements, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a self-contained page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep the folders of the clusters, with data and logs.
    #[arg(long)]
    keep: bool,
}

impl Drill {
    pub(crate) async fn run(self) -> Result<()> {
        let work = async {
            match self.command {
                Command::List => list(),
                Command::Run(run) => run.run().await,
                Command::Suite(suite) => suite.run().await,
            }
        };
        // When dropped, it ends all of its processes.
        tokio::select! {
            done = work => done,
            () = asked_to_stop(Hangup::Stop) => bail!("stopped"),
        }
    }
}

fn list() -> Result<()> {
    for Script { name, script } in Script::all() {
        println!("{name:<22} {}", script.title);
        println!("{:<22} {}\n", "", script.about);
    }
    Ok(())
}

/// Progress goes to the standard error, apart from reports.
fn say(text: &str) {
    eprintln!("{text}");
}

impl Run {
    async fn run(self) -> Result<()> {
        let drill = self.drill()?;
        let options = self.options.stage(self.duration.map(Duration::from_secs))?;
        let mut reports: Vec<RunReport> = Vec::new();
        for run in 1..=self.runs {
            let number = usize::try_from(run)?;
            say(&format!("{} ({run} of {})", drill.name, self.runs));
            let options =
                StageOptions { seed: options.seed.wrapping_add(u64::from(run)), ..options.clone() };
            let report = Stage::run(&drill, number, &options, &say).await?;
            println!("{}", run_text(&report));
            reports.push(report);
        }
        if self.runs > 1 {
            println!("{}", runs_text(&reports));
        }
        let runs = Runs::from([(drill.name.clone(), reports.clone())]);
        // The promises that this drill measures alone.
        let measured = |row: &Row| {
            row.drills == [drill.name.as_str()] && row.aim.verdict != PromiseVerdict::NotMeasured
        };
        let rows: Vec<Row> = rows(&runs).into_iter().filter(measured).collect();
        print!("{}", suite_text(&rows));
        self.options.write(
            &format!("{}: {}", drill.name, drill.script.title),
            &rows,
            &reports,
            &reports,
        )?;
        let unsound = reports.iter().filter(|report| !report.faults().is_empty()).count();
        if unsound > 0 {
            bail!("{unsound} of {} runs failed a check", reports.len());
        }
        Ok(())
    }

    fn drill(&self) -> Result<Script> {
        let path = Path::new(&self.name);
        if path.extension().is_some_and(|ending| ending == SCRIPT_ENDING) {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let script = text.parse().with_context(|| path.display().to_string())?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Script { name, script });
        }
        let known = || {
            format!("there is no drill `{}`: {}", self.name, names().collect::<Vec<_>>().join(", "))
        };
        Script::named(&self.name).with_context(known)
    }
}

impl Suite {
    async fn run(self) -> Result<()> {
        let options = self.options.stage(None)?;
        let report = run_suite(&options, usize::try_from(self.runs)?, &say).await;
        let runs: Vec<RunReport> = report.runs.values().flatten().cloned().collect();
        print_suite(&report);
        self.options.write("the promises of Meridian, measured", &report.rows, &runs, &report)?;
        let complaints = report.complaints();
        if complaints.is_empty() {
            return Ok(());
        }
        bail!("{} promises or checks failed:\n  {}", complaints.len(), complaints.join("\n  "))
    }
}

fn print_suite(report: &SuiteReport) {
    for runs in report.runs.values() {
        if let [first, _, ..] = runs.as_slice() {
            println!("{}: {}\n{}", first.drill, first.title, runs_text(runs));
        }
        // The other runs look alike.
        for run in runs.iter().take(1) {
            println!("{}", run_text(run));
        }
    }
    print!("{}", suite_text(&report.rows));
}

impl Options {
    fn stage(&self, hold: Option<Duration>) -> Result<StageOptions> {
        Ok(StageOptions {
            program: std::env::current_exe().context("the path of this program")?,
            topology: self.topology.0.clone(),
            wan: self.rtt.clone(),
            hold,
            keep: self.keep,
            seed: self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
        })
    }

    fn write(
        &self,
        title: &str,
        rows: &[Row],
        runs: &[RunReport],
        all: &impl Serialize,
    ) -> Result<()> {
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(all)?;
            std::fs::write(path, json + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.html {
            let page = html_page(title, rows, runs);
            std::fs::write(path, page)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        drill: Drill,
    }

    fn parse(arguments: &[&str]) -> Result<Command, String> {
        let all = ["drill"].iter().chain(arguments);
        Cli::try_parse_from(all).map(|cli| cli.drill.command).map_err(|error| error.to_string())
    }

    fn run(arguments: &[&str]) -> Run {
        match parse(arguments) {
            Ok(Command::Run(run)) => run,
            Ok(_) => panic!("another command"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_defaults() {
        let run = run(&["run", "dc-loss"]);
        assert_eq!((run.runs, run.duration, run.options.keep), (1, None, false));
        assert_eq!(run.options.topology.0, [3, 2, 2]);
        let stage = run.options.stage(None).unwrap();
        assert_eq!(stage.wan.round_trip(0, 0), Duration::from_millis(2));
        assert_eq!(stage.wan.round_trip(0, 2), Duration::from_millis(190));
        assert_eq!(run.drill().unwrap().name, "dc-loss");
        assert!(matches!(parse(&["suite"]), Ok(Command::Suite(Suite { runs: 20, .. }))));
    }

    #[test]
    fn unknown_drills_and_bad_arguments_are_refused() {
        let error = run(&["run", "earthquake"]).drill().unwrap_err().to_string();
        assert!(error.contains("earthquake") && error.contains("region-loss"), "{error}");
        assert!(run(&["run", "no/such/file.drill"]).drill().is_err());
        for arguments in
            [&["run"][..], &["run", "dc-loss", "--runs=0"], &["run", "dc-loss", "--rtt=far"], &[]]
        {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
