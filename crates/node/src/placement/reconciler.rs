//! Keeps this node in the role that the directory gives it in each shard: voter of an epoch, or
//! replica. [`RoleChange`] decides what that takes; this driver carries it out.
//!
//! One task a shard. It is in the middle of one change of role at most, and looks at the directory
//! again when that is through. It may end at any await while the node stops: every step may be done
//! again after a restart.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::{Formed, Peers, RaftGroup, RaftGroupOptions, has_log, leave_group};
use meridian_directory::{Phase, Shard};
use meridian_placement::{CatchUp, Local, Role, RoleAction, RoleChange, RoleEvent, Vote, sources};
use meridian_storage::{GroupId, ShardState, ShippedLog, StorageError, or_fatal};
use meridian_types::{Epoch, EpochHistory, Position, ShardId};

use crate::cluster_view::store::save_cluster;
use crate::divergence::collect;
use crate::placement::member::{VoteAuthority, run_member};
use crate::placement::parts::PlacementParts;
use crate::placement::seals;
use crate::replication::carry_over::carry_over;
use crate::replication::catch_up::{self, Surroundings, Target};
use crate::replication::progress::Followers;
use crate::shard::local::LocalShard;
use crate::shard::replica::{Replica, ReplicaParts};
use crate::shard::voter::{Voter, VoterParts};
use crate::write::shard_limits::ShardLimits;

/// How often a role is looked at again without word of the directory. Leaving a group waits for its
/// leader, of which the directory does not speak.
const RECONCILE_EVERY: Duration = Duration::from_millis(500);

/// Follows the cluster: dials its nodes, remembers it, and reconciles every shard that appears in it.
pub(crate) async fn reconcile_all(parts: Arc<PlacementParts>) {
    let mut known = parts.directory.watch();
    let mut certificate = parts.peers.watch_certificate();
    let mut reconciled = HashSet::new();
    loop {
        let present = Arc::clone(&known.borrow_and_update());
        for node in parts.peers.update(&present.cluster) {
            tracing::error!(%node, "a node's address cannot be dialled");
        }
        // Version 0 is this node's configuration: nothing is founded on it.
        if present.cluster.version > 0 {
            let (engine, saved) = (Arc::clone(&parts.engine), Arc::clone(&present));
            if blocking(move || save_cluster(&engine, &saved.cluster)).await.is_err() {
                return;
            }
            for shard in present.cluster.shards.keys() {
                if reconciled.insert(*shard) {
                    let (parts, shard) = (Arc::clone(&parts), *shard);
                    let opened = blocking(move || Reconciler::open(parts, shard)).await;
                    let Ok(reconciler) = opened else { return };
                    tokio::spawn(reconciler.run());
                }
            }
        }
        for shard in &reconciled {
            if let Some(followers) = parts.shards.followers(shard) {
                let nodes = present.cluster.present_nodes().map(|(id, _)| id);
                followers.set_nodes(nodes.filter(|node| *node != parts.node_id));
            }
        }
        tokio::select! {
            () = parts.stop.cancelled() => return,
            changed = known.changed() => if changed.is_err() { return },
            () = certificate.changed() => {}
        }
    }
}

/// The node is stopping: nothing more is carried out.
struct Stopping;

/// Storage off the runtime, where a disk that stalls would hold up every shard. A failure stops the
/// process.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Stopping> {
    tokio::task::spawn_blocking(work).await.map(or_fatal).map_err(|_| Stopping)
}

/// One shard's.
#[derive(Clone)]
struct Reconciler {
    parts: Arc<PlacementParts>,
    shard: ShardId,
    state: Arc<ShardState>,
    /// The batches that this node takes as a replica.
    log: ShippedLog,
    followers: Arc<Followers>,
}

