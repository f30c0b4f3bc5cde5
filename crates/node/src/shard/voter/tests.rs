//! A voter whose group is its own, and what comes between the steps of a read.

use std::collections::BTreeSet;
use std::sync::{Mutex, mpsc};

use bytes::Bytes;
use meridian_config::DEV_DEFAULT_DATABASE;
use meridian_consensus::Peers;
use meridian_failover::Lease;
use meridian_gateway::new_request_id;
use meridian_proto::shard::{self as wire, shard_server::Shard};
use meridian_storage::{Durability, Engine, GroupId, MemoryEngine, WatchedEngine};
use meridian_types::{
    Epoch, Mutation, MutationKind, ShardId, Transaction, Value, ValueEncoding, WriteOutcome,
};

use super::*;
use crate::replication::progress::Followers;
use crate::routing::write_calls::WriteCalls;
use crate::rpc::shard::ShardService;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::testing::{OnlyVoter, no_watches, until};

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };

struct Alone {
    engine: Arc<WatchedEngine>,
    directory: Arc<Directory>,
    peers: Arc<PeerChannels>,
    voter: Arc<Voter>,
}

impl Alone {
    /// It leads, and holds a lease of the directory's.
    async fn start() -> Self {
        let alone = Self::start_following().await;
        let Self { voter, .. } = &alone;
        let peers: Arc<dyn Peers> = alone.peers.clone();
        voter.group.take_part(&BTreeSet::from([NodeId(1)]), &peers, true).await.unwrap();
        let leads = async || {
            voter
                .group
                .leadership()
                .is_ok_and(|leads| leads.term == voter.group.applied().borrow().term)
        };
        until("it leads", leads).await;
        alone
    }

    /// It holds the lease, and waits for another to lead.
    async fn start_following() -> Self {
        let engine = Arc::new(WatchedEngine::watching(Arc::new(MemoryEngine::default())));
        let dynamic: Arc<dyn Engine> = engine.clone();
        let only = OnlyVoter::start(&dynamic, GROUP).await;
        let lease =
            Lease { ttl: Duration::from_secs(3600), shards: vec![(GROUP.shard, GROUP.epoch)] };
        only.directory.renewed(only.directory.now(), &lease);
        let OnlyVoter { directory, peers, voter } = only;
        Self { engine, directory, peers, voter }
    }

