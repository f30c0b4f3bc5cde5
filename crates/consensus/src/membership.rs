//! Who may vote: incarnations of members, and the quiet time after a restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_storage::schema::META_FAMILY;
use meridian_storage::{Durability, Engine, GroupId, StorageError, WriteBatch};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::Peers;

const PAUSE: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// What this node's folder says of its part in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not yet joined.
    New,
    Member,
    /// Another incarnation of this node has voted before: this one never does.
    Voteless,
}

impl Standing {
    const MEMBER: &[u8] = b"member";
    const VOTELESS: &[u8] = b"voteless";
}

fn key(what: &[u8], group: GroupId, node: u64) -> Vec<u8> {
    [what, &group.shard.0.to_be_bytes(), &group.epoch.0.to_be_bytes(), &node.to_be_bytes()].concat()
}

fn put_durably(engine: &Arc<dyn Engine>, key: Vec<u8>, value: &[u8]) -> Result<(), StorageError> {
    let mut writes = WriteBatch::default();
    writes.put(&META_FAMILY.into(), key, value.to_vec());
    engine.write(writes, Durability::Logged)?;
    engine.sync()
}

pub(crate) fn standing(engine: &Arc<dyn Engine>, group: GroupId) -> Result<Standing, StorageError> {
    engine.create_family(META_FAMILY)?;
    Ok(match engine.get(META_FAMILY, &key(b"standing", group, 0))?.as_deref() {
        None => Standing::New,
        Some(Standing::MEMBER) => Standing::Member,
        Some(_) => Standing::Voteless,
    })
}

/// Remembers, durably, the incarnation of another member, if no other is remembered. Whether this one is.
pub(crate) fn record(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: u64,
    incarnation: &[u8],
) -> Result<bool, StorageError> {
    let key = key(b"incarnation", group, node);
    match engine.get(META_FAMILY, &key)? {
        Some(known) => Ok(known == incarnation),
        None => put_durably(engine, key, incarnation).map(|()| true),
    }
}

/// Asks every other voter to remember this incarnation, until all have answered; the first refusal decides.
///
/// All of them, since any one may be all that is left to tell a later incarnation that it is not the first.
pub(crate) async fn join(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: u64,
    voters: &BTreeSet<u64>,
    peers: &Arc<dyn Peers>,
) -> Result<Standing, StorageError> {
    let own = key(b"incarnation", group, node);
    let incarnation = match engine.get(META_FAMILY, &own)? {
        Some(known) => known,
        None => {
            let new = Uuid::new_v4().into_bytes().to_vec();
            put_durably(engine, own, &new)?;
            new.into()
        }
    };
    let mut asking: BTreeSet<u64> = voters.iter().copied().filter(|voter| *voter != node).collect();
    let mut rounds = 0u32;
    while let Some(voter) = asking.pop_first() {
        let target = raft::Group { shard: group.shard.0, epoch: group.epoch.0.into(), target: voter };
        let request = raft::JoinRequest { group: Some(target), node_id: node, incarnation: incarnation.clone() };
        let answer = match peers.channel(voter) {
            Some(channel) => {
                let mut client = RaftClient::new(channel);
                tokio::time::timeout(CALL_TIMEOUT, client.join(request)).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        match answer.map(|answer| answer.into_inner().accepted) {
            Some(true) => {}
            Some(false) => {
                put_durably(engine, key(b"standing", group, 0), Standing::VOTELESS)?;
                return Ok(Standing::Voteless);
            }
            None => {
                asking.insert(voter);
                rounds += 1;
                if rounds % 100 == 0 {
                    tracing::warn!(%group, ?asking, "a new group waits until all its voters are there");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    put_durably(engine, key(b"standing", group, 0), Standing::MEMBER)?;
    Ok(Standing::Member)
}

/// Why this member's vote is not to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoVote {
    #[error("this member has just started, and may have granted a lease before")]
    JustStarted,
    #[error("this member's folder was wiped: it does not vote")]
    Wiped,
}

/// Keeps votes in until they are safe.
#[derive(Debug)]
pub(crate) struct VoteGate {
    state: Mutex<Gate>,
}

#[derive(Debug, Clone, Copy)]
enum Gate {
    OpensAt(Instant),
    Closed,
}

impl VoteGate {
    /// Opens by itself when a lease granted before now has run out.
    pub(crate) fn closed_for(lease: Duration) -> Self {
        Self { state: Mutex::new(Gate::OpensAt(Instant::now() + lease)) }
    }

    /// For a member that has granted nothing yet.
    pub(crate) fn open(&self) {
        *self.state.lock() = Gate::OpensAt(Instant::now());
    }

    /// For good.
    pub(crate) fn close(&self) {
        *self.state.lock() = Gate::Closed;
    }

    /// Waits until it is open; for ever, if it is closed for good.
    pub(crate) async fn opened(&self) {
        let state = *self.state.lock();
        match state {
            Gate::OpensAt(at) => tokio::time::sleep_until(at.into()).await,
            Gate::Closed => std::future::pending().await,
        }
    }

    /// A transfer is the leader's own will: its lease ends with it.
    pub(crate) fn check(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        match *self.state.lock() {
            Gate::Closed => Err(NoVote::Wiped),
            Gate::OpensAt(at) if Instant::now() < at && !leadership_transfer => Err(NoVote::JustStarted),
            Gate::OpensAt(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_storage::MemoryEngine;
    use meridian_types::{Epoch, ShardId};

    use super::*;

    #[test]
    fn only_the_first_incarnation_of_a_member_is_remembered_also_after_a_crash() {
        let engine = Arc::new(MemoryEngine::default());
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let dynamic = Arc::clone(&engine) as Arc<dyn Engine>;
        assert_eq!(standing(&dynamic, group).unwrap(), Standing::New);
        assert!(record(&dynamic, group, 2, b"first").unwrap());
        assert!(!record(&dynamic, group, 2, b"second").unwrap());
        let after: Arc<dyn Engine> = Arc::new(engine.crash(0));
        assert!(record(&after, group, 2, b"first").unwrap());
        assert!(!record(&after, group, 2, b"second").unwrap());
    }

    #[test]
    fn votes_are_kept_in_after_a_start_and_for_ever_after_a_wipe() {
        let gate = VoteGate::closed_for(Duration::from_secs(3600));
        assert_eq!(gate.check(false), Err(NoVote::JustStarted));
        assert_eq!(gate.check(true), Ok(()));
        gate.open();
        assert_eq!(gate.check(false), Ok(()));
        gate.close();
        assert_eq!(gate.check(true), Err(NoVote::Wiped));
    }
}
