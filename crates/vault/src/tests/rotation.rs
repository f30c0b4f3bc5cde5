//! Changes of master and data keys, also where the process ends in between.

use std::fs;

use super::*;
use crate::keyring::{self, Keyring, SPARE_KEYS};

#[test]
fn master_key_that_is_changed_opens_the_folder_and_the_one_before_does_not() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    let folder = node.open(&node.rotated(2, 1)).unwrap();
    assert_eq!(vault(&folder).status().master, id(2));
    drop(folder);
    assert!(matches!(node.open(&node.settings(1)), Err(VaultError::WrongKey { .. })));
    let folder = node.open(&node.settings(2)).unwrap();
    assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"what was kept");
}

#[test]
fn master_key_is_changed_while_the_folder_is_open() {
    let node = Node::new();
    let settings = node.settings(1);
    let folder = node.open(&settings).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    let KeySource::File(path) = &settings.key else { panic!("a file") };
    assert!(!vault(&folder).reread_master_key().unwrap());
    fs::write(path, key_bytes(2)).unwrap();
    assert!(vault(&folder).reread_master_key().unwrap());
    assert_eq!(vault(&folder).status().master, id(2));
    assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"what was kept");
    drop(folder);
    assert!(node.open(&node.settings(2)).is_ok());
}

#[test]
fn watched_key_file_counts_when_two_looks_found_the_same_and_a_bad_one_is_said() {
    let node = Node::new();
    let settings = node.settings(1);
    let folder = node.open(&settings).unwrap();
    let KeySource::File(path) = &settings.key else { panic!("a file") };
    let look = || {
        vault(&folder).watch_master_key();
        vault(&folder).status()
    };
    assert_eq!((look().master, look().problem), (id(1), None));
    fs::write(path, key_bytes(2)).unwrap();
    assert_eq!(look().master, id(1), "it may be half written");
    fs::write(path, b"half").unwrap();
    assert!(look().problem.unwrap().contains("no key of 32 bytes"));
    fs::write(path, key_bytes(3)).unwrap();
    assert_eq!((look().master, look().problem), (id(1), None));
    assert_eq!(look().master, id(3));
    drop(folder);
    assert!(node.open(&node.settings(3)).is_ok());
}

#[test]
fn data_key_is_changed_and_a_key_that_no_file_is_under_leaves_the_keyring() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"older");
    assert_eq!(vault(&folder).rotate_data_key().unwrap(), 2);
    node.write(&folder, "orphans/a.orphans", b"newer");
    let survey = vault(&folder).survey(|_| true).unwrap();
    assert_eq!((survey.files, survey.stale_files), (2, 1));
    assert!(survey.percent() < 100);
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(vault(&folder).status().older_keys, 1, "a file is under it");
    vault(&folder).rewrite(&node.path("high-water")).unwrap();
    assert_eq!(vault(&folder).survey(|_| true).unwrap().percent(), 100);
    assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"older");
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    let status = vault(&folder).status();
    assert_eq!((status.data_key, status.older_keys), (2, 1), "it was the last");
    assert_eq!(read(&folder, &node.path("orphans/a.orphans")).unwrap(), b"newer");
    for _ in 0..SPARE_KEYS {
        vault(&folder).rotate_data_key().unwrap();
    }
    for name in ["high-water", "orphans/a.orphans"] {
        vault(&folder).rewrite(&node.path(name)).unwrap();
    }
    assert_eq!(vault(&folder).status().older_keys, SPARE_KEYS + 1);
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(vault(&folder).status().older_keys, SPARE_KEYS);
}

#[test]
fn file_that_was_not_there_at_some_starts_is_read_when_it_is_there_again() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "orphans/a.orphans", b"batches");
    vault(&folder).rotate_data_key().unwrap();
    drop(folder);
    let [here, away] = ["orphans", "away"].map(|name| node.path(name));
    fs::rename(&here, &away).unwrap();
    for _ in 0..3 {
        vault(&node.open(&node.settings(1)).unwrap()).rotate_data_key().unwrap();
    }
    fs::rename(&away, &here).unwrap();
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(read(&folder, &here.join("a.orphans")).unwrap(), b"batches");
    drop(folder);
    // Encryption is turned off meanwhile.
    fs::rename(&here, &away).unwrap();
    assert!(Folder::open(node.data.path(), None).unwrap().vault().is_none());
    fs::rename(&away, &here).unwrap();
    assert!(matches!(Folder::open(node.data.path(), None), Err(VaultError::NoKey { .. })));
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(read(&folder, &here.join("a.orphans")).unwrap(), b"batches");
}

