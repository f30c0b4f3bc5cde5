//! The command line of Meridian.

mod allocator;
mod command;
mod log_writer;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::log_writer::LogWriter;

/// Meridian: a self-hosted, geo-replicated key-value store for Deno KV clients.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// File with the authorities whose certificates are believed of gateways at https URLs, in the
    /// place of those of this machine.
    #[arg(long, global = true, env = "MERIDIAN_CACERT", value_name = "FILE")]
    cacert: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a whole cluster in one process, to develop against.
    Dev(command::dev::Dev),
    Run(command::run::Run),
    /// Runs one node of a cluster.
    Serve(command::serve::Serve),
    /// Runs a stateless gateway beside an application.
    Gateway(command::serve::Gateway),
    /// Shows the state of the cluster and the record of its changes; sets the directory's voters.
    Cluster(command::cluster::ClusterCommand),
    /// Lists, adds, removes and replaces nodes.
    #[command(visible_alias = "node")]
    Nodes(command::nodes::Nodes),
    /// Lists, adds and removes regions.
    #[command(visible_alias = "region")]
    Regions(command::regions::Regions),
    /// Lists shards, sets their voters, and shows the reports of their failovers.
    #[command(visible_alias = "shard")]
    Shards(command::shards::Shards),
    /// Lists, creates, changes and deletes databases.
    #[command(visible_alias = "database")]
    Databases(command::databases::Databases),
    /// Lists, adds and removes gateways without data, which need certificates.
    Gateways(command::gateways::Gateways),
    /// Lists, adds and removes operators.
    #[command(visible_alias = "operator")]
    Operators(command::operators::Operators),
    Login(command::operators::Login),
    /// Lists, creates, rotates and revokes access tokens.
    #[command(visible_alias = "token")]
    Tokens(command::tokens::Tokens),
    Switchover(command::switchover::Switchover),
    Failback(command::switchover::Failback),
    Failover(command::failover::Failover),
    /// Lists, shows and exports batches of a lost primary that its successor does not have.
    Orphans(command::orphans::Orphans),
    /// Shows how the files of each node are encrypted, and has a node change its keys.
    Encryption(command::encryption::Encryption),
    /// Asks every node for its shards, positions and lags.
    Status(command::status::Status),
    Kv(command::kv::Kv),
    Queue(command::queue::Queue),
    /// Measures reads and writes from the gateway of each region, and the delay of replication.
    Latency(command::latency::Latency),
    /// Breaks clusters of its own under load, and measures the effect on clients.
    Drill(command::drill::Drill),
    /// Transfers the leadership of a shard to another voter.
    TransferLeadership(command::status::TransferLeadership),
    /// Writes the configuration files of a development cluster of separate processes.
    ClusterConfig(command::cluster_config::ClusterConfig),
}

/// A panic is a broken invariant: the process aborts at once, whichever thread panicked. `panic =
/// "abort"` would have every dependency built once more for the tests.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // `println!` formats its message, which makes it a `String`.
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if message.starts_with("failed printing to") {
            // A command whose output cannot be written (a closed pipe, a full disk) has nothing
            // more to do, and no invariant is broken. Servers print nothing in this way.
            std::process::exit(OUTPUT_FAILED);
        }
        meridian_node::abort_soon();
        log_writer::finish();
        report(panic);
        std::process::abort();
    }));
}

fn run(mut command: Command) -> anyhow::Result<ExitCode> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    if let Command::Serve(serve) = &mut command
        && let Some(count) = serve.load()?
    {
        threads.worker_threads(count);
    }
    let runtime = threads.enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let done = match command {
            Command::Run(run) => return run.run().await,
            Command::Dev(dev) => dev.run().await,
            Command::Serve(serve) => serve.run().await,
            Command::Gateway(gateway) => gateway.run().await,
            Command::Cluster(cluster) => cluster.run().await,
            Command::Nodes(nodes) => nodes.run().await,
            Command::Regions(regions) => regions.run().await,
            Command::Shards(shards) => shards.run().await,
            Command::Databases(databases) => databases.run().await,
            Command::Gateways(gateways) => gateways.run().await,
            Command::Operators(operators) => operators.run().await,
            Command::Login(login) => login.run().await,
            Command::Tokens(tokens) => tokens.run().await,
            Command::Switchover(switchover) => switchover.run().await,
            Command::Failback(failback) => failback.run().await,
            Command::Failover(failover) => failover.run().await,
            Command::Orphans(orphans) => orphans.run().await,
            Command::Encryption(encryption) => encryption.run().await,
            Command::Status(status) => status.run().await,
            Command::Kv(kv) => kv.run().await,
            Command::Queue(queue) => queue.run().await,
            Command::Latency(latency) => latency.run().await,
            Command::Drill(drill) => drill.run().await,
            Command::TransferLeadership(transfer) => transfer.run().await,
            Command::ClusterConfig(config) => config.run(),
        };
        done.map(|()| ExitCode::SUCCESS)
    })
}

/// The lines that are logged where nothing else is said.
fn default_filter(command: &Command) -> &'static str {
    match command {
        // The terminal is the program's.
        Command::Run(_) => "error",
        // Of HTTP/2, any program that reaches a port can cause warnings without end.
        _ => "warn,meridian=info,openraft=error,h2=error",
    }
}

/// `EX_IOERR` of sysexits.h.
const OUTPUT_FAILED: i32 = 74;

