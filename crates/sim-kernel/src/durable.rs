//! Files on simulated machines: what fsyncs have made durable of them, and what a loss of power
//! leaves.
//!
//! The files are the system's. An fsync of a file notes its content, and one of a folder the names
//! in it; of all else, a loss of power keeps what chance draws. Folders themselves are not lost.

use std::ffi::{OsString, c_int};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::chance::Chance;

/// A file of the system. Its number alone is given to another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(u64, Option<SystemTime>);

impl Id {
    fn new(about: &Metadata) -> Self {
        Self(about.ino(), about.created().ok())
    }
}

/// Of a file its content, of a folder the names in it, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Content(Vec<u8>),
    Names(Vec<(OsString, Id)>),
}

/// The durable state of all files and folders. Numbers of the system do not decide on its order, nor
/// so on where its memory lies.
#[derive(Debug, Default)]
pub(crate) struct Durable(Vec<(Id, Held)>);

/// The state that an fsync makes durable, if it ends.
pub(crate) struct Noted(Id, Held);

fn look(path: &Path) -> io::Result<Noted> {
    let about = fs::metadata(path)?;
    if !about.is_dir() {
        return Ok(Noted(Id::new(&about), Held::Content(fs::read(path)?)));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        names.push((entry.file_name(), Id::new(&entry.metadata()?)));
    }
    names.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(Noted(Id::new(&about), Held::Names(names)))
}

/// Looks at the file of a descriptor.
pub(crate) fn look_at(fd: c_int) -> io::Result<Noted> {
    look(&PathBuf::from(format!("/proc/self/fd/{fd}")))
}

impl Durable {
    pub(crate) fn note(&mut self, Noted(id, held): Noted) {
        let former = match self.0.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => Some(std::mem::replace(known, held.clone())),
            None => {
                self.0.push((id, held.clone()));
                None
            }
        };
        // A file that had a name here and has none any more is gone.
        if let (Some(Held::Names(former)), Held::Names(names)) = (former, held) {
            let stays = |gone: &Id| names.iter().any(|(_, id)| id == gone);
            let gone: Vec<Id> =
                former.into_iter().map(|(_, id)| id).filter(|id| !stays(id)).collect();
            self.0.retain(|(id, _)| !gone.contains(id));
        }
    }

    fn names(&self, folder: Id) -> Vec<(OsString, Id)> {
        match self.0.iter().find(|(id, _)| *id == folder) {
            Some((_, Held::Names(names))) => names.clone(),
            _ => Vec::new(),
        }
    }

    fn content(&self, file: Id) -> Vec<u8> {
        match self.0.iter().find(|(id, _)| *id == file) {
            Some((_, Held::Content(content))) => content.clone(),
            _ => Vec::new(),
        }
    }

    /// Takes from a folder, and from all that are in it, what a loss of power takes that comes now.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn lose(&mut self, folder: &Path, chance: &mut Chance) -> io::Result<()> {
        let Noted(id, Held::Names(present)) = look(folder)? else { return Ok(()) };
        let lasting = self.names(id);
        let mut names: Vec<&OsString> =
            present.iter().chain(&lasting).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = folder.join(name);
            let of = |names: &[(OsString, Id)]| {
                names.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
            };
            let (is, was) = (of(&present), of(&lasting));
            if path.is_dir() {
                self.lose(&path, chance)?;
            } else if is != was && chance.below(2) == 0 {
                // The name is as before.
                match was {
                    Some(file) => fs::write(&path, self.content(file))?,
                    None => fs::remove_file(&path)?,
                }
            } else if let Some(file) = is {
                self.lose_content(&path, file, chance)?;
            }
        }
        for (name, _) in self.names_after(folder)? {
            self.note(look(&folder.join(name))?);
        }
        Ok(())
    }

    /// Keeps of a file what is durable, all that is there, or something of it.
    fn lose_content(&self, path: &Path, file: Id, chance: &mut Chance) -> io::Result<()> {
        let (mut content, lasting) = (fs::read(path)?, self.content(file));
        if content == lasting {
            return Ok(());
        }
        match chance.below(3) {
            0 => fs::write(path, lasting),
            1 => {
                let kept = chance.below(content.len() as u64 + 1);
                content.truncate(usize::try_from(kept).unwrap_or(0));
                fs::write(path, content)
            }
            _ => Ok(()),
        }
    }

    /// Notes the names that are left in a folder.
    fn names_after(&mut self, folder: &Path) -> io::Result<Vec<(OsString, Id)>> {
        let left = look(folder)?;
        let id = left.0;
        self.note(left);
        Ok(self.names(id))
    }
}
