//! Judges, on the directory's leader, when shards are sealed, drained and promoted.
//!
//! Pure: events in, actions out. Nothing that it remembers is needed to be safe.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_directory::{Change, Cluster, Phase};
use meridian_types::{CommitProgress, Epoch, NodeId, Position, ShardId, ShardReport};

use crate::controller::contacts::Contacts;
use crate::controller::grants::Grants;
use crate::controller::view::{Verdict, View};
use crate::controller::watch::Watch;
use crate::lease::Lease;
use crate::preview::Contact;
use crate::progress_hints::ProgressHint;

mod contacts;
mod failover;
mod grants;
mod switchover;
mod view;
mod watch;

#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The node that the controller runs on. It renews like any other: while not even that is
    /// heard, the silence of others says nothing.
    pub own_node: Option<NodeId>,
    pub lease_ttl: Duration,
    /// Added to the TTL by the grantor: clocks that run at different speeds, over one TTL. Enough
    /// for a clock that is slow by a tenth. With the TTL it is less than `failover_after`, so that it
    /// delays no failover.
    pub drift_margin: Duration,
    /// A primary region without a leader for so long, of whose voters a majority was silent as
    /// long, has failed.
    pub failover_after: Duration,
    /// A region whose voters answer is starved rather than lost. It is given so long to elect a
    /// leader; and where its shard has to move all the same, so long to give what only it has.
    pub starved_after: Duration,
    /// The same for voters that found the group of a new epoch, in which hardly anything can be
    /// lost yet.
    pub forming_after: Duration,
    /// A controller between two of whose steps more time lies was starved itself.
    pub max_step_gap: Duration,
    /// A node that renewed within this time is reachable.
    pub reachable_within: Duration,
    /// How long sealing waits for reachable nodes that do not answer.
    pub seal_timeout: Duration,
    /// A node that was asked to pull may go on to do so for as long, from the decision: the wait
    /// for a turn to be asked, the call, and the pulling.
    pub drain_lasts: Duration,
    /// Between two tries of the same call.
    pub retry_every: Duration,
    /// Between two lists of changes, so that the shards of a region share theirs.
    pub commit_every: Duration,
    /// A switchover waits until a majority of the target's data centers lags by no more.
    pub max_switchover_lag: Duration,
}

impl ControllerConfig {
    pub const DEFAULT: Self = Self {
        own_node: None,
        lease_ttl: Duration::from_secs(3),
        drift_margin: Duration::from_millis(350),
        failover_after: Duration::from_secs(4),
        starved_after: Duration::from_secs(30),
        forming_after: Duration::from_secs(10),
        max_step_gap: Duration::from_millis(500),
        reachable_within: Duration::from_millis(1500),
        seal_timeout: Duration::from_secs(2),
        drain_lasts: Duration::from_secs(6),
        retry_every: Duration::from_millis(250),
        commit_every: Duration::from_millis(50),
        max_switchover_lag: Duration::from_secs(1),
    };
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A node's answer to `Seal`: it serves the epoch no more, and takes no more of it. No restart
/// undoes what is promised here: it was written down, durably, before this was said, so that
/// positions need not be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealAnswer {
    pub shard: ShardId,
    pub epoch: Epoch,
    /// To which kind of [`Action::Seal`] this is the answer.
    pub planned: bool,
    /// Durable and committed here; final, unless a `Drain` raises it, or it is `planned` and a
    /// leader drains.
    pub position: Position,
    pub transactions: u64,
    pub time_ms: u64,
    /// The Raft term that a voter is in, which it will not leave; `None` on a replica.
    pub term: Option<u64>,
    /// It led in that term, and everything it ever proposed is decided and in `position`. Only said
    /// where the group's members are those that the cluster names in this `Sealing`, and no change
    /// of them is under way: the majority that is counted is a majority of these.
    pub drained_leader: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// When there was no other step [for so long](Controller::steps_within).
    Tick,
    /// The node was granted a lease, see [`Controller::renew`], and said this.
    Reported {
        node: NodeId,
        reports: Vec<ShardReport>,
    },
    Sealed {
        node: NodeId,
        answer: SealAnswer,
    },
    /// The node has everything up to `position`, durably.
    Drained {
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
        position: Position,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "few are made, and they are taken apart at once")]
