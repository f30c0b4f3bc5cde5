//! Bugs that a store might have, each planted in a history that is correct without it: the checker
//! names it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may; the helpers here are no test functions"
)]

use meridian_checker::{
    Check, Entry, History, Invariant, Operation, Read, ReadOutcome, Record, Report, Txn,
    TxnOutcome, Value, Write, check,
};
use meridian_types::{Consistency, Epoch, Position, Versionstamp};

fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(1), sequence), 0)
}

fn entry(value: Value, version: u64) -> Option<Entry> {
    Some(Entry { value, versionstamp: stamp(version) })
}

fn list(elements: &[u64], version: u64) -> Option<Entry> {
    entry(Value::List(elements.to_vec()), version)
}

fn register(value: u64, version: u64) -> Option<Entry> {
    entry(Value::Register(value), version)
}

fn counter(value: u64, version: u64) -> Option<Entry> {
    entry(Value::Counter(value), version)
}

fn txn(
    times: (u64, u64),
    id: u64,
    checks: &[(&str, Option<u64>)],
    writes: Vec<Write>,
    outcome: TxnOutcome,
) -> Record {
    let checks = checks
        .iter()
        .map(|(key, version)| Check { key: (*key).into(), versionstamp: version.map(stamp) })
        .collect();
    let operation = Operation::Txn(Txn { outcome, ..Txn::new(id, checks, writes) });
    Record { client: id, invoked_ns: times.0, completed_ns: Some(times.1), operation }
}

fn committed(version: u64) -> TxnOutcome {
    TxnOutcome::Committed { versionstamp: stamp(version) }
}

fn append(times: (u64, u64), id: u64, version: u64, on: Option<u64>) -> Record {
    txn(
        times,
        id,
        &[("list", on)],
        vec![Write::Append { key: "list".into(), element: id }],
        committed(version),
    )
}

fn set(times: (u64, u64), id: u64, key: &str, outcome: TxnOutcome) -> Record {
    txn(times, id, &[], vec![Write::SetRegister { key: key.into(), value: id }], outcome)
}

fn read(times: (u64, u64), read: Read, entries: Vec<Option<Entry>>) -> Record {
    let read = Read { outcome: ReadOutcome::Entries(entries), ..read };
    Record {
        client: 99,
        invoked_ns: times.0,
        completed_ns: Some(times.1),
        operation: Operation::Read(read),
    }
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).into()).collect()
}

fn strong(times: (u64, u64), names: &[&str], entries: Vec<Option<Entry>>) -> Record {
    read(times, Read::strong("gateway", keys(names)), entries)
}

fn eventual(times: (u64, u64), names: &[&str], entries: Vec<Option<Entry>>) -> Record {
    read(times, Read::eventual("gateway", keys(names)), entries)
}

fn last(names: &[&str], entries: Vec<Option<Entry>>) -> Record {
    read((1000, 1010), Read::last("gateway", keys(names)), entries)
}

fn judge(records: &[Record]) -> Report {
    check(&History { records: records.to_vec() })
}

/// The history with the bug violates at least `invariants`, and without it none.
#[track_caller]
fn caught(good: &[Record], bad: &[Record], invariants: &[Invariant]) -> Report {
    let clean = judge(good);
    assert!(clean.is_clean(), "{clean}");
    let report = judge(bad);
    for invariant in invariants {
        assert!(report.count(*invariant) > 0, "{invariant} is not named:\n{report}");
        assert!(report.of(*invariant).all(|violation| !violation.offenders.is_empty()), "{report}");
    }
    report
}

/// `records` with the record at `index` replaced.
fn with(records: &[Record], index: usize, record: Record) -> Vec<Record> {
    let mut records = records.to_vec();
    records[index] = record;
    records
}

#[test]
fn acknowledged_write_lost() {
    let good = [
        append((0, 10), 1, 1, None),
        append((20, 30), 2, 2, Some(1)),
        last(&["list"], vec![list(&[1, 2], 2)]),
    ];
    let bad = with(&good, 2, last(&["list"], vec![list(&[1], 1)]));
    let report =
        caught(&good, &bad, &[Invariant::AcknowledgedWrites, Invariant::StrictSerializability]);
    let violation = report.of(Invariant::AcknowledgedWrites).next().unwrap();
    assert_eq!(
        violation.offenders.iter().map(|offender| offender.record).collect::<Vec<_>>(),
        [2, 1]
    );
}

