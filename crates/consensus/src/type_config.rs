//! The types that openraft is used with.

use std::fmt;

use bytes::Bytes;
use meridian_types::NodeId;
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};

/// Meridian's Raft: standard leader ids, so that a term has one leader; nodes are known by id
/// alone, their addresses belong to the topology.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = EncodedBatch;
    type R = ();
    type NodeId = NodeId;
    type Node = ();
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<EncodedBatch, NodeId, ()>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T: OptionalSend + 'static> = openraft::impls::OneshotResponder<Self, T>;
    type Batch<T: OptionalSend + 'static> = openraft::impls::InlineBatch<T>;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// The stored bytes of a `meridian.log.v1.Batch`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EncodedBatch {
    pub(crate) bytes: Bytes,
    /// The batch's sequence where this node proposed it, so that [`crate::RaftGroup::propose`] sees
    /// when it is appended; 0 in what comes from disk or from another node.
    pub(crate) proposed_sequence: u64,
}

impl EncodedBatch {
    pub(crate) fn stored(bytes: Bytes) -> Self {
        Self { bytes, proposed_sequence: 0 }
    }
}

impl fmt::Debug for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.bytes.len())
    }
}

impl fmt::Display for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot<D> = openraft::alias::SnapshotOf<TypeConfig, D>;
