use std::collections::BTreeMap;

use meridian_storage::MemoryEngine;
use meridian_types::{Epoch, ShardId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::RaftService;
use crate::testing::NoStates;
use crate::votes::NoVote;

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const DEADLINE: Duration = Duration::from_secs(20);

/// A voter that is away at first.
struct Voter {
    engine: Arc<dyn Engine>,
    channel: Channel,
    /// How often it was asked, whether it heard of that or not.
    asked: u32,
    /// It hears only what it is asked after so many times.
    away_for: u32,
}

struct Voters(Mutex<BTreeMap<NodeId, Voter>>);

impl Voters {
    async fn serve(nodes: &BTreeSet<NodeId>) -> Arc<Self> {
        let mut voters = BTreeMap::new();
        for node in nodes {
            let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
            engine.create_family(META_FAMILY).unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service =
                RaftService::new(*node, Arc::new(NoStates), Arc::clone(&engine)).into_server();
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
            let channel =
                Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
            voters.insert(*node, Voter { engine, channel, asked: 0, away_for: u32::MAX });
        }
        Arc::new(Self(Mutex::new(voters)))
    }

    fn is_away_for(&self, node: u64, times: u32) {
        self.0.lock().get_mut(&NodeId(node)).unwrap().away_for = times;
    }

    fn is_back(&self, node: u64) {
        self.is_away_for(node, 0);
    }

    fn asked(&self, node: u64) -> u32 {
        self.0.lock()[&NodeId(node)].asked
    }

    fn engine(&self, voter: u64) -> Arc<dyn Engine> {
        Arc::clone(&self.0.lock()[&NodeId(voter)].engine)
    }

    /// Whether the voter takes this incarnation of node 1 for its first.
    fn records(&self, voter: u64, incarnation: &[u8]) -> bool {
        record(&self.engine(voter), GROUP, NodeId(1), incarnation).unwrap()
    }

    fn remembers(&self, voter: u64, node: u64) -> Option<Bytes> {
        remembered(&self.engine(voter), GROUP, NodeId(node)).unwrap()
    }
}

impl Peers for Voters {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let mut voters = self.0.lock();
        let voter = voters.get_mut(&node).unwrap();
        voter.asked += 1;
        (voter.asked > voter.away_for).then(|| voter.channel.clone())
    }
}

/// Node 1.
struct Member {
    engine: Arc<dyn Engine>,
    nodes: BTreeSet<NodeId>,
    voters: Arc<Voters>,
    votes: Arc<Votes>,
}

impl Member {
    /// One of so many voters. The others are away.
    async fn new(nodes: u64) -> Self {
        let nodes = BTreeSet::from_iter((1..=nodes).map(NodeId));
        let voters = Voters::serve(&nodes).await;
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        assert_eq!(voting_status(&engine, GROUP).unwrap(), VotingStatus::New);
        Self { engine, nodes, voters, votes: Arc::default() }
    }

    fn joins(&self, vouched: bool) -> JoinHandle<VotingStatus> {
        let (engine, nodes, votes) =
            (Arc::clone(&self.engine), self.nodes.clone(), Arc::clone(&self.votes));
        let peers = Arc::clone(&self.voters) as Arc<dyn Peers>;
        tokio::spawn(async move {
            join(&engine, GROUP, NodeId(1), &nodes, &peers, vouched, &votes).await.unwrap()
        })
    }

    fn announces(&self) -> JoinHandle<()> {
        let (engine, nodes) = (Arc::clone(&self.engine), self.nodes.clone());
        let peers = Arc::clone(&self.voters) as Arc<dyn Peers>;
        tokio::spawn(
            async move { announce(&engine, GROUP, NodeId(1), &nodes, &peers).await.unwrap() },
        )
    }

    fn voting_status(&self) -> VotingStatus {
        voting_status(&self.engine, GROUP).unwrap()
    }

    fn follows(&self) -> bool {
        self.votes.may_follow(0).is_ok()
    }

