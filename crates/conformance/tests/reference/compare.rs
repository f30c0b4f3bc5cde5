//! A program's steps on both sides, one after the other, and whether their outcomes are the same.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_proto::kv_connect as pb;
use proptest::prelude::{ProptestConfig, TestCaseError, prop_assert, prop_assert_eq};
use proptest::test_runner::{RngSeed, TestError, TestRunner};
use tokio::runtime::Builder;

use crate::denokv::{Denokv, Theirs};
use crate::messages;
use crate::program::{self, Range, Step, Write};
use crate::store::{Eyes, Refusal, Seen, Store, Written};

/// The outcome of a step, without the values that each side chooses for itself.
#[derive(Debug, PartialEq)]
enum Outcome {
    Committed,
    CheckFailed(Vec<u32>),
    Refused(Refusal),
    Entries(Vec<Vec<Seen>>),
    Watched(Vec<Option<Seen>>),
}

/// How often each outcome was met.
pub(crate) type Met = BTreeMap<String, u64>;

/// Programs to be drawn.
pub(crate) struct Drawn {
    pub(crate) programs: u32,
    pub(crate) seed: u64,
    /// Whether the shortest program is looked for that both sides answer differently.
    pub(crate) shrinks: bool,
}

/// The outcomes that were met, and the program that both sides answered differently, if there is one.
pub(crate) struct Compared {
    pub(crate) programs: u128,
    pub(crate) met: Met,
    pub(crate) result: Result<(), TestError<Vec<Step>>>,
}

impl Drawn {
    /// Runs each program on an empty database of our side, which `begin` makes, and on one of the
    /// reference.
    pub(crate) fn compare<S: Store>(&self, denokv: &Denokv, begin: impl Fn(u128) -> S) -> Compared {
        let plain = ProptestConfig::default();
        let config = ProptestConfig {
            cases: self.programs,
            failure_persistence: None,
            max_shrink_iters: if self.shrinks { plain.max_shrink_iters } else { 0 },
            rng_seed: RngSeed::Fixed(self.seed),
            ..plain
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (met, runs) = (RefCell::new(Met::new()), Cell::new(0));
        let result = TestRunner::new(config).run(&program::program(), |program| {
            runs.set(runs.get() + 1);
            let (mut ours, mut theirs) = (begin(runs.get()), Theirs::new(denokv));
            runtime.block_on(compare(&mut ours, &mut theirs, &program, &met))
        });
        Compared { programs: runs.get(), met: met.into_inner(), result }
    }
}

async fn compare<S: Store>(
    ours: &mut S,
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
    let (here, there) = (ours.hidden().await, theirs.hidden().await);
    let (here_is, there_is) = (Eyes::new(ours.stamps()), Eyes::new(theirs.stamps()));
    prop_assert_eq!(here_is.hidden(here), there_is.hidden(there), "expiries and messages");
    Ok(())
}

async fn run<S: Store>(store: &mut S, step: &Step) -> Outcome {
    let eyes = Eyes::new(store.stamps());
    match step {
        Step::Write(write) => self::write(store, write).await,
        Step::Read(ranges) => {
            let ranges = ranges.iter().map(|range| messages::range(range, store.stamps()));
            let message = pb::SnapshotRead { ranges: ranges.collect() };
            match store.read(message).await {
                Ok(found) => {
                    Outcome::Entries(found.iter().map(|some| eyes.entries(some)).collect())
                }
                Err(refusal) => Outcome::Refused(refusal),
            }
        }
        Step::List(range) => Outcome::Entries(list(store, range).await),
        Step::Watch(keys) => match store.watch(messages::watch(keys, store.stamps())).await {
            Ok(watched) => Outcome::Watched(eyes.watched(&watched)),
            Err(refusal) => Outcome::Refused(refusal),
        },
    }
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
        pages.push(eyes.entries(&page));
        if is_last {
            return pages;
        }
    }
}

fn note(met: &mut Met, outcome: &Outcome) {
    let what = match outcome {
        Outcome::Committed => "committed".to_owned(),
        Outcome::CheckFailed(_) => "check failed".to_owned(),
        Outcome::Refused(Refusal::Text(text)) => text.clone(),
        Outcome::Refused(Refusal::About(what)) => (*what).to_owned(),
        Outcome::Entries(ranges) if ranges.iter().all(Vec::is_empty) => "nothing found".to_owned(),
        Outcome::Entries(_) => "entries found".to_owned(),
        Outcome::Watched(_) => "watched".to_owned(),
    };
    *met.entry(what).or_default() += 1;
}