fn main() -> ExitCode {
    abort_on_panic();
    // Data, tokens and exported files are readable by this user only.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("MERIDIAN_LOG")
        .unwrap_or_else(|_| EnvFilter::new(default_filter(&cli.command)));
    let ansi = std::io::stderr().is_terminal();
    let log = match LogWriter::start(std::io::stderr()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("meridian: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    log_writer::install(&log);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(log)
        // A failure to log must not print: printing fails, too.
        .log_internal_errors(false)
        .init();
    let trusted = cli.cacert.as_deref().map_or(Ok(()), |file| {
        meridian_kv_client::trust(file).context("--cacert, or MERIDIAN_CACERT")
    });
    let result = trusted.and_then(|()| run(cli.command));
    if let Err(error) = &result {
        // Printed as log lines are: a server must end here even if its standard error is blocked.
        log_writer::print(&format!("meridian: {error:#}"));
    }
    log_writer::finish();
    result.unwrap_or(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Set for the process that is to abort.
    const CHILD: &str = "MERIDIAN_TEST_GAP";

    /// Runs in the process that is to abort.
    fn apply_with_a_gap() {
        use meridian_types::{Batch, Epoch, Position};
        abort_on_panic();
        let batch =
            Batch { position: Position::new(Epoch(1), 2), time_ms: 0, transactions: Vec::new() };
        let engine = std::sync::Arc::new(meridian_storage::MemoryEngine::default());
        let state = meridian_storage::ShardState::open(engine, meridian_types::ShardId(1)).unwrap();
        let applying = std::thread::spawn(move || state.apply(&[batch.into()], Default::default()));
        println!("it goes on: {:?}", applying.join().is_ok());
    }

    #[test]
    fn gap_aborts_the_process_on_any_thread() {
        if std::env::var_os(CHILD).is_some() {
            apply_with_a_gap();
            return;
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["tests::gap_aborts_the_process_on_any_thread", "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (out, error) =
            (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
        assert_eq!(signal, Some(6), "it was not aborted: {:?}\n{out}\n{error}", child.status);
        assert!(error.contains("batch 1.2 cannot follow 1.0"), "{error}");
        assert!(!out.contains("it goes on"), "{out}");
    }

    #[test]
    fn gap_aborts_the_process_while_its_log_is_blocked() {
        if std::env::var_os(CHILD).is_some() {
            // Holds the lock as the thread that writes log lines does when the pipe is full.
            let (locked, is_locked) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let _writing = std::io::stderr().lock();
                locked.send(()).unwrap();
                loop {
                    std::thread::park();
                }
            });
            is_locked.recv().unwrap();
            apply_with_a_gap();
            return;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "tests::gap_aborts_the_process_while_its_log_is_blocked",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = std::time::Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > std::time::Duration::from_secs(60) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it goes on");
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(6),
            "it was not aborted: {status}"
        );
    }

    #[test]
    fn warnings_that_strangers_can_cause_without_end_are_not_logged_by_default() {
        let cli = Cli::try_parse_from(["meridian", "serve", "--config", "node.toml"]).unwrap();
        let filter = EnvFilter::new(default_filter(&cli.command));
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).finish();
        tracing::subscriber::with_default(subscriber, || {
            assert!(!tracing::enabled!(target: "h2::proto::streams::recv", tracing::Level::WARN));
            assert!(tracing::enabled!(target: "h2::proto::streams::recv", tracing::Level::ERROR));
            assert!(tracing::enabled!(target: "hyper::server", tracing::Level::WARN));
            assert!(tracing::enabled!(target: "meridian_proto::codec", tracing::Level::WARN));
        });
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Words as a shell splits them; single quotes keep words together.
    fn shell_words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for character in line.chars() {
            match (character, words.last_mut()) {
                ('\'', _) => is_quoted = !is_quoted,
                (' ', _) if !is_quoted => words.push(String::new()),
                (other, Some(word)) => word.push(other),
                (_, None) => {}
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn commands_of_the_manuals_parse() {
        let manuals = [
            (include_str!("../../../docs/operations.md"), 20),
            (include_str!("../../../docs/kv.md"), 20),
            (include_str!("../../../docs/queues.md"), 10),
            (include_str!("../../../docs/encryption.md"), 3),
        ];
        for (manual, at_least) in manuals {
            let mut commands = 0;
            for line in manual.lines().filter_map(|line| line.strip_prefix("$ meridian ")) {
                let words = shell_words(line).into_iter().take_while(|word| word != "#");
                let words = std::iter::once("meridian".to_owned()).chain(words);
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("meridian {line}: {error}");
                }
                commands += 1;
            }
            assert!(commands >= at_least, "only {commands} commands found");
        }
    }

    #[test]
    fn contradictory_arguments_are_refused() {
        let lines = [
            "switchover 1",
            "switchover --to region-2",
            "switchover 1 --all --to region-2",
            "switchover 1 --cancel --to region-2",
            "switchover --all --cancel",
            "failback",
            "failover --allow-data-loss",
            "nodes add --name x",
            "shards set-voters 1",
            "tokens create x --expires-in soon",
            "cluster status --node nowhere",
            "cluster changes -n 0",
            "orphans export x",
            "kv get",
            "kv set a 1 --json --u64",
            "kv set a 1 --if-versionstamp 12",
            "kv list a --prefix b",
            "kv delete",
            "kv delete a --prefix b",
            "kv delete --prefix b --if-versionstamp none",
            "encryption rotate",
            "queue cancel",
            "queue cancel 12",
            "queue run-now 00010000000000020000",
            "queue redrive",
            "queue redrive 1 --all",
            "queue peek 000100000000000200000000 --limit 2",
            "queue ls --limit 0",
        ];
        for line in lines {
            let words = std::iter::once("meridian").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
