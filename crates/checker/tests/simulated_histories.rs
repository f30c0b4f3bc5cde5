//! Histories of a simulated serial store pass; with one answer changed, most of them do not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may; the helpers here are no test functions"
)]

use std::time::Instant;

use meridian_checker::{Entry, History, Operation, ReadOutcome, TxnOutcome, Value, check};
use meridian_types::{Consistency, Versionstamp};
use proptest::prelude::{ProptestConfig, Strategy, any, prop};
use proptest::{prop_assert, proptest};

mod support;

use support::{Simulation, Step, entry, stamp};

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
    fn answers_of_a_serial_store_are_clean(steps in steps(0..300)) {
        let history = Simulation::run(steps);
        let report = check(&history);
        prop_assert!(report.is_clean(), "{report}");

        let mut saved = Vec::new();
        history.write(&mut saved).unwrap();
        prop_assert!(History::read(saved.as_slice()).unwrap() == history);
    }
}

/// A small generator of our own: the counts below must not change from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn steps(&mut self, count: usize, slack: u8) -> Vec<Step> {
        (0..count)
            .map(|_| {
                let [kind, key, other_key, before, after, luck, ..] = self.next().to_le_bytes();
                Step { kind, key, other_key, before: before % slack, after: after % slack, luck }
            })
            .collect()
    }
}

const MUTATIONS: [&str; 8] = [
    "an entry of a strong read gone",
    "an entry of a strong read older by one",
    "the version of an entry changed",
    "a counter off by one",
    "the last element of a list gone, its version kept",
    "an acknowledgement with another versionstamp",
    "a commit reported as not committed",
    "failed checks reported as a commit",
];

fn reads(history: &mut History) -> Vec<(Consistency, &mut Option<Entry>)> {
    history
        .records
        .iter_mut()
        .filter_map(|record| match &mut record.operation {
            Operation::Read(read) => Some((read.consistency, &mut read.outcome)),
            Operation::Txn(_) => None,
        })
        .filter_map(|(consistency, outcome)| match outcome {
            ReadOutcome::Entries(entries) => Some((consistency, entries)),
            _ => None,
        })
        .flat_map(|(consistency, entries)| {
            entries.iter_mut().map(move |entry| (consistency, entry))
        })
        .filter(|(_, entry)| entry.is_some())
        .collect()
}

fn choose<T>(mut from: Vec<T>, random: &mut Random) -> Option<T> {
    if from.is_empty() { None } else { Some(from.swap_remove(random.below(from.len()))) }
}

fn outcomes(history: &mut History, wanted: impl Fn(&TxnOutcome) -> bool) -> Vec<&mut TxnOutcome> {
    history
        .records
        .iter_mut()
        .filter_map(|record| match &mut record.operation {
            Operation::Txn(txn) => Some(&mut txn.outcome),
            Operation::Read(_) => None,
        })
        .filter(|outcome| wanted(outcome))
        .collect()
}

fn moved(versionstamp: Versionstamp) -> Versionstamp {
    stamp(versionstamp.position().sequence + 1)
}

/// Returns `false` if the history has nothing of the kind to change.
fn mutate(history: &mut History, mutation: usize, random: &mut Random) -> bool {
    let strong =
        |(consistency, _): &(Consistency, &mut Option<Entry>)| *consistency == Consistency::Strong;
    match mutation {
        0 => choose(reads(history).into_iter().filter(strong).collect(), random)
            .map(|(_, e)| *e = None),
        1 => {
            let all: Vec<Entry> =
                reads(history).into_iter().filter_map(|(_, entry)| entry.clone()).collect();
            choose(reads(history).into_iter().filter(strong).collect(), random).and_then(
                |(_, e)| {
                    let Some(Entry { value: Value::List(list), .. }) = e else { return None };
                    let older = list.split_last()?.1.to_vec();
                    let older =
                        all.into_iter().find(|entry| entry.value == Value::List(older.clone()))?;
                    *e = Some(older);
                    Some(())
                },
            )
        }
        2 => choose(reads(history), random).and_then(|(_, e)| {
            let Entry { value, versionstamp } = e.clone()?;
            *e = entry(value, moved(versionstamp));
            Some(())
        }),
        3 => {
            let counters = reads(history)
                .into_iter()
                .filter(|(_, e)| matches!(e, Some(Entry { value: Value::Counter(_), .. })));
            choose(counters.collect(), random).and_then(|(_, e)| {
                let Some(Entry { value: Value::Counter(value), .. }) = e else { return None };
                *value += 1;
                Some(())
            })
        }
        4 => choose(reads(history), random).and_then(|(_, e)| match e {
            Some(Entry { value: Value::List(list), .. }) => list.pop().map(|_| ()),
            _ => None,
        }),
        5 => choose(outcomes(history, |o| matches!(o, TxnOutcome::Committed { .. })), random).map(
            |outcome| {
                if let TxnOutcome::Committed { versionstamp } = outcome {
                    *versionstamp = moved(*versionstamp);
                }
            },
        ),
        6 => choose(outcomes(history, |o| matches!(o, TxnOutcome::Committed { .. })), random)
            .map(|outcome| *outcome = TxnOutcome::NotCommitted { reason: "planted".into() }),
        _ => choose(outcomes(history, |o| matches!(o, TxnOutcome::CheckFailed { .. })), random)
            .map(|outcome| *outcome = TxnOutcome::Committed { versionstamp: stamp(1_000_000) }),
    }
    .is_some()
}

