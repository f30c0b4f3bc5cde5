//! openraft's types to and from `/proto`. A message that cannot be converted names the field.

use std::collections::BTreeSet;

use bytes::Bytes;
use meridian_proto::{log, raft};
use meridian_types::NodeId;
use openraft::errors::MembershipError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership};
use prost::Message;

use crate::claims::Implausible;
use crate::type_config::{EncodedBatch, Entry, LogId, StoredMembership, TypeConfig, Vote};

/// Bytes or a message that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidMessage {
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error("membership: {0}")]
    Membership(#[from] MembershipError<NodeId>),
    #[error(transparent)]
    Implausible(#[from] Implausible),
}

impl From<InvalidMessage> for std::io::Error {
    fn from(error: InvalidMessage) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

pub(crate) fn log_id_to_wire(log_id: &LogId) -> log::LogId {
    log::LogId { term: log_id.leader_id.term, index: log_id.index }
}

pub(crate) fn log_id(wire: log::LogId) -> LogId {
    LogId::new(wire.term.into(), wire.index)
}

pub(crate) fn vote_to_wire(vote: &Vote) -> log::Vote {
    log::Vote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.voted_for.0,
        committed: vote.committed,
    }
}

pub(crate) fn vote(wire: log::Vote) -> Vote {
    let leader_id = openraft::impls::leader_id_std::LeaderId::new(wire.term, NodeId(wire.node_id));
    Vote { leader_id, committed: wire.committed }
}

fn required_vote(wire: Option<log::Vote>) -> Result<Vote, InvalidMessage> {
    wire.map(vote).ok_or(InvalidMessage::Missing("vote"))
}

fn membership_to_wire(membership: &Membership<NodeId, ()>) -> log::Membership {
    let voters = |set: &BTreeSet<NodeId>| log::VoterSet {
        node_ids: set.iter().map(|node| node.0).collect(),
    };
    log::Membership {
        configs: membership.get_joint_config().iter().map(voters).collect(),
        members: membership.nodes().map(|(id, ())| id.0).collect(),
    }
}

fn membership(wire: log::Membership) -> Result<Membership<NodeId, ()>, InvalidMessage> {
    let nodes = |ids: Vec<u64>| -> BTreeSet<NodeId> { ids.into_iter().map(NodeId).collect() };
    let configs = wire.configs.into_iter().map(|set| nodes(set.node_ids)).collect();
    let members = nodes(wire.members);
    Ok(Membership::new(configs, members)?)
}

pub(crate) fn stored_membership_to_wire(stored: &StoredMembership) -> log::StoredMembership {
    log::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

pub(crate) fn stored_membership(
    wire: Option<log::StoredMembership>,
) -> Result<StoredMembership, InvalidMessage> {
    let Some(wire) = wire else { return Ok(StoredMembership::default()) };
    let membership = membership(wire.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(wire.log_id.map(log_id), membership))
}

pub(crate) fn entry_to_wire(entry: &Entry) -> log::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => log::entry::Payload::Blank(true),
        EntryPayload::Normal(batch) => log::entry::Payload::Batch(batch.bytes.clone()),
        EntryPayload::Membership(membership) => {
            log::entry::Payload::Membership(membership_to_wire(membership))
        }
    };
    log::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry(wire: log::Entry) -> Result<Entry, InvalidMessage> {
    let log_id = wire.log_id.map(log_id).ok_or(InvalidMessage::Missing("log_id"))?;
    let payload = match wire.payload.ok_or(InvalidMessage::Missing("payload"))? {
        log::entry::Payload::Blank(_) => EntryPayload::Blank,
        log::entry::Payload::Batch(bytes) => EntryPayload::Normal(EncodedBatch::stored(bytes)),
        log::entry::Payload::Membership(wire) => EntryPayload::Membership(membership(wire)?),
    };
    Ok(Entry { log_id, payload })
}

/// The stored bytes of an entry.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    entry_to_wire(entry).encode_to_vec()
}

pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, InvalidMessage> {
    entry(log::Entry::decode(bytes)?)
}

pub(crate) fn append_request_to_wire(
    group: raft::Group,
    request: &AppendEntriesRequest<TypeConfig>,
) -> raft::AppendRequest {
    raft::AppendRequest {
        group: Some(group),
        vote: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_wire),
        members: Vec::new(),
    }
}

