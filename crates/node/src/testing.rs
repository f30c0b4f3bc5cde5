//! Support for tests of several modules.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::changes::ChangeLogs;
use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::host::clocks::Clocks;
use crate::network::peers::PeerChannels;
use crate::read::execution::Reads;
use crate::replication::snapshot_transfer::StateExchange;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::{Voter, VoterParts};
use crate::watches::Watches;
use crate::write::division::WriteBytes;
use crate::write::proposer::{AdmitAll, WriteReply, WriteRequest};
use meridian_config::DevLayout;
use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming};
use meridian_directory::{Webhook, WebhookKey};
use meridian_failover::Lease;
use meridian_gateway::{Access, new_request_id};
use meridian_memory::ByteBudget;
use meridian_net::tls::PemFile;
use meridian_net::{Credentials, Mutual};
use meridian_pki::{Authority, CERTIFICATE_LIFETIME, Holder, KeyAndRequest, Subject};
use meridian_proto::CallingNode;
use meridian_storage::{Engine, GroupId, ShardState, ShippedLog, Syncer};
use meridian_types::{
    DatabaseId, Epoch, EpochHistory, Mutation, NodeId, Position, ShardId, Transaction,
    Versionstamp, WriteOutcome,
};
use tonic::Request;

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

/// A call of which the connection proves that it comes from this node.
pub(crate) fn from_node<T>(node: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(CallingNode(NodeId(node)));
    request
}

/// The id of a cluster with certificates.
pub(crate) const CLUSTER: &str = "00ff00ff00ff00ff";

/// A new authority of [`CLUSTER`].
pub(crate) fn authority() -> Authority {
    Authority::new(CLUSTER, Duration::from_millis(wall_ms())).unwrap()
}

/// A certificate, its authority's, and its key, as PEM.
pub(crate) fn identity(authority: &Authority, holder: Holder) -> String {
    let asked = KeyAndRequest::new().unwrap();
    let subject = Subject { cluster: CLUSTER.to_owned(), holder };
    let now = Duration::from_millis(wall_ms());
    let issued = authority.issue(&asked.request, &subject, now, CERTIFICATE_LIFETIME).unwrap();
    issued.chain_pem + &asked.key_pem
}

/// Of a process with such an identity, which believes its authority alone.
pub(crate) fn mutual(authority: &Authority, holder: Holder) -> Arc<Mutual> {
    let file = |text: &str| PemFile::new(PathBuf::new(), text.as_bytes().to_vec());
    let identity = file(&identity(authority, holder));
    let authorities = file(authority.certificate_pem());
    let credentials =
        Credentials { certificate: &identity, key: &identity, authorities: &authorities };
    Arc::new(Mutual::new(credentials).unwrap())
}

/// The beginning of the key of [`webhook`], as it is stored and sent.
pub(crate) const WEBHOOK_KEY: &str = "BwcHBwcH";

pub(crate) fn webhook() -> Webhook {
    Webhook {
        queue: String::new(),
        url: "https://example.com/".to_owned(),
        concurrency: 1,
        timeout_ms: 1000,
        key: WebhookKey::new(&[7; 32]).unwrap(),
        next_key: None,
    }
}

/// For what watches nothing.
pub(crate) fn no_watches(directory: &Arc<Directory>) -> Arc<Watches> {
    let reads = Reads::new(ByteBudget::new("tests", 8 << 20));
    Arc::new(Watches::new(Arc::clone(directory), reads))
}

/// Without a log.
pub(crate) fn no_changes(directory: &Arc<Directory>) -> Arc<ChangeLogs> {
    Arc::new(ChangeLogs::new(Arc::clone(directory)))
}

/// Node 1, which is a group's only voter, and what it works with.
pub(crate) struct OnlyVoter {
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) voter: Arc<Voter>,
}

impl OnlyVoter {
    /// It leads shard 1 in its first epoch, or will soon.
    pub(crate) async fn lead(engine: &Arc<dyn Engine>) -> Self {
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let only = Self::start(engine, group).await;
        let ttl = Duration::from_secs(1000);
        let lease = Lease { ttl, shards: vec![(group.shard, group.epoch)] };
        only.directory.renewed(only.directory.now(), &lease);
        let peers: Arc<dyn Peers> = only.peers.clone();
        only.voter.group.take_part(&BTreeSet::from([NodeId(1)]), &peers, true).await.unwrap();
        only
    }

    pub(crate) fn local(&self) -> LocalShard {
        LocalShard::Voter(Arc::clone(&self.voter))
    }

    pub(crate) async fn write(
        &self,
        database: DatabaseId,
        mutations: Vec<Mutation>,
    ) -> Versionstamp {
        loop {
            let request = WriteRequest {
                database,
                request_id: new_request_id(),
                transaction: Transaction { mutations: mutations.clone(), ..Default::default() },
                retry: false,
            };
            match self.voter.write_when_led(request, None, Duration::MAX).await {
                WriteReply::Done(outcome) => match outcome.into_inner() {
                    WriteOutcome::Committed(stamp) => return stamp,
                    other => panic!("{other:?}"),
                },
                // It does not lead yet.
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

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
            writes: WriteBytes::new("writes", 8 << 20),
            time: Arc::new(heard_clocks()),
            reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
            founder: true,
        }));
        Self { directory, peers, voter }
    }
}

/// Of this node and another: a new shard waits for others to be heard.
fn heard_clocks() -> Clocks {
    let (clocks, other) = (Clocks::default(), NodeId(99));
    clocks.set_others(std::iter::once(other));
    clocks.heard(other, wall_ms());
    clocks
}
