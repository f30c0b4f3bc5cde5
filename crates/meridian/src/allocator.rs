//! What glibc's allocator gives back to the system, and when.

/// Larger pieces are the system's again as soon as they are freed: what reads find in a turn, answers, messages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 256 * 1024;

/// Keeps what is freed from staying in this process.
///
/// By itself glibc takes a piece that was freed for a sign that more of its size will come, and from then on cuts
/// pieces of up to 32 MiB out of its heaps, which it can only shrink from their ends: one small piece that lives on keeps
/// all below it. After some answers of 64 MiB a node held on to a quarter of its memory for nothing.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "a call of C that takes two numbers, before there is another thread")]
    // SAFETY: mallopt touches nothing but the allocator's own settings.
    let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if taken == 0 {
        eprintln!("meridian: the allocator keeps its own settings, and may keep memory that is freed");
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_mb() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() >> 10
    }

    #[test]
    fn what_large_reads_took_is_given_back_though_small_pieces_live_on() {
        const PIECE: usize = 1 << 20;
        give_back();
        // The first one that is freed is what glibc would learn from.
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
        let after = resident_mb();
        assert!(after < before + 50, "{before} MiB before, {after} MiB after");
        drop(small);
    }
}
