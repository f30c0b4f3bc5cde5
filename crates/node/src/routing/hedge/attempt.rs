//! The steps of one attempt at an operation: which node is asked, whether another one is asked
//! beside it, and whose answer is waited for.
//!
//! A pure machine: [`Attempt::step`] takes the time and what happened, and says what is to be done.
//! It asks no node, never sleeps and spends nothing; `hedge::drive` carries out what it says.
//!
//! Each node is asked once, in the order that is given, and once more if it is named or found as
//! the leader. Nodes that are late are not waited for when all others have answered and none of
//! those names a late one as the leader, or when the shard has moved: what they may have done is
//! unknown then.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use meridian_types::NodeId;

use crate::network::call_failure::Failed;

/// How often it is looked whether the nodes that were asked are silent, while no more may be asked.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// One call of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Try {
    pub(crate) node: NodeId,
    /// An earlier try of this attempt may do something yet.
    pub(crate) overlaps: bool,
    /// A node that was asked before, in this attempt or the one before, and does not answer or
    /// leads no more.
    pub(crate) late: Option<NodeId>,
}

/// How long nodes are waited for.
pub(crate) trait Patience {
    /// After so long without an answer of the node the next one is asked.
    fn patience(&self, node: NodeId) -> Duration;

    /// Whether nothing at all was received from the node since that time, long enough for it to
    /// have said that it is at work.
    fn is_silent(&self, node: NodeId, since: Duration) -> bool;
}

/// The bounds of an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Nodes at work at a time, at most; silent nodes do not count.
    pub(crate) at_a_time: usize,
    /// Once in the attempt the next try costs nothing, where a node refused at once: it did no
    /// work.
    pub(crate) refusal_is_free: bool,
}

/// An event of an attempt.
#[derive(Debug)]
pub(crate) enum Event {
    Begun,
    /// The answer to [`Step::Pay`].
    Paid(bool),
    /// `binds`: the answer counts even where another node was asked after this one.
    Answered {
        node: NodeId,
        binds: bool,
    },
    Failed {
        node: NodeId,
        failed: Failed,
    },
    /// The answer to [`Step::GiveUp`]: why the node gave nothing.
    GivenUp {
        node: NodeId,
        failed: Failed,
    },
    /// Another operation found the leader, or that none is known.
    Found(Option<NodeId>),
    /// Other nodes have the shard: no further node is to be asked.
    Moved,
    /// The time of [`Attempt::wakes_at`] is reached.
    Woken,
}

/// The step that is to be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To ask this node, and then to wait.
    Ask(Try),
    /// To see whether a further try is paid for, which [`Event::Paid`] says.
    Pay,
    Wait,
    /// To wait no longer for this node, which [`Event::GivenUp`] follows.
    GiveUp(NodeId),
    /// The answer that came counts. The nodes that were asked long before it are late.
    Accept {
        late: Vec<NodeId>,
    },
    /// No node had an answer: why, why a try may have done something (if one may), and which node
    /// did not answer. `busy`: a node that leads says that the database has its share.
    Nothing {
        reason: String,
        unknown: Option<String>,
        lost: Option<NodeId>,
        busy: bool,
    },
}

struct Pending {
    node: NodeId,
    asked: Duration,
    /// Another was asked since.
    overtaken: bool,
}

/// The kind of further try that is to be paid for.
enum Purchase {
    /// No node is waited for any more.
    Retry,
    /// Beside the nodes that are waited for.
    Hedge,
}

/// An attempt under way.
pub(crate) struct Attempt {
    bounds: Bounds,
    /// To be asked, in order.
    next: VecDeque<NodeId>,
    /// Asked and not answered yet, in the order in which they were asked.
    pending: Vec<Pending>,
    /// Asked out of turn, as the leader: once at most.
    hinted: BTreeSet<NodeId>,
    /// Said by others to lead: an answer of these is waited for, though it is late.
    named: BTreeSet<NodeId>,
    refused: BTreeSet<NodeId>,
    /// A node that answered says that no node that is waited for leads.
    leads_elsewhere: bool,
    busy: bool,
    has_moved: bool,
    /// When another node is asked beside the pending ones.
    hedge_at: Duration,
    purchase: Option<Purchase>,
    /// Why a try may have done something: of the first that may.
    unknown: Option<String>,
    reason: Option<String>,
    lost: Option<NodeId>,
}

