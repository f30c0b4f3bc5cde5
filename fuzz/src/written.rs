//! The words of an atomic write, compared with the transaction that the gateway makes of it.

use bytes::Bytes;
use meridian_gateway::Write;
use meridian_proto::kv_connect::{self as pb, AtomicWrite, MutationType, ValueEncoding};
use meridian_types::{Enqueue, Transaction};
use meridian_values::v8;

/// Every reserved key begins with this. Programs have it in their modules: it never changes.
pub const MARK: &[u8] = b"\x01\xfdmeridian\xfd\x00";

/// # Panics
/// When the transaction is not what the message says.
pub fn says(message: &AtomicWrite, write: &Write) {
    let Transaction { checks, mutations, enqueues, .. } = &write.transaction;
    assert_eq!(checks.len(), message.checks.len());
    for (check, said) in checks.iter().zip(&message.checks) {
        let versionstamp = check.versionstamp.as_ref().map_or(&[][..], |stamp| &stamp.0);
        assert_eq!((&check.key, versionstamp), (&said.key, said.versionstamp.as_ref()));
    }
    let (reserved, plain): (Vec<_>, Vec<_>) =
        message.mutations.iter().partition(|mutation| mutation.key.starts_with(MARK));
    let plain: Vec<_> = plain.into_iter().map(normal).collect();
    assert_eq!(to_wire(Transaction { mutations: mutations.clone(), ..Default::default() }), plain);
    let is_set = |mutation: &pb::Mutation| mutation.mutation_type() == MutationType::MSet;
    assert!(reserved.iter().all(|mutation| is_set(mutation)));
    let of = |operation: &str| {
        let begin = [MARK, b"\x02", operation.as_bytes(), b"\x00"].concat();
        reserved.iter().filter(move |mutation| mutation.key.starts_with(&begin)).copied()
    };
    assert_eq!(write.may_come_again, of("request").next().is_some());
    let value = |mutation: &pb::Mutation| mutation.value.clone().expect("it has a value").data;
    let payloads = message.enqueues.iter().map(|enqueue| enqueue.payload.clone());
    let payloads: Vec<_> = payloads.chain(of("enqueue").map(value)).map(v8::portable).collect();
    assert_eq!(enqueues.iter().map(|it| it.payload.clone()).collect::<Vec<_>>(), payloads);
    let keys = message.enqueues.iter().map(|enqueue| enqueue.keys_if_undelivered.len());
    let keys = keys.sum::<usize>() + of("undelivered").count();
    assert_eq!(enqueues.iter().map(|it| it.keys_if_undelivered.len()).sum::<usize>(), keys);
    stores_no_reserved_key(&write.transaction);
}

/// No read finds one, and no list shows one.
fn stores_no_reserved_key(transaction: &Transaction) {
    let undelivered = |enqueue: &Enqueue| enqueue.keys_if_undelivered.clone();
    let keys = transaction.mutations.iter().map(|mutation| mutation.key.clone());
    let mut keys = keys.chain(transaction.enqueues.iter().flat_map(undelivered));
    assert!(!keys.any(|key| key.starts_with(MARK)));
}

fn to_wire(transaction: Transaction) -> Vec<pb::Mutation> {
    use meridian_proto::shard::write_request::Transaction::{
        Write, WriteWithMessages, WriteWithNames,
    };
    match meridian_proto::transaction_to_wire(&transaction) {
        Write(write) => write.mutations,
        WriteWithMessages(_) | WriteWithNames(_) => panic!("it has no messages"),
    }
}

/// Without what has no meaning.
fn normal(said: &pb::Mutation) -> pb::Mutation {
    let mut mutation = said.clone();
    let is_sum = said.mutation_type() == MutationType::MSum;
    if !is_sum {
        (mutation.sum_min, mutation.sum_max, mutation.sum_clamp) = Default::default();
    }
    if said.mutation_type() == MutationType::MDelete {
        mutation.value = None;
    }
    if let Some(value) = &mut mutation.value
        && value.encoding() == ValueEncoding::VeV8
    {
        value.data = v8::portable(std::mem::take::<Bytes>(&mut value.data));
    }
    mutation.expire_at_ms = mutation.expire_at_ms.max(0);
    mutation
}
