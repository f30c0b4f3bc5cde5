//! Reserved keys: how a client says what its library cannot send.
//!
//! The native client of Deno sends checks and mutations and nothing else, and sends the same bytes
//! again after any broken connection. A mutation of a key that begins with [`PREFIX`] is therefore
//! no mutation of the database: the gateway takes it out of the write before anything else sees it.
//! Such keys are never stored, so no read finds one and no list shows one.
//!
//! | key, as a tuple | what a `set` of it says |
//! |---|---|
//! | `[MARK, "request", id]` | The write has an id: however often the same bytes arrive, through whichever gateways, the write takes effect once. |
//! | `[MARK, "enqueue", number, schedule]` | The value is enqueued: a byte array is of V8's serializer already, any other value is as the client serialized it. `schedule` is the JSON of [`Schedule`]. |
//! | `[MARK, "undelivered", number, ...key]` | `key` is set when the message has died. Stands behind the message with this number. |
//! | `[MARK, "acknowledge", id, due]`, and behind it the name of a queue that has one | The message is done, as listeners are handed it. The write commits if the message still has this id and due time, as if by a check. |
//!
//! `MARK` is the byte array in [`PREFIX`]; `id` is a text of the client's choice, unique for each
//! write. A write may have several: an atomic operation that is committed again has got another.
//! `number` is a text that tells the messages of a write apart.

use std::str::FromStr;

use bytes::Bytes;
use meridian_types::{
    InvalidQueueName, Mutation, MutationKind, QueueName, Settlement, ValueEncoding, Verdict,
};
use serde::Deserialize;

/// The encoded key part `MARK`, a byte array that no program uses by accident.
pub(crate) const PREFIX: &[u8] = b"\x01\xfdmeridian\xfd\x00";

/// The tag of a text in an encoded key.
const TEXT: u8 = 0x02;
/// Bytes of an id at most.
pub(crate) const MAX_ID_BYTES: usize = 128;

/// Why a mutation of a reserved key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// The key says nothing known.
    Unknown,
    /// The id of the request has more than [`MAX_ID_BYTES`].
    LongId,
    /// The name of the queue of an acknowledged message.
    QueueName(InvalidQueueName),
}

/// Which queue a message goes to, when it is due, and when again after each failure.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Schedule {
    #[serde(default)]
    pub(crate) delay_ms: u64,
    /// `None`: the schedule of messages that say none. Empty: no second attempt.
    pub(crate) backoff_ms: Option<Vec<u32>>,
    /// Empty: the unnamed one.
    #[serde(default)]
    pub(crate) queue: String,
}

/// A message of the write. No limit but those of its mutations is checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReservedMessage {
    number: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) schedule: Schedule,
    pub(crate) keys_if_undelivered: Vec<Bytes>,
}

/// The meaning of the reserved mutations of one write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// The write has an id of its client.
    pub(crate) has_request_id: bool,
    pub(crate) messages: Vec<ReservedMessage>,
    pub(crate) acknowledged: Vec<Settlement>,
}

impl Reserved {
    /// Takes a mutation of a reserved key; gives back any other.
    pub(crate) fn take(&mut self, mutation: Mutation) -> Result<Option<Mutation>, Misuse> {
        let key = mutation.key.clone();
        let Some(mut rest) = key.strip_prefix(PREFIX) else { return Ok(Some(mutation)) };
        let MutationKind::Set(value) = mutation.kind else { return Err(Misuse::Unknown) };
        let operation = text(&mut rest).ok_or(Misuse::Unknown)?;
        match operation {
            b"request" => {
                let id = text(&mut rest).ok_or(Misuse::Unknown)?;
                if !rest.is_empty() || id.is_empty() {
                    return Err(Misuse::Unknown);
                }
                if id.len() > MAX_ID_BYTES {
                    return Err(Misuse::LongId);
                }
                self.has_request_id = true;
            }
            b"enqueue" => {
                let number = text(&mut rest).ok_or(Misuse::Unknown)?;
                let schedule = text(&mut rest).ok_or(Misuse::Unknown)?;
                if !rest.is_empty() || value.encoding == ValueEncoding::Le64 {
                    return Err(Misuse::Unknown);
                }
                self.messages.push(ReservedMessage {
                    number: key.slice_ref(number),
                    payload: value.data,
                    schedule: serde_json::from_slice(schedule).map_err(|_| Misuse::Unknown)?,
                    keys_if_undelivered: Vec::new(),
                });
            }
            b"undelivered" => {
                let number = text(&mut rest).ok_or(Misuse::Unknown)?;
                let message = self.messages.last_mut();
                let message =
                    message.filter(|message| message.number == number).ok_or(Misuse::Unknown)?;
                if rest.is_empty() {
                    return Err(Misuse::Unknown);
                }
                message.keys_if_undelivered.push(key.slice_ref(rest));
            }
            b"acknowledge" => {
                let (id, due_ms) = (parsed(&mut rest)?, digits(&mut rest)?);
                let queue = queue_name(&mut rest)?;
                if !rest.is_empty() {
                    return Err(Misuse::Unknown);
                }
                let verdict = Verdict::Acknowledged;
                self.acknowledged.push(Settlement { queue, id, due_ms, verdict });
            }
            _ => return Err(Misuse::Unknown),
        }
        Ok(None)
    }
}