#[test]
fn acknowledged_delete_undone() {
    let good = [
        set((0, 10), 1, "r", committed(1)),
        txn((20, 30), 2, &[], vec![Write::Delete { key: "r".into() }], committed(2)),
        last(&["r"], vec![None]),
    ];
    caught(
        &good,
        &with(&good, 2, last(&["r"], vec![register(1, 1)])),
        &[Invariant::AcknowledgedWrites],
    );
}

#[test]
fn strong_read_from_a_lagging_replica() {
    let good = [
        set((0, 10), 1, "r", committed(1)),
        set((20, 30), 2, "r", committed(2)),
        strong((40, 50), &["r"], vec![register(2, 2)]),
    ];
    let stale = strong((40, 50), &["r"], vec![register(1, 1)]);
    let report = caught(&good, &with(&good, 2, stale), &[Invariant::StrictSerializability]);
    assert!(report.to_string().contains("stale"), "{report}");
    // A read that overlaps the write may show either.
    let overlapping = strong((25, 50), &["r"], vec![register(1, 1)]);
    assert!(judge(&with(&good, 2, overlapping)).is_clean());
}

#[test]
fn strong_read_goes_back_behind_another() {
    let good = [
        set((0, 10), 1, "r", committed(1)),
        set((20, 100), 2, "r", committed(2)),
        strong((30, 40), &["r"], vec![register(2, 2)]),
        strong((50, 60), &["r"], vec![register(2, 2)]),
    ];
    let back = strong((50, 60), &["r"], vec![register(1, 1)]);
    caught(&good, &with(&good, 3, back), &[Invariant::StrictSerializability]);
}

#[test]
fn retry_sums_twice() {
    let sum = |times, id: u64, version| {
        txn(
            times,
            id,
            &[],
            vec![Write::Sum { key: "c".into(), amount: 10 * id }],
            committed(version),
        )
    };
    let good =
        [sum((0, 10), 1, 1), sum((20, 30), 2, 2), strong((40, 50), &["c"], vec![counter(30, 2)])];
    // The retry got a versionstamp of its own, which no answer has.
    let bad = with(&good, 2, strong((40, 50), &["c"], vec![counter(50, 3)]));
    let report = caught(&good, &bad, &[Invariant::ExactlyOnce]);
    let violation = report.of(Invariant::ExactlyOnce).next().unwrap();
    assert!(violation.message.contains("applied twice"), "{violation}");
    assert_eq!(violation.offenders[1].record, 1, "{violation}");
}

#[test]
fn retry_appends_twice() {
    let good = [
        append((0, 10), 1, 1, None),
        append((20, 30), 2, 2, Some(1)),
        last(&["list"], vec![list(&[1, 2], 2)]),
    ];
    let bad = with(&good, 2, last(&["list"], vec![list(&[1, 2, 2], 3)]));
    caught(&good, &bad, &[Invariant::ExactlyOnce, Invariant::AcknowledgedWrites]);
}

#[test]
fn retry_sets_twice() {
    let good = [
        set((0, 50), 1, "r", committed(1)),
        strong((20, 30), &["r"], vec![register(1, 1)]),
        strong((40, 50), &["r"], vec![register(1, 1)]),
    ];
    caught(
        &good,
        &with(&good, 2, strong((40, 50), &["r"], vec![register(1, 2)])),
        &[Invariant::ExactlyOnce],
    );
}

#[test]
fn write_skew_through_an_ignored_check() {
    let writes = |key: &str, value| vec![Write::SetRegister { key: key.into(), value }];
    let good = [
        set((0, 10), 1, "a", committed(1)),
        set((0, 10), 2, "b", committed(2)),
        txn((20, 40), 3, &[("a", Some(1)), ("b", Some(2))], writes("a", 3), committed(3)),
        txn(
            (20, 40),
            4,
            &[("a", Some(1)), ("b", Some(2))],
            writes("b", 4),
            TxnOutcome::CheckFailed { failed: vec![0] },
        ),
    ];
    let both = txn((20, 40), 4, &[("a", Some(1)), ("b", Some(2))], writes("b", 4), committed(4));
    let report = caught(&good, &with(&good, 3, both), &[Invariant::StrictSerializability]);
    assert!(report.to_string().contains("did not hold"), "{report}");
}