impl Attempt {
    /// `lost` did not answer in the attempt before.
    pub(crate) fn new(nodes: Vec<NodeId>, lost: Option<NodeId>, bounds: Bounds) -> Self {
        Self {
            bounds,
            next: nodes.into(),
            pending: Vec::new(),
            hinted: BTreeSet::new(),
            named: BTreeSet::new(),
            refused: BTreeSet::new(),
            leads_elsewhere: false,
            busy: false,
            has_moved: false,
            hedge_at: Duration::ZERO,
            purchase: None,
            unknown: None,
            reason: None,
            lost,
        }
    }

    pub(crate) fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// When the machine is to be woken, if nothing happens before.
    pub(crate) fn wakes_at(&self, patience: &impl Patience) -> Option<Duration> {
        if !self.next.is_empty() {
            return Some(self.hedge_at);
        }
        if !self.waits_in_vain() {
            return None;
        }
        self.pending.iter().map(|pending| pending.late_at(patience)).max()
    }

    pub(crate) fn step(&mut self, now: Duration, event: Event, patience: &impl Patience) -> Step {
        match event {
            Event::Begun => self.ask_next(now, patience),
            Event::Paid(paid) => self.paid(now, paid, patience),
            Event::Answered { node, binds } => {
                let ended = self.end(node);
                if binds || !ended.is_some_and(|ended| ended.overtaken) {
                    return Step::Accept { late: self.late(now, patience) };
                }
                let reason = "the answer came when another node had been asked".to_owned();
                self.failed(now, node, Failed::Unknown(reason), false, patience)
            }
            Event::Failed { node, failed } => {
                let ended = self.end(node);
                let at_once = ended.is_some_and(|ended| ended.late_at(patience) > now);
                self.failed(now, node, failed, at_once, patience)
            }
            Event::GivenUp { node, failed } => {
                self.note_unknown(&failed);
                self.lost = self.lost.or(Some(node));
                self.give_up()
            }
            Event::Found(leader) => match leader {
                Some(leader)
                    if !self.busy && !self.is_pending(leader) && self.hinted.insert(leader) =>
                {
                    self.put_first(leader);
                    self.ask_next(now, patience)
                }
                _ => self.wait(),
            },
            Event::Moved => {
                self.has_moved = true;
                self.next.clear();
                self.wait()
            }
            Event::Woken if self.next.is_empty() => self.give_up(),
            Event::Woken => self.hedge(now, patience),
        }
    }

    /// Asks the next node, if there is one.
    fn ask_next(&mut self, now: Duration, patience: &impl Patience) -> Step {
        let Some(node) = self.next.pop_front() else { return self.wait() };
        let tried = Try {
            node,
            overlaps: self.unknown.is_some() || !self.pending.is_empty(),
            late: self.lost.or_else(|| self.pending.first().map(|first| first.node)),
        };
        self.pending.iter_mut().for_each(|earlier| earlier.overtaken = true);
        self.pending.push(Pending { node, asked: now, overtaken: false });
        self.hedge_at = now + patience.patience(node);
        Step::Ask(tried)
    }

    fn note_unknown(&mut self, failed: &Failed) {
        if let Failed::Unknown(reason) = failed {
            self.unknown.get_or_insert_with(|| reason.clone());
        }
    }

    fn wait(&mut self) -> Step {
        if !self.pending.is_empty() || !self.next.is_empty() {
            return Step::Wait;
        }
        let reason = self.reason.take();
        Step::Nothing {
            reason: reason.unwrap_or_else(|| "it has no leader at present".to_owned()),
            unknown: self.unknown.take(),
            lost: self.lost,
            busy: self.busy,
        }
    }

