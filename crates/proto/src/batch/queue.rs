//! Effects on queues in a batch, and what is stored of messages, dead letters and totals.

use bytes::Bytes;
use meridian_types::{DeadLetter, Message, MessageId, QueueEffect, QueueName, QueueTotals};
use prost::Message as _;

use super::InvalidBatch;
use crate::log;
use crate::log::effect::Queue;

/// Whether a version without named queues would leave a part of it out.
pub(super) fn is_of_names(effect: &QueueEffect) -> bool {
    match effect {
        QueueEffect::PutMessage { queue, .. } | QueueEffect::DeleteMessage { queue, .. } => {
            !queue.is_default()
        }
        QueueEffect::PutDeadLetter { letter, .. } => !letter.queue.is_default(),
        QueueEffect::DeleteDeadLetter { .. } => false,
        QueueEffect::PutTotals(totals) => totals.named_undelivered > 0 || totals.names > 0,
        QueueEffect::PutNamedTotals { .. } => true,
    }
}

pub(super) fn effect_to_wire(effect: &QueueEffect) -> Queue {
    let row = |queue: &QueueName, id: &MessageId, due_ms: &u64, message| log::MessageRow {
        id: Bytes::copy_from_slice(&id.to_bytes()),
        due_ms: *due_ms,
        message,
        queue: queue.to_string(),
    };
    match effect {
        QueueEffect::PutMessage { queue, id, due_ms, message } => {
            Queue::PutMessage(row(queue, id, due_ms, Some(message_to_wire(message))))
        }
        QueueEffect::DeleteMessage { queue, id, due_ms } => {
            Queue::DeleteMessage(row(queue, id, due_ms, None))
        }
        QueueEffect::PutDeadLetter { number, letter } => {
            let letter = Some(dead_letter_to_wire(letter));
            Queue::PutDeadLetter(log::DeadLetterRow { number: *number, letter })
        }
        QueueEffect::DeleteDeadLetter { number } => Queue::DeleteDeadLetter(*number),
        QueueEffect::PutTotals(totals) => Queue::QueueTotals(totals_to_wire(*totals)),
        QueueEffect::PutNamedTotals { queue, undelivered } => {
            Queue::NamedTotals(log::NamedTotals {
                queue: queue.to_string(),
                undelivered: *undelivered,
            })
        }
    }
}

pub(super) fn effect(wire: Queue) -> Result<QueueEffect, InvalidBatch> {
    Ok(match wire {
        Queue::PutMessage(log::MessageRow { id, due_ms, message, queue }) => {
            let message = message.ok_or(InvalidBatch::Field("message"))?;
            let (queue, id) = (queue_name(&queue)?, message_id(&id)?);
            QueueEffect::PutMessage { queue, id, due_ms, message: self::message(message) }
        }
        Queue::DeleteMessage(log::MessageRow { id, due_ms, message: _, queue }) => {
            QueueEffect::DeleteMessage { queue: queue_name(&queue)?, id: message_id(&id)?, due_ms }
        }
        Queue::PutDeadLetter(log::DeadLetterRow { number, letter }) => {
            let letter = letter.ok_or(InvalidBatch::Field("letter"))?;
            QueueEffect::PutDeadLetter { number, letter: dead_letter(letter)? }
        }
        Queue::DeleteDeadLetter(number) => QueueEffect::DeleteDeadLetter { number },
        Queue::QueueTotals(wire) => QueueEffect::PutTotals(totals(wire)),
        Queue::NamedTotals(log::NamedTotals { queue, undelivered }) => {
            let queue = queue_name(&queue)?;
            if queue.is_default() {
                return Err(InvalidBatch::Field("queue"));
            }
            QueueEffect::PutNamedTotals { queue, undelivered }
        }
    })
}

fn queue_name(text: &str) -> Result<QueueName, InvalidBatch> {
    text.parse().map_err(|_| InvalidBatch::Field("queue"))
}

fn message_id(bytes: &[u8]) -> Result<MessageId, InvalidBatch> {
    MessageId::from_slice(bytes).ok_or(InvalidBatch::Field("id"))
}

fn message_to_wire(message: &Message) -> log::QueuedMessage {
    log::QueuedMessage {
        payload: message.payload.clone(),
        keys_if_undelivered: message.keys_if_undelivered.clone(),
        backoff_ms: message.backoff_ms.clone(),
        attempts: message.attempts,
        enqueued_ms: message.enqueued_ms,
    }
}