    /// Waits until the voter has been asked so often, in vain or not, since this was called.
    async fn asks(&self, voter: u64, times: u32) {
        let times = self.voters.asked(voter) + times;
        until("it asks", || self.voters.asked(voter) >= times).await;
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ended<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(DEADLINE, task).await.expect("it waits for ever").unwrap()
}

#[test]
fn only_the_first_incarnation_of_a_member_is_remembered_also_after_a_crash() {
    let engine = Arc::new(MemoryEngine::default());
    let dynamic = Arc::clone(&engine) as Arc<dyn Engine>;
    assert_eq!(voting_status(&dynamic, GROUP).unwrap(), VotingStatus::New);
    assert!(record(&dynamic, GROUP, NodeId(2), b"first").unwrap());
    assert!(!record(&dynamic, GROUP, NodeId(2), b"second").unwrap());
    for seed in 0..20 {
        let after: Arc<dyn Engine> = Arc::new(engine.crash(seed));
        assert!(record(&after, GROUP, NodeId(2), b"first").unwrap());
        assert!(!record(&after, GROUP, NodeId(2), b"second").unwrap());
    }
}

/// The absent voter may be the only voter that knows that there was another before.
#[tokio::test]
async fn a_new_member_follows_once_a_majority_knows_it_and_takes_part_once_all_do() {
    for (nodes, enough) in [(3, 1), (4, 2), (5, 2)] {
        let member = Member::new(nodes).await;
        let joining = member.joins(false);
        for (known, next) in (2..=nodes).enumerate() {
            if known >= enough {
                until("it follows", || member.follows()).await;
            } else {
                // Every answer was looked at.
                member.asks(nodes, 3).await;
                assert!(!member.follows(), "{known} others of {nodes} voters know it");
            }
            if next == nodes {
                // Longer than one would wait that is vouched for.
                member.asks(nodes, 8).await;
                assert_eq!(
                    (member.voting_status(), joining.is_finished()),
                    (VotingStatus::New, false)
                );
            }
            member.voters.is_back(next);
            until("it is known", || member.voters.remembers(next, 1).is_some()).await;
        }
        assert_eq!(ended(joining).await, VotingStatus::Member);
        assert_eq!(member.voting_status(), VotingStatus::Member);
        assert!((2..=nodes).all(|voter| !member.voters.records(voter, b"another")));
    }
}

#[tokio::test]
async fn a_member_that_a_majority_took_for_the_first_follows_no_leader_once_a_voter_knows_better() {
    let member = Member::new(3).await;
    assert!(member.voters.records(3, b"another"));
    let joining = member.joins(false);
    member.voters.is_back(2);
    until("it follows", || member.follows()).await;
    member.voters.is_back(3);
    assert_eq!(
        (ended(joining).await, member.voting_status()),
        (VotingStatus::NonVoting, VotingStatus::NonVoting)
    );
    assert_eq!(member.votes.may_follow(9), Err(NoVote::MayHaveForgotten(9)));
}

#[tokio::test]
async fn a_member_that_is_vouched_for_waits_a_while_for_absent_voters_and_not_for_ever() {
    for knows_better in [true, false] {
        let member = Member::new(3).await;
        if knows_better {
            assert!(member.voters.records(2, b"another"));
            member.voters.is_away_for(2, 1);
        }
        let joining = member.joins(true);
        let expected = if knows_better { VotingStatus::NonVoting } else { VotingStatus::Member };
        assert_eq!((ended(joining).await, member.voting_status()), (expected, expected));
        assert_eq!(member.follows(), !knows_better);
    }
}

#[tokio::test]
async fn a_member_is_made_known_to_voters_that_were_away_when_it_joined() {
    let member = Member::new(3).await;
    // Not before it is one.
    ended(member.announces()).await;
    assert_eq!(member.voters.asked(2), 0);
    member.voters.is_back(2);
    assert_eq!(ended(member.joins(true)).await, VotingStatus::Member);
    let announcing = member.announces();
    member.asks(3, 1).await;
    assert!(!announcing.is_finished());
    member.voters.is_back(3);
    ended(announcing).await;
    assert_eq!(
        (member.voters.remembers(3, 1), member.voters.asked(1)),
        (member.voters.remembers(2, 1), 0)
    );
    assert!(member.voters.remembers(3, 1).is_some());
}

/// The leader would not notice that it forgets a vote. And it may be all that is left to remember
/// the others.
#[tokio::test]
async fn a_newcomer_hears_of_earlier_voters_and_not_before_it_takes_part() {
    let Member { engine, nodes, voters, .. } = Member::new(3).await;
    assert!(record(&engine, GROUP, NodeId(1), b"one").unwrap());
    voters.is_back(3);
    let peers = Arc::clone(&voters) as Arc<dyn Peers>;
    let mut introducing = Box::pin(introduce(&engine, GROUP, NodeId(3), &nodes, &peers));
    assert!(tokio::time::timeout(PAUSE * 3, introducing.as_mut()).await.is_err());
    assert_eq!(voters.asked(3), 0);
    assert!(record(&engine, GROUP, NodeId(3), b"three").unwrap());
    tokio::time::timeout(DEADLINE, introducing).await.expect("it takes part").unwrap();
    assert_eq!(
        (voters.remembers(3, 1).as_deref(), voters.remembers(3, 2)),
        (Some(&b"one"[..]), None)
    );
}