pub enum Action {
    /// To be committed together, in this order, if the cluster is still at this version; else
    /// dropped. The next step sees it done, or comes to the same conclusions again. At most one a
    /// step, for all shards.
    Commit { changes: Vec<Change> },
    /// To be sent once; the answer comes as `Sealed`, or never. `planned`: a voter that follows
    /// goes on appending, so that the leader can drain; else it stops at once.
    Seal { node: NodeId, shard: ShardId, epoch: Epoch, planned: bool },
    /// To be sent once: pull what is missing up to `through` from `source`. Answered by `Drained`,
    /// or never. A node that was not asked to seal (a switchover's target) seals first. Asked again
    /// while it pulls, a node goes on; with nothing missing, it answers at once. It gives up after
    /// two seconds, and before it answers a new `Seal`: that answer is final. A source whose log begins too late gives its whole state,
    /// for which it may have to be asked several times; what has begun to be put in place comes to
    /// its end first.
    Drain { node: NodeId, shard: ShardId, epoch: Epoch, source: NodeId, through: Position },
}

/// How far a failover or switchover is, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub shard: ShardId,
    pub text: String,
}

/// The bytes of changes that one step commits at most: an entry of the directory's log stays small.
const MAX_CHANGES_BYTES: usize = 1 << 20;
/// From one step to the next at most, while some shard waits for something.
const STEP: Duration = Duration::from_millis(50);
/// While none does: a shard whose leader is silent waits for it long before it fails over.
const IDLE_STEP: Duration = Duration::from_millis(100);

/// Changes are on their way for a while, and only one list of them can be made at each version.
#[derive(Debug, Clone, Copy)]
struct Proposed {
    version: u64,
    at: Duration,
}

/// Judges, on the directory leader, for one term of its leadership.
///
/// Nothing that it remembers is needed to be safe: a new one counts every lease as granted when it
/// began, asks again for every seal, and goes on from what the cluster says. A controller
/// that did not run for a while (a stopped process, a suspended machine) forgets its reports, since
/// it could not receive newer ones; only its grants stay. A starved controller, whose steps came
/// late or which did not even hear its own node, takes no silence for a loss until it has listened
/// undisturbed for as long as silence has to last.
#[derive(Debug)]
pub struct Controller {
    config: ControllerConfig,
    grants: Grants,
    contacts: Contacts,
    watches: BTreeMap<ShardId, Watch>,
    stepped_at: Duration,
    /// When it was last starved itself, or began.
    disturbed_at: Duration,
    proposed: Option<Proposed>,
    /// Promotions that were proposed, each with the phase that it ends. They may still be made:
    /// no node is to be drained beyond their bases any more, or it would stand outside the history
    /// of the new epoch.
    promoting: BTreeMap<ShardId, (Phase, Change)>,
    /// The version that they were last compared with.
    followed: u64,
}

impl Controller {
    /// `now`: not before this node was elected.
    pub fn new(config: ControllerConfig, now: Duration) -> Self {
        Self {
            grants: Grants::new(config.lease_ttl.saturating_add(config.drift_margin), now),
            contacts: Contacts::new(config.reachable_within),
            config,
            watches: BTreeMap::new(),
            stepped_at: now,
            disturbed_at: now,
            proposed: None,
            promoting: BTreeMap::new(),
            followed: 0,
        }
    }

    /// Grants a node its lease on what `cluster` says. The caller has confirmed its leadership of
    /// the directory after the request came, and `cluster` is what is committed. Remembered as
    /// granted at `now`.
    pub fn renew(&mut self, now: Duration, cluster: &Cluster, node: NodeId) -> Lease {
        let takes_part = cluster.nodes.get(&node).is_some_and(|node| !node.removed);
        let serving = cluster.shards.iter().filter(|(_, shard)| {
            takes_part && shard.may_vote(node) && !matches!(shard.phase, Phase::Sealing(_))
        });
        let shards: Vec<_> = serving.map(|(id, shard)| (*id, shard.epoch)).collect();
        self.grants.grant(now, node, &shards);
        Lease { ttl: self.config.lease_ttl, shards }
    }

    /// How far each shard of `cluster` is known to have come in its epoch: goes with every lease,
    /// to come back with [`ShardReport`]s to the directory's leader of that time.
    pub fn progress_hints(&self, cluster: &Cluster) -> Vec<ProgressHint> {
        let present = self.watches.iter().filter(|(id, watch)| {
            watch.progress != CommitProgress::NONE
                && cluster.shards.get(id).is_some_and(|shard| shard.epoch == watch.epoch)
        });
        let hints = present.map(|(id, watch)| ProgressHint {
            shard: *id,
            epoch: watch.epoch,
            progress: watch.progress,
        });
        hints.collect()
    }

