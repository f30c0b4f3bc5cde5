//! The limits of KV Connect and of Meridian's own formats. Sizes in bytes, times in milliseconds.

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
/// A request retried with the same id within this time is applied once.
pub const REQUEST_ID_RETENTION_MS: u64 = 5 * 60 * 1000;
/// The bytes of values that the sums, minima and maxima of one atomic write may read and write, one
/// after the other. A sum of a few bytes may read a value of [`MAX_VALUE_BYTES`] and write another,
/// so the size of a request ([`MAX_TRANSACTION_BYTES`]) does not bound its work.
pub const MAX_COMPUTED_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Documented for clients and operators.
    #[test]
    fn what_is_computed_here_is_what_the_documentation_says() {
        assert_eq!(REQUEST_ID_RETENTION_MS, 300_000, "five minutes");
        assert_eq!(MAX_COMPUTED_BYTES, 4_194_304, "4 MiB");
    }
}
