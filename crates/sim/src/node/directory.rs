//! A voter of the directory: a Raft group over clusters, with the real controller on its leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_failover::{Action, Controller, ControllerConfig, Event, SealAnswer};
use meridian_types::{Epoch, NodeId, Position, ShardReport};

use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::{Instant, wall_ms};
use crate::message::{Message, Shown, Wakeup};
use crate::raft::{Members, Outbox, Raft, RaftDisk, RaftMessage, RaftTiming, Sync};
use crate::rng::Rng;
use crate::topology::SHARD;

const TIMING: RaftTiming =
    RaftTiming { heartbeat: Duration::from_millis(150), election: Duration::from_millis(900) };

/// A node's wish for a lease.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) sent_at: Duration,
    pub(super) report: Option<ShardReport>,
    pub(super) shown: Vec<(Epoch, Shown)>,
}

/// While it leads.
struct Leading {
    term: u64,
    /// In real time, for the invariants.
    began: Instant,
    controller: Controller,
    /// Wishes that came before the round was begun in which leadership is confirmed.
    asked: Vec<(u64, Asked)>,
    /// For the invariants: each node's answer, and when each node was heard.
    answers: BTreeMap<NodeId, (Epoch, Position)>,
    heard: BTreeMap<NodeId, Duration>,
    /// The version at which a promotion was last proposed. It is proposed again as it is, whatever
    /// comes.
    promoted_at: Option<u64>,
}

pub(super) struct Member {
    raft: Raft<Arc<Cluster>>,
    committed: Arc<Cluster>,
    applied: usize,
    leading: Option<Leading>,
}

impl Member {
    pub(super) fn into_disk(self) -> RaftDisk<Arc<Cluster>> {
        let mut disk = self.raft.disk;
        disk.log.truncate(disk.synced);
        disk
    }
}

fn config(id: NodeId, bug: Option<Bug>) -> ControllerConfig {
    let config = ControllerConfig { own_node: Some(id), ..ControllerConfig::default() };
    match bug {
        Some(Bug::JudgeWhileStarved) => {
            ControllerConfig { own_node: None, max_step_gap: Duration::MAX, ..config }
        }
        Some(Bug::TakeStarvationForLoss) => {
            ControllerConfig { starved_after: Duration::ZERO, ..config }
        }
        Some(Bug::SkipTheWait) => {
            // Not nothing: a leader's own report comes at the moment of its grant, and is to count.
            // Judged so soon, it matters.
            let failover_after = config.reachable_within;
            let (lease_ttl, drift_margin) = (Duration::from_millis(1), Duration::ZERO);
            ControllerConfig { lease_ttl, drift_margin, failover_after, ..config }
        }
        _ => config,
    }
}

impl Node {
    pub(super) fn start_directory(&mut self, context: &mut Context<'_>) {
        let genesis = context.observer.genesis();
        let Some(genesis) = genesis.filter(|cluster| cluster.directory_voters.contains(&self.id))
        else {
            return;
        };
        let mut disk = std::mem::take(&mut self.disk.directory);
        disk.founders = Members::of(genesis.directory_voters.clone());
        let raft = Raft::new(self.id, TIMING, disk, self.at(context), context.rng);
        self.directory = Some(Member { raft, committed: genesis, applied: 0, leading: None });
    }

    fn directory_raft(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(&mut Raft<Arc<Cluster>>, Duration, &mut Rng, &mut Outbox<Arc<Cluster>>),
    ) {
        let at = self.at(context);
        let mut out = Outbox::new();
        let Some(member) = &mut self.directory else { return };
        step(&mut member.raft, at, context.rng, &mut out);
        if let Some(sync) = member.raft.take_sync() {
            let delay = context.disk_delay();
            context.wake(delay, Wakeup::DirectorySynced(sync));
        }
        for (to, raft) in out {
            context.send(to, Message::Directory(raft));
        }
        self.apply_directory(context);
        self.grant(context);
    }

