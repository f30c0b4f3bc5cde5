//! How far logs had certainly been durable, in a file beside the database.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use meridian_types::{Epoch, NodeId, ShardId};
use meridian_vault::{Folder, HIGH_WATER};
use parking_lot::Mutex;

use crate::{GroupId, StorageError};

/// How far each Raft log had certainly been durable, kept in a file of its own beside the database.
/// A log that is shorter at the next start lost acknowledged entries (a restored database, a disk
/// that lied): its node must not vote, or a commit could be undone. The same of the newest term
/// that it has voted in: where that is gone from the database, its vote is not known any more.
///
/// A folder that was rolled back as a whole takes this file back with the log. So it also says how
/// far the logs of other members were known to be: those tell the member when it stands for
/// election, or is asked for its vote.
///
/// The marks trail the logs, by up to the time between two [`HighWater::persist`]; they never run
/// ahead. Those of votes do not trail.
#[derive(Debug)]
pub struct HighWater {
    path: PathBuf,
    folder: Folder,
    marks: Mutex<Marks>,
    /// Held while the file is replaced.
    writing: Mutex<()>,
}

/// How far a member's log was known to go, in what is committed: such entries are in every later
/// log of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberMark {
    pub term: u64,
    pub index: u64,
}

/// The durable end of this node's own log of a group, and its newest vote there.
#[derive(Debug, Clone, Copy, Default)]
struct Own {
    last_index: u64,
    /// The term of the newest vote.
    voted: u64,
}

#[derive(Debug, Default)]
struct Marks {
    own: BTreeMap<GroupId, Own>,
    /// Of other members, by node.
    members: BTreeMap<(GroupId, NodeId), MemberMark>,
    dirty: bool,
}

impl Marks {
    fn parse(&mut self, line: &str) -> Option<()> {
        let words = line.split(' ').map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let group = |shard: u64, epoch: u64| {
            let (shard, epoch) = (shard.try_into().ok()?, epoch.try_into().ok()?);
            Some(GroupId { shard: ShardId(shard), epoch: Epoch(epoch) })
        };
        match *words.as_slice() {
            [shard, epoch, last_index, voted] => {
                self.own.insert(group(shard, epoch)?, Own { last_index, voted });
            }
            [shard, epoch, node, term, index] => {
                let member = (group(shard, epoch)?, NodeId(node));
                self.members.insert(member, MemberMark { term, index });
            }
            _ => return None,
        }
        Some(())
    }

    fn text(&self) -> String {
        let own = self.own.iter().map(|(group, own)| {
            format!("{} {} {} {}\n", group.shard, group.epoch, own.last_index, own.voted)
        });
        let others = self.members.iter().map(|((group, node), mark)| {
            format!("{} {} {node} {} {}\n", group.shard, group.epoch, mark.term, mark.index)
        });
        own.chain(others).collect()
    }
}

impl HighWater {
    /// In a file that is not encrypted.
    ///
    /// # Errors
    /// As [`HighWater::open_in`].
    pub fn open(path: PathBuf) -> Result<Self, StorageError> {
        let folder = Folder::from(path.parent().unwrap_or(Path::new("")));
        Self::open_at(path, folder)
    }

    /// In its place in a data folder.
    ///
    /// # Errors
    /// When the file is there and cannot be read or parsed.
    pub fn open_in(folder: &Folder) -> Result<Self, StorageError> {
        Self::open_at(folder.join(HIGH_WATER), folder.clone())
    }