fn message(wire: log::QueuedMessage) -> Message {
    let log::QueuedMessage { payload, keys_if_undelivered, backoff_ms, attempts, enqueued_ms } =
        wire;
    Message { payload, keys_if_undelivered, backoff_ms, attempts, enqueued_ms }
}

fn dead_letter_to_wire(letter: &DeadLetter) -> log::DeadLetter {
    log::DeadLetter {
        id: Bytes::copy_from_slice(&letter.id.to_bytes()),
        payload: letter.payload.clone(),
        attempts: letter.attempts,
        enqueued_ms: letter.enqueued_ms,
        died_ms: letter.died_ms,
        queue: letter.queue.to_string(),
    }
}

fn dead_letter(wire: log::DeadLetter) -> Result<DeadLetter, InvalidBatch> {
    let log::DeadLetter { id, payload, attempts, enqueued_ms, died_ms, queue } = wire;
    let (queue, id) = (queue_name(&queue)?, message_id(&id)?);
    Ok(DeadLetter { queue, id, payload, attempts, enqueued_ms, died_ms })
}

fn totals_to_wire(totals: QueueTotals) -> log::QueueTotals {
    let QueueTotals { undelivered, named_undelivered, names, first_dead, next_dead, removed_dead } =
        totals;
    log::QueueTotals { undelivered, first_dead, next_dead, removed_dead, named_undelivered, names }
}

fn totals(wire: log::QueueTotals) -> QueueTotals {
    let log::QueueTotals {
        undelivered,
        first_dead,
        next_dead,
        removed_dead,
        named_undelivered,
        names,
    } = wire;
    QueueTotals { undelivered, named_undelivered, names, first_dead, next_dead, removed_dead }
}

/// The value of a message's row.
pub fn encode_message(message: &Message) -> Vec<u8> {
    message_to_wire(message).encode_to_vec()
}

/// The message of a stored row; payload and keys share the memory of `bytes`.
///
/// # Errors
/// [`InvalidBatch`].
pub fn decode_message(bytes: Bytes) -> Result<Message, InvalidBatch> {
    Ok(message(log::QueuedMessage::decode(bytes)?))
}

/// The value of a dead letter's row.
pub fn encode_dead_letter(letter: &DeadLetter) -> Vec<u8> {
    dead_letter_to_wire(letter).encode_to_vec()
}

/// The dead letter of a stored row; the payload shares the memory of `bytes`.
///
/// # Errors
/// [`InvalidBatch`], naming the field.
pub fn decode_dead_letter(bytes: Bytes) -> Result<DeadLetter, InvalidBatch> {
    dead_letter(log::DeadLetter::decode(bytes)?)
}

/// The value of the row with a queue's totals.
pub fn encode_queue_totals(totals: QueueTotals) -> Vec<u8> {
    totals_to_wire(totals).encode_to_vec()
}

