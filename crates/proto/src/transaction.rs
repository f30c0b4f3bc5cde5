//! Transactions, ranges and entries as they travel between nodes, in KV Connect's own messages as
//! far as those go.
//! Limits are the gateway's matter: what comes from another node was checked there.

use bytes::Bytes;
use meridian_types::{
    Check, Enqueue, Entry, MessageId, Mutation, MutationKind, QueueName, ReadRange, Settlement,
    SumBounds, Transaction, Value, ValueEncoding, Verdict, Versionstamp,
};

use crate::shard::settlement::Verdict as WireVerdict;
use crate::shard::write_request::Transaction as WireTransaction;
use crate::{kv_connect as wire, shard};

/// A message from another node that is not what its type promises.
#[derive(Debug, thiserror::Error)]
#[error("field `{0}` is missing or out of its range")]
pub struct InvalidTransaction(pub &'static str);

pub fn transaction_to_wire(transaction: &Transaction) -> WireTransaction {
    let checks = transaction.checks.iter().map(|check| wire::Check {
        key: check.key.clone(),
        versionstamp: check
            .versionstamp
            .map_or_else(Bytes::new, |stamp| Bytes::copy_from_slice(&stamp.0)),
    });
    let write = wire::AtomicWrite {
        checks: checks.collect(),
        mutations: transaction.mutations.iter().map(mutation_to_wire).collect(),
        enqueues: Vec::new(),
    };
    let Transaction { enqueues, settlements, .. } = transaction;
    if enqueues.is_empty() && settlements.is_empty() {
        return WireTransaction::Write(write);
    }
    let with = shard::WriteWithMessages {
        write: Some(write),
        enqueues: enqueues.iter().map(enqueue_to_wire).collect(),
        settlements: settlements.iter().map(settlement_to_wire).collect(),
    };
    let of_enqueues = enqueues.iter().map(|enqueue| &enqueue.queue);
    let mut queues = of_enqueues.chain(settlements.iter().map(|settlement| &settlement.queue));
    // A node that does not know of messages, or of names, refuses this, and does not commit the rest
    // without them.
    if queues.all(QueueName::is_default) {
        WireTransaction::WriteWithMessages(with)
    } else {
        WireTransaction::WriteWithNames(with)
    }
}

/// # Errors
/// [`InvalidTransaction`], naming the field.
pub fn transaction(wire: Option<WireTransaction>) -> Result<Transaction, InvalidTransaction> {
    let (write, enqueues, settlements) = match wire.ok_or(InvalidTransaction("write"))? {
        WireTransaction::Write(write) => (write, Vec::new(), Vec::new()),
        WireTransaction::WriteWithMessages(with) | WireTransaction::WriteWithNames(with) => {
            let write = with.write.ok_or(InvalidTransaction("write"))?;
            (write, with.enqueues, with.settlements)
        }
    };
    // An index of a message has 16 bits. Without a schedule those of `write` would be others.
    if enqueues.len() > usize::from(u16::MAX) || !write.enqueues.is_empty() {
        return Err(InvalidTransaction("enqueues"));
    }
    let check = |check: wire::Check| {
        let versionstamp = match check.versionstamp.len() {
            0 => None,
            _ => Some(versionstamp(&check.versionstamp)?),
        };
        Ok(Check { key: check.key, versionstamp })
    };
    Ok(Transaction {
        checks: write.checks.into_iter().map(check).collect::<Result<_, _>>()?,
        mutations: write.mutations.into_iter().map(mutation).collect::<Result<_, _>>()?,
        enqueues: enqueues.into_iter().map(enqueue).collect::<Result<_, _>>()?,
        settlements: settlements.into_iter().map(settlement).collect::<Result<_, _>>()?,
    })
}

fn enqueue_to_wire(enqueue: &Enqueue) -> shard::Enqueue {
    let backoff = enqueue.backoff_ms.clone();
    shard::Enqueue {
        payload: enqueue.payload.clone(),
        due_ms: enqueue.due_ms,
        keys_if_undelivered: enqueue.keys_if_undelivered.clone(),
        backoff: backoff.map(|intervals_ms| shard::Backoff { intervals_ms }),
        queue: enqueue.queue.to_string(),
    }
}

fn enqueue(wire: shard::Enqueue) -> Result<Enqueue, InvalidTransaction> {
    let shard::Enqueue { payload, due_ms, keys_if_undelivered, backoff, queue } = wire;
    let backoff_ms = backoff.map(|backoff| backoff.intervals_ms);
    let queue = queue_name(&queue)?;
    Ok(Enqueue { queue, payload, due_ms, keys_if_undelivered, backoff_ms })
}

fn queue_name(text: &str) -> Result<QueueName, InvalidTransaction> {
    text.parse().map_err(|_| InvalidTransaction("queue"))
}

fn settlement_to_wire(settlement: &Settlement) -> shard::Settlement {
    let verdict = match settlement.verdict {
        Verdict::Delivered => WireVerdict::Delivered(true),
        Verdict::Failed { retry_at_ms } => WireVerdict::FailedRetryAtMs(retry_at_ms),
        Verdict::Cancelled => WireVerdict::Cancelled(true),
        Verdict::Rescheduled { due_ms } => WireVerdict::RescheduledDueMs(due_ms),
        Verdict::Redriven { number } => WireVerdict::RedrivenNumber(number),
        Verdict::Discarded { number } => WireVerdict::DiscardedNumber(number),
        Verdict::Acknowledged => WireVerdict::Acknowledged(true),
    };
    shard::Settlement {
        id: Bytes::copy_from_slice(&settlement.id.to_bytes()),
        due_ms: settlement.due_ms,
        verdict: Some(verdict),
        queue: settlement.queue.to_string(),
    }
}

fn settlement(wire: shard::Settlement) -> Result<Settlement, InvalidTransaction> {
    let verdict = match wire.verdict.ok_or(InvalidTransaction("verdict"))? {
        WireVerdict::Delivered(_) => Verdict::Delivered,
        WireVerdict::FailedRetryAtMs(retry_at_ms) => Verdict::Failed { retry_at_ms },
        WireVerdict::Cancelled(_) => Verdict::Cancelled,
        WireVerdict::RescheduledDueMs(due_ms) => Verdict::Rescheduled { due_ms },
        WireVerdict::RedrivenNumber(number) => Verdict::Redriven { number },
        WireVerdict::DiscardedNumber(number) => Verdict::Discarded { number },
        WireVerdict::Acknowledged(_) => Verdict::Acknowledged,
    };
    let id = MessageId::from_slice(&wire.id).ok_or(InvalidTransaction("id"))?;
    Ok(Settlement { queue: queue_name(&wire.queue)?, id, due_ms: wire.due_ms, verdict })
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn enqueue_with(backoff_ms: Option<Vec<u32>>) -> Enqueue {
        Enqueue {
            queue: QueueName::default(),
            payload: Bytes::from_static(b"payload"),
            due_ms: 1 << 40,
            keys_if_undelivered: vec![Bytes::from_static(b"k"), Bytes::from_static(b"l")],
            backoff_ms,
        }
    }

    fn settlement_of(id: MessageId, due_ms: u64, verdict: Verdict) -> Settlement {
        Settlement { queue: QueueName::default(), id, due_ms, verdict }
    }

    fn emails() -> QueueName {
        "emails".parse().unwrap()
    }

    #[test]
    fn messages_and_their_settlements_arrive_as_they_were_sent() {
        let id = MessageId { enqueued: Versionstamp([7; 10]), index: 0x0102 };
        let verdicts = [
            Verdict::Delivered,
            Verdict::Failed { retry_at_ms: 0 },
            Verdict::Failed { retry_at_ms: 1 << 40 },
            Verdict::Cancelled,
            Verdict::Rescheduled { due_ms: 0 },
            Verdict::Redriven { number: 0 },
            Verdict::Discarded { number: 1 << 40 },
            Verdict::Acknowledged,
        ];
        let settlements = verdicts.map(|verdict| settlement_of(id, 1 << 41, verdict)).to_vec();
        // No schedule is another thing than a schedule without intervals.
        let enqueues = [None, Some(vec![]), Some(vec![0, 100])].map(enqueue_with).to_vec();
        let sent = Transaction { enqueues, settlements, ..Transaction::default() };
        assert_eq!(transaction(Some(transaction_to_wire(&sent))).unwrap(), sent);
        let mut named = sent.clone();
        named.enqueues[1].queue = emails();
        named.settlements[2].queue = emails();
        assert_eq!(transaction(Some(transaction_to_wire(&named))).unwrap(), named);
    }

    /// The message of versions without queues, as far as it matters: such a node refuses a request
    /// in which it finds no `write`.
    #[derive(prost::Message)]
    struct OldWriteRequest {
        #[prost(message, optional, tag = "4")]
        write: Option<wire::AtomicWrite>,
    }

    #[test]
    fn node_without_queues_finds_no_write_in_a_request_with_messages_and_else_all_of_it() {
        let seen_by_old_node = |transaction: &Transaction| {
            let transaction = Some(transaction_to_wire(transaction));
            let request = shard::WriteRequest { transaction, ..shard::WriteRequest::default() };
            OldWriteRequest::decode(request.encode_to_vec().as_slice()).unwrap().write
        };
        let delete = || Mutation {
            key: Bytes::from_static(b"k"),
            kind: MutationKind::Delete,
            expire_at_ms: 0,
        };
        let plain = Transaction { mutations: vec![delete()], ..Transaction::default() };
        assert_eq!(seen_by_old_node(&plain).unwrap().mutations, [mutation_to_wire(&delete())]);
        let enqueues = vec![enqueue_with(None)];
        assert_eq!(seen_by_old_node(&Transaction { enqueues, ..plain.clone() }), None);
        let id = MessageId { enqueued: Versionstamp([7; 10]), index: 0 };
        let settlements = vec![settlement_of(id, 1, Verdict::Delivered)];
        assert_eq!(seen_by_old_node(&Transaction { settlements, ..plain }), None);
    }

    /// The message of versions without names of queues, as far as it matters: such a node refuses a
    /// request in which it finds no transaction.
    #[derive(prost::Message)]
    struct OldRequestWithMessages {
        #[prost(oneof = "OldTransaction", tags = "4, 10")]
        transaction: Option<OldTransaction>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    enum OldTransaction {
        #[prost(message, tag = "4")]
        Write(wire::AtomicWrite),
        #[prost(message, tag = "10")]
        WriteWithMessages(shard::WriteWithMessages),
    }

    #[test]
    fn node_without_names_finds_no_transaction_in_a_request_that_is_on_a_named_queue() {
        let is_found = |enqueues: Vec<Enqueue>, settlements: Vec<Settlement>| {
            let sent = Transaction { enqueues, settlements, ..Transaction::default() };
            let transaction = Some(transaction_to_wire(&sent));
            let request = shard::WriteRequest { transaction, ..shard::WriteRequest::default() };
            let bytes = request.encode_to_vec();
            OldRequestWithMessages::decode(bytes.as_slice()).unwrap().transaction.is_some()
        };
        let id = MessageId { enqueued: Versionstamp([7; 10]), index: 0 };
        let (enqueue, settlement) = (enqueue_with(None), settlement_of(id, 1, Verdict::Delivered));
        assert!(is_found(vec![enqueue.clone()], vec![settlement.clone()]));
        let named = Enqueue { queue: emails(), ..enqueue.clone() };
        assert!(!is_found(vec![enqueue, named], vec![]), "among others");
        assert!(!is_found(vec![], vec![Settlement { queue: emails(), ..settlement }]));
    }

    /// The message of versions whose operators could take no dead letter out, and whose handlers could
    /// not acknowledge in a write: such a node refuses a settlement in which it finds no verdict.
    #[derive(prost::Message)]
    struct OldSettlement {
        #[prost(bytes = "bytes", tag = "1")]
        id: Bytes,
        #[prost(oneof = "OldVerdict", tags = "3, 4, 5, 6")]
        verdict: Option<OldVerdict>,
    }

    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    enum OldVerdict {
        #[prost(bool, tag = "3")]
        Delivered(bool),
        #[prost(uint64, tag = "4")]
        FailedRetryAtMs(u64),
        #[prost(bool, tag = "5")]
        Cancelled(bool),
        #[prost(uint64, tag = "6")]
        RescheduledDueMs(u64),
    }

    #[test]
    fn older_node_finds_no_verdict_where_one_is_asked_for_that_it_does_not_know() {
        let id = MessageId { enqueued: Versionstamp([7; 10]), index: 0 };
        let seen_by_old_node = |verdict| {
            let wire = settlement_to_wire(&settlement_of(id, 0, verdict));
            OldSettlement::decode(wire.encode_to_vec().as_slice()).unwrap().verdict
        };
        for number in [0, 7] {
            assert_eq!(seen_by_old_node(Verdict::Redriven { number }), None);
            assert_eq!(seen_by_old_node(Verdict::Discarded { number }), None);
        }
        assert_eq!(seen_by_old_node(Verdict::Acknowledged), None);
        let cancelled = seen_by_old_node(Verdict::Cancelled);
        assert_eq!(cancelled, Some(OldVerdict::Cancelled(true)));
    }

    #[test]
    fn what_is_wrong_in_messages_and_settlements_is_named() {
        let wrong = |wire| transaction(wire).unwrap_err().0;
        let with = |with| Some(WireTransaction::WriteWithMessages(with));
        let empty = || shard::WriteWithMessages {
            write: Some(wire::AtomicWrite::default()),
            ..shard::WriteWithMessages::default()
        };
        let settled = |settlement| {
            wrong(with(shard::WriteWithMessages { settlements: vec![settlement], ..empty() }))
        };
        let id = Bytes::from_static(b"123456789012");
        let verdict = Some(WireVerdict::Cancelled(true));
        assert_eq!(settled(shard::Settlement { id, ..Default::default() }), "verdict");
        assert_eq!(settled(shard::Settlement { verdict, ..Default::default() }), "id");
        let (id, queue) = (Bytes::from_static(b"123456789012"), "n".repeat(65));
        let unfit = shard::Settlement { id, verdict, queue, ..Default::default() };
        assert_eq!(settled(unfit), "queue");
        let unfit = shard::Enqueue { queue: "\n".to_owned(), ..Default::default() };
        let unfit = shard::WriteWithMessages { enqueues: vec![unfit], ..empty() };
        assert_eq!(wrong(Some(WireTransaction::WriteWithNames(unfit))), "queue");
        let many = |count| {
            let enqueues = vec![shard::Enqueue::default(); count];
            with(shard::WriteWithMessages { enqueues, ..empty() })
        };
        assert_eq!(transaction(many(65_535)).unwrap().enqueues.len(), 65_535);
        assert_eq!(wrong(many(65_536)), "enqueues");
        let write = wire::AtomicWrite {
            enqueues: vec![wire::Enqueue::default()],
            ..wire::AtomicWrite::default()
        };
        let inner = shard::WriteWithMessages { write: Some(write.clone()), ..empty() };
        assert_eq!(wrong(with(inner)), "enqueues");
        assert_eq!(wrong(Some(WireTransaction::Write(write))), "enqueues");
        assert_eq!(wrong(with(shard::WriteWithMessages::default())), "write");
        assert_eq!(wrong(None), "write");
    }
}
