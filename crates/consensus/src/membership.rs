//! Which members may vote: incarnations of members.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_storage::schema::{
    META_FAMILY, VOTING_STATUS_MEMBER, VOTING_STATUS_NON_VOTING, follows_from_key, incarnation_key,
    voting_status_key,
};
use meridian_storage::{Durability, Engine, GroupId, StorageError, WriteBatch};
use meridian_types::NodeId;
use uuid::Uuid;

use crate::Peers;
use crate::blocking::off_the_runtime;
use crate::votes::Votes;

const PAUSE: Duration = Duration::from_millis(50);
/// How long a member that is vouched for waits for voters that do not answer.
const VOUCHED_PATIENCE: Duration = Duration::from_millis(300);
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// This node's right to vote in a group, as its folder records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VotingStatus {
    /// Not yet joined.
    New,
    Member,
    /// Another incarnation of this node has voted before: this one never does.
    NonVoting,
}

fn put_durably(engine: &Arc<dyn Engine>, key: Vec<u8>, value: &[u8]) -> Result<(), StorageError> {
    let mut writes = WriteBatch::default();
    writes.put(&META_FAMILY.into(), key, value.to_vec());
    engine.write(writes, Durability::Logged)?;
    engine.sync()
}

async fn put_off_the_runtime(
    engine: &Arc<dyn Engine>,
    key: Vec<u8>,
    value: &[u8],
) -> Result<(), StorageError> {
    let (engine, value) = (Arc::clone(engine), value.to_vec());
    let put = off_the_runtime(move || put_durably(&engine, key, &value)).await;
    put.map_err(StorageError::cancelled)?
}

pub(crate) fn voting_status(
    engine: &Arc<dyn Engine>,
    group: GroupId,
) -> Result<VotingStatus, StorageError> {
    engine.create_family(META_FAMILY)?;
    Ok(match engine.get(META_FAMILY, &voting_status_key(group))?.as_deref() {
        None => VotingStatus::New,
        Some(VOTING_STATUS_MEMBER) => VotingStatus::Member,
        Some(_) => VotingStatus::NonVoting,
    })
}

/// Remembers, durably, the incarnation of another member, if no other is remembered. Whether this
/// one is.
pub(crate) fn record(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: NodeId,
    incarnation: &[u8],
) -> Result<bool, StorageError> {
    let key = incarnation_key(group, node);
    match engine.get(META_FAMILY, &key)? {
        Some(known) => Ok(known == incarnation),
        None => put_durably(engine, key, incarnation).map(|()| true),
    }
}

fn remembered(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: NodeId,
) -> Result<Option<Bytes>, StorageError> {
    engine.get(META_FAMILY, &incarnation_key(group, node))
}

/// Before the votes and the log of a stopped group are deleted: this node must not vote in it
/// again.
pub(crate) fn resign(engine: &Arc<dyn Engine>, group: GroupId) -> Result<(), StorageError> {
    engine.create_family(META_FAMILY)?;
    let mut writes = WriteBatch::default();
    writes.put(&META_FAMILY.into(), voting_status_key(group), VOTING_STATUS_NON_VOTING.to_vec());
    writes.delete(&META_FAMILY.into(), follows_from_key(group));
    engine.write(writes, Durability::Logged)?;
    engine.sync()
}

