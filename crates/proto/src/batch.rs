//! Batches as they are stored and sent: encoded once by the leader, with a checksum of its own, and
//! never encoded again.

use bytes::Bytes;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, QueueEffect, Refusal,
    RequestId, Value, ValueEncoding, Versionstamp,
};
use prost::Message;

use crate::log;

mod queue;

pub use queue::{
    decode_dead_letter, decode_message, decode_queue_totals, encode_dead_letter, encode_message,
    encode_queue_totals,
};

/// Bytes that are not an encoded batch. On disk this is corruption, on the wire a broken peer.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBatch {
    #[error("the checksum that its leader made does not match: the bytes were damaged since")]
    Checksum,
    #[error(
        "it is of format {0}, and this version reads none beyond {NEWEST_FORMAT}: upgrade this node"
    )]
    Format(u32),
    #[error("not a batch: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("batch field `{0}` is out of its range")]
    Field(&'static str),
}

/// The format of batches that change keys alone.
const FORMAT: u32 = 1;
/// The format of batches that change queues, too.
const QUEUE_FORMAT: u32 = 2;
/// The format of batches after which numbers of dead letters have none: the totals of their queue
/// have a field that earlier versions would have left out.
const REMOVED_DEAD_FORMAT: u32 = 3;
/// The format of batches after which there are messages in named queues, or were: earlier versions
/// would have taken these for the unnamed queue.
const NAMED_QUEUES_FORMAT: u32 = 4;
const NEWEST_FORMAT: u32 = NAMED_QUEUES_FORMAT;
/// The key of field 15, `crc32c`, of wire type 5: four bytes in little-endian order follow, the
/// last of a batch.
const CHECKSUM_KEY: u8 = 15 << 3 | 5;

/// A batch, and what its stored bytes say of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedBatch {
    pub batch: Batch,
    /// Of the stored bytes.
    pub len: usize,
    /// The checksum that its leader made, which they match.
    pub checksum: u32,
}

impl From<Batch> for DecodedBatch {
    /// As if it had been encoded, stored and read.
    fn from(batch: Batch) -> Self {
        let bytes = encode_batch(&batch);
        Self {
            batch,
            len: bytes.len(),
            checksum: split_checksum(&bytes).map_or(0, |(_, checksum)| checksum),
        }
    }
}

/// The stored bytes of a batch (`meridian.log.v1.Batch`), with their checksum.
pub fn encode_batch(batch: &Batch) -> Bytes {
    let transactions = batch.transactions.iter().map(transaction_to_wire).collect();
    let wire = log::Batch {
        epoch: batch.position.epoch.0.into(),
        sequence: batch.position.sequence,
        time_ms: batch.time_ms,
        transactions,
        format: format(batch),
        crc32c: 0,
    };
    let mut bytes = Vec::with_capacity(wire.encoded_len() + 5);
    // A vector grows as it must: there is always room.
    wire.encode_raw(&mut bytes);
    let checksum = crc32c::crc32c(&bytes);
    bytes.push(CHECKSUM_KEY);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.into()
}

/// The oldest format that has what is in the batch.
fn format(batch: &Batch) -> u32 {
    let effects = batch.transactions.iter().flat_map(|transaction| &transaction.effects);
    let formats = effects.map(|effect| match effect {
        Effect::Queue(effect) if queue::is_of_names(effect) => NAMED_QUEUES_FORMAT,
        Effect::Queue(QueueEffect::PutTotals(totals)) if totals.removed_dead > 0 => {
            REMOVED_DEAD_FORMAT
        }
        Effect::Queue(_) => QUEUE_FORMAT,
        _ => FORMAT,
    });
    formats.max().unwrap_or(FORMAT)
}

/// The bytes that the checksum covers, and the checksum.
fn split_checksum(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (rest, checksum) = bytes.split_last_chunk::<4>()?;
    let (key, covered) = rest.split_last()?;
    (*key == CHECKSUM_KEY).then_some((covered, u32::from_le_bytes(*checksum)))
}

/// Whether stored bytes are as their leader made them. Returns their checksum.
///
/// # Errors
/// [`InvalidBatch::Checksum`].
pub fn verify_checksum(bytes: &[u8]) -> Result<u32, InvalidBatch> {
    match split_checksum(bytes) {
        Some((covered, checksum)) if crc32c::crc32c(covered) == checksum => Ok(checksum),
        _ => Err(InvalidBatch::Checksum),
    }
}

/// The batch of stored bytes; keys and values share the memory of `bytes`.
///
/// # Errors
/// As [`decode_stored`].
pub fn decode_batch(bytes: Bytes) -> Result<Batch, InvalidBatch> {
    decode_stored(bytes).map(|decoded| decoded.batch)
}

