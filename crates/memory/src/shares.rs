//! The memory of a process, divided by purpose.

/// The least memory of a process: with less it cannot hold the largest legal answer beside
/// everything else.
pub const MIN_BYTES: usize = 320 << 20;

/// The largest answer to one read: 1,000 entries of a 2 KiB key and a 64 KiB value.
const LARGEST_READ: usize = 68 << 20;
/// The last quarter is left to other tokens by the gateway.
const LARGEST_ANSWER: usize = LARGEST_READ / 3 * 4;

/// The memory of one node or gateway, divided by purpose; in bytes. The rest is headroom: code,
/// connections, indexes, and memory that an allocator does not give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Blocks of RocksDB, with indexes and filters.
    pub block_cache: usize,
    /// All memtables of all shards together.
    pub memtables: usize,
    /// Entries of all groups' logs that are kept for sending and applying.
    pub log_cache: usize,
    /// Bodies of requests in progress at the gateway.
    pub bodies: usize,
    /// Writes that wait for a shard's leader, or are in one of its batches.
    pub writes: usize,
    /// Entries that reads have found, until they are encoded.
    pub reads: usize,
    /// Answers of the node's gateway, until clients have taken them.
    pub answers: usize,
}

impl Shares {
    /// The shares of a node that takes `max_bytes` in all, at least [`MIN_BYTES`].
    pub fn of_node(max_bytes: usize) -> Self {
        let max_bytes = max_bytes.max(MIN_BYTES);
        let given = max_bytes - max_bytes / 5;
        let (reads, answers) = ((given / 8).max(LARGEST_READ), (given / 8).max(LARGEST_ANSWER));
        let percent = |percent: usize| (given - reads - answers) / 100 * percent;
        Self {
            block_cache: percent(40),
            memtables: percent(30),
            log_cache: percent(8),
            bodies: percent(10),
            writes: percent(12),
            reads,
            answers,
        }
    }

    /// The shares of a gateway without data of its own.
    pub fn of_gateway(max_bytes: usize) -> Self {
        let max_bytes = max_bytes.max(MIN_BYTES);
        let third = (max_bytes - max_bytes / 4) / 3;
        let (reads, answers) = (third.max(LARGEST_READ), third.max(LARGEST_ANSWER));
        let bodies = max_bytes - max_bytes / 4 - reads - answers;
        Self { block_cache: 0, memtables: 0, log_cache: 0, bodies, writes: 0, reads, answers }
    }

    /// The bytes without a purpose: at least a quarter of all others together.
    pub fn headroom(&self) -> usize {
        self.total() / 4
    }

    pub fn total(&self) -> usize {
        self.block_cache
            + self.memtables
            + self.log_cache
            + self.bodies
            + self.writes
            + self.reads
            + self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_the_memory_and_admit_the_largest_request() {
        for max_bytes in [0, MIN_BYTES, 300 << 20, 1 << 30, 8 << 30, 1 << 40] {
            for shares in [Shares::of_node(max_bytes), Shares::of_gateway(max_bytes)] {
                let max_bytes = max_bytes.max(MIN_BYTES);
                assert!(shares.total() <= max_bytes - max_bytes / 5, "{shares:?} of {max_bytes}");
                assert!(
                    shares.reads >= LARGEST_READ && shares.bodies >= 4 << 20,
                    "{shares:?} of {max_bytes}"
                );
                assert!(shares.answers / 4 * 3 >= LARGEST_READ - 4, "{shares:?} of {max_bytes}");
            }
            let shares = Shares::of_node(max_bytes);
            // Room for a few of the largest writes, and memtables large enough for a flush.
            assert!(
                shares.writes >= 8 << 20
                    && shares.memtables >= 16 << 20
                    && shares.log_cache >= 4 << 20,
                "{shares:?}"
            );
        }
    }
}
