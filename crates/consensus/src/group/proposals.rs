//! Proposing batches: each in one term, one at a time.

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::OneshotResponder;
use openraft::raft::ClientWriteResult;

use super::RaftGroup;
use crate::log_store::Proposed;
use crate::type_config::{EncodedBatch, TypeConfig};

/// An encoded batch at most. With what is sent beside it, it fits a message several times over.
pub const MAX_BATCH_BYTES: usize = 16 << 20;

/// Why a proposed batch did not commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalFailure {
    /// Never appended, and never will be.
    #[error("the batch was not appended: this node does not lead in that term")]
    NotAppended,
    /// Leadership was lost after it was appended: the next leader may have it or not.
    #[error("leadership was lost while the batch was in flight")]
    Unknown,
    /// Never appended: it could be sent to no member, and nothing behind it either.
    #[error(
        "a batch of {bytes} bytes is larger than the {MAX_BATCH_BYTES} bytes that the log takes"
    )]
    TooLarge { bytes: usize },
}

/// A batch in flight. Dropping it changes nothing: the batch is in the log.
pub struct Proposal {
    state: ProposalState,
}

enum ProposalState {
    Applied,
    InFlight(tokio::sync::oneshot::Receiver<ClientWriteResult<TypeConfig>>),
}

impl Proposal {
    /// Waits until the batch is committed and applied here. May be dropped at any await and called
    /// again, until it has answered.
    pub async fn applied(&mut self) -> Result<(), ProposalFailure> {
        match &mut self.state {
            ProposalState::Applied => Ok(()),
            ProposalState::InFlight(receiver) => outcome(receiver.await.map_err(drop)),
        }
    }
}

fn outcome(result: Result<ClientWriteResult<TypeConfig>, ()>) -> Result<(), ProposalFailure> {
    match result {
        Ok(Ok(_)) => Ok(()),
        // openraft's word that it was refused before it was appended. It says otherwise of what it
        // cut off its log.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(ProposalFailure::NotAppended),
        Ok(Err(_)) | Err(()) => Err(ProposalFailure::Unknown),
    }
}

impl RaftGroup {
    /// Appends the batch of this sequence if this node still leads in `term`; else it is not
    /// appended. Returns when it is in this node's log. It must be called for one batch at a time.
    ///
    /// openraft may refuse one write and take the next in the same term (while its lease has run
    /// out for a moment, or during a leadership transfer that fails). Would the next batch be sent
    /// before this one is in the log, sequences could have a gap.
    ///
    /// A batch of more than [`MAX_BATCH_BYTES`] is not appended.
    pub async fn propose(
        &self,
        batch: Bytes,
        sequence: u64,
        term: u64,
    ) -> Result<Proposal, ProposalFailure> {
        if batch.len() > MAX_BATCH_BYTES {
            return Err(ProposalFailure::TooLarge { bytes: batch.len() });
        }
        let (responder, mut receiver) =
            OneshotResponder::<TypeConfig, ClientWriteResult<TypeConfig>>::new_pair();
        let batch = EncodedBatch { bytes: batch, proposed_sequence: sequence };
        let mut appended = self.log.appended();
        if self.raft.write(batch).with_leader(term).responder(responder).await.is_err() {
            return Err(ProposalFailure::NotAppended);
        }
        tokio::select! {
            biased;
            result = &mut receiver => match result {
                Ok(result) => {
                    // Refused, or committed in no time.
                    outcome(Ok(result))?;
                    Ok(Proposal { state: ProposalState::Applied })
                }
                Err(_) => Err(ProposalFailure::Unknown),
            },
            // One batch at a time: no other can be the newest.
            _ = appended.wait_for(|newest| *newest == Proposed { term, sequence }) => {
                Ok(Proposal { state: ProposalState::InFlight(receiver) })
            }
        }
    }
}