/// The value of the text that an encoded key begins with.
fn parsed<T: FromStr>(key: &mut &[u8]) -> Result<T, Misuse> {
    let text = text(key).and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).ok_or(Misuse::Unknown)
}

/// The same of a number, which has no sign.
fn digits(key: &mut &[u8]) -> Result<u64, Misuse> {
    match key {
        [TEXT, b'+', ..] => Err(Misuse::Unknown),
        _ => parsed(key),
    }
}

/// The name of a queue, if the key goes on with one.
fn queue_name(key: &mut &[u8]) -> Result<QueueName, Misuse> {
    if key.is_empty() {
        return Ok(QueueName::default());
    }
    let name = text(key).and_then(|text| std::str::from_utf8(text).ok());
    name.ok_or(Misuse::Unknown)?.parse().map_err(Misuse::QueueName)
}

/// The text that an encoded key begins with, which is taken off it. `None` also for a text with a
/// zero byte in it.
fn text<'a>(key: &mut &'a [u8]) -> Option<&'a [u8]> {
    let rest = key.strip_prefix(&[TEXT])?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (text, rest) = rest.split_at_checked(end)?;
    let rest = rest.strip_prefix(&[0])?;
    // An escaped zero byte.
    if rest.first() == Some(&0xff) {
        return None;
    }
    *key = rest;
    Some(text)
}

#[cfg(test)]
mod tests {
    use meridian_types::Value;

    use super::*;

    fn set(key: &[u8]) -> Mutation {
        let value = Value { encoding: ValueEncoding::V8, data: Bytes::from_static(b"\xff\x0f0") };
        let key = Bytes::copy_from_slice(key);
        Mutation { key, kind: MutationKind::Set(value), expire_at_ms: 0 }
    }

    fn reserved(rest: &[u8]) -> Mutation {
        set(&[PREFIX, rest].concat())
    }

    #[test]
    fn mutation_of_another_key_is_given_back() {
        let mut taken = Reserved::default();
        for key in
            [&b"\x02a\x00"[..], b"", b"\x01\xfdmeridian\xfd", b"\x01\xfdmeridian\xfd\xff\x00"]
        {
            assert_eq!(taken.take(set(key)), Ok(Some(set(key))));
        }
        assert_eq!(taken, Reserved::default());
    }

    #[test]
    fn request_id_is_taken_out_of_the_write() {
        let mut taken = Reserved::default();
        assert_eq!(taken.take(reserved(b"\x02request\x00\x02an id\x00")), Ok(None));
        assert!(taken.has_request_id);
    }

