//! Encryption of a node's files at rest: keys, where they come from, and files under them.
//!
//! Each file has a random key of its own, sealed in the file's header by a *data key*. The data
//! keys are in the *keyring*, a file of the data folder, sealed by the node's *master key*, which
//! is never written to the folder. So a change of the master key rewrites the keyring alone, and a
//! change of the data key counts for files that are written from then on.
//!
//! | module | what it holds |
//! |---|---|
//! | `key`, `key_id` | master keys and their names, data keys, and the ciphers of files |
//! | `source`, `command` | where a master key is read: a file, a credential of systemd, a command |
//! | `keyring` | the file with the data keys |
//! | `header` | the beginning of a file that is encrypted |
//! | `opening`, `vault` | the keys of one data folder as it is opened, and while it is open |
//! | `survey` | which files of a data folder are under which data key |
//! | `files` | files that are written and read as a whole, authenticated chunk by chunk |
//! | `durable` | names of files that outlast a loss of power |
//! | `folder` | a data folder with its vault, if it has one |
//! | `error` | why a folder cannot be opened |
//!
//! Invariants: a master key is in memory alone, and no key is in an error or in `Debug` output. Bytes
//! of keys are wiped when they are dropped; what `ring` makes of them is not. No two contents are encrypted under one key and counter: each file
//! that is begun has a new key, and no byte of a file is written twice. The keyring is replaced
//! before a key in it is used, and loses no key that a file is under.
//!
//! Absent on purpose: ciphers of our own (`ring`, `aes` and `ctr` have them), and files of RocksDB,
//! which `meridian-rocks-env` gives to RocksDB.

mod command;
mod durable;
mod error;
mod files;
mod folder;
mod header;
mod key;
mod key_id;
mod keyring;
mod opening;
mod source;
mod survey;
mod vault;

#[cfg(test)]
mod tests;

pub use durable::sync_name;
pub use error::{KeyError, VaultError};
pub use files::{FileReader, FileWriter, REWRITTEN};
pub use folder::Folder;
pub use header::{HEADER_BYTES, Kind};
pub use key::{FileCipher, MasterKey};
pub use key_id::KeyId;
pub use source::{EncryptionSettings, KeySource};
pub use survey::{AUTHORITY_KEY, HIGH_WATER, Survey};
pub use vault::{Content, Vault, VaultStatus};
