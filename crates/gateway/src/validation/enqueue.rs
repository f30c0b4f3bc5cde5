//! The enqueues of an atomic write, and the limits on them.

use bytes::Bytes;
use meridian_proto::kv_connect as pb;
use meridian_types::{Enqueue, QueueName, V8Format, limits};

use crate::reserved::{PREFIX, ReservedMessage, Schedule};

use super::{Invalid, Size, at_most, fields, in_format, one_more};

const KEYS: &str = "The number of keys if undelivered of one message";
const INTERVALS: &str = "The number of intervals of one backoff schedule";

/// Counts the elements of an enqueue that is not decoded yet.
pub(super) fn count_elements(enqueue: Bytes) -> Result<(), Invalid> {
    let (mut keys, mut intervals) = (0, 0);
    fields(enqueue, |field, content| match (field, content) {
        (3, _) => one_more(&mut keys, limits::MAX_UNDELIVERED_KEYS, KEYS),
        // One, or as many as there are bytes that end a number.
        (4, None) => one_more(&mut intervals, limits::MAX_BACKOFF_INTERVALS, INTERVALS),
        (4, Some(packed)) => {
            intervals += packed.iter().filter(|byte| **byte < 0x80).count();
            at_most(intervals, limits::MAX_BACKOFF_INTERVALS, INTERVALS, "")
        }
        _ => Ok(()),
    })
}

/// A message of an atomic write that comes at `now_ms` of the wall clock. Clients compute due times
/// by their own clocks, so what is due in the past is due now, and what is due a little too late is
/// taken.
pub(super) fn enqueue(
    message: pb::Enqueue,
    format: V8Format,
    now_ms: u64,
    size: &mut Size,
) -> Result<Enqueue, Invalid> {
    let pb::Enqueue { payload, deadline_ms, keys_if_undelivered, backoff_schedule } = message;
    let what = "The size of the payload of a message";
    size.add(&payload, limits::MAX_VALUE_BYTES, what)?;
    at_most(keys_if_undelivered.len(), limits::MAX_UNDELIVERED_KEYS, KEYS, "")?;
    for key in &keys_if_undelivered {
        size.add(key, limits::MAX_WRITE_KEY_BYTES, "The size of a key if undelivered")?;
        if key.starts_with(PREFIX) {
            return Err(Invalid::ReservedKeyIfUndelivered);
        }
    }
    at_most(backoff_schedule.len(), limits::MAX_BACKOFF_INTERVALS, INTERVALS, "")?;
    for interval in &backoff_schedule {
        let limit = limits::MAX_BACKOFF_INTERVAL_MS;
        at_most(*interval as usize, limit as usize, "An interval of a backoff schedule", " ms")?;
    }
    let due_ms = u64::try_from(deadline_ms).unwrap_or(0);
    let latest = now_ms + limits::MAX_ENQUEUE_DELAY_MS + limits::ENQUEUE_CLOCK_SLACK_MS;
    if due_ms > latest {
        let limit = usize::try_from(limits::MAX_ENQUEUE_DELAY_MS).unwrap_or(usize::MAX);
        return Err(Invalid::Limit { what: "The delay of a message", limit, unit: " ms" });
    }
    // On the wire an empty schedule is none.
    let backoff_ms = (!backoff_schedule.is_empty()).then_some(backoff_schedule);
    let (queue, payload) = (QueueName::UNNAMED, in_format(payload, format));
    Ok(Enqueue { queue, payload, due_ms, keys_if_undelivered, backoff_ms })
}

