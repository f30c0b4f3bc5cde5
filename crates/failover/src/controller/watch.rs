//! The controller's memory of a shard in its epoch, and of its sealing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_directory::{Phase, Plan, Shard};
use meridian_types::{CommitProgress, Epoch, NodeId, Position};

use crate::controller::SealAnswer;
use crate::target::TargetChoice;

/// The controller's knowledge of one shard in one epoch. All of it may be lost at any time.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) epoch: Epoch,
    /// When a voter that was granted its lease last said that it leads; at first, when this began.
    pub(super) healthy_at: Duration,
    /// The same, lease or none.
    pub(super) led_at: Duration,
    /// Whether the epoch may ever have had a leader: an epoch without
    /// a leader holds nothing that others lack. Leases are granted while it forms, and a leader may acknowledge writes before it says
    /// that it leads.
    pub(super) may_have_led: bool,
    /// Transactions that the epoch began with.
    began_with: u64,
    /// The most that was reported as committed in this epoch.
    pub(super) progress: CommitProgress,
    pub(super) sealing: Option<Sealing>,
    /// The event that it waits for, in words for operators; empty when all is well.
    pub(super) text: String,
}

impl Watch {
    pub(super) fn new(now: Duration, shard: &Shard) -> Self {
        let at_base = shard.reports.last().filter(|report| report.epoch == shard.epoch);
        let progress = at_base.map_or(CommitProgress::NONE, |report| {
            CommitProgress::new(report.base_transactions, report.base_time_ms)
        });
        Self {
            epoch: shard.epoch,
            healthy_at: now,
            led_at: now,
            may_have_led: shard.phase != Phase::Forming,
            began_with: progress.transactions,
            progress,
            sealing: None,
            text: String::new(),
        }
    }

    pub(super) fn observe(&mut self, reported: CommitProgress) {
        self.progress = self.progress.max(reported);
        self.may_have_led |= reported.transactions > self.began_with;
    }

    /// Brings `sealing` in line with the shard's phase.
    pub(super) fn follow(&mut self, now: Duration, shard: &Shard) {
        self.may_have_led |= matches!(shard.phase, Phase::Active | Phase::SwitchingOver { .. });
        let Phase::Sealing(plan) = &shard.phase else {
            self.sealing = None;
            return;
        };
        match &mut self.sealing {
            // Answers tell where nodes stand and stay, wherever the shard goes.
            Some(sealing) if sealing.plan.planned == plan.planned => {
                if sealing.plan != *plan {
                    (sealing.since, sealing.progress_at) = (now, now);
                    sealing.target.forget();
                    sealing.plan = plan.clone();
                }
            }
            // A voter's answer while its leader drains may grow yet: begin anew.
            _ => self.sealing = Some(Sealing::new(now, plan.clone())),
        }
    }
}

/// The progress of a sealing.
#[derive(Debug)]
pub(super) struct Sealing {
    pub(super) plan: Plan,
    pub(super) since: Duration,
    pub(super) progress_at: Duration,
    pub(super) answers: BTreeMap<NodeId, SealAnswer>,
    /// Up to where nodes have been drained.
    pub(super) drained: BTreeMap<NodeId, Position>,
    /// Nodes that answered and were lost before another node had pulled what only they have.
    pub(super) lost: BTreeSet<NodeId>,
    pub(super) target: TargetChoice,
    seal_asked: BTreeMap<NodeId, Duration>,
    drain_asked: BTreeMap<(NodeId, Position), Duration>,
}

impl Sealing {
    fn new(now: Duration, plan: Plan) -> Self {
        Self {
            plan,
            since: now,
            progress_at: now,
            answers: BTreeMap::new(),
            drained: BTreeMap::new(),
            lost: BTreeSet::new(),
            target: TargetChoice::default(),
            seal_asked: BTreeMap::new(),
            drain_asked: BTreeMap::new(),
        }
    }

    pub(super) fn answered(&mut self, now: Duration, node: NodeId, answer: SealAnswer) {
        if answer.planned != self.plan.planned {
            return;
        }
        let Some(known) = self.answers.get_mut(&node) else {
            self.progress_at = now;
            self.answers.insert(node, answer);
            return;
        };
        // It may have restarted, and followed another since.
        known.term = known.term.max(answer.term);
        if answer.position > known.position {
            self.progress_at = now;
            (known.position, known.transactions, known.time_ms) =
                (answer.position, answer.transactions, answer.time_ms);
        }
        if answer.drained_leader && !known.drained_leader {
            self.progress_at = now;
            known.drained_leader = true;
        }
    }

    pub(super) fn drained(&mut self, now: Duration, node: NodeId, position: Position) {
        let known = self.drained.entry(node).or_insert(position);
        *known = position.max(*known);
        self.progress_at = now;
        let same = self.answers.values().find(|answer| answer.position == position);
        let of_base = same.map(|answer| (answer.transactions, answer.time_ms));
        if let Some((answer, (transactions, time_ms))) = self.answers.get_mut(&node).zip(of_base)
            && position > answer.position
        {
            (answer.position, answer.transactions, answer.time_ms) =
                (position, transactions, time_ms);
        }
    }

    /// Whether the node is to be asked to seal now; then it has been.
    pub(super) fn seal_is_due(
        &mut self,
        now: Duration,
        node: NodeId,
        retry_every: Duration,
    ) -> bool {
        is_due(&mut self.seal_asked, now, node, retry_every)
    }

    /// Whether the node may be pulling what lies beyond `base`, as it was asked to when another
    /// node had more.
    pub(super) fn may_pass(
        &self,
        now: Duration,
        node: NodeId,
        base: Position,
        drain_lasts: Duration,
    ) -> bool {
        let mut asked =
            self.drain_asked.iter().filter(|((to, through), _)| *to == node && *through > base);
        asked.any(|(_, asked_at)| now.saturating_sub(*asked_at) < drain_lasts)
    }

    pub(super) fn drain_is_due(
        &mut self,
        now: Duration,
        node: NodeId,
        through: Position,
        retry_every: Duration,
    ) -> bool {
        is_due(&mut self.drain_asked, now, (node, through), retry_every)
    }
}

fn is_due<K: Ord>(
    asked: &mut BTreeMap<K, Duration>,
    now: Duration,
    key: K,
    retry_every: Duration,
) -> bool {
    match asked.entry(key) {
        std::collections::btree_map::Entry::Occupied(last)
            if now.saturating_sub(*last.get()) < retry_every =>
        {
            false
        }
        std::collections::btree_map::Entry::Occupied(mut last) => {
            last.insert(now);
            true
        }
        std::collections::btree_map::Entry::Vacant(none) => {
            none.insert(now);
            true
        }
    }
}
