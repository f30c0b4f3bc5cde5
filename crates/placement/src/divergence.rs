//! The number of transactions that a node holds and the shard's history does not: counted while they
//! are kept, and shown to the directory.
//!
//! [`DivergenceCount`] goes through one log, of a group or of a replica; [`shown`] makes of all that
//! was kept a node's word for the report of a failover.

use std::ops::Range;

use meridian_directory::FailoverReport;
use meridian_types::{Epoch, EpochHistory, Position};

/// The last batch that a state reflects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub position: Position,
    /// Of the shard, since it was made.
    pub transactions: u64,
    /// The leader's time of the last batch.
    pub time_ms: u64,
}

/// The batches that one epoch cut off, and one log had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The epoch whose history the batches are not in, and where that history left theirs.
    pub epoch: Epoch,
    pub base: Position,
    /// Transactions of the shard up to the last that `epoch` cut off and that is known to have been
    /// committed; 0: not known.
    pub committed_total: u64,
    pub missing: Option<Missing>,
}

/// Batches beyond a base that the log did not have any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    pub from: u64,
    pub through: u64,
    /// When the last of them was made; 0: not known.
    pub time_ms: u64,
}

#[derive(Debug)]
struct Counted {
    epoch: Epoch,
    base: Position,
    first: u64,
    /// Transactions that the state has, and committed ones that it has not yet.
    applied: u64,
    ahead: u64,
}

/// Counts what one log has and the shard's history does not, by the epoch that cut it off: a later
/// epoch may have cut deeper than the one before it.
#[derive(Debug)]
pub struct DivergenceCount<'a> {
    history: &'a EpochHistory,
    reached: Option<Reached>,
    /// Sequences of another log, which are kept from there.
    elsewhere: Range<u64>,
    counted: Vec<Counted>,
    /// The last batch.
    end: Position,
}

impl<'a> DivergenceCount<'a> {
    /// `reached`: by the state, if it is made of the same batches.
    pub fn new(history: &'a EpochHistory, reached: Option<Reached>, elsewhere: Range<u64>) -> Self {
        Self { history, reached, elsewhere, counted: Vec::new(), end: Position::ZERO }
    }

    /// The next batch of the log. A batch that the history holds counts for nothing.
    pub fn add(&mut self, position: Position, transactions: u64, committed: bool) {
        let Some((epoch, base)) = self.history.leaves(position) else { return };
        self.end = position;
        let is_applied =
            self.reached.is_some_and(|reached| position.sequence <= reached.position.sequence);
        let mut counted = self.take(epoch, base, position.sequence);
        if is_applied {
            counted.applied += transactions;
        } else if committed {
            counted.ahead += transactions;
        }
        self.counted.push(counted);
    }

    /// Takes out that of `epoch`, or begins it with the batch `first`.
    fn take(&mut self, epoch: Epoch, base: Position, first: u64) -> Counted {
        match self.counted.iter().position(|counted| counted.epoch == epoch) {
            Some(at) => self.counted.swap_remove(at),
            None => Counted { epoch, base, first, applied: 0, ahead: 0 },
        }
    }

    /// A stretch for each epoch that cut some of the log off. A stretch without batches says of what
    /// the log was purged.
    pub fn finish(mut self) -> Vec<Stretch> {
        let ahead: u64 = self.counted.iter().map(|counted| counted.ahead).sum();
        // Up to the end of the stretch at hand, if that is known.
        let mut total = self.reached.map(|reached| reached.transactions + ahead);
        let mut time_ms = self.reached.map_or(0, |reached| reached.time_ms);
        let mut end = self.reached.map_or(self.end, |reached| self.end.max(reached.position));
        let mut stretches = Vec::new();
        while let Some((epoch, base)) = self.history.leaves(end) {
            let counted = self.take(epoch, base, end.sequence + 1);
            let next = base.sequence + 1;
            let from = if self.elsewhere.contains(&next) { self.elsewhere.end } else { next };
            let through = counted.first - 1;
            let missing = (through >= from).then_some(Missing { from, through, time_ms });
            stretches.push(Stretch { epoch, base, committed_total: total.unwrap_or(0), missing });
            let is_whole = counted.first <= next;
            total = total
                .filter(|_| is_whole)
                .and_then(|total| total.checked_sub(counted.applied + counted.ahead));
            // Below lies what a later epoch cut deeper.
            (end, time_ms) = (base, 0);
        }
        // Stretches of no line that ends here, which should not be, are kept all the same.
        let others = self.counted.iter().map(|counted| {
            let Counted { epoch, base, .. } = *counted;
            Stretch { epoch, base, committed_total: 0, missing: None }
        });
        stretches.extend(others);
        stretches
    }
}