    fn apply_directory(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let Some(member) = &mut self.directory else { return };
        while member.applied < member.raft.applicable() {
            let command =
                member.raft.disk.log.get(member.applied).and_then(|entry| entry.command.clone());
            member.applied += 1;
            let Some(cluster) = command else { continue };
            if cluster.version > member.committed.version {
                member.committed = cluster;
                context.observer.cluster_committed(&member.committed);
                if member.raft.is_leader() {
                    let committed = &member.committed;
                    if let Some(shard) = committed.shards.get(&SHARD) {
                        let (version, phase) = (committed.version, &shard.phase);
                        let text = || {
                            format!(
                                "cluster {version}: epoch {} {phase:?} {:?}",
                                shard.epoch,
                                shard.base()
                            )
                        };
                        context.say(text);
                    }
                    for node in committed.nodes.keys().filter(|node| **node != self.id) {
                        context.send(*node, Message::Cluster(Arc::clone(committed)));
                    }
                }
            }
        }
        let leads = member.raft.is_settled_leader() && member.applied == member.raft.applicable();
        if member.leading.as_ref().is_some_and(|leading| leading.term != member.raft.term())
            || !member.raft.is_leader()
        {
            member.leading = None;
        }
        if leads && member.leading.is_none() {
            context
                .say(|| format!("n{} leads the directory in term {}", self.id, member.raft.term()));
            member.leading = Some(Leading {
                term: member.raft.term(),
                began: context.now,
                controller: Controller::new(config(self.id, context.bug), at),
                asked: Vec::new(),
                answers: BTreeMap::new(),
                heard: BTreeMap::new(),
                promoted_at: None,
            });
        }
        let committed = Arc::clone(&member.committed);
        self.adopt(context, committed);
    }

    pub(super) fn tick_directory(&mut self, context: &mut Context<'_>) {
        self.directory_raft(context, |raft, at, rng, out| raft.tick(at, rng, out));
        self.controller(context, Event::Tick);
    }

    pub(super) fn directory_synced(&mut self, context: &mut Context<'_>, sync: Sync) {
        self.directory_raft(context, |raft, at, _, out| raft.on_synced(at, sync, out));
    }

    pub(super) fn directory_message(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        message: RaftMessage<Arc<Cluster>>,
    ) {
        self.directory_raft(context, |raft, at, rng, out| {
            raft.receive(at, rng, from, message, out)
        });
    }

    pub(super) fn asked_to_renew(&mut self, context: &mut Context<'_>, asked: Asked) {
        let Some(member) = &mut self.directory else {
            return context.send(asked.from, Message::NotLeader { leader: None });
        };
        if member.leading.is_none() {
            let leader = member.raft.leader.filter(|leader| *leader != self.id);
            return context.send(asked.from, Message::NotLeader { leader });
        }
        let mut round = 0;
        self.directory_raft(context, |raft, at, _, out| round = raft.begin_round(at, out));
        if let Some(leading) = self.directory.as_mut().and_then(|member| member.leading.as_mut()) {
            leading.asked.push((round, asked));
        }
        self.grant(context);
    }

    /// Answers those that came before leadership was last confirmed.
    fn grant(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let Some(member) = &mut self.directory else { return };
        let (confirmed, committed) = (member.raft.confirmed(), Arc::clone(&member.committed));
        let Some(leading) = &mut member.leading else { return };
        let granted: Vec<_> =
            leading.asked.extract_if(.., |(round, _)| *round <= confirmed).collect();
        for (_, asked) in granted {
            let Some(leading) = self.directory.as_mut().and_then(|member| member.leading.as_mut())
            else {
                return;
            };
            let mut lease = leading.controller.renew(at, &committed, asked.from);
            if context.bug == Some(Bug::SkipTheWait) {
                lease.ttl = ControllerConfig::default().lease_ttl;
            }
            leading.heard.insert(asked.from, at);
            self.take_shown(context, asked.from, &asked.shown);
            let reports = asked.report.into_iter().collect();
            self.controller(context, Event::Reported { node: asked.from, reports });
            let leading = self.directory.as_ref().and_then(|member| member.leading.as_ref());
            let hints = leading
                .map(|leading| leading.controller.progress_hints(&committed))
                .unwrap_or_default();
            let (incarnation, sent_at, cluster) =
                (asked.incarnation, asked.sent_at, Arc::clone(&committed));
            context
                .send(asked.from, Message::Lease { incarnation, sent_at, lease, cluster, hints });
        }
    }

    fn take_shown(&mut self, context: &mut Context<'_>, node: NodeId, shown: &[(Epoch, Shown)]) {
        let Some(member) = &self.directory else { return };
        let Some(shard) = member.committed.shards.get(&SHARD) else { return };
        let waits = |epoch: &Epoch| {
            let mut reports = shard.reports.iter();
            reports.any(|report| {
                let waits = report.is_judged_by(node) && !report.loss.shown_by.contains(&node);
                report.epoch == *epoch && !report.loss.exact && waits
            })
        };
        let Some((epoch, shown)) = shown.iter().find(|(epoch, _)| waits(epoch)).copied() else {
            return;
        };
        let change = Change::ShowLoss {
            shard: SHARD,
            epoch,
            node,
            transactions: shown.committed,
            at_most: shown.at_most,
            last_time_ms: shown.last_time_ms,
        };
        self.propose(context, &[change]);
    }

