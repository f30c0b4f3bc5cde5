//! Claims of messages whose rows were not looked for yet.
//!
//! Listeners say that they hold messages which this term's leader has not handed out. A claim keeps
//! its row back and takes a credit of its listener, but gives no lease: the row of a message that
//! has moved since must not stand in the way of its holder. A claim becomes a lease when its row is
//! found.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Incarnation, ListenerId, MessageKey, Ticket};
use crate::leases::State;

/// Rows that are looked for at a time, at most.
pub const MAX_CHECKED: usize = 64;

#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) holder: ListenerId,
    pub(crate) incarnation: Incarnation,
    /// Of the lease, if there will be one.
    pub(crate) state: State,
    /// Extensions that are answered when the row was looked for.
    pub(crate) extended: Vec<Ticket>,
}

/// By row. Every change goes through here, so that the indexes agree with the claims.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    all: BTreeMap<MessageKey, Claim>,
    by_holder: BTreeSet<(ListenerId, MessageKey)>,
    unchecked: BTreeSet<MessageKey>,
    /// The rows that are looked for at present, without those that were deleted meanwhile.
    checking: Option<BTreeSet<MessageKey>>,
}

impl Claims {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether rows are looked for at present, also if no claim of theirs is left.
    pub(crate) fn is_checking(&self) -> bool {
        self.checking.is_some()
    }

    pub(crate) fn contains(&self, key: &MessageKey) -> bool {
        self.all.contains_key(key)
    }

    pub(crate) fn get_mut(&mut self, key: &MessageKey) -> Option<&mut Claim> {
        self.all.get_mut(key)
    }

    pub(crate) fn is_held(&self, key: &MessageKey, listener: ListenerId) -> bool {
        self.all.get(key).is_some_and(|claim| claim.holder == listener)
    }

    pub(crate) fn of(&self, holder: ListenerId) -> Vec<MessageKey> {
        let from = (holder, MessageKey::FIRST);
        let own = self.by_holder.range(from..).take_while(|(of, _)| *of == holder);
        own.map(|(_, key)| *key).collect()
    }

    /// A row has no claim before.
    pub(crate) fn insert(&mut self, key: MessageKey, claim: Claim) {
        self.by_holder.insert((claim.holder, key));
        self.unchecked.insert(key);
        self.all.insert(key, claim);
    }

    pub(crate) fn remove(&mut self, key: &MessageKey) -> Option<Claim> {
        let claim = self.all.remove(key)?;
        self.by_holder.remove(&(claim.holder, *key));
        self.unchecked.remove(key);
        // The same row may be claimed anew, and be gone by then.
        self.checking.as_mut().map(|keys| keys.remove(key));
        Some(claim)
    }

    /// The rows to look for next, unless others are looked for.
    pub(crate) fn begin_check(&mut self) -> Option<Vec<MessageKey>> {
        if self.checking.is_some() || self.unchecked.is_empty() {
            return None;
        }
        let pop = || self.unchecked.pop_first();
        let keys: Vec<MessageKey> = std::iter::from_fn(pop).take(MAX_CHECKED).collect();
        self.checking = Some(keys.iter().copied().collect());
        Some(keys)
    }

    /// The rows that were looked for, and are claimed still.
    pub(crate) fn end_check(&mut self) -> BTreeSet<MessageKey> {
        self.checking.take().unwrap_or_default()
    }
}