/// A stretch as it was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    pub transactions: u64,
    /// Of these, those in batches that are known to have been committed.
    pub committed_transactions: u64,
    pub last_time_ms: u64,
    /// The last batch that had gone from the log before; 0: none had.
    pub missing_through: u64,
    /// See [`Stretch::committed_total`].
    pub committed_total: u64,
}

impl Kept {
    /// Whether it has what another of the same stretch lacks, and reaches as far.
    pub fn has_what_lacks(&self, other: &Self) -> bool {
        // Files of the first version do not say how far they reach.
        let reaches = self.committed_total == 0 || self.committed_total >= other.committed_total;
        reaches && self.missing_through < other.missing_through
    }
}

/// How much a node held beyond a base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Known to have been committed.
    pub transactions: u64,
    /// With those that are undecided.
    pub at_most: u64,
    pub last_time_ms: u64,
}

/// How much this node held beyond the base of `report`, by all that it kept of the report's epoch.
/// `None` while that cannot be counted: with less than it was, a report would become exact that
/// says too little.
pub fn shown(report: &FailoverReport, kept: impl IntoIterator<Item = Kept>) -> Option<Shown> {
    let mut shown = Shown::default();
    // Stretches of which it is not known what came before may hold what no other does.
    let mut uncounted = 0;
    for kept in kept {
        let undecided = kept.transactions.saturating_sub(kept.committed_transactions);
        let mut committed = kept.committed_transactions;
        if kept.committed_total > 0 {
            committed =
                committed.max(kept.committed_total.saturating_sub(report.base_transactions));
            shown.at_most = shown.at_most.max(committed + undecided);
        } else if kept.missing_through > 0 {
            return None;
        } else {
            uncounted += kept.transactions;
        }
        shown.transactions = shown.transactions.max(committed);
        shown.last_time_ms = shown.last_time_ms.max(kept.last_time_ms);
    }
    shown.at_most += uncounted;
    Some(shown)
}

#[cfg(test)]
mod tests {
    use meridian_directory::testing;

    use super::*;

    fn at(epoch: u16, sequence: u64) -> Position {
        Position::new(Epoch(epoch), sequence)
    }

    fn history(bases: &[(u16, Position)]) -> EpochHistory {
        let first = [(Epoch::FIRST, Position::ZERO)];
        let others = bases.iter().map(|(epoch, base)| (Epoch(*epoch), *base));
        EpochHistory::new(first.into_iter().chain(others).collect())
    }

    /// The third epoch cut deeper than the second.
    fn deeper() -> EpochHistory {
        history(&[(2, at(1, 10)), (3, at(1, 8))])
    }

    /// Two transactions a batch, and a second.
    fn reached(sequence: u64) -> Option<Reached> {
        let (transactions, time_ms) = (2 * sequence, 1000 * sequence);
        Some(Reached { position: at(1, sequence), transactions, time_ms })
    }

    /// A log of the first epoch with those batches, of which those up to `committed` are.
    fn count(
        history: &EpochHistory,
        reached: Option<Reached>,
        log: Range<u64>,
        committed: u64,
    ) -> Vec<Stretch> {
        let mut count = DivergenceCount::new(history, reached, 0..0);
        log.for_each(|sequence| count.add(at(1, sequence), 2, sequence <= committed));
        count.finish()
    }

    fn whole(epoch: u16, base: u64, committed_total: u64) -> Stretch {
        Stretch { epoch: Epoch(epoch), base: at(1, base), committed_total, missing: None }
    }

    fn lacking(stretch: Stretch, from: u64, through: u64, time_ms: u64) -> Stretch {
        Stretch { missing: Some(Missing { from, through, time_ms }), ..stretch }
    }

    #[test]
    fn log_that_the_history_holds_is_no_stretch() {
        assert_eq!(count(&deeper(), reached(8), 1..9, 8), []);
        assert_eq!(count(&EpochHistory::first(), reached(13), 1..14, 13), []);
    }

    #[test]
    fn each_epoch_that_cut_a_log_has_its_own_stretch() {
        let both = [whole(2, 10, 26), whole(3, 8, 20)];
        assert_eq!(count(&deeper(), reached(13), 6..14, 13), both);
        assert_eq!(count(&deeper(), reached(13), 9..14, 13), both, "begun behind the lowest base");
        // A log that ends below the first base is cut by the deeper one only.
        assert_eq!(count(&deeper(), reached(9), 1..10, 9), [whole(3, 8, 18)]);
    }

