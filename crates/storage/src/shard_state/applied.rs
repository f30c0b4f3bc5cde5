//! The history that a state reflects, and how a batch extends it.

use bytes::Bytes;
use meridian_proto::{DecodedBatch, log};
use meridian_types::{Epoch, Position};
use prost::Message;

use crate::{Digest, StorageError};

/// The history that a shard's state on one node reflects.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    pub position: Position,
    /// The leader's time of the last batch, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Encoded batches since the shard was made, in bytes.
    pub total_bytes: u64,
    /// Transactions since the shard was made.
    pub total_transactions: u64,
    /// Of all batches up to the position: the same on every node that applied the same.
    pub digest: Digest,
    pub raft: RaftApplied,
}

/// Raft's part of [`Applied`]: empty on a follower in a replica region.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RaftApplied {
    /// Of the Raft group that the rest belongs to. To the group of another epoch it means nothing.
    pub epoch: Option<Epoch>,
    pub log_id: Option<log::LogId>,
    pub membership: Option<log::StoredMembership>,
}

impl Applied {
    pub(super) fn nothing() -> Self {
        Self {
            position: Position::ZERO,
            time_ms: 0,
            total_bytes: 0,
            total_transactions: 0,
            digest: Digest::default(),
            raft: RaftApplied::default(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        log::Applied {
            epoch: self.position.epoch.0.into(),
            sequence: self.position.sequence,
            time_ms: self.time_ms,
            log_id: self.raft.log_id,
            membership: self.raft.membership.clone(),
            total_bytes: self.total_bytes,
            raft_epoch: self.raft.epoch.map_or(0, |epoch| epoch.0.into()),
            total_transactions: self.total_transactions,
            digest: self.digest.0,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, StorageError> {
        let corrupt = |detail: &dyn ToString| {
            StorageError::corruption("an applied position", detail.to_string())
        };
        let wire = log::Applied::decode(bytes).map_err(|error| corrupt(&error))?;
        let epoch = |number| u16::try_from(number).map(Epoch).map_err(|error| corrupt(&error));
        let position = Position::new(epoch(wire.epoch)?, wire.sequence);
        let raft_epoch = match wire.raft_epoch {
            // Written before epochs changed, when a group had the epoch of its batches.
            0 => wire.log_id.map(|_| position.epoch),
            number => Some(epoch(number)?),
        };
        Ok(Self {
            position,
            time_ms: wire.time_ms,
            total_bytes: wire.total_bytes,
            total_transactions: wire.total_transactions,
            digest: Digest(wire.digest),
            raft: RaftApplied {
                epoch: raft_epoch,
                log_id: wire.log_id,
                membership: wire.membership,
            },
        })
    }

    /// Adds the next batch. It may be the first of a later epoch.
    ///
    /// # Panics
    /// When the batch is not the next: going on would lose or reorder commits, so the process
    /// stops.
    pub fn advance(&mut self, DecodedBatch { batch, len, checksum }: &DecodedBatch) {
        assert!(
            batch.position.sequence == self.position.sequence + 1
                && batch.position.epoch >= self.position.epoch,
            "batch {} cannot follow {}: sequences are contiguous, epochs do not go back",
            batch.position,
            self.position
        );
        self.position = batch.position;
        self.digest = self.digest.with(batch.position, *checksum);
        self.time_ms = self.time_ms.max(batch.time_ms);
        self.total_bytes += *len as u64;
        self.total_transactions += batch.transactions.len() as u64;
    }
}
