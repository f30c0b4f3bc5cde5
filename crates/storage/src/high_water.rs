use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use meridian_types::{Epoch, ShardId};
use parking_lot::Mutex;

use crate::{GroupId, StorageError};

/// How far each Raft log had certainly been durable, kept in a file of its own beside the database. A log
/// that is shorter at the next start lost acknowledged entries (a restored backup, a disk that lied): its
/// node must not vote, or a commit could be undone.
///
/// The marks trail the logs, by up to the time between two [`HighWater::persist`]; they never run ahead.
#[derive(Debug)]
pub struct HighWater {
    path: PathBuf,
    marks: Mutex<Marks>,
    /// Held while the file is replaced.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Marks {
    last_index: BTreeMap<GroupId, u64>,
    dirty: bool,
}

impl HighWater {
    /// # Errors
    /// When the file is there and cannot be read or parsed.
    pub fn open(path: PathBuf) -> Result<Self, StorageError> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(file_error(&path, source)),
        };
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let (shard, epoch, index) = (words.next()?, words.next()?, words.next()?);
            let group = GroupId { shard: ShardId(shard.parse().ok()?), epoch: Epoch(epoch.parse().ok()?) };
            Some((group, index.parse().ok()?))
        };
        let malformed = |line| StorageError::corruption(path.display().to_string(), format!("line `{line}`"));
        let last_index = text.lines().map(|line| parse(line).ok_or_else(|| malformed(line)));
        let last_index = last_index.collect::<Result<_, _>>()?;
        Ok(Self { path, marks: Mutex::new(Marks { last_index, dirty: false }), writing: Mutex::default() })
    }

    /// Up to here the group's log had certainly been durable; 0 if nothing is known.
    pub fn mark(&self, group: GroupId) -> u64 {
        self.marks.lock().last_index.get(&group).copied().unwrap_or(0)
    }

    /// # Errors
    /// [`StorageError::Refused`] when the group's log ends before its mark.
    pub fn check(&self, group: GroupId, last_index: u64) -> Result<(), StorageError> {
        let mark = self.mark(group);
        if last_index >= mark {
            return Ok(());
        }
        Err(StorageError::Refused(format!(
            "the log of {group} ends at index {last_index} but had been durable up to {mark}: acknowledged \
             entries are gone, so this node must not vote with it. Restore the folder, or wipe it whole: the \
             node then comes back as a copy that does not vote"
        )))
    }

    /// The group's log is durable up to `index`. Only in memory until [`HighWater::persist`].
    pub fn raise(&self, group: GroupId, index: u64) {
        let mut marks = self.marks.lock();
        let mark = marks.last_index.entry(group).or_default();
        if *mark < index {
            *mark = index;
            marks.dirty = true;
        }
    }

    /// Before a log is cut back to `index`, as Raft does with entries that were never committed.
    pub fn lower(&self, group: GroupId, index: u64) -> Result<(), StorageError> {
        {
            let mut marks = self.marks.lock();
            match marks.last_index.get_mut(&group) {
                Some(mark) if *mark > index => *mark = index,
                _ => return Ok(()),
            }
            marks.dirty = true;
        }
        self.persist()
    }

    /// Before a group's log is deleted for good.
    pub fn forget(&self, group: GroupId) -> Result<(), StorageError> {
        {
            let mut marks = self.marks.lock();
            if marks.last_index.remove(&group).is_none() {
                return Ok(());
            }
            marks.dirty = true;
        }
        self.persist()
    }

    /// Writes the marks to the file, synced, if they changed. Whoever raises a mark meanwhile does not wait.
    pub fn persist(&self) -> Result<(), StorageError> {
        let _writing = self.writing.lock();
        let mut text = String::new();
        {
            let mut marks = self.marks.lock();
            if !std::mem::take(&mut marks.dirty) {
                return Ok(());
            }
            for (group, index) in &marks.last_index {
                text.push_str(&format!("{} {} {index}\n", group.shard, group.epoch));
            }
        }
        replace_file(&self.path, text.as_bytes())
    }
}

fn replace_file(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: std::io::Error) -> StorageError {
    StorageError::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_shorter_than_its_mark_is_refused_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("high-water");
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let marks = HighWater::open(path.clone()).unwrap();
        marks.check(group, 0).unwrap();
        marks.raise(group, 10);
        marks.raise(group, 9);
        marks.persist().unwrap();
        let marks = HighWater::open(path.clone()).unwrap();
        marks.check(group, 10).unwrap();
        let refusal = marks.check(group, 9).unwrap_err().to_string();
        assert!(refusal.contains("ends at index 9 but had been durable up to 10"), "{refusal}");
        marks.lower(group, 4).unwrap();
        HighWater::open(path.clone()).unwrap().check(group, 4).unwrap();
        let next = GroupId { shard: ShardId(1), epoch: Epoch(2) };
        marks.raise(next, 7);
        marks.forget(group).unwrap();
        let reopened = HighWater::open(path.clone()).unwrap();
        assert_eq!((reopened.mark(group), reopened.mark(next)), (0, 7));
        fs::write(&path, "nonsense\n").unwrap();
        assert!(HighWater::open(path).unwrap_err().to_string().contains("nonsense"));
    }
}
