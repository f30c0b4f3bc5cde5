//! Acknowledgements in the transaction of a handler: an end of the message, and a check.

use super::*;

#[test]
fn acknowledgement_and_effects_of_a_handler_commit_together() {
    let set = |key| Mutation {
        key: self::key(key),
        kind: MutationKind::Set(Value { encoding: ValueEncoding::Bytes, data: Bytes::new() }),
        expire_at_ms: 0,
    };
    let done = |key, settlements| Transaction {
        mutations: vec![set(key)],
        settlements,
        ..Transaction::default()
    };
    let acked = || settlement(DUE_MS, Verdict::Acknowledged);
    let result = evaluated(&state(message()), &done("effect", vec![acked(), acked()]));
    let Evaluation::Commit(effects) = result else { panic!("{result:?}") };
    let queue = effects.iter().filter(|effect| matches!(effect, Effect::Queue(_)));
    assert_eq!(
        queue.cloned().collect::<Vec<_>>(),
        [delete(DUE_MS), totals(4, 3, 4)].map(Effect::Queue)
    );
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Put { .. })));
}

/// Its effects were applied with the acknowledgement, or will be with the attempt that goes on.
#[test]
fn nothing_of_a_handler_is_done_whose_message_has_no_such_row() {
    let check = |versionstamp| Check { key: key("text"), versionstamp };
    let present = Some(Versionstamp([1; 10]));
    let of = |checks, due| {
        let settlements = vec![
            settlement(due, Verdict::Delivered),
            settlement(due, Verdict::Acknowledged),
            settlement(due + 1, Verdict::Acknowledged),
        ];
        let wrong = MutationKind::Min(Value { encoding: ValueEncoding::Bytes, data: Bytes::new() });
        let mutations = vec![Mutation { key: key("text"), kind: wrong, expire_at_ms: 0 }];
        let transaction = Transaction { checks, mutations, settlements, ..Transaction::default() };
        evaluated(&state(message()), &transaction)
    };
    // Behind the checks, and before a mutation that cannot be carried out.
    let failed = |indexes: &[u32]| Evaluation::CheckFailed(indexes.to_vec());
    assert_eq!(of(vec![check(present)], DUE_MS), failed(&[2]));
    assert_eq!(of(vec![check(present)], DUE_MS + 1), failed(&[1, 2]));
    assert_eq!(of(vec![check(None), check(present)], DUE_MS - 1), failed(&[0, 2]));
    assert_eq!(of(vec![], DUE_MS + 1), failed(&[0, 1]));
}
