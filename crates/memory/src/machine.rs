//! The memory that the machine leaves to this process.

use std::path::Path;

use crate::MIN_BYTES;

/// The default is never more: an operator may say more, but beyond this a larger cache seldom
/// justifies taking the memory from other processes.
const MAX_DEFAULT_BYTES: usize = 8 << 30;

/// The default memory of a process: half of the machine's memory, or of its control group's limit,
/// between [`MIN_BYTES`] (320 MiB) and 8 GiB.
pub fn default_max_bytes() -> usize {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    default_of(available_bytes(&read))
}

fn default_of(available: Option<usize>) -> usize {
    // Where the system does not tell, as on other operating systems: a machine of 2 GiB.
    (available.unwrap_or(2 << 30) / 2).clamp(MIN_BYTES, MAX_DEFAULT_BYTES)
}

/// The memory of the machine, or the lowest limit of the control groups of this process.
fn available_bytes(read: &dyn Fn(&Path) -> Option<String>) -> Option<usize> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
        line.trim().parse::<usize>().ok()?.checked_mul(1024)
    });
    // `0::/a/b` in version 2, `7:memory:/a/b` in version 1. In a container, the files of the
    // process's own group are often mounted at the root.
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let named = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        Some((root, Path::new(group.trim_start_matches('/')).to_owned(), file))
    });
    let limits = named.flat_map(|(root, group, file)| {
        let above =
            group.ancestors().map(|part| Path::new(root).join(part).join(file)).collect::<Vec<_>>();
        above.into_iter().filter_map(|path| read(&path)?.trim().parse::<usize>().ok())
    });
    limits.chain(machine).filter(|bytes| *bytes > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &'static [(&'static str, &'static str)]) -> Option<usize> {
        available_bytes(&|path| {
            files
                .iter()
                .find(|(name, _)| Path::new(name) == path)
                .map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn lowest_of_machine_and_control_groups_counts() {
        const MIB: usize = 1 << 20;
        assert_eq!(with(&[]), None);
        assert_eq!(
            with(&[("/proc/meminfo", "MemTotal:        8000 kB\nMemFree:  1 kB\n")]),
            Some(8000 * 1024)
        );
        let files: &[_] = &[
            ("/proc/meminfo", "MemTotal:        8000000 kB\n"),
            ("/proc/self/cgroup", "0::/slice/unit\n"),
            ("/sys/fs/cgroup/slice/unit/memory.max", "max\n"),
            ("/sys/fs/cgroup/slice/memory.max", "536870912\n"),
        ];
        assert_eq!(with(files), Some(512 * MIB), "a group above binds too");
        let files: &[_] = &[
            ("/proc/meminfo", "MemTotal:        8000000 kB\n"),
            ("/proc/self/cgroup", "7:memory:/docker/x\n3:cpu:/docker/x\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
        ];
        assert_eq!(with(files), Some(1024 * MIB));
    }

    #[test]
    fn the_default_is_half_within_bounds() {
        assert_eq!(default_of(Some(4 << 30)), 2 << 30);
        assert_eq!(default_of(Some(64 << 30)), 8 << 30);
        assert_eq!(default_of(Some(64 << 20)), MIN_BYTES);
        assert!(default_max_bytes() >= MIN_BYTES);
    }
}
