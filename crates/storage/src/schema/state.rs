//! Keys of a shard's state, and the names of the families that states lie in.

use bytes::{Buf, Bytes};
use meridian_proto::decode_request;
use meridian_types::{DatabaseId, RequestId, ShardId};

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

/// The first expiry key behind all keys that expire at `now_ms` or before.
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
    (start.clone(), prefix_end(start))
}

/// The first key behind all that begin with `prefix`. Keys of state begin with a letter, so there
/// is always a byte to raise.
pub(super) fn prefix_end(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < 0xff {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
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

pub fn request_key(id: RequestId) -> Vec<u8> {
    [REQUEST_PREFIX, &id.0].concat()
}

/// Whether this is a request's row whose sequence lies at or before `horizon`.
pub fn is_forgettable_request(key: &[u8], value: &[u8], horizon: u64) -> bool {
    key.starts_with(REQUEST_PREFIX)
        && key.len() == REQUEST_PREFIX.len() + RequestId::LEN
        && decode_request(value).is_ok_and(|(stamp, _)| stamp.position().sequence <= horizon)
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position, Versionstamp};

    use super::*;

    const DATABASE: DatabaseId = DatabaseId([0xdd; 16]);

    #[test]
    fn keys_of_state_are_golden() {
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
        assert_eq!(request_key(RequestId([7; 16])), [b"mr".as_slice(), &[7; 16]].concat());
        assert_eq!(state_family(ShardId(3), 4), "state-3-4");
        assert_eq!(parse_state_family("state-3-4"), Some((ShardId(3), 4)));
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
