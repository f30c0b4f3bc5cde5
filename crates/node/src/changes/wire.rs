//! Questions for changes, and their answers, between nodes.

use std::time::Duration;

use bytes::Bytes;
use meridian_gateway::{Change, Changed, ChangedTransaction, ChangesWanted};
use meridian_memory::Held;
use meridian_proto::changes::{self as wire, change::Kind, next_response::Result as Answer};
use meridian_types::limits::MAX_READ_KEY_BYTES;
use meridian_types::{DatabaseId, ShardId, Value, ValueEncoding, Versionstamp};

use super::NotGiven;
use crate::read::execution::counted;

/// More than the changes of any transaction take, with what their encoding adds.
pub(crate) const MAX_ANSWER_BYTES: usize = 16 << 20;
/// The most bytes of changes for a gateway that asks for more.
const MAX_GIVEN_BYTES: usize = 12 << 20;
/// A gateway that waits for longer asks again.
const MAX_WAIT: Duration = Duration::from_secs(10);

pub(crate) fn request(
    shard: ShardId,
    wanted: &ChangesWanted,
    min_sequence: u64,
) -> wire::NextRequest {
    wire::NextRequest {
        shard: shard.0,
        database: Bytes::copy_from_slice(&wanted.database.0),
        prefix: wanted.prefix.clone(),
        after: wanted.after.map(stamp_to_wire).unwrap_or_default(),
        max_bytes: wanted.max_bytes as u64,
        wait_ms: u32::try_from(wanted.wait.as_millis()).unwrap_or(u32::MAX),
        min_sequence,
    }
}

/// A question of a gateway: of which shard, for which changes, and of which state at least.
///
/// # Errors
/// The name of the field that is out of its range.
pub(crate) fn wanted(
    request: wire::NextRequest,
) -> Result<(ShardId, ChangesWanted, u64), &'static str> {
    if request.prefix.len() > MAX_READ_KEY_BYTES {
        return Err("prefix");
    }
    let after = match request.after.is_empty() {
        true => None,
        false => Some(Versionstamp::from_slice(&request.after).ok_or("after")?),
    };
    let max_bytes = usize::try_from(request.max_bytes).unwrap_or(MAX_GIVEN_BYTES);
    let wanted = ChangesWanted {
        database: DatabaseId(request.database.as_ref().try_into().map_err(|_| "database")?),
        prefix: Bytes::copy_from_slice(&request.prefix),
        after,
        max_bytes: max_bytes.min(MAX_GIVEN_BYTES),
        wait: Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT),
    };
    Ok((ShardId(request.shard), wanted, request.min_sequence))
}

pub(crate) fn response(answer: Result<Changed, NotGiven>) -> wire::NextResponse {
    let result = match answer {
        Ok(changed) => Answer::Changed(wire::Changed {
            transactions: changed.transactions.into_iter().map(transaction_to_wire).collect(),
            reached: stamp_to_wire(changed.reached),
            next_bytes: changed.next_bytes as u64,
        }),
        Err(NotGiven::Gone(floor)) => Answer::Gone(stamp_to_wire(floor)),
        Err(NotGiven::NotOfHistory) => Answer::NotOfHistory(wire::NotOfHistory {}),
        Err(NotGiven::Ahead) => Answer::Ahead(wire::Ahead {}),
        Err(NotGiven::Refused(reason)) => Answer::Unavailable(reason),
    };
    wire::NextResponse { result: Some(result) }
}

/// Gives back what is held for an answer once that is encoded.
pub(crate) fn held_with(
    mut response: wire::NextResponse,
    held: Option<Held>,
) -> wire::NextResponse {
    if let (Some(Answer::Changed(changed)), Some(held)) = (&mut response.result, held) {
        changed.reached = counted(std::mem::take(&mut changed.reached), held);
    }
    response
}

/// The answer of another node.
///
/// # Errors
/// The name of the field that is out of its range.
pub(crate) fn answer(
    response: wire::NextResponse,
) -> Result<Result<Changed, NotGiven>, &'static str> {
    Ok(match response.result.ok_or("result")? {
        Answer::Changed(changed) => {
            let transactions = changed.transactions.into_iter().map(transaction);
            Ok(Changed {
                transactions: transactions.collect::<Result<_, _>>()?,
                reached: stamp(&changed.reached)?,
                next_bytes: usize::try_from(changed.next_bytes).map_err(|_| "next_bytes")?,
            })
        }
        Answer::Gone(floor) => Err(NotGiven::Gone(stamp(&floor)?)),
        Answer::NotOfHistory(_) => Err(NotGiven::NotOfHistory),
        Answer::Ahead(_) => Err(NotGiven::Ahead),
        Answer::Unavailable(reason) => Err(NotGiven::Refused(reason)),
    })
}

fn stamp_to_wire(stamp: Versionstamp) -> Bytes {
    Bytes::copy_from_slice(&stamp.0)
}

fn stamp(bytes: &[u8]) -> Result<Versionstamp, &'static str> {
    Versionstamp::from_slice(bytes).ok_or("versionstamp")
}

fn transaction_to_wire(transaction: ChangedTransaction) -> wire::Transaction {
    wire::Transaction {
        versionstamp: stamp_to_wire(transaction.versionstamp),
        changes: transaction.changes.into_iter().map(change_to_wire).collect(),
    }
}

fn transaction(wire: wire::Transaction) -> Result<ChangedTransaction, &'static str> {
    Ok(ChangedTransaction {
        versionstamp: stamp(&wire.versionstamp)?,
        changes: wire.changes.into_iter().map(change).collect::<Result<_, _>>()?,
    })
}

fn change_to_wire(change: Change) -> wire::Change {
    let of = |kind: Kind, key| wire::Change { kind: kind.into(), key, ..Default::default() };
    match change {
        Change::Set { key, value, expire_at_ms } => wire::Change {
            encoding: value.encoding.number().into(),
            data: value.data,
            expire_at_ms,
            ..of(Kind::Set, key)
        },
        Change::Deleted { key } => of(Kind::Deleted, key),
        Change::Expired { key } => of(Kind::Expired, key),
        Change::DatabaseDropped => of(Kind::DatabaseDropped, Bytes::new()),
    }
}

fn change(wire: wire::Change) -> Result<Change, &'static str> {
    let (kind, key) = (wire.kind(), wire.key);
    Ok(match kind {
        Kind::Unspecified => return Err("kind"),
        Kind::Set => {
            let number = i32::try_from(wire.encoding).map_err(|_| "encoding")?;
            let encoding = ValueEncoding::from_number(number).ok_or("encoding")?;
            let value = Value { encoding, data: wire.data };
            Change::Set { key, value, expire_at_ms: wire.expire_at_ms }
        }
        Kind::Deleted => Change::Deleted { key },
        Kind::Expired => Change::Expired { key },
        Kind::DatabaseDropped => Change::DatabaseDropped,
    })
}