/// The batch of stored bytes, once they are known to be as the leader made them.
///
/// # Errors
/// [`InvalidBatch`]: damaged, or of a later format, or made wrongly.
pub fn decode_stored(bytes: Bytes) -> Result<DecodedBatch, InvalidBatch> {
    let (checksum, len) = (verify_checksum(&bytes)?, bytes.len());
    let wire = log::Batch::decode(bytes)?;
    let written = wire.format;
    if !(FORMAT..=NEWEST_FORMAT).contains(&written) {
        return Err(InvalidBatch::Format(written));
    }
    let batch = batch(wire)?;
    // A node that knows no more than that format would have left something out.
    if written < format(&batch) {
        return Err(InvalidBatch::Field("format"));
    }
    Ok(DecodedBatch { batch, len, checksum })
}

fn batch(wire: log::Batch) -> Result<Batch, InvalidBatch> {
    let epoch = u16::try_from(wire.epoch).map_err(|_| InvalidBatch::Field("epoch"))?;
    // Its versionstamps have no room for more.
    if wire.sequence > Versionstamp::MAX_SEQUENCE {
        return Err(InvalidBatch::Field("sequence"));
    }
    if wire.transactions.len() > Batch::MAX_TRANSACTIONS {
        return Err(InvalidBatch::Field("transactions"));
    }
    Ok(Batch {
        position: Position::new(Epoch(epoch), wire.sequence),
        time_ms: wire.time_ms,
        transactions: wire.transactions.into_iter().map(transaction).collect::<Result<_, _>>()?,
    })
}

fn transaction_to_wire(transaction: &CommittedTransaction) -> log::Transaction {
    log::Transaction {
        request_id: Bytes::copy_from_slice(&transaction.request_id.0),
        database: Bytes::copy_from_slice(&transaction.database.0),
        effects: transaction.effects.iter().map(effect_to_wire).collect(),
        refusal: transaction.refusal.as_ref().map(refusal_to_wire),
    }
}

fn refusal_to_wire(refusal: &Refusal) -> log::Refusal {
    let reason = match refusal {
        Refusal::CheckFailed(indexes) => {
            log::refusal::Reason::CheckFailed(log::FailedChecks { indexes: indexes.clone() })
        }
        Refusal::Rejected(text) => log::refusal::Reason::Rejected(text.clone()),
    };
    log::Refusal { reason: Some(reason) }
}

fn refusal(wire: log::Refusal) -> Result<Refusal, InvalidBatch> {
    match wire.reason.ok_or(InvalidBatch::Field("reason"))? {
        log::refusal::Reason::CheckFailed(checks) => Ok(Refusal::CheckFailed(checks.indexes)),
        log::refusal::Reason::Rejected(text) => Ok(Refusal::Rejected(text)),
    }
}

/// The row stored under a request's id.
pub fn encode_request(versionstamp: Versionstamp, refusal: Option<&Refusal>) -> Vec<u8> {
    let versionstamp = Bytes::copy_from_slice(&versionstamp.0);
    log::RequestRow { versionstamp, refusal: refusal.map(refusal_to_wire) }.encode_to_vec()
}

/// The outcome of a request, from the row under its id: its versionstamp, and the reason if it did
/// nothing.
///
/// # Errors
/// [`InvalidBatch`], naming the field.
pub fn decode_request(bytes: &[u8]) -> Result<(Versionstamp, Option<Refusal>), InvalidBatch> {
    let row = log::RequestRow::decode(bytes)?;
    let versionstamp =
        Versionstamp::from_slice(&row.versionstamp).ok_or(InvalidBatch::Field("versionstamp"))?;
    Ok((versionstamp, row.refusal.map(refusal).transpose()?))
}

/// The position and time of an encoded batch, without decoding the rest.
///
/// # Errors
/// [`InvalidBatch`], naming the field.
pub fn batch_header(bytes: &[u8]) -> Result<(Position, u64), InvalidBatch> {
    let header = log::BatchHeader::decode(bytes)?;
    let epoch = u16::try_from(header.epoch).map_err(|_| InvalidBatch::Field("epoch"))?;
    Ok((Position::new(Epoch(epoch), header.sequence), header.time_ms))
}

fn transaction(wire: log::Transaction) -> Result<CommittedTransaction, InvalidBatch> {
    let request_id =
        wire.request_id.as_ref().try_into().map_err(|_| InvalidBatch::Field("request_id"))?;
    let database =
        wire.database.as_ref().try_into().map_err(|_| InvalidBatch::Field("database"))?;
    Ok(CommittedTransaction {
        request_id: RequestId(request_id),
        database: DatabaseId(database),
        effects: wire.effects.into_iter().map(effect).collect::<Result<_, _>>()?,
        refusal: wire.refusal.map(refusal).transpose()?,
    })
}

