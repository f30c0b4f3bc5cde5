//! Keeps this node in the part that the directory gives it in each shard: voter of an epoch, or
//! replica.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::{
    Formed, LogCache, Peers, RaftGroup, RaftGroupOptions, RaftService, RaftTiming, StateTransfer,
    has_log, leave_group,
};
use meridian_directory::{Phase, Shard};
use meridian_memory::ByteBudget;
use meridian_storage::{
    Engine, GroupId, HighWater, ShardState, ShippedLog, StorageError, Syncer, or_fatal,
};
use meridian_types::{Epoch, EpochHistory, NodeId, ShardId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::store::save_cluster;
use crate::cluster_view::view::Directory;
use crate::divergence::collect;
use crate::host::clocks::Clocks;
use crate::host::disk::DiskGuard;
use crate::network::peers::PeerChannels;
use crate::placement::seals::Seal;
use crate::read::execution::Reads;
use crate::replication::catch_up::{self, Target};
use crate::replication::progress::Followers;
use crate::shard::local::LocalShard;
use crate::shard::replica::{Replica, ReplicaParts};
use crate::shard::table::ShardTable;
use crate::shard::voter::{Voter, VoterParts};
use crate::write::shard_limits::ShardLimits;

/// Rounds in which a founder that lags asks everybody for what it lacks; then it joins by a
/// snapshot.
const PULL_ROUNDS: usize = 3;
const PULL_PAUSE: Duration = Duration::from_millis(300);

const LEAVING: Duration = Duration::from_millis(500);

/// What the keepers of all shards share.
pub(crate) struct KeeperParts {
    pub(crate) node_id: NodeId,
    pub(crate) data_dir: PathBuf,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) high_water: Arc<HighWater>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
    pub(crate) raft: RaftService,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) disk: Arc<DiskGuard>,
    /// For writes that wait at this node.
    pub(crate) writes: ByteBudget,
    pub(crate) clocks: Clocks,
    pub(crate) reads: Reads,
    /// For the compression of streams.
    pub(crate) streams: ByteBudget,
    pub(crate) log_cache: LogCache,
    pub(crate) timing: RaftTiming,
    /// The epoch of each shard up to which the logs of groups before were looked through.
    pub(crate) settled: Mutex<HashMap<ShardId, Epoch>>,
    pub(crate) stop: CancellationToken,
}

/// Follows the cluster: dials its nodes, remembers it, and keeps every shard that appears in it.
pub(crate) async fn keep_all(parts: Arc<KeeperParts>) {
    let mut known = parts.directory.watch();
    let mut kept = HashSet::new();
    loop {
        let present = Arc::clone(&known.borrow_and_update());
        for node in parts.peers.update(&present.cluster) {
            tracing::error!(node, "a node's address cannot be dialled");
        }
        // Version 0 is this node's configuration: nothing is founded on it.
        if present.cluster.version > 0 {
            let (engine, saved) = (Arc::clone(&parts.engine), Arc::clone(&present));
            if blocking(move || save_cluster(&engine, &saved.cluster)).await.is_none() {
                return;
            }
            for shard in present.cluster.shards.keys() {
                if kept.insert(*shard) {
                    let (parts, shard) = (Arc::clone(&parts), *shard);
                    let Some(keeper) = blocking(move || Keeper::open(parts, shard)).await else {
                        return;
                    };
                    tokio::spawn(keeper.run());
                }
            }
        }
        for shard in &kept {
            if let Some(followers) = parts.shards.followers(shard) {
                let nodes = present.cluster.present_nodes().map(|(id, _)| id);
                followers.set_nodes(nodes.filter(|node| *node != parts.node_id));
            }
        }
        tokio::select! {
            () = parts.stop.cancelled() => return,
            changed = known.changed() => if changed.is_err() { return },
        }
    }
}

/// Storage off the runtime, where a disk that stalls would hold up every shard. What fails stops
/// the process; `None` is the node stopping.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok().map(or_fatal)
}

/// One shard's.
#[derive(Clone)]
struct Keeper {
    parts: Arc<KeeperParts>,
    shard: ShardId,
    state: Arc<ShardState>,
    /// What this node takes as a replica.
    log: ShippedLog,
    followers: Arc<Followers>,
}

