//! Keys of a shard's queues: messages under their due times, dead letters, totals.

use bytes::Buf;
use meridian_types::{DatabaseId, MessageId};

use super::state::prefix_end;

const TOTALS_PREFIX: &[u8] = b"mq";

/// A message's row, behind all that are due earlier, or at the same time and were enqueued earlier.
pub fn message_key(database: DatabaseId, due_ms: u64, id: MessageId) -> Vec<u8> {
    [b"q".as_slice(), &database.0, &due_ms.to_be_bytes(), &id.to_bytes()].concat()
}

/// The database, due time and id of a message's key; `None` if it is not one.
pub fn parse_message_key(key: &[u8]) -> Option<(DatabaseId, u64, MessageId)> {
    let (database, mut rest) = key.strip_prefix(b"q")?.split_first_chunk()?;
    let due_ms = rest.try_get_u64().ok()?;
    Some((DatabaseId(*database), due_ms, MessageId::from_slice(rest)?))
}

/// All keys of a database's messages: from the first (inclusive) to the second (exclusive).
pub fn messages_range(database: DatabaseId) -> (Vec<u8>, Vec<u8>) {
    let prefix = [b"q".as_slice(), &database.0].concat();
    (prefix.clone(), prefix_end(prefix))
}

/// The first key behind all messages of a database that are due at `until_ms` or before.
pub fn messages_bound(database: DatabaseId, until_ms: u64) -> Vec<u8> {
    let prefix = [b"q".as_slice(), &database.0, &until_ms.to_be_bytes()].concat();
    prefix_end(prefix)
}

/// Dead letters lie in the order in which they died.
pub fn dead_letter_key(database: DatabaseId, number: u64) -> Vec<u8> {
    [b"u".as_slice(), &database.0, &number.to_be_bytes()].concat()
}

/// The number of a dead letter's key; `None` if it is not one.
pub fn parse_dead_letter_key(key: &[u8]) -> Option<u64> {
    let (_, number) = key.strip_prefix(b"u")?.split_first_chunk::<{ DatabaseId::LEN }>()?;
    number.try_into().ok().map(u64::from_be_bytes)
}

/// As [`messages_range`], of dead letters.
pub fn dead_letters_range(database: DatabaseId) -> (Vec<u8>, Vec<u8>) {
    let prefix = [b"u".as_slice(), &database.0].concat();
    (prefix.clone(), prefix_end(prefix))
}

pub fn queue_totals_key(database: DatabaseId) -> Vec<u8> {
    [TOTALS_PREFIX, &database.0].concat()
}

/// The database of a key of [`queue_totals_key`].
pub fn parse_queue_totals_key(key: &[u8]) -> Option<DatabaseId> {
    key.strip_prefix(TOTALS_PREFIX)?.try_into().ok().map(DatabaseId)
}

/// All such keys behind that of a database, or all.
pub fn queue_totals_range(after: Option<DatabaseId>) -> (Vec<u8>, Vec<u8>) {
    let start = after.map_or(TOTALS_PREFIX.to_vec(), |after| prefix_end(queue_totals_key(after)));
    (start, prefix_end(TOTALS_PREFIX.to_vec()))
}

#[cfg(test)]
mod tests {
    use meridian_types::Versionstamp;

    use super::*;

    const DATABASE: DatabaseId = DatabaseId([0xdd; 16]);
    const ID: MessageId =
        MessageId { enqueued: Versionstamp([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), index: 0x0b0c };

    #[test]
    fn keys_of_queues_are_golden() {
        let dd = [0xdd; 16];
        let key = message_key(DATABASE, 258, ID);
        let id = b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c";
        assert_eq!(key, [b"q".as_slice(), &dd, b"\0\0\0\0\0\0\x01\x02", id].concat());
        assert_eq!(parse_message_key(&key), Some((DATABASE, 258, ID)));
        assert_eq!(parse_message_key(&key[..key.len() - 1]), None);
        assert!(key < messages_bound(DATABASE, 258) && key > messages_bound(DATABASE, 257));
        let (start, end) = messages_range(DATABASE);
        assert_eq!(start, [b"q".as_slice(), &dd].concat());
        assert_eq!(end, [b"q".as_slice(), &dd[..15], &[0xde]].concat());
        assert_eq!(messages_bound(DATABASE, u64::MAX), end);
        assert_eq!(messages_range(DatabaseId([0xff; 16])).1, b"r");

        let key = dead_letter_key(DATABASE, 258);
        assert_eq!(key, [b"u".as_slice(), &dd, b"\0\0\0\0\0\0\x01\x02"].concat());
        assert_eq!(parse_dead_letter_key(&key), Some(258));
        assert_eq!(parse_dead_letter_key(b"u"), None);
        let (start, end) = dead_letters_range(DATABASE);
        assert_eq!(start, [b"u".as_slice(), &dd].concat());
        assert_eq!(end, [b"u".as_slice(), &dd[..15], &[0xde]].concat());

        let key = queue_totals_key(DATABASE);
        assert_eq!(key, [b"mq".as_slice(), &dd].concat());
        assert_eq!(parse_queue_totals_key(&key), Some(DATABASE));
        assert_eq!(queue_totals_range(None), (b"mq".to_vec(), b"mr".to_vec()));
        let (start, _) = queue_totals_range(Some(DATABASE));
        assert_eq!(start, [b"mq".as_slice(), &dd[..15], &[0xde]].concat());
        assert_eq!(queue_totals_range(Some(DatabaseId([0xff; 16]))).0, b"mr");
    }

    #[test]
    fn messages_lie_by_due_time_and_then_in_the_order_of_commits() {
        let later = MessageId { enqueued: Versionstamp([2; 10]), index: 0 };
        let rows = [(1, later), (255, ID), (255, later), (256, ID), (u64::MAX, ID)];
        assert!(rows.map(|(due_ms, id)| message_key(DATABASE, due_ms, id)).is_sorted());
    }
}