fn effect_to_wire(effect: &Effect) -> log::Effect {
    match effect {
        Effect::Put { key, value, expire_at_ms } => log::Effect {
            key: key.clone(),
            encoding: value.encoding.number().into(),
            data: value.data.clone(),
            expire_at_ms: *expire_at_ms,
            drop_database: false,
            queue: None,
        },
        Effect::Delete { key } => log::Effect { key: key.clone(), ..Default::default() },
        Effect::Unindex { key, expire_at_ms } => {
            log::Effect { key: key.clone(), expire_at_ms: *expire_at_ms, ..Default::default() }
        }
        Effect::DropDatabase => log::Effect { drop_database: true, ..Default::default() },
        Effect::Queue(effect) => {
            log::Effect { queue: Some(queue::effect_to_wire(effect)), ..Default::default() }
        }
    }
}

fn effect(wire: log::Effect) -> Result<Effect, InvalidBatch> {
    let log::Effect { key, encoding, data, expire_at_ms, drop_database, queue } = wire;
    if let Some(queue) = queue {
        return queue::effect(queue).map(Effect::Queue);
    }
    if drop_database {
        return Ok(Effect::DropDatabase);
    }
    if encoding == 0 {
        return Ok(if expire_at_ms == 0 {
            Effect::Delete { key }
        } else {
            Effect::Unindex { key, expire_at_ms }
        });
    }
    let encoding = i32::try_from(encoding).ok().and_then(ValueEncoding::from_number);
    let encoding = encoding.ok_or(InvalidBatch::Field("encoding"))?;
    Ok(Effect::Put { key, value: Value { encoding, data }, expire_at_ms })
}

#[cfg(test)]
mod tests {
    use meridian_types::{DeadLetter, MessageId, QueueName, QueueTotals};

    use super::*;

