//! Messages of the data path to `meridian-types`. All limits on them are checked here.

mod enqueue;

use bytes::{Buf, Bytes};
use meridian_proto::kv_connect as pb;
use meridian_types::{
    Check, InvalidQueueName, Mutation, MutationKind, ReadRange, SumBounds, Transaction, V8Format,
    Value, ValueEncoding, Versionstamp, limits,
};
use meridian_values::v8;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::reserved::{MAX_ID_BYTES, Misuse, Reserved};

const RANGES: &str = "The number of ranges of one read";
const CHECKS: &str = "The number of checks of one atomic write";
const WATCHED: &str = "The number of keys of one watch";
const MUTATIONS: &str = "The number of mutations and enqueues of one atomic write";
const ACKNOWLEDGEMENTS: &str = "The number of acknowledgements of one atomic write";

/// Why a message is refused. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("Request protobuf is invalid: {0}.")]
    Protobuf(#[from] prost::DecodeError),
    #[error("{what} exceeds the limit of {limit}{unit}.")]
    Limit { what: &'static str, limit: usize, unit: &'static str },
    #[error("The limit of read range {index} must be at least 1, and is {limit}.")]
    RangeLimit { index: usize, limit: i32 },
    #[error(
        "Invalid versionstamp: check {index} has one of {length} bytes, where 0 or 10 are allowed."
    )]
    Versionstamp { index: usize, length: usize },
    #[error("Invalid mutation kind: mutation {index} has the unknown mutation type {number}.")]
    MutationKind { index: usize, number: i32 },
    #[error("Invalid mutation kind: mutation {index} is one with a value, and has none.")]
    MissingValue { index: usize },
    #[error(
        "Invalid mutation expire at: mutation {index} expires at {expire_at_ms} ms, which is below -1."
    )]
    ExpireAt { index: usize, expire_at_ms: i64 },
    #[error("Invalid value: mutation {index} has the unknown value encoding {number}.")]
    Encoding { index: usize, number: i32 },
    #[error("Invalid value: mutation {index} has a u64 of {length} bytes, where 8 are needed.")]
    U64Length { index: usize, length: usize },
    #[error("Invalid mutation: mutation {index} is of a reserved key that says nothing known.")]
    ReservedKey { index: usize },
    #[error("Invalid message: a key if undelivered is a reserved key.")]
    ReservedKeyIfUndelivered,
    #[error(transparent)]
    QueueName(#[from] InvalidQueueName),
}

/// The largest message of a read within the limits: ten ranges of two keys.
pub(crate) const MAX_READ_BYTES: usize = 64 * 1024;

/// Decodes a read. A message with too many ranges is refused undecoded.
pub(crate) fn decode_read(body: Bytes) -> Result<pb::SnapshotRead, Invalid> {
    let mut ranges = 0;
    fields(body.clone(), |field, _| match field {
        1 => one_more(&mut ranges, limits::MAX_READ_RANGES, RANGES),
        _ => Ok(()),
    })?;
    Ok(pb::SnapshotRead::decode(body)?)
}

/// The largest message of a watch within the limits: ten keys.
pub(crate) const MAX_WATCH_BYTES: usize = 32 * 1024;

/// Decodes a watch. A message with too many keys is refused undecoded.
pub(crate) fn decode_watch(body: Bytes) -> Result<pb::Watch, Invalid> {
    let mut keys = 0;
    fields(body.clone(), |field, _| match field {
        1 => one_more(&mut keys, limits::MAX_WATCHED_KEYS, WATCHED),
        _ => Ok(()),
    })?;
    Ok(pb::Watch::decode(body)?)
}

/// Decodes an atomic write. A message with too many checks, mutations or enqueues, or with too many
/// elements in one of these, is refused undecoded.
pub(crate) fn decode_write(body: Bytes) -> Result<pb::AtomicWrite, Invalid> {
    let (mut checks, mut mutations) = (0, 0);
    fields(body.clone(), |field, content| match field {
        1 => one_more(&mut checks, limits::MAX_CHECKS, CHECKS),
        2 => one_more(&mut mutations, limits::MAX_MUTATIONS, MUTATIONS),
        3 => {
            one_more(&mut mutations, limits::MAX_MUTATIONS, MUTATIONS)?;
            content.map_or(Ok(()), enqueue::count_elements)
        }
        _ => Ok(()),
    })?;
    Ok(pb::AtomicWrite::decode(body)?)
}

