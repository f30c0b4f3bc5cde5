//! An effect on a queue in an orphan file, as text and as JSON.

use meridian_types::{MessageId, QueueEffect};
use serde::Serialize;

use super::key;
use crate::command::operator::format;

/// As `meridian orphans export` writes it: fields are absent that the effect does not have.
#[derive(Default, Serialize)]
pub(super) struct ExportedQueueEffect {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_if_undelivered_hex: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_ms: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enqueued_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    died_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    undelivered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead: Option<u64>,
}

impl ExportedQueueEffect {
    pub(super) fn of(effect: &QueueEffect) -> Self {
        let place = |op, id: &MessageId, due_ms: &u64| Self {
            op,
            message: Some(id.to_string()),
            due_ms: Some(*due_ms),
            ..Self::default()
        };
        match effect {
            QueueEffect::PutMessage { id, due_ms, message } => Self {
                payload_hex: Some(key::hex(&message.payload)),
                keys_if_undelivered_hex: Some(
                    message.keys_if_undelivered.iter().map(|key| key::hex(key)).collect(),
                ),
                backoff_ms: Some(message.backoff_ms.clone()),
                attempts: Some(message.attempts),
                enqueued_ms: Some(message.enqueued_ms),
                ..place("put-message", id, due_ms)
            },
            QueueEffect::DeleteMessage { id, due_ms } => place("delete-message", id, due_ms),
            QueueEffect::PutDeadLetter { number, letter } => Self {
                op: "put-dead-letter",
                message: Some(letter.id.to_string()),
                payload_hex: Some(key::hex(&letter.payload)),
                attempts: Some(letter.attempts),
                enqueued_ms: Some(letter.enqueued_ms),
                died_ms: Some(letter.died_ms),
                number: Some(*number),
                ..Self::default()
            },
            QueueEffect::DeleteDeadLetter { number } => {
                Self { op: "delete-dead-letter", number: Some(*number), ..Self::default() }
            }
            QueueEffect::PutTotals(totals) => Self {
                op: "queue-totals",
                undelivered: Some(totals.undelivered),
                dead: Some(totals.dead()),
                ..Self::default()
            },
        }
    }
}

/// For people: without payloads.
pub(super) fn text(effect: &QueueEffect) -> String {
    let size = |bytes: usize| format::size(bytes as u64);
    match effect {
        QueueEffect::PutMessage { id, due_ms, message } => {
            let (due, payload) = (format::time(*due_ms), size(message.payload.len()));
            format!("message {id}  due {due}, {payload}, {} failed", message.attempts)
        }
        QueueEffect::DeleteMessage { id, due_ms } => {
            format!("settle  {id}  due {}", format::time(*due_ms))
        }
        QueueEffect::PutDeadLetter { number, letter } => {
            let payload = size(letter.payload.len());
            format!("dead    {}  dead letter {number}, {payload}", letter.id)
        }
        QueueEffect::DeleteDeadLetter { number } => format!("forget  dead letter {number}"),
        QueueEffect::PutTotals(totals) => {
            format!("queue   {} undelivered, {} dead", totals.undelivered, totals.dead())
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{DeadLetter, Message, QueueTotals, Versionstamp};

    use super::*;

    fn effects() -> [QueueEffect; 5] {
        let id = MessageId { enqueued: Versionstamp([1; 10]), index: 2 };
        let message = Message {
            payload: vec![7; 3].into(),
            keys_if_undelivered: vec![vec![2, 0x61, 0].into()],
            backoff_ms: vec![100],
            attempts: 1,
            enqueued_ms: 5,
        };
        let payload = message.payload.clone();
        let letter = DeadLetter { id, payload, attempts: 2, enqueued_ms: 5, died_ms: 6 };
        [
            QueueEffect::PutMessage { id, due_ms: 1000, message },
            QueueEffect::DeleteMessage { id, due_ms: 1000 },
            QueueEffect::PutDeadLetter { number: 4, letter },
            QueueEffect::DeleteDeadLetter { number: 3 },
            QueueEffect::PutTotals(QueueTotals {
                undelivered: 9,
                first_dead: 3,
                next_dead: 5,
                removed_dead: 1,
            }),
        ]
    }

    #[test]
    fn effects_on_queues_are_shown_without_payloads() {
        let expected = [
            "message 010101010101010101010002  due 1970-01-01T00:00:01.000Z, 3 B, 1 failed",
            "settle  010101010101010101010002  due 1970-01-01T00:00:01.000Z",
            "dead    010101010101010101010002  dead letter 4, 3 B",
            "forget  dead letter 3",
            "queue   9 undelivered, 1 dead",
        ];
        assert_eq!(effects().map(|effect| text(&effect)), expected);
    }

    #[test]
    fn exported_effects_on_queues_are_golden() {
        let expected = [
            concat!(
                r#"{"op":"put-message","message":"010101010101010101010002","due_ms":1000,"#,
                r#""payload_hex":"070707","keys_if_undelivered_hex":["026100"],"#,
                r#""backoff_ms":[100],"attempts":1,"enqueued_ms":5}"#,
            ),
            r#"{"op":"delete-message","message":"010101010101010101010002","due_ms":1000}"#,
            concat!(
                r#"{"op":"put-dead-letter","message":"010101010101010101010002","#,
                r#""payload_hex":"070707","attempts":2,"enqueued_ms":5,"died_ms":6,"number":4}"#,
            ),
            r#"{"op":"delete-dead-letter","number":3}"#,
            r#"{"op":"queue-totals","undelivered":9,"dead":1}"#,
        ];
        let exported = effects()
            .map(|effect| serde_json::to_string(&ExportedQueueEffect::of(&effect)).unwrap());
        assert_eq!(exported, expected);
    }
}
