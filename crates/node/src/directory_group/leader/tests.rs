//! How the decisions of a leader are carried out. The crate `failover` tests the decisions.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_config::DevLayout;
use meridian_consensus::Peers;
use meridian_failover::DirectoryLeader;
use meridian_storage::{Call, Durability, Engine, HookedEngine, Hooks, MemoryEngine, StorageError};
use meridian_types::{Epoch, Position, Versionstamp, WriteOutcome};
use parking_lot::{Condvar, Mutex};
use renew_response::Result as Renewed;

use super::decline::decline;
use super::session::Session;
use super::*;
use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::cluster_view::epoch_lease::Fenced;
use crate::replication::wire::position_to_wire;
use crate::testing::{OnlyVoter, until};
use crate::write::proposer::{WriteRefusal, WriteReply};

const TERM: u64 = 7;
/// Of node 1, as the cluster has it and as the node says it.
const INCARNATION: (&str, &[u8]) = ("0aff", &[0x0a, 0xff]);

/// The parts of the directory's only voter. It neither votes nor leads yet.
async fn voter(engine: Arc<dyn Engine>) -> LeaderParts {
    let OnlyVoter { directory, peers, voter } = OnlyVoter::start(&engine, DIRECTORY_GROUP).await;
    let first =
        Cluster { directory_voters: [NodeId(1)].into(), ..directory.known().cluster.clone() };
    LeaderParts { voter, directory, peers, first, config: ControllerConfig::default() }
}

async fn take_part(parts: &LeaderParts) {
    let peers = Arc::clone(&parts.peers) as Arc<dyn Peers>;
    parts.voter.group.take_part(&BTreeSet::from([NodeId(1)]), &peers, false).await.unwrap();
}

/// A leader with a cluster that is committed.
async fn session(cluster: Cluster) -> Session {
    let parts = Arc::new(voter(Arc::new(MemoryEngine::default())).await);
    let mut session = Session::new(parts, TERM, mpsc::unbounded_channel().0);
    take_over(&mut session, cluster);
    session
}

/// From now on this cluster is what is committed.
fn take_over(session: &mut Session, cluster: Cluster) {
    let (parts, committed) = (&session.parts, Some(Arc::new(cluster)));
    let (config, now, first) = (parts.config.clone(), parts.directory.now(), parts.first.clone());
    session.leader = DirectoryLeader::new(config, now, committed, first, "c".to_owned());
    session.stamp = Some(stamp(1));
}

fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(1), sequence), 0)
}

/// Version 5 of a named cluster that knows node 1's folder, and no other.
fn cluster() -> Cluster {
    let founded =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let mut cluster = Cluster { version: 5, id: Some("c".to_owned()), ..founded };
    cluster.nodes.get_mut(&NodeId(1)).unwrap().incarnation = Some(INCARNATION.0.to_owned());
    cluster
}

fn renewal(node_id: u64) -> wire::RenewRequest {
    wire::RenewRequest {
        node_id,
        incarnation: INCARNATION.1.into(),
        known_version: 5,
        ..Default::default()
    }
}

fn lease(answer: Renewed) -> wire::Lease {
    let Renewed::Lease(lease) = answer else { panic!("no lease: {answer:?}") };
    lease
}

#[tokio::test]
async fn a_lease_tells_the_node_what_it_does_not_know_yet() {
    let mut session = session(cluster()).await;
    for (known_version, is_news) in [(4, true), (5, false), (6, false)] {
        let granted = lease(session.renew(wire::RenewRequest { known_version, ..renewal(1) }));
        assert_eq!(
            granted.cluster.is_some(),
            is_news,
            "version {known_version} is known, and 5 there is"
        );
        assert_eq!(granted.furthest, []);
    }
    let position = Some(position_to_wire(Position::new(Epoch(1), 40)));
    let report = wire::ShardReport {
        shard: 1,
        epoch: 1,
        position,
        transactions: 70,
        time_ms: 9,
        ..Default::default()
    };
    let granted = lease(session.renew(wire::RenewRequest { reports: vec![report], ..renewal(1) }));
    let furthest = wire::Furthest { shard: 1, epoch: 1, transactions: 70, time_ms: 9 };
    assert_eq!(granted.furthest, [furthest], "how far the shard came, as this node has just said");
}

