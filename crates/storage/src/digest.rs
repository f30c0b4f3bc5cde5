//! A checksum of a shard's history up to a position, by which nodes are compared.

use std::collections::VecDeque;

use meridian_types::Position;

/// Positions whose digests are remembered: more than a node applies while a status is on its way.
const REMEMBERED: usize = 2048;

/// A digest of a shard's history up to a position, over the checksums that leaders gave its
/// batches, in their order. Nodes with equal histories have equal digests; once two differ, they
/// differ for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// With the batch at `position`, of this checksum. Not to change: nodes of different versions
    /// compare theirs.
    pub(crate) fn with(self, position: Position, checksum: u32) -> Self {
        let place = position.sequence ^ (u64::from(position.epoch.0) << 48);
        Self(mix(mix(self.0 ^ place) ^ u64::from(checksum)))
    }
}

/// The finalizer of SplitMix64: each of its steps can be undone, so that no difference is lost.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The digests of the positions that were applied last: other nodes are a little ahead, or behind,
/// when they say theirs.
#[derive(Debug, Default)]
pub(crate) struct RecentDigests(VecDeque<(Position, Digest)>);

impl RecentDigests {
    /// Of a state that was opened, or put in place of another.
    pub(crate) fn starting_at(position: Position, digest: Digest) -> Self {
        Self(VecDeque::from([(position, digest)]))
    }

    pub(crate) fn push(&mut self, position: Position, digest: Digest) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((position, digest));
    }

    pub(crate) fn at(&self, position: Position) -> Option<Digest> {
        let (first, _) = self.0.front()?;
        let at = usize::try_from(position.sequence.checked_sub(first.sequence)?).ok()?;
        self.0.get(at).filter(|(found, _)| *found == position).map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::Epoch;

    use super::*;

    fn at(epoch: u16, sequence: u64) -> Position {
        Position::new(Epoch(epoch), sequence)
    }

    #[test]
    fn digests_are_golden() {
        let first = Digest::default().with(at(1, 1), 0xe306_9283);
        assert_eq!(
            (first.0, first.with(at(2, 2), 7).0),
            (0x8826_f760_853e_37ea, 0x851b_1583_4b18_fd33)
        );
    }

    #[test]
    fn what_differs_once_differs_for_good() {
        let histories = [(at(1, 1), 1), (at(1, 1), 2), (at(2, 1), 1)];
        let mut digests =
            histories.map(|(position, checksum)| Digest::default().with(position, checksum));
        for sequence in 2..10_000 {
            let [one, two, three] = digests;
            assert!(one != two && two != three && one != three, "at {sequence}");
            digests = digests.map(|digest| digest.with(at(3, sequence), 5));
        }
    }

    #[test]
    fn the_newest_positions_are_remembered() {
        let mut recent = RecentDigests::starting_at(at(1, 10), Digest(10));
        for sequence in 11..10_000 {
            recent.push(at(2, sequence), Digest(sequence));
        }
        assert_eq!(recent.0.len(), REMEMBERED);
        assert_eq!(
            (recent.at(at(2, 9_999)), recent.at(at(2, 9_000))),
            (Some(Digest(9_999)), Some(Digest(9_000)))
        );
        for position in [at(1, 9_000), at(1, 10), at(2, 10_000), at(2, 0)] {
            assert_eq!(recent.at(position), None);
        }
    }
}
