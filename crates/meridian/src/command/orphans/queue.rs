//! An effect on a queue in an orphan file, as text and as JSON.

use meridian_types::{MessageId, QueueEffect, QueueName};
use serde::Serialize;

use super::key;
use crate::command::operator::format;

/// As `meridian orphans export` writes it: fields are absent that the effect does not have.
#[derive(Default, Serialize)]
pub(super) struct ExportedQueueEffect {
    op: &'static str,
    /// Of a named queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
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
    named_undelivered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead: Option<u64>,
}

impl ExportedQueueEffect {
    pub(super) fn of(effect: &QueueEffect) -> Self {
        let place = |op, queue, id: &MessageId, due_ms: &u64| Self {
            op,
            queue: named(queue),
            message: Some(id.to_string()),
            due_ms: Some(*due_ms),
            ..Self::default()
        };
        match effect {
            QueueEffect::PutMessage { queue, id, due_ms, message } => Self {
                payload_hex: Some(key::hex(&message.payload)),
                keys_if_undelivered_hex: Some(
                    message.keys_if_undelivered.iter().map(|key| key::hex(key)).collect(),
                ),
                backoff_ms: Some(message.backoff_ms.clone()),
                attempts: Some(message.attempts),
                enqueued_ms: Some(message.enqueued_ms),
                ..place("put-message", queue, id, due_ms)
            },
            QueueEffect::DeleteMessage { queue, id, due_ms } => {
                place("delete-message", queue, id, due_ms)
            }
            QueueEffect::PutDeadLetter { number, letter } => Self {
                op: "put-dead-letter",
                queue: named(&letter.queue),
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
                named_undelivered: Some(totals.named_undelivered).filter(|count| *count > 0),
                dead: Some(totals.dead()),
                ..Self::default()
            },
            QueueEffect::PutNamedTotals { queue, undelivered } => Self {
                op: "queue-totals",
                queue: named(queue),
                undelivered: Some(*undelivered),
                ..Self::default()
            },
        }
    }
}

fn named(queue: &QueueName) -> Option<String> {
    (!queue.is_default()).then(|| queue.to_string())
}

/// For people: without payloads.
pub(super) fn text(effect: &QueueEffect) -> String {
    let size = |bytes: usize| format::size(bytes as u64);
    let queue = |queue| named(queue).map(|name| format!(", queue {name}")).unwrap_or_default();
    match effect {
        QueueEffect::PutMessage { queue: of, id, due_ms, message } => {
            let (due, payload) = (format::time(*due_ms), size(message.payload.len()));
            let failed = message.attempts;
            format!("message {id}  due {due}, {payload}, {failed} failed{}", queue(of))
        }
        QueueEffect::DeleteMessage { queue: of, id, due_ms } => {
            format!("settle  {id}  due {}{}", format::time(*due_ms), queue(of))
        }
        QueueEffect::PutDeadLetter { number, letter } => {
            let (payload, of) = (size(letter.payload.len()), queue(&letter.queue));
            format!("dead    {}  dead letter {number}, {payload}{of}", letter.id)
        }
        QueueEffect::DeleteDeadLetter { number } => format!("forget  dead letter {number}"),
        QueueEffect::PutTotals(totals) => {
            format!("queue   {} undelivered, {} dead", totals.undelivered, totals.dead())
        }
        QueueEffect::PutNamedTotals { queue: of, undelivered } => {
            format!("queue   {undelivered} undelivered{}", queue(of))
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{DeadLetter, Message, QueueTotals, Versionstamp};

    use super::*;

    fn effects() -> [QueueEffect; 7] {
        let (unnamed, emails) = (QueueName::UNNAMED, "emails".parse::<QueueName>().unwrap());
        let id = MessageId { enqueued: Versionstamp([1; 10]), index: 2 };
        let message = Message {
            payload: vec![7; 3].into(),
            keys_if_undelivered: vec![vec![2, 0x61, 0].into()],
            backoff_ms: vec![100],
            attempts: 1,
            enqueued_ms: 5,
        };
        let payload = message.payload.clone();
        let queue = emails.clone();
        let letter = DeadLetter { queue, id, payload, attempts: 2, enqueued_ms: 5, died_ms: 6 };
        [
            QueueEffect::PutMessage { queue: unnamed.clone(), id, due_ms: 1000, message },
            QueueEffect::DeleteMessage { queue: unnamed, id, due_ms: 1000 },
            QueueEffect::PutDeadLetter { number: 4, letter },
            QueueEffect::DeleteDeadLetter { number: 3 },
            QueueEffect::PutTotals(QueueTotals {
                undelivered: 9,
                named_undelivered: 7,
                names: 2,
                first_dead: 3,
                next_dead: 5,
                removed_dead: 1,
            }),
            QueueEffect::DeleteMessage { queue: emails.clone(), id, due_ms: 1000 },
            QueueEffect::PutNamedTotals { queue: emails, undelivered: 6 },
        ]
    }

    #[test]
    fn effects_on_queues_are_shown_without_payloads() {
        let expected = [
            "message 010101010101010101010002  due 1970-01-01T00:00:01.000Z, 3 B, 1 failed",
            "settle  010101010101010101010002  due 1970-01-01T00:00:01.000Z",
            "dead    010101010101010101010002  dead letter 4, 3 B, queue emails",
            "forget  dead letter 3",
            "queue   9 undelivered, 1 dead",
            "settle  010101010101010101010002  due 1970-01-01T00:00:01.000Z, queue emails",
            "queue   6 undelivered, queue emails",
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
                r#"{"op":"put-dead-letter","queue":"emails","message":"010101010101010101010002","#,
                r#""payload_hex":"070707","attempts":2,"enqueued_ms":5,"died_ms":6,"number":4}"#,
            ),
            r#"{"op":"delete-dead-letter","number":3}"#,
            r#"{"op":"queue-totals","undelivered":9,"named_undelivered":7,"dead":1}"#,
            concat!(
                r#"{"op":"delete-message","queue":"emails","#,
                r#""message":"010101010101010101010002","due_ms":1000}"#,
            ),
            r#"{"op":"queue-totals","queue":"emails","undelivered":6}"#,
        ];
        let exported = effects()
            .map(|effect| serde_json::to_string(&ExportedQueueEffect::of(&effect)).unwrap());
        assert_eq!(exported, expected);
    }
}
