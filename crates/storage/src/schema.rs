//! Everything that is stored, and where: the column families, the keys in them, and the values of
//! state. Each key layout has a golden test below; numbers in keys are big-endian, so that they
//! sort.
//!
//! | family | key | value |
//! |---|---|---|
//! | `log` | group ‖ `e` ‖ index | Raft entry, as a record |
//! | `log` | group ‖ `s` ‖ sequence | shipped batch, as a record |
//! | `log` | group ‖ `v`, `c`, `p` | vote, committed and purged log id, as records |
//! | `meta` | `state` ‖ shard | name of the state family in use |
//! | `meta` | `reclaimed` ‖ shard ‖ database | name of the state family that was compacted after the database was dropped |
//! | `state-<shard>-<generation>` | `d` ‖ database ‖ user key | versionstamp ‖ encoding ‖ expiry ‖ data |
//! | | `x` ‖ expiry ‖ database ‖ user key | versionstamp (a stale one is ignored and swept) |
//! | | `m` ‖ `applied` | `meridian.log.v1.Applied` |
//! | | `m` ‖ `r` ‖ request id | `meridian.log.v1.RequestRow` |
//! | | `m` ‖ `d` ‖ database | versionstamp of the transaction that dropped the database |
//!
//! A group is shard (4 bytes) ‖ epoch (2); no Raft group has epoch 0. A record is crc32c (4 bytes,
//! little-endian) ‖ payload.

use bytes::{Buf, Bytes};
use meridian_proto::decode_request;
use meridian_types::{DatabaseId, RequestId, ShardId, Value, ValueEncoding, Versionstamp};

use crate::StorageError;

pub const LOG_FAMILY: &str = "log";
pub const META_FAMILY: &str = "meta";
const STATE_PREFIX: &str = "state-";

pub const APPLIED_KEY: &[u8] = b"mapplied";
const REQUEST_PREFIX: &[u8] = b"mr";
const DROPPED_PREFIX: &[u8] = b"md";

/// A shard's state lives in one generation at a time; installing a snapshot makes the next.
pub fn state_family(shard: ShardId, generation: u64) -> String {
    format!("{STATE_PREFIX}{shard}-{generation}")
}

/// The shard and generation of a state family's name; `None` for other families.
pub fn parse_state_family(family: &str) -> Option<(ShardId, u64)> {
    let (shard, generation) = family.strip_prefix(STATE_PREFIX)?.split_once('-')?;
    Some((ShardId(shard.parse().ok()?), generation.parse().ok()?))
}

/// Where `meta` names the state family in use for a shard.
pub fn current_family_key(shard: ShardId) -> Vec<u8> {
    [b"state".as_slice(), &shard.0.to_be_bytes()].concat()
}

pub fn data_key(database: DatabaseId, key: &[u8]) -> Vec<u8> {
    [b"d".as_slice(), &database.0, key].concat()
}

/// The user key of a data key.
pub fn user_key(data_key: &[u8]) -> &[u8] {
    data_key.get(1 + DatabaseId::LEN..).unwrap_or_default()
}

pub fn expiry_key(expire_at_ms: u64, database: DatabaseId, key: &[u8]) -> Vec<u8> {
    [b"x".as_slice(), &expire_at_ms.to_be_bytes(), &database.0, key].concat()
}

/// The first expiry key behind those that expire at `now_ms` or before.
pub fn expiry_bound(now_ms: u64) -> Vec<u8> {
    [b"x".as_slice(), &now_ms.saturating_add(1).to_be_bytes()].concat()
}

/// The database and user key of an expiry key; `None` if it is not one.
pub fn parse_expiry_key(key: &[u8]) -> Option<(u64, DatabaseId, Bytes)> {
    let mut rest = key.strip_prefix(b"x")?;
    let expire_at_ms = rest.try_get_u64().ok()?;
    let (database, key) = rest.split_first_chunk::<16>()?;
    Some((expire_at_ms, DatabaseId(*database), Bytes::copy_from_slice(key)))
}

/// All data keys of a database: from the first (inclusive) to the second (exclusive).
pub fn data_range(database: DatabaseId) -> (Vec<u8>, Vec<u8>) {
    let start = data_key(database, &[]);
    let mut end = start.clone();
    // The prefix `d` is no 0xff: there is always a byte to raise.
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    (start, end)
}

