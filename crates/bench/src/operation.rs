//! Requests of workers, and the conditions of success of their answers.

use bytes::Bytes;
use meridian_kv_client::answer::{entries, written};

use crate::bodies::{ReadBodies, WriteBodies};
use crate::error::BenchError;
use crate::etcd;
use crate::key_space::KeySpace;
use crate::random::Random;
use crate::value::ValueKind;

/// The operations that are one request each.
#[derive(Debug, Clone)]
pub struct Requests {
    pub bodies: Bodies,
    pub expected: Expected,
}

#[derive(Debug, Clone)]
pub enum Bodies {
    Write(WriteBodies),
    EtcdPut { keys: KeySpace, value_bytes: usize, kind: ValueKind },
    Read(ReadBodies),
    Same(Bytes),
}

/// The condition under which an answer is a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Written,
    /// So many entries, from a read that says it is strong if it must be.
    Entries {
        count: usize,
        strong: bool,
    },
    EtcdWritten,
    EtcdEntries(usize),
}

impl Requests {
    pub fn next(&mut self, random: &mut Random) -> Bytes {
        match &mut self.bodies {
            Bodies::Write(bodies) => bodies.next(random),
            Bodies::EtcdPut { keys, value_bytes, kind } => etcd::put_body(
                keys.key(random.below(keys.count())),
                kind.bytes(random, *value_bytes),
            ),
            Bodies::Read(bodies) => bodies.next(random),
            Bodies::Same(body) => body.clone(),
        }
    }
}

impl Expected {
    /// An error unless `answer` is a success.
    pub fn check(self, answer: Bytes) -> Result<(), BenchError> {
        match self {
            Self::Written => Ok(written(answer).map(drop)?),
            Self::Entries { count, strong } => all_there(entries(answer, strong)?.len(), count),
            Self::EtcdWritten => etcd::written(answer),
            Self::EtcdEntries(count) => all_there(etcd::entries(answer)?.len(), count),
        }
    }
}

/// Absence is an error: the key space was loaded.
fn all_there(found: usize, expected: usize) -> Result<(), BenchError> {
    match (found, expected) {
        (0, 1) => Err(BenchError::Unsuccessful("a key of the key space is absent".into())),
        _ if found != expected => Err(BenchError::Unsuccessful(format!(
            "the answer has {found} entries and not {expected}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use meridian_proto::kv_connect::{
        KvEntry, ReadRangeOutput, SnapshotReadOutput, SnapshotReadStatus,
    };
    use prost::Message;

    use super::*;

    fn read_answer(strong: bool, entries: usize, status: SnapshotReadStatus) -> Bytes {
        let output = SnapshotReadOutput {
            ranges: vec![ReadRangeOutput { values: vec![KvEntry::default(); entries] }],
            read_disabled: false,
            read_is_strongly_consistent: strong,
            status: status.into(),
        };
        output.encode_to_vec().into()
    }

    #[test]
    fn a_range_with_an_entry_too_few_is_no_success() {
        let answer = |entries| read_answer(true, entries, SnapshotReadStatus::SrSuccess);
        let range = Expected::Entries { count: 100, strong: true };
        assert!(range.check(answer(100)).is_ok());
        let error = range.check(answer(99)).unwrap_err().to_string();
        assert_eq!(error, "the answer has 99 entries and not 100");
        assert!(range.check(read_answer(false, 100, SnapshotReadStatus::SrSuccess)).is_err());
        let one = Expected::Entries { count: 1, strong: true };
        assert_eq!(
            one.check(answer(0)).unwrap_err().to_string(),
            "a key of the key space is absent"
        );
    }
}