    fn controller(&mut self, context: &mut Context<'_>, event: Event) {
        let at = self.at(context);
        let Some(member) = &mut self.directory else { return };
        let committed = Arc::clone(&member.committed);
        let Some(leading) = &mut member.leading else { return };
        let actions = leading.controller.step(at, &committed, wall_ms(context.now), event);
        let term = leading.term;
        for action in actions {
            match action {
                Action::Commit { changes } => self.commit(context, &changes),
                Action::Seal { node, epoch, planned, .. } => {
                    self.tell(context, node, Message::Seal { term, epoch, planned });
                }
                Action::Drain { node, epoch, source, through, .. } => {
                    self.tell(context, node, Message::Drain { term, epoch, source, through });
                }
            }
        }
    }

    fn tell(&mut self, context: &mut Context<'_>, node: NodeId, message: Message) {
        context.say(|| format!("n{} tells n{node}: {message:?}", self.id));
        context.send(node, message);
    }

    fn commit(&mut self, context: &mut Context<'_>, changes: &[Change]) {
        let at = self.at(context);
        // With this one it judges too soon, to be caught by what comes of it.
        if context.bug != Some(Bug::SkipTheWait)
            && let Some(member) = &self.directory
            && let (Some(leading), Some(shard)) =
                (&member.leading, member.committed.shards.get(&SHARD))
        {
            let leader = (self.id, leading.began);
            changes
                .iter()
                .for_each(|change| context.observer.decided(context.now, leader, shard, change));
        }
        // There is one shard.
        if let ([Change::Promote { report, .. }], Some(member)) = (changes, &mut self.directory)
            && let Some(leading) = &mut member.leading
            && leading.promoted_at.replace(member.committed.version)
                != Some(member.committed.version)
        {
            let within = ControllerConfig::default().reachable_within;
            let is_heard = |node: &NodeId| {
                leading.heard.get(node).is_some_and(|heard| at.saturating_sub(*heard) <= within)
            };
            let old = Epoch(report.epoch.0 - 1);
            let answers =
                leading.answers.iter().filter(|(node, (epoch, _))| is_heard(node) && *epoch == old);
            let answers: Vec<_> = answers.map(|(node, (_, position))| (*node, *position)).collect();
            if !report.planned {
                context.observer.promote_proposed(old, report.base, &answers);
            }
        }
        self.propose(context, changes);
    }

    /// One list of changes at a time; the caller of another comes again.
    fn propose(&mut self, context: &mut Context<'_>, changes: &[Change]) {
        let Some(member) = &self.directory else { return };
        let waits = member.applied < member.raft.disk.log.len();
        if member.leading.is_none() || waits {
            return;
        }
        let mut next = Cluster::clone(&member.committed);
        match changes.iter().try_for_each(|change| next.apply(change)) {
            Ok(()) => {
                if context.bug == Some(Bug::ForgetTheFormerVoters) {
                    next.shards.values_mut().for_each(|shard| shard.changing = None);
                }
                let next = Arc::new(next);
                self.directory_raft(context, |raft, at, _, out| raft.propose(at, next, out));
            }
            Err(refused) => context.say(|| format!("refused: {refused}")),
        }
    }

    pub(super) fn ordered(&mut self, context: &mut Context<'_>, change: Change) {
        context.say(|| format!("n{} is ordered: {change:?}", self.id));
        self.propose(context, &[change]);
    }

    pub(super) fn sealed(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        term: u64,
        answer: SealAnswer,
    ) {
        let Some(leading) = self.directory.as_mut().and_then(|member| member.leading.as_mut())
        else {
            return;
        };
        if leading.term != term {
            return;
        }
        context.say(|| format!("n{from} is sealed: {answer:?}"));
        if !answer.planned {
            let known = leading.answers.entry(from).or_insert((answer.epoch, answer.position));
            *known = (answer.epoch, answer.position).max(*known);
        }
        self.controller(context, Event::Sealed { node: from, answer });
    }

    pub(super) fn drained(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        term: u64,
        epoch: Epoch,
        position: Position,
    ) {
        let leading = self.directory.as_ref().and_then(|member| member.leading.as_ref());
        if leading.is_some_and(|leading| leading.term == term) {
            context.say(|| format!("n{from} is drained through {position}"));
            self.controller(context, Event::Drained { node: from, shard: SHARD, epoch, position });
        }
    }
}
