//! Requests of workers, and the conditions of success of their answers.

use bytes::Bytes;
use meridian_proto::kv_connect::{
    AtomicWriteOutput, AtomicWriteStatus, KvEntry, SnapshotReadOutput, SnapshotReadStatus,
};
use prost::Message;

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
            Self::Written => written(answer).map(drop),
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

/// The versionstamp of a successful atomic write.
pub fn written(answer: Bytes) -> Result<Bytes, BenchError> {
    let output = AtomicWriteOutput::decode(answer)?;
    if output.status() != AtomicWriteStatus::AwSuccess {
        return Err(BenchError::Unsuccessful(format!(
            "the write answered {}",
            output.status().as_str_name()
        )));
    }
    Ok(output.versionstamp)
}

/// Whether the checks of an atomic write held.
pub fn committed(answer: Bytes) -> Result<bool, BenchError> {
    let output = AtomicWriteOutput::decode(answer.clone())?;
    if output.status() == AtomicWriteStatus::AwCheckFailure {
        Ok(false)
    } else {
        written(answer).map(|_| true)
    }
}

/// The versionstamp of the only entry read. Absence is an error: the key space was loaded.
pub fn read(answer: Bytes, strong: bool) -> Result<Bytes, BenchError> {
    let absent = || BenchError::Unsuccessful("a key of the key space is absent".into());
    read_if_there(answer, strong)?.ok_or_else(absent)
}

/// The versionstamp of the only entry read. `None`: the key is absent.
pub fn read_if_there(answer: Bytes, strong: bool) -> Result<Option<Bytes>, BenchError> {
    Ok(entries(answer, strong)?.into_iter().next().map(|entry| entry.versionstamp))
}

/// The entries of the only range read.
pub fn entries(answer: Bytes, strong: bool) -> Result<Vec<KvEntry>, BenchError> {
    let output = SnapshotReadOutput::decode(answer)?;
    // Version 1 and 2 servers leave the status unspecified.
    if output.read_disabled || output.status() == SnapshotReadStatus::SrReadDisabled {
        return Err(BenchError::Unsuccessful("the read answered SR_READ_DISABLED".into()));
    }
    if strong && !output.read_is_strongly_consistent {
        return Err(BenchError::Unsuccessful(
            "a strong read was answered by an eventual one".into(),
        ));
    }
    Ok(output.ranges.into_iter().next().map(|range| range.values).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proto::kv_connect::{KvEntry, ReadRangeOutput};

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
    fn only_successes_are_successes() {
        let success = SnapshotReadStatus::SrSuccess;
        assert!(read(read_answer(true, 1, success), true).is_ok());
        assert!(read(read_answer(false, 1, success), false).is_ok());
        assert!(read(read_answer(true, 1, SnapshotReadStatus::SrUnspecified), true).is_ok());
        assert!(read(read_answer(false, 1, success), true).is_err());
        assert!(read(read_answer(true, 0, success), true).is_err());
        assert!(matches!(read_if_there(read_answer(true, 0, success), true), Ok(None)));
        assert!(read(read_answer(true, 1, SnapshotReadStatus::SrReadDisabled), true).is_err());
        assert!(read(Bytes::new(), false).is_err());
        assert!(read(Bytes::from_static(b"\xff"), false).is_err());

        for status in [
            AtomicWriteStatus::AwSuccess,
            AtomicWriteStatus::AwCheckFailure,
            AtomicWriteStatus::AwWriteDisabled,
        ] {
            let output =
                AtomicWriteOutput { status: status.into(), ..AtomicWriteOutput::default() };
            let answer: Bytes = output.encode_to_vec().into();
            assert_eq!(written(answer.clone()).is_ok(), status == AtomicWriteStatus::AwSuccess);
            match status {
                AtomicWriteStatus::AwSuccess => assert!(committed(answer).unwrap()),
                AtomicWriteStatus::AwCheckFailure => assert!(!committed(answer).unwrap()),
                _ => assert!(committed(answer).is_err()),
            }
        }
        assert!(written(Bytes::new()).is_err() && committed(Bytes::new()).is_err());
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
