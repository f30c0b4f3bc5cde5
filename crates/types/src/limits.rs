//! The limits of KV Connect and of Meridian's own formats. Sizes in bytes, times in milliseconds.

/// Of the name of a region, data center, node, gateway, operator, observer or database.
pub const MAX_NAME_BYTES: usize = 100;
pub const MAX_WRITE_KEY_BYTES: usize = 2048;
/// One more than a written key: clients read one key as a range that ends behind it.
pub const MAX_READ_KEY_BYTES: usize = 2049;
/// The length of the suffix that a set with a versionstamp suffix puts behind its key: `02`, 20 hex
/// characters, `00`. The stored key counts, since clients read by it.
pub const VERSIONSTAMP_SUFFIX_BYTES: usize = 22;
pub const MAX_VALUE_BYTES: usize = 65536;
pub const MAX_READ_RANGES: usize = 10;
/// Entries of all ranges of one read together.
pub const MAX_READ_ENTRIES: usize = 1000;
pub const MAX_CHECKS: usize = 100;
/// Mutations and enqueues together.
pub const MAX_MUTATIONS: usize = 1000;
/// Keys, values and payloads of one atomic write together.
pub const MAX_TRANSACTION_BYTES: usize = 819_200;
pub const MAX_WATCHED_KEYS: usize = 10;
/// How far ahead a message may be due.
pub const MAX_ENQUEUE_DELAY_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// How much later than that a due time may be, since clients compute it by clocks of their own.
pub const ENQUEUE_CLOCK_SLACK_MS: u64 = 10 * 60 * 1000;
/// The keys of one message that are set to its payload if no delivery succeeds.
pub const MAX_UNDELIVERED_KEYS: usize = 10;
/// The intervals of a message's schedule, and the length of each.
pub const MAX_BACKOFF_INTERVALS: usize = 10;
pub const MAX_BACKOFF_INTERVAL_MS: u32 = 60 * 60 * 1000;
/// The schedule of a message whose enqueue has none: six attempts in all.
pub const DEFAULT_BACKOFF_MS: [u32; 5] = [100, 1000, 5000, 30_000, 60_000];
/// The messages that one atomic write acknowledges. Each of them is read.
pub const MAX_ACKNOWLEDGEMENTS: usize = 64;
/// The messages of one database that are not delivered, due or not, in all of its queues.
pub const MAX_UNDELIVERED_MESSAGES: u64 = 2_000_000;
/// The named queues of one database that have undelivered messages.
pub const MAX_QUEUE_NAMES: usize = 100;
pub const MAX_QUEUE_NAME_BYTES: usize = 64;
/// The dead letters of one database that are kept, and for how long.
pub const MAX_DEAD_LETTERS: u64 = 1000;
pub const DEAD_LETTER_RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The numbers from the first dead letter that is kept to the last. Those without a letter between
/// them are passed over when the first goes.
pub const MAX_DEAD_NUMBERS: u64 = 4 * MAX_DEAD_LETTERS;
/// A request retried with the same id within this time is applied once.
pub const REQUEST_ID_RETENTION_MS: u64 = 5 * 60 * 1000;
/// The bytes of values that the sums, minima and maxima of one atomic write may read and write, one
/// after the other; the bytes that its settlements of messages write count as well. A sum of a few
/// bytes may read a value of [`MAX_VALUE_BYTES`] and write another, so the size of a request
/// ([`MAX_TRANSACTION_BYTES`]) does not bound its work.
pub const MAX_COMPUTED_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Documented for clients and operators.
    #[test]
    fn what_is_computed_here_is_what_the_documentation_says() {
        assert_eq!(REQUEST_ID_RETENTION_MS, 300_000, "five minutes");
        assert_eq!(MAX_COMPUTED_BYTES, 4_194_304, "4 MiB");
        assert_eq!(MAX_ENQUEUE_DELAY_MS, 2_592_000_000, "30 days");
        assert_eq!(ENQUEUE_CLOCK_SLACK_MS, 600_000, "ten minutes");
        assert_eq!(MAX_BACKOFF_INTERVAL_MS, 3_600_000, "an hour");
        assert_eq!(DEAD_LETTER_RETENTION_MS, 604_800_000, "seven days");
    }
}
