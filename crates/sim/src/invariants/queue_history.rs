//! The history that listeners saw keeps the promises of queues, as the checker judges it: in full
//! but for the messages of which a failover has lost something. Those are not lost themselves
//! unless their enqueue was.

use std::collections::{BTreeMap, BTreeSet};

use meridian_checker::queue::{
    DeadRead, QueueEvent, QueueHistory, QueueRule, QueueStatistics, QueueViolation, check_queue,
};
use meridian_checker::{Allowance, LostWindow};
use meridian_types::{Epoch, MessageId};

use super::Observer;
use crate::clock::Instant;
use crate::message::{Batch, Content, len_at};
use crate::queue_rows::{QueueRows, id_of};
use crate::topology::SHARD;

const NAME: &str = "queue_history";

pub(super) fn finish(observer: &mut Observer, now: Instant, mut events: Vec<QueueEvent>) {
    let Some(cluster) = observer.newest.clone() else { return };
    let Some(shard) = cluster.shards.get(&SHARD).filter(|_| !events.is_empty()) else { return };
    let rows = QueueRows::of(observer.truth(shard.epoch));
    events.extend(deaths(&rows, now, &events));
    let (mut lost, mut touched) = (Vec::new(), BTreeSet::new());
    for (epoch, base) in shard.bases.iter().filter(|(epoch, _)| *epoch > Epoch::FIRST) {
        let old = observer.truth(Epoch(epoch.0 - 1));
        let tail = old.get(len_at(base.sequence)..).unwrap_or(&[]);
        if !tail.is_empty() {
            lost.push(LostWindow::behind(*epoch, *base));
            touched.extend(messages(old, tail));
        }
    }
    // Nothing but its letter shows such a death, where the last attempt was lost on its way.
    let is_known = |violation: &QueueViolation| {
        violation.rule == QueueRule::AtLeastOnce && rows.has_letter(violation.message)
    };
    let of_whole = |event: &QueueEvent| message(event).is_none_or(|of| !touched.contains(&of));
    judge(observer, events.iter().filter(|event| of_whole(event)), &Allowance::default(), |it| {
        !is_known(it)
    });
    let of_touched = |event: &QueueEvent| message(event).is_none_or(|of| touched.contains(&of));
    let events = events.iter().filter(|event| of_touched(event));
    // The rest is said of a course of events that was undone.
    let counts = |violation: &QueueViolation| {
        let counts = matches!(violation.rule, QueueRule::AtLeastOnce | QueueRule::Enqueued);
        counts && !is_known(violation)
    };
    judge(observer, events, &Allowance { lost }, counts);
}

fn judge<'a>(
    observer: &mut Observer,
    events: impl Iterator<Item = &'a QueueEvent>,
    allowance: &Allowance,
    counts: impl Fn(&QueueViolation) -> bool,
) {
    let history = QueueHistory { events: events.cloned().collect(), is_drained: true };
    let verdict = check_queue(&history, allowance);
    let QueueStatistics { enqueued, handed, done, dead, duplicates, .. } = verdict.statistics;
    let all = &mut observer.counts;
    all.enqueued += enqueued as u64;
    all.handed += handed as u64;
    all.done += done as u64;
    all.dead += dead as u64;
    all.duplicates += duplicates as u64;
    if let Some(violation) = verdict.violations.into_iter().find(counts) {
        let course = course(&history, violation.message);
        observer.violated(NAME, format!("{violation}\n{course}"));
    }
}

/// The events of a message, and breaks of streams of the listeners that had it.
fn course(history: &QueueHistory, of: u64) -> String {
    let its = history.events.iter().filter(|event| message(event) == Some(of));
    let had = its.clone().filter_map(|event| match event {
        QueueEvent::Handed(handed) => Some(handed.listener),
        _ => None,
    });
    let had: BTreeSet<u32> = had.collect();
    let broke = history.events.iter().filter(
        |event| matches!(event, QueueEvent::Broke { listener, .. } if had.contains(listener)),
    );
    its.chain(broke).map(|event| format!("    {event:?}\n")).collect()
}

fn message(event: &QueueEvent) -> Option<u64> {
    match event {
        QueueEvent::Enqueue(it) => Some(it.message),
        QueueEvent::Handed(it) => Some(it.message),
        QueueEvent::Report(it) => Some(it.message),
        QueueEvent::Released { message, .. } => Some(*message),
        QueueEvent::DeadRead(it) => Some(it.message),
        QueueEvent::Broke { .. } => None,
    }
}

/// The messages that a part of a history is about.
fn messages(history: &[Batch], part: &[Batch]) -> Vec<u64> {
    let enqueued = |batch: &Batch| match batch.content {
        Content::Enqueue { message, .. } => Some((id_of(batch), message)),
        Content::Plain | Content::Settle { .. } => None,
    };
    let numbers: BTreeMap<MessageId, u64> = history.iter().filter_map(enqueued).collect();
    let of = |batch: &Batch| match batch.content {
        Content::Plain => None,
        Content::Enqueue { message, .. } => Some(message),
        Content::Settle { key, .. } => numbers.get(&key.id).copied(),
    };
    part.iter().filter_map(of).collect()
}

/// Of each message, a read of its keys when all is over.
fn deaths(rows: &QueueRows, now: Instant, events: &[QueueEvent]) -> Vec<QueueEvent> {
    let read = |event: &QueueEvent| {
        let QueueEvent::Enqueue(enqueue) = event else { return None };
        let (message, at_ns) = (enqueue.message, now * 1000);
        let set = rows.set_keys(message);
        let read = DeadRead { message, invoked_ns: at_ns, completed_ns: at_ns, set };
        Some(QueueEvent::DeadRead(read))
    };
    events.iter().filter_map(read).collect()
}