/// Leadership was confirmed in another term: what this leader knows may be older, or newer, than
/// what was asked.
#[tokio::test]
async fn renewal_confirmed_in_another_term_gets_no_lease_in_this_one() {
    let mut session = session(cluster()).await;
    for term in [TERM - 1, TERM + 1] {
        let (reply, mut answer) = oneshot::channel();
        session.serve(Request::Renew { term, request: renewal(1), reply });
        assert_eq!(answer.try_recv(), Ok(Renewed::NotLeader(0)));
        assert!(session.leader.contacts(session.parts.directory.now()).is_empty());
    }
    let (reply, mut answer) = oneshot::channel();
    session.serve(Request::Renew { term: TERM, request: renewal(1), reply });
    lease(answer.try_recv().unwrap());
}

#[test]
fn request_at_a_follower_is_answered_at_once_with_the_leader() {
    for (leader, told) in [(Some(NodeId(4)), 4), (None, 0)] {
        let (reply, mut answer) = oneshot::channel();
        decline(Request::Renew { term: TERM, request: renewal(1), reply }, leader);
        assert_eq!(answer.try_recv(), Ok(Renewed::NotLeader(told)));
        let (reply, mut answer) = oneshot::channel();
        let change = Box::new(Change::AddRegion { name: "r".to_owned() });
        decline(Request::Execute { change, actor: "a test".to_owned(), reply }, leader);
        assert_eq!(answer.try_recv(), Ok(Err(ExecuteFailure::NotLeader)), "nothing was done here");
    }
}

/// A session with a commit in flight that a caller waits for, and the cluster to be committed.
async fn committing() -> (Session, Arc<Cluster>, oneshot::Receiver<Executed>) {
    let mut session = session(cluster()).await;
    let (reply, answer) = oneshot::channel();
    let change = Change::AddRegion { name: "r".to_owned() };
    let next = Arc::new(cluster().after(&change).unwrap());
    let (change, actor) = (Box::new(change), "a test".to_owned());
    session.serve(Request::Execute { change, actor, reply });
    (session, next, answer)
}

#[tokio::test]
async fn caller_of_a_change_is_told_what_became_of_it() {
    let (mut session, next, mut answer) = committing().await;
    let outcome = Fenced::for_test(WriteOutcome::Committed(stamp(9)));
    assert_eq!(session.committed(Arc::clone(&next), WriteReply::Done(outcome)), Ok(()));
    let made = answer.try_recv().unwrap().unwrap();
    assert_eq!((made.version, made.regions.last().map(String::as_str)), (6, Some("r")));
    assert_eq!(session.leader.committed(), Some(&made), "the next is made of it");
    assert_eq!(session.stamp, Some(stamp(9)));
    assert_eq!(session.parts.directory.known().cluster.version, 6, "this process knows it too");

    let (mut session, next, mut answer) = committing().await;
    let refused = WriteReply::NotCommitted(WriteRefusal::QueueFull);
    assert_eq!(session.committed(next, refused), Ok(()), "the term goes on");
    assert_eq!(answer.try_recv(), Ok(Err(ExecuteFailure::NotLeader)));
    assert_eq!(session.stamp, Some(stamp(1)));

    for (reply, known) in [
        (WriteReply::NotLeader(Some(NodeId(4))), ExecuteFailure::NotLeader),
        (WriteReply::Unknown, ExecuteFailure::Unknown),
    ] {
        let (mut session, next, mut answer) = committing().await;
        assert_eq!(session.committed(next, reply), Err(known.clone()), "the term is over");
        session.leave(known.clone());
        assert_eq!(answer.try_recv(), Ok(Err(known)));
        assert_eq!(session.stamp, Some(stamp(1)));
    }
}

