//! Records of the `log` family: crc32c (4 bytes, little-endian) ‖ payload.

use bytes::Bytes;

use crate::StorageError;

pub(crate) fn encode(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(4 + payload.len());
    record.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    record.extend_from_slice(payload);
    record
}

/// The payload shares the memory of `record`.
///
/// # Errors
/// Corruption, naming `what`.
pub(crate) fn decode(record: Bytes, what: impl Fn() -> String) -> Result<Bytes, StorageError> {
    let Some((checksum, payload)) = record.split_first_chunk::<4>() else {
        return Err(StorageError::corruption(what(), "the record is shorter than its checksum"));
    };
    if crc32c::crc32c(payload) != u32::from_le_bytes(*checksum) {
        return Err(StorageError::corruption(what(), "the checksum does not match"));
    }
    Ok(record.slice(4..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_bytes_are_golden_and_damage_is_found() {
        let record = encode(b"123456789");
        assert_eq!(record, b"\x83\x92\x06\xe3123456789", "crc32c of the check string is e3069283");
        assert_eq!(decode(record.clone().into(), String::new).unwrap(), b"123456789".as_slice());
        for byte in 0..record.len() {
            let mut damaged = record.clone();
            damaged[byte] ^= 1;
            assert!(decode(damaged.into(), || "it".to_owned()).is_err());
        }
    }
}
