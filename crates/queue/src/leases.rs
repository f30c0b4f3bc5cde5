//! Which listener holds which message of a database, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_types::{MessageId, Versionstamp};

use crate::event::{ListenerId, MessageKey, Outcome, Ticket};

/// Leases of one database at a time, at most.
pub const MAX_LEASES: usize = 10_000;
/// How long a listener whose session broke is waited for, before its messages count as failed.
pub const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: MessageKey,
    pub(crate) holder: ListenerId,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// While the session of its holder lives.
    Live,
    Until(Duration),
    /// Its outcome is decided, and is being logged.
    Settling(Settling),
}

#[derive(Debug)]
pub(crate) struct Settling {
    pub(crate) outcome: Outcome,
    /// Reports that are answered when it has committed.
    pub(crate) tickets: Vec<Ticket>,
    /// Where the message is by now, if it failed and is not dead.
    pub(crate) moved_to: Option<MessageKey>,
    /// The message failed by now, and then a listener said that it is done after all.
    pub(crate) done_after_all: Vec<Ticket>,
}

/// Every change goes through here, so that the indexes agree with the leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    all: BTreeMap<MessageId, Lease>,
    by_holder: BTreeSet<(ListenerId, MessageId)>,
    ends: BTreeSet<(Duration, MessageId)>,
}

const FIRST: MessageId = MessageId { enqueued: Versionstamp([0; 10]), index: 0 };
const LAST: MessageId = MessageId { enqueued: Versionstamp([u8::MAX; 10]), index: u16::MAX };

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn get(&self, id: MessageId) -> Option<&Lease> {
        self.all.get(&id)
    }

    pub(crate) fn settling(&mut self, id: MessageId) -> Option<&mut Settling> {
        match &mut self.all.get_mut(&id)?.state {
            State::Settling(settling) => Some(settling),
            State::Live | State::Until(_) => None,
        }
    }

    /// Whether that very row is leased.
    pub(crate) fn has_row(&self, key: &MessageKey) -> bool {
        self.all.get(&key.id).is_some_and(|lease| lease.key == *key)
    }

    /// Whether the listener holds that very row.
    pub(crate) fn is_held(&self, key: &MessageKey, listener: ListenerId) -> bool {
        self.all.get(&key.id).is_some_and(|lease| lease.key == *key && lease.holder == listener)
    }

    pub(crate) fn of(&self, holder: ListenerId) -> impl Iterator<Item = MessageId> {
        self.by_holder.range((holder, FIRST)..=(holder, LAST)).map(|(_, id)| *id)
    }

    /// A message has no lease before.
    pub(crate) fn insert(&mut self, key: MessageKey, holder: ListenerId, state: State) {
        assert!(!self.all.contains_key(&key.id), "a message would have two leases");
        if let State::Until(end) = state {
            self.ends.insert((end, key.id));
        }
        self.by_holder.insert((holder, key.id));
        self.all.insert(key.id, Lease { key, holder, state });
    }

    pub(crate) fn remove(&mut self, id: MessageId) -> Option<Lease> {
        let lease = self.all.remove(&id)?;
        self.by_holder.remove(&(lease.holder, id));
        if let State::Until(end) = lease.state {
            self.ends.remove(&(end, id));
        }
        Some(lease)
    }

    pub(crate) fn set(&mut self, id: MessageId, state: State) {
        if let Some(Lease { key, holder, .. }) = self.remove(id) {
            self.insert(key, holder, state);
        }
    }

    /// A lease ends no sooner than it would have.
    pub(crate) fn lengthen(&mut self, id: MessageId, state: State) {
        let is_shorter = |lease: &Lease| match (&lease.state, &state) {
            (State::Until(before), State::Until(end)) => end <= before,
            _ => false,
        };
        if !self.all.get(&id).is_some_and(is_shorter) {
            self.set(id, state);
        }
    }

    /// The first lease that ends, and when.
    pub(crate) fn first_end(&self) -> Option<(Duration, MessageId)> {
        self.ends.first().copied()
    }
}
