//! The changes that wait to be committed in one term, and the list of them that is in flight.

use std::collections::VecDeque;
use std::sync::Arc;

use meridian_directory::{Change, Cluster};

use super::{LeaderAction, OWN_ACTOR};

/// The end of a change: the cluster with it, or why there is none.
pub type Executed = Result<Arc<Cluster>, ExecuteFailure>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecuteFailure {
    Refused(String),
    /// Nothing was done here.
    NotLeader,
    /// It may have been made, or be made yet.
    Unknown,
}

/// A change that led to a version of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub version: u64,
    pub actor: String,
    pub change: Change,
}

#[derive(Debug)]
struct Pending<C> {
    /// Made one after the other.
    changes: Vec<Change>,
    actor: String,
    /// The version that was decided upon: made of another, all of it is dropped, and the decision
    /// is looked at again.
    decided_at: Option<u64>,
    caller: Option<C>,
}

#[derive(Debug)]
pub(super) struct Changes<C> {
    pending: VecDeque<Pending<C>>,
    /// The callers whose changes are in flight. One list at a time: each is made from what the one
    /// before left.
    in_flight: Option<Vec<C>>,
}

impl<C> Default for Changes<C> {
    fn default() -> Self {
        Self { pending: VecDeque::new(), in_flight: None }
    }
}

impl<C> Changes<C> {
    /// An operator's change, behind all that waits.
    pub(super) fn ask(&mut self, change: Change, actor: String, caller: C) {
        let (changes, caller) = (vec![change], Some(caller));
        self.pending.push_back(Pending { changes, actor, decided_at: None, caller });
    }

    /// To be committed next, if it is not waiting already.
    pub(super) fn want(&mut self, change: Change) {
        if !self.pending.iter().any(|pending| pending.changes.contains(&change)) {
            self.pending.push_back(Pending::own(vec![change], None));
        }
    }

    /// The controller's decision, in place of the one before. It goes before all else, which would
    /// change the version that it was decided upon.
    pub(super) fn decided(&mut self, changes: Vec<Change>, version: u64) {
        self.pending.retain(|pending| pending.decided_at.is_none());
        self.pending.push_front(Pending::own(changes, Some(version)));
    }

    /// Changes that are right for this version only, and keep nothing waiting.
    pub(super) fn concluded(&mut self, changes: Vec<Change>, version: u64) {
        self.pending.push_back(Pending::own(changes, Some(version)));
    }

    /// Proposes the changes that wait, together, unless a list is in flight.
    pub(super) fn propose(
        &mut self,
        committed: Option<&Cluster>,
        first: &Cluster,
        actions: &mut Vec<LeaderAction<C>>,
    ) {
        if self.in_flight.is_some() || (self.pending.is_empty() && committed.is_some()) {
            return;
        }
        let mut next = match committed {
            Some(cluster) => cluster.clone(),
            None => Cluster { version: 1, ..first.clone() },
        };
        let (made, callers) = self.make(&mut next, actions);
        if made.is_empty() && committed.is_some() {
            return;
        }
        self.in_flight = Some(callers);
        actions.push(LeaderAction::Propose { next: Arc::new(next), made });
    }

    /// Makes `next` of the changes that wait. Refused ones are answered; the callers of the others
    /// are answered once these are committed.
    fn make(
        &mut self,
        next: &mut Cluster,
        actions: &mut Vec<LeaderAction<C>>,
    ) -> (Vec<Made>, Vec<C>) {
        let (mut made, mut callers) = (Vec::new(), Vec::new());
        for Pending { changes, actor, decided_at, caller } in self.pending.drain(..) {
            if decided_at.is_some_and(|version| version != next.version) {
                continue;
            }
            let mut refusal = None;
            for change in changes {
                match next.apply(&change) {
                    Ok(()) => {
                        made.push(Made { version: next.version, actor: actor.clone(), change });
                    }
                    Err(refused) => {
                        let reason = refused.to_string();
                        refusal = Some(reason.clone());
                        actions.push(LeaderAction::TooLate { change, reason });
                    }
                }
            }
            match (caller, refusal) {
                (Some(caller), Some(reason)) => {
                    let executed = Err(ExecuteFailure::Refused(reason));
                    actions.push(LeaderAction::Answer { caller, executed });
                }
                (caller, _) => callers.extend(caller),
            }
        }
        (made, callers)
    }

    /// Ends the wait for the list in flight, and gives back its callers. `None`: none is in flight.
    pub(super) fn settle(&mut self) -> Option<Vec<C>> {
        self.in_flight.take()
    }

    /// The callers of the changes that wait, which are not begun any more.
    pub(super) fn give_up(&mut self) -> Vec<C> {
        self.pending.drain(..).filter_map(|pending| pending.caller).collect()
    }
}

impl<C> Pending<C> {
    fn own(changes: Vec<Change>, decided_at: Option<u64>) -> Self {
        Self { changes, actor: OWN_ACTOR.to_owned(), decided_at, caller: None }
    }
}