    #[test]
    fn committed_batches_that_the_state_lacks_are_counted_and_undecided_ones_are_not() {
        let history = history(&[(2, at(1, 3))]);
        assert_eq!(count(&history, reached(5), 1..9, 7), [whole(2, 3, 14)]);
        // The state itself lies in the history.
        assert_eq!(count(&history, reached(2), 1..9, 2), [whole(2, 3, 4)]);
        assert_eq!(count(&history, None, 1..9, 7), [whole(2, 3, 0)], "of another state");
    }

    #[test]
    fn what_a_log_was_purged_of_is_said_with_its_time_where_that_is_known() {
        let cut = history(&[(2, at(1, 3))]);
        assert_eq!(count(&cut, reached(8), 6..9, 8), [lacking(whole(2, 3, 16), 4, 5, 8000)]);
        assert_eq!(count(&cut, reached(8), 9..9, 8), [lacking(whole(2, 3, 16), 4, 8, 8000)]);
        // Below a stretch that is not whole, the total is not known.
        assert_eq!(
            count(&deeper(), reached(13), 12..14, 13),
            [lacking(whole(2, 10, 26), 11, 11, 13_000), lacking(whole(3, 8, 0), 9, 10, 0)]
        );
    }

    #[test]
    fn what_another_log_has_is_not_missing() {
        let (cut, log) = (history(&[(2, at(1, 3))]), [6, 7]);
        for (elsewhere, missing) in [(4..6, None), (4..5, Some((5, 5))), (1..4, Some((4, 5)))] {
            let mut count = DivergenceCount::new(&cut, reached(7), elsewhere.clone());
            log.iter().for_each(|sequence| count.add(at(1, *sequence), 2, true));
            let [stretch] = count.finish()[..] else { panic!("one stretch") };
            let said = stretch.missing.map(|missing| (missing.from, missing.through));
            assert_eq!(said, missing, "elsewhere: {elsewhere:?}");
        }
    }

    fn kept(committed_total: u64, transactions: u64, committed_transactions: u64) -> Kept {
        Kept {
            transactions,
            committed_transactions,
            last_time_ms: 9000,
            missing_through: 0,
            committed_total,
        }
    }

    /// Of a failover that kept a hundred transactions: committed, and at most.
    fn told(all: &[Kept]) -> Option<(u64, u64)> {
        let report = testing::report(2, at(1, 40), "b");
        let shown = shown(&report, all.iter().copied())?;
        Some((shown.transactions, shown.at_most))
    }

    #[test]
    fn node_that_kept_nothing_shows_that_it_had_nothing() {
        assert_eq!(told(&[]), Some((0, 0)));
    }

    #[test]
    fn total_of_a_state_counts_also_what_the_log_lacks() {
        assert_eq!(told(&[kept(106, 4, 4)]), Some((6, 6)));
        assert_eq!(told(&[kept(106, 9, 4)]), Some((6, 11)), "five are undecided");
        let purged = Kept { missing_through: 42, ..kept(106, 0, 0) };
        assert_eq!(told(&[purged]), Some((6, 6)));
        assert_eq!(told(&[kept(98, 3, 2)]), Some((2, 3)), "the state is behind the base");
    }

    #[test]
    fn what_two_logs_kept_of_the_same_is_not_counted_twice() {
        assert_eq!(told(&[kept(106, 6, 6), kept(104, 4, 4)]), Some((6, 6)));
    }

    #[test]
    fn what_has_no_total_adds_to_the_most_and_cannot_be_counted_where_some_is_missing() {
        assert_eq!(told(&[kept(106, 6, 6), kept(0, 4, 3)]), Some((6, 10)));
        let unknown = Kept { missing_through: 42, ..kept(0, 4, 3) };
        assert_eq!(told(&[kept(106, 6, 6), unknown]), None);
    }

    #[test]
    fn stretch_that_lacks_less_and_reaches_as_far_has_what_another_lacks() {
        let lacking = |committed_total, missing_through| Kept {
            missing_through,
            ..kept(committed_total, 4, 4)
        };
        let purged = lacking(106, 45);
        for (other, has_it) in [
            (lacking(106, 0), true),
            (lacking(107, 44), true),
            (lacking(106, 45), false),
            (lacking(105, 0), false),
            (lacking(0, 0), true),
        ] {
            assert_eq!(other.has_what_lacks(&purged), has_it, "{other:?}");
        }
    }

    #[test]
    fn latest_time_of_all_that_was_kept_is_shown() {
        let report = testing::report(2, at(1, 40), "b");
        let later = Kept { last_time_ms: 9500, ..kept(101, 1, 1) };
        let shown = shown(&report, [later, kept(102, 2, 2)]).unwrap();
        assert_eq!(shown.last_time_ms, 9500);
    }
}
