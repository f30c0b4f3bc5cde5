//! Where each epoch of a shard left the history of the one before.

use crate::{Epoch, Position};

/// The base of every epoch of a shard: where it left the history of the epoch before. Every position
/// is judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochHistory {
    /// Oldest first; never empty.
    bases: Vec<(Epoch, Position)>,
}

impl EpochHistory {
    /// `bases` as the directory has them, oldest first.
    pub fn new(mut bases: Vec<(Epoch, Position)>) -> Self {
        if bases.is_empty() {
            bases.push((Epoch::FIRST, Position::ZERO));
        }
        Self { bases }
    }

    /// The history of a shard that knows one epoch.
    pub fn first() -> Self {
        Self::new(Vec::new())
    }

    pub fn bases(&self) -> &[(Epoch, Position)] {
        &self.bases
    }

    /// The newest epoch.
    pub fn epoch(&self) -> Epoch {
        self.bases.last().map_or(Epoch::FIRST, |(epoch, _)| *epoch)
    }

    /// The base of the newest epoch.
    pub fn base(&self) -> Position {
        self.bases.last().map_or(Position::ZERO, |(_, base)| *base)
    }

    /// The position of a sequence in the history that holds now.
    pub fn at(&self, sequence: u64) -> Position {
        let of = self.bases.iter().rev().find(|(_, base)| base.sequence < sequence);
        let epoch = of.or(self.bases.first()).map_or(Epoch::FIRST, |(epoch, _)| *epoch);
        Position::new(epoch, sequence)
    }

    /// Whether the history goes through `position`, as far as it goes.
    pub fn holds(&self, position: Position) -> bool {
        match position.sequence {
            0 => position == Position::ZERO,
            sequence => self.at(sequence) == position,
        }
    }

    /// The first epoch whose history does not hold what lies at `position`, and where that history
    /// left.
    pub fn leaves(&self, position: Position) -> Option<(Epoch, Position)> {
        let beyond = |(epoch, base): &&(Epoch, Position)| {
            *epoch > position.epoch && position.sequence > base.sequence
        };
        self.bases.iter().find(beyond).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(epoch: u16, sequence: u64) -> Position {
        Position::new(Epoch(epoch), sequence)
    }

    /// The third epoch began behind less than the second had.
    fn history() -> EpochHistory {
        EpochHistory::new(vec![
            (Epoch(1), position(1, 0)),
            (Epoch(2), position(1, 100)),
            (Epoch(3), position(1, 90)),
            (Epoch(4), position(3, 120)),
        ])
    }

    #[test]
    fn every_sequence_has_one_position() {
        let history = history();
        let expected = [(0, 1), (1, 1), (90, 1), (91, 3), (100, 3), (120, 3), (121, 4), (1000, 4)];
        for (sequence, epoch) in expected {
            assert_eq!(history.at(sequence), position(epoch, sequence));
        }
        assert_eq!((history.epoch(), history.base()), (Epoch(4), position(3, 120)));
    }

    #[test]
    fn history_holds_the_one_position_of_each_sequence() {
        let history = history();
        for held in [Position::ZERO, position(1, 90), position(3, 91), position(4, 121)] {
            assert!(history.holds(held), "{held}");
        }
        for other in [position(1, 91), position(2, 101), position(4, 120), position(5, 121)] {
            assert!(!history.holds(other), "{other}");
        }
    }

    #[test]
    fn what_lies_beyond_a_base_is_off_the_history() {
        let history = history();
        assert_eq!(history.leaves(position(1, 90)), None);
        assert_eq!(history.leaves(position(1, 95)), Some((Epoch(3), position(1, 90))));
        assert_eq!(history.leaves(position(1, 101)), Some((Epoch(2), position(1, 100))));
        assert_eq!(history.leaves(position(2, 110)), Some((Epoch(3), position(1, 90))));
        assert_eq!(history.leaves(position(3, 120)), None);
        assert_eq!(history.leaves(position(3, 121)), Some((Epoch(4), position(3, 120))));
    }
}
