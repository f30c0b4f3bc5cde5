//! What a node does by the way: statuses, flushing and purging, forgetting request ids, gauges.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use meridian_proto::shipping::{AnnounceRequest, Status};
use meridian_storage::{Engine, HighWater, RequestsSoFar, StorageError, fatal, or_fatal};
use meridian_types::{Epoch, NodeId, ShardId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background::announcements::{ANNOUNCE, Announcements};
use crate::background::counters::LagGauges;
use crate::cluster_view::bootstrap::DIRECTORY_GROUP;
use crate::cluster_view::view::Directory;
use crate::directory_group::leader::DirectoryVoter;
use crate::host::clock::wall_ms;
use crate::host::clocks::Clocks;
use crate::host::disk::{DiskGuard, LOOK, MIN_FREE_BYTES, Room, free_bytes};
use crate::network::peers::PeerChannels;
use crate::replication::comparison::checkpoint;
use crate::replication::progress::KEEP_BATCHES;
use crate::replication::progress::{FollowerLag, Followers};
use crate::replication::snapshot_transfer::StateExchange;
use crate::replication::wire::status_to_wire;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;

const PERSIST_MARKS: Duration = Duration::from_secs(1);
const PURGE: Duration = Duration::from_secs(10);
/// Gauges, and members of groups.
const EACH_SECOND: Duration = Duration::from_secs(1);
/// How often the node looks for dropped databases whose room the disk has not got back.
const RECLAIM: Duration = Duration::from_secs(5);
/// How fast it is given back at most: what else the disk does comes first.
const RECLAIM_BYTES_PER_SECOND: u64 = 32 << 20;
/// A leader whose lease ends sooner hands over. Looked for each [`ANNOUNCE`].
const LEASE_LOW: Duration = Duration::from_millis(1200);
/// Nobody is handed the leadership whose lease ends sooner. Beyond the other by more than leases of
/// the same time are apart, so that nothing is handed over when the directory is silent to all.
const LEASE_GOOD: Duration = Duration::from_millis(1900);
const PREFERRED_LEADER: Duration = Duration::from_secs(10);
/// Batches that are not worth a purge.
const PURGE_AT_LEAST: u64 = 1000;
/// Logs are kept for copies that take long only while so much disk is free: beyond, a copy may have
/// to begin anew.
const COPY_FREE_BYTES: u64 = 4 * MIN_FREE_BYTES;
/// The same for the directory's own group, each of whose batches holds the whole cluster.
const DIRECTORY_KEEP_BATCHES: u64 = 100;
/// Twice as long as request ids must be remembered.
const FORGET_AFTER: Duration =
    Duration::from_millis(meridian_types::limits::REQUEST_ID_RETENTION_MS * 2);
/// A preferred leader that lags by more is not handed the leadership.
const HANDOVER_LAG_BATCHES: u64 = 100;

/// While writes are refused for want of disk, memtables are flushed from so many bytes on, so often
/// at most.
const FLUSHED_ON_A_LOW_DISK_BYTES: u64 = 8 << 20;
const FLUSH_ON_A_LOW_DISK: Duration = Duration::from_secs(2);

pub(crate) struct Maintenance {
    pub(crate) node_id: NodeId,
    pub(crate) data_dir: PathBuf,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) high_water: Arc<HighWater>,
    pub(crate) exchange: Arc<StateExchange>,
    pub(crate) directory_voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) clocks: Clocks,
    pub(crate) log_retention_bytes: u64,
    pub(crate) changing: Mutex<HashMap<ShardId, VoterChange>>,
    /// The epoch and term in which this node was last seen to lead, and since when, on the
    /// directory's clock.
    pub(crate) leading: Mutex<HashMap<ShardId, (Epoch, u64, Duration)>>,
    pub(crate) applied: Mutex<HashMap<ShardId, VecDeque<(Instant, RequestsSoFar)>>>,
    pub(crate) lags: Mutex<LagGauges>,
    pub(crate) announcements: Announcements,
    /// To be looked at: this node leads with a lease that is low.
    pub(crate) lease_low: Notify,
}