impl Reconciler {
    fn open(parts: Arc<PlacementParts>, shard: ShardId) -> Result<Self, StorageError> {
        let state = Arc::new(ShardState::open(Arc::clone(&parts.engine), shard)?);
        // Before anything is granted, or served.
        if let Some(seal) = seals::newest(&parts.engine, shard)? {
            parts.directory.seal(shard, seal.epoch);
        }
        let log = ShippedLog::open(&parts.engine, shard)?;
        log.replay(&state)?;
        let followers = Followers::watch(&state);
        parts.shards.add(Arc::clone(&state), Arc::clone(&followers));
        Ok(Self { parts, shard, state, log, followers })
    }

    async fn run(self) {
        let mut known = self.parts.directory.watch();
        let mut ticks = tokio::time::interval(RECONCILE_EVERY);
        loop {
            let present = Arc::clone(&known.borrow_and_update());
            if let Some(shard) = present.cluster.shards.get(&self.shard)
                && self.reconcile(shard).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = self.parts.stop.cancelled() => return,
                _ = ticks.tick() => {}
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes the role that the directory gives, if it is another than the present one.
    async fn reconcile(&self, shard: &Shard) -> Result<(), Stopping> {
        let mut change = RoleChange::new(self.parts.node_id);
        let group = self.state.applied().raft.epoch;
        let view = RoleEvent::View { shard, role: self.role(), group };
        let mut actions = VecDeque::from(change.step(view));
        let mut opened = None;
        while let Some(action) = actions.pop_front() {
            if let Some(event) = self.carry_out(action, &mut opened).await? {
                actions.extend(change.step(event));
            }
        }
        Ok(())
    }

    fn role(&self) -> Role {
        match self.parts.shards.get(&self.shard) {
            None => Role::None,
            Some(LocalShard::Voter(voter)) => Role::Voter {
                epoch: voter.group.id().epoch,
                is_member: voter.group.voters().contains(&self.parts.node_id),
            },
            Some(LocalShard::Replica(replica)) => {
                Role::Replica { epoch: replica.history().epoch() }
            }
        }
    }

    /// `opened`: the shard in its new role, from when it is opened until it is taken up.
    async fn carry_out(
        &self,
        action: RoleAction,
        opened: &mut Option<LocalShard>,
    ) -> Result<Option<RoleEvent<'static>>, Stopping> {
        match action {
            RoleAction::LeaveGroup { goes_on } => self.leave_group(goes_on).await?,
            RoleAction::StopReplica => {
                if let Some(LocalShard::Replica(replica)) = self.parts.shards.get(&self.shard) {
                    self.parts.shards.set(self.shard, None);
                    replica.stop().await;
                }
            }
            RoleAction::FollowOn(history) => {
                if let Some(LocalShard::Replica(replica)) = self.parts.shards.get(&self.shard) {
                    replica.follow(history.clone());
                    self.set_examined(&history);
                }
            }
            RoleAction::ExamineOldGroups(history) => {
                return Ok(Some(RoleEvent::Examined(self.examine_old_groups(history).await?)));
            }
            RoleAction::KeepDivergence(history) => self.keep_divergence(history).await?,
            RoleAction::EmptyReplicaLog { behind } => {
                let log = self.log.clone();
                blocking(move || log.restart_behind(behind.sequence)).await?;
            }
            RoleAction::JoinReplicaLog => {
                let (log, state) = (self.log.clone(), Arc::clone(&self.state));
                blocking(move || log.join_behind(&state)).await?;
            }
            RoleAction::ReachBase(history) => self.reach_base(history).await?,
            RoleAction::Found { epoch, base, voters } => {
                let group = GroupId { shard: self.shard, epoch };
                let (state, marks) = (Arc::clone(&self.state), Arc::clone(&self.parts.high_water));
                let form = move || RaftGroup::form(&state, group, &voters, base, Some(&marks));
                let founder = blocking(form).await? == Formed::Founder;
                return Ok(Some(RoleEvent::Formed { founder }));
            }
            RoleAction::PrepareToBeSeeded { epoch, base } => {
                let reconciler = self.clone();
                blocking(move || reconciler.prepare_to_be_seeded(epoch, base)).await?;
            }
            RoleAction::Vote(vote) => {
                *opened = Some(LocalShard::Voter(or_fatal(self.vote(vote).await)));
            }
            RoleAction::Follow { history, sealed } => *opened = Some(self.follow(history, sealed)),
            RoleAction::Fence(epoch) => self.parts.directory.seal(self.shard, epoch),
            RoleAction::SealVoter { planned } => {
                if let Some(LocalShard::Voter(voter)) = opened {
                    drop(voter.seal(planned).await);
                }
            }
            RoleAction::SealReplica(epoch) => {
                if let Some(LocalShard::Replica(replica)) = opened {
                    // It was opened just now: only a node that stops has none to answer.
                    replica.seal(epoch).await.ok_or(Stopping)?;
                }
            }
            RoleAction::TakeUp => {
                self.parts.shards.set(self.shard, opened.take());
                self.parts.directory.renew_now();
            }
        }
        Ok(None)
    }

    async fn leave_group(&self, goes_on: bool) -> Result<(), Stopping> {
        let Some(LocalShard::Voter(voter)) = self.parts.shards.get(&self.shard) else {
            return Ok(());
        };
        let group = voter.group.id();
        tracing::info!(%group, "this node's part in the group ends");
        self.parts.shards.set(self.shard, None);
        // First, so that no call of another member meets it while it stops.
        self.parts.raft.unregister(group);
        voter.retire().await;
        if goes_on {
            let reconciler = self.clone();
            blocking(move || {
                let Self { parts, state, log, .. } = &reconciler;
                carry_over(state, log, group, &parts.carry_limits())?;
                leave_group(&parts.engine, group, Some(&parts.high_water))
            })
            .await?;
        }
        Ok(())
    }

    async fn examine_old_groups(&self, history: EpochHistory) -> Result<Local, Stopping> {
        let (reconciler, past) = (self.clone(), history.clone());
        let seal = blocking(move || {
            let Self { parts, shard, state, .. } = &reconciler;
            let (marks, limits) = (&parts.high_water, parts.carry_limits());
            collect::examine_old_groups(state, marks, &parts.data_dir, &past, &limits)?;
            seals::of(&parts.engine, *shard, past.epoch())
        });
        let seal = seal.await?;
        self.set_examined(&history);
        let applied = self.state.applied();
        Ok(Local { position: applied.position, group: applied.raft.epoch, seal })
    }

    fn set_examined(&self, history: &EpochHistory) {
        self.parts.examined.lock().insert(self.shard, history.epoch());
    }

    async fn keep_divergence(&self, history: EpochHistory) -> Result<(), Stopping> {
        let (reconciler, past) = (self.clone(), history.clone());
        let kept = blocking(move || {
            let Self { parts, state, log, .. } = &reconciler;
            collect::keep_shipped(&parts.data_dir, state, &past, log)
        });
        let (kept, base) = (kept.await?, history.base());
        tracing::warn!(shard = %self.shard, %base, kept, "this node is beyond the base");
        Ok(())
    }

    fn follow(&self, history: EpochHistory, sealed: Option<Epoch>) -> LocalShard {
        self.followers.restart(&self.state);
        let replica = or_fatal(Replica::start(ReplicaParts {
            node_id: self.parts.node_id,
            history,
            sealed,
            state: Arc::clone(&self.state),
            log: self.log.clone(),
            syncer: Arc::clone(&self.parts.syncer),
            directory: Arc::clone(&self.parts.directory),
            peers: Arc::clone(&self.parts.peers),
            transfer: Arc::clone(&self.parts.transfer),
            data_dir: self.parts.data_dir.clone(),
            disk: Arc::clone(&self.parts.disk),
            reads: self.parts.reads.clone(),
            streams: self.parts.streams.clone(),
        }));
        LocalShard::Replica(Arc::new(replica))
    }

    async fn vote(&self, vote: Vote) -> Result<Arc<Voter>, StorageError> {
        let Vote { history, voters, founder, answers, stands_first } = vote;
        let group = GroupId { shard: self.shard, epoch: history.epoch() };
        self.followers.restart(&self.state);
        let raft = RaftGroup::open(RaftGroupOptions {
            node_id: self.parts.node_id,
            group,
            state: Arc::clone(&self.state),
            syncer: Arc::clone(&self.parts.syncer),
            high_water: Some(Arc::clone(&self.parts.high_water)),
            peers: Arc::clone(&self.parts.peers) as Arc<dyn Peers>,
            transfer: Arc::clone(&self.parts.transfer),
            timing: self.parts.timing,
            log_cache: self.parts.log_cache.clone(),
        })
        .await?;
        if answers {
            self.parts.raft.register(raft.clone());
        }
        let voter = Arc::new(Voter::start(VoterParts {
            group: raft,
            history,
            shipped: self.log.clone(),
            directory: Arc::clone(&self.parts.directory),
            peers: Arc::clone(&self.parts.peers),
            policy: Arc::new(ShardLimits {
                node_id: self.parts.node_id,
                shard: self.shard,
                directory: Arc::clone(&self.parts.directory),
                followers: Arc::clone(&self.followers),
                disk: Arc::clone(&self.parts.disk),
                stored: Arc::clone(self.parts.shards.stored()),
            }),
            writes: self.parts.writes.clone(),
            time: Arc::new(self.parts.clocks.clone()),
            reads: self.parts.reads.clone(),
            founder,
        }));
        tracing::info!(%group, founder, "this node votes");
        let peers = Arc::clone(&self.parts.peers) as Arc<dyn Peers>;
        // A founder has neither been wiped nor promised anything in the group: nothing is waited for.
        let grantor = (!founder).then(|| Arc::clone(&self.parts.directory));
        run_member(&voter, voters, peers, VoteAuthority::By(grantor), stands_first);
        Ok(voter)
    }

    fn prepare_to_be_seeded(&self, epoch: Epoch, base: Position) -> Result<(), StorageError> {
        if self.log.last()?.is_some_and(|last| last.sequence > base.sequence) {
            // Taken as a replica of this very epoch: it is not applied on top of what the leader
            // sends.
            let sequence = self.state.flush()?.position.sequence;
            self.log.restart_behind(sequence)?;
        }
        let group = GroupId { shard: self.shard, epoch };
        if has_log(&self.parts.engine, group)? && self.state.applied().raft.epoch != Some(epoch) {
            // The state went on without the group: what its log says is not applied on top.
            leave_group(&self.parts.engine, group, Some(&self.parts.high_water))?;
        }
        Ok(())
    }

    /// Waits until the shard no longer forms the group of this epoch. Others have founded it then,
    /// and their leader has a snapshot for members that come later.
    async fn forming_ends(&self, epoch: Epoch) {
        let mut known = self.parts.directory.watch();
        let ended = known.wait_for(|known| {
            let shard = known.cluster.shards.get(&self.shard);
            shard.is_none_or(|shard| shard.epoch != epoch || shard.phase != Phase::Forming)
        });
        tokio::select! {
            () = self.parts.stop.cancelled() => {}
            _ = ended => {}
        }
    }

    /// Without success the leader's snapshot comes.
    async fn reach_base(&self, history: EpochHistory) -> Result<(), Stopping> {
        let epoch = history.epoch();
        let sources = || {
            let known = self.parts.directory.known();
            sources(&known.cluster, self.shard, self.parts.node_id)
        };
        let mut machine = CatchUp::to_base(history, sources());
        let target = Target {
            state: &self.state,
            log: &self.log,
            syncer: &self.parts.syncer,
            disk: &self.parts.disk,
        };
        let surroundings =
            Surroundings { sources, unwanted: || self.forming_ends(epoch), installed: |_| {} };
        let peers = &self.parts.peers;
        let mut whole = None;
        let way = catch_up::run(&mut machine, &target, peers, &mut whole, surroundings);
        tokio::select! {
            biased;
            reached = way => {
                if let Err(failure) = reached {
                    tracing::info!(shard = %self.shard, %failure, "this node joins by a snapshot");
                }
                Ok(())
            }
            () = self.parts.stop.cancelled() => Err(Stopping),
        }
    }
}

#[cfg(test)]
mod tests;
