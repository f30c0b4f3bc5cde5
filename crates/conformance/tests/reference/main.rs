//! Random programs of a client, against Meridian and against the reference implementation: every
//! answer is the same.
//!
//! Compared are outcomes, failed checks, the texts of rejections, keys, values, encodings, order,
//! cursors and expiries; versionstamps by their order, since each side chooses its own.
//!
//! Exempted is what is broken in `denokv_sqlite` 0.14, or chosen otherwise here:
//!
//! | what | how |
//! |---|---|
//! | a write that fails keeps its earlier mutations | undone after each such write, in [`denokv`] |
//! | more than 10 checks are refused by its server | programs have fewer, or more than 100 |
//! | a key with a versionstamp behind it is measured without | programs have short ones |
//! | a u64 that is not of 8 bytes is a panic of its server | programs have none |
//! | bounds of sums count neither as values nor in the total | programs have short ones |
//! | V8 values of format 16 stay so | read as format 15, in [`denokv`] |
//! | dead letters notify no watch; versionstamped keys notify the prefix; expiry is late | there are no watches, no queues and no near expiries in programs |
//!
//! `MERIDIAN_CONFORMANCE_PROGRAMS` says how many programs run. A failure prints the shortest program
//! that shows it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod denokv;
mod exemptions;
mod meridian;
mod messages;
mod program;
mod store;
mod values;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bytes::Bytes;
use denokv::{Denokv, Theirs};
use meridian::Ours;
use meridian_conformance::{Catalogue, Meridian};
use meridian_gateway::Options;
use meridian_proto::kv_connect as pb;
use program::{Range, Step, Write};
use proptest::prelude::{ProptestConfig, TestCaseError, prop_assert, prop_assert_eq};
use proptest::test_runner::TestRunner;
use store::{Eyes, Refusal, Seen, SeenKey, Store, Written};

/// The outcome of a step, without the values that each side chooses for itself.
#[derive(Debug, PartialEq)]
enum Outcome {
    Committed,
    CheckFailed(Vec<u32>),
    Refused(Refusal),
    Entries(Vec<Vec<Seen>>),
}

/// How often each outcome was met.
type Met = BTreeMap<String, u64>;

async fn run<S: Store>(store: &mut S, step: &Step) -> Outcome {
    match step {
        Step::Write(write) => self::write(store, write).await,
        Step::Read(ranges) => {
            let ranges = ranges.iter().map(|range| messages::range(range, store.stamps()));
            let message = pb::SnapshotRead { ranges: ranges.collect() };
            let eyes = Eyes::new(store.stamps());
            match store.read(message).await {
                Ok(ranges) => Outcome::Entries(seen(&eyes, &ranges)),
                Err(refusal) => Outcome::Refused(refusal),
            }
        }
        Step::List(range) => Outcome::Entries(list(store, range).await),
    }
}

fn seen(eyes: &Eyes, ranges: &[Vec<pb::KvEntry>]) -> Vec<Vec<Seen>> {
    let entry = |entry: &pb::KvEntry| eyes.entry(entry);
    ranges.iter().map(|entries| entries.iter().map(entry).collect()).collect()
}

async fn write<S: Store>(store: &mut S, write: &Write) -> Outcome {
    let present = match write.checks.is_empty() {
        true => Vec::new(),
        false => store.read(messages::checked(write, store.stamps())).await.unwrap(),
    };
    let stamp =
        |entries: &Vec<pb::KvEntry>| entries.first().map(|entry| entry.versionstamp.clone());
    let present: Vec<Bytes> =
        present.iter().map(|entries| stamp(entries).unwrap_or_default()).collect();
    let message = messages::write(write, &present, store.stamps());
    match store.write(message).await {
        Written::Committed(stamp) => {
            let last = store.stamps().last().cloned().unwrap_or_default();
            assert!(stamp.len() == 10 && stamp > last, "{stamp:x} does not follow {last:x}");
            store.committed(stamp);
            Outcome::Committed
        }
        Written::CheckFailed(failed) => Outcome::CheckFailed(failed),
        Written::Refused(refusal) => Outcome::Refused(refusal),
    }
}

/// The pages of a range. A client's cursor is the last key that it has seen.
async fn list<S: Store>(store: &mut S, range: &Range) -> Vec<Vec<Seen>> {
    let eyes = Eyes::new(store.stamps());
    let mut message = messages::range(range, store.stamps());
    let mut pages = Vec::new();
    loop {
        let page = store.read(pb::SnapshotRead { ranges: vec![message.clone()] }).await;
        let page = page.unwrap().swap_remove(0);
        let is_last = page.len() < message.limit as usize;
        if let Some(last) = page.last() {
            match range.reverse {
                true => message.end = last.key.clone(),
                false => message.start = [last.key.as_ref(), &[0]].concat().into(),
            }
        }
        pages.extend(seen(&eyes, &[page]));
        if is_last {
            return pages;
        }
    }
}