    fn sample() -> Batch {
        let put = Effect::Put {
            key: Bytes::from_static(b"k"),
            value: Value {
                encoding: ValueEncoding::Le64,
                data: Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]),
            },
            expire_at_ms: 5,
        };
        Batch {
            position: Position::new(Epoch(2), 300),
            time_ms: 1,
            transactions: vec![CommittedTransaction {
                request_id: RequestId([1; 16]),
                database: DatabaseId([2; 16]),
                effects: vec![put, Effect::Delete { key: Bytes::from_static(b"d") }],
                refusal: None,
            }],
        }
    }

    #[test]
    fn batch_bytes_are_golden() {
        let mut golden = b"\x08\x02\x10\xac\x02\x18\x01\x22\x3c".to_vec();
        golden.extend(b"\x0a\x10\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01");
        golden.extend(b"\x12\x10\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02");
        golden.extend(b"\x1a\x11\x0a\x01k\x10\x02\x1a\x08\x07\x00\x00\x00\x00\x00\x00\x00\x20\x05");
        golden.extend(b"\x1a\x03\x0a\x01d");
        golden.extend(b"\x70\x01");
        golden.extend(b"\x7d\x8a\xcd\x26\x7e");
        assert_eq!(encode_batch(&sample()), golden);
        assert_eq!(decode_batch(golden.into()).unwrap(), sample());
    }

    #[test]
    fn a_dropped_database_is_golden() {
        let mut batch = sample();
        batch.transactions[0].effects = vec![Effect::DropDatabase];
        let golden = encode_batch(&batch);
        // Before the format and the checksum, with which every batch ends.
        let (body, _) = golden.split_at(golden.len() - 7);
        assert!(body.ends_with(b"\x1a\x02\x28\x01"), "{golden:?}");
        assert_eq!(decode_batch(golden).unwrap(), batch);
    }

    #[test]
    fn what_is_remembered_of_requests_is_golden() {
        let stamp = Versionstamp::new(Position::new(Epoch(1), 2), 3);
        let failed = Refusal::CheckFailed(vec![0, 300]);
        let cases: [(Option<Refusal>, &[u8]); 3] = [
            (None, b""),
            (Some(failed), b"\x12\x07\x0a\x05\x0a\x03\x00\xac\x02"),
            (Some(Refusal::Rejected("no".to_owned())), b"\x12\x04\x12\x02no"),
        ];
        for (refusal, tail) in cases {
            let bytes = encode_request(stamp, refusal.as_ref());
            assert_eq!(bytes, [b"\x0a\x0a\0\x01\0\0\0\0\0\x02\0\x03".as_slice(), tail].concat());
            assert_eq!(decode_request(&bytes).unwrap(), (stamp, refusal));
        }
    }

    #[test]
    fn a_header_is_read_without_the_rest() {
        let encoded = encode_batch(&sample());
        assert_eq!(batch_header(&encoded).unwrap(), (Position::new(Epoch(2), 300), 1));
    }

    /// As a leader of whatever version would send it.
    fn with_checksum(wire: &log::Batch) -> Bytes {
        let mut bytes = wire.encode_to_vec();
        let checksum = crc32c::crc32c(&bytes).to_le_bytes();
        bytes.push(CHECKSUM_KEY);
        bytes.extend(checksum);
        bytes.into()
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let valid = log::Batch { sequence: (1 << 48) - 1, format: FORMAT, ..Default::default() };
        assert!(decode_batch(with_checksum(&valid)).is_ok());
        let cases = [
            (log::Batch { epoch: 70_000, ..valid.clone() }, "epoch"),
            (log::Batch { sequence: 1 << 48, ..valid }, "sequence"),
        ];
        for (wire, field) in cases {
            let error = decode_batch(with_checksum(&wire)).unwrap_err();
            assert_eq!(error.to_string(), format!("batch field `{field}` is out of its range"));
        }
    }

    #[test]
    fn no_bit_of_a_batch_changes_unseen() {
        let bytes = encode_batch(&sample());
        let whole = decode_stored(bytes.clone()).unwrap();
        assert_eq!((whole.len, whole.checksum), (bytes.len(), verify_checksum(&bytes).unwrap()));
        assert_eq!(whole, sample().into());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(decode_batch(damaged.into()), Err(InvalidBatch::Checksum)),
                "bit {bit}"
            );
        }
        for len in 0..bytes.len() {
            assert!(
                matches!(decode_batch(bytes.slice(..len)), Err(InvalidBatch::Checksum)),
                "{len} bytes"
            );
        }
    }

    /// A node of that format would have applied it without the message, or the totals without all
    /// of their fields.
    #[test]
    fn a_batch_of_an_older_format_than_its_effects_is_refused() {
        let totals = |removed_dead| {
            QueueEffect::PutTotals(QueueTotals { removed_dead, ..QueueTotals::default() })
        };
        let emails = || -> QueueName { "emails".parse().unwrap() };
        let id = MessageId { enqueued: Versionstamp([1; 10]), index: 0 };
        let delete = |queue| QueueEffect::DeleteMessage { queue, id, due_ms: 1 };
        let with_names = |named_undelivered, names| {
            let removed_dead = 1;
            let default = QueueTotals::default();
            QueueEffect::PutTotals(QueueTotals {
                named_undelivered,
                names,
                removed_dead,
                ..default
            })
        };
        let put_dead = |queue| {
            let payload = Bytes::new();
            let letter = DeadLetter { queue, id, payload, attempts: 1, enqueued_ms: 1, died_ms: 1 };
            QueueEffect::PutDeadLetter { number: 1, letter }
        };
        for (effect, format) in [
            (QueueEffect::DeleteDeadLetter { number: 1 }, QUEUE_FORMAT),
            (totals(0), QUEUE_FORMAT),
            (totals(1), REMOVED_DEAD_FORMAT),
            (QueueEffect::PutNamedTotals { queue: emails(), undelivered: 0 }, NAMED_QUEUES_FORMAT),
            (delete(QueueName::default()), QUEUE_FORMAT),
            (delete(emails()), NAMED_QUEUES_FORMAT),
            (with_names(1, 0), NAMED_QUEUES_FORMAT),
            (with_names(0, 1), NAMED_QUEUES_FORMAT),
            (put_dead(QueueName::default()), QUEUE_FORMAT),
            (put_dead(emails()), NAMED_QUEUES_FORMAT),
        ] {
            let mut batch = sample();
            batch.transactions[0].effects.push(Effect::Queue(effect));
            let mut wire = log::Batch::decode(encode_batch(&batch)).unwrap();
            assert_eq!(wire.format, format, "no later one than is needed: {batch:?}");
            (wire.format, wire.crc32c) = (format - 1, 0);
            let error = decode_batch(with_checksum(&wire)).unwrap_err();
            assert!(matches!(error, InvalidBatch::Field("format")), "{error}");
            wire.format = format;
            assert_eq!(decode_batch(with_checksum(&wire)).unwrap(), batch);
        }
    }

    #[test]
    fn a_batch_of_another_format_is_not_guessed_at() {
        for format in [0, NEWEST_FORMAT + 1, u32::MAX] {
            let wire = log::Batch { epoch: 1, sequence: 1, format, ..Default::default() };
            let error = decode_batch(with_checksum(&wire)).unwrap_err();
            assert!(matches!(error, InvalidBatch::Format(found) if found == format), "{error}");
        }
    }
}
