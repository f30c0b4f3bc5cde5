//! A data folder with its vault, if it has one.

use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::VaultError;
use crate::files::{FileReader, FileWriter, rewritten};
use crate::opening;
use crate::source::EncryptionSettings;
use crate::survey::AUTHORITY_KEY;
use crate::vault::Vault;

/// The path of a data folder, and the keys of what is in it.
#[derive(Debug, Clone)]
pub struct Folder {
    path: Arc<Path>,
    vault: Option<Arc<Vault>>,
}

impl Folder {
    /// Opens the keys of a folder, before anything else of it is opened, and removes the copy of the
    /// authority's key that a crash may have left, perhaps in the clear.
    ///
    /// # Errors
    /// [`VaultError`]. Nothing was changed then.
    pub fn open(path: &Path, settings: Option<&EncryptionSettings>) -> Result<Self, VaultError> {
        let vault = opening::open(path, settings)?.map(Arc::new);
        let copy = rewritten(&path.join(AUTHORITY_KEY));
        if copy.exists()
            && let Err(error) = fs::remove_file(&copy)
        {
            tracing::warn!(path = %copy.display(), %error, "a copy of the authority's key is left behind");
        }
        Ok(Self { path: path.into(), vault })
    }

    /// `None`: nothing is encrypted here.
    pub fn vault(&self) -> Option<&Arc<Vault>> {
        self.vault.as_ref()
    }

    /// Begins a file, readable by its owner only, in place of any that is there.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn create(&self, path: &Path) -> io::Result<FileWriter> {
        FileWriter::create(path, self.vault.as_deref())
    }

    /// Opens a file, encrypted or not.
    ///
    /// # Errors
    /// When the disk says no; [`io::ErrorKind::InvalidData`] when its key is not to be had.
    pub fn read(&self, path: &Path) -> io::Result<FileReader> {
        FileReader::open(path, self.vault.as_deref())
    }
}

/// One in which nothing is encrypted.
impl From<&Path> for Folder {
    fn from(path: &Path) -> Self {
        Self { path: path.into(), vault: None }
    }
}

impl From<PathBuf> for Folder {
    fn from(path: PathBuf) -> Self {
        path.as_path().into()
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}
