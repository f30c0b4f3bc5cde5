//! The queue that a command is about: requests to the gateway, and their answers.

use anyhow::{Context, Result, ensure};
use clap::Args;
use meridian_types::{Consistency, QueueName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::kv::connection::Connection;
use crate::command::kv::session::Session;
use crate::command::pieces;

/// Messages or dead letters of one page, and of one change, at most.
pub(super) const MAX_AT_ONCE: usize = 1000;
/// Payloads that one change writes again, at most: well within what one transaction may.
const CHANGED_BYTES: u64 = 2 << 20;

/// A queue of a database.
#[derive(Args)]
pub(super) struct Target {
    #[command(flatten)]
    connection: Connection,
    /// Name of the queue. Default: the queue without a name.
    #[arg(long, global = true, value_name = "NAME", value_parser = queue_name)]
    queue: Option<QueueName>,
}

/// A variable of a script that is not set is no wish for the queue without a name.
fn queue_name(text: &str) -> Result<QueueName> {
    ensure!(
        !text.is_empty(),
        "a name has a character at least; without --queue it is the queue without a name"
    );
    Ok(text.parse()?)
}

impl Target {
    pub(super) async fn open(&self) -> Result<QueueSession> {
        let session = self.connection.open(Consistency::Strong).await?;
        Ok(QueueSession { session, queue: self.queue() })
    }

    /// Of the database, as clients open it.
    pub(super) fn url(&self) -> Result<String> {
        self.connection.url()
    }

    pub(super) fn is_named(&self) -> bool {
        self.queue.is_some()
    }

    pub(super) fn queue(&self) -> QueueName {
        self.queue.clone().unwrap_or_default()
    }

    /// Before the URL of the database, for people.
    pub(super) fn of_queue(&self) -> String {
        self.queue.as_ref().map(|queue| format!(" of queue {queue}")).unwrap_or_default()
    }
}

/// Asks a gateway about one queue.
pub(super) struct QueueSession {
    session: Session,
    queue: QueueName,
}

/// A request about a queue.
#[derive(Serialize)]
struct About<'a, T> {
    #[serde(flatten)]
    request: &'a T,
    /// Empty: the unnamed one.
    #[serde(skip_serializing_if = "str::is_empty")]
    queue: &'a str,
}

fn about<T: Serialize>(queue: &QueueName, request: &T) -> Result<String> {
    Ok(serde_json::to_string(&About { request, queue: queue.as_str() })?)
}

/// A request for a page.
#[derive(Debug, Clone, Serialize)]
pub(super) struct List {
    pub(super) dead: bool,
    /// Of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Value>,
    pub(super) limit: u64,
    pub(super) payload: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub(super) messages: Vec<Message>,
    pub(super) dead_letters: Vec<Letter>,
    pub(super) totals: Totals,
    /// The named queues with messages, where the unnamed one was asked for.
    #[serde(default)]
    pub(super) queues: Vec<NamedTotals>,
    #[serde(default)]
    pub(super) paused: bool,
    pub(super) after: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) due: u64,
    pub(super) attempt: u32,
    pub(super) enqueued: u64,
    pub(super) bytes: u64,
    pub(super) keys: u64,
    pub(super) leased: bool,
    #[serde(default, skip_serializing)]
    pub(super) payload: Option<String>,
    #[serde(default, skip_serializing)]
    pub(super) keys_if_undelivered: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Letter {
    pub(super) number: u64,
    /// Empty of the unnamed queue.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) queue: String,
    pub(super) id: String,
    pub(super) attempts: u32,
    pub(super) enqueued: u64,
    pub(super) died: u64,
    pub(super) bytes: u64,
    #[serde(default, skip_serializing)]
    pub(super) payload: Option<String>,
}

/// Of a whole queue.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Totals {
    pub(super) undelivered: u64,
    pub(super) leased: u64,
    pub(super) dead: u64,
}

/// Of a named queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NamedTotals {
    pub(super) queue: String,
    pub(super) undelivered: u64,
    pub(super) leased: u64,
}

/// A change that takes effect at once.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Change {
    pub(super) cancel: Vec<Row>,
    pub(super) run_now: Vec<Row>,
    pub(super) redrive: Vec<Buried>,
    pub(super) discard: Vec<Buried>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    id: String,
    due: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Buried {
    id: String,
    number: u64,
}

impl Row {
    /// Of no message: its cancellation changes nothing, and is taken wherever messages can be.
    pub(super) fn none() -> Self {
        Self { id: "0".repeat(24), due: 0 }
    }
}

impl From<&Message> for Row {
    fn from(message: &Message) -> Self {
        Self { id: message.id.clone(), due: message.due }
    }
}

impl From<&Letter> for Buried {
    fn from(letter: &Letter) -> Self {
        Self { id: letter.id.clone(), number: letter.number }
    }
}

#[derive(Deserialize)]
struct Changed {
    versionstamp: String,
}

pub(super) async fn page(session: &mut QueueSession, list: &List) -> Result<Page> {
    let answer = session.session.list_queue(about(&session.queue, list)?).await?;
    serde_json::from_slice(&answer).context("the gateway answers with something else than a page")
}

/// The versionstamp of the change.
pub(super) async fn change(session: &mut QueueSession, change: &Change) -> Result<String> {
    let answer = session.session.change_queue(about(&session.queue, change)?).await?;
    let changed: Changed = serde_json::from_slice(&answer)
        .context("the gateway answers with something else than a versionstamp")?;
    Ok(changed.versionstamp)
}

/// Pieces that one change may write again each, by the bytes of their payloads.
pub(super) fn pieces<T>(all: &[T], bytes: impl Fn(&T) -> u64) -> Vec<&[T]> {
    pieces::of(all, MAX_AT_ONCE, CHANGED_BYTES, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fit_a_change_and_lose_nothing() {
        let all: Vec<u64> = (0..2500).map(|at| if at % 3 == 0 { 65_536 } else { 9 }).collect();
        let found = pieces(&all, |bytes| *bytes);
        assert_eq!(found.concat(), all);
        for piece in found {
            assert!(piece.len() <= MAX_AT_ONCE && piece.iter().sum::<u64>() <= CHANGED_BYTES);
        }
        assert_eq!(pieces(&all, |_| 0).len(), 3);
        assert_eq!(pieces(&[u64::MAX; 2], |bytes| *bytes).len(), 2);
    }

    #[test]
    fn requests_are_those_that_the_gateway_takes() {
        let list = List { dead: false, after: None, limit: 5, payload: true };
        let text = |list: &List| about(&QueueName::UNNAMED, list).unwrap();
        assert_eq!(text(&list), r#"{"dead":false,"limit":5,"payload":true}"#);
        let named = about(&"emails".parse().unwrap(), &list).unwrap();
        assert_eq!(named, r#"{"dead":false,"limit":5,"payload":true,"queue":"emails"}"#);
        let after = serde_json::json!({ "id": "a", "due": 7 });
        let next = List { after: Some(after), ..list };
        assert!(text(&next).contains(r#""after":{"due":7,"id":"a"}"#), "{}", text(&next));
        let row = Row { id: "a".to_owned(), due: 7 };
        let change = Change { run_now: vec![row], ..Change::default() };
        assert_eq!(
            serde_json::to_string(&change).unwrap(),
            r#"{"cancel":[],"runNow":[{"id":"a","due":7}],"redrive":[],"discard":[]}"#
        );
    }
}
