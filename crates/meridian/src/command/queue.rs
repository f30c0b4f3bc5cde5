//! `meridian queue`: the messages of a database, for operators.
//!
//! | module | contents |
//! |---|---|
//! | `api` | the queue that a command is about: requests to the gateway, and their answers |
//! | `walk` | a queue in pages |
//! | `show` | messages and dead letters as lines |
//! | `ls`, `count`, `peek` | the commands that read |
//! | `cancel`, `redrive`, `purge` | the commands that change |
//! | `pause` | the setting of the directory that keeps a queue from handing out |
//! | `webhook` | the setting of the directory that has messages sent to a URL |

mod api;
mod cancel;
mod count;
mod ls;
mod pause;
mod peek;
mod purge;
mod redrive;
mod show;
mod walk;
mod webhook;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

use super::kv::output::{Form, Output};

/// Shows the messages of a database's queue, and changes what becomes of them: of its unnamed queue,
/// or of the queue of the name that --queue says.
///
/// A message has an id, which `ls` shows and which stays the same for its whole life. A message whose
/// last delivery failed and that has no keys to be kept under is a dead letter, with a number.
///
/// The access token comes from DENO_KV_ACCESS_TOKEN or --token-file. It must be allowed to read, and
/// to write for all that changes something. `pause`, `resume` and `webhook` take no token: they ask the
/// nodes of the cluster, as `meridian databases` does.
#[derive(Args)]
pub(crate) struct Queue {
    #[command(flatten)]
    target: api::Target,
    /// Form of the output. Default: `inspect` on a terminal, `json` into a pipe or file.
    #[arg(long, short, global = true, value_enum, value_name = "FORM")]
    output: Option<Form>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Count(count::Count),
    Peek(peek::Peek),
    Cancel(cancel::Cancel),
    RunNow(cancel::RunNow),
    Redrive(redrive::Redrive),
    Purge(purge::Purge),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Webhook(webhook::WebhookCommand),
}

impl Queue {
    pub(crate) async fn run(self) -> Result<()> {
        let mut output = Output::new(self.output);
        let target = &self.target;
        let is_of_database = matches!(self.command, Command::Pause(_) | Command::Resume(_));
        ensure!(
            !(is_of_database && target.is_named()),
            "all queues of a database are paused and resumed together: leave --queue out"
        );
        let result = match self.command {
            Command::Ls(ls) => ls.run(target, &mut output).await,
            Command::Count(count) => count.run(target, &mut output).await,
            Command::Peek(peek) => peek.run(target, &mut output).await,
            Command::Cancel(cancel) => cancel.run(target, &mut output).await,
            Command::RunNow(run_now) => run_now.run(target, &mut output).await,
            Command::Redrive(redrive) => redrive.run(target, &mut output).await,
            Command::Purge(purge) => purge.run(target, &mut output).await,
            Command::Pause(pause) => pause.run(&mut output).await,
            Command::Resume(resume) => resume.run(&mut output).await,
            Command::Webhook(webhook) => webhook.run(target, &mut output).await,
        };
        // Also of a command that fails half-way.
        output.end()?;
        result
    }
}