/// For a member without a vote: the term from which on it may follow leaders, since it has
/// forgotten no vote of a later one. The candidate that it voted for has saved that term before it
/// asked, so every other voter is asked for its own, until all have answered; then it is
/// remembered.
pub(crate) async fn follows_from(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: NodeId,
    voters: &BTreeSet<NodeId>,
    peers: &Arc<dyn Peers>,
) -> Result<u64, StorageError> {
    let key = follows_from_key(group);
    if let Some(known) = engine.get(META_FAMILY, &key)? {
        let corrupt = |_| StorageError::Corruption {
            what: format!("the term that a member of {group} follows from"),
            detail: format!("{} bytes", known.len()),
        };
        return Ok(u64::from_be_bytes(known.as_ref().try_into().map_err(corrupt)?));
    }
    let incarnation = remembered(engine, group, node)?.unwrap_or_default();
    let mut asking: BTreeSet<NodeId> =
        voters.iter().copied().filter(|voter| *voter != node).collect();
    let (mut newest, mut rounds) = (0, 0u32);
    while !asking.is_empty() {
        let asked = asking.iter().map(|voter| ask(group, node, *voter, incarnation.clone(), peers));
        for (voter, answer) in futures::future::join_all(asked).await {
            if let Some(term) = answer.and_then(|answer| answer.term) {
                newest = newest.max(term);
                asking.remove(&voter);
            }
        }
        rounds += 1;
        if rounds.is_multiple_of(100) {
            tracing::warn!(
                %group, ?asking,
                "a member that has forgotten its votes takes nothing before it knows the terms of all other voters"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    put_off_the_runtime(engine, key, &newest.to_be_bytes()).await?;
    Ok(newest)
}

/// Asks every other voter to remember this incarnation, until all have answered; the first refusal
/// decides.
///
/// All of them, since any one may be all that is left to tell a later incarnation that it is not
/// the first. Where the directory vouches that this is the first, it does not wait for voters that
/// are away.
///
/// It follows leaders once it knows that it is the first: when a majority, with itself, has
/// answered, or those are waited for no longer. Before it voted, every voter remembered it; one
/// that does not has been wiped itself.
pub(crate) async fn join(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: NodeId,
    voters: &BTreeSet<NodeId>,
    peers: &Arc<dyn Peers>,
    vouched: bool,
    votes: &Votes,
) -> Result<VotingStatus, StorageError> {
    let started = Instant::now();
    let incarnation = match remembered(engine, group, node)? {
        Some(known) => known,
        None => {
            let new = Uuid::new_v4().into_bytes().to_vec();
            put_off_the_runtime(engine, incarnation_key(group, node), &new).await?;
            new.into()
        }
    };
    let mut asking: BTreeSet<NodeId> =
        voters.iter().copied().filter(|voter| *voter != node).collect();
    let mut rounds = 0u32;
    loop {
        let asked = asking.iter().map(|voter| ask(group, node, *voter, incarnation.clone(), peers));
        for (voter, answer) in futures::future::join_all(asked).await {
            match answer {
                Some(answer) if answer.accepted => drop(asking.remove(&voter)),
                Some(_) => {
                    votes.follow_no_leader();
                    put_off_the_runtime(engine, voting_status_key(group), VOTING_STATUS_NON_VOTING)
                        .await?;
                    return Ok(VotingStatus::NonVoting);
                }
                None => {}
            }
        }
        let is_enough = asking.is_empty() || (vouched && started.elapsed() >= VOUCHED_PATIENCE);
        if is_enough || (voters.len() - asking.len()) * 2 > voters.len() {
            votes.follow_from(0);
        }
        if is_enough {
            break;
        }
        rounds += 1;
        if rounds.is_multiple_of(100) {
            tracing::warn!(%group, ?asking, "a member that is new here waits for a word of all other voters");
        }
        tokio::time::sleep(PAUSE).await;
    }
    put_off_the_runtime(engine, voting_status_key(group), VOTING_STATUS_MEMBER).await?;
    Ok(VotingStatus::Member)
}

/// Tells every other voter of this member's incarnation, until each has answered: it may have
/// become a member while they were away, and they lead when it is to vote again.
pub(crate) async fn announce(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    node: NodeId,
    voters: &BTreeSet<NodeId>,
    peers: &Arc<dyn Peers>,
) -> Result<(), StorageError> {
    if voting_status(engine, group)? != VotingStatus::Member {
        return Ok(());
    }
    let Some(incarnation) = remembered(engine, group, node)? else { return Ok(()) };
    let told = voters.iter().filter(|voter| **voter != node).map(|voter| async {
        while ask(group, node, *voter, incarnation.clone(), peers).await.1.is_none() {
            tokio::time::sleep(ANNOUNCE_PAUSE).await;
        }
    });
    futures::future::join_all(told).await;
    Ok(())
}

/// Before `newcomer` becomes a voter: waits until this node, the leader, remembers it (what it
/// forgets from then on is noticed), and tells it of the other voters, since it may be all that is
/// left to remember them.
pub(crate) async fn introduce(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    newcomer: NodeId,
    voters: &BTreeSet<NodeId>,
    peers: &Arc<dyn Peers>,
) -> Result<(), StorageError> {
    let mut rounds = 0u32;
    while remembered(engine, group, newcomer)?.is_none() {
        rounds += 1;
        if rounds.is_multiple_of(100) {
            tracing::warn!(%group, %newcomer, "a node that is to vote has not begun to take part");
        }
        tokio::time::sleep(PAUSE).await;
    }
    for voter in voters.iter().filter(|voter| **voter != newcomer) {
        let Some(incarnation) = remembered(engine, group, *voter)? else { continue };
        // If it remembers another incarnation, it will know a third one just as well.
        while ask(group, *voter, newcomer, incarnation.clone(), peers).await.1.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Asks the voter whether it remembers this incarnation of the node; `None`: no answer.
async fn ask(
    group: GroupId,
    node: NodeId,
    voter: NodeId,
    incarnation: Bytes,
    peers: &Arc<dyn Peers>,
) -> (NodeId, Option<raft::JoinResponse>) {
    let target = raft::Group { shard: group.shard.0, epoch: group.epoch.0.into(), target: voter.0 };
    let request = raft::JoinRequest { group: Some(target), node_id: node.0, incarnation };
    let Some(channel) = peers.channel(voter) else { return (voter, None) };
    let mut client = RaftClient::new(channel);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.join(request)).await;
    (voter, answer.ok().and_then(Result::ok).map(tonic::Response::into_inner))
}

#[cfg(test)]
mod tests;
