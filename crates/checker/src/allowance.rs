//! The losses that a system admits to.

use meridian_types::{Epoch, Position, Versionstamp};

/// The commits that the system was allowed to lose, and reports as lost.
///
/// Commits of an old epoch that had not reached the next primary region when it was promoted are
/// gone by design: the recovery point objective bounds their number, it does not forbid them.
/// Without an allowance ([`Allowance::default`]) nothing may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// One window for each failover that may have lost commits, in any order.
    pub lost: Vec<LostWindow>,
}

/// The loss of one failover: the commits of older epochs beyond the base of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostWindow {
    /// The epoch that began.
    pub epoch: Epoch,
    /// The last sequence of the older epochs that the new one continues.
    pub base_sequence: u64,
}

impl LostWindow {
    /// The loss of the promotion of `epoch` from `base`.
    pub fn behind(epoch: Epoch, base: Position) -> Self {
        Self { epoch, base_sequence: base.sequence }
    }

    /// Whether a commit with this versionstamp is in the window.
    pub fn covers(&self, versionstamp: Versionstamp) -> bool {
        let position = versionstamp.position();
        position.epoch < self.epoch && position.sequence > self.base_sequence
    }

    /// A versionstamp below all of the new epoch and above all of the older ones. No commit has it:
    /// sequences begin with 1.
    pub(crate) fn boundary(&self) -> Versionstamp {
        Versionstamp::new(Position::new(self.epoch, 0), 0)
    }
}

/// The windows of an allowance by epoch. A commit in several windows was lost by the first.
#[derive(Debug, Clone, Default)]
pub(crate) struct LostWindows(Vec<LostWindow>);

impl LostWindows {
    pub(crate) fn of(allowance: &Allowance) -> Self {
        let mut windows = allowance.lost.clone();
        windows.sort_unstable();
        // Of two windows for one epoch, the larger stays.
        windows.dedup_by_key(|window| window.epoch);
        Self(windows)
    }

    /// The index of the window by which the commit was lost. `None`: the commit must be there.
    pub(crate) fn losing(&self, versionstamp: Versionstamp) -> Option<usize> {
        self.0.iter().position(|window| window.covers(versionstamp))
    }

    pub(crate) fn get(&self, place: usize) -> Option<&LostWindow> {
        self.0.get(place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LostWindow> {
        self.0.iter()
    }

    /// Whether the effect at `again` may repeat the effect at `lost`, which was undone in between:
    /// the old epoch did not answer the request, and it was retried in a new one.
    pub(crate) fn may_repeat(&self, lost: Versionstamp, again: Versionstamp) -> bool {
        let window = self.losing(lost).and_then(|place| self.get(place));
        window.is_some_and(|window| again.position().epoch >= window.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: u16, sequence: u64) -> Versionstamp {
        Versionstamp::new(Position::new(Epoch(epoch), sequence), 0)
    }

    #[test]
    fn window_covers_commits_beyond_the_base() {
        let window = LostWindow::behind(Epoch(2), Position::new(Epoch(1), 10));
        assert!(!window.covers(stamp(1, 10)));
        assert!(window.covers(stamp(1, 11)));
        assert!(!window.covers(stamp(2, 11)));
    }

    #[test]
    fn commit_in_several_windows_is_lost_by_the_first() {
        let later = LostWindow { epoch: Epoch(3), base_sequence: 20 };
        let first = LostWindow { epoch: Epoch(2), base_sequence: 10 };
        let windows = LostWindows::of(&Allowance { lost: vec![later, first] });
        assert_eq!(windows.losing(stamp(1, 30)), Some(0));
        assert_eq!(windows.losing(stamp(2, 20)), None);
        assert_eq!(windows.losing(stamp(2, 21)), Some(1));
        assert!(windows.may_repeat(stamp(1, 30), stamp(2, 11)));
        assert!(!windows.may_repeat(stamp(1, 30), stamp(1, 9)));
        assert!(!windows.may_repeat(stamp(1, 9), stamp(2, 11)));
    }
}