    pub fn step(
        &mut self,
        now: Duration,
        cluster: &Cluster,
        now_ms: u64,
        event: Event,
    ) -> Vec<Action> {
        self.notice_gaps(now);
        self.follow(now, cluster);
        self.take(now, cluster, event);
        let mut actions = Vec::new();
        let may_propose = self.may_propose(now, cluster.version);
        let (mut next, mut changes, mut bytes) = (None, Vec::new(), 0);
        for id in cluster.shards.keys() {
            let Some(watch) = self.watches.get_mut(id) else { continue };
            // With what is decided for those before: the shards of a region spread over the nodes
            // of the next.
            let so_far: &Cluster = next.as_ref().unwrap_or(cluster);
            let Some(shard) = so_far.shards.get(id) else { continue };
            let view = View {
                now,
                now_ms,
                config: &self.config,
                cluster: so_far,
                contacts: &self.contacts,
                grants: &self.grants,
                disturbed_at: self.disturbed_at,
                id: *id,
                shard,
            };
            let change = match self.promoting.get(id) {
                Some((_, change)) => change.clone(),
                None => match judge(&view, watch, &mut actions) {
                    Verdict::Wait(text) => {
                        watch.text = text;
                        continue;
                    }
                    Verdict::Commit(change) => change,
                },
            };
            bytes += change.size();
            if !may_propose || (bytes > MAX_CHANGES_BYTES && !changes.is_empty()) {
                "waits until what was decided before is written down".clone_into(&mut watch.text);
                continue;
            }
            match next.get_or_insert_with(|| cluster.clone()).apply(&change) {
                Ok(()) => {
                    "a decision is being written down".clone_into(&mut watch.text);
                    changes.push(change);
                }
                Err(refused) => watch.text = format!("cannot go on: {refused}"),
            }
        }
        if changes.is_empty() {
            return actions;
        }
        self.proposed = Some(Proposed { version: cluster.version, at: now });
        for change in &changes {
            if let Change::Promote { shard: id, .. } = change
                && let Some(shard) = cluster.shards.get(id)
            {
                self.promoting.insert(*id, (shard.phase.clone(), change.clone()));
            }
        }
        actions.push(Action::Commit { changes });
        actions
    }

    /// How soon after a step, whatever it was for, the next is due.
    pub fn steps_within(&self) -> Duration {
        if self.watches.values().all(|watch| watch.text.is_empty()) { IDLE_STEP } else { STEP }
    }

    /// The state of each shard that is not simply active: the event that it waits for.
    pub fn progress(&self, now: Duration, cluster: &Cluster) -> Vec<Progress> {
        let text = |id: &ShardId| match self.watches.get(id) {
            Some(watch) if now.saturating_sub(self.stepped_at) <= self.config.reachable_within => {
                watch.text.clone()
            }
            _ => "not judged yet".to_owned(),
        };
        let all = cluster.shards.keys().map(|id| Progress { shard: *id, text: text(id) });
        all.filter(|progress| !progress.text.is_empty()).collect()
    }

    /// When each node last renewed, and what it reported.
    pub fn contacts(&self, now: Duration) -> BTreeMap<NodeId, Contact> {
        self.contacts.all(now)
    }

    /// The latest report of a node on a shard, however old.
    pub fn latest_report(&self, node: NodeId, shard: ShardId) -> Option<&ShardReport> {
        self.contacts.latest(node, shard)
    }

    fn follow(&mut self, now: Duration, cluster: &Cluster) {
        self.grants.forget(now);
        self.watches.retain(|id, _| cluster.shards.contains_key(id));
        if self.followed != cluster.version {
            self.followed = cluster.version;
            self.promoting.retain(|id, (phase, change)| {
                let is_sealing = cluster.shards.get(id).is_some_and(|shard| shard.phase == *phase);
                is_sealing && cluster.after(change).is_ok()
            });
        }
        for (id, shard) in &cluster.shards {
            let watch = self.watches.entry(*id).or_insert_with(|| Watch::new(now, shard));
            if watch.epoch != shard.epoch {
                *watch = Watch::new(now, shard);
            }
            watch.follow(now, shard);
        }
    }

