//! The keys of one data folder, while it is open.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::VaultError;
use crate::header::{self, Beginning, Kind};
use crate::key::{FileCipher, KeyBytes, MasterKey};
use crate::key_id::KeyId;
use crate::keyring::{self, Keyring, MAX_OLDER_KEYS};
use crate::source::{EncryptionSettings, KeySource};
use crate::survey::{self, Survey};

/// The keys of a data folder in which files are encrypted, or are to be.
#[derive(Debug)]
pub struct Vault {
    folder: PathBuf,
    /// Whether new files are encrypted.
    seals: bool,
    source: KeySource,
    keyring: RwLock<Arc<Keyring>>,
    /// Held while the keyring is replaced.
    master: Mutex<MasterKey>,
    /// Another key that the source had at the last look.
    candidate: Mutex<Option<KeyId>>,
    /// Why the source could not be read at the last look.
    problem: Mutex<Option<String>>,
    _lock: File,
}

/// The keys in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultStatus {
    /// New files are encrypted.
    pub seals: bool,
    /// The master key that opens the keyring.
    pub master: KeyId,
    /// The number of the data key of new files, and when it was made.
    pub data_key: u32,
    pub data_key_ms: u64,
    /// Data keys that older files may be under.
    pub older_keys: usize,
    pub problem: Option<String>,
}

impl Vault {
    pub(crate) fn new(
        folder: &Path,
        settings: &EncryptionSettings,
        master: MasterKey,
        keyring: Keyring,
        lock: File,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            seals: settings.seals,
            source: settings.key.clone(),
            keyring: RwLock::new(Arc::new(keyring)),
            master: Mutex::new(master),
            candidate: Mutex::default(),
            problem: Mutex::default(),
            _lock: lock,
        }
    }

    fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read())
    }

    /// The number of the data key of new files; `None`: they are plain.
    fn current(&self) -> Option<u32> {
        self.seals.then(|| self.keyring.read().newest.number)
    }

    /// The header of a new file of RocksDB, and its cipher. `None`: it is to be plain.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn begin_stream(&self, file: &Path) -> Result<Option<(Vec<u8>, FileCipher)>, VaultError> {
        if survey::is_without_data(file) {
            return Ok(None);
        }
        let begun = self.begin(Kind::Stream)?;
        Ok(begun.map(|(header, key)| (header, FileCipher::new(&key))))
    }

    pub(crate) fn begin(&self, kind: Kind) -> Result<Option<(Vec<u8>, KeyBytes)>, VaultError> {
        let keyring = self.keyring();
        self.seals.then(|| header::make(kind, &keyring.newest)).transpose()
    }

    /// The cipher of a file of RocksDB that begins with `head` and has so many bytes.
    ///
    /// # Errors
    /// [`VaultError::UnknownDataKey`], [`VaultError::DamagedHeader`].
    pub fn open_stream(
        &self,
        file: &Path,
        head: &[u8],
        file_bytes: u64,
    ) -> Result<Content, VaultError> {
        Ok(match Beginning::read(head, file_bytes) {
            Beginning::Plain => Content::Plain,
            Beginning::CutShort => Content::Empty,
            Beginning::Sealed { number } => {
                let key = self.open_header(file, head, number, Kind::Stream)?;
                Content::Encrypted(FileCipher::new(&key))
            }
        })
    }

    pub(crate) fn open_header(
        &self,
        file: &Path,
        head: &[u8],
        number: u32,
        kind: Kind,
    ) -> Result<KeyBytes, VaultError> {
        let keyring = self.keyring();
        let unknown = || VaultError::UnknownDataKey { file: file.to_owned(), number };
        let key = keyring.get(number).ok_or_else(unknown)?;
        let damaged = || VaultError::DamagedHeader { file: file.to_owned() };
        header::open(head, kind, key).ok_or_else(damaged)
    }

    /// Makes another data key, durably: new files are under it. Older files go on being read.
    ///
    /// # Errors
    /// [`VaultError`]; the key is the one before then.
    pub fn rotate_data_key(&self) -> Result<u32, VaultError> {
        let master = self.master.lock();
        let present = self.keyring();
        if present.older.len() >= MAX_OLDER_KEYS {
            return Err(VaultError::TooManyKeys(present.older.len()));
        }
        let rotated = present.with_new_key()?;
        keyring::replace(&self.folder, &rotated.encode(&master)?)?;
        let number = rotated.newest.number;
        *self.keyring.write() = Arc::new(rotated);
        tracing::info!(number, "new files are encrypted under a new data key");
        Ok(number)
    }

    /// Reads the master key again, and puts the keyring under it. Whether it is another one. May
    /// take as long as a command may.
    ///
    /// # Errors
    /// [`VaultError`]; the keyring stays under the key before.
    pub fn reread_master_key(&self) -> Result<bool, VaultError> {
        let master = self.source.read()?;
        self.put_under(master)
    }

    fn put_under(&self, master: MasterKey) -> Result<bool, VaultError> {
        let mut present = self.master.lock();
        if present.id() == master.id() {
            return Ok(false);
        }
        keyring::replace(&self.folder, &self.keyring().encode(&master)?)?;
        tracing::info!(before = %present.id(), now = %master.id(), "the keyring is under a new master key");
        *present = master;
        Ok(true)
    }

    /// Looks whether a file or credential has another master key, and takes it over once two looks
    /// have found the same: a file may be read while it is being written. What stands in the way is
    /// in the [`VaultStatus`].
    pub fn watch_master_key(&self) {
        if !self.source.is_watched() {
            return;
        }
        let looked = self.source.read().map_err(VaultError::from).and_then(|master| {
            let id = master.id();
            let is_new = id != self.master.lock().id();
            let seen_before = self.candidate.lock().replace(id) == Some(id);
            if is_new && seen_before { self.put_under(master) } else { Ok(false) }
        });
        let problem = looked.err().map(|error| error.to_string());
        let mut known = self.problem.lock();
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != known.as_ref()) {
            tracing::warn!(%problem, "the master key cannot be read again");
        }
        *known = problem;
    }

    pub fn status(&self) -> VaultStatus {
        let keyring = self.keyring();
        VaultStatus {
            seals: self.seals,
            master: self.master.lock().id(),
            data_key: keyring.newest.number,
            data_key_ms: keyring.newest.created_ms,
            older_keys: keyring.older.len(),
            problem: self.problem.lock().clone(),
        }
    }

    /// Reads the beginning of every file: for a thread that may block. `is_counted`: whether a file
    /// of this name among the orphans is Meridian's; others are an operator's, and stay as they are.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn survey(&self, is_counted: impl Fn(&str) -> bool) -> Result<Survey, VaultError> {
        Survey::take(&self.folder, self.current(), &is_counted)
    }

    /// Whether a file is not as a new one would be: under an older key, or plain, or no longer to be
    /// encrypted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_stale(&self, file: &Path) -> io::Result<bool> {
        let (beginning, bytes) = survey::beginning(file)?;
        Ok(survey::is_stale(beginning, bytes, self.current()))
    }
}

/// How the content of a file is stored.
#[derive(Debug)]
pub enum Content {
    Plain,
    /// It is encrypted, and has nothing yet.
    Empty,
    Encrypted(FileCipher),
}
