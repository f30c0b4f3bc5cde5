//! Failovers that lose the tail of an epoch: reported losses are counted and are no violations;
//! unreported losses are violations, and so is a lost write that comes back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may; the helpers here are no test functions"
)]

use meridian_checker::{
    Allowance, Check, Entry, History, Invariant, LostWindow, Operation, Read, ReadOutcome, Record,
    Report, Txn, TxnOutcome, Value, Write, check, check_with,
};
use meridian_types::{Epoch, Position, Versionstamp};
use proptest::prelude::{ProptestConfig, Strategy, any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

#[allow(dead_code, reason = "shared with another test")]
mod support;

use support::{Simulation, Step};

type Version = (u16, u64);

fn stamp((epoch, sequence): Version) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(epoch), sequence), 0)
}

fn entry(value: Value, version: Version) -> Option<Entry> {
    Some(Entry { value, versionstamp: stamp(version) })
}

fn register(value: u64, version: Version) -> Option<Entry> {
    entry(Value::Register(value), version)
}

fn counter(value: u64, version: Version) -> Option<Entry> {
    entry(Value::Counter(value), version)
}

fn list(elements: &[u64], version: Version) -> Option<Entry> {
    entry(Value::List(elements.to_vec()), version)
}

fn committed(version: Version) -> TxnOutcome {
    TxnOutcome::Committed { versionstamp: stamp(version) }
}

fn txn(
    times: (u64, u64),
    id: u64,
    checks: &[(&str, Option<Version>)],
    writes: Vec<Write>,
    outcome: TxnOutcome,
) -> Record {
    let check = |(key, version): &(&str, Option<Version>)| Check {
        key: (*key).into(),
        versionstamp: version.map(stamp),
    };
    let operation =
        Operation::Txn(Txn { outcome, ..Txn::new(id, checks.iter().map(check).collect(), writes) });
    Record { client: id, invoked_ns: times.0, completed_ns: Some(times.1), operation }
}

fn set(times: (u64, u64), id: u64, key: &str, outcome: TxnOutcome) -> Record {
    txn(times, id, &[], vec![Write::SetRegister { key: key.into(), value: id }], outcome)
}

fn sum(times: (u64, u64), id: u64, amount: u64, outcome: TxnOutcome) -> Record {
    let marker = Write::SetRegister { key: format!("m{id}"), value: id };
    txn(times, id, &[], vec![Write::Sum { key: "c".into(), amount }, marker], outcome)
}

