//! Keys, keyrings and folders over openings, rotations and damage.

mod content;
mod golden;
mod rotation;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{EncryptionSettings, Folder, KeyId, KeySource, MasterKey, Vault, VaultError};

/// A data folder, and key files outside of it.
struct Node {
    data: TempDir,
    keys: TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { data: tempfile::tempdir().unwrap(), keys: tempfile::tempdir().unwrap() };
        fs::create_dir_all(node.data.path().join("db")).unwrap();
        fs::create_dir_all(node.data.path().join("orphans")).unwrap();
        node
    }

    /// A key file of 32 bytes from a seed.
    fn key(&self, seed: u8) -> PathBuf {
        let path = self.keys.path().join(format!("key-{seed}"));
        fs::write(&path, key_bytes(seed)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn settings(&self, seed: u8) -> EncryptionSettings {
        EncryptionSettings { seals: true, key: KeySource::File(self.key(seed)), previous: None }
    }

    fn rotated(&self, seed: u8, previous: u8) -> EncryptionSettings {
        let previous = Some(KeySource::File(self.key(previous)));
        EncryptionSettings { previous, ..self.settings(seed) }
    }

    fn open(&self, settings: &EncryptionSettings) -> Result<Folder, VaultError> {
        Folder::open(self.data.path(), Some(settings))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    /// Writes a file as the folder's vault has it.
    fn write(&self, folder: &Folder, name: &str, content: &[u8]) {
        use std::io::Write;
        let mut file = folder.create(&self.path(name)).unwrap();
        file.write_all(content).unwrap();
        file.finish().unwrap();
    }

    /// The bytes of all files but the lock.
    fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into);
                } else if !path.ends_with("keyring.lock") {
                    into.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        let mut bytes = BTreeMap::new();
        walk(self.data.path(), &mut bytes);
        bytes
    }
}

fn key_bytes(seed: u8) -> [u8; 32] {
    std::array::from_fn(|at| seed.wrapping_mul(31).wrapping_add(u8::try_from(at).unwrap()))
}

fn id(seed: u8) -> KeyId {
    MasterKey::parse(&key_bytes(seed), "the test").unwrap().id()
}

fn read(folder: &Folder, path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    folder.read(path)?.read_to_end(&mut content)?;
    Ok(content)
}

fn vault(folder: &Folder) -> &Vault {
    folder.vault().unwrap()
}

#[test]
fn folder_opens_with_its_key_and_its_files_are_its_owners_alone() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"what was kept");
    for name in ["keyring", "keyring.lock", "high-water"] {
        let mode = fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

#[test]
fn wrong_key_or_none_is_refused_by_name_and_nothing_is_changed() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    let before = node.bytes();
    let refused = node.open(&node.settings(2)).unwrap_err().to_string();
    assert!(refused.contains(&id(1).to_string()) && refused.contains(&id(2).to_string()));
    assert!(refused.contains("keyring") && refused.contains("key-2"), "{refused}");
    let refused = node.open(&node.rotated(2, 3)).unwrap_err().to_string();
    assert!(refused.contains(&id(1).to_string()) && refused.contains(&id(3).to_string()));
    let refused = Folder::open(node.data.path(), None).unwrap_err().to_string();
    assert!(refused.contains(&id(1).to_string()) && refused.contains("high-water"), "{refused}");
    let off = EncryptionSettings { seals: false, ..node.settings(2) };
    assert!(matches!(node.open(&off), Err(VaultError::WrongKey { .. })));
    let gone = EncryptionSettings { key: KeySource::File(node.path("gone")), ..off };
    let refused = node.open(&gone).unwrap_err().to_string();
    for named in [&id(1).to_string(), "keyring", "key file", "gone"] {
        assert!(refused.contains(named), "{refused}");
    }
    assert_eq!(node.bytes(), before);
    assert!(node.open(&node.settings(1)).is_ok());
}

#[test]
fn keyring_that_is_lost_or_damaged_is_said_and_no_other_is_made() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "orphans/a.orphans", b"batches");
    drop(folder);
    let keyring = fs::read(node.path("keyring")).unwrap();
    fs::remove_file(node.path("keyring")).unwrap();
    let before = node.bytes();
    assert!(matches!(node.open(&node.settings(1)), Err(VaultError::NoKeyring { .. })));
    assert!(matches!(Folder::open(node.data.path(), None), Err(VaultError::NoKey { .. })));
    assert_eq!(node.bytes(), before);
    for at in 0..keyring.len() {
        let mut damaged = keyring.clone();
        damaged[at] ^= 1;
        fs::write(node.path("keyring"), &damaged).unwrap();
        assert!(matches!(node.open(&node.settings(1)), Err(VaultError::DamagedKeyring { .. })));
        fs::write(node.path("keyring"), &keyring[..at]).unwrap();
        assert!(matches!(node.open(&node.settings(1)), Err(VaultError::DamagedKeyring { .. })));
    }
    fs::write(node.path("keyring"), &keyring).unwrap();
    assert!(node.open(&node.settings(1)).is_ok());
}

#[test]
fn folder_without_settings_is_left_alone_and_has_no_vault() {
    let node = Node::new();
    fs::write(node.path("high-water"), "1 1 1 1\n").unwrap();
    let before = node.bytes();
    let folder = Folder::open(node.data.path(), None).unwrap();
    assert!(folder.vault().is_none());
    let off = EncryptionSettings { seals: false, ..node.settings(1) };
    assert!(node.open(&off).unwrap().vault().is_none());
    assert_eq!(node.bytes(), before);
}

#[test]
fn folder_is_open_once_at_a_time() {
    let node = Node::new();
    let first = node.open(&node.settings(1)).unwrap();
    assert!(matches!(node.open(&node.settings(1)), Err(VaultError::InUse(_))));
    // Its keyring is not even read: it may be replaced at any time.
    let keyring = fs::read(node.path("keyring")).unwrap();
    fs::write(node.path("keyring"), "not yet").unwrap();
    for settings in [Some(node.settings(1)), None] {
        let refused = Folder::open(node.data.path(), settings.as_ref());
        assert!(matches!(refused, Err(VaultError::InUse(_))), "{refused:?}");
    }
    fs::write(node.path("keyring"), keyring).unwrap();
    drop(first);
    assert!(node.open(&node.settings(1)).is_ok());
}

#[test]
fn no_key_is_in_an_error_or_in_debug_output() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let opened = format!("{folder:?}");
    drop(folder);
    let wrong = node.open(&node.settings(2)).unwrap_err();
    let said = format!("{opened} {wrong:?} {wrong} {:?}", node.settings(1).key.read().unwrap());
    assert!(!said.contains(&format!("{:?}", &key_bytes(1)[..4]).replace(['[', ']'], "")));
    assert!(said.contains(&id(1).to_string()));
}
