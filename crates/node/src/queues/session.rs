//! One session of a listener: keys from the task, and messages to the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use meridian_queue::{ListenerId, MessageKey, Opening, SessionId};
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{Message, QueueId, limits};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::inbox::Inbox;
use super::{Handout, NotListening, Notice, Shown};
use crate::cluster_view::epoch_lease::Fenced;
use crate::read::execution::counted;
use crate::time_budget::ALIVE_EVERY;

/// Messages of one part, at most.
const PART_MESSAGES: usize = 64;
/// A part has no other message behind so many bytes.
const PART_BYTES: usize = 128 << 10;
/// The bytes of a message: its payload, its keys, and what is beside them.
pub(super) const MAX_MESSAGE_BYTES: usize = limits::MAX_VALUE_BYTES
    + limits::MAX_UNDELIVERED_KEYS * limits::MAX_WRITE_KEY_BYTES
    + BESIDE_BYTES;
pub(crate) const BESIDE_BYTES: usize = 512;

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) key: MessageKey,
    /// For how long it is leased from now on; `None`: while the session lives.
    pub(crate) lease: Option<Duration>,
    pub(crate) message: Message,
}

/// One part of what a session yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// There is nothing, and the leader is alive: a quorum has answered it of late.
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
    queue: QueueId,
    listener: ListenerId,
    session: SessionId,
    inbox: Inbox,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let (queue, listener, session) = (self.queue.clone(), self.listener, self.session);
        // A task that is gone has no sessions.
        drop(self.notices.send(Notice::Closed { queue, listener, session }));
    }
}

impl Session {
    pub(super) fn new(
        shown: Arc<Shown>,
        opening: &Opening,
        inbox: Inbox,
        notices: &mpsc::UnboundedSender<Notice>,
    ) -> Self {
        let Opening { ref queue, listener, session, .. } = *opening;
        let (queue, notices) = (queue.clone(), notices.clone());
        Self { shown, term: 0, queue, listener, session, inbox, notices }
    }

    /// Its parts, at the pace of the reader, until it says why there are no more.
    pub(crate) fn into_parts(self) -> impl Stream<Item = Result<Part, NotListening>> + Send {
        let (shown, term) = (Arc::clone(&self.shown), self.term);
        let parts = stream::unfold(Some(self), |session| async {
            let mut session = session?;
            let part = session.next().await;
            let goes_on = part.is_ok().then_some(session);
            Some((part, goes_on))
        });
        let looks = tokio::time::interval(ALIVE_EVERY);
        let parts = parts.timeout_repeating(looks);
        let parts = parts.filter_map(move |part| part.map_or_else(|_| shown.alive(term), Some));
        let mut is_over = false;
        parts.map_while(move |part| {
            let was_over = std::mem::replace(&mut is_over, part.is_err());
            (!was_over).then_some(part)
        })
    }

    /// The next part. To drop the future drops messages, so it ends the session.
    ///
    /// # Errors
    /// Why there are no more.
    async fn next(&mut self) -> Result<Part, NotListening> {
        loop {
            let part = match self.inbox.next().await {
                Some(Handout::End(refused)) => return Err(refused.into()),
                Some(Handout::Release(key)) => Some(Part::Released(self.released(key))),
                Some(Handout::Deliver { key, until }) => {
                    let keys = self.deliverable(key, until);
                    let messages = self.hand_out(keys).await?;
                    (!messages.is_empty()).then_some(Part::Messages(messages))
                }
                None => return Err(self.over()),
            };
            if let Some(part) = part {
                return Ok(part);
            }
        }
    }

    /// Why the task has ended this session, or its term.
    fn over(&mut self) -> NotListening {
        self.inbox.reason().map_or_else(|| self.shown.not_leader(), NotListening::from)
    }

    /// All that is released at once.
    fn released(&mut self, first: MessageKey) -> Vec<MessageKey> {
        let mut keys = vec![first];
        while let Some(next) = self.inbox.next_now() {
            let Handout::Release(key) = next else {
                self.inbox.put_back(next);
                break;
            };
            keys.push(key);
        }
        keys
    }

    /// All that is to be delivered at once, as far as one part may have.
    fn deliverable(&mut self, key: MessageKey, until: Option<Duration>) -> Vec<Leased> {
        let mut keys = vec![(key, until)];
        while keys.len() < PART_MESSAGES
            && let Some(next) = self.inbox.next_now()
        {
            let Handout::Deliver { key, until } = next else {
                self.inbox.put_back(next);
                break;
            };
            keys.push((key, until));
        }
        keys
    }

