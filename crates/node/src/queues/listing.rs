//! A page of a queue, for an operator: a strong read of its rows, and what listeners hold of them.

use std::sync::Arc;

use bytes::Bytes;
use meridian_gateway::{
    ListFrom, ListedLetter, ListedMessage, ListedQueue, ListedTotals, QueueList, QueuePage,
};
use meridian_queue::MessageKey;
use meridian_storage::{QueuedMessage, ShardState, or_fatal};
use meridian_types::{DeadLetter, Message};
use tokio::sync::oneshot;

use super::session::MAX_MESSAGE_BYTES;
use super::{BESIDE_BYTES, Command, Looked, NotListening, Queues, Shown};
use crate::cluster_view::epoch_lease::Fenced;
use crate::read::execution::counted;

/// A page with payloads has no other message behind so many bytes.
const PAGE_BYTES: usize = 256 << 10;
/// No more are read for a page without.
const READ_BYTES: usize = 4 << 20;

impl Queues {
    /// The rows are as a strong read that begins now sees them; the totals and the leases may be of
    /// a little later.
    ///
    /// # Errors
    /// Why not. May be dropped at any await.
    pub(crate) async fn list(&self, list: QueueList) -> Result<Fenced<QueuePage>, NotListening> {
        let Shown { group, gate, lease, state, reads, .. } = &*self.shown;
        let (whole, queue) = (list.whole, list.queue.clone());
        let beside = BESIDE_BYTES.saturating_mul(list.limit as usize);
        let max_bytes = if whole { PAGE_BYTES } else { READ_BYTES };
        let turn = self.lists.acquire().await;
        let held = reads.take(max_bytes + MAX_MESSAGE_BYTES + beside).await;
        let mut held =
            held.map_err(|_| NotListening::Unavailable("the leader is short of memory for reads"))?;
        if gate.confirm(group).await.is_err() {
            return Err(self.shown.not_leader());
        }
        let state = Arc::clone(state);
        let of = Some(queue.database);
        let page = reads.little(of, move || read(&state, &list, max_bytes)).await;
        drop(turn);
        let mut page = page.ok_or(NotListening::Unavailable("the node is stopping"))?;

        let keys = page.messages.iter().map(|message| message.key).collect();
        let names = page.queues.iter().map(|queue| queue.name.clone()).collect();
        let (looked, looks) = oneshot::channel();
        self.command(Command::Look { queue, keys, names, looked })?;
        let Looked { leased, in_all, of_names, is_paused } =
            looks.await.unwrap_or(Err(NotListening::NotLeader(None)))?;
        (page.totals.leased, page.is_paused) = (in_all as u64, is_paused);
        for (message, leased) in page.messages.iter_mut().zip(leased) {
            message.leased = leased;
        }
        for (queue, leased) in page.queues.iter_mut().zip(of_names) {
            queue.leased = leased as u64;
        }

        // The memory counts until the page has left.
        held.shrink_to(payload_bytes(&page) + beside);
        if let Some(payload) = last_payload(&mut page) {
            *payload = counted(std::mem::take(payload), held);
        }
        lease.release(page).ok_or_else(|| self.shown.not_leader())
    }
}

fn payload_bytes(page: &QueuePage) -> usize {
    let messages = page.messages.iter().filter_map(|message| message.whole.as_ref());
    let letters = page.dead_letters.iter().filter_map(|letter| letter.payload.as_ref());
    let keys = messages.clone().flat_map(|(_, keys)| keys);
    let payloads = messages.map(|(payload, _)| payload).chain(letters);
    payloads.chain(keys).map(Bytes::len).sum()
}

fn last_payload(page: &mut QueuePage) -> Option<&mut Bytes> {
    match page.messages.last_mut() {
        Some(message) => message.whole.as_mut().map(|(payload, _)| payload),
        None => page.dead_letters.last_mut()?.payload.as_mut(),
    }
}

fn read(state: &ShardState, list: &QueueList, max_bytes: usize) -> QueuePage {
    let QueueList { ref queue, from, limit, whole } = *list;
    let limit = limit as usize;
    let mut page = QueuePage::default();
    match from {
        ListFrom::Messages { after } => {
            let after = after.map(|key| (key.due_ms, key.id));
            let rows = or_fatal(state.messages_due(queue, after, u64::MAX, limit, max_bytes));
            page.messages = rows.into_iter().map(|row| message(row, whole)).collect();
        }
        ListFrom::DeadLetters { first } => {
            let rows = or_fatal(state.dead_letters(queue, first, limit, max_bytes));
            page.dead_letters = rows.into_iter().map(|row| letter(row, whole)).collect();
        }
    }
    let totals = or_fatal(state.queue_totals(queue.database));
    let dead = totals.dead();
    let undelivered = if queue.name.is_default() {
        let named = or_fatal(state.named_queues(queue.database)).into_iter();
        let listed = |(name, undelivered)| ListedQueue { name, undelivered, leased: 0 };
        page.queues = named.map(listed).collect();
        totals.undelivered
    } else {
        or_fatal(state.named_undelivered(queue))
    };
    page.totals = ListedTotals { undelivered, leased: 0, dead };
    page
}

fn message(row: QueuedMessage, whole: bool) -> ListedMessage {
    let QueuedMessage { due_ms, id, message } = row;
    let Message { payload, keys_if_undelivered, attempts, enqueued_ms, .. } = message;
    ListedMessage {
        key: MessageKey { due_ms, id },
        failed: attempts,
        enqueued_ms,
        payload_bytes: count(payload.len()),
        keys: count(keys_if_undelivered.len()),
        leased: false,
        whole: whole.then_some((payload, keys_if_undelivered)),
    }
}

fn letter((number, letter): (u64, DeadLetter), whole: bool) -> ListedLetter {
    let DeadLetter { queue, id, payload, attempts, enqueued_ms, died_ms } = letter;
    ListedLetter {
        number,
        queue,
        id,
        failed: attempts,
        enqueued_ms,
        died_ms,
        payload_bytes: count(payload.len()),
        payload: whole.then_some(payload),
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