    fn open_at(path: PathBuf, folder: Folder) -> Result<Self, StorageError> {
        let mut text = String::new();
        match folder.read(&path).and_then(|mut file| file.read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(StorageError::corruption(path.display().to_string(), error));
            }
            Err(source) => return Err(file_error(&path, source)),
        }
        let mut marks = Marks::default();
        for line in text.lines() {
            let malformed =
                || StorageError::corruption(path.display().to_string(), format!("line `{line}`"));
            marks.parse(line).ok_or_else(malformed)?;
        }
        Ok(Self { path, folder, marks: Mutex::new(marks), writing: Mutex::default() })
    }

    /// Up to here the group's log had certainly been durable; 0 if nothing is known.
    pub fn mark(&self, group: GroupId) -> u64 {
        self.marks.lock().own.get(&group).map_or(0, |own| own.last_index)
    }

    /// The newest term in which this node has certainly saved a vote; 0 if nothing is known.
    pub fn voted(&self, group: GroupId) -> u64 {
        self.marks.lock().own.get(&group).map_or(0, |own| own.voted)
    }

    /// A vote of `term` is durable. So is this, on return.
    pub fn vote(&self, group: GroupId, term: u64) -> Result<(), StorageError> {
        {
            let mut marks = self.marks.lock();
            let own = marks.own.entry(group).or_default();
            if own.voted < term {
                own.voted = term;
                marks.dirty = true;
            }
        }
        // Also where it was known before: the call that raised it may not have come to write it.
        self.persist()
    }

    /// The group's log is durable up to `index`. Only in memory until [`HighWater::persist`].
    pub fn raise(&self, group: GroupId, index: u64) {
        let mut marks = self.marks.lock();
        let own = marks.own.entry(group).or_default();
        if own.last_index < index {
            own.last_index = index;
            marks.dirty = true;
        }
    }

    /// Another member's log holds this, durably. Only in memory until [`HighWater::persist`].
    pub fn remember(&self, group: GroupId, node: NodeId, mark: MemberMark) {
        let mut marks = self.marks.lock();
        let known = marks.members.get(&(group, node)).copied();
        if known < Some(mark) {
            marks.members.insert((group, node), mark);
            marks.dirty = true;
        }
    }

    /// The mark of a member that [`HighWater::remember`] recorded last.
    pub fn remembered(&self, group: GroupId, node: NodeId) -> Option<MemberMark> {
        self.marks.lock().members.get(&(group, node)).copied()
    }

    /// Before a log is cut back to `index`, as Raft does with entries that were never committed.
    pub fn lower(&self, group: GroupId, index: u64) -> Result<(), StorageError> {
        {
            let mut marks = self.marks.lock();
            match marks.own.get_mut(&group) {
                Some(own) if own.last_index > index => own.last_index = index,
                _ => return Ok(()),
            }
            marks.dirty = true;
        }
        self.persist()
    }

    /// Before a group's log is deleted for good, and its votes.
    pub fn forget(&self, group: GroupId) -> Result<(), StorageError> {
        self.remove(group, |_| None)
    }

    /// Before a group's log is deleted, and its votes are kept.
    pub fn leave(&self, group: GroupId) -> Result<(), StorageError> {
        self.remove(group, |own| Some(Own { last_index: 0, ..own }))
    }

    fn remove(
        &self,
        group: GroupId,
        kept: impl FnOnce(Own) -> Option<Own>,
    ) -> Result<(), StorageError> {
        {
            let mut marks = self.marks.lock();
            if let Some(kept) = marks.own.remove(&group).and_then(kept) {
                marks.own.insert(group, kept);
            }
            marks.members.retain(|(of, _), _| *of != group);
            marks.dirty = true;
        }
        self.persist()
    }

    /// Writes the marks to the file, synced, if they changed. A call that raises a mark meanwhile
    /// does not wait.
    pub fn persist(&self) -> Result<(), StorageError> {
        let _writing = self.writing.lock();
        let text;
        {
            let mut marks = self.marks.lock();
            if !std::mem::take(&mut marks.dirty) {
                return Ok(());
            }
            text = marks.text();
        }
        // The next call is not told that it is written.
        self.replace_file(text.as_bytes()).inspect_err(|_| self.marks.lock().dirty = true)
    }

    /// Writes the file again, as a new one would be encrypted.
    pub fn rewrite(&self) -> Result<(), StorageError> {
        self.marks.lock().dirty = true;
        self.persist()
    }

    fn replace_file(&self, content: &[u8]) -> Result<(), StorageError> {
        let path = &self.path;
        let temporary = path.with_extension("new");
        let write = || {
            let mut file = self.folder.create(&temporary)?;
            file.write_all(content)?;
            file.finish()?;
            fs::rename(&temporary, path)?;
            meridian_vault::sync_name(path)
        };
        write().map_err(|source| file_error(path, source))
    }
}

