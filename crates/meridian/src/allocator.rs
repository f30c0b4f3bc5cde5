//! Memory from jemalloc, for Rust and for RocksDB.
//!
//! glibc keeps what was freed: its heaps shrink from their ends only, and one small piece that
//! lives on keeps all below it. After some answers of 64 MiB a node held on to a quarter of its
//! memory for nothing. It also costs more: a request has pieces of several KiB, for which it has no
//! cache.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is freed is the system's again within some seconds, also where nobody allocates any more.
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
    fn what_large_reads_took_is_given_back_though_small_pieces_live_on() {
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
