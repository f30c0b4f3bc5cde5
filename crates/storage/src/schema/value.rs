//! Values of a state's data rows.

use bytes::{Buf, Bytes};
use meridian_types::{Value, ValueEncoding, Versionstamp};

use crate::StorageError;

/// A stored value. Layout: versionstamp (10 bytes) ‖ encoding (1) ‖ expiry (8, big-endian) ‖ data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    pub versionstamp: Versionstamp,
    /// Milliseconds since the Unix epoch; 0: never.
    pub expire_at_ms: u64,
    pub value: Value,
}

impl StoredValue {
    const HEADER_LEN: usize = Versionstamp::LEN + 1 + 8;

    pub fn encode(versionstamp: Versionstamp, expire_at_ms: u64, value: &Value) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::HEADER_LEN + value.data.len());
        bytes.extend_from_slice(&versionstamp.0);
        bytes.push(value.encoding.number());
        bytes.extend_from_slice(&expire_at_ms.to_be_bytes());
        bytes.extend_from_slice(&value.data);
        bytes
    }

    /// The data shares the memory of `bytes`.
    ///
    /// # Errors
    /// Corruption, when `bytes` are not a stored value.
    pub fn decode(bytes: Bytes) -> Result<Self, StorageError> {
        let (versionstamp, encoding, expire_at_ms) = Self::header(&bytes)?;
        Ok(Self {
            versionstamp,
            expire_at_ms,
            value: Value { encoding, data: bytes.slice(Self::HEADER_LEN..) },
        })
    }

    /// The data, without what [`StoredValue::header`] returns.
    pub fn data(bytes: &[u8]) -> &[u8] {
        bytes.get(Self::HEADER_LEN..).unwrap_or_default()
    }

    /// Versionstamp, encoding and expiry, without the data.
    pub fn header(mut bytes: &[u8]) -> Result<(Versionstamp, ValueEncoding, u64), StorageError> {
        let corrupt = || StorageError::corruption("a stored value", "its header is malformed");
        let stamp = bytes
            .split_off(..Versionstamp::LEN)
            .and_then(Versionstamp::from_slice)
            .ok_or_else(corrupt)?;
        let encoding =
            bytes.try_get_u8().ok().and_then(|number| ValueEncoding::from_number(number.into()));
        let encoding = encoding.ok_or_else(corrupt)?;
        let expire_at_ms = bytes.try_get_u64().map_err(|_| corrupt())?;
        Ok((stamp, encoding, expire_at_ms))
    }
}

/// Whether a value with this expiry is gone at `now_ms`.
pub fn is_expired(expire_at_ms: u64, now_ms: u64) -> bool {
    expire_at_ms != 0 && expire_at_ms <= now_ms
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position};

    use super::*;

    #[test]
    fn stored_value_bytes_are_golden() {
        let stamp = Versionstamp::new(Position::new(Epoch(1), 2), 3);
        let value = Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(b"data") };
        let bytes = StoredValue::encode(stamp, 0x0102, &value);
        assert_eq!(bytes, b"\0\x01\0\0\0\0\0\x02\0\x03\x03\0\0\0\0\0\0\x01\x02data");
        let decoded = StoredValue::decode(bytes.into()).unwrap();
        assert_eq!(decoded, StoredValue { versionstamp: stamp, expire_at_ms: 0x0102, value });
        assert!(StoredValue::decode(Bytes::from_static(b"short")).is_err());
    }
}