/// # Errors
/// [`InvalidBatch`].
pub fn decode_queue_totals(bytes: &[u8]) -> Result<QueueTotals, InvalidBatch> {
    Ok(totals(log::QueueTotals::decode(bytes)?))
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, RequestId, Versionstamp,
    };

    use super::*;
    use crate::{decode_batch, encode_batch};

    fn id() -> MessageId {
        MessageId { enqueued: Versionstamp([1; 10]), index: 0x0203 }
    }

    fn batch(effects: Vec<QueueEffect>) -> Batch {
        let effects = effects.into_iter().map(Effect::Queue).collect();
        let (request_id, database) = (RequestId([1; 16]), DatabaseId([2; 16]));
        let transaction = CommittedTransaction { request_id, database, effects, refusal: None };
        Batch {
            position: Position::new(Epoch(2), 300),
            time_ms: 1,
            transactions: vec![transaction],
        }
    }

    fn sample() -> (Message, DeadLetter) {
        let message = Message {
            payload: Bytes::from_static(b"pay"),
            keys_if_undelivered: vec![Bytes::from_static(b"k"), Bytes::from_static(b"l")],
            backoff_ms: vec![100, 0],
            attempts: 2,
            enqueued_ms: 300,
        };
        let (queue, payload) = (QueueName::default(), message.payload.clone());
        let letter =
            DeadLetter { queue, id: id(), payload, attempts: 3, enqueued_ms: 300, died_ms: 301 };
        (message, letter)
    }

    #[test]
    fn effects_on_queues_and_their_format_are_golden() {
        let (message, letter) = sample();
        let id_field = b"\x0a\x0c\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x02\x03";
        let queued = b"\x0a\x03pay\x12\x01k\x12\x01l\x1a\x02\x64\x00\x20\x02\x28\xac\x02";
        let dead = [id_field.as_slice(), b"\x12\x03pay\x18\x03\x20\xac\x02\x28\xad\x02"].concat();
        let (queue, none) = (QueueName::default(), QueueTotals::default());
        let totals = QueueTotals { undelivered: 5, first_dead: 6, next_dead: 300, ..none };
        let removed = QueueTotals { removed_dead: 4, ..totals };
        let cases = [
            (
                QueueEffect::PutMessage {
                    queue: queue.clone(),
                    id: id(),
                    due_ms: 9,
                    message: message.clone(),
                },
                [b"\x1a\x28\x32\x26".as_slice(), id_field, b"\x10\x09\x1a\x14", queued].concat(),
            ),
            (
                QueueEffect::DeleteMessage { queue, id: id(), due_ms: 9 },
                [b"\x1a\x12\x3a\x10".as_slice(), id_field, b"\x10\x09"].concat(),
            ),
            (
                QueueEffect::PutDeadLetter { number: 7, letter: letter.clone() },
                [b"\x1a\x21\x42\x1f\x08\x07\x12\x1b", dead.as_slice()].concat(),
            ),
            (QueueEffect::DeleteDeadLetter { number: 0 }, b"\x1a\x02\x48\x00".to_vec()),
            (
                QueueEffect::PutTotals(totals),
                b"\x1a\x09\x52\x07\x08\x05\x10\x06\x18\xac\x02".to_vec(),
            ),
            (
                QueueEffect::PutTotals(removed),
                b"\x1a\x0b\x52\x09\x08\x05\x10\x06\x18\xac\x02\x20\x04".to_vec(),
            ),
        ];
        for (effect, golden) in cases {
            let format = if effect == QueueEffect::PutTotals(removed) { 3 } else { 2 };
            let batch = batch(vec![effect]);
            let encoded = encode_batch(&batch);
            // The format and the checksum.
            let (body, end) = encoded.split_at(encoded.len() - 7);
            assert!(body.ends_with(&golden), "{batch:?}: {}", body.escape_ascii());
            assert!(end.starts_with(&[0x70, format, 0x7d]), "{}", end.escape_ascii());
            assert_eq!(decode_batch(encoded).unwrap(), batch);
        }
        assert_eq!(encode_message(&message), queued);
        assert_eq!(decode_message(queued.as_slice().into()).unwrap(), message);
        assert_eq!(encode_dead_letter(&letter), dead);
        assert_eq!(decode_dead_letter(dead.into()).unwrap(), letter);
        assert_eq!(encode_queue_totals(totals), b"\x08\x05\x10\x06\x18\xac\x02");
        assert_eq!(decode_queue_totals(b"\x08\x05\x10\x06\x18\xac\x02").unwrap(), totals);
    }

    #[test]
    fn effects_on_named_queues_and_their_format_are_golden() {
        let (message, letter) = sample();
        let queue: QueueName = "emails".parse().unwrap();
        let id_field = b"\x0a\x0c\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x02\x03";
        let queued = b"\x0a\x03pay\x12\x01k\x12\x01l\x1a\x02\x64\x00\x20\x02\x28\xac\x02";
        let dead =
            [id_field.as_slice(), b"\x12\x03pay\x18\x03\x20\xac\x02\x28\xad\x02\x32\x06emails"]
                .concat();
        let letter = DeadLetter { queue: queue.clone(), ..letter };
        let totals = QueueTotals { named_undelivered: 300, names: 2, ..QueueTotals::default() };
        let named = b"\x22\x06emails";
        let put = QueueEffect::PutMessage { queue: queue.clone(), id: id(), due_ms: 9, message };
        let cases = [
            (
                put,
                [b"\x1a\x30\x32\x2e".as_slice(), id_field, b"\x10\x09\x1a\x14", queued, named]
                    .concat(),
            ),
            (
                QueueEffect::DeleteMessage { queue: queue.clone(), id: id(), due_ms: 9 },
                [b"\x1a\x1a\x3a\x18".as_slice(), id_field, b"\x10\x09", named].concat(),
            ),
            (
                QueueEffect::PutDeadLetter { number: 7, letter: letter.clone() },
                [b"\x1a\x29\x42\x27\x08\x07\x12\x23", dead.as_slice()].concat(),
            ),
            (QueueEffect::PutTotals(totals), b"\x1a\x07\x52\x05\x28\xac\x02\x30\x02".to_vec()),
            (
                QueueEffect::PutNamedTotals { queue: queue.clone(), undelivered: 3 },
                b"\x1a\x0c\x5a\x0a\x0a\x06emails\x10\x03".to_vec(),
            ),
            (
                QueueEffect::PutNamedTotals { queue, undelivered: 0 },
                b"\x1a\x0a\x5a\x08\x0a\x06emails".to_vec(),
            ),
        ];
        for (effect, golden) in cases {
            let batch = batch(vec![effect]);
            let encoded = encode_batch(&batch);
            let (body, end) = encoded.split_at(encoded.len() - 7);
            assert!(body.ends_with(&golden), "{batch:?}: {}", body.escape_ascii());
            assert!(end.starts_with(&[0x70, 4, 0x7d]), "{}", end.escape_ascii());
            assert_eq!(decode_batch(encoded).unwrap(), batch);
        }
        assert_eq!(encode_dead_letter(&letter), dead);
        assert_eq!(decode_dead_letter(dead.into()).unwrap(), letter);
        assert_eq!(encode_queue_totals(totals), b"\x28\xac\x02\x30\x02");
        assert_eq!(decode_queue_totals(b"\x28\xac\x02\x30\x02").unwrap(), totals);
    }

    /// Batches end by these sizes, so that none is too large to be sent.
    #[test]
    fn encoded_effects_on_queues_are_no_larger_than_their_sizes() {
        let message = Message {
            payload: vec![7; 65_536].into(),
            keys_if_undelivered: vec![vec![7; 2048].into(); 10],
            backoff_ms: vec![u32::MAX; 10],
            attempts: u32::MAX,
            enqueued_ms: u64::MAX,
        };
        let (attempts, most) = (u32::MAX, u64::MAX);
        let queue: QueueName = "n".repeat(64).parse().unwrap();
        let (of, payload) = (queue.clone(), message.payload.clone());
        let letter =
            DeadLetter { queue: of, id: id(), payload, attempts, enqueued_ms: most, died_ms: most };
        let totals = QueueTotals {
            undelivered: most,
            named_undelivered: most,
            names: most,
            first_dead: most,
            next_dead: most,
            removed_dead: most,
        };
        let effects = [
            QueueEffect::PutMessage { queue: queue.clone(), id: id(), due_ms: most, message },
            QueueEffect::DeleteMessage { queue: queue.clone(), id: id(), due_ms: most },
            QueueEffect::PutDeadLetter { number: most, letter },
            QueueEffect::DeleteDeadLetter { number: most },
            QueueEffect::PutTotals(totals),
            QueueEffect::PutNamedTotals { queue, undelivered: most },
        ];
        let bare = encode_batch(&batch(vec![])).len();
        for effect in effects {
            let size = effect.size();
            // The length of the transaction takes up to four bytes more.
            let encoded = encode_batch(&batch(vec![effect.clone()])).len() - bare + 4;
            assert!(encoded <= size, "{encoded} bytes, and {size} were expected: {effect:?}");
        }
    }

    #[test]
    fn what_is_wrong_in_an_effect_on_a_queue_is_named() {
        let row = |id: &'static [u8], message| log::MessageRow {
            id: id.into(),
            due_ms: 1,
            message,
            queue: String::new(),
        };
        let named = |queue: String| Queue::NamedTotals(log::NamedTotals { queue, undelivered: 1 });
        let unfit = log::MessageRow { queue: "\n".to_owned(), ..row(b"123456789012", None) };
        let cases = [
            (Queue::PutMessage(row(b"123456789012", None)), "message"),
            (Queue::PutMessage(row(b"1234567890", Some(log::QueuedMessage::default()))), "id"),
            (Queue::DeleteMessage(row(b"", None)), "id"),
            (Queue::DeleteMessage(unfit), "queue"),
            (named("n".repeat(65)), "queue"),
            (named(String::new()), "queue"),
            (Queue::PutDeadLetter(log::DeadLetterRow { number: 1, letter: None }), "letter"),
        ];
        for (wire, field) in cases {
            let error = effect(wire).unwrap_err();
            assert_eq!(error.to_string(), format!("batch field `{field}` is out of its range"));
        }
    }
}