/// A message that came as mutations of reserved keys. The write's size has their bytes already.
pub(super) fn reserved(
    message: ReservedMessage,
    format: V8Format,
    now_ms: u64,
) -> Result<Enqueue, Invalid> {
    let Schedule { delay_ms, backoff_ms, queue } = message.schedule;
    let queue = queue.parse()?;
    let never_again = backoff_ms.as_ref().is_some_and(Vec::is_empty);
    // Without a delay by no clock.
    let deadline_ms = if delay_ms == 0 { 0 } else { now_ms.saturating_add(delay_ms) };
    let message = pb::Enqueue {
        payload: message.payload,
        deadline_ms: i64::try_from(deadline_ms).unwrap_or(i64::MAX),
        keys_if_undelivered: message.keys_if_undelivered,
        backoff_schedule: backoff_ms.unwrap_or_default(),
    };
    let mut message = enqueue(message, format, now_ms, &mut Size(0))?;
    message.queue = queue;
    if never_again {
        message.backoff_ms = Some(Vec::new());
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use meridian_types::{InvalidQueueName, Transaction};
    use prost::Message;

    use super::*;
    use crate::validation::{decode_write, write};

    const NOW_MS: u64 = 1_700_000_000_000;

    fn written(enqueues: Vec<pb::Enqueue>) -> Result<Transaction, Invalid> {
        let message = pb::AtomicWrite { enqueues, ..pb::AtomicWrite::default() };
        // The checks before decoding pass the same messages.
        let body = message.encode_to_vec();
        let decoded = decode_write(body.into());
        let (transaction, _) = write(message.clone(), V8Format::Portable, NOW_MS)?;
        assert_eq!(decoded?, message);
        Ok(transaction)
    }

    fn one(message: pb::Enqueue) -> Result<Enqueue, Invalid> {
        written(vec![message]).map(|mut transaction| transaction.enqueues.remove(0))
    }

    fn refusal(message: pb::Enqueue) -> String {
        one(message).unwrap_err().to_string()
    }

    fn bytes(length: usize) -> Bytes {
        vec![b'k'; length].into()
    }

    #[test]
    fn an_enqueue_is_taken_as_it_comes() {
        let sent = pb::Enqueue {
            payload: Bytes::from_static(b"\xff\x100"),
            deadline_ms: 1_700_000_001_000,
            keys_if_undelivered: vec![bytes(1), bytes(2)],
            backoff_schedule: vec![100, 0],
        };
        let expected = Enqueue {
            queue: QueueName::UNNAMED,
            // As values are: in the format that every client reads.
            payload: Bytes::from_static(b"\xff\x0f0"),
            due_ms: 1_700_000_001_000,
            keys_if_undelivered: vec![bytes(1), bytes(2)],
            backoff_ms: Some(vec![100, 0]),
        };
        assert_eq!(one(sent), Ok(expected));
        assert_eq!(one(pb::Enqueue::default()), Ok(Enqueue::default()), "no schedule: the default");
    }

    #[test]
    fn sizes_of_a_message_hold_at_and_one_over() {
        let payload = |length| pb::Enqueue { payload: bytes(length), ..Default::default() };
        assert!(one(payload(65_536)).is_ok());
        let expected = "The size of the payload of a message exceeds the limit of 65536 bytes.";
        assert_eq!(refusal(payload(65_537)), expected);
        let keys = |count, length| pb::Enqueue {
            keys_if_undelivered: vec![bytes(length); count],
            ..Default::default()
        };
        assert!(one(keys(10, 2048)).is_ok());
        let expected = "The size of a key if undelivered exceeds the limit of 2048 bytes.";
        assert_eq!(refusal(keys(1, 2049)), expected);
        let expected = "The number of keys if undelivered of one message exceeds the limit of 10.";
        assert_eq!(refusal(keys(11, 1)), expected);
    }

    /// It would be stored, and reserved keys never are.
    #[test]
    fn reserved_key_if_undelivered_is_refused() {
        let under = |key: Vec<u8>| {
            one(pb::Enqueue {
                keys_if_undelivered: vec![bytes(1), key.into()],
                ..Default::default()
            })
        };
        assert!(under(PREFIX.split_last().unwrap().1.to_vec()).is_ok());
        for rest in [&b""[..], b"\x02request\x00\x02id\x00"] {
            let refused = under([PREFIX, rest].concat()).unwrap_err();
            assert_eq!(refused, Invalid::ReservedKeyIfUndelivered);
        }
    }

    #[test]
    fn payload_is_stored_in_the_format_of_the_database() {
        let sent = pb::Enqueue { payload: Bytes::from_static(b"\xff\x100"), ..Default::default() };
        for (format, stored) in
            [(V8Format::Portable, b"\xff\x0f0"), (V8Format::AsSent, b"\xff\x100")]
        {
            let enqueues = vec![sent.clone()];
            let message = pb::AtomicWrite { enqueues, ..Default::default() };
            let (transaction, _) = write(message, format, NOW_MS).unwrap();
            assert_eq!(transaction.enqueues[0].payload, stored.as_slice());
        }
    }

    #[test]
    fn payloads_and_keys_count_in_the_total_of_a_write() {
        let full = || pb::Enqueue { payload: bytes(65_536), ..Default::default() };
        let rest = 819_200 - 12 * 65_536 - 2 * 1000;
        let last = |payload| pb::Enqueue {
            payload: bytes(payload),
            keys_if_undelivered: vec![bytes(1000); 2],
            ..Default::default()
        };
        let all = |payload| written([vec![full(); 12], vec![last(payload)]].concat());
        assert!(all(rest).is_ok());
        let refused = all(rest + 1).unwrap_err().to_string();
        assert!(refused.contains("The total size") && refused.contains("819200"), "{refused}");
    }

    #[test]
    fn schedules_hold_at_and_one_over() {
        let schedule = |backoff_schedule| pb::Enqueue { backoff_schedule, ..Default::default() };
        assert!(one(schedule(vec![3_600_000; 10])).is_ok());
        let expected = "The number of intervals of one backoff schedule exceeds the limit of 10.";
        assert_eq!(refusal(schedule(vec![1; 11])), expected);
        let expected = "An interval of a backoff schedule exceeds the limit of 3600000 ms.";
        assert_eq!(refusal(schedule(vec![3_600_001])), expected);
    }

    #[test]
    fn delays_hold_at_and_one_over_and_the_past_is_now() {
        let due = |deadline_ms| {
            one(pb::Enqueue { deadline_ms, ..Default::default() }).map(|enqueue| enqueue.due_ms)
        };
        let latest = NOW_MS + 30 * 24 * 3_600_000 + 600_000;
        assert_eq!(due(latest as i64), Ok(latest));
        for deadline_ms in [latest as i64 + 1, i64::MAX] {
            let refused = due(deadline_ms).unwrap_err().to_string();
            assert_eq!(refused, "The delay of a message exceeds the limit of 2592000000 ms.");
        }
        // The leader takes what has passed for its own time.
        for (deadline_ms, expected) in [(i64::MIN, 0), (-1, 0), (0, 0), (5, 5)] {
            assert_eq!(due(deadline_ms), Ok(expected));
        }
    }

    #[test]
    fn enqueues_count_as_mutations_do() {
        let enqueues = |count| vec![pb::Enqueue::default(); count];
        assert_eq!(written(enqueues(1000)).unwrap().enqueues.len(), 1000);
        let refused = written(enqueues(1001)).unwrap_err().to_string();
        assert!(
            refused.contains("mutations and enqueues") && refused.contains("1000"),
            "{refused}"
        );
    }

    /// A body that is malformed at its end, which shows when all of it is decoded.
    fn body(enqueue: &[u8]) -> Bytes {
        let mut body = pb::AtomicWrite::default().encode_to_vec();
        body.push(0x1a);
        prost::encode_length_delimiter(enqueue.len(), &mut body).unwrap();
        body.extend_from_slice(enqueue);
        body.push(0xff);
        body.into()
    }

    #[test]
    fn message_with_too_many_elements_inside_is_refused_before_it_is_decoded() {
        let many = 1 << 18;
        let packed = |count: usize| {
            pb::Enqueue { backoff_schedule: vec![300; count], ..Default::default() }.encode_to_vec()
        };
        for (enqueue, part) in [
            (b"\x1a\x00".repeat(many), "keys if undelivered"),
            (packed(many), "backoff schedule"),
            // Not packed, as other clients may send them; and several packs.
            (b"\x20\x01".repeat(many), "backoff schedule"),
            (packed(6).repeat(2), "backoff schedule"),
            (b"\x1a\x00".repeat(10), "Request protobuf is invalid"),
            (packed(10), "Request protobuf is invalid"),
            (b"\x20\x01".repeat(10), "Request protobuf is invalid"),
        ] {
            let refused = decode_write(body(&enqueue)).unwrap_err().to_string();
            assert!(refused.contains(part), "{refused}");
        }
    }

    fn reserved_set(key: &[u8], value: &'static [u8]) -> pb::Mutation {
        let value = pb::KvValue { data: Bytes::from_static(value), encoding: 1 };
        pb::Mutation {
            key: [PREFIX, key].concat().into(),
            value: Some(value),
            mutation_type: pb::MutationType::MSet.into(),
            ..Default::default()
        }
    }

    fn by_reserved_keys(schedule: &str, keys: usize) -> Result<Vec<Enqueue>, Invalid> {
        let key = [b"\x02enqueue\x00\x020\x00\x02", schedule.as_bytes(), b"\x00"].concat();
        let mut mutations = vec![reserved_set(&key, b"\xff\x100")];
        let key = reserved_set(b"\x02undelivered\x00\x020\x00\x02k\x00", b"\xff\x0f0");
        mutations.resize(1 + keys, key);
        let message = pb::AtomicWrite { mutations, ..Default::default() };
        let (transaction, _) = super::super::write(message, V8Format::default(), NOW_MS)?;
        assert!(transaction.mutations.is_empty());
        Ok(transaction.enqueues)
    }

    #[test]
    fn message_in_reserved_keys_is_one_of_the_write_within_the_same_limits() {
        let plain = by_reserved_keys("{}", 0).unwrap();
        let payload = Bytes::from_static(b"\xff\x0f0");
        let expected = Enqueue { payload, due_ms: 0, ..Default::default() };
        assert_eq!(plain, std::slice::from_ref(&expected), "at once, by no clock");
        let schedule = r#"{"delayMs":5,"backoffMs":[]}"#;
        let once = by_reserved_keys(schedule, 2).unwrap();
        let keys_if_undelivered = vec![Bytes::from_static(b"\x02k\x00"); 2];
        let (due_ms, backoff_ms) = (NOW_MS + 5, Some(Vec::new()));
        assert_eq!(once, [Enqueue { due_ms, backoff_ms, keys_if_undelivered, ..expected }]);

        let named = by_reserved_keys(r#"{"queue":"emails"}"#, 0).unwrap();
        assert_eq!(named, [Enqueue { queue: "emails".parse().unwrap(), ..plain[0].clone() }]);

        let refusal = |schedule: &str, keys| by_reserved_keys(schedule, keys).unwrap_err();
        assert!(matches!(refusal("{}", 11), Invalid::Limit { limit: 10, .. }));
        let long = r#"{"delayMs":18446744073709551615}"#;
        assert!(matches!(refusal(long, 0), Invalid::Limit { limit: 2_592_000_000, .. }));
        let slow = r#"{"backoffMs":[3600001]}"#;
        assert!(matches!(refusal(slow, 0), Invalid::Limit { limit: 3_600_000, .. }));
        let name = format!(r#"{{"queue":"{}"}}"#, "n".repeat(65));
        assert_eq!(refusal(&name, 0), Invalid::QueueName(InvalidQueueName::TooLong));
        let again = r#"{"backoffMs":[1,1,1,1,1,1,1,1,1,1,1]}"#;
        assert!(matches!(refusal(again, 0), Invalid::Limit { limit: 10, .. }));
    }
}