#[test]
fn failed_check_that_held() {
    let refused = |failed| {
        let writes = vec![Write::SetRegister { key: "b".into(), value: 2 }];
        txn(
            (20, 30),
            2,
            &[("a", Some(1)), ("b", Some(7))],
            writes,
            TxnOutcome::CheckFailed { failed },
        )
    };
    let good = [set((0, 10), 1, "a", committed(1)), refused(vec![1])];
    for failed in [vec![0], vec![0, 1], vec![], vec![9], vec![1, 9]] {
        caught(&good, &with(&good, 1, refused(failed)), &[Invariant::StrictSerializability]);
    }
}

#[test]
fn failed_check_because_of_an_unseen_write() {
    let refused = TxnOutcome::CheckFailed { failed: vec![0] };
    let refused = txn(
        (20, 30),
        2,
        &[("a", Some(1))],
        vec![Write::SetRegister { key: "b".into(), value: 2 }],
        refused,
    );
    let hidden = |times| set(times, 3, "a", TxnOutcome::Unknown);
    let over = set((40, 50), 4, "a", committed(9));
    let good = [set((0, 10), 1, "a", committed(1)), hidden((5, 15)), refused, over];
    caught(&good, &with(&good, 1, hidden((35, 36))), &[Invariant::StrictSerializability]);
}

#[test]
fn versionstamp_reused() {
    let good = [set((0, 10), 1, "a", committed(1)), set((20, 30), 2, "b", committed(2))];
    caught(
        &good,
        &with(&good, 1, set((20, 30), 2, "b", committed(1))),
        &[Invariant::Versionstamps],
    );
}

#[test]
fn versionstamps_go_back() {
    let good = [
        set((0, 10), 1, "a", committed(2)),
        set((0, 30), 2, "b", committed(1)),
        set((40, 50), 3, "c", committed(3)),
    ];
    let bad = with(&good, 1, set((20, 30), 2, "b", committed(1)));
    caught(&good, &bad, &[Invariant::Versionstamps]);
}

#[test]
fn dirty_read() {
    let refused = TxnOutcome::NotCommitted { reason: "no quorum".into() };
    let good = [
        set((0, 10), 1, "r", committed(1)),
        set((20, 30), 2, "r", refused),
        strong((40, 50), &["r"], vec![register(1, 1)]),
    ];
    let dirty = strong((40, 50), &["r"], vec![register(2, 2)]);
    caught(&good, &with(&good, 2, dirty), &[Invariant::Outcomes]);
    let eventually = eventual((40, 50), &["r"], vec![register(2, 2)]);
    caught(&good, &with(&good, 2, eventually), &[Invariant::Outcomes]);
    let from_nowhere = strong((40, 50), &["r"], vec![register(77, 1)]);
    caught(
        &good,
        &with(&good, 2, from_nowhere),
        &[Invariant::Outcomes, Invariant::StrictSerializability],
    );
}

#[test]
fn fractured_snapshot() {
    let both = |times, id: u64, version| {
        let set = |key: &str| Write::SetRegister { key: key.into(), value: id };
        txn(times, id, &[], vec![set("a"), set("b")], committed(version))
    };
    let of = |a, b| vec![register(a, a), register(b, b)];
    for make in [strong, eventual] {
        let good =
            [both((0, 10), 1, 1), both((20, 60), 2, 2), make((30, 50), &["a", "b"], of(2, 2))];
        let invariant = match &good[2].operation {
            Operation::Read(Read { consistency: Consistency::Strong, .. }) => {
                Invariant::StrictSerializability
            }
            _ => Invariant::EventualReads,
        };
        let report =
            caught(&good, &with(&good, 2, make((30, 50), &["a", "b"], of(1, 2))), &[invariant]);
        assert!(report.to_string().contains("fractured"), "{report}");
        caught(
            &good,
            &with(&good, 2, make((30, 50), &["a", "b"], vec![None, register(2, 2)])),
            &[invariant],
        );
    }
}