    #[test]
    fn message_is_taken_out_of_the_write_with_its_schedule_and_keys() {
        let mut taken = Reserved::default();
        let serialized = reserved(b"\x02enqueue\x000\x00\x02{}\x00");
        assert_eq!(taken.take(serialized), Err(Misuse::Unknown), "a number is a text");
        for key in [
            &b"\x02enqueue\x00\x020\x00\x02{\"delayMs\":7,\"backoffMs\":[],\"queue\":\"emails\"}\x00"[..],
            b"\x02undelivered\x00\x020\x00\x02dead\x00\x01\x00\xff\x00",
            b"\x02undelivered\x00\x020\x00\x02too\x00",
            b"\x02enqueue\x00\x021\x00\x02{}\x00",
        ] {
            assert_eq!(taken.take(reserved(key)), Ok(None), "{key:?}");
        }
        let message = |number: &'static [u8], schedule, keys: &[&'static [u8]]| ReservedMessage {
            number: Bytes::from_static(number),
            payload: Bytes::from_static(b"\xff\x0f0"),
            schedule,
            keys_if_undelivered: keys.iter().map(|key| Bytes::from_static(key)).collect(),
        };
        let once =
            Schedule { delay_ms: 7, backoff_ms: Some(Vec::new()), queue: "emails".to_owned() };
        let keys = [&b"\x02dead\x00\x01\x00\xff\x00"[..], b"\x02too\x00"];
        let expected = vec![message(b"0", once, &keys), message(b"1", Schedule::default(), &[])];
        assert_eq!(taken, Reserved { messages: expected, ..Reserved::default() });
    }

    #[test]
    fn acknowledgement_is_taken_out_of_the_write() {
        const KEY: &[u8] =
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00\x021234567890123\x00";
        let mut taken = Reserved::default();
        let named = [KEY, b"\x02emails\x00"].concat();
        for key in [KEY, &named] {
            assert_eq!(taken.take(reserved(key)), Ok(None));
        }
        let id = "0102030405060708090a0b0c".parse().unwrap();
        let (due_ms, verdict) = (1_234_567_890_123, Verdict::Acknowledged);
        let of = |queue: &str| Settlement { queue: queue.parse().unwrap(), id, due_ms, verdict };
        let acknowledged = vec![of(""), of("emails")];
        assert_eq!(taken, Reserved { acknowledged, ..Reserved::default() });
        let unfit = reserved(&[KEY, b"\x02e\nmails\x00"].concat());
        let misuse = Misuse::QueueName(InvalidQueueName::ControlCharacter);
        assert_eq!(Reserved::default().take(unfit), Err(misuse));
        for key in [
            &[&named[..], b"\x02more\x00"].concat()[..],
            &[KEY, b"\x02\xff\x00"].concat(),
            &[KEY, b"\x01emails\x00"].concat(),
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00",
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00\x02\x00",
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00\x02+1\x00",
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00\x02-1\x00",
            b"\x02acknowledge\x00\x020102030405060708090a0b0c\x00\x0218446744073709551616\x00",
            b"\x02acknowledge\x00\x020102030405060708090a0b\x00\x021\x00",
            b"\x02acknowledge\x00\x02\xff\x00\x021\x00",
        ] {
            assert_eq!(Reserved::default().take(reserved(key)), Err(Misuse::Unknown), "{key:?}");
        }
    }

    #[test]
    fn message_that_is_not_written_as_the_table_says_is_refused() {
        let enqueue = b"\x02enqueue\x00\x020\x00\x02{}\x00";
        let mut number = reserved(enqueue);
        let value = Value { encoding: ValueEncoding::Le64, data: Bytes::from_static(&[0; 8]) };
        number.kind = MutationKind::Set(value);
        assert_eq!(Reserved::default().take(number), Err(Misuse::Unknown));
        for key in [
            &b"\x02enqueue\x00\x020\x00\x02{\x00"[..],
            b"\x02enqueue\x00\x020\x00\x02{\"delay\":7}\x00",
            b"\x02enqueue\x00\x020\x00\x02{\"delayMs\":-1}\x00",
            b"\x02enqueue\x00\x020\x00\x02{}\x00\x02more\x00",
            b"\x02enqueue\x00\x02{}\x00",
            b"\x02undelivered\x00\x021\x00\x02key\x00",
            b"\x02undelivered\x00\x020\x00",
        ] {
            let mut taken = Reserved::default();
            assert_eq!(taken.take(reserved(enqueue)), Ok(None));
            assert_eq!(taken.take(reserved(key)), Err(Misuse::Unknown), "{key:?}");
        }
        let alone = reserved(b"\x02undelivered\x00\x020\x00\x02key\x00");
        assert_eq!(Reserved::default().take(alone), Err(Misuse::Unknown));
    }

    #[test]
    fn reserved_key_that_says_nothing_known_is_refused() {
        let refused = Err(Misuse::Unknown);
        let longer = [&b"\x02request\x00\x02id\x00"[..], b"\x02more\x00"].concat();
        for key in [
            &b""[..],
            b"\x02",
            b"\x02other\x00\x02id\x00",
            b"\x02request\x00",
            b"\x02request\x00\x02\x00",
            b"\x02request\x00\x02id",
            b"\x02request\x00\x02i\x00\xffd\x00",
            b"\x01request\x00\x02id\x00",
            &longer,
        ] {
            assert_eq!(Reserved::default().take(reserved(key)), refused, "{key:?}");
        }
        let delete =
            Mutation { kind: MutationKind::Delete, ..reserved(b"\x02request\x00\x02id\x00") };
        assert_eq!(Reserved::default().take(delete), refused);
    }

    #[test]
    fn id_at_its_limit_is_taken_and_one_byte_more_is_refused() {
        let key = |length| [b"\x02request\x00\x02", &vec![b'a'; length][..], b"\x00"].concat();
        assert_eq!(Reserved::default().take(reserved(&key(MAX_ID_BYTES))), Ok(None));
        let longer = reserved(&key(MAX_ID_BYTES + 1));
        assert_eq!(Reserved::default().take(longer), Err(Misuse::LongId));
    }
}