/// Calls `field` with the number of each of a message's own fields, and with what is in it where it
/// is one of bytes, without decoding them: an element of two bytes takes a hundred times as many
/// once it is decoded.
fn fields(
    mut body: Bytes,
    mut field: impl FnMut(u32, Option<Bytes>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    while body.has_remaining() {
        let (number, wire_type) = decode_key(&mut body)?;
        let mut content = body.clone();
        skip_field(wire_type, number, &mut body, DecodeContext::default())?;
        content.truncate(content.len() - body.len());
        let is_bytes = wire_type == WireType::LengthDelimited;
        if is_bytes {
            decode_varint(&mut content)?;
        }
        field(number, is_bytes.then_some(content))?;
    }
    Ok(())
}

fn one_more(count: &mut usize, limit: usize, what: &'static str) -> Result<(), Invalid> {
    *count += 1;
    at_most(*count, limit, what, "")
}

/// The ranges of a read. The sum of their limits is at most [`limits::MAX_READ_ENTRIES`], however
/// few entries are stored.
pub(crate) fn read(message: pb::SnapshotRead) -> Result<Vec<ReadRange>, Invalid> {
    at_most(message.ranges.len(), limits::MAX_READ_RANGES, RANGES, "")?;
    let mut entries = 0usize;
    let mut ranges = Vec::with_capacity(message.ranges.len());
    for (index, range) in message.ranges.into_iter().enumerate() {
        let limit = u32::try_from(range.limit).ok().filter(|limit| *limit > 0);
        let limit = limit.ok_or(Invalid::RangeLimit { index, limit: range.limit })?;
        for key in [&range.start, &range.end] {
            at_most(key.len(), limits::MAX_READ_KEY_BYTES, "The size of a key to read", " bytes")?;
        }
        entries = entries.saturating_add(limit as usize);
        // A range that ends before it starts holds nothing. Databases are spared such ranges.
        let end = if range.end < range.start { range.start.clone() } else { range.end };
        ranges.push(ReadRange { start: range.start, end, limit, reverse: range.reverse });
    }
    at_most(
        entries,
        limits::MAX_READ_ENTRIES,
        "The number of entries asked for by all ranges of one read",
        "",
    )?;
    Ok(ranges)
}

/// The keys of a watch.
pub(crate) fn watch(message: pb::Watch) -> Result<Vec<Bytes>, Invalid> {
    at_most(message.keys.len(), limits::MAX_WATCHED_KEYS, WATCHED, "")?;
    let key = |pb::WatchKey { key }| {
        at_most(key.len(), limits::MAX_READ_KEY_BYTES, "The size of a key to watch", " bytes")?;
        // The rest of the body is not kept with it.
        Ok(Bytes::copy_from_slice(&key))
    };
    message.keys.into_iter().map(key).collect()
}

/// The transaction of an atomic write that comes at `now_ms` of the wall clock, with its V8 values
/// in the format of the database, and without what its mutations of reserved keys say.
pub(crate) fn write(
    message: pb::AtomicWrite,
    format: V8Format,
    now_ms: u64,
) -> Result<(Transaction, Reserved), Invalid> {
    at_most(message.checks.len(), limits::MAX_CHECKS, CHECKS, "")?;
    at_most(
        message.mutations.len().saturating_add(message.enqueues.len()),
        limits::MAX_MUTATIONS,
        MUTATIONS,
        "",
    )?;
    let mut size = Size(0);
    let checks = message.checks.into_iter().enumerate();
    let checks = checks
        .map(|(index, message)| check(index, message, &mut size))
        .collect::<Result<_, _>>()?;
    let mut reserved = Reserved::default();
    let mut mutations = Vec::with_capacity(message.mutations.len());
    for (index, message) in message.mutations.into_iter().enumerate() {
        let mutation = mutation(index, message, format, &mut size)?;
        let taken = reserved.take(mutation).map_err(|misuse| misused(index, misuse))?;
        mutations.extend(taken);
    }
    let enqueues = message.enqueues.into_iter();
    let enqueues = enqueues
        .map(|message| enqueue::enqueue(message, format, now_ms, &mut size))
        .chain(reserved.messages.drain(..).map(|it| enqueue::reserved(it, format, now_ms)))
        .collect::<Result<_, _>>()?;
    at_most(size.0, limits::MAX_TRANSACTION_BYTES, "The total size of one atomic write", " bytes")?;
    let settlements = std::mem::take(&mut reserved.acknowledged);
    at_most(settlements.len(), limits::MAX_ACKNOWLEDGEMENTS, ACKNOWLEDGEMENTS, "")?;
    Ok((Transaction { checks, mutations, enqueues, settlements }, reserved))
}

fn misused(index: usize, misuse: Misuse) -> Invalid {
    let what = "The size of the id of a request";
    match misuse {
        Misuse::Unknown => Invalid::ReservedKey { index },
        Misuse::LongId => Invalid::Limit { what, limit: MAX_ID_BYTES, unit: " bytes" },
        Misuse::QueueName(invalid) => invalid.into(),
    }
}

/// The bytes of an atomic write so far: keys, values, bounds and payloads. Bodies are bounded, so
/// that the sum cannot overflow.
struct Size(usize);

impl Size {
    fn add(&mut self, data: &Bytes, limit: usize, what: &'static str) -> Result<(), Invalid> {
        self.0 = self.0.saturating_add(data.len());
        at_most(data.len(), limit, what, " bytes")
    }
}

fn check(index: usize, message: pb::Check, size: &mut Size) -> Result<Check, Invalid> {
    // As in the reference server, a checked key may be a byte longer than a written one: it is only
    // read.
    size.add(&message.key, limits::MAX_READ_KEY_BYTES, "The size of a key to check")?;
    let versionstamp = match message.versionstamp.as_ref() {
        [] => None,
        bytes => Some(
            Versionstamp::from_slice(bytes)
                .ok_or(Invalid::Versionstamp { index, length: bytes.len() })?,
        ),
    };
    Ok(Check { key: message.key, versionstamp })
}

fn mutation(
    index: usize,
    message: pb::Mutation,
    format: V8Format,
    size: &mut Size,
) -> Result<Mutation, Invalid> {
    size.add(&message.key, limits::MAX_WRITE_KEY_BYTES, "The size of a key to write")?;
    let data = message.value.iter().map(|value| &value.data);
    for data in data.chain([&message.sum_min, &message.sum_max]) {
        size.add(data, limits::MAX_VALUE_BYTES, "The size of a value")?;
    }
    let number = message.mutation_type;
    if number == pb::MutationType::MSetSuffixVersionstampedKey as i32 {
        let what = "The size of a key to write, with the 22 bytes of its versionstamp,";
        at_most(
            message.key.len() + limits::VERSIONSTAMP_SUFFIX_BYTES,
            limits::MAX_WRITE_KEY_BYTES,
            what,
            " bytes",
        )?;
    }
    let value = || value(index, message.value, format);
    let kind = match pb::MutationType::try_from(number) {
        Ok(pb::MutationType::MSet) => MutationKind::Set(value()?),
        Ok(pb::MutationType::MDelete) => MutationKind::Delete, // clients send a value too, without meaning
        Ok(pb::MutationType::MSum) => MutationKind::Sum {
            operand: value()?,
            bounds: SumBounds {
                min: message.sum_min,
                max: message.sum_max,
                clamp: message.sum_clamp,
            },
        },
        Ok(pb::MutationType::MMin) => MutationKind::Min(value()?),
        Ok(pb::MutationType::MMax) => MutationKind::Max(value()?),
        Ok(pb::MutationType::MSetSuffixVersionstampedKey) => {
            MutationKind::SetSuffixVersionstampedKey(value()?)
        }
        Ok(pb::MutationType::MUnspecified) | Err(_) => {
            return Err(Invalid::MutationKind { index, number });
        }
    };
    let expire_at_ms = match message.expire_at_ms {
        // The reference server takes both for "never".
        -1 => 0,
        other => {
            u64::try_from(other).map_err(|_| Invalid::ExpireAt { index, expire_at_ms: other })?
        }
    };
    Ok(Mutation { key: message.key, kind, expire_at_ms })
}

fn value(index: usize, message: Option<pb::KvValue>, format: V8Format) -> Result<Value, Invalid> {
    let pb::KvValue { data, encoding: number } = message.ok_or(Invalid::MissingValue { index })?;
    let encoding = ValueEncoding::from_number(number).ok_or(Invalid::Encoding { index, number })?;
    if encoding == ValueEncoding::Le64 && data.len() != size_of::<u64>() {
        return Err(Invalid::U64Length { index, length: data.len() });
    }
    let data = if encoding == ValueEncoding::V8 { in_format(data, format) } else { data };
    Ok(Value { encoding, data })
}

fn in_format(serialized: Bytes, format: V8Format) -> Bytes {
    match format {
        V8Format::Portable => v8::portable(serialized),
        V8Format::AsSent => serialized,
    }
}

fn at_most(
    number: usize,
    limit: usize,
    what: &'static str,
    unit: &'static str,
) -> Result<(), Invalid> {
    if number > limit { Err(Invalid::Limit { what, limit, unit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
