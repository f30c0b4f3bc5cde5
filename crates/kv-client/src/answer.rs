//! Which answers are successes, and what they hold.

use bytes::Bytes;
use meridian_proto::kv_connect::{
    AtomicWriteOutput, AtomicWriteStatus, KvEntry, SnapshotReadOutput, SnapshotReadStatus,
};
use prost::Message;

use crate::error::ClientError;

/// The versionstamp of a successful atomic write.
pub fn written(answer: Bytes) -> Result<Bytes, ClientError> {
    let output = AtomicWriteOutput::decode(answer)?;
    if output.status() != AtomicWriteStatus::AwSuccess {
        return Err(ClientError::Unsuccessful(format!(
            "the write answered {}",
            output.status().as_str_name()
        )));
    }
    Ok(output.versionstamp)
}

/// Whether the checks of an atomic write held.
pub fn committed(answer: Bytes) -> Result<bool, ClientError> {
    let output = AtomicWriteOutput::decode(answer.clone())?;
    if output.status() == AtomicWriteStatus::AwCheckFailure {
        Ok(false)
    } else {
        written(answer).map(|_| true)
    }
}

/// The versionstamp of the only entry read. Absence is an error: the key space was loaded.
pub fn read(answer: Bytes, strong: bool) -> Result<Bytes, ClientError> {
    let absent = || ClientError::Unsuccessful("a key of the key space is absent".into());
    read_if_there(answer, strong)?.ok_or_else(absent)
}

/// The versionstamp of the only entry read. `None`: the key is absent.
pub fn read_if_there(answer: Bytes, strong: bool) -> Result<Option<Bytes>, ClientError> {
    Ok(entries(answer, strong)?.into_iter().next().map(|entry| entry.versionstamp))
}

/// The entries of the only range read.
pub fn entries(answer: Bytes, strong: bool) -> Result<Vec<KvEntry>, ClientError> {
    let output = SnapshotReadOutput::decode(answer)?;
    // Version 1 and 2 servers leave the status unspecified.
    if output.read_disabled || output.status() == SnapshotReadStatus::SrReadDisabled {
        return Err(ClientError::Unsuccessful("the read answered SR_READ_DISABLED".into()));
    }
    if strong && !output.read_is_strongly_consistent {
        return Err(ClientError::Unsuccessful(
            "a strong read was answered by an eventual one".into(),
        ));
    }
    Ok(output.ranges.into_iter().next().map(|range| range.values).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use meridian_proto::kv_connect::ReadRangeOutput;

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
}
