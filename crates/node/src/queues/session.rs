//! One session of a listener: keys from the task, and messages to the stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use meridian_queue::{ListenerId, MessageKey, Opening, SessionId};
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{DatabaseId, Message, limits};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::{Handout, NotListening, Notice, Shown};
use crate::cluster_view::epoch_lease::Fenced;
use crate::read::execution::counted;
use crate::time_budget::ALIVE_EVERY;

/// Messages of one part, at most.
const PART_MESSAGES: usize = 64;
/// A part has no other message behind so many bytes.
const PART_BYTES: usize = 128 << 10;
/// The bytes of a message: its payload, its keys, and what is beside them.
const MAX_MESSAGE_BYTES: usize = limits::MAX_VALUE_BYTES
    + limits::MAX_UNDELIVERED_KEYS * limits::MAX_WRITE_KEY_BYTES
    + BESIDE_BYTES;
pub(crate) const BESIDE_BYTES: usize = 512;

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) key: MessageKey,
    /// For how long it is leased; `None`: while the session lives.
    pub(crate) lease: Option<Duration>,
    pub(crate) message: Message,
}

/// One part of what a session yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// There is nothing, and the leader is alive.
    Alive,
    Messages(Fenced<Vec<Handed>>),
    /// Not the listener's any more.
    Released(Vec<MessageKey>),
}

/// It ends when it is dropped, and its listener's messages are leased for the grace from then on.
pub(crate) struct Session {
    shown: Arc<Shown>,
    /// In which it was begun: it ends with it.
    pub(super) term: u64,
    database: DatabaseId,
    listener: ListenerId,
    session: SessionId,
    inbox: mpsc::Receiver<Handout>,
    /// Taken from the inbox, and not dealt with.
    waiting: VecDeque<Handout>,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let (database, listener, session) = (self.database, self.listener, self.session);
        // A task that is gone has no sessions.
        drop(self.notices.send(Notice::Closed { database, listener, session }));
    }
}

impl Session {
    pub(super) fn new(
        shown: Arc<Shown>,
        opening: &Opening,
        inbox: mpsc::Receiver<Handout>,
        notices: &mpsc::UnboundedSender<Notice>,
    ) -> Self {
        let Opening { database, listener, session, .. } = *opening;
        let notices = notices.clone();
        let waiting = VecDeque::new();
        Self { shown, term: 0, database, listener, session, inbox, waiting, notices }
    }

    /// Its parts, at the pace of the reader, until it says why there are no more.
    pub(crate) fn into_parts(self) -> impl Stream<Item = Result<Part, NotListening>> + Send {
        let parts = stream::unfold(Some(self), |session| async {
            let mut session = session?;
            let part = session.next().await;
            let goes_on = part.is_ok().then_some(session);
            Some((part, goes_on))
        });
        let alive = tokio::time::interval(ALIVE_EVERY);
        parts.timeout_repeating(alive).map(|part| part.unwrap_or(Ok(Part::Alive)))
    }

    /// The next part. To drop the future drops messages, so it ends the session.
    ///
    /// # Errors
    /// Why there are no more.
    async fn next(&mut self) -> Result<Part, NotListening> {
        loop {
            let part = match self.take().await {
                Some(Handout::End(refused)) => return Err(refused.into()),
                Some(Handout::Release(key)) => Some(Part::Released(self.released(key))),
                Some(Handout::Deliver { key, lease }) => {
                    let keys = self.deliverable(key, lease);
                    let messages = self.hand_out(keys).await?;
                    (!messages.is_empty()).then_some(Part::Messages(messages))
                }
                // The task has ended the term, or this session.
                None => return Err(self.not_leader()),
            };
            if let Some(part) = part {
                return Ok(part);
            }
        }
    }

    async fn take(&mut self) -> Option<Handout> {
        match self.waiting.pop_front() {
            Some(next) => Some(next),
            None => self.inbox.recv().await,
        }
    }

    /// The next handout, if one is there.
    fn take_now(&mut self) -> Option<Handout> {
        self.waiting.pop_front().or_else(|| self.inbox.try_recv().ok())
    }

    fn not_leader(&self) -> NotListening {
        let leader = self.shown.group.leadership().err().and_then(|not_leading| not_leading.leader);
        NotListening::NotLeader(leader)
    }

    /// All that is released at once.
    fn released(&mut self, first: MessageKey) -> Vec<MessageKey> {
        let mut keys = vec![first];
        while let Some(next) = self.take_now() {
            let Handout::Release(key) = next else {
                self.waiting.push_front(next);
                break;
            };
            keys.push(key);
        }
        keys
    }

    /// All that is to be delivered at once, as far as one part may have.
    fn deliverable(
        &mut self,
        key: MessageKey,
        lease: Option<Duration>,
    ) -> Vec<(MessageKey, Option<Duration>)> {
        let mut keys = vec![(key, lease)];
        while keys.len() < PART_MESSAGES
            && let Some(next) = self.take_now()
        {
            let Handout::Deliver { key, lease } = next else {
                self.waiting.push_front(next);
                break;
            };
            keys.push((key, lease));
        }
        keys
    }

    /// The messages that are there still, as a strong read that begins now sees them: as many as a
    /// part has room for.
    async fn hand_out(
        &mut self,
        keys: Vec<(MessageKey, Option<Duration>)>,
    ) -> Result<Fenced<Vec<Handed>>, NotListening> {
        let Shown { group, gate, lease, state, reads } = &*self.shown;
        let mut held = reads.messages().take(self.database, PART_BYTES + MAX_MESSAGE_BYTES).await;
        if gate.confirm(group).await != Ok(self.term) {
            return Err(self.not_leader());
        }
        let (state, database) = (Arc::clone(state), self.database);
        let read = reads.little(move || read(&state, database, keys)).await;
        let Read { mut messages, bytes, gone, left } =
            read.ok_or(NotListening::Unavailable("the node is stopping"))?;
        held.shrink_to(bytes);
        if let Some(last) = messages.last_mut() {
            let payload = std::mem::take(&mut last.message.payload);
            last.message.payload = counted(payload, held);
        }
        let count = messages.len() as u64;
        let released = lease.release(messages).ok_or_else(|| self.not_leader())?;
        metrics::counter!("meridian_queue_delivered_messages_total").increment(count);
        for key in gone {
            // A task that is gone has no leases.
            drop(self.notices.send(Notice::Gone { database, key }));
        }
        for (key, lease) in left.into_iter().rev() {
            self.waiting.push_front(Handout::Deliver { key, lease });
        }
        Ok(released)
    }
}

/// Messages of one part.
struct Read {
    messages: Vec<Handed>,
    bytes: usize,
    /// These have no row.
    gone: Vec<MessageKey>,
    /// The part has no room for these.
    left: Vec<(MessageKey, Option<Duration>)>,
}

fn read(
    state: &ShardState,
    database: DatabaseId,
    keys: Vec<(MessageKey, Option<Duration>)>,
) -> Read {
    let mut read = Read { messages: Vec::new(), bytes: 0, gone: Vec::new(), left: Vec::new() };
    for (key, lease) in keys {
        if read.bytes >= PART_BYTES {
            read.left.push((key, lease));
            continue;
        }
        match or_fatal(state.message(database, key.due_ms, key.id)) {
            Some(message) => {
                read.bytes += message.size() + BESIDE_BYTES;
                read.messages.push(Handed { key, lease, message });
            }
            None => read.gone.push(key),
        }
    }
    read
}
