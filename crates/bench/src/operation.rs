//! What a worker sends, and what of its answers is a success.

use bytes::Bytes;
use meridian_proto::kv_connect::{AtomicWriteOutput, AtomicWriteStatus, SnapshotReadOutput, SnapshotReadStatus};
use prost::Message;

use crate::bodies::{ReadBodies, WriteBodies};
use crate::error::BenchError;
use crate::random::Random;

#[derive(Debug, Clone)]
pub enum Requests {
    Write(WriteBodies),
    Read { bodies: ReadBodies, strong: bool },
}

impl Requests {
    pub fn next(&mut self, random: &mut Random) -> Bytes {
        match self {
            Self::Write(bodies) => bodies.next(random),
            Self::Read { bodies, .. } => bodies.next(random),
        }
    }

    /// An error unless `answer` is a success of the last request.
    pub fn check(&self, answer: Bytes) -> Result<(), BenchError> {
        match self {
            Self::Write(_) => written(answer).map(drop),
            Self::Read { strong, .. } => read(answer, *strong).map(drop),
        }
    }
}

/// The versionstamp of a successful atomic write.
pub fn written(answer: Bytes) -> Result<Bytes, BenchError> {
    let output = AtomicWriteOutput::decode(answer)?;
    if output.status() != AtomicWriteStatus::AwSuccess {
        return Err(BenchError::Unsuccessful(format!("the write answered {}", output.status().as_str_name())));
    }
    Ok(output.versionstamp)
}

/// The versionstamp of the one entry read. Absence is an error: the key space was loaded.
pub fn read(answer: Bytes, strong: bool) -> Result<Bytes, BenchError> {
    let absent = || BenchError::Unsuccessful("a key of the key space is absent".into());
    read_if_there(answer, strong)?.ok_or_else(absent)
}

/// The versionstamp of the one entry read. `None`: there is none.
pub fn read_if_there(answer: Bytes, strong: bool) -> Result<Option<Bytes>, BenchError> {
    let output = SnapshotReadOutput::decode(answer)?;
    // Version 1 and 2 servers leave the status unspecified.
    if output.read_disabled || output.status() == SnapshotReadStatus::SrReadDisabled {
        return Err(BenchError::Unsuccessful("the read answered SR_READ_DISABLED".into()));
    }
    if strong && !output.read_is_strongly_consistent {
        return Err(BenchError::Unsuccessful("a strong read was answered by an eventual one".into()));
    }
    let entry = output.ranges.into_iter().next().and_then(|range| range.values.into_iter().next());
    Ok(entry.map(|entry| entry.versionstamp))
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

        for status in
            [AtomicWriteStatus::AwSuccess, AtomicWriteStatus::AwCheckFailure, AtomicWriteStatus::AwWriteDisabled]
        {
            let output = AtomicWriteOutput { status: status.into(), ..AtomicWriteOutput::default() };
            let answer = written(output.encode_to_vec().into());
            assert_eq!(answer.is_ok(), status == AtomicWriteStatus::AwSuccess);
        }
        assert!(written(Bytes::new()).is_err());
    }
}
