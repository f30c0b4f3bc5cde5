//! A small fast generator (splitmix64). It is repeatable, and not for secrets.

#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Different lanes of one seed give unrelated sequences.
    pub fn new(seed: u64, lane: u64) -> Self {
        let mut mixer = Self { state: seed };
        Self { state: mixer.next_u64() ^ Self { state: lane }.next_u64() }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from 0 to `bound` (exclusive).
    pub fn below(&mut self, bound: u32) -> u32 {
        let scaled = ((self.next_u64() >> 32) * u64::from(bound)) >> 32;
        // Cannot exceed 32 bits: both factors have at most 32.
        u32::try_from(scaled).unwrap_or(0)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            for (byte, random) in chunk.iter_mut().zip(self.next_u64().to_le_bytes()) {
                *byte = random;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_below_the_bound_and_reaches_everything() {
        let mut random = Random::new(1, 0);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[usize::try_from(random.below(10)).unwrap()] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn lanes_differ_and_repeat() {
        assert_eq!(Random::new(7, 1).next_u64(), Random::new(7, 1).next_u64());
        assert_ne!(Random::new(7, 1).next_u64(), Random::new(7, 2).next_u64());
    }
}
