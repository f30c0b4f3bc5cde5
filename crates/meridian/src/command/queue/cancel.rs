//! `meridian queue cancel` and `meridian queue run-now`.

use anyhow::{Result, bail};
use clap::Args;
use meridian_types::MessageId;

use super::api::{self, Change, Message, Row, Target};
use super::walk::{Walk, find};
use crate::command::kv::output::{Form, Output};
use crate::command::operator::format;

/// Removes messages from the queue, undelivered. Their keys if undelivered are not set.
///
/// A message that a listener holds is taken from it. A message is looked for by its id from the front
/// of the queue on; if it is acknowledged before it is found and cancelled, it counts as delivered.
#[derive(Args)]
pub(crate) struct Cancel {
    /// Ids of messages, as `meridian queue ls` shows them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<MessageId>,
}

/// Has messages delivered now, whenever they were due.
///
/// A message that a listener holds, which may hang, is taken from it, and goes to another; no
/// attempt is counted. A message that is due and waits for a listener is left where it is.
#[derive(Args)]
pub(crate) struct RunNow {
    /// Ids of messages, as `meridian queue ls` shows them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<MessageId>,
}

impl Cancel {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        let (found, missing) = find(&mut Walk::messages(&mut session), &self.ids).await?;
        for piece in api::pieces(&found, |_| 0) {
            let cancel = piece.iter().map(Row::from).collect();
            api::change(&mut session, &Change { cancel, ..Change::default() }).await?;
        }
        output.line(&match output.form() {
            Form::Json => format!("{{\"cancelled\":{}}}", found.len()),
            Form::Inspect => {
                format!("{} cancelled", format::count(found.len() as u64, "message"))
            }
        })?;
        all_found(&missing)
    }
}

impl RunNow {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        let (found, missing) = find(&mut Walk::messages(&mut session), &self.ids).await?;
        let now_ms = format::now_ms();
        let waits = |message: &Message| message.due <= now_ms && !message.leased;
        let (due, moved): (Vec<Message>, Vec<Message>) = found.into_iter().partition(waits);
        for piece in api::pieces(&moved, |message| message.bytes.saturating_add(KEYS_BYTES)) {
            let run_now = piece.iter().map(Row::from).collect();
            api::change(&mut session, &Change { run_now, ..Change::default() }).await?;
        }
        output.line(&match output.form() {
            Form::Json => format!("{{\"moved\":{},\"due\":{}}}", moved.len(), due.len()),
            Form::Inspect => {
                let moved = format::count(moved.len() as u64, "message");
                match due.len() {
                    0 => format!("{moved} due now"),
                    due => format!("{moved} due now, {due} due already"),
                }
            }
        })?;
        all_found(&missing)
    }
}

/// The keys of a message, which are written with it again.
const KEYS_BYTES: u64 = 20 << 10;

fn all_found(missing: &[String]) -> Result<()> {
    if !missing.is_empty() {
        bail!("there is no message {}: delivered, cancelled or dead", missing.join(", "));
    }
    Ok(())
}