    /// The messages that are there still, as a strong read that begins now sees them: as many as a
    /// part has room for. None of a dispatcher that is no more: the next one hands them out.
    async fn hand_out(&mut self, keys: Vec<Leased>) -> Result<Fenced<Vec<Handed>>, NotListening> {
        let shown = Arc::clone(&self.shown);
        let Shown { group, gate, lease, state, reads, time } = &*shown;
        let taken = tokio::select! {
            held = reads.messages().take(self.queue.database, PART_BYTES + MAX_MESSAGE_BYTES) => Some(held),
            () = self.inbox.over() => None,
        };
        let Some(mut held) = taken else { return Err(self.over()) };
        if gate.confirm(group).await != Ok(self.term) {
            return Err(shown.not_leader());
        }
        let (state, queue) = (Arc::clone(state), self.queue.clone());
        let read =
            reads.little(Some(self.queue.database), move || read(&state, &queue, keys)).await;
        let Read { found, bytes, gone, left } =
            read.ok_or(NotListening::Unavailable("the node is stopping"))?;
        // Counted from now: it has waited for memory, and for its turn.
        let now = time.now();
        let mut messages: Vec<Handed> =
            found.into_iter().filter_map(|found| found.leased_at(now)).collect();
        held.shrink_to(bytes);
        if let Some(last) = messages.last_mut() {
            let payload = std::mem::take(&mut last.message.payload);
            last.message.payload = counted(payload, held);
        }
        let count = messages.len() as u64;
        if self.inbox.is_over() {
            return Err(self.over());
        }
        let released = lease.release(messages).ok_or_else(|| shown.not_leader())?;
        metrics::counter!("meridian_queue_delivered_messages_total").increment(count);
        for key in gone {
            // A task that is gone has no leases.
            drop(self.notices.send(Notice::Gone { queue: self.queue.clone(), key }));
        }
        for (key, until) in left.into_iter().rev() {
            self.inbox.put_back(Handout::Deliver { key, until });
        }
        Ok(released)
    }
}

impl Shown {
    pub(super) fn not_leader(&self) -> NotListening {
        let leader = self.group.leadership().err().and_then(|not_leading| not_leading.leader);
        NotListening::NotLeader(leader)
    }

    /// The word of a session of this term that has nothing else to say. `None`: nothing, so that
    /// its gateway looks elsewhere where that lasts.
    fn alive(&self, term: u64) -> Option<Result<Part, NotListening>> {
        let leadership = match self.group.leadership() {
            Ok(leadership) if leadership.term == term => leadership,
            Ok(_) | Err(_) => return Some(Err(self.not_leader())),
        };
        match standing(leadership.answered_until, Instant::now()) {
            Standing::Confirmed => self.lease.is_held().then_some(Ok(Part::Alive)),
            Standing::Doubtful => None,
            Standing::Lost => Some(Err(self.not_leader())),
        }
    }
}

/// A leader, as its quorum sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Confirmed,
    /// The quorum has not answered yet, or is late.
    Doubtful,
    /// Others may have had a leader for some time: it gets messages that this one never applies.
    Lost,
}

fn standing(answered_until: Option<Instant>, now: Instant) -> Standing {
    match answered_until {
        Some(until) if now < until => Standing::Confirmed,
        Some(until) if now >= until + ALIVE_EVERY => Standing::Lost,
        Some(_) | None => Standing::Doubtful,
    }
}

/// A message that is to be delivered, and when its lease ends.
type Leased = (MessageKey, Option<Duration>);

/// Messages of one part.
struct Read {
    found: Vec<Found>,
    bytes: usize,
    /// These have no row.
    gone: Vec<MessageKey>,
    /// The part has no room for these.
    left: Vec<Leased>,
}

struct Found {
    key: MessageKey,
    until: Option<Duration>,
    message: Message,
}

impl Found {
    /// `None`: the lease is over, and the message is about to be another's.
    fn leased_at(self, now: Duration) -> Option<Handed> {
        let Self { key, until, message } = self;
        let lease = match until {
            Some(until) => Some(until.checked_sub(now).filter(|lease| !lease.is_zero())?),
            None => None,
        };
        Some(Handed { key, lease, message })
    }
}

fn read(state: &ShardState, queue: &QueueId, keys: Vec<Leased>) -> Read {
    let mut read = Read { found: Vec::new(), bytes: 0, gone: Vec::new(), left: Vec::new() };
    for (key, until) in keys {
        if read.bytes >= PART_BYTES {
            read.left.push((key, until));
            continue;
        }
        match or_fatal(state.message(queue, key.due_ms, key.id)) {
            Some(message) => {
                read.bytes += message.size() + BESIDE_BYTES;
                read.found.push(Found { key, until, message });
            }
            None => read.gone.push(key),
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else its gateway claims nothing at the next leader while that waits for claims.
    #[test]
    fn leader_whose_quorum_is_silent_says_nothing_and_then_ends_its_sessions() {
        let until = Instant::now();
        let at = |after_ms: u64| standing(Some(until), until + Duration::from_millis(after_ms));
        assert_eq!(standing(Some(until), until - Duration::from_millis(1)), Standing::Confirmed);
        assert_eq!((at(0), at(499)), (Standing::Doubtful, Standing::Doubtful));
        assert_eq!((at(500), at(5000)), (Standing::Lost, Standing::Lost));
        assert_eq!(standing(None, until), Standing::Doubtful, "its term has just begun");
    }

    #[test]
    fn lease_is_told_as_it_is_when_its_message_leaves_and_not_at_all_once_it_is_over() {
        let key = MessageKey::FIRST;
        let leased_at = |until, now_ms| {
            let found = Found { key, until, message: Message::default() };
            found.leased_at(Duration::from_millis(now_ms)).map(|handed| handed.lease)
        };
        let until = Some(Duration::from_millis(900));
        assert_eq!(leased_at(until, 200), Some(Some(Duration::from_millis(700))));
        assert_eq!((leased_at(until, 900), leased_at(until, 901)), (None, None));
        assert_eq!(leased_at(None, 900), Some(None), "while the session lives");
    }
}