/// The database of an expiry key; `None` if it is not one.
pub fn expiry_database(key: &[u8]) -> Option<DatabaseId> {
    let (_, rest) = key.strip_prefix(b"x")?.split_at_checked(size_of::<u64>())?;
    rest.first_chunk().copied().map(DatabaseId)
}

/// All expiry keys, as [`data_range`].
pub fn expiry_range() -> (Vec<u8>, Vec<u8>) {
    (b"x".to_vec(), b"y".to_vec())
}

/// Where it is remembered, for good, that a database was dropped.
pub fn dropped_key(database: DatabaseId) -> Vec<u8> {
    [DROPPED_PREFIX, &database.0].concat()
}

/// All such keys, as [`data_range`].
pub fn dropped_range() -> (Vec<u8>, Vec<u8>) {
    (DROPPED_PREFIX.to_vec(), b"me".to_vec())
}

/// The database of a key of [`dropped_key`].
pub fn parse_dropped_key(key: &[u8]) -> Option<DatabaseId> {
    key.strip_prefix(DROPPED_PREFIX)?.try_into().ok().map(DatabaseId)
}

/// Where `meta` remembers that the disk has got back what a dropped database took.
pub fn reclaimed_key(shard: ShardId, database: DatabaseId) -> Vec<u8> {
    [b"reclaimed".as_slice(), &shard.0.to_be_bytes(), &database.0].concat()
}

pub fn request_key(id: RequestId) -> Vec<u8> {
    [REQUEST_PREFIX, &id.0].concat()
}

/// Whether this is a request's row whose sequence lies at or before `horizon`.
pub fn is_forgettable_request(key: &[u8], value: &[u8], horizon: u64) -> bool {
    key.starts_with(REQUEST_PREFIX)
        && key.len() == REQUEST_PREFIX.len() + RequestId::LEN
        && decode_request(value).is_ok_and(|(stamp, _)| stamp.position().sequence <= horizon)
}

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

    const DATABASE: DatabaseId = DatabaseId([0xdd; 16]);

    #[test]
    fn keys_are_golden() {
        let dd = [0xdd; 16];
        assert_eq!(data_key(DATABASE, b"key"), [b"d".as_slice(), &dd, b"key"].concat());
        assert_eq!(user_key(&data_key(DATABASE, b"key")), b"key");
        let expiry = expiry_key(258, DATABASE, b"key");
        assert_eq!(expiry, [b"x\0\0\0\0\0\0\x01\x02".as_slice(), &dd, b"key"].concat());
        assert_eq!(parse_expiry_key(&expiry), Some((258, DATABASE, Bytes::from_static(b"key"))));
        assert!(expiry < expiry_bound(258) && expiry >= expiry_bound(257));
        assert_eq!(expiry_database(&expiry), Some(DATABASE));
        assert_eq!(data_range(DATABASE).0, [b"d".as_slice(), &dd].concat());
        assert_eq!(data_range(DATABASE).1, [b"d".as_slice(), &dd[..15], &[0xde]].concat());
        assert_eq!(data_range(DatabaseId([0xff; 16])).1, b"e");
        assert_eq!(dropped_key(DATABASE), [b"md".as_slice(), &dd].concat());
        assert_eq!(parse_dropped_key(&dropped_key(DATABASE)), Some(DATABASE));
        assert_eq!(
            reclaimed_key(ShardId(258), DATABASE),
            [b"reclaimed\0\0\x01\x02".as_slice(), &dd].concat()
        );
        assert_eq!(request_key(RequestId([7; 16])), [b"mr".as_slice(), &[7; 16]].concat());
        assert_eq!(state_family(ShardId(3), 4), "state-3-4");
        assert_eq!(parse_state_family("state-3-4"), Some((ShardId(3), 4)));
        assert_eq!(current_family_key(ShardId(258)), b"state\0\0\x01\x02");
    }

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

    #[test]
    fn only_old_requests_are_forgettable() {
        let key = request_key(RequestId([7; 16]));
        let stamp = Versionstamp::new(Position::new(Epoch(1), 10), 0);
        let row = meridian_proto::encode_request(stamp, None);
        assert!(is_forgettable_request(&key, &row, 10));
        assert!(!is_forgettable_request(&key, &row, 9));
        assert!(!is_forgettable_request(APPLIED_KEY, &row, 10));
        assert!(!is_forgettable_request(&data_key(DATABASE, b"k"), &row, 10));
    }
}