    async fn write(&self, key: &'static str, valid_until: Duration) -> WriteReply {
        let value = Value { encoding: ValueEncoding::Bytes, data: key.into() };
        let mutations =
            vec![Mutation { key: key.into(), kind: MutationKind::Set(value), expire_at_ms: 0 }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        loop {
            let (database, transaction) = (DEV_DEFAULT_DATABASE, transaction.clone());
            let request =
                WriteRequest { database, request_id: new_request_id(), transaction, retry: false };
            match self.voter.write_when_led(request, None, valid_until).await {
                // The proposer has not heard yet that it leads.
                WriteReply::NotLeader(_) => tokio::task::yield_now().await,
                reply => return reply,
            }
        }
    }

    async fn commit(&self, key: &'static str) {
        let reply = self.write(key, Duration::MAX).await;
        assert!(matches!(reply.outcome(), Some(WriteOutcome::Committed(_))), "{reply:?}");
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
async fn strong_read_whose_lease_is_lost_on_the_way_is_not_answered() {
    let alone = Alone::start().await;
    alone.commit("a").await;
    let wanted = ranges();
    let read = || alone.voter.read_strong(DEV_DEFAULT_DATABASE, &wanted);
    let view = read().await.expect("it has a lease");
    assert_eq!((view.position, view.ranges[0].len()), (alone.voter.state.position(), 1));
    let directory = Arc::clone(&alone.directory);
    alone.engine.after_snapshots(move || directory.seal(GROUP.shard, GROUP.epoch));
    assert_eq!(read().await, Err(NotServed::NotLeader(None)));
}

/// Else it shows less than what was acknowledged before it began, or less than another has shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strong_read_at_a_follower_waits_until_the_index_of_its_leader_is_applied() {
    for (named, applied) in [(0, true), (1, false)] {
        let mut alone = Alone::start_following().await;
        let voter = Arc::get_mut(&mut alone.voter).unwrap();
        voter.leader_index =
            SharedCall::start(move || async move { Ok(ReadIndex { sequence: named }) });
        let reply = alone.voter.read_strong(DEV_DEFAULT_DATABASE, &ranges()).await;
        match applied {
            true => assert!(reply.is_ok(), "{reply:?}"),
            false => {
                let late = reply == Err(NotServed::Refused(ReadRefusal::BehindLeader));
                assert!(late, "{reply:?}");
            }
        }
    }
}

/// Else the next strong read, at another voter, waits for less than this leader has shown already.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_index_covers_what_is_shown_while_a_batch_takes_effect() {
    let alone = Alone::start().await;
    alone.commit("a").await;
    let before = alone.voter.state.position().sequence;
    let (goes_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // State is written without the write-ahead log. Nothing is ever sent: it waits until the other
    // end is dropped.
    alone.engine.after_writes(move |durability| {
        if durability == Durability::Unlogged {
            assert!(wait.lock().unwrap().recv().is_err());
        }
    });
    let writing = alone.commit("b");
    let reading = async {
        until("the batch takes effect", async || alone.holds("b")).await;
        assert_eq!(
            alone.voter.state.position().sequence,
            before,
            "it has not taken effect in full"
        );
        // The batch is known to be committed in the group: its lease is enough.
        let index = loop {
            let gate = ReadGate::confirmed();
            if let Ok(index) = gate.index(&alone.voter.group).await {
                break index;
            }
        };
        drop(goes_on);
        index
    };
    let ((), index) = tokio::join!(writing, reading);
    assert_eq!(index.sequence, before + 1);
}

/// The machine may have been suspended since the gateway sent it, or the write may have lain in a
/// socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_comes_when_its_id_may_be_forgotten_is_not_carried_out() {
    let alone = Alone::start().await;
    let reply = alone.write("late", boot_time()).await;
    assert!(matches!(&reply, WriteReply::NotCommitted(WriteRefusal::Expired)), "{reply:?}");
    alone.commit("in time").await;
    assert!(alone.holds("in time") && !alone.holds("late"));
}

/// Its own lack of room says nothing of the leader's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_without_room_for_a_write_refuses_it_as_the_leader_alone() {
    let large = || {
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; 9 << 20].into() };
        let mutations =
            vec![Mutation { key: "large".into(), kind: MutationKind::Set(value), expire_at_ms: 0 }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        let (database, request_id) = (DEV_DEFAULT_DATABASE, new_request_id());
        WriteRequest { database, request_id, transaction, retry: false }
    };
    let [follower, leader] = [Alone::start_following().await, Alone::start().await];
    assert_eq!(follower.voter.reserve(&large()).err(), Some(WriteReply::NotLeader(None)));
    let refused = leader.voter.reserve(&large()).err();
    assert!(matches!(refused, Some(WriteReply::NotCommitted(_))), "{refused:?}");
}

/// A write that finds no room in memory, before it waits for its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_is_refused_at_once_holds_up_none_behind_it() {
    let alone = Alone::start().await;
    let shards = Arc::new(ShardTable::default());
    shards.add(Arc::clone(&alone.voter.state), Followers::watch(&alone.voter.state));
    shards.set(GROUP.shard, Some(LocalShard::Voter(Arc::clone(&alone.voter))));
    let writes = Arc::new(WriteCalls::new(Arc::clone(&alone.peers)));
    let service = ShardService::new(shards, writes, no_watches(&alone.directory));
    let turns = service.turns();
    let mut fastest = Duration::MAX;
    for sender in 1..=5 {
        let turn = |number| wire::Turn { sender, number, bytes_ahead: 1 << 30 };
        let clock = crate::routing::write_calls::clock();
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; 9 << 20].into() };
        let mutations =
            vec![Mutation { key: "large".into(), kind: MutationKind::Set(value), expire_at_ms: 0 }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        let request = wire::WriteRequest {
            group: Some(wire::ShardEpoch { shard: GROUP.shard.0, epoch: GROUP.epoch.0.into() }),
            database: Bytes::copy_from_slice(&DEV_DEFAULT_DATABASE.0),
            request_id: Bytes::copy_from_slice(&new_request_id().0),
            transaction: Some(meridian_proto::transaction_to_wire(&transaction)),
            valid_until: Some(wire::ProcessTime { millis: clock.millis + 60_000, ..clock }),
            turn: Some(turn(1)),
            ..wire::WriteRequest::default()
        };
        let reply = service.write(tonic::Request::new(request)).await.unwrap().into_inner().result;
        let Some(wire::write_response::Result::NotCommitted(why)) = &reply else {
            panic!("{reply:?}")
        };
        assert!(why.contains("short of memory"), "{why}");
        let came = Instant::now();
        drop(turns.wait(turn(2)).await);
        fastest = fastest.min(came.elapsed());
    }
    // The longest that a write waits for those before it; never less, where one of them does not
    // pass.
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}
