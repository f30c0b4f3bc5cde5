//! Positions in a shard's history, and versionstamps.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many times a shard's primary region has been decided. Grows by one at every failover or
/// switchover; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u16);

impl Epoch {
    pub const FIRST: Epoch = Epoch(1);
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a shard's committed log stands: the epoch, and the sequence of a batch in it.
/// Sequences are contiguous; 0 means that nothing was committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub sequence: u64,
}

impl Position {
    /// Before the first batch of the first epoch.
    pub const ZERO: Position = Position { epoch: Epoch::FIRST, sequence: 0 };

    pub fn new(epoch: Epoch, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    /// The position after this one in the same epoch.
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, sequence: self.sequence + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// The version of a key: epoch (2 bytes, big-endian) ‖ sequence (6) ‖ order in the batch (2).
/// Ordered as commits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versionstamp(pub [u8; 10]);

impl Versionstamp {
    pub const LEN: usize = 10;
    /// The largest sequence that fits the six bytes kept for it.
    pub const MAX_SEQUENCE: u64 = (1 << 48) - 1;
    /// Of no transaction: [`Batch::MAX_TRANSACTIONS`](crate::Batch::MAX_TRANSACTIONS) stay below it.
    const BEHIND_ALL: u16 = u16::MAX;

    /// Behind every transaction of the batch at `position`, and before those of the next one.
    pub fn behind(position: Position) -> Self {
        Self::new(position, Self::BEHIND_ALL)
    }

    /// Whether it stands behind its whole batch, as [`Versionstamp::behind`] gives it.
    pub fn is_behind_its_batch(&self) -> bool {
        self.order() == Self::BEHIND_ALL
    }

    /// Of twenty hex characters, of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * Self::LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; Self::LEN];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The versionstamp of the transaction at `order` in the batch at `position`.
    ///
    /// # Panics
    /// When the sequence needs more than 48 bits: two commits would share a versionstamp.
    pub fn new(position: Position, order: u16) -> Self {
        assert!(
            position.sequence <= Self::MAX_SEQUENCE,
            "sequence {} needs more than 48 bits",
            position.sequence
        );
        let [e0, e1] = position.epoch.0.to_be_bytes();
        let [_, _, s0, s1, s2, s3, s4, s5] = position.sequence.to_be_bytes();
        let [o0, o1] = order.to_be_bytes();
        Self([e0, e1, s0, s1, s2, s3, s4, s5, o0, o1])
    }

    /// `None` unless `bytes` are ten.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn position(&self) -> Position {
        let [e0, e1, s0, s1, s2, s3, s4, s5, _, _] = self.0;
        Position {
            epoch: Epoch(u16::from_be_bytes([e0, e1])),
            sequence: u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]),
        }
    }

    pub fn order(&self) -> u16 {
        let [.., o0, o1] = self.0;
        u16::from_be_bytes([o0, o1])
    }

    /// Twenty lower-case hex characters.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Versionstamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versionstamp_bytes_are_golden() {
        let stamp = Versionstamp::new(Position::new(Epoch(0x0102), 0x0304_0506_0708), 0x090a);
        assert_eq!(stamp.to_hex(), "0102030405060708090a");
        assert_eq!(stamp.position(), Position::new(Epoch(0x0102), 0x0304_0506_0708));
        assert_eq!(stamp.order(), 0x090a);
    }

    #[test]
    fn versionstamps_order_as_commits_do() {
        let stamp = |epoch, sequence, order| {
            Versionstamp::new(Position::new(Epoch(epoch), sequence), order)
        };
        assert!(stamp(1, 9, 65535) < stamp(1, 10, 0));
        assert!(stamp(1, 10, 0) < stamp(1, 10, 1));
        assert!(stamp(1, Versionstamp::MAX_SEQUENCE, 0) < stamp(2, 0, 0));
    }

    #[test]
    #[should_panic(expected = "needs more than 48 bits")]
    fn no_two_commits_share_a_versionstamp_for_want_of_bits() {
        Versionstamp::new(Position::new(Epoch(1), 1 << 48), 0);
    }

    #[test]
    fn positions_follow_one_another_within_an_epoch_and_order_by_it_first() {
        let position = Position::new(Epoch(2), 7);
        assert_eq!(position.next(), Position::new(Epoch(2), 8));
        assert!(position < position.next() && position.next() < Position::new(Epoch(3), 0));
        assert!(Position::ZERO < Position::ZERO.next());
    }

    #[test]
    fn the_end_of_a_batch_is_behind_its_transactions_and_before_the_next_batch() {
        let at = |sequence| Position::new(Epoch(2), sequence);
        let end = Versionstamp::behind(at(7));
        let last = u16::try_from(crate::Batch::MAX_TRANSACTIONS - 1).unwrap();
        assert!(Versionstamp::new(at(7), last) < end && end < Versionstamp::new(at(8), 0));
        assert!(end.is_behind_its_batch() && !Versionstamp::new(at(7), last).is_behind_its_batch());
    }

    #[test]
    fn a_versionstamp_is_read_from_its_hex_text_and_from_no_other() {
        let stamp = Versionstamp::new(Position::new(Epoch(2), 0xabc), 9);
        let text = stamp.to_hex();
        assert_eq!(Versionstamp::from_hex(&text), Some(stamp));
        assert_eq!(Versionstamp::from_hex(&text.to_uppercase()), Some(stamp));
        for other in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &text.replace('b', "+"),
            "ü2345678901234567ü",
        ] {
            assert_eq!(Versionstamp::from_hex(other), None, "{other}");
        }
    }

    #[test]
    fn a_versionstamp_is_read_from_ten_bytes_and_from_no_other_number() {
        let stamp = Versionstamp::new(Position::new(Epoch(2), 7), 9);
        assert_eq!(Versionstamp::from_slice(&stamp.0), Some(stamp));
        for length in [0, 9, 11] {
            assert_eq!(Versionstamp::from_slice(&vec![0; length]), None);
        }
    }
}
