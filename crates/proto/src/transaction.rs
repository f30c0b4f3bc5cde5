//! Transactions, ranges and entries as they travel between nodes, in KV Connect's own messages.
//! Limits are the gateway's matter: what comes from another node was checked there.

use bytes::Bytes;
use meridian_types::{
    Check, Entry, Mutation, MutationKind, ReadRange, SumBounds, Transaction, Value, ValueEncoding,
    Versionstamp,
};

use crate::kv_connect as wire;

/// A message from another node that is not what its type promises.
#[derive(Debug, thiserror::Error)]
#[error("field `{0}` is missing or out of its range")]
pub struct InvalidTransaction(pub &'static str);

pub fn transaction_to_wire(transaction: &Transaction) -> wire::AtomicWrite {
    let checks = transaction.checks.iter().map(|check| wire::Check {
        key: check.key.clone(),
        versionstamp: check
            .versionstamp
            .map_or_else(Bytes::new, |stamp| Bytes::copy_from_slice(&stamp.0)),
    });
    wire::AtomicWrite {
        checks: checks.collect(),
        mutations: transaction.mutations.iter().map(mutation_to_wire).collect(),
        enqueues: Vec::new(),
    }
}

/// # Errors
/// [`InvalidTransaction`], naming the field.
pub fn transaction(wire: wire::AtomicWrite) -> Result<Transaction, InvalidTransaction> {
    let check = |check: wire::Check| {
        let versionstamp = match check.versionstamp.len() {
            0 => None,
            _ => Some(versionstamp(&check.versionstamp)?),
        };
        Ok(Check { key: check.key, versionstamp })
    };
    Ok(Transaction {
        checks: wire.checks.into_iter().map(check).collect::<Result<_, _>>()?,
        mutations: wire.mutations.into_iter().map(mutation).collect::<Result<_, _>>()?,
    })
}

fn versionstamp(bytes: &[u8]) -> Result<Versionstamp, InvalidTransaction> {
    Versionstamp::from_slice(bytes).ok_or(InvalidTransaction("versionstamp"))
}

fn mutation_to_wire(mutation: &Mutation) -> wire::Mutation {
    use wire::MutationType as Type;
    let (kind, value) = match &mutation.kind {
        MutationKind::Set(value) => (Type::MSet, Some(value)),
        MutationKind::Delete => (Type::MDelete, None),
        MutationKind::Sum { operand, .. } => (Type::MSum, Some(operand)),
        MutationKind::Min(value) => (Type::MMin, Some(value)),
        MutationKind::Max(value) => (Type::MMax, Some(value)),
        MutationKind::SetSuffixVersionstampedKey(value) => {
            (Type::MSetSuffixVersionstampedKey, Some(value))
        }
    };
    let bounds = match &mutation.kind {
        MutationKind::Sum { bounds, .. } => bounds.clone(),
        _ => SumBounds::default(),
    };
    wire::Mutation {
        key: mutation.key.clone(),
        value: value.map(|value| wire::KvValue {
            data: value.data.clone(),
            encoding: value.encoding.number().into(),
        }),
        mutation_type: kind.into(),
        expire_at_ms: i64::try_from(mutation.expire_at_ms).unwrap_or(i64::MAX),
        sum_min: bounds.min,
        sum_max: bounds.max,
        sum_clamp: bounds.clamp,
    }
}

fn mutation(wire: wire::Mutation) -> Result<Mutation, InvalidTransaction> {
    use wire::MutationType as Type;
    let kind = wire.mutation_type();
    let value = || {
        let value = wire.value.as_ref().ok_or(InvalidTransaction("value"))?;
        let encoding =
            ValueEncoding::from_number(value.encoding).ok_or(InvalidTransaction("encoding"))?;
        Ok(Value { encoding, data: value.data.clone() })
    };
    let kind = match kind {
        Type::MUnspecified => return Err(InvalidTransaction("mutation_type")),
        Type::MSet => MutationKind::Set(value()?),
        Type::MDelete => MutationKind::Delete,
        Type::MSum => {
            let bounds = SumBounds {
                min: wire.sum_min.clone(),
                max: wire.sum_max.clone(),
                clamp: wire.sum_clamp,
            };
            MutationKind::Sum { operand: value()?, bounds }
        }
        Type::MMax => MutationKind::Max(value()?),
        Type::MMin => MutationKind::Min(value()?),
        Type::MSetSuffixVersionstampedKey => MutationKind::SetSuffixVersionstampedKey(value()?),
    };
    let expire_at_ms =
        u64::try_from(wire.expire_at_ms).map_err(|_| InvalidTransaction("expire_at_ms"))?;
    Ok(Mutation { key: wire.key, kind, expire_at_ms })
}

pub fn read_range_to_wire(range: &ReadRange) -> wire::ReadRange {
    wire::ReadRange {
        start: range.start.clone(),
        end: range.end.clone(),
        limit: i32::try_from(range.limit).unwrap_or(i32::MAX),
        reverse: range.reverse,
    }
}

/// # Errors
/// [`InvalidTransaction`] when the limit is below zero.
pub fn read_range(wire: wire::ReadRange) -> Result<ReadRange, InvalidTransaction> {
    let limit = u32::try_from(wire.limit).map_err(|_| InvalidTransaction("limit"))?;
    Ok(ReadRange { start: wire.start, end: wire.end, limit, reverse: wire.reverse })
}

pub fn entry_to_wire(entry: Entry) -> wire::KvEntry {
    wire::KvEntry {
        key: entry.key,
        value: entry.value.data,
        encoding: entry.value.encoding.number().into(),
        versionstamp: Bytes::copy_from_slice(&entry.versionstamp.0),
    }
}

/// # Errors
/// [`InvalidTransaction`], naming the field.
pub fn entry(wire: wire::KvEntry) -> Result<Entry, InvalidTransaction> {
    let encoding =
        ValueEncoding::from_number(wire.encoding).ok_or(InvalidTransaction("encoding"))?;
    Ok(Entry {
        key: wire.key,
        value: Value { encoding, data: wire.value },
        versionstamp: versionstamp(&wire.versionstamp)?,
    })
}