fn append(times: (u64, u64), id: u64, on: Option<Version>, outcome: TxnOutcome) -> Record {
    txn(times, id, &[("l", on)], vec![Write::Append { key: "l".into(), element: id }], outcome)
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

fn strong(times: (u64, u64), key: &str, entry: Option<Entry>) -> Record {
    read(times, Read::strong("gateway", vec![key.into()]), vec![entry])
}

fn eventual(times: (u64, u64), key: &str, entry: Option<Entry>) -> Record {
    read(times, Read::eventual("gateway", vec![key.into()]), vec![entry])
}

fn last(key: &str, entry: Option<Entry>) -> Record {
    read((1000, 1010), Read::last("gateway", vec![key.into()]), vec![entry])
}

/// Epoch 2 began after sequence `base_sequence`.
fn losing(base_sequence: u64) -> Allowance {
    Allowance { lost: vec![LostWindow { epoch: Epoch(2), base_sequence }] }
}

fn judge(records: &[Record], allowance: &Allowance) -> Report {
    check_with(&History { records: records.to_vec() }, allowance)
}

#[track_caller]
fn clean(records: &[Record], allowance: &Allowance) -> Report {
    let report = judge(records, allowance);
    assert!(report.is_clean(), "{report}");
    report
}

#[track_caller]
fn caught(records: &[Record], allowance: &Allowance, invariants: &[Invariant]) {
    let report = judge(records, allowance);
    for invariant in invariants {
        assert!(report.count(*invariant) > 0, "{invariant} is not named:\n{report}");
    }
}

/// Writes 1 and 2 in epoch 1; the second is lost; write 3 in epoch 2.
fn lost_write() -> Vec<Record> {
    vec![
        set((0, 10), 1, "r", committed((1, 1))),
        set((20, 30), 2, "r", committed((1, 2))),
        strong((31, 35), "r", register(2, (1, 2))),
        strong((40, 50), "r", register(1, (1, 1))),
        set((60, 70), 3, "s", committed((2, 2))),
        last("r", register(1, (1, 1))),
        last("s", register(3, (2, 2))),
    ]
}

#[test]
fn reported_loss_is_counted() {
    let report = clean(&lost_write(), &losing(1));
    assert_eq!(report.lost, [1]);
    assert!(report.to_string().contains("1 acknowledged"), "{report}");
}

#[test]
fn unreported_loss_is_a_violation() {
    caught(
        &lost_write(),
        &Allowance::default(),
        &[Invariant::AcknowledgedWrites, Invariant::StrictSerializability],
    );
    // The base includes the write: it should be there.
    caught(
        &lost_write(),
        &losing(2),
        &[Invariant::AcknowledgedWrites, Invariant::StrictSerializability],
    );
}

#[test]
fn without_an_allowance_nothing_changes() {
    let records = lost_write();
    let history = History { records: records[..3].to_vec() };
    assert_eq!(check(&history), check_with(&history, &Allowance::default()));
}

#[test]
fn a_lost_write_that_comes_back() {
    let mut records = lost_write();
    records[5] = last("r", register(2, (1, 2)));
    caught(&records, &losing(1), &[Invariant::AcknowledgedWrites]);
    // A strong read after the new epoch has answered.
    let mut records = lost_write();
    records.push(strong((80, 90), "r", register(2, (1, 2))));
    caught(&records, &losing(1), &[Invariant::StrictSerializability]);
    // And an eventual read may show it only until the gateway has shown the new epoch.
    let mut records = lost_write();
    records.push(eventual((80, 90), "r", register(2, (1, 2))));
    clean(&records, &losing(1));
    records.push(eventual((60, 72), "s", register(3, (2, 2))));
    caught(&records, &losing(1), &[Invariant::EventualReads]);
}

#[test]
fn a_lost_write_that_comes_back_anew_was_answered_already() {
    let mut records = lost_write();
    records[5] = last("r", register(2, (2, 3)));
    caught(&records, &losing(1), &[Invariant::ExactlyOnce]);
}

#[test]
fn a_strong_read_goes_from_the_new_epoch_to_the_old() {
    let mut records = lost_write();
    records.push(strong((52, 55), "r", register(2, (1, 2))));
    caught(&records, &losing(1), &[Invariant::StrictSerializability]);
}

#[test]
fn an_old_epoch_acknowledges_after_the_new_one() {
    let mut records = lost_write();
    records.insert(5, set((80, 90), 4, "t", committed((1, 3))));
    caught(&records, &losing(1), &[Invariant::Versionstamps]);
}

#[test]
fn list_grows_from_where_it_was_cut() {
    let mut records = vec![
        append((0, 10), 1, None, committed((1, 1))),
        append((20, 30), 2, Some((1, 1)), committed((1, 2))),
        append((40, 50), 3, Some((1, 1)), committed((2, 2))),
        strong((52, 55), "l", list(&[1, 3], (2, 2))),
        last("l", list(&[1, 3], (2, 2))),
    ];
    assert_eq!(clean(&records, &losing(1)).lost, [1]);
    // It cannot grow on the lost branch.
    records[2] = append((40, 50), 3, Some((1, 2)), committed((2, 2)));
    caught(&records, &losing(1), &[Invariant::StrictSerializability]);
}

#[test]
fn unanswered_write_may_be_lost_and_applied_again() {
    let again = |outcome| {
        vec![
            set((0, 10), 1, "r", committed((1, 1))),
            set((20, 90), 2, "r", outcome),
            strong((31, 35), "r", register(2, (1, 2))),
            set((60, 70), 3, "s", committed((2, 2))),
        ]
    };
    let mut done = again(committed((2, 3)));
    done.push(last("r", register(2, (2, 3))));
    clean(&done, &losing(1));
    caught(&done, &losing(2), &[Invariant::ExactlyOnce]);
    let mut refused = again(TxnOutcome::NotCommitted { reason: "503".into() });
    refused.push(last("r", register(1, (1, 1))));
    clean(&refused, &losing(1));
    caught(&refused, &losing(2), &[Invariant::Outcomes]);
}

#[test]
fn unanswered_sum_may_be_part_of_a_lost_counter() {
    let mut records = vec![
        sum((0, 10), 1, 5, committed((1, 1))),
        sum((12, 95), 2, 7, TxnOutcome::Unknown),
        strong((31, 35), "c", counter(12, (1, 2))),
        sum((60, 70), 3, 1, committed((2, 2))),
        last("c", counter(6, (2, 2))),
        last("m2", None),
    ];
    clean(&records, &losing(1));
    // After the failover a counter is exact again.
    records[4] = last("c", counter(13, (2, 2)));
    caught(&records, &losing(1), &[Invariant::ExactlyOnce]);
    // And before it, if every transaction was answered.
    records[4] = last("c", counter(6, (2, 2)));
    records[1] = sum((12, 15), 2, 7, committed((1, 2)));
    clean(&records, &losing(1));
    records[2] = strong((31, 35), "c", counter(13, (1, 2)));
    caught(&records, &losing(1), &[Invariant::ExactlyOnce]);
}

fn steps(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>())
        .prop_map(|(kind, key, other_key, before, after, luck)| Step {
            kind,
            key,
            other_key,
            before,
            after,
            luck,
        });
    prop::collection::vec(step, count)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_of_a_store_with_failovers_are_clean(
        steps in steps(50..250),
        failovers in prop::collection::vec((0..250_usize, 0..12_usize), 0..4),
    ) {
        let (history, allowance) = Simulation::run_with_failovers(steps, &failovers);
        let report = check_with(&history, &allowance);
        prop_assert!(report.is_clean(), "{report}\n{allowance:?}");
        prop_assert_eq!(report.lost.len(), report.statistics.committed - survivors(&history, &allowance));
    }
}

