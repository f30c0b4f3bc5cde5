//! Places in a queue as storage names them: reads begin behind one.

use meridian_queue::MessageKey;
use meridian_types::MessageId;

/// Both parts of a key, in its order.
type Bytes = [u8; 8 + MessageId::LEN];

fn bytes(key: MessageKey) -> Bytes {
    let mut bytes = [0; 8 + MessageId::LEN];
    let (due, id) = bytes.split_at_mut(8);
    due.copy_from_slice(&key.due_ms.to_be_bytes());
    id.copy_from_slice(&key.id.to_bytes());
    bytes
}

fn key(bytes: Bytes) -> Option<MessageKey> {
    let (due, id) = bytes.split_first_chunk::<8>()?;
    Some(MessageKey { due_ms: u64::from_be_bytes(*due), id: MessageId::from_slice(id)? })
}

/// The place right before a key. `None`: it is the first of all.
pub(super) fn before(from: MessageKey) -> Option<MessageKey> {
    let mut place = bytes(from);
    for byte in place.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return key(place);
        }
    }
    None
}

/// The place right behind a key. `None`: it is the last of all.
pub(super) fn behind(last: MessageKey) -> Option<MessageKey> {
    let mut place = bytes(last);
    for byte in place.iter_mut().rev() {
        let (more, carries) = byte.overflowing_add(1);
        *byte = more;
        if !carries {
            return key(place);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use meridian_types::Versionstamp;

    use super::*;

    #[test]
    fn places_before_and_behind_a_key_are_its_neighbours() {
        let key = |due_ms, stamp, index| MessageKey {
            due_ms,
            id: MessageId { enqueued: Versionstamp([stamp; 10]), index },
        };
        assert_eq!(before(MessageKey::FIRST), None);
        assert_eq!(behind(key(u64::MAX, 255, u16::MAX)), None);
        for (lower, higher) in [
            (key(5, 1, 7), key(5, 1, 8)),
            (key(5, 255, u16::MAX), key(6, 0, 0)),
            (key(255, 255, u16::MAX), key(256, 0, 0)),
        ] {
            assert_eq!((behind(lower), before(higher)), (Some(higher), Some(lower)));
        }
    }
}
