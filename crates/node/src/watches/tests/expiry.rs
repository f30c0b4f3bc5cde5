//! Very many watched keys that expire with one batch.

use super::super::WatchedKey;
use super::super::signal::Signal;
use super::super::table::{Table, Told};
use super::*;

const WATCHES: usize = 1000;
const EXPIRES: u64 = 100;

fn at(sequence: u64) -> Position {
    Position::new(Epoch(1), sequence)
}

fn key(watch: usize, number: usize) -> Bytes {
    format!("{watch}/{number}").into()
}

/// Watches of ten keys each, all with values that expire together.
fn watched(table: &mut Table) -> Vec<(u64, Arc<Signal>, Box<[WatchedKey]>)> {
    let watches = (0..WATCHES).map(|watch| {
        let (keys, signal) = ((0..10).map(|number| key(watch, number)), Arc::new(Signal::raised()));
        let (id, keys) = table.watch(DATABASE, &keys.collect::<Vec<_>>(), &signal);
        (id, signal, keys)
    });
    let watches: Vec<_> = watches.collect();
    let effect = |key: Bytes| {
        let value = Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(b"v") };
        Effect::Put { key, value, expire_at_ms: EXPIRES }
    };
    let keys = (0..WATCHES).flat_map(|watch| (0..10).map(move |number| key(watch, number)));
    table.apply(&[batch(at(1), 1, DATABASE, keys.map(effect).collect())]);
    while !table.next_signals().is_empty() {}
    watches
}

#[test]
fn keys_that_expire_with_one_batch_are_worked_through_a_few_at_a_time_and_told_together() {
    let mut table = Table::new(at(0), 0);
    let watches = watched(&mut table);
    assert_eq!(table.expiring(), 10 * WATCHES);
    table.apply(&[batch(at(2), EXPIRES, DATABASE, Vec::new())]);
    assert_eq!(table.expiring(), 10 * WATCHES, "the thread that applies does nothing of it");
    // A watch that asks meanwhile is told of all its keys at once.
    let (id, signal, keys) = &watches[WATCHES - 1];
    let mut shown = vec![Some(Some(Versionstamp::new(at(1), 0))); 10];
    let Told::News(news) = table.tell((*id, signal), keys, &mut shown, false) else {
        panic!("nothing is told")
    };
    assert_eq!(texts(&news), vec![String::new(); 10]);
    assert_eq!(table.expiring(), 10 * (WATCHES - 1));
    let mut told = std::collections::BTreeSet::new();
    while table.has_news() {
        let before = table.expiring();
        told.extend(table.next_signals().iter().map(|signal| Arc::as_ptr(signal) as usize));
        assert!(before - table.expiring() <= 256, "{} at a time", before - table.expiring());
    }
    assert_eq!((told.len(), table.expiring()), (WATCHES, 0), "each of them hears of it");
}
