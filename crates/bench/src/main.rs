//! `meridian-bench`: see `--help`, and the library's front page for the rules of counting.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use meridian_bench::options::Options;
use meridian_bench::report::Report;
use meridian_bench::{run, table};
use tokio::sync::watch;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Err(error) = options.validate() {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(2));
    }
    if let Some(file) = &options.cacert {
        meridian_kv_client::trust(file).context("--cacert")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.workers)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (report, failure) = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(stop_on_ctrl_c(stop));
        run::run(&options, stopped).await
    });
    if let Some(report) = &report {
        publish(&options, report)?;
    }
    if let Some(failure) = failure {
        // Not as an `anyhow::Error`: the text holds the causes already, and a backtrace would add
        // nothing.
        eprintln!("error: {failure}");
        return Ok(ExitCode::FAILURE);
    }
    let all_useful =
        report.is_none_or(|report| report.cells.iter().all(|cell| cell.operations > 0));
    Ok(if all_useful { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first Ctrl-C ends the run with the results so far; the second one ends the process.
async fn stop_on_ctrl_c(stop: watch::Sender<bool>) {
    if tokio::signal::ctrl_c().await.is_err() {
        return std::future::pending().await;
    }
    stop.send_replace(true);
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(130);
    }
}

fn publish(options: &Options, report: &Report) -> anyhow::Result<()> {
    if options.output.has_table() {
        print!("{}", table::render(report));
    }
    let json = report.to_json().context("cannot encode the report")?;
    if let Some(file) = &options.json_file {
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    } else if options.output.has_json() {
        print!("{json}");
    }
    Ok(())
}
