//! Which renewals get a lease, and how changes are committed in one term.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_consensus::Peers;
use meridian_directory::{Phase, Plan};
use meridian_failover::Event;
use meridian_storage::{Call, Durability, Engine, HookedEngine, Hooks, MemoryEngine, StorageError};
use meridian_types::{
    CommitProgress, Epoch, Position, ShardId, ShardReport, Versionstamp, WriteOutcome,
};
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

const SHARD: ShardId = ShardId(1);
const TERM: u64 = 7;
/// Of node 1, as the cluster has it and as the node says it.
const INCARNATION: (&str, &[u8]) = ("0aff", &[0x0a, 0xff]);

/// What the directory's only voter works with. It neither votes nor leads yet.
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

/// A leader with a cluster that is committed, which commits nothing by itself.
async fn session(cluster: Cluster) -> Session {
    let parts = Arc::new(voter(Arc::new(MemoryEngine::default())).await);
    let session = Session::new(parts, TERM, mpsc::unbounded_channel().0);
    Session { base: Some((cluster, Versionstamp::new(Position::ZERO, 0))), ..session }
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

fn changes(session: &Session) -> Vec<&Change> {
    session.pending.iter().flat_map(|pending| &pending.changes).collect()
}

fn lease(answer: Renewed) -> wire::Lease {
    let Renewed::Lease(lease) = answer else { panic!("no lease: {answer:?}") };
    lease
}

fn refusal(answer: Renewed) -> String {
    let Renewed::Refused(reason) = answer else { panic!("not refused: {answer:?}") };
    reason
}

fn contacts(session: &Session) -> BTreeMap<NodeId, Contact> {
    session.controller.contacts(session.parts.directory.now())
}

#[tokio::test]
async fn lease_goes_to_the_data_folder_that_the_cluster_knows_and_to_no_other() {
    let mut session = session(cluster()).await;
    let granted = lease(session.renew(renewal(1)));
    let leased = |shard| wire::LeasedShard { shard, epoch: 1 };
    assert_eq!((granted.ttl_ms, granted.shards), (3000, vec![leased(1), leased(2)]));
    // Neither a folder that was wiped, nor another node that takes this one's id.
    let wiped = wire::RenewRequest { incarnation: vec![0x0a, 0xfe].into(), ..renewal(1) };
    assert!(refusal(session.renew(wiped)).contains("another data folder"));
    assert!(refusal(session.renew(renewal(99))).contains("is not in the cluster"));
    assert_eq!(changes(&session), Vec::<&Change>::new());
    let (cluster, _) = session.base.as_mut().unwrap();
    cluster.nodes.get_mut(&NodeId(1)).unwrap().removed = true;
    assert!(refusal(session.renew(renewal(1))).contains("was removed"));
    assert_eq!(contacts(&session).len(), 1, "a node that is refused is not in contact");
}

#[tokio::test]
async fn new_node_gets_a_lease_once_its_incarnation_is_committed() {
    let mut session = session(cluster()).await;
    let record =
        Change::RecordIncarnation { node: NodeId(2), incarnation: INCARNATION.0.to_owned() };
    for _ in 0..2 {
        assert_eq!(session.renew(renewal(2)), Renewed::NotLeader(0));
        assert_eq!(changes(&session), [&record], "once, however often it asks");
    }
    assert!(contacts(&session).is_empty());
    let (cluster, _) = session.base.as_mut().unwrap();
    *cluster = cluster.after(&record).unwrap();
    assert_eq!(lease(session.renew(renewal(2))).shards.len(), 2);
}

#[tokio::test]
async fn cluster_without_a_name_grants_no_lease() {
    let mut session = session(Cluster { id: None, ..cluster() }).await;
    assert_eq!(session.renew(renewal(1)), Renewed::NotLeader(0));
    assert!(matches!(changes(&session)[..], [Change::NameCluster { .. }]));
    session.base = None;
    assert_eq!(session.renew(renewal(1)), Renewed::NotLeader(0), "nothing is committed yet");
}

#[tokio::test]
async fn no_lease_is_granted_on_an_epoch_that_is_being_sealed() {
    let mut cluster = cluster();
    let plan = Plan { to: None, planned: false, since_ms: 1, cause: "a test".to_owned() };
    cluster.shards.get_mut(&SHARD).unwrap().phase = Phase::Sealing(plan);
    let mut session = session(cluster).await;
    assert_eq!(lease(session.renew(renewal(1))).shards, [wire::LeasedShard { shard: 2, epoch: 1 }]);
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

#[tokio::test]
async fn the_latest_contact_with_each_node_is_kept() {
    let mut cluster = cluster();
    cluster.nodes.get_mut(&NodeId(2)).unwrap().incarnation = Some(INCARNATION.0.to_owned());
    let mut session = session(cluster).await;
    for (node, transactions) in [(1, 1), (2, 2), (1, 3)] {
        let position = Some(position_to_wire(Position::new(Epoch(1), 40)));
        let report =
            wire::ShardReport { shard: 1, epoch: 1, position, transactions, ..Default::default() };
        lease(session.renew(wire::RenewRequest { reports: vec![report], ..renewal(node) }));
    }
    let reported = contacts(&session).into_iter().map(|(node, contact)| {
        assert!(contact.age_ms < 20_000, "{} ms", contact.age_ms);
        (node.0, contact.reports[&SHARD].progress.transactions)
    });
    assert_eq!(reported.collect::<Vec<_>>(), [(1, 3), (2, 2)]);
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
        assert!(contacts(&session).is_empty());
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

#[tokio::test]
async fn a_decision_takes_the_place_of_the_one_before_and_goes_before_what_others_want() {
    let mut session = session(cluster()).await;
    let region = |name: &str| Change::AddRegion { name: name.to_owned() };
    session.change(region("r"));
    session.change(region("r"));
    session.decided(vec![region("old")], 4);
    session.decided(vec![region("new")], 5);
    assert_eq!(changes(&session), [&region("new"), &region("r")]);
    let decided_at: Vec<_> = session.pending.iter().map(|pending| pending.decided_at).collect();
    assert_eq!(decided_at, [Some(5), None]);
}

#[tokio::test]
async fn what_was_decided_upon_another_version_is_not_made() {
    let region = |name: &str| Change::AddRegion { name: name.to_owned() };
    for (decided_at, is_made) in [(4, false), (5, true), (6, false)] {
        let mut session = session(cluster()).await;
        session.change(region("r"));
        session.decided(vec![region("decided")], decided_at);
        session.commit();
        let next = &session.in_flight.as_ref().unwrap().next;
        let has = |name: &str| next.regions.iter().any(|region| region == name);
        assert_eq!(
            (has("r"), has("decided")),
            (true, is_made),
            "decided upon version {decided_at}"
        );
        // One at a time: the next is made from what this one leaves.
        session.change(region("later"));
        session.commit();
        assert_eq!(changes(&session), [&region("later")]);
    }
}

/// A session with a commit in flight that a caller waits for, and another that waits behind it.
async fn committing() -> (Session, oneshot::Receiver<Executed>, oneshot::Receiver<Executed>) {
    let mut session = session(cluster()).await;
    let mut execute = |name: &str| {
        let (reply, answer) = oneshot::channel();
        let change = Box::new(Change::AddRegion { name: name.to_owned() });
        session.serve(Request::Execute { change, actor: "a test".to_owned(), reply });
        session.commit();
        answer
    };
    let (first, second) = (execute("r"), execute("s"));
    (session, first, second)
}

#[tokio::test]
async fn caller_of_a_change_is_told_what_became_of_it() {
    let (mut session, mut first, mut second) = committing().await;
    let stamp = Versionstamp::new(Position::new(Epoch(1), 9), 0);
    assert!(
        session
            .committed(WriteReply::Done(Fenced::for_test(WriteOutcome::Committed(stamp))))
            .is_ok()
    );
    let made = first.try_recv().unwrap().unwrap();
    assert_eq!((made.version, made.regions.last().map(String::as_str)), (6, Some("r")));
    assert_eq!(session.base, Some((made, stamp)), "the next is made of it");
    assert_eq!(session.parts.directory.known().cluster.version, 6, "this process knows it too");
    assert!(second.try_recv().is_err(), "it waits yet");

    for (reply, told, goes_on) in [
        (WriteReply::NotCommitted(WriteRefusal::QueueFull), ExecuteFailure::NotLeader, true),
        (WriteReply::NotLeader(Some(NodeId(4))), ExecuteFailure::NotLeader, false),
        (WriteReply::Unknown, ExecuteFailure::Unknown, false),
    ] {
        let (mut session, mut first, _second) = committing().await;
        assert_eq!(session.committed(reply).is_ok(), goes_on, "{told:?}");
        assert_eq!(first.try_recv(), Ok(Err(told)));
        assert_eq!(session.base.as_ref().map(|(cluster, _)| cluster.version), Some(5));
        // What comes late of a commit that is none any more says nothing.
        assert!(session.committed(WriteReply::Unknown).is_ok());
    }
}

#[tokio::test]
async fn leader_that_leaves_reports_the_change_in_flight_as_unknown() {
    let (mut session, mut first, mut second) = committing().await;
    session.leave();
    assert_eq!(first.try_recv(), Ok(Err(ExecuteFailure::Unknown)));
    assert_eq!(second.try_recv(), Ok(Err(ExecuteFailure::NotLeader)), "it was not begun");
}

#[tokio::test]
async fn a_deletion_that_no_node_holds_up_is_ended() {
    let id = DEV_DEFAULT_DATABASE;
    let mut session = session(cluster().after(&Change::DeleteDatabase { id }).unwrap()).await;
    session.end_deletions();
    assert_eq!(changes(&session), Vec::<&Change>::new(), "no node has reported yet");
    let none = CommitProgress::NONE;
    let report = ShardReport::new(SHARD, Epoch(1), Position::ZERO, none);
    let dropped = ShardReport { dropped: vec![id], ..report };
    for node in (1..=7).map(NodeId) {
        session.step(Event::Reported { node, reports: vec![dropped.clone()] });
    }
    session.end_deletions();
    assert_eq!(changes(&session), [&Change::EndDeletion { id }]);
    assert_eq!(session.pending[0].decided_at, Some(6));
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
    let (cluster, _) = session.base.as_mut().unwrap();
    cluster.directory_voters = [NodeId(1)].into();
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

/// What a leader before it committed, it may not have applied yet: a lease by an older cluster
/// would be one on an epoch that was sealed since.
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
