//! Memory from jemalloc, for Rust and for RocksDB.
//!
//! glibc keeps freed memory: its heaps shrink from their ends only, and one small allocation that
//! stays keeps all memory below it. After some answers of 64 MiB, a node held on to a quarter of
//! its memory for nothing. It also costs more: a request allocates pieces of several KiB, which
//! glibc does not cache.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed memory is returned to the system within some seconds, even when no thread allocates any
/// more.
#[allow(
    unsafe_code,
    reason = "the name by which jemalloc looks for its settings; nothing else has it"
)]
#[unsafe(export_name = "malloc_conf")]
pub(crate) static SETTINGS: &[u8] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::time::{Duration, Instant};

    fn resident_mb() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() >> 10
    }

    #[test]
    fn memory_of_large_reads_is_returned_while_small_allocations_stay() {
        const PIECE: usize = 1 << 20;
        drop(vec![1u8; 16 * PIECE]);
        let before = resident_mb();
        let mut small = Vec::new();
        let large: Vec<Vec<u8>> = (0..200)
            .map(|_| {
                small.push(vec![1u8; 100]);
                vec![1u8; PIECE]
            })
            .collect();
        small.push(vec![1u8; 100]);
        assert!(resident_mb() >= before + 150);
        drop(large);
        let freed = Instant::now();
        while resident_mb() >= before + 50 {
            assert!(
                freed.elapsed() < Duration::from_secs(60),
                "{before} MiB before, {} MiB after",
                resident_mb()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(small);
    }
}
