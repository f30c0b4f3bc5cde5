//! Keys of a shard's queues: messages under their due times, dead letters, totals.

use bytes::Buf;
use meridian_types::{DatabaseId, MessageId, QueueId, QueueName};

use super::state::prefix_end;

const TOTALS_PREFIX: &[u8] = b"mq";
const NAMED_TOTALS_PREFIX: &[u8] = b"mn";
/// Messages of the unnamed queue, and of named ones.
const UNNAMED_PREFIX: &[u8] = b"q";
const NAMED_PREFIX: &[u8] = b"n";

/// The prefix of all messages of a queue, and of nothing else: a name stands behind its length.
fn messages_prefix(queue: &QueueId) -> Vec<u8> {
    let name = queue.name.as_str().as_bytes();
    match u8::try_from(name.len()) {
        Ok(0) => [UNNAMED_PREFIX, &queue.database.0].concat(),
        // A name has no more than 64 bytes.
        length => [NAMED_PREFIX, &queue.database.0, &[length.unwrap_or(u8::MAX)], name].concat(),
    }
}

/// A message's row, behind all that are due earlier, or at the same time and were enqueued earlier.
pub fn message_key(queue: &QueueId, due_ms: u64, id: MessageId) -> Vec<u8> {
    [&messages_prefix(queue)[..], &due_ms.to_be_bytes(), &id.to_bytes()].concat()
}