impl Maintenance {
    /// Starts all tasks; they end with `stop`.
    pub(crate) fn start(self, stop: &CancellationToken) -> Vec<tokio::task::JoinHandle<()>> {
        let this = Arc::new(self);
        let every = |period: Duration, work: fn(Arc<Self>) -> Work| {
            let (this, stop) = (Arc::clone(&this), stop.clone());
            // Nodes that were started together, and may share a disk, do not flush and purge
            // together.
            let phase = period * u32::try_from(this.node_id % 8).unwrap_or(0) / 8;
            tokio::spawn(async move {
                let mut ticks =
                    tokio::time::interval_at(tokio::time::Instant::now() + phase, period);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        _ = ticks.tick() => work(Arc::clone(&this)).await,
                    }
                }
            })
        };
        let mut tasks = vec![
            every(ANNOUNCE, |this| {
                Box::pin(async move {
                    this.announce();
                    this.look_at_leases();
                })
            }),
            every(PERSIST_MARKS, |this| Box::pin(this.persist_marks())),
            every(FLUSH_ON_A_LOW_DISK, |this| Box::pin(this.flush_on_a_low_disk())),
            every(PURGE, |this| Box::pin(this.purge())),
            every(RECLAIM, |this| Box::pin(this.reclaim())),
            every(PREFERRED_LEADER, |this| Box::pin(this.hand_over())),
            every(EACH_SECOND, |this| {
                Box::pin(async move {
                    this.gauges();
                    this.settle_members();
                })
            }),
            every(FORGET_AFTER / 20, |this| {
                Box::pin(async move { this.forget_requests(Instant::now()) })
            }),
        ];
        tasks.push(tokio::spawn({
            let (this, stop) = (Arc::clone(&this), stop.clone());
            async move {
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = this.lease_low.notified() => {
                            Arc::clone(&this).hand_over_without_lease().await;
                        }
                    }
                }
            }
        }));
        // On a thread of its own, which is all that wakes for a look.
        let (weak, stop) = (Arc::downgrade(&this), stop.clone());
        let (end, ended) = oneshot::channel::<()>();
        let (goes_on, stops) = std::sync::mpsc::channel::<()>();
        let looks = move || {
            let _end = end;
            while let Some(this) = weak.upgrade() {
                let pause = this.check_the_disk();
                drop(this);
                // Until the node stops.
                if stops.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("disk-looks".to_owned()).spawn(looks) {
            // Waited for like the tasks: it may be the last that has the engine.
            Ok(_) => tasks.push(tokio::spawn(async move {
                stop.cancelled().await;
                drop(goes_on);
                drop(ended.await);
            })),
            Err(error) => {
                tracing::warn!(%error, "there is no thread to look at the disk");
                tasks.push(every(LOOK, |this| Box::pin(this.look_at_the_disk())));
            }
        }
        tasks
    }

    /// Tells every other node where this one stands.
    fn announce(&self) {
        let statuses = self.shards.all().into_iter().map(|(id, shard)| {
            let status = status_to_wire(id, &shard.own_status(self.node_id));
            let may_lead = match &shard {
                LocalShard::Voter(voter) => {
                    voter.group.votes() && self.keeps_lease(id, voter, LEASE_GOOD)
                }
                LocalShard::Replica(_) => false,
            };
            // Also a voter that its leader seeds: everybody keeps the log for it meanwhile.
            let fetching_snapshot = status.fetching_snapshot || self.exchange.is_fetching(id);
            Status { may_lead, fetching_snapshot, ..status }
        });
        let statuses = statuses.collect();
        let checkpoints =
            self.shards.all().into_iter().map(|(_, shard)| checkpoint(self.node_id, shard.state()));
        let room = self.disk.room();
        let request = AnnounceRequest {
            statuses,
            disk_full: room != Room::Enough,
            disk_exhausted: room == Room::Exhausted,
            checkpoints: checkpoints.collect(),
            node_id: self.node_id,
            // When it is sent.
            clock_ms: 0,
        };
        let known = self.directory.known();
        let others = || {
            let nodes = known.cluster.present_nodes().map(|(id, _)| id);
            nodes.filter(|node| *node != self.node_id)
        };
        self.clocks.set_others(others());
        let with = known
            .cluster
            .shards
            .values()
            .map(|shard| &shard.voters)
            .filter(|voters| voters.contains(&self.node_id));
        let with: BTreeSet<NodeId> = with.flatten().copied().collect();
        let others = others().map(|node| (node, with.contains(&node)));
        self.announcements.say((Instant::now(), wall_ms()), request, others, &self.peers);
    }

    async fn persist_marks(self: Arc<Self>) {
        let persisted = tokio::task::spawn_blocking(move || {
            or_fatal(self.high_water.persist());
            // What nobody waited for, as how far the log is known to be committed: a process that
            // is killed leaves it behind.
            or_fatal(self.engine.write_out());
            self.exchange.prune(self.disk.takes_nothing());
        });
        // It panics never, and a cancelled one is the node stopping.
        drop(persisted.await);
    }

    /// Everything here whose log and request ids grow: also the directory's own group, which nobody
    /// is to find among the shards.
    fn kept(&self) -> Vec<(ShardId, LocalShard)> {
        let directory =
            self.directory_voter.read().as_ref().map(|directory| Arc::clone(&directory.voter));
        let directory = directory.map(|voter| (DIRECTORY_GROUP.shard, LocalShard::Voter(voter)));
        self.shards.all().into_iter().chain(directory).collect()
    }

    /// The sequence up to which the log is not needed by whoever copies this shard's state, from
    /// here or elsewhere.
    fn needed_by_copies(&self, shard: ShardId, followers: &Followers) -> u64 {
        let needed = [self.exchange.needs_log_after(shard), followers.needs_log_after()];
        let Some(after) = needed.into_iter().flatten().min() else { return u64::MAX };
        let has_room = free_bytes(&self.data_dir).is_some_and(|free| free >= COPY_FREE_BYTES);
        if !has_room {
            tracing::warn!(%shard, "too little disk is free to keep the log for a copy: it may have to begin anew");
        }
        if has_room { after } else { u64::MAX }
    }

    fn check_the_disk(&self) -> Duration {
        self.disk.check(&self.data_dir, self.engine.memtable_bytes())
    }

    async fn look_at_the_disk(self: Arc<Self>) {
        // As with the marks.
        drop(tokio::task::spawn_blocking(move || self.check_the_disk()).await);
    }

    /// Writes would have memtables flushed, and are refused; and the log that is also in them takes
    /// room as long. Not where the disk might not hold what is flushed: that would stop the
    /// process. Beside the looks at the disk, which wait for nothing: voters go on appending
    /// meanwhile.
    async fn flush_on_a_low_disk(self: Arc<Self>) {
        let flushed = tokio::task::spawn_blocking(move || {
            let is_worth_it = || self.engine.memtable_bytes() > FLUSHED_ON_A_LOW_DISK_BYTES;
            if self.disk.room() == Room::Enough || self.disk.takes_nothing() || !is_worth_it() {
                return;
            }
            for family in self.engine.families() {
                match self.engine.flush(&family) {
                    Ok(()) | Err(StorageError::NoFamily(_)) => {}
                    Err(error) => fatal(&error),
                }
            }
        });
        drop(flushed.await);
    }

    async fn purge(self: Arc<Self>) {
        for (id, shard) in &self.kept() {
            let Some(followers) = self.shards.followers(id) else { continue };
            let applied = shard.state().position().sequence;
            let (keep, at_least) = match *id == DIRECTORY_GROUP.shard {
                true => (DIRECTORY_KEEP_BATCHES, DIRECTORY_KEEP_BATCHES),
                false => (KEEP_BATCHES, PURGE_AT_LEAST),
            };
            let retention =
                followers.retention(applied.saturating_sub(keep), self.log_retention_bytes);
            let through = retention.purge_through.min(self.needed_by_copies(*id, &followers));
            let first = or_fatal(shard.purged()) + 1;
            if through < first + at_least {
                continue;
            }
            if !retention.dropped.is_empty() {
                tracing::warn!(shard = %id, nodes = ?retention.dropped, "too far behind for the log: they need a snapshot");
            }
            let purged = match shard {
                LocalShard::Voter(voter) => match voter.purge_shipped_through(through) {
                    Ok(()) => voter.group.purge_through(through).await,
                    Err(error) => Err(error),
                },
                LocalShard::Replica(replica) => {
                    let replica = Arc::clone(replica);
                    let purge = tokio::task::spawn_blocking(move || replica.purge_through(through));
                    purge.await.unwrap_or(Ok(()))
                }
            };
            match purged {
                Ok(()) => {
                    followers.forget_through(through);
                    tracing::debug!(shard = %id, through, "purged the log");
                }
                Err(error @ (StorageError::RaftStopped { .. } | StorageError::Cancelled(_))) => {
                    tracing::warn!(shard = %id, %error, "the log was not purged")
                }
                // A flush that failed is never tried again.
                Err(error) => fatal(&error),
            }
        }
    }

    /// Gives the disk back what dropped databases took, one shard after the other, on a thread that
    /// may block.
    async fn reclaim(self: Arc<Self>) {
        let reclaimed = tokio::task::spawn_blocking(move || {
            for state in self.shards.states() {
                match state.reclaim_dropped(&mut |bytes| self.pace(bytes)) {
                    Ok(true) => {
                        tracing::info!(shard = %state.shard(), "the disk has back what dropped databases took")
                    }
                    // The node stops, or a snapshot takes the state's place: looked for anew.
                    Ok(false) | Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => {}
                    Err(error) => fatal(&error),
                }
            }
        });
        // It panics never, and a cancelled one is the node stopping.
        drop(reclaimed.await);
    }

    /// Blocks for as long as so many bytes may take; at once, with a break, when the node stops.
    fn pace(&self, bytes: u64) -> ControlFlow<()> {
        let until = Instant::now()
            + Duration::from_secs_f64(bytes as f64 / RECLAIM_BYTES_PER_SECOND as f64);
        while Instant::now() < until && !self.stop.is_cancelled() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn gauges(&self) {
        self.clocks.report();
        let mut lags = BTreeMap::new();
        for (id, shard) in &self.shards.all() {
            let labels = [("shard", id.to_string()), ("node", self.node_id.to_string())];
            let applied = shard.state().position().sequence;
            metrics::gauge!("meridian_shard_applied_sequence", &labels).set(applied as f64);
            let LocalShard::Voter(voter) = shard else { continue };
            if voter.group.leadership().is_err() {
                continue;
            }
            let followers =
                self.shards.followers(id).map(|followers| followers.lags()).unwrap_or_default();
            lags.extend(followers.into_iter().map(|follower| ((*id, follower.node), follower.lag)));
        }
        self.lags.lock().show(lags);
    }

    /// Spreads leaders as the cluster prefers, once the preferred voter is well.
    async fn hand_over(self: Arc<Self>) {
        let known = self.directory.known();
        for (id, shard) in &self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            let preferred = known.cluster.shards.get(id).and_then(|shard| shard.preferred_leader);
            let Some(preferred) = preferred.filter(|preferred| *preferred != self.node_id) else {
                continue;
            };
            if voter.group.leadership().is_err() || !self.is_well(*id, preferred, voter) {
                continue;
            }
            tracing::info!(shard = %id, to = preferred, "handing leadership to the preferred voter");
            if let Err(error) = voter.group.transfer_leadership(preferred).await {
                tracing::warn!(shard = %id, %error, "leadership could not be handed over");
            }
        }
    }

    fn is_well(&self, shard: ShardId, node: NodeId, voter: &Voter) -> bool {
        let applied = voter.state.position().sequence;
        let Some(followers) = self.shards.followers(&shard) else { return false };
        let near = |durable: u64| durable + HANDOVER_LAG_BATCHES >= applied;
        let is_near = |follower: &FollowerLag| {
            follower.node == node && follower.may_lead && near(follower.durable)
        };
        followers.lags().iter().any(is_near) && followers.may_take_over(node, &voter.group.voters())
    }

    /// Whether this node's lease on the voter's epoch has so much time to go.
    fn keeps_lease(&self, shard: ShardId, voter: &Voter, at_least: Duration) -> bool {
        let epoch = voter.group.id().epoch;
        self.directory
            .lease_remaining(shard)
            .is_some_and(|(leased, left)| leased == epoch && left >= at_least)
    }

    /// Has the leadership handed over where this node leads with a lease that is low.
    fn look_at_leases(&self) {
        let is_low = |(id, shard): &(ShardId, LocalShard)| match shard {
            LocalShard::Voter(voter) => {
                voter.group.leadership().is_ok() && !self.keeps_lease(*id, voter, LEASE_LOW)
            }
            LocalShard::Replica(_) => false,
        };
        if self.shards.all().iter().any(is_low) {
            self.lease_low.notify_one();
        }
    }

    /// A leader that the directory does not hear may not answer anybody soon: another voter may. It
    /// has nothing to lose if that one is lost too.
    async fn hand_over_without_lease(self: Arc<Self>) {
        for (id, shard) in &self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            if voter.group.leadership().is_err() || self.keeps_lease(*id, voter, LEASE_LOW) {
                continue;
            }
            let Some(heir) = self.shards.followers(id).and_then(|followers| followers.heir())
            else {
                continue;
            };
            tracing::warn!(shard = %id, to = heir, "this leader loses its lease: handing over");
            if let Err(error) = voter.group.transfer_leadership(heir).await {
                tracing::warn!(shard = %id, %error, "leadership could not be handed over");
            }
        }
    }

    /// Where this node leads: brings the group's members to what the directory says.
    fn settle_members(&self) {
        for (id, shard) in self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            // Asked before the directory's word is looked at, which is at least as new then.
            let is_sure = self
                .leads_since(id, &voter)
                .is_some_and(|since| self.directory.knows_all_until(since));
            let Some(wanted) =
                self.directory.shard(id).filter(|shard| shard.epoch == voter.group.id().epoch)
            else {
                continue;
            };
            let mut changing = self.changing.lock();
            // First of all: one that goes on would lead the group to where it is no longer to be.
            if let Some((_, change)) = changing.get(&id).filter(|(goal, _)| *goal != wanted.voters)
            {
                change.abort();
                changing.remove(&id);
            }
            let is_under_way = changing.get(&id).is_some_and(|(_, change)| !change.is_finished());
            if !is_sure
                || is_under_way
                || voter.group.stable_voters().as_ref() == Some(&wanted.voters)
            {
                continue;
            }
            if voter.group.voters() != wanted.voters {
                tracing::info!(shard = %id, voters = ?wanted.voters, "changing the group's voters");
            }
            let goal = wanted.voters.clone();
            let change = tokio::spawn(async move {
                if let Err(error) = voter.group.change_voters(&wanted.voters).await {
                    tracing::warn!(shard = %id, %error, "the group's voters are not yet what they are to be");
                }
            });
            changing.insert(id, (goal, change));
        }
    }

    /// Since when, on the directory's clock, this node leads, if it does. What it knew of the
    /// cluster before may have been taken back since, and settled by the leader before it.
    fn leads_since(&self, shard: ShardId, voter: &Voter) -> Option<Duration> {
        let (epoch, term) = (voter.group.id().epoch, voter.group.leadership().ok()?.term);
        let (now, mut leading) = (self.directory.now(), self.leading.lock());
        // The group of each epoch counts its terms anew.
        let known = leading
            .get(&shard)
            .filter(|(in_epoch, in_term, _)| (*in_epoch, *in_term) == (epoch, term));
        let since = known.map_or(now, |(.., since)| *since);
        leading.insert(shard, (epoch, term, since));
        Some(since)
    }

    /// Lets go of request ids by how long ago, on this node's monotonic clock, they were applied
    /// here: no jump of a wall clock forgets one too soon.
    fn forget_requests(&self, now: Instant) {
        let mut applied = self.applied.lock();
        for (id, shard) in self.kept() {
            let samples = applied.entry(id).or_default();
            samples.push_back((now, shard.state().requests_so_far()));
            while samples
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= FORGET_AFTER)
                && let Some((_, requests)) = samples.pop_front()
            {
                tracing::debug!(shard = %id, ?requests, "request ids may be forgotten");
                shard.state().forget_requests(&requests);
            }
        }
    }
}

/// The voters that a group is being brought to, and the task that does it.
type VoterChange = (BTreeSet<NodeId>, JoinHandle<()>);

type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[cfg(test)]
mod tests;