#[test]
fn files_that_are_links_keep_their_data_key_and_are_written_again_where_they_lie() {
    use std::os::unix::fs::symlink;
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let (link, file) = (node.path("orphans/a.orphans"), node.keys.path().join("moved"));
    node.write(&folder, "orphans/a.orphans", b"batches");
    fs::rename(&link, &file).unwrap();
    symlink(&file, &link).unwrap();
    let rotate = |folder: Folder| {
        for _ in 0..=SPARE_KEYS {
            vault(&folder).rotate_data_key().unwrap();
        }
        drop(folder);
        node.open(&node.settings(1)).unwrap()
    };
    let folder = rotate(folder);
    assert_eq!(vault(&folder).survey(|_| true).unwrap().stale_files, 1);
    assert_eq!(read(&folder, &link).unwrap(), b"batches");
    vault(&folder).rewrite(&link).unwrap();
    assert!(link.is_symlink() && !vault(&folder).is_stale(&file).unwrap());
    // The targets of links may not be mounted yet.
    let away = node.keys.path().join("away");
    fs::rename(&file, &away).unwrap();
    let folder = rotate(folder);
    fs::rename(&away, &file).unwrap();
    assert_eq!(read(&folder, &link).unwrap(), b"batches");
}

#[test]
fn key_of_the_authority_keeps_its_data_key_and_is_written_again_like_other_files() {
    let node = Node::new();
    let path = node.path(crate::AUTHORITY_KEY);
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, "plain").unwrap();
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(vault(&folder).survey(|_| true).unwrap().stale_files, 1);
    vault(&folder).rewrite(&path).unwrap();
    vault(&folder).rotate_data_key().unwrap();
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(read(&folder, &path).unwrap(), b"plain");
    assert_eq!(vault(&folder).status().older_keys, 1);
    drop(folder);
    assert!(matches!(Folder::open(node.data.path(), None), Err(VaultError::NoKey { .. })));
}

#[test]
fn file_that_cannot_be_written_again_stays_as_it_was_and_alone() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let path = node.path("orphans/a.orphans");
    node.write(&folder, "orphans/a.orphans", &[7; 100_000]);
    let mut damaged = fs::read(&path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    vault(&folder).rotate_data_key().unwrap();
    let before = node.bytes();
    vault(&folder).rewrite(&path).unwrap_err();
    assert_eq!(node.bytes(), before);
}

#[test]
fn copy_of_the_authoritys_key_that_a_crash_left_goes_with_the_next_opening() {
    let node = Node::new();
    let copy = node.path("identity/authority-key.pem.rewritten");
    fs::create_dir(copy.parent().unwrap()).unwrap();
    let leave = || fs::write(&copy, "plain").unwrap();
    leave();
    drop(Folder::open(node.data.path(), None).unwrap());
    assert!(!copy.exists());
    leave();
    let folder = node.open(&node.settings(1)).unwrap();
    assert!(!copy.exists());
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    leave();
    node.open(&node.settings(2)).unwrap_err();
    assert!(copy.exists(), "a folder that is refused is not changed");
}

#[test]
fn data_key_is_changed_no_more_while_a_hundred_older_ones_wait_for_a_start() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    while vault(&folder).status().older_keys < keyring::MAX_OLDER_KEYS {
        vault(&folder).rotate_data_key().unwrap();
    }
    assert!(matches!(vault(&folder).rotate_data_key(), Err(VaultError::TooManyKeys(100))));
    drop(folder);
    let folder = node.open(&node.settings(1)).unwrap();
    assert_eq!(vault(&folder).status().older_keys, SPARE_KEYS);
    vault(&folder).rotate_data_key().unwrap();
}

#[test]
fn file_under_a_data_key_that_the_keyring_lacks_is_refused_by_name() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let older = fs::read(node.path("keyring")).unwrap();
    vault(&folder).rotate_data_key().unwrap();
    node.write(&folder, "high-water", b"newer");
    drop(folder);
    fs::write(node.path("keyring"), older).unwrap();
    let refused = node.open(&node.settings(1)).unwrap_err();
    assert!(matches!(refused, VaultError::UnknownDataKey { number: 2, .. }), "{refused}");
}

