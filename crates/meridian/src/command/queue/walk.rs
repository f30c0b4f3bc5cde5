//! A queue in pages. Each page is a read of its own: a walk is no snapshot.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use meridian_types::MessageId;

use super::api::{self, List, MAX_AT_ONCE, Message, Page, QueueSession};
use crate::command::kv::progress::Progress;
use crate::command::operator::format;

pub(super) struct Walk<'a> {
    session: &'a mut QueueSession,
    list: List,
    /// Messages or dead letters that may still come.
    remaining: u64,
    is_over: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn messages(session: &'a mut QueueSession) -> Self {
        Self::new(session, false)
    }

    pub(super) fn dead_letters(session: &'a mut QueueSession) -> Self {
        Self::new(session, true)
    }

    /// Of the dead letters, or of the messages.
    pub(super) fn new(session: &'a mut QueueSession, dead: bool) -> Self {
        let list = List { dead, after: None, limit: MAX_AT_ONCE as u64, payload: false };
        Self { session, list, remaining: u64::MAX, is_over: false }
    }

    pub(super) fn limit(self, limit: Option<u64>) -> Self {
        Self { remaining: limit.unwrap_or(u64::MAX), ..self }
    }

    pub(super) fn with_payloads(self) -> Self {
        Self { list: List { payload: true, ..self.list }, ..self }
    }

    /// The next page; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Page>> {
        if self.is_over || self.remaining == 0 {
            return Ok(None);
        }
        self.list.limit = self.remaining.min(MAX_AT_ONCE as u64);
        let page = api::page(self.session, &self.list).await?;
        let count = page.messages.len() + page.dead_letters.len();
        self.remaining = self.remaining.saturating_sub(count as u64);
        self.list.after = page.after.clone();
        self.is_over = count == 0 || page.after.is_none();
        Ok((count > 0).then_some(page))
    }

    /// For work on what was found.
    pub(super) fn session(&mut self) -> &mut QueueSession {
        self.session
    }
}

/// Messages by their ids, wherever they are in the queue, and the ids of which there are none.
pub(super) async fn find(
    walk: &mut Walk<'_>,
    ids: &[MessageId],
) -> Result<(Vec<Message>, Vec<String>)> {
    let mut wanted: BTreeSet<String> = ids.iter().map(MessageId::to_string).collect();
    let mut found = BTreeMap::new();
    let mut progress = Progress::new();
    let mut seen: u64 = 0;
    while !wanted.is_empty()
        && let Some(page) = walk.next().await?
    {
        seen = seen.saturating_add(page.messages.len() as u64);
        for message in page.messages {
            // A message that moves meanwhile may come twice: where it was seen last is where it is.
            if wanted.remove(&message.id) || found.contains_key(&message.id) {
                found.insert(message.id.clone(), message);
            }
        }
        progress.show(|| format!("{} looked at", format::count(seen, "message")));
    }
    let in_order = ids.iter().filter_map(|id| found.remove(&id.to_string()));
    Ok((in_order.collect(), wanted.into_iter().collect()))
}
