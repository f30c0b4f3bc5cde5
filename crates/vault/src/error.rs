//! Why a key cannot be had, and why a data folder cannot be opened with the keys that there are.

use std::io;
use std::path::{Path, PathBuf};

use crate::key_id::KeyId;

/// Why a master key cannot be read. No text of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the key file {}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("others than its owner may open the key file {} (mode {mode:o}): chmod 600", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("systemd gives this process no credentials: CREDENTIALS_DIRECTORY is not set")]
    NoCredentials,
    #[error("the command `{program}` for the key {cause}")]
    Command { program: String, cause: String },
    #[error("{from} is no key of 32 bytes (raw, as 64 hexadecimal digits, or as Base64)")]
    Malformed { from: String },
    #[error("{from} has the same byte 32 times, which is no key")]
    Trivial { from: String },
}

/// Why a data folder cannot be opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "{} is encrypted, and the configuration names no key: [encryption] has to name the key {wanted}",
        file.display()
    )]
    NoKey { file: PathBuf, wanted: String },
    #[error("the keyring {} is under the key {wanted}, which cannot be had: {cause}", keyring.display())]
    KeyNotThere { keyring: PathBuf, wanted: KeyId, cause: KeyError },
    #[error("the keyring {} is under the key {wanted}, and {met}", keyring.display())]
    WrongKey { keyring: PathBuf, wanted: KeyId, met: String },
    #[error(
        "{} is encrypted, and the keyring {} is not there: without it no key opens the folder; put it back from where \
         it was saved, or from `keyring.old`, or replace the node",
        file.display(), keyring.display()
    )]
    NoKeyring { file: PathBuf, keyring: PathBuf },
    #[error("the keyring {} is damaged: {detail}", path.display())]
    DamagedKeyring { path: PathBuf, detail: String },
    #[error("{} is encrypted under data key {number}, which the keyring does not have", file.display())]
    UnknownDataKey { file: PathBuf, number: u32 },
    #[error("the keyring has {0} older data keys; a start drops those that no file is under")]
    TooManyKeys(usize),
    #[error("the header of {} is damaged", file.display())]
    DamagedHeader { file: PathBuf },
    #[error("another process has the folder {} open", .0.display())]
    InUse(PathBuf),
    #[error("the system has no random bytes")]
    NoRandomness,
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
}

impl VaultError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::File { path: path.to_owned(), cause }
    }
}