#[test]
fn file_of_orphans_that_cannot_be_read_keeps_no_node_from_starting_and_all_data_keys() {
    use std::os::unix::fs::symlink;
    let node = Node::new();
    let [orphans, away] = ["orphans", "away"].map(|name| node.path(name));
    let unreadable = node.path("orphans/unreadable");
    symlink(&unreadable, &unreadable).unwrap();
    assert!(Folder::open(node.data.path(), None).is_ok());
    let many_keys = |folder: &Folder| {
        for _ in 0..=SPARE_KEYS {
            vault(folder).rotate_data_key().unwrap();
        }
        vault(folder).status().older_keys
    };
    let folder = node.open(&node.settings(1)).unwrap();
    let survey = vault(&folder).survey(|name| name == "unreadable").unwrap();
    assert_eq!((survey.files, survey.stale_files), (1, 1), "it may be plain");
    assert_eq!(vault(&folder).survey(|_| false).unwrap().stale_files, 0);
    let older = many_keys(&folder);
    drop(folder);
    let opened = || node.open(&node.settings(1)).unwrap();
    assert_eq!(vault(&opened()).status().older_keys, older);
    fs::remove_file(&unreadable).unwrap();
    // The whole folder.
    fs::rename(&orphans, &away).unwrap();
    symlink(&orphans, &orphans).unwrap();
    assert_eq!(vault(&opened()).status().older_keys, older);
    fs::remove_file(&orphans).unwrap();
    fs::rename(&away, &orphans).unwrap();
    // A file of another node's.
    let other = Node::new();
    let of_other = other.open(&other.settings(2)).unwrap();
    while vault(&of_other).status().data_key < 90 {
        vault(&of_other).rotate_data_key().unwrap();
    }
    other.write(&of_other, "orphans/a.orphans", b"batches");
    fs::copy(other.path("orphans/a.orphans"), node.path("orphans/a.orphans")).unwrap();
    assert_eq!(vault(&opened()).status().older_keys, older);
    // All is seen.
    fs::remove_file(node.path("orphans/a.orphans")).unwrap();
    assert_eq!(vault(&opened()).status().older_keys, SPARE_KEYS);
}

/// The folder as a crash leaves it at each step of replacing the keyring: nothing of the new one,
/// any part of it under its temporary name, or the new one.
#[test]
fn crash_at_any_step_of_a_rotation_leaves_a_folder_that_one_of_both_keys_opens() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    let old = fs::read(node.path("keyring")).unwrap();
    drop(node.open(&node.rotated(2, 1)).unwrap());
    let new = fs::read(node.path("keyring")).unwrap();
    assert_ne!(old, new);
    let check = |settings: &EncryptionSettings, master: KeyId| {
        let folder = node.open(settings).unwrap();
        assert_eq!(vault(&folder).status().master, master);
        assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"what was kept");
    };
    for length in 0..=new.len() {
        fs::write(node.path("keyring"), &old).unwrap();
        fs::write(node.path("keyring.new"), &new[..length]).unwrap();
        // Before the operator's change, and after it.
        check(&node.settings(1), id(1));
        check(&node.rotated(2, 1), id(2));
    }
    assert!(!node.path("keyring.new").exists());
    check(&node.rotated(2, 1), id(2));
    check(&node.settings(2), id(2));
}

#[test]
fn crash_at_any_step_of_the_first_opening_leaves_a_folder_that_opens() {
    let node = Node::new();
    fs::write(node.path("high-water"), "plain").unwrap();
    let master = node.settings(1).key.read().unwrap();
    let whole = Keyring::create().unwrap().encode(&master).unwrap();
    for length in 0..=whole.len() {
        fs::write(node.path("keyring.new"), &whole[..length]).unwrap();
        // The key is not there yet, or it is.
        assert!(Folder::open(node.data.path(), None).unwrap().vault().is_none());
        let folder = node.open(&node.settings(1)).unwrap();
        assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"plain");
        drop(folder);
        fs::remove_file(node.path("keyring")).unwrap();
    }
    keyring::replace(node.data.path(), &whole).unwrap();
    // A crash before anything was encrypted, and the operator thinks better of it.
    assert!(Folder::open(node.data.path(), None).unwrap().vault().is_none());
    assert!(!node.path("keyring").exists());
}

#[test]
fn encryption_that_is_turned_off_by_name_ends_with_the_last_encrypted_file() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    drop(folder);
    let off = EncryptionSettings { seals: false, ..node.settings(1) };
    let folder = node.open(&off).unwrap();
    assert_eq!(vault(&folder).survey(|_| true).unwrap().stale_files, 1);
    vault(&folder).rewrite(&node.path("high-water")).unwrap();
    assert_eq!(fs::read(node.path("high-water")).unwrap(), b"what was kept");
    assert_eq!(vault(&folder).survey(|_| true).unwrap().percent(), 100);
    drop(folder);
    assert!(Folder::open(node.data.path(), None).unwrap().vault().is_none());
    assert!(!node.path("keyring").exists());
}