    fn take(&mut self, now: Duration, cluster: &Cluster, event: Event) {
        match event {
            Event::Tick => {}
            Event::Reported { node, reports } => {
                for report in &reports {
                    self.take_report(now, cluster, node, report);
                }
                self.contacts.heard(now, node, reports);
            }
            Event::Sealed { node, answer } => {
                let watch =
                    self.watches.get_mut(&answer.shard).filter(|watch| watch.epoch == answer.epoch);
                let Some(watch) = watch else { return };
                let is_known = cluster
                    .shards
                    .get(&answer.shard)
                    .is_some_and(|shard| shard.in_history(answer.position));
                if is_known {
                    watch.observe(CommitProgress::new(answer.transactions, answer.time_ms));
                }
                if let Some(sealing) = &mut watch.sealing {
                    sealing.answered(now, node, answer);
                }
            }
            Event::Drained { node, shard, epoch, position } => {
                let watch = self.watches.get_mut(&shard).filter(|watch| watch.epoch == epoch);
                if let Some(sealing) = watch.and_then(|watch| watch.sealing.as_mut()) {
                    sealing.drained(now, node, position);
                }
            }
        }
    }

    fn take_report(
        &mut self,
        now: Duration,
        cluster: &Cluster,
        node: NodeId,
        report: &ShardReport,
    ) {
        let Some(shard) = cluster.shards.get(&report.shard) else { return };
        let Some(watch) = self.watches.get_mut(&report.shard) else { return };
        if report.epoch != shard.epoch {
            return;
        }
        // The hint does not depend on what the node holds.
        watch.observe(report.hint);
        if !shard.in_history(report.position) {
            return;
        }
        watch.observe(report.progress);
        if report.leads && shard.may_vote(node) {
            watch.led_at = now;
            watch.may_have_led = true;
            let granted_at = self.grants.granted_at(node, report.shard, report.epoch);
            if granted_at.is_some_and(|at| now.saturating_sub(at) <= self.config.reachable_within) {
                watch.healthy_at = now;
            }
        }
    }

    /// Changes proposed at this very version may be on their way. After another version there is a
    /// short pause, so that the answers of many shards, which come one by one, travel together.
    fn may_propose(&self, now: Duration, version: u64) -> bool {
        self.proposed.is_none_or(|last| {
            let pause = if last.version == version {
                self.config.retry_every
            } else {
                self.config.commit_every
            };
            now.saturating_sub(last.at) >= pause
        })
    }

    fn notice_gaps(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.stepped_at);
        self.stepped_at = now;
        let is_deaf = self.config.own_node.is_some_and(|own| !self.contacts.is_reachable(now, own));
        if gap > self.config.max_step_gap || is_deaf {
            self.disturbed_at = now;
        }
        if gap > self.config.max_step_gap.saturating_mul(3) {
            self.watches.clear();
        }
    }
}

fn judge(view: &View<'_>, watch: &mut Watch, actions: &mut Vec<Action>) -> Verdict {
    let (shard, epoch) = (view.id, view.shard.epoch);
    match &view.shard.phase {
        Phase::Active | Phase::SwitchingOver { .. }
            if let Some(version) = view.confirmed_voters() =>
        {
            Verdict::Commit(Change::ConfirmVoters { shard, epoch, version })
        }
        Phase::Forming if view.leaders().next().is_some() => {
            Verdict::Commit(Change::Activate { shard, epoch })
        }
        Phase::Forming => match failover::judge(view, watch) {
            Verdict::Wait(text) if text.is_empty() => {
                Verdict::Wait("waits for its first leader".to_owned())
            }
            verdict => verdict,
        },
        Phase::Active => match view.awaited() {
            Some(awaited) => {
                watch.healthy_at = view.now;
                Verdict::Wait(format!("waits for {} to join", view.names(awaited)))
            }
            None => failover::judge(view, watch),
        },
        Phase::SwitchingOver { to } => switchover::prepare(view, watch, to),
        Phase::Sealing(plan) => {
            // It is given back below: what is judged by is not what is changed.
            let Some(mut sealing) = watch.sealing.take() else {
                return Verdict::Wait(String::new());
            };
            let verdict = if plan.planned {
                switchover::advance(view, watch, &mut sealing, actions)
            } else {
                failover::advance(view, watch, &mut sealing, actions)
            };
            watch.sealing = Some(sealing);
            verdict
        }
    }
}

#[cfg(test)]
mod tests;
