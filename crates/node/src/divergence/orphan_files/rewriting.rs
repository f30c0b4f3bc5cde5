//! Writes the files again that are not encrypted as new ones are.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use meridian_storage::StorageError;
use meridian_vault::{Folder, Vault};

use super::{OrphanName, file_error, folder, names, writer};

/// Writes files again, and remembers those that are damaged: each was copied up to its damage, and
/// is not copied again before it is another.
#[derive(Default)]
pub(crate) struct OrphanRewriter {
    damaged: BTreeMap<OrphanName, (Version, String)>,
}

/// A file as it was looked at. The time is that of the last change of the file or of anything said
/// of it, which no program sets: a copy that takes its place may come with its other times.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Version {
    fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl OrphanRewriter {
    /// Writes the files again that are not encrypted as new ones are, and removes what crashes left
    /// of such; files of other names stay as they are. `admit` is called before each file with its
    /// path and bytes, and ends the work by a break.
    ///
    /// # Errors
    /// The first of a file that cannot be written again, once the others were tried; it stays as it
    /// was. It is the same for a damaged file that is not tried again.
    pub(crate) fn rewrite_stale(
        &mut self,
        data_dir: &Folder,
        vault: &Vault,
        admit: &mut dyn FnMut(&Path, u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let folder = folder(data_dir);
        let mut first_error = Ok(());
        writer::remove_leftovers(&folder, Some(vault))?;
        let names = names(&folder)?;
        self.damaged.retain(|name, _| names.binary_search(name).is_ok());
        for name in names {
            let path = folder.join(name.to_string());
            let rewritten = vault.is_stale(&path).and_then(|is_stale| {
                if !is_stale {
                    return Ok(true);
                }
                let metadata = path.metadata()?;
                let version = Version::new(&metadata);
                if let Some((known, damage)) = self.damaged.get(&name)
                    && *known == version
                {
                    return Err(io::Error::new(ErrorKind::InvalidData, damage.as_str()));
                }
                if admit(&path, metadata.len()).is_break() {
                    return Ok(false);
                }
                let rewritten = vault.rewrite(&path);
                if let Err(error) = &rewritten
                    && error.kind() == ErrorKind::InvalidData
                {
                    self.damaged.insert(name, (version, error.to_string()));
                }
                rewritten.map(|()| true)
            });
            match rewritten {
                Ok(true) => {}
                Ok(false) => {
                    return Err(StorageError::cancelled("the rewriting of files was ended"));
                }
                // Deleted by an operator meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => first_error = first_error.and(Err(file_error(&path, error))),
            }
        }
        first_error
    }
}