impl Keeper {
    fn open(parts: Arc<KeeperParts>, shard: ShardId) -> Result<Self, StorageError> {
        let state = Arc::new(ShardState::open(Arc::clone(&parts.engine), shard)?);
        // Before anything is granted, or served.
        if let Some(seal) = Seal::newest(&parts.engine, shard)? {
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
        // Leaving a group waits for its leader, of whom the directory does not speak.
        let mut ticks = tokio::time::interval(LEAVING);
        loop {
            let present = Arc::clone(&known.borrow_and_update());
            if let Some(shard) = present.cluster.shards.get(&self.shard) {
                self.settle(shard).await;
            }
            tokio::select! {
                () = self.parts.stop.cancelled() => return,
                _ = ticks.tick() => {}
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether the group of the present epoch goes on without this node, which is not to vote in
    /// it: its own log says so, or the directory has heard of a leader that the change is through.
    /// Until then it decides.
    fn is_out(&self, shard: &Shard, voter: &Voter) -> bool {
        let is_through = shard.changing.is_none() && !matches!(shard.phase, Phase::Sealing(_));
        is_through || !voter.group.voters().contains(&self.parts.node_id)
    }

    /// Takes the part that the directory gives, if it is another than the present one.
    async fn settle(&self, shard: &Shard) {
        let history = EpochHistory::new(shard.bases.clone());
        // One that was taken out while it was down goes through the group once more, and leaves it
        // in order.
        let left_behind = self.parts.shards.get(&self.shard).is_none()
            && self.state.applied().raft.epoch == Some(history.epoch());
        let votes = shard.voters.contains(&self.parts.node_id) || left_behind;
        match self.parts.shards.get(&self.shard) {
            Some(LocalShard::Voter(voter))
                if votes && voter.group.id().epoch == history.epoch() =>
            {
                return;
            }
            Some(LocalShard::Replica(replica)) if !votes => {
                if replica.history() != history {
                    replica.follow(history.clone());
                    self.settled(&history);
                }
                return;
            }
            Some(LocalShard::Voter(voter)) => {
                let group = voter.group.id();
                let goes_on = group.epoch == history.epoch();
                if goes_on && !self.is_out(shard, &voter) {
                    return;
                }
                tracing::info!(%group, "this node's part in the group ends");
                self.parts.shards.set(self.shard, None);
                // First, so that no call of another member meets it while it stops.
                self.parts.raft.unregister(group);
                voter.retire().await;
                if goes_on {
                    let parts = Arc::clone(&self.parts);
                    let left = move || leave_group(&parts.engine, group, Some(&parts.high_water));
                    if blocking(left).await.is_none() {
                        return;
                    }
                }
            }
            Some(LocalShard::Replica(replica)) => {
                self.parts.shards.set(self.shard, None);
                replica.stop().await;
            }
            None => {}
        }
        let (parts, state, past) =
            (Arc::clone(&self.parts), Arc::clone(&self.state), history.clone());
        let look_through =
            move || collect::settle_old_groups(&state, &parts.high_water, &parts.data_dir, &past);
        if blocking(look_through).await.is_none() {
            return;
        }
        self.settled(&history);
        let epoch = history.epoch();
        let seal = or_fatal(Seal::of(&self.parts.engine, self.shard, epoch));
        let local = if votes {
            or_fatal(self.vote(shard, history, seal).await)
        } else {
            self.follow(history, seal).await
        };
        let Some(local) = local else { return };
        if let Some(seal) = seal {
            self.seal_again(&local, epoch, seal.planned).await;
        } else if let Phase::Sealing(plan) = &shard.phase {
            self.seal_again(&local, epoch, plan.planned).await;
        }
        self.parts.shards.set(self.shard, Some(local));
        // The directory waits for word of the new epoch.
        self.parts.directory.renew_now();
    }

    /// What this node promised before it restarted, or will be asked to. For a switchover replicas
    /// go on; one that was sealed has begun so.
    async fn seal_again(&self, local: &LocalShard, epoch: Epoch, planned: bool) {
        self.parts.directory.seal(self.shard, epoch);
        match local {
            LocalShard::Voter(voter) => drop(voter.seal(planned).await),
            LocalShard::Replica(replica) if !planned => drop(replica.seal(epoch).await),
            LocalShard::Replica(_) => {}
        }
    }

    fn settled(&self, history: &EpochHistory) {
        self.parts.settled.lock().insert(self.shard, history.epoch());
    }

    /// As a replica. `None`: the node is stopping.
    async fn follow(&self, history: EpochHistory, seal: Option<Seal>) -> Option<LocalShard> {
        let (keeper, past) = (self.clone(), history.clone());
        blocking(move || {
            if past.leaves(keeper.state.position()).is_some() {
                collect::save_shipped(&keeper.parts.data_dir, &keeper.state, &past, &keeper.log)?;
            }
            keeper.restart_followers();
            keeper.log.join_behind(&keeper.state)
        })
        .await?;
        let replica = or_fatal(Replica::start(ReplicaParts {
            node_id: self.parts.node_id,
            history,
            sealed: seal.map(|seal| seal.epoch),
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
        Some(LocalShard::Replica(Arc::new(replica)))
    }

    /// As a voter: a founder of the epoch's group if it stands at the base while the group is being
    /// formed, and else a member that the leader seeds. `None`: the node is stopping.
    async fn vote(
        &self,
        shard: &Shard,
        history: EpochHistory,
        seal: Option<Seal>,
    ) -> Result<Option<LocalShard>, StorageError> {
        let group = GroupId { shard: self.shard, epoch: history.epoch() };
        let mut founder = false;
        if let Some((_, base)) = history.leaves(self.state.position()) {
            let (keeper, past) = (self.clone(), history.clone());
            let kept = blocking(move || {
                let kept = collect::save_shipped(
                    &keeper.parts.data_dir,
                    &keeper.state,
                    &past,
                    &keeper.log,
                )?;
                keeper.log.restart_behind(base.sequence)?;
                Ok(kept)
            });
            let Some(kept) = kept.await else { return Ok(None) };
            tracing::warn!(%group, %base, kept, "this node is beyond the base: it is seeded afresh");
        } else if self.state.applied().raft.epoch != Some(group.epoch)
            && shard.phase == Phase::Forming
        {
            let keeper = self.clone();
            if blocking(move || keeper.log.join_behind(&keeper.state)).await.is_none() {
                return Ok(None);
            }
            self.reach_base(shard, &history).await;
            let (state, voters, base) =
                (Arc::clone(&self.state), shard.voters.clone(), history.base());
            let high_water = Arc::clone(&self.parts.high_water);
            let form = move || RaftGroup::form(&state, group, &voters, base, Some(&high_water));
            let formed = tokio::task::spawn_blocking(form).await;
            // One that did not finish is the node stopping.
            founder = formed.unwrap_or(Ok(Formed::Already))? == Formed::Founder;
        }
        if !founder {
            let (keeper, past) = (self.clone(), history.clone());
            if blocking(move || keeper.prepare_to_be_seeded(group, &past)).await.is_none() {
                return Ok(None);
            }
        }
        self.restart_followers();
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
        // What it said when it was sealed is final: it acknowledges nothing any more, whoever leads
        // and has not heard of the seal.
        if seal.is_none_or(|seal| seal.planned) {
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
            }),
            writes: self.parts.writes.clone(),
            time: Arc::new(self.parts.clocks.clone()),
            reads: self.parts.reads.clone(),
            founder,
        }));
        tracing::info!(%group, founder, "this node votes");
        let first_leader =
            shard.preferred_leader.or(shard.voters.first().copied()) == Some(self.parts.node_id);
        let (voters, peers) =
            (shard.voters.clone(), Arc::clone(&self.parts.peers) as Arc<dyn Peers>);
        let stands_first = founder && first_leader;
        // One that has just founded the group has neither been wiped nor promised anything in it.
        let grantor = (!founder).then(|| Arc::clone(&self.parts.directory));
        run_member(&voter, voters, peers, Vouched::By(grantor), stands_first);
        Ok(Some(LocalShard::Voter(voter)))
    }

    fn restart_followers(&self) {
        self.followers.restart(&self.state);
    }

    /// Before the group is opened by one that did not found it now.
    fn prepare_to_be_seeded(
        &self,
        group: GroupId,
        history: &EpochHistory,
    ) -> Result<(), StorageError> {
        if self.log.last()?.is_some_and(|(last, _)| last > history.base().sequence) {
            // Taken as a replica of this very epoch: it is not applied on top of what the leader
            // sends.
            let sequence = self.state.flush()?.position.sequence;
            self.log.restart_behind(sequence)?;
        }
        if has_log(&self.parts.engine, group)?
            && self.state.applied().raft.epoch != Some(group.epoch)
        {
            // The state went on without the group: what its log says is not applied on top.
            leave_group(&self.parts.engine, group, Some(&self.parts.high_water))?;
        }
        Ok(())
    }

    /// Waits until the shard no longer forms the group of this epoch. Others have founded it then,
    /// and their leader has a snapshot for who comes later.
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

    /// Pulls what is missing up to the base from whoever has it. Without success the leader's
    /// snapshot comes.
    async fn reach_base(&self, shard: &Shard, history: &EpochHistory) {
        let base = history.base();
        let (syncer, disk) = (&self.parts.syncer, &*self.parts.disk);
        let target = Target { state: &self.state, log: &self.log, syncer, history, disk };
        for round in 0..PULL_ROUNDS {
            let known = self.parts.directory.known();
            let nodes = known.cluster.present_nodes();
            let mut sources: Vec<_> = nodes.filter(|(id, _)| *id != self.parts.node_id).collect();
            sources.sort_by_key(|(id, node)| (node.region != shard.primary_region, *id));
            for (source, _) in sources {
                if self.state.position().sequence >= base.sequence {
                    return;
                }
                let pull = catch_up::pull(
                    &target,
                    &self.parts.peers,
                    source,
                    base,
                    self.forming_ends(history.epoch()),
                );
                if let Err(reason) = pull.await {
                    tracing::debug!(shard = %self.shard, round, reason, "no tail from there");
                }
            }
            tokio::select! {
                () = self.parts.stop.cancelled() => return,
                () = tokio::time::sleep(PULL_PAUSE) => {}
            }
        }
    }
}

/// Who says that a member may take part.
pub(crate) enum Vouched {
    /// The other members alone: the directory's own group.
    ByOthers,
    /// The directory, which knows the folders of nodes; with its name, a lease on the epoch is
    /// waited for. A voter that restarts has forgotten whether it was sealed, and one that was
    /// wiped what it voted: neither gets a lease.
    By(Option<Arc<Directory>>),
}

/// The tasks of a group's member, until the voter's `stop`: it takes part, and a group that stops
/// by itself stops the process.
pub(crate) fn run_member(
    voter: &Arc<Voter>,
    voters: std::collections::BTreeSet<NodeId>,
    peers: Arc<dyn Peers>,
    vouched: Vouched,
    stands_first: bool,
) {
    let (group, stop) = (voter.group.clone(), voter.stop.clone());
    tokio::spawn(async move {
        let part = async {
            if let Vouched::By(Some(directory)) = &vouched {
                directory.granted(group.id().shard, group.id().epoch).await;
            }
            let vouched = matches!(vouched, Vouched::By(_));
            if let Err(error) = group.take_part(&voters, &peers, vouched).await {
                // It cannot tell whether it may vote: storage has failed.
                meridian_storage::fatal(&error);
            }
            if stands_first {
                // Nobody waits for an election timeout when a group is new.
                group.elect_now().await;
            }
            if let Err(error) = group.announce(&voters, &peers).await {
                meridian_storage::fatal(&error);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = part => {}
            // Also while it waits to take part: it follows then already.
            reason = group.stopped() => if !stop.is_cancelled() {
                meridian_storage::fatal(&StorageError::RaftStopped { group: group.id(), reason });
            }
        }
    });
}

#[cfg(test)]
mod tests;
