//! Keys of the family `log`: numbered records of logs, and marks beside them.

use std::fmt;

use meridian_types::{Epoch, ShardId};

pub const LOG_FAMILY: &str = "log";

/// A Raft group, or what follows one: a shard in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    pub shard: ShardId,
    pub epoch: Epoch,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} epoch {}", self.shard, self.epoch)
    }
}

/// The kinds of records that a log can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// Raft entries, by index.
    Entry,
    /// Batches shipped from the voters, by sequence.
    Shipped,
}

impl RecordKind {
    fn tag(self) -> u8 {
        match self {
            Self::Entry => b'e',
            Self::Shipped => b's',
        }
    }
}

/// A small value beside the records of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogMark {
    /// The vote of a member.
    Vote,
    /// Up to where a member knows that entries are committed.
    Committed,
    /// Up to where the log was purged: a log id in the log of a group, a sequence in that of a
    /// replica.
    Purged,
    /// How far a member's log went when it left the group, or lost an end that was durable.
    Left,
}

impl LogMark {
    fn tag(self) -> u8 {
        match self {
            Self::Vote => b'v',
            Self::Committed => b'c',
            Self::Purged => b'p',
            Self::Left => b'l',
        }
    }
}

/// The letter that it lies under.
impl fmt::Display for LogMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(self.tag()))
    }
}

fn prefix(group: GroupId, tag: u8) -> [u8; 7] {
    let [s0, s1, s2, s3] = group.shard.0.to_be_bytes();
    let [e0, e1] = group.epoch.0.to_be_bytes();
    [s0, s1, s2, s3, e0, e1, tag]
}

/// Where a numbered record lies.
pub fn record_key(group: GroupId, kind: RecordKind, number: u64) -> Vec<u8> {
    [prefix(group, kind.tag()).as_slice(), &number.to_be_bytes()].concat()
}

/// Where a mark lies.
pub fn mark_key(group: GroupId, mark: LogMark) -> Vec<u8> {
    prefix(group, mark.tag()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_logs_are_golden() {
        let group = GroupId { shard: ShardId(0x0102_0304), epoch: Epoch(1) };
        let record = |kind| record_key(group, kind, 0x0506);
        assert_eq!(record(RecordKind::Entry), b"\x01\x02\x03\x04\0\x01e\0\0\0\0\0\0\x05\x06");
        assert_eq!(record(RecordKind::Shipped), b"\x01\x02\x03\x04\0\x01s\0\0\0\0\0\0\x05\x06");
        for (mark, tag) in [
            (LogMark::Vote, b'v'),
            (LogMark::Committed, b'c'),
            (LogMark::Purged, b'p'),
            (LogMark::Left, b'l'),
        ] {
            assert_eq!(mark_key(group, mark), [1, 2, 3, 4, 0, 1, tag], "{mark:?}");
        }
    }
}
