//! Which listener holds which message of a queue, and until when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meridian_types::{MessageId, Versionstamp};

use crate::event::{Incarnation, ListenerId, MessageKey, Outcome, Ticket};

/// Leases of one database at a time, at most, but for [`MIN_LEASES`] of each queue.
pub const MAX_LEASES: usize = 10_000;
/// Leases that each queue may have, whatever the others of its database have: so none of them holds
/// up another. As few queues have messages as a database may have names.
pub const MIN_LEASES: usize = 64;
/// How long a listener whose session broke is waited for, before its messages count as failed.
pub const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: MessageKey,
    pub(crate) holder: ListenerId,
    /// Under which the holder has it.
    pub(crate) incarnation: Incarnation,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// While the session of its holder lives, and until then at the least.
    Live(Duration),
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
}

impl State {
    /// While the session lives; or for a time, where that is said.
    pub(crate) fn begun(now: Duration, lease: Option<Duration>) -> Self {
        lease.map_or(Self::Live(Duration::ZERO), |lease| Self::Until(now + lease))
    }

    /// It ends no sooner than it would have, and no sooner than the other. A decided outcome stays.
    pub(crate) fn lengthen(&mut self, other: &Self) {
        let (Self::Live(end) | Self::Until(end)) = *self else { return };
        let (Self::Live(other_end) | Self::Until(other_end)) = *other else { return };
        let end = end.max(other_end);
        let is_live = matches!(self, Self::Live(_)) || matches!(other, Self::Live(_));
        *self = if is_live { Self::Live(end) } else { Self::Until(end) };
    }

    /// The session of its holder broke.
    pub(crate) fn break_off(&mut self, now: Duration) {
        if let Self::Live(at_least) = *self {
            *self = Self::Until(at_least.max(now + GRACE));
        }
    }
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
            State::Live(_) | State::Until(_) => None,
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
    pub(crate) fn insert(&mut self, lease: Lease) {
        let Lease { key, holder, .. } = lease;
        assert!(!self.all.contains_key(&key.id), "a message would have two leases");
        if let State::Until(end) = lease.state {
            self.ends.insert((end, key.id));
        }
        self.by_holder.insert((holder, key.id));
        self.all.insert(key.id, lease);
    }

    pub(crate) fn remove(&mut self, id: MessageId) -> Option<Lease> {
        let lease = self.all.remove(&id)?;
        self.by_holder.remove(&(lease.holder, id));
        if let State::Until(end) = lease.state {
            self.ends.remove(&(end, id));
        }
        Some(lease)
    }

    pub(crate) fn change(&mut self, id: MessageId, change: impl FnOnce(&mut State)) {
        if let Some(mut lease) = self.remove(id) {
            change(&mut lease.state);
            self.insert(lease);
        }
    }

    /// The holder has the message under this incarnation by now, and no sooner gives it up.
    pub(crate) fn resume(&mut self, id: MessageId, incarnation: Incarnation, state: &State) {
        if let Some(mut lease) = self.remove(id) {
            lease.state.lengthen(state);
            self.insert(Lease { incarnation, ..lease });
        }
    }

    /// The first lease that ends, and when.
    pub(crate) fn first_end(&self) -> Option<(Duration, MessageId)> {
        self.ends.first().copied()
    }
}

/// Of one [`Lane`](crate::event::Lane).
#[derive(Debug, Default)]
pub(crate) struct Settlements {
    /// Messages whose outcome is decided and not yet being logged.
    pub(crate) decided: VecDeque<MessageKey>,
    /// Settlements that are being logged.
    pub(crate) logging: Vec<MessageKey>,
}
