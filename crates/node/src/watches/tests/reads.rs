//! Reads of a key, between the effects that are applied to it.

use meridian_storage::schema::StoredValue;

use super::super::WatchedKey;
use super::super::signal::{Signal, WatcherId};
use super::super::table::{Round, Table, Told};
use super::*;

const KEY: Bytes = Bytes::from_static(b"a");

fn at(sequence: u64) -> Position {
    Position::new(Epoch(1), sequence)
}

fn row(written: u64, data: &'static str) -> Option<StoredValue> {
    let value = Value { encoding: ValueEncoding::Bytes, data: data.into() };
    Some(StoredValue { versionstamp: Versionstamp::new(at(written), 0), expire_at_ms: 0, value })
}

/// A watch of one key, and what it was told.
struct Watching {
    id: WatcherId,
    signal: Arc<Signal>,
    keys: Box<[WatchedKey]>,
    shown: Vec<Shown>,
}

struct Course {
    table: Table,
}

impl Course {
    fn new(sequence: u64) -> Self {
        Self { table: Table::new(at(sequence), 0) }
    }

    fn watch(&mut self) -> Watching {
        let signal = Arc::new(Signal::raised());
        let (id, keys) = self.table.watch(DATABASE, &[KEY], &signal);
        Watching { id, signal, keys, shown: vec![None] }
    }

    /// The news of the watch: `None`, while the key has to be read.
    fn told(&mut self, watching: &mut Watching) -> Option<Vec<String>> {
        let Watching { id, signal, keys, shown } = watching;
        match self.table.tell((*id, &*signal), keys, shown, true) {
            Told::News(news) => Some(texts(&news)),
            Told::Reading => None,
            Told::Nothing | Told::Lost => panic!("nothing is told"),
        }
    }

    fn read(&mut self) -> Round {
        self.table.next_round().expect("a key is to be read")
    }

    fn apply(&mut self, sequence: u64, effects: Vec<Effect>) {
        self.table.apply(&[batch(at(sequence), sequence, DATABASE, effects)]);
    }
}

#[test]
fn what_is_read_counts_once_every_batch_up_to_there_was_heard_of() {
    let mut course = Course::new(1);
    let mut watching = course.watch();
    assert_eq!(course.told(&mut watching), None);
    let round = course.read();
    // The batch is applied, and the reader of it is about to be called.
    assert!(course.table.fill(&round, &[row(1, "old")], at(2)).is_none());
    course.apply(2, vec![put("a", "new")]);
    assert_eq!(course.table.fill(&round, &[row(1, "old")], at(2)).unwrap().len(), 1);
    assert_eq!(course.told(&mut watching).unwrap(), ["new"]);
}

#[test]
fn effect_that_comes_while_its_key_is_read_is_newer_than_what_is_read() {
    let mut course = Course::new(1);
    let mut watching = course.watch();
    assert_eq!(course.told(&mut watching), None);
    let round = course.read();
    course.apply(2, vec![put("a", "new")]);
    course.table.fill(&round, &[row(1, "old")], at(1)).unwrap();
    assert_eq!(course.told(&mut watching).unwrap(), ["new"]);
}

#[test]
fn read_that_began_before_the_key_was_watched_again_is_made_again() {
    let mut course = Course::new(1);
    let mut first = course.watch();
    assert_eq!(course.told(&mut first), None);
    let round = course.read();
    course.table.leave(first.id, &first.keys);
    // No watch of it is left.
    course.apply(2, vec![put("a", "missed")]);
    let mut second = course.watch();
    assert_eq!(course.told(&mut second), None);
    course.table.fill(&round, &[row(1, "old")], at(1)).unwrap();
    assert_eq!(course.told(&mut second), None, "it is not known yet");
    let round = course.read();
    course.table.fill(&round, &[row(2, "missed")], at(2)).unwrap();
    assert_eq!(course.told(&mut second).unwrap(), ["missed"]);
}

#[test]
fn read_of_a_state_that_was_replaced_meanwhile_is_made_again() {
    let mut course = Course::new(5);
    let mut watching = course.watch();
    assert_eq!(course.told(&mut watching), None);
    let round = course.read();
    course.table.replaced(at(5), 0);
    course.table.fill(&round, &[row(4, "of the old state")], at(5)).unwrap();
    assert_eq!(course.told(&mut watching), None);
    let round = course.read();
    course.table.fill(&round, &[row(4, "of the new state")], at(5)).unwrap();
    assert_eq!(course.told(&mut watching).unwrap(), ["of the new state"]);
}

#[test]
fn thousands_of_watches_are_told_some_at_a_time_and_each_of_the_last_change() {
    let mut course = Course::new(0);
    let watching: Vec<_> = (0..1000).map(|_| course.watch()).collect();
    course.apply(1, vec![put("a", "first")]);
    let mut told = course.table.next_signals().len();
    assert!(told > 0 && told < watching.len());
    // It changes when a part of them was told.
    course.apply(2, vec![put("a", "second")]);
    loop {
        match course.table.next_signals().len() {
            0 => break,
            more => told += more,
        }
    }
    assert!(told >= watching.len() + 256, "those told first are told again: {told}");
    assert!(told <= 2 * watching.len());
}
