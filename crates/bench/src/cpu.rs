//! The CPU time of processes on this machine, from the kernel's account of each thread.

use std::path::Path;
use std::time::Instant;

use crate::error::BenchError;

/// Nanoseconds for which all threads of these processes have run so far.
///
/// # Errors
/// [`BenchError::Option`] names a process that does not exist.
pub fn used_ns(processes: &[u32]) -> Result<u64, BenchError> {
    let mut sum = 0;
    for process in processes {
        let tasks = Path::new("/proc").join(process.to_string()).join("task");
        let gone = |error| BenchError::Option(format!("--cpu-of {process}: {error}"));
        for task in std::fs::read_dir(tasks).map_err(gone)?.flatten() {
            // A thread may have ended meanwhile.
            let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
            let ns: Option<u64> = text.split(' ').next().and_then(|ns| ns.parse().ok());
            sum += ns.unwrap_or(0);
        }
    }
    Ok(sum)
}

/// The CPU time of the processes between two moments.
pub async fn used_between(
    processes: &[u32],
    begin: Instant,
    end: Instant,
) -> Result<u64, BenchError> {
    tokio::time::sleep_until(begin.into()).await;
    let before = used_ns(processes)?;
    tokio::time::sleep_until(end.into()).await;
    Ok(used_ns(processes)?.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_process_uses_cpu_and_a_missing_one_is_named() {
        let own = [std::process::id()];
        let before = used_ns(&own).unwrap();
        while used_ns(&own).unwrap() == before {}
        let error = used_ns(&[u32::MAX]).unwrap_err().to_string();
        assert!(error.starts_with("--cpu-of 4294967295: "), "{error}");
    }
}
