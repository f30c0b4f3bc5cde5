//! `meridian run`: a Deno program with all that it needs, for development.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result};
use clap::Args;
use meridian_cron::CronServer;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::dev::{Dev, Running};
use super::{Hangup, asked_to_stop};

/// As gateways serve it.
const MODULE: &str = include_str!("../../../../deploy/deno/meridian.js");
const CRON_SOCKET: &str = "DENO_UNSTABLE_CRON_SOCK";
/// The exit code that a shell reports for a process which a signal ended is higher by this.
const BY_SIGNAL: i32 = 128;

/// Runs a Deno program against a development cluster, which ends with it.
///
/// `Deno.openKv()` opens the cluster's default database, queues work, writes take effect once, and
/// crons tick once, also in several programs of one database. What follows the options goes to `deno
/// run`, and needs `--allow-net` and `--allow-env` as any program of Deno KV does:
///
///   meridian run --ephemeral -A main.ts --flag-of-the-program
///
/// With --url the program runs against a gateway that there is; no cluster is started then.
#[derive(Args)]
pub(crate) struct Run {
    /// URL of a gateway, or of a database as clients open it, in the place of a cluster. The access
    /// token is then to be given.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The program `deno`.
    #[arg(long, value_name = "PROGRAM", env = "MERIDIAN_DENO", default_value = "deno")]
    deno: PathBuf,
    #[command(flatten)]
    dev: Dev,
    /// Arguments of `deno run`: its options, the program, and the program's arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    arguments: Vec<OsString>,
}

impl Run {
    /// The exit code of the program, with which this process is to end once all that serves the cluster
    /// is gone: threads of a database that outlast the end of its process abort it.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let status = {
            let mut authority = None;
            let (cluster, url, token) = match &self.url {
                Some(url) => {
                    let token = self.dev.given_token()?;
                    let token = token.context(
                        "there is no access token: set DENO_KV_ACCESS_TOKEN, or give \
                         --access-token-file",
                    )?;
                    (None, url.clone(), token)
                }
                None => {
                    let started = self.dev.start(asked_to_stop(Hangup::Stop)).await;
                    let started = started.context(
                        "a cluster could not be started; --url runs the program against another",
                    )?;
                    let Some(running) = started else {
                        return Ok(code(BY_SIGNAL + Signal::INT.as_raw()));
                    };
                    let (url, token) = (url_of(&running), running.token.clone());
                    authority = running.authority.clone();
                    (Some(running), url, token)
                }
            };
            let ended = self.run_program(&url, &token, authority.as_deref()).await;
            if let Some(cluster) = cluster
                && let Err(error) = cluster.stop().await
            {
                // The program's end is what counts.
                tracing::warn!(%error, "the cluster did not end as it should");
            }
            ended?
        };
        Ok(exit_code(status))
    }

    /// From the program's start to its end.
    async fn run_program(
        &self,
        url: &str,
        token: &str,
        authority: Option<&Path>,
    ) -> Result<ExitStatus> {
        // From here on no signal ends this process, which would leave the module behind.
        let signals = Signals::new()?;
        let mut module = tempfile::Builder::new().prefix("meridian-").suffix(".js").tempfile()?;
        module.write_all(MODULE.as_bytes())?;
        let crons = match std::env::var_os(CRON_SOCKET) {
            Some(_) => None,
            None => Some(CronServer::start("127.0.0.1:0", url.to_owned(), token.to_owned()).await?),
        };
        let mut command = self.command(module.path());
        command.env("DENO_KV_DEFAULT_PATH", url).env("DENO_KV_ACCESS_TOKEN", token);
        if let Some(authority) = authority {
            command.env("DENO_CERT", authority);
        }
        if let Some(crons) = &crons {
            command.env(CRON_SOCKET, crons.variable());
        }
        let ended = run_to_end(command, &self.deno, signals).await;
        drop(module);
        if let Some(crons) = crons {
            crons.stop().await;
        }
        ended
    }

    fn command(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.deno);
        command.args(["run", "--unstable-kv", "--unstable-cron", "--preload"]).arg(module);
        command.args(&self.arguments).kill_on_drop(true);
        command
    }
}

/// Of the first region's gateway.
fn url_of(running: &Running) -> String {
    let gateway = running.cluster.gateways().first();
    gateway.map(|(_, address)| running.url(*address)).unwrap_or_default()
}

/// The signals that this process passes on.
struct Signals([(Signal, tokio::signal::unix::Signal); 6]);

impl Signals {
    fn new() -> Result<Self> {
        let of = |number: Signal| -> Result<_> {
            Ok((number, signal(SignalKind::from_raw(number.as_raw()))?))
        };
        Ok(Self([
            of(Signal::INT)?,
            of(Signal::TERM)?,
            of(Signal::HUP)?,
            of(Signal::QUIT)?,
            of(Signal::USR1)?,
            of(Signal::USR2)?,
        ]))
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let mut come = None;
            for (number, one) in &mut self.0 {
                if come.is_none() && one.poll_recv(context).is_ready() {
                    come = Some(*number);
                }
            }
            come.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }

    /// When the program has ended, the next one ends this process.
    fn end_this_process(mut self) {
        tokio::spawn(async move {
            let signal = self.next().await;
            crate::log_writer::finish();
            std::process::exit(BY_SIGNAL + signal.as_raw());
        });
    }
}

/// Passes on the signals that this process gets.
async fn run_to_end(mut command: Command, name: &Path, mut signals: Signals) -> Result<ExitStatus> {
    let mut child = command.spawn().with_context(|| {
        format!("cannot start `{}` (is Deno installed? --deno names it)", name.display())
    })?;
    loop {
        let signal = tokio::select! {
            status = child.wait() => {
                signals.end_this_process();
                return Ok(status?);
            }
            signal = signals.next() => signal,
        };
        let is_of_terminal = matches!(signal, Signal::INT | Signal::QUIT) && is_in_foreground();
        if !is_of_terminal {
            pass_on(&child, signal);
        }
    }
}

/// Whether Ctrl-C of the terminal goes to this process, and therefore to its program as well. Where
/// the system does not tell, it is passed on.
fn is_in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name: state, parent, group, session, terminal, the terminal's foreground group.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let fields: Vec<&str> = fields.split(' ').collect();
    matches!(fields.get(2..6), Some([group, _, _, foreground]) if group == foreground)
}

fn pass_on(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if id.is_some_and(|id| kill_process(id, signal).is_err()) {
        tracing::debug!("the program has ended before it got a signal");
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    code(status.code().or(status.signal().map(|signal| BY_SIGNAL + signal)).unwrap_or(1))
}

/// As a shell shows it.
fn code(number: i32) -> ExitCode {
    u8::try_from(number).map_or(ExitCode::FAILURE, ExitCode::from)
}
