//! Support for tests of several modules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster_view::view::Directory;
use crate::host::clocks::Clocks;
use crate::network::peers::PeerChannels;
use crate::read::execution::Reads;
use crate::replication::snapshot_transfer::StateExchange;
use crate::shard::table::ShardTable;
use crate::shard::voter::{Voter, VoterParts};
use crate::watches::Watches;
use crate::write::proposer::AdmitAll;
use meridian_config::DevLayout;
use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming};
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_storage::{Engine, GroupId, ShardState, ShippedLog, Syncer};
use meridian_types::{EpochHistory, NodeId, Position};

/// Waits until something holds.
///
/// # Panics
/// When it does not within 20 seconds, with `what`.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// For what watches nothing.
pub(crate) fn no_watches(directory: &Arc<Directory>) -> Arc<Watches> {
    let reads = Reads::new(ByteBudget::new("tests", 8 << 20));
    Arc::new(Watches::new(Arc::clone(directory), reads))
}

/// Node 1, which is a group's only voter, and what it works with.
pub(crate) struct OnlyVoter {
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) voter: Arc<Voter>,
}

impl OnlyVoter {
    /// It neither votes nor leads yet.
    pub(crate) async fn start(engine: &Arc<dyn Engine>, group: GroupId) -> Self {
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
        let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(|_| None)).unwrap());
        let state = Arc::new(ShardState::open(Arc::clone(engine), group.shard).unwrap());
        RaftGroup::form(&state, group, &BTreeSet::from([NodeId(1)]), Position::ZERO, None).unwrap();
        let opened = RaftGroup::open(RaftGroupOptions {
            node_id: NodeId(1),
            group,
            state,
            syncer: Arc::new(Syncer::start(Arc::clone(engine)).unwrap()),
            high_water: None,
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            transfer: Arc::new(StateExchange::new(
                Arc::new(ShardTable::default()),
                Arc::clone(&peers),
            )),
            log_cache: LogCache::default(),
            timing: RaftTiming {
                heartbeat_ms: 20,
                election_timeout_min_ms: 60,
                election_timeout_max_ms: 90,
            },
        });
        let voter = Arc::new(Voter::start(VoterParts {
            group: opened.await.unwrap(),
            history: EpochHistory::first(),
            shipped: ShippedLog::open(engine, group.shard).unwrap(),
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            policy: Arc::new(AdmitAll),
            writes: ByteBudget::new("writes", 8 << 20),
            time: Arc::new(Clocks::default()),
            reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
            founder: true,
        }));
        Self { directory, peers, voter }
    }
}
