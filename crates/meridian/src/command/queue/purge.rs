//! `meridian queue purge`.

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::api::{self, Buried, Change, List, Page, QueueSession, Row, Target, Totals};
use super::walk::Walk;
use crate::command::kv::confirm;
use crate::command::kv::output::{Form, Output};
use crate::command::kv::progress::Progress;
use crate::command::operator::format;
use crate::command::{Hangup, asked_to_stop};

/// Removes all messages of a queue, undelivered, or all its dead letters.
///
/// Their number is shown first, and they are removed only once that is confirmed. Messages that
/// listeners hold are taken from them; messages that are enqueued meanwhile stay. It goes in pages,
/// each of which is one write; a purge that is stopped half-way goes on when the command is given
/// again.
#[derive(Args)]
pub(crate) struct Purge {
    /// Remove the dead letters, and no message.
    #[arg(long)]
    dead: bool,
    /// Remove without asking.
    #[arg(long)]
    yes: bool,
}

impl Purge {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        // Ordered among all writes, so that a message with a later id came behind it; and no put,
        // which a node with a full disk would refuse. A token that may only read fails here.
        let marker = Change { cancel: vec![Row::none()], ..Change::default() };
        let began = api::change(&mut session, &marker).await?;
        let noun = if self.dead { "dead letter" } else { "message" };
        let found = self.count(&mut session, target).await?;
        let which =
            format!("{}{} of {}", format::count(found, noun), target.of_queue(), target.url()?);
        let would = format!("{which} would be removed; --yes removes them");
        if found > 0 && !self.yes && !confirm(&format!("Remove {which}"), &would)? {
            bail!("nothing was removed");
        }
        let removed = match found {
            0 => 0,
            found => self.remove(&mut session, &began, found, noun).await?,
        };
        let left = self.count(&mut session, target).await?;
        output.line(&match output.form() {
            Form::Json => format!("{{\"removed\":{removed},\"left\":{left}}}"),
            Form::Inspect => format!("{} removed, {left} left", format::count(removed, noun)),
        })
    }

    /// How many there are to remove.
    async fn count(&self, session: &mut QueueSession, target: &Target) -> Result<u64> {
        if !(self.dead && target.is_named()) {
            let totals = totals(session).await?;
            return Ok(if self.dead { totals.dead } else { totals.undelivered });
        }
        // Only the dead letters of all queues together have a total.
        let (mut walk, mut count) = (Walk::dead_letters(session), 0);
        while let Some(page) = walk.next().await? {
            count += page.dead_letters.len() as u64;
        }
        Ok(count)
    }

    async fn remove(
        &self,
        session: &mut QueueSession,
        began: &str,
        found: u64,
        noun: &str,
    ) -> Result<u64> {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            asked_to_stop(Hangup::Stop).await;
            stopping.cancel();
        });
        let mut walk = Walk::new(session, self.dead);
        let mut progress = Progress::new();
        let mut removed: u64 = 0;
        while let Some(page) = walk.next().await? {
            if stop.is_cancelled() {
                bail!("stopped: {removed} of {found} are removed; the same command goes on");
            }
            let change = removal(&page, began);
            let count = change.cancel.len() + change.discard.len();
            let so_far = || format!("{removed} of {found} are removed");
            if count == 0 {
                continue;
            }
            api::change(walk.session(), &change).await.with_context(so_far)?;
            removed = removed.saturating_add(count as u64);
            progress.show(|| format!("{removed} of {} removed", format::count(found, noun)));
        }
        Ok(removed)
    }
}

async fn totals(session: &mut QueueSession) -> Result<Totals> {
    let list = List { dead: false, after: None, limit: 1, payload: false };
    Ok(api::page(session, &list).await?.totals)
}

/// An id begins with the versionstamp of the transaction that enqueued the message.
fn removal(page: &Page, began: &str) -> Change {
    let before = |id: &str| id.get(..began.len()).is_some_and(|enqueued| enqueued < began);
    let messages = page.messages.iter().filter(|message| before(&message.id));
    let letters = page.dead_letters.iter().filter(|letter| before(&letter.id));
    Change {
        cancel: messages.map(Row::from).collect(),
        discard: letters.map(Buried::from).collect(),
        ..Change::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_of_the_beginning_is_a_cancellation_of_no_message() {
        let marker = Change { cancel: vec![Row::none()], ..Change::default() };
        assert_eq!(
            serde_json::to_string(&marker).unwrap(),
            "{\"cancel\":[{\"id\":\"000000000000000000000000\",\"due\":0}],\"runNow\":[],\
             \"redrive\":[],\"discard\":[]}"
        );
    }

    #[test]
    fn messages_that_were_enqueued_since_are_left() {
        let message = |id: &str| {
            format!(
                "{{\"id\":\"{id}\",\"due\":1,\"attempt\":1,\"enqueued\":1,\"bytes\":1,\"keys\":0,\
                 \"leased\":false}}"
            )
        };
        let ids =
            ["00010000000000020000ffff", "000100000000000300000000", "000100000000000200010000"];
        let page = format!(
            "{{\"messages\":[{}],\"deadLetters\":[],\
             \"totals\":{{\"undelivered\":3,\"leased\":0,\"dead\":0}}}}",
            ids.map(message).join(",")
        );
        let page: Page = serde_json::from_str(&page).unwrap();
        let removed = |began| removal(&page, began).cancel.len();
        assert_eq!(removed("00010000000000020000"), 0, "of a transaction behind all others");
        assert_eq!(removed("00010000000000020001"), 1);
        assert_eq!(removed("00010000000000030000"), 2);
        assert_eq!(removed("00020000000000000000"), 3);
    }
}