pub(crate) fn append_request(
    wire: raft::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, InvalidMessage> {
    Ok(AppendEntriesRequest {
        vote: required_vote(wire.vote)?,
        prev_log_id: wire.previous.map(log_id),
        entries: wire.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        leader_commit: wire.leader_commit.map(log_id),
    })
}

pub(crate) type StreamAppendResult = Result<Option<LogId>, StreamAppendError<TypeConfig>>;

fn matched(log_id: Option<LogId>, partial: bool) -> raft::append_response::Result {
    raft::append_response::Result::Matched(raft::Matched {
        log_id: log_id.as_ref().map(log_id_to_wire),
        partial,
    })
}

pub(crate) fn stream_result_to_wire(result: StreamAppendResult) -> raft::AppendResponse {
    let result = match result {
        Ok(log_id) => matched(log_id, false),
        Err(StreamAppendError::Conflict(log_id)) => {
            raft::append_response::Result::Conflict(log_id_to_wire(&log_id))
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            raft::append_response::Result::HigherVote(vote_to_wire(&vote))
        }
    };
    raft::AppendResponse { result: Some(result) }
}

pub(crate) fn stream_result(
    wire: raft::AppendResponse,
) -> Result<StreamAppendResult, InvalidMessage> {
    Ok(match wire.result.ok_or(InvalidMessage::Missing("result"))? {
        raft::append_response::Result::Matched(matched) => Ok(matched.log_id.map(log_id)),
        raft::append_response::Result::Conflict(at) => Err(StreamAppendError::Conflict(log_id(at))),
        raft::append_response::Result::HigherVote(higher) => {
            Err(StreamAppendError::HigherVote(vote(higher)))
        }
    })
}

pub(crate) fn append_response_to_wire(
    response: AppendEntriesResponse<TypeConfig>,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> raft::AppendResponse {
    let result = match response {
        AppendEntriesResponse::Success => matched(last, false),
        AppendEntriesResponse::PartialSuccess(log_id) => matched(log_id, true),
        AppendEntriesResponse::Conflict => {
            let at = previous.as_ref().map(log_id_to_wire).unwrap_or_default();
            raft::append_response::Result::Conflict(at)
        }
        AppendEntriesResponse::HigherVote(vote) => {
            raft::append_response::Result::HigherVote(vote_to_wire(&vote))
        }
    };
    raft::AppendResponse { result: Some(result) }
}

pub(crate) fn append_response(
    wire: raft::AppendResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, InvalidMessage> {
    Ok(match wire.result.ok_or(InvalidMessage::Missing("result"))? {
        raft::append_response::Result::Matched(raft::Matched { log_id: at, partial: true }) => {
            AppendEntriesResponse::PartialSuccess(at.map(log_id))
        }
        raft::append_response::Result::Matched(_) => AppendEntriesResponse::Success,
        raft::append_response::Result::Conflict(_) => AppendEntriesResponse::Conflict,
        raft::append_response::Result::HigherVote(higher) => {
            AppendEntriesResponse::HigherVote(vote(higher))
        }
    })
}

pub(crate) fn vote_request_to_wire(
    group: raft::Group,
    request: &VoteRequest<TypeConfig>,
) -> raft::VoteRequest {
    raft::VoteRequest {
        group: Some(group),
        vote: Some(vote_to_wire(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_wire),
        leadership_transfer: request.leadership_transfer,
        remembered: None,
    }
}

pub(crate) fn vote_request(
    wire: raft::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, InvalidMessage> {
    let mut request = VoteRequest::new(required_vote(wire.vote)?, wire.last_log_id.map(log_id));
    request.leadership_transfer = wire.leadership_transfer;
    Ok(request)
}

pub(crate) fn vote_response_to_wire(response: &VoteResponse<TypeConfig>) -> raft::VoteResponse {
    raft::VoteResponse {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_to_wire),
    }
}

pub(crate) fn vote_response(
    wire: raft::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, InvalidMessage> {
    Ok(VoteResponse::new(required_vote(wire.vote)?, wire.last_log_id.map(log_id), wire.granted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_entries_are_golden_and_come_back() {
        let id = LogId::new(3.into(), 300);
        let blank = Entry { log_id: id, payload: EntryPayload::Blank };
        assert_eq!(encode_entry(&blank), b"\x0a\x05\x08\x03\x10\xac\x02\x20\x01");
        let batch = EntryPayload::Normal(EncodedBatch::stored(Bytes::from_static(b"batch")));
        let batch = Entry { log_id: id, payload: batch };
        assert_eq!(encode_entry(&batch), b"\x0a\x05\x08\x03\x10\xac\x02\x12\x05batch");
        let joint = Membership::new_with_defaults(
            vec![BTreeSet::from([1, 2].map(NodeId)), BTreeSet::from([2, 3].map(NodeId))],
            [NodeId(4)],
        );
        let change = Entry { log_id: id, payload: EntryPayload::Membership(joint) };
        let golden = b"\x0a\x05\x08\x03\x10\xac\x02\x1a\x12\x0a\x04\x0a\x02\x01\x02\x0a\x04\x0a\x02\x02\x03\x12\x04\x01\x02\x03\x04";
        assert_eq!(encode_entry(&change), golden);
        for entry in [blank, batch, change] {
            assert_eq!(decode_entry(encode_entry(&entry).into()).unwrap(), entry);
        }
        assert!(decode_entry(Bytes::from_static(b"\x08\x01")).is_err());
    }
}
