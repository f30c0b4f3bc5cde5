//! A voter of the directory: a Raft group over clusters, which carries out what [`DirectoryLeader`]
//! decides while this node leads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_failover::{
    ControllerConfig, DirectoryLeader, Event, LeaderAction, LeaderEvent, LostTail, Made, Renewal,
    Renewed, SealAnswer,
};
use meridian_types::{Epoch, NodeId, Position, ShardReport};

use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::{Instant, wall_ms};
use crate::message::{Message, Question, Wakeup};
use crate::raft::{Members, Outbox, Raft, RaftDisk, RaftMessage, RaftTiming, Sync};
use crate::rng::Rng;
use crate::topology::SHARD;

const TIMING: RaftTiming =
    RaftTiming { heartbeat: Duration::from_millis(150), election: Duration::from_millis(900) };

/// A node's wish for a lease.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) from: NodeId,
    pub(super) question: Question,
    pub(super) report: Option<ShardReport>,
    pub(super) lost: Vec<LostTail>,
}

/// While it leads.
struct Leading {
    term: u64,
    /// In real time, for the invariants.
    began: Instant,
    leader: DirectoryLeader<()>,
    /// Wishes that came before the round was begun in which leadership is confirmed.
    asked: Vec<(u64, Asked)>,
    /// For the invariants: each node's answer, and when each node was heard.
    answers: BTreeMap<NodeId, (Epoch, Position)>,
    heard: BTreeMap<NodeId, Duration>,
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
        let mut news = None;
        let Some(member) = &mut self.directory else { return };
        while member.applied < member.raft.applicable() {
            let command =
                member.raft.disk.log.get(member.applied).and_then(|entry| entry.command.clone());
            member.applied += 1;
            let Some(cluster) = command else { continue };
            if cluster.version > member.committed.version {
                member.committed = cluster;
                news = Some(Arc::clone(&member.committed));
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
        let committed = Arc::clone(&member.committed);
        if leads && member.leading.is_none() {
            let (term, config) = (member.raft.term(), config(self.id, context.bug));
            context.say(|| format!("n{} leads the directory in term {term}", self.id));
            let (present, first) = (Arc::clone(&committed), Cluster::clone(&committed));
            let name = format!("{:016x}", context.rng.below(u64::MAX));
            member.leading = Some(Leading {
                term,
                began: context.now,
                leader: DirectoryLeader::new(config, at, Some(present), first, name),
                asked: Vec::new(),
                answers: BTreeMap::new(),
                heard: BTreeMap::new(),
            });
            self.lead(context, LeaderEvent::Begun);
        } else if let Some(cluster) = news {
            self.lead(context, LeaderEvent::Committed(cluster));
        }
        self.adopt(context, committed);
    }

    pub(super) fn tick_directory(&mut self, context: &mut Context<'_>) {
        self.directory_raft(context, |raft, at, rng, out| raft.tick(at, rng, out));
        self.lead(context, LeaderEvent::Tick);
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
        let question = asked.question;
        let Some(member) = &mut self.directory else {
            return context.send(asked.from, Message::NotLeader { question, leader: None });
        };
        if member.leading.is_none() {
            let leader = member.raft.leader.filter(|leader| *leader != self.id);
            return context.send(asked.from, Message::NotLeader { question, leader });
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
        let Some(member) = &mut self.directory else { return };
        let confirmed = member.raft.confirmed();
        let Some(leading) = &mut member.leading else { return };
        let granted: Vec<_> =
            leading.asked.extract_if(.., |(round, _)| *round <= confirmed).collect();
        for (_, asked) in granted {
            self.renew_lease_of(context, asked);
        }
    }

    fn renew_lease_of(&mut self, context: &mut Context<'_>, asked: Asked) {
        let (at, time_ms) = (self.at(context), wall_ms(context.now));
        let Some(leading) = self.directory.as_mut().and_then(|member| member.leading.as_mut())
        else {
            return;
        };
        let Asked { from, question, report, lost } = asked;
        let (incarnation, reports) = (format!("{:02x}", from.0), report.into_iter().collect());
        let renewal = Renewal { node: from, incarnation, reports, lost };
        let (renewed, actions) = leading.leader.renew(at, time_ms, renewal);
        let answer = match renewed {
            Renewed::Granted { mut lease, cluster, hints } => {
                if context.bug == Some(Bug::SkipTheWait) {
                    lease.ttl = ControllerConfig::default().lease_ttl;
                }
                leading.heard.insert(from, at);
                Message::Lease { question, lease, cluster, hints }
            }
            Renewed::NotYet => Message::NotLeader { question, leader: None },
            Renewed::Refused(reason) => {
                return context.observer.violated("known_nodes_are_granted", reason);
            }
        };
        context.send(from, answer);
        self.carry_out_lead(context, actions);
    }

    fn lead(&mut self, context: &mut Context<'_>, event: LeaderEvent<()>) {
        let (at, time_ms) = (self.at(context), wall_ms(context.now));
        let leading = self.directory.as_mut().and_then(|member| member.leading.as_mut());
        let Some(leading) = leading else { return };
        let actions = leading.leader.step(at, time_ms, event);
        self.carry_out_lead(context, actions);
    }

    fn carry_out_lead(&mut self, context: &mut Context<'_>, actions: Vec<LeaderAction<()>>) {
        let leading = self.directory.as_ref().and_then(|member| member.leading.as_ref());
        let Some(term) = leading.map(|leading| leading.term) else { return };
        for action in actions {
            match action {
                LeaderAction::Propose { next, made } => {
                    self.observe_decisions(context, &made);
                    self.propose(context, next, &made);
                }
                LeaderAction::Seal { node, epoch, planned, .. } => {
                    self.tell(context, node, Message::Seal { term, epoch, planned });
                }
                LeaderAction::Drain { node, epoch, source, through, .. } => {
                    self.tell(context, node, Message::Drain { term, epoch, source, through });
                }
                LeaderAction::Answer { executed: Ok(_), .. } => {}
                LeaderAction::Answer { executed: Err(failure), .. } => {
                    context.say(|| format!("not made: {failure:?}"));
                }
                LeaderAction::TooLate { reason, .. } => {
                    context.say(|| format!("too late: {reason}"));
                }
            }
        }
    }

    fn tell(&mut self, context: &mut Context<'_>, node: NodeId, message: Message) {
        context.say(|| format!("n{} tells n{node}: {message:?}", self.id));
        context.send(node, message);
    }

    /// For the invariants.
    fn observe_decisions(&self, context: &mut Context<'_>, made: &[Made]) {
        let at = self.at(context);
        let Some(member) = &self.directory else { return };
        let (Some(leading), Some(shard)) = (&member.leading, member.committed.shards.get(&SHARD))
        else {
            return;
        };
        // With this one it judges too soon, to be caught by what comes of it.
        if context.bug != Some(Bug::SkipTheWait) {
            let leader = (self.id, leading.began);
            made.iter().for_each(|made| {
                context.observer.decided(context.now, leader, shard, &made.change);
            });
        }
        // There is one shard.
        let Some(report) = made.iter().find_map(|made| match &made.change {
            Change::Promote { report, .. } if !report.planned => Some(report),
            _ => None,
        }) else {
            return;
        };
        let within = ControllerConfig::default().reachable_within;
        let is_heard = |node: &NodeId| {
            leading.heard.get(node).is_some_and(|heard| at.saturating_sub(*heard) <= within)
        };
        let old = Epoch(report.epoch.0 - 1);
        let answers =
            leading.answers.iter().filter(|(node, (epoch, _))| is_heard(node) && *epoch == old);
        let answers: Vec<_> = answers.map(|(node, (_, position))| (*node, *position)).collect();
        context.observer.promote_proposed(old, report.base, &answers);
    }

    fn propose(&mut self, context: &mut Context<'_>, next: Arc<Cluster>, made: &[Made]) {
        let Some(member) = &self.directory else { return };
        let last = made.last().map_or(0, |made| made.version);
        let mut cluster = Cluster::clone(&member.committed);
        let steps = made.iter().filter(|made| made.version < last).filter_map(|made| {
            cluster.apply(&made.change).ok().map(|()| Arc::new(cluster.clone()))
        });
        let steps = steps.collect();
        let next = if context.bug == Some(Bug::ForgetTheFormerVoters) {
            let mut forgetful = Cluster::clone(&next);
            forgetful.shards.values_mut().for_each(|shard| shard.changing = None);
            Arc::new(forgetful)
        } else {
            next
        };
        context.observer.cluster_proposed(&next, steps);
        self.directory_raft(context, |raft, at, _, out| raft.propose(at, next, out));
    }

    pub(super) fn ordered(&mut self, context: &mut Context<'_>, change: Change) {
        context.say(|| format!("n{} is ordered: {change:?}", self.id));
        let actor = "operator".to_owned();
        self.lead(context, LeaderEvent::Execute { change, actor, caller: () });
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
        self.lead(context, LeaderEvent::Answered(Event::Sealed { node: from, answer }));
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
            let drained = Event::Drained { node: from, shard: SHARD, epoch, position };
            self.lead(context, LeaderEvent::Answered(drained));
        }
    }
}