    /// `at_once`: the node was not late, and so cost no time.
    fn failed(
        &mut self,
        now: Duration,
        node: NodeId,
        failed: Failed,
        at_once: bool,
        patience: &impl Patience,
    ) -> Step {
        self.note_unknown(&failed);
        if !matches!(failed, Failed::NotLeader(Some(_)) | Failed::NotDone(_) | Failed::Busy(_)) {
            self.lost = self.lost.or(Some(node));
        }
        let is_free = at_once && matches!(failed, Failed::NotLeader(None) | Failed::NotDone(_));
        match failed {
            Failed::NotLeader(Some(leader)) if self.is_pending(leader) => {
                self.named.insert(leader);
            }
            Failed::NotLeader(Some(leader))
                if !self.has_moved
                    && !self.refused.contains(&leader)
                    && self.hinted.insert(leader) =>
            {
                self.put_first(leader);
                return self.ask_next(now, patience);
            }
            Failed::NotLeader(_) => self.leads_elsewhere = true,
            Failed::NotDone(reason) => {
                self.refused.insert(node);
                self.reason = Some(reason);
            }
            // No other node is to be asked, and none that is waited for leads.
            Failed::Busy(reason) => {
                self.refused.insert(node);
                self.next.clear();
                (self.busy, self.leads_elsewhere) = (true, true);
                self.reason = Some(reason);
            }
            Failed::Unreachable(reason) | Failed::Unknown(reason) => self.reason = Some(reason),
        }
        if self.pending.is_empty() && !self.next.is_empty() {
            if is_free && std::mem::take(&mut self.bounds.refusal_is_free) {
                return self.ask_next(now, patience);
            }
            self.purchase = Some(Purchase::Retry);
            return Step::Pay;
        }
        if self.pending.iter().all(|pending| pending.late_at(patience) <= now) {
            // The node that was asked because these are late knows nothing: the next is asked at
            // once.
            self.hedge_at = now;
        }
        self.wait()
    }

    fn hedge(&mut self, now: Duration, patience: &impl Patience) -> Step {
        let is_at_work = |pending: &&Pending| !patience.is_silent(pending.node, pending.asked);
        let at_a_time = self.bounds.at_a_time;
        if self.pending.len() < at_a_time
            || self.pending.iter().filter(is_at_work).count() < at_a_time
        {
            self.purchase = Some(Purchase::Hedge);
            return Step::Pay;
        }
        // Until a node that was asked turns out to be silent.
        self.hedge_at = now + LOOK_AGAIN;
        Step::Wait
    }

    fn paid(&mut self, now: Duration, paid: bool, patience: &impl Patience) -> Step {
        match self.purchase.take() {
            Some(_) if paid => self.ask_next(now, patience),
            Some(Purchase::Retry) => {
                self.next.clear();
                self.wait()
            }
            Some(Purchase::Hedge) => {
                let last = self.pending.last();
                self.hedge_at =
                    now + last.map_or(Duration::ZERO, |last| patience.patience(last.node));
                Step::Wait
            }
            None => self.wait(),
        }
    }

    /// Waits no longer for the pending nodes, one after the other.
    fn give_up(&mut self) -> Step {
        if self.pending.is_empty() {
            return self.wait();
        }
        Step::GiveUp(self.pending.remove(0).node)
    }

    /// Whether what is waited for is late, and not worth it.
    fn waits_in_vain(&self) -> bool {
        let is_named = |pending: &Pending| self.named.contains(&pending.node);
        self.has_moved
            || self.leads_elsewhere && self.next.is_empty() && !self.pending.iter().any(is_named)
    }

    fn put_first(&mut self, leader: NodeId) {
        self.leads_elsewhere = true;
        self.named.insert(leader);
        self.next.retain(|node| *node != leader);
        self.next.push_front(leader);
    }

    fn is_pending(&self, node: NodeId) -> bool {
        self.pending.iter().any(|pending| pending.node == node)
    }

    fn end(&mut self, node: NodeId) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.node == node)?;
        Some(self.pending.remove(at))
    }

    fn late(&self, now: Duration, patience: &impl Patience) -> Vec<NodeId> {
        let late = self.pending.iter().filter(|pending| pending.late_at(patience) <= now);
        late.map(|pending| pending.node).collect()
    }
}

impl Pending {
    /// From then on the node is late.
    fn late_at(&self, patience: &impl Patience) -> Duration {
        self.asked + patience.patience(self.node)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