fn survivors(history: &History, allowance: &Allowance) -> usize {
    let survives = |record: &&Record| match &record.operation {
        Operation::Txn(Txn { outcome: TxnOutcome::Committed { versionstamp }, .. }) => {
            !allowance.lost.iter().any(|window| window.covers(*versionstamp))
        }
        _ => false,
    };
    history.records.iter().filter(survives).count()
}

#[test]
fn a_window_too_small_is_mostly_caught() {
    let mut caught = 0;
    let mut tried = 0;
    for seed in 0..100_u8 {
        let steps = (0..200_u8).map(|n| {
            let mixed = n.wrapping_mul(97).wrapping_add(seed.wrapping_mul(31));
            let [kind, key, other_key] = [mixed, mixed.wrapping_mul(7) ^ n, mixed.rotate_left(3)];
            Step { kind, key, other_key, before: 1, after: 1, luck: mixed.rotate_left(5) % 200 }
        });
        let (history, mut allowance) = Simulation::run_with_failovers(steps, &[(120, 6)]);
        assert!(check_with(&history, &allowance).is_clean());
        allowance.lost[0].base_sequence += 1;
        tried += 1;
        caught += usize::from(!check_with(&history, &allowance).is_clean());
    }
    println!("{caught} of {tried} caught");
    assert!(caught * 100 >= tried * 90, "{caught} of {tried}");
}