#[test]
fn single_mutations_are_mostly_caught() {
    let mut random = Random(1);
    let (mut all_tried, mut all_caught) = (0, 0);
    for (mutation, name) in MUTATIONS.iter().enumerate() {
        let (mut tried, mut caught) = (0, 0);
        for _ in 0..100 {
            let mut history = Simulation::run(random.steps(150, 40));
            if mutate(&mut history, mutation, &mut random) {
                tried += 1;
                caught += usize::from(!check(&history).is_clean());
            }
        }
        println!("{caught:3} of {tried:3} caught: {name}");
        assert!(tried >= 20, "{name} was tried only {tried} times");
        all_tried += tried;
        all_caught += caught;
    }
    println!("{all_caught} of {all_tried} caught in all");
    assert!(all_caught * 100 >= all_tried * 95, "{all_caught} of {all_tried}");
}

#[test]
fn a_long_history_takes_seconds() {
    // Independent sections one after the other: the simulation keeps every state, and so is
    // quadratic.
    let mut random = Random(2);
    let mut long = History::default();
    let (mut stretch, mut end_ns, mut first_stamp) = (0_u64, 0, 0);
    while long.records.len() < 100_000 {
        let mut history = Simulation::run(random.steps(2_000, 250));
        relabel(&mut history, stretch, end_ns, first_stamp);
        end_ns += 1_000_000;
        first_stamp += 1_000_000;
        stretch += 1;
        long.records.append(&mut history.records);
    }
    let start = Instant::now();
    let report = check(&long);
    println!("{} operations checked in {:?}\n{report}", long.records.len(), start.elapsed());
    assert!(report.is_clean(), "{report}");
    // Without optimization, on a busy machine.
    assert!(start.elapsed().as_secs() < 60);
}

/// Moves a history to other keys, other transactions and a later time.
fn relabel(history: &mut History, stretch: u64, from_ns: u64, first_stamp: u64) {
    let later = |versionstamp: &mut Versionstamp| {
        *versionstamp = stamp(versionstamp.position().sequence + first_stamp)
    };
    for record in &mut history.records {
        record.invoked_ns += from_ns;
        record.completed_ns = record.completed_ns.map(|ns| ns + from_ns);
        match &mut record.operation {
            Operation::Read(read) => {
                read.keys.iter_mut().for_each(|key| key.push_str(&format!(".{stretch}")));
                if let ReadOutcome::Entries(entries) = &mut read.outcome {
                    entries.iter_mut().flatten().for_each(|entry| later(&mut entry.versionstamp));
                }
            }
            Operation::Txn(txn) => {
                txn.id += stretch * 1_000_000;
                for check in &mut txn.checks {
                    check.key.push_str(&format!(".{stretch}"));
                    check.versionstamp.iter_mut().for_each(later);
                }
                for write in &mut txn.writes {
                    use meridian_checker::Write;
                    match write {
                        Write::Append { key, .. }
                        | Write::SetRegister { key, .. }
                        | Write::Delete { key }
                        | Write::Sum { key, .. } => key.push_str(&format!(".{stretch}")),
                    }
                }
                if let TxnOutcome::Committed { versionstamp } = &mut txn.outcome {
                    later(versionstamp);
                }
            }
        }
    }
}