/// The queue, due time and id of a message's key; `None` if it is not one.
pub fn parse_message_key(key: &[u8]) -> Option<(QueueId, u64, MessageId)> {
    let (database, name, mut rest) = match key.strip_prefix(UNNAMED_PREFIX) {
        Some(rest) => {
            let (database, rest) = rest.split_first_chunk()?;
            (database, QueueName::default(), rest)
        }
        None => {
            let (database, rest) = key.strip_prefix(NAMED_PREFIX)?.split_first_chunk()?;
            let (length, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            (database, named(name)?, rest)
        }
    };
    let due_ms = rest.try_get_u64().ok()?;
    let queue = QueueId { database: DatabaseId(*database), name };
    Some((queue, due_ms, MessageId::from_slice(rest)?))
}

/// A name that is not empty.
fn named(name: &[u8]) -> Option<QueueName> {
    let name: QueueName = std::str::from_utf8(name).ok()?.parse().ok()?;
    (!name.is_default()).then_some(name)
}

/// All keys of a queue's messages: from the first (inclusive) to the second (exclusive).
pub fn messages_range(queue: &QueueId) -> (Vec<u8>, Vec<u8>) {
    let prefix = messages_prefix(queue);
    (prefix.clone(), prefix_end(prefix))
}

/// As [`messages_range`], of all named queues of a database.
pub fn named_messages_range(database: DatabaseId) -> (Vec<u8>, Vec<u8>) {
    let prefix = [NAMED_PREFIX, &database.0].concat();
    (prefix.clone(), prefix_end(prefix))
}

/// The first key behind all messages of a queue that are due at `until_ms` or before.
pub fn messages_bound(queue: &QueueId, until_ms: u64) -> Vec<u8> {
    prefix_end([&messages_prefix(queue)[..], &until_ms.to_be_bytes()].concat())
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

/// The undelivered messages of a named queue. By name, in a database.
pub fn named_totals_key(queue: &QueueId) -> Vec<u8> {
    [NAMED_TOTALS_PREFIX, &queue.database.0, queue.name.as_str().as_bytes()].concat()
}

/// The queue of a key of [`named_totals_key`].
pub fn parse_named_totals_key(key: &[u8]) -> Option<QueueId> {
    let (database, name) = key.strip_prefix(NAMED_TOTALS_PREFIX)?.split_first_chunk()?;
    Some(QueueId { database: DatabaseId(*database), name: named(name)? })
}

/// All such keys of a database.
pub fn named_totals_range(database: DatabaseId) -> (Vec<u8>, Vec<u8>) {
    let prefix = [NAMED_TOTALS_PREFIX, &database.0].concat();
    (prefix.clone(), prefix_end(prefix))
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
        let queue = QueueId::from(DATABASE);
        let key = message_key(&queue, 258, ID);
        let id = b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c";
        assert_eq!(key, [b"q".as_slice(), &dd, b"\0\0\0\0\0\0\x01\x02", id].concat());
        assert_eq!(parse_message_key(&key), Some((queue.clone(), 258, ID)));
        assert_eq!(parse_message_key(&key[..key.len() - 1]), None);
        assert!(key < messages_bound(&queue, 258) && key > messages_bound(&queue, 257));
        let (start, end) = messages_range(&queue);
        assert_eq!(start, [b"q".as_slice(), &dd].concat());
        assert_eq!(end, [b"q".as_slice(), &dd[..15], &[0xde]].concat());
        assert_eq!(messages_bound(&queue, u64::MAX), end);
        let last = QueueId::from(DatabaseId([0xff; 16]));
        assert_eq!(messages_range(&last).1, b"r");

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
        for queue in [QueueId::from(DATABASE), emails()] {
            assert!(rows.map(|(due_ms, id)| message_key(&queue, due_ms, id)).is_sorted());
        }
    }

    fn emails() -> QueueId {
        QueueId { database: DATABASE, name: "emails".parse().unwrap() }
    }

    #[test]
    fn keys_of_named_queues_are_golden() {
        let (queue, dd) = (emails(), [0xdd; 16]);
        let key = message_key(&queue, 258, ID);
        let id = b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c";
        let golden = [b"n".as_slice(), &dd, b"\x06emails\0\0\0\0\0\0\x01\x02", id].concat();
        assert_eq!(key, golden);
        assert_eq!(parse_message_key(&key), Some((queue.clone(), 258, ID)));
        assert_eq!(parse_message_key(&key[..key.len() - 1]), None);
        let nameless = [b"n".as_slice(), &dd, b"\0\0\0\0\0\0\0\x01\x02", id].concat();
        assert_eq!(parse_message_key(&nameless), None);
        assert!(key < messages_bound(&queue, 258) && key > messages_bound(&queue, 257));
        let (start, end) = messages_range(&queue);
        assert_eq!(start, [b"n".as_slice(), &dd, b"\x06emails"].concat());
        assert_eq!(end, [b"n".as_slice(), &dd, b"\x06emailt"].concat());
        let (start, end) = named_messages_range(DATABASE);
        assert_eq!(start, [b"n".as_slice(), &dd].concat());
        assert_eq!(end, [b"n".as_slice(), &dd[..15], &[0xde]].concat());

        let key = named_totals_key(&queue);
        assert_eq!(key, [b"mn".as_slice(), &dd, b"emails"].concat());
        assert_eq!(parse_named_totals_key(&key), Some(queue));
        assert_eq!(parse_named_totals_key(&[b"mn".as_slice(), &dd].concat()), None);
        let (start, end) = named_totals_range(DATABASE);
        assert_eq!(start, [b"mn".as_slice(), &dd].concat());
        assert_eq!(end, [b"mn".as_slice(), &dd[..15], &[0xde]].concat());
    }

    /// Of one name that begins with another, and of lengths that are bytes of names.
    #[test]
    fn rows_of_a_queue_are_no_other_queues() {
        let names = ["", "a", "aa", "ab", "b", "\u{e9}", &"n".repeat(64)];
        let queues = names.map(|name| QueueId { database: DATABASE, name: name.parse().unwrap() });
        for of in &queues {
            let (start, end) = messages_range(of);
            for other in &queues {
                for due_ms in [0, u64::from(b'a') << 56, u64::MAX] {
                    let key = message_key(other, due_ms, ID);
                    assert_eq!((&start..&end).contains(&&key), of == other, "{of:?} {other:?}");
                    assert_eq!(parse_message_key(&key), Some((other.clone(), due_ms, ID)));
                }
            }
        }
    }
}
