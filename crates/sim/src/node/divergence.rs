//! Batches that a node has and the shard's history does not: kept, and shown to the directory, as
//! [`DivergenceCount`] counts them.

use std::collections::BTreeMap;
use std::ops::Range;

use meridian_failover::LostTail;
use meridian_placement::{DivergenceCount, Kept, Reached, Shown, shown};
use meridian_types::{Epoch, EpochHistory};

use super::{Context, Node};
use crate::message::{Batch, end_of, len_at, sequence};
use crate::topology::SHARD;

impl Node {
    /// Looks through the log of the group in which it voted, which it deletes, and through its own.
    pub(super) fn keep_divergence(&mut self, context: &Context<'_>, history: &EpochHistory) {
        let of_state = self.group_of_state();
        let old = self.disk.group.take_if(|(epoch, _)| *epoch < history.epoch());
        let (own, purged) = (&self.disk.history, self.disk.purged);
        let mut counted = Vec::new();
        if let Some((epoch, group)) = old {
            let is_committed =
                |batch: &Batch| own.get(len_at(batch.position.sequence - 1)) == Some(batch);
            let log = group.log.iter().filter_map(|entry| entry.command);
            let log: Vec<_> = log.map(|batch| (batch, is_committed(&batch))).collect();
            let begins = log.first().map_or(0, |(batch, _)| batch.position.sequence);
            let reached = reached(own).filter(|_| of_state == Some(epoch));
            counted.extend(count(history, reached, sequence(purged) + 1..begins, log));
        }
        let log = own.iter().skip(purged).map(|batch| (*batch, true)).collect();
        counted.extend(count(history, reached(own), 0..0, log));
        for (epoch, mut kept) in counted {
            let all = self.disk.kept.entry(epoch).or_default();
            if all.iter().any(|other| other.has_what_lacks(&kept)) {
                kept.missing_through = 0;
            }
            let is_any = kept.transactions > 0 || kept.missing_through > 0;
            if is_any && !all.contains(&kept) {
                context.say(|| format!("n{} keeps, beyond the base of {epoch}: {kept:?}", self.id));
                all.push(kept);
            }
        }
        self.disk.examined = self.disk.examined.max(history.epoch());
    }

    /// For the directory's reports of failovers, as far as they wait for this node.
    pub(super) fn lost(&self) -> Vec<LostTail> {
        let waits = self
            .shard()
            .into_iter()
            .flat_map(|shard| &shard.reports)
            .filter(|report| self.disk.examined >= report.epoch && report.waits_for(self.id));
        let lost = waits.filter_map(|report| {
            let kept = self.disk.kept.get(&report.epoch).into_iter().flatten().copied();
            let Shown { transactions, at_most, last_time_ms } = shown(report, kept)?;
            let epoch = report.epoch;
            Some(LostTail { shard: SHARD, epoch, transactions, at_most, last_time_ms })
        });
        lost.collect()
    }
}

/// Each batch is one transaction.
fn reached(history: &[Batch]) -> Option<Reached> {
    let (position, last) = (end_of(history), history.last()?);
    Some(Reached { position, transactions: position.sequence, time_ms: last.time_ms })
}

/// Keeps a log's divergence, by the epoch that cut it off. `log`: its batches, and whether each is
/// known to have been committed.
fn count(
    history: &EpochHistory,
    reached: Option<Reached>,
    elsewhere: Range<u64>,
    log: Vec<(Batch, bool)>,
) -> Vec<(Epoch, Kept)> {
    let mut count = DivergenceCount::new(history, reached, elsewhere);
    let mut all = BTreeMap::<Epoch, Kept>::new();
    for (batch, committed) in log {
        let Some((epoch, _)) = history.leaves(batch.position) else { continue };
        count.add(batch.position, 1, committed);
        let kept = all.entry(epoch).or_default();
        kept.transactions += 1;
        kept.committed_transactions += u64::from(committed);
        kept.last_time_ms = batch.time_ms;
    }
    let stretches = count.finish().into_iter().map(|stretch| {
        let kept = all.remove(&stretch.epoch).unwrap_or_default();
        let missing_through = stretch.missing.map_or(0, |missing| missing.through);
        (stretch.epoch, Kept { missing_through, committed_total: stretch.committed_total, ..kept })
    });
    stretches.collect()
}