async fn expiries<S: Store>(store: &mut S) -> Vec<(SeenKey, u64)> {
    let eyes = Eyes::new(store.stamps());
    let all = store.expiries().await.into_iter();
    all.map(|(key, expire_at_ms)| (eyes.key(&key), expire_at_ms)).collect()
}

fn note(met: &mut Met, outcome: &Outcome) {
    let what = match outcome {
        Outcome::Committed => "committed".to_owned(),
        Outcome::CheckFailed(_) => "check failed".to_owned(),
        Outcome::Refused(Refusal::Text(text)) => text.clone(),
        Outcome::Refused(Refusal::About(what)) => (*what).to_owned(),
        Outcome::Entries(ranges) if ranges.iter().all(Vec::is_empty) => "nothing found".to_owned(),
        Outcome::Entries(_) => "entries found".to_owned(),
    };
    *met.entry(what).or_default() += 1;
}

async fn compare(
    ours: &mut Ours<'_>,
    theirs: &mut Theirs<'_>,
    program: &[Step],
    met: &RefCell<Met>,
) -> Result<(), TestCaseError> {
    for (number, step) in program.iter().enumerate() {
        let (here, there) = (run(ours, step).await, run(theirs, step).await);
        note(&mut met.borrow_mut(), &there);
        match (&here, &there) {
            (Outcome::Refused(Refusal::Text(text)), Outcome::Refused(Refusal::About(part))) => {
                prop_assert!(text.contains(part), "step {number}: {text:?} is not on {part:?}");
            }
            (here, there) => prop_assert_eq!(here, there, "step {}: {:?}", number, step),
        }
    }
    let all = Step::Read(vec![program::all()]);
    prop_assert_eq!(run(ours, &all).await, run(theirs, &all).await, "all that is left");
    prop_assert_eq!(expiries(ours).await, expiries(theirs).await, "the expiries");
    Ok(())
}

/// The texts of a database that programs must have met, or they do not compare much.
const REJECTIONS: [&str; 15] = [
    "Cannot sum BigInt with Number",
    "Cannot sum KvU64 with BigInt",
    "Cannot sum KvU64 with Number",
    "Cannot sum Number with BigInt",
    "Failed to perform 'max' mutation on a non-U64 operand",
    "Failed to perform 'max' mutation on a non-U64 value in the database",
    "Failed to perform 'min' mutation on a non-U64 operand",
    "Failed to perform 'min' mutation on a non-U64 value in the database",
    "Failed to perform 'sum' mutation on a non-U64 value in the database",
    "Min/max parameters have different types than the operand",
    "Some of the parameters are not valid V8 values",
    "The result of a Sum operation would exceed its range limit",
    "invalid v8 value",
    "operand cannot be empty",
    "unsupported value type",
];

#[test]
fn random_programs_are_answered_as_by_the_reference() {
    let programs = std::env::var("MERIDIAN_CONFORMANCE_PROGRAMS");
    let programs = programs.map_or(1000, |number| number.parse().expect("a number of programs"));
    let config =
        ProptestConfig { cases: programs, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (meridian, denokv) =
        (Meridian::new(Options::default(), Catalogue::default()).unwrap(), Denokv::open());
    let (met, runs) = (RefCell::new(Met::new()), Cell::new(0));
    let result = TestRunner::new(config).run(&program::program(), |program| {
        runs.set(runs.get() + 1);
        let (mut ours, mut theirs) = (Ours::new(&meridian, runs.get()), Theirs::new(&denokv));
        runtime.block_on(compare(&mut ours, &mut theirs, &program, &met))
    });
    let met = met.into_inner();
    if let Err(failure) = result {
        panic!("{failure}");
    }
    println!("{met:#?}");
    let missing = REJECTIONS.iter().filter(|text| !met.contains_key(**text));
    assert!(missing.clone().count() == 0 || programs < 1000, "{:?}", missing.collect::<Vec<_>>());
    let often = ["committed", "check failed", "entries found", "nothing found"];
    let often = often.map(|what| met.get(what).copied().unwrap_or_default());
    assert!(often.iter().all(|count| *count >= u64::from(programs) / 10), "{often:?}");
}