fn file_error(path: &Path, source: std::io::Error) -> StorageError {
    StorageError::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use meridian_vault::{EncryptionSettings, KeySource};

    use super::*;

    #[test]
    fn marks_in_an_encrypted_folder_are_read_again_and_damage_of_them_is_corruption() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = keys.path().join("key");
        fs::write(&key, (0..32).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let group = GroupId { shard: ShardId(1), epoch: Epoch(2) };
        let plain = HighWater::open_in(&folder.path().into()).unwrap();
        plain.vote(group, 3).unwrap();
        let settings =
            EncryptionSettings { seals: true, key: KeySource::File(key), previous: None };
        let encrypted = Folder::open(folder.path(), Some(&settings)).unwrap();
        let path = folder.path().join("high-water");
        let is_stale = || encrypted.vault().unwrap().is_stale(&path).unwrap();
        assert!(is_stale());
        HighWater::open_in(&encrypted).unwrap().rewrite().unwrap();
        assert!(!is_stale());
        assert_eq!(HighWater::open_in(&encrypted).unwrap().voted(group), 3);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let refused = HighWater::open_in(&encrypted).unwrap_err();
        assert!(matches!(refused, StorageError::Corruption { .. }), "{refused}");
    }

    #[test]
    fn marks_are_those_of_before_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("high-water");
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let next = GroupId { shard: ShardId(1), epoch: Epoch(2) };
        let marks = HighWater::open(path.clone()).unwrap();
        assert_eq!(marks.mark(group), 0);
        marks.raise(group, 10);
        marks.raise(group, 9);
        marks.raise(next, 7);
        marks.vote(group, 3).unwrap();
        marks.vote(group, 2).unwrap();
        assert_eq!(HighWater::open(path.clone()).unwrap().voted(group), 3);
        let (early, late) = (MemberMark { term: 2, index: 90 }, MemberMark { term: 3, index: 12 });
        marks.remember(group, NodeId(4), late);
        marks.remember(group, NodeId(4), early);
        marks.remember(next, NodeId(5), early);
        marks.persist().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "1 1 10 3\n1 2 7 0\n1 1 4 3 12\n1 2 5 2 90\n"
        );
        let marks = HighWater::open(path.clone()).unwrap();
        assert_eq!((marks.mark(group), marks.remembered(group, NodeId(4))), (10, Some(late)));
        assert_eq!(
            (marks.remembered(group, NodeId(5)), marks.remembered(next, NodeId(4))),
            (None, None)
        );
        marks.lower(group, 4).unwrap();
        assert_eq!(HighWater::open(path.clone()).unwrap().mark(group), 4);
        marks.lower(group, 9).unwrap();
        assert_eq!(marks.mark(group), 4, "cut entries are not there again");
        marks.leave(group).unwrap();
        let reopened = HighWater::open(path.clone()).unwrap();
        assert_eq!((reopened.mark(group), reopened.voted(group)), (0, 3));
        marks.forget(group).unwrap();
        let reopened = HighWater::open(path.clone()).unwrap();
        assert_eq!((reopened.mark(group), reopened.voted(group), reopened.mark(next)), (0, 0, 7));
        assert_eq!(
            (reopened.remembered(group, NodeId(4)), reopened.remembered(next, NodeId(5))),
            (None, Some(early))
        );
        for nonsense in ["nonsense\n", "1 1 2\n", "1 99999999 3 1\n", "1 1 2 3 4 5\n"] {
            fs::write(&path, nonsense).unwrap();
            let refusal = HighWater::open(path.clone()).unwrap_err().to_string();
            assert!(refusal.contains(nonsense.trim()), "{refusal}");
        }
    }

    /// Each time the file is written costs two fsyncs, and the marks are told of every entry.
    #[test]
    fn what_is_known_already_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("high-water");
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let marks = HighWater::open(path.clone()).unwrap();
        let tell = |index| {
            marks.raise(group, index);
            marks.remember(group, NodeId(4), MemberMark { term: 3, index });
            marks.vote(group, index).unwrap();
            marks.lower(group, index).unwrap();
            marks.persist().unwrap();
        };
        tell(10);
        fs::remove_file(&path).unwrap();
        tell(10);
        assert!(!path.exists(), "the same was written again");
        tell(11);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1 1 11 11\n1 1 4 3 11\n");
    }

    #[test]
    fn marks_that_could_not_be_written_are_written_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not there").join("high-water");
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let marks = HighWater::open(path.clone()).unwrap();
        marks.raise(group, 10);
        marks.persist().unwrap_err();
        fs::create_dir(path.parent().unwrap()).unwrap();
        marks.persist().unwrap();
        assert_eq!(HighWater::open(path).unwrap().mark(group), 10);
    }
}
