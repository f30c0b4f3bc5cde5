//! The keyring: the data keys of a folder, in the file `keyring`, sealed by the master key.
//!
//! The file is `meridian keyring 1\n` ‖ id of the master key (8 bytes) ‖ nonce (12) ‖ sealed keys ‖
//! crc32c of all before (4, little-endian). Each sealed key is its number (4 bytes, little-endian),
//! when it was made (8, milliseconds since the Unix epoch) and the key (32); the newest is the last.
//! The beginning, with the id, is authenticated with them.
//!
//! Invariant: the file under its name is whole and fsynced. A crash while it is replaced leaves the
//! one before, and perhaps a `keyring.new`, which nothing reads. No keyring is removed: one whose keys
//! no file seems to be under is renamed to `keyring.old`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use crate::durable::sync_name;
use crate::error::VaultError;
use crate::key::{DataKey, KEY_BYTES, MasterKey, NONCE_BYTES, TAG_BYTES, fill, random_key};
use crate::key_id::KeyId;

const NAME: &str = "keyring";
const MAGIC: &[u8; 19] = b"meridian keyring 1\n";
const CONTEXT_BYTES: usize = MAGIC.len() + 8;
const ENTRY_BYTES: usize = 4 + 8 + KEY_BYTES;
/// Most of those that no file is under leave at a start: a node that seldom starts changes keys as
/// seldom.
pub(crate) const MAX_OLDER_KEYS: usize = 100;
/// Of the older keys that no file is under, the newest stay: a file may not be seen at a start, in a
/// folder that is mounted too late.
pub(crate) const SPARE_KEYS: usize = 10;
/// Far more than that.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The data keys of a folder.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    /// New files are under it.
    pub(crate) newest: Arc<DataKey>,
    pub(crate) older: BTreeMap<u32, Arc<DataKey>>,
}

impl Keyring {
    /// With a first key.
    pub(crate) fn create() -> Result<Self, VaultError> {
        Ok(Self { newest: make_key(1)?, older: BTreeMap::new() })
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<DataKey>> {
        if self.newest.number == number { Some(&self.newest) } else { self.older.get(&number) }
    }

    /// With another key for files to come.
    pub(crate) fn with_new_key(&self) -> Result<Self, VaultError> {
        let newest = make_key(self.newest.number.saturating_add(1))?;
        let mut older = self.older.clone();
        older.insert(self.newest.number, Arc::clone(&self.newest));
        Ok(Self { newest, older })
    }

    /// Without the older keys that no file is under, but for the newest of these.
    pub(crate) fn with_keys_in_use(&self, is_in_use: impl Fn(u32) -> bool) -> Self {
        let mut kept = self.clone();
        let unused = self.older.keys().filter(|number| !is_in_use(**number));
        for number in unused.rev().skip(SPARE_KEYS) {
            kept.older.remove(number);
        }
        kept
    }

    /// The content of the file.
    pub(crate) fn encode(&self, master: &MasterKey) -> Result<Vec<u8>, VaultError> {
        let keys: Vec<&Arc<DataKey>> = self.older.values().chain([&self.newest]).collect();
        // As large as it gets: no copy of the keys is left behind by growing.
        let mut text = Zeroizing::new(Vec::with_capacity(keys.len() * ENTRY_BYTES + TAG_BYTES));
        for key in keys {
            text.extend(key.number.to_le_bytes());
            text.extend(key.created_ms.to_le_bytes());
            text.extend_from_slice(key.bytes.as_ref());
        }
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce)?;
        let mut file = MAGIC.to_vec();
        file.extend(master.id().0);
        master.sealing().seal(nonce, &file, &mut text);
        file.extend(nonce);
        file.extend_from_slice(&text);
        file.extend(crc32c::crc32c(&file).to_le_bytes());
        Ok(file)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (entries, rest) = text.as_chunks::<ENTRY_BYTES>();
        let mut keys = entries.iter().filter_map(|entry| {
            let (number, entry) = entry.split_first_chunk()?;
            let (created_ms, bytes) = entry.split_first_chunk()?;
            let bytes = Zeroizing::new(bytes.try_into().ok()?);
            let (number, created_ms) =
                (u32::from_le_bytes(*number), u64::from_le_bytes(*created_ms));
            Some(Arc::new(DataKey::new(number, created_ms, bytes)))
        });
        let newest = keys.next_back().filter(|_| rest.is_empty())?;
        Some(Self { newest, older: keys.map(|key| (key.number, key)).collect() })
    }
}

fn make_key(number: u32) -> Result<Arc<DataKey>, VaultError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(Arc::new(DataKey::new(number, created_ms, random_key()?)))
}

/// A keyring as it lies in its file.
#[derive(Debug)]
pub(crate) struct SealedKeyring {
    /// The key that opens it.
    pub(crate) master: KeyId,
    context: Vec<u8>,
    nonce: [u8; NONCE_BYTES],
    sealed: Vec<u8>,
}

impl SealedKeyring {
    /// `None`: there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, VaultError> {
        let damaged = |detail: &str| VaultError::DamagedKeyring {
            path: path.to_owned(),
            detail: detail.to_owned(),
        };
        let length = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(VaultError::file(path))?.len(),
        };
        if length > MAX_FILE_BYTES {
            return Err(damaged("it is longer than any"));
        }
        let bytes = fs::read(path).map_err(VaultError::file(path))?;
        Self::parse(&bytes).map(Some).map_err(damaged)
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or("it is cut short")?;
        if !content.starts_with(MAGIC) {
            return Err("it does not begin as a keyring of this version");
        }
        if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err("its checksum does not match");
        }
        let cut_short = "it is cut short";
        let (context, rest) = content.split_at_checked(CONTEXT_BYTES).ok_or(cut_short)?;
        let (nonce, sealed) = rest.split_first_chunk().ok_or(cut_short)?;
        let (_, id) = context.split_last_chunk::<8>().ok_or(cut_short)?;
        Ok(Self {
            master: KeyId(*id),
            context: context.to_vec(),
            nonce: *nonce,
            sealed: sealed.to_vec(),
        })
    }

    /// `None`: it was sealed by another key than its id says.
    pub(crate) fn open(self, master: &MasterKey) -> Option<Keyring> {
        let mut sealed = Zeroizing::new(self.sealed);
        let text = master.sealing().open(self.nonce, &self.context, &mut sealed)?;
        Keyring::decode(text)
    }
}

pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// Where the keyring lies after encryption was turned off.
pub(crate) fn path_aside(folder: &Path) -> PathBuf {
    path(folder).with_extension("old")
}

/// Puts a keyring in the place of the one before, durably: whole, or not at all.
pub(crate) fn replace(folder: &Path, content: &[u8]) -> Result<(), VaultError> {
    let path = path(folder);
    let temporary = path.with_extension("new");
    let write = || {
        // A file that a crash left may have any mode and length.
        if let Err(error) = fs::remove_file(&temporary)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_name(&path)
    };
    write().map_err(VaultError::file(&path))
}