#[tokio::test]
async fn an_operator_sees_what_the_members_of_the_directory_are_and_are_to_be() {
    let members = |session: &mut Session| {
        let (reply, mut answer) = oneshot::channel();
        session.serve(Request::Inspect { reply });
        let progress = answer.try_recv().unwrap().progress;
        progress
            .into_iter()
            .find(|progress| progress.shard == DIRECTORY_GROUP.shard)
            .map(|progress| progress.text)
    };
    let mut session =
        session(Cluster { directory_voters: [1, 4].map(NodeId).into(), ..cluster() }).await;
    take_part(&session.parts).await;
    until("its members are settled", async || session.parts.voter.group.stable_voters().is_some())
        .await;
    assert_eq!(members(&mut session).unwrap(), "its members are nodes {1}, and are to be {1, 4}");
    take_over(&mut session, Cluster { directory_voters: [NodeId(1)].into(), ..cluster() });
    assert_eq!(members(&mut session), None);
}

/// Applying waits, once it is told to.
#[derive(Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
}

impl Hooks for Gate {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        if call == Call::Write(Durability::Unlogged) {
            let mut is_shut = self.is_shut.lock();
            while *is_shut {
                self.opened.wait(&mut is_shut);
            }
        }
        Ok(())
    }
}

/// A new leader may not have applied yet all that leaders before it committed: a lease by an older
/// cluster would be one on an epoch that was sealed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn new_leader_grants_and_shows_nothing_before_it_applied_what_was_committed() {
    let engine = Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Gate::default()));
    let parts = voter(engine.clone()).await;
    let (group, stop) = (parts.voter.group.clone(), CancellationToken::new());
    *engine.is_shut.lock() = true;
    take_part(&parts).await;
    let leader = DirectoryVoter::start(parts, &stop);
    until("it leads", async || group.leadership().is_ok()).await;
    assert_eq!(group.applied().borrow().term, 0);
    let change = Change::AddRegion { name: "r".to_owned() };
    let asked = async {
        (leader.inspect().await.is_some(), leader.execute(change, "a test".to_owned()).await)
    };
    let answered = tokio::time::timeout(Duration::from_secs(10), asked).await;
    // Before anything is asserted: else a test that fails never ends.
    *engine.is_shut.lock() = false;
    engine.opened.notify_all();
    assert_eq!(answered, Ok((false, Err(ExecuteFailure::NotLeader))));
    until("it leads with what was committed", async || leader.inspect().await.is_some()).await;
    stop.cancel();
}

#[tokio::test]
async fn a_process_learns_what_its_own_group_had_committed_before_it_started() {
    let engine = Arc::new(MemoryEngine::default());
    let parts = voter(engine.clone()).await;
    take_part(&parts).await;
    let (directory, stop) = (Arc::clone(&parts.directory), CancellationToken::new());
    let leader = DirectoryVoter::start(parts, &stop);
    let renew = async || leader.renew(renewal(1)).await;
    // It gives the cluster a name, then it writes down the node's incarnation.
    until("it grants a lease", async || matches!(renew().await, Renewed::Lease(_))).await;
    let contacts = leader.inspect().await.unwrap().contacts;
    assert_eq!(contacts.keys().collect::<Vec<_>>(), [&NodeId(1)]);
    assert!(contacts[&NodeId(1)].age_ms < 20_000, "{} ms", contacts[&NodeId(1)].age_ms);
    assert_eq!(directory.known().cluster.version, 3);
    stop.cancel();
    leader.voter.group.shutdown().await;

    let parts = voter(Arc::new(engine.crash(1))).await;
    let (directory, stop) = (Arc::clone(&parts.directory), CancellationToken::new());
    assert_eq!(directory.known().cluster.version, 0);
    take_part(&parts).await;
    let again = DirectoryVoter::start(parts, &stop);
    until("it knows the cluster", async || directory.known().cluster.version == 3).await;
    stop.cancel();
    again.voter.group.shutdown().await;
}
