//! A voter whose group is its own, and what comes between the steps of a read.

use std::collections::BTreeSet;
use std::sync::{Mutex, mpsc};

use meridian_consensus::{LogCache, Peers, RaftGroupOptions, RaftTiming};
use meridian_failover::Lease;
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_storage::{Durability, Engine, GroupId, MemoryEngine, Syncer, WatchedEngine};
use meridian_types::{
    Mutation, MutationKind, Position, RequestId, ShardId, Transaction, Value, ValueEncoding, WriteOutcome,
};

use super::*;
use crate::clocks::Clocks;
use crate::directory::first_cluster;
use crate::proposer::NoLimits;
use crate::replica::shipped_log;
use crate::shard_table::ShardTable;
use crate::state_exchange::StateExchange;
use crate::topology::{DEV_DEFAULT_DATABASE, Topology};

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const DEADLINE: Duration = Duration::from_secs(20);

struct Alone {
    engine: Arc<WatchedEngine>,
    directory: Arc<Directory>,
    voter: Arc<Voter>,
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Alone {
    /// It leads, and holds a lease of the directory's.
    async fn start() -> Self {
        let engine = Arc::new(WatchedEngine::watching(Arc::new(MemoryEngine::default())));
        let dynamic: Arc<dyn Engine> = engine.clone();
        let topology = Topology::dev(&[3, 2, 2], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(first_cluster(&topology), Access::default(), None));
        let lease = Lease { ttl: Duration::from_secs(3600), shards: vec![(GROUP.shard, GROUP.epoch)] };
        directory.renewed(directory.now(), &lease);
        let peers = Arc::new(PeerChannels::new(&topology, Arc::new(|_| None)).unwrap());
        let state = Arc::new(ShardState::open(Arc::clone(&dynamic), GROUP.shard).unwrap());
        let voters = BTreeSet::from([1]);
        RaftGroup::form(&state, GROUP, &voters, Position::ZERO, None).unwrap();
        let group = RaftGroup::open(RaftGroupOptions {
            node_id: 1,
            group: GROUP,
            state,
            syncer: Arc::new(Syncer::start(Arc::clone(&dynamic)).unwrap()),
            high_water: None,
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            transfer: Arc::new(StateExchange::new(Arc::new(ShardTable::default()), Arc::clone(&peers))),
            log_cache: LogCache::default(),
            timing: RaftTiming { heartbeat_ms: 20, election_timeout_min_ms: 60, election_timeout_max_ms: 90 },
        });
        let group = group.await.unwrap();
        group.take_part(&voters, &(Arc::clone(&peers) as Arc<dyn Peers>), true).await.unwrap();
        let voter = Arc::new(Voter::start(VoterParts {
            group,
            history: History::first(),
            shipped: shipped_log(&dynamic, GROUP.shard).unwrap(),
            directory: Arc::clone(&directory),
            peers,
            limits: Arc::new(NoLimits),
            writes: ByteBudget::new("writes", 8 << 20),
            time: Arc::new(Clocks::default()),
            reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
            founder: true,
        }));
        let leads = || voter.group.leadership().is_ok_and(|leads| leads.term == voter.group.applied().borrow().1);
        until("it leads", leads).await;
        Self { engine, directory, voter }
    }

    async fn write(&self, key: &'static str, valid_until: Duration) -> WriteReply {
        let value = Value { encoding: ValueEncoding::Bytes, data: key.into() };
        let mutations = vec![Mutation { key: key.into(), kind: MutationKind::Set(value), expire_at_ms: 0 }];
        let transaction = Transaction { checks: Vec::new(), mutations };
        loop {
            let (database, transaction) = (DEV_DEFAULT_DATABASE, transaction.clone());
            let request = WriteRequest { database, request_id: RequestId::generate(), transaction, retry: false };
            match self.voter.write(request, None, valid_until).await {
                // The proposer has not heard yet that it leads.
                WriteReply::NotLeader(_) => tokio::task::yield_now().await,
                reply => return reply,
            }
        }
    }

    async fn commit(&self, key: &'static str) {
        let reply = self.write(key, Duration::MAX).await;
        assert!(matches!(reply, WriteReply::Done(WriteOutcome::Committed(_))), "{reply:?}");
    }

    fn holds(&self, key: &'static str) -> bool {
        let view = self.voter.state.read(DEV_DEFAULT_DATABASE, &ranges(), 0).unwrap();
        view.ranges.iter().flatten().any(|entry| entry.key == key)
    }
}

/// Two, which are read from a snapshot.
fn ranges() -> Vec<ReadRange> {
    let range = |start: &'static str, end: &'static str| ReadRange {
        start: start.into(),
        end: end.into(),
        limit: 10,
        reverse: false,
    };
    vec![range("a", "m"), range("m", "z")]
}

/// The lease ends after the state was taken that is read from, and before there is an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_read_whose_lease_is_lost_while_it_is_under_way_is_not_answered() {
    let alone = Alone::start().await;
    alone.commit("a").await;
    let wanted = ranges();
    let read = || alone.voter.read_strong(DEV_DEFAULT_DATABASE, &wanted);
    let ReadReply::Done(view) = read().await else { panic!("it has a lease") };
    assert_eq!((view.position, view.ranges[0].len()), (alone.voter.state.position(), 1));
    let directory = Arc::clone(&alone.directory);
    alone.engine.after_snapshots(move || directory.seal(GROUP.shard, GROUP.epoch));
    assert_eq!(read().await, ReadReply::NotLeader(None));
}

/// Else the next strong read, at another voter, waits for less than this leader has shown already.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_position_covers_what_is_shown_while_a_batch_takes_effect() {
    let alone = Alone::start().await;
    alone.commit("a").await;
    let before = alone.voter.state.position().sequence;
    let (goes_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // State is written without the write-ahead log. Nothing is ever sent: it waits until the other end is dropped.
    alone.engine.after_writes(move |durability| {
        if durability == Durability::Unlogged {
            assert!(wait.lock().unwrap().recv().is_err());
        }
    });
    let writing = alone.commit("b");
    let reading = async {
        until("the batch takes effect", || alone.holds("b")).await;
        assert_eq!(alone.voter.state.position().sequence, before, "it has not taken effect in full");
        // What the group has committed is known to be so: its lease is enough.
        let position = loop {
            let gate = ReadGate { rounds: Rounds::start(|| async { Ok(()) }) };
            if let Ok(position) = read_position(&alone.voter.group, &gate).await {
                break position;
            }
        };
        drop(goes_on);
        position
    };
    let ((), position) = tokio::join!(writing, reading);
    assert_eq!(position.sequence, before + 1);
}

/// The machine may have been suspended since the gateway sent it, or the write may have lain in a socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_comes_when_its_id_may_be_forgotten_is_not_carried_out() {
    let alone = Alone::start().await;
    let reply = alone.write("late", boot_time()).await;
    assert!(matches!(&reply, WriteReply::NotCommitted(why) if why.contains("may be forgotten")), "{reply:?}");
    alone.commit("in time").await;
    assert!(alone.holds("in time") && !alone.holds("late"));
}