#[test]
fn eventual_read_goes_back() {
    let good = [
        set((0, 10), 1, "r", committed(1)),
        set((20, 30), 2, "r", committed(2)),
        eventual((40, 50), &["r"], vec![register(1, 1)]),
        eventual((60, 70), &["r"], vec![register(2, 2)]),
    ];
    let mut bad = good.to_vec();
    (bad[2].invoked_ns, bad[2].completed_ns) = (80, Some(90));
    caught(&good, &bad, &[Invariant::EventualReads]);
    // Another gateway may be further behind.
    if let Operation::Read(read) = &mut bad[2].operation {
        read.gateway = "another".into();
    }
    assert!(judge(&bad).is_clean());
}

#[test]
fn eventual_read_from_the_future() {
    let good = [set((0, 10), 1, "r", committed(1)), eventual((5, 8), &["r"], vec![register(1, 1)])];
    let report = caught(
        &good,
        &with(&[set((10, 20), 1, "r", committed(1)), good[1].clone()], 1, good[1].clone()),
        &[Invariant::EventualReads],
    );
    assert!(report.to_string().contains("future"), "{report}");
}

#[test]
fn acknowledged_before_quorum() {
    let good = [
        set((0, 10), 1, "a", committed(1)),
        set((20, 30), 2, "b", committed(2)),
        set((40, 50), 3, "c", committed(3)),
        last(&["a", "b", "c"], vec![register(1, 1), register(2, 2), register(3, 3)]),
    ];
    // Transaction 2 was acknowledged by a leader that lost it; its successor gave the position to
    // another transaction.
    let mut bad = with(&good, 2, set((40, 50), 3, "c", committed(2)));
    bad[3] = last(&["a", "b", "c"], vec![register(1, 1), None, register(3, 2)]);
    caught(&good, &bad, &[Invariant::Versionstamps, Invariant::AcknowledgedWrites]);
}

#[test]
fn unknown_results_are_resolved_by_what_is_seen() {
    let sum = || {
        vec![
            Write::Sum { key: "c".into(), amount: 5 },
            Write::SetRegister { key: "m".into(), value: 1 },
        ]
    };
    let history = |c, m| {
        let mut records =
            [txn((0, 10), 1, &[], sum(), TxnOutcome::Unknown), last(&["c", "m"], vec![c, m])];
        records[0].completed_ns = None;
        records
    };
    assert!(judge(&history(None, None)).is_clean());
    let good = history(counter(5, 1), register(1, 1));
    assert_eq!(judge(&good).statistics.unknown_committed, 1);
    caught(&good, &history(counter(10, 1), register(1, 1)), &[Invariant::ExactlyOnce]);
    caught(&good, &history(None, register(1, 1)), &[Invariant::StrictSerializability]);
    caught(
        &good,
        &history(counter(5, 1), None),
        &[Invariant::ExactlyOnce, Invariant::StrictSerializability],
    );
}

#[test]
fn unknown_append_is_placed_by_the_check_of_the_next() {
    let mut lost = append((0, 10), 1, 1, None);
    if let Operation::Txn(txn) = &mut lost.operation {
        txn.outcome = TxnOutcome::Unknown;
    }
    let good = [lost, append((20, 30), 2, 5, Some(3)), last(&["list"], vec![list(&[1, 2], 5)])];
    let unchecked =
        txn((20, 30), 2, &[], vec![Write::Append { key: "list".into(), element: 2 }], committed(5));
    caught(&good, &with(&good, 1, unchecked), &[Invariant::WellFormed]);
}

#[test]
fn histories_that_cannot_be_judged() {
    let good = [set((0, 10), 1, "r", committed(1)), strong((20, 30), &["r"], vec![register(1, 1)])];
    let unmarked =
        txn((20, 30), 2, &[], vec![Write::Sum { key: "c".into(), amount: 1 }], TxnOutcome::Unknown);
    caught(&good, &with(&good, 1, unmarked), &[Invariant::WellFormed]);
    caught(&good, &with(&good, 1, set((20, 30), 1, "s", committed(2))), &[Invariant::WellFormed]);
    caught(
        &good,
        &with(&good, 1, strong((30, 20), &["r"], vec![register(1, 1)])),
        &[Invariant::WellFormed],
    );
    caught(&good, &with(&good, 1, strong((20, 30), &["r"], vec![])), &[Invariant::WellFormed]);
    let again =
        txn((20, 30), 2, &[], vec![Write::SetRegister { key: "r".into(), value: 1 }], committed(2));
    caught(&good, &with(&good, 1, again), &[Invariant::WellFormed]);
}
