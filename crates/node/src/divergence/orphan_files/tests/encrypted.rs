//! Files of orphans in a data folder that is encrypted, is to be, or is to be no longer.

use std::ops::ControlFlow;

use meridian_vault::Vault;

use super::*;

/// A data folder under a key.
fn encrypted(folder: &std::path::Path, seals: bool) -> Folder {
    use std::os::unix::fs::PermissionsExt;
    let key = folder.join("key");
    fs::write(&key, (0..32).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let data = folder.join("data");
    fs::create_dir_all(&data).unwrap();
    let key = meridian_vault::KeySource::File(key);
    let settings = meridian_vault::EncryptionSettings { seals, key, previous: None };
    Folder::open(&data, Some(&settings)).unwrap()
}

#[test]
fn orphans_in_an_encrypted_folder_are_listed_read_and_found_damaged_as_others_are() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = encrypted(folder.path(), true);
    let summary = save(&data_dir, &[batch(11, 2), batch(12, 1)]);
    assert_eq!(save(&data_dir, &[batch(11, 2), batch(12, 1)]), summary, "it is kept once");
    assert_eq!(listed(&data_dir), [NAME]);
    assert_eq!(list(&data_dir).unwrap()[0].content.as_ref().unwrap().1, summary);
    assert_eq!(read(&data_dir, NAME).unwrap().map(Result::unwrap).count(), 2);
    let path = data_dir.join("orphans").join(NAME);
    let mut bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(MAGIC.len()).any(|part| part == MAGIC));
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(read(&data_dir, NAME), Err(StorageError::Corruption { .. })));
    assert_eq!(read_orphans(&data_dir, NAME).err().unwrap().code(), Code::DataLoss);
}

#[test]
fn orphans_of_before_are_encrypted_in_place_and_a_damaged_file_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let plain: Folder = folder.path().join("data").into();
    save(&plain, &[batch(11, 1)]);
    let data_dir = encrypted(folder.path(), true);
    let vault = data_dir.vault().unwrap();
    save(&data_dir, &[batch(11, 1), batch(12, 1)]);
    let [first, second] =
        [NAME, "shard-3-epoch-2-base-10-2.orphans"].map(|name| data_dir.join("orphans").join(name));
    let rewrite = |vault: &Vault| {
        let mut bytes = 0;
        let mut admit = |_: &Path, more: u64| {
            bytes += more;
            ControlFlow::Continue(())
        };
        let rewritten = OrphanRewriter::default().rewrite_stale(&data_dir, vault, &mut admit);
        (rewritten, bytes)
    };
    assert!(vault.is_stale(&first).unwrap() && !vault.is_stale(&second).unwrap());
    let before = fs::metadata(&first).unwrap().len();
    let (rewritten, bytes) = rewrite(vault);
    rewritten.unwrap();
    assert_eq!(bytes, before);
    assert!(!vault.is_stale(&first).unwrap());
    assert_eq!(read(&data_dir, NAME).unwrap().map(Result::unwrap).count(), 1);
    vault.rotate_data_key().unwrap();
    // Leftovers of a crash go, the file of a writer stays.
    let rewritten = NAME.replace("-1.", "-2.") + ".rewritten";
    let leftovers = [rewritten, NAME.replace("-1.orphans", ".partial")];
    for name in &leftovers {
        fs::write(data_dir.join("orphans").join(name), "plain").unwrap();
    }
    let held = OrphanWriter::create(&data_dir, ShardId(9), EPOCH, BASE).unwrap();
    vault.rotate_data_key().unwrap();
    let mut damaged = fs::read(&first).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&first, &damaged).unwrap();
    let (rewritten, _) = rewrite(vault);
    assert!(matches!(rewritten, Err(StorageError::Corruption { .. })));
    assert_eq!(fs::read(&first).unwrap(), damaged, "it stays as it was");
    assert!(!vault.is_stale(&second).unwrap());
    let left = files(&data_dir);
    assert!(leftovers.iter().all(|name| !left.contains(name)), "{left:?}");
    assert!(left.iter().any(|name| name.ends_with(".partial")));
    drop(held);
}

#[test]
fn damaged_file_is_copied_once_and_named_until_it_is_another_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = encrypted(folder.path(), true);
    let (vault, path) = (data_dir.vault().unwrap(), data_dir.join("orphans").join(NAME));
    save(&data_dir, &[batch(11, 1)]);
    vault.rotate_data_key().unwrap();
    let whole = fs::read(&path).unwrap();
    // Files that are there at the same time differ in their inodes, whatever their times are.
    let replace = |bytes: &[u8]| {
        fs::write(data_dir.join("other"), bytes).unwrap();
        fs::rename(data_dir.join("other"), &path).unwrap();
    };
    let mut rewriter = OrphanRewriter::default();
    let mut rewrite = || {
        let mut bytes = 0;
        let mut admit = |_: &Path, more: u64| {
            bytes += more;
            ControlFlow::Continue(())
        };
        let rewritten = rewriter.rewrite_stale(&data_dir, vault, &mut admit);
        (rewritten.map_err(|error| error.to_string()), bytes)
    };
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let length = whole.len() as u64;
    for _ in 0..2 {
        replace(&damaged);
        let (first, copied) = rewrite();
        assert!(first.as_ref().is_err_and(|error| error.contains(NAME)), "{first:?}");
        assert_eq!(copied, length);
        assert_eq!(rewrite(), (first, 0));
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(rewrite(), (Ok(()), 0));
    replace(&whole);
    assert_eq!(rewrite(), (Ok(()), length));
    assert!(!vault.is_stale(&path).unwrap());
}

#[test]
fn files_of_an_operator_beside_the_orphans_stay_as_they_are_and_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let plain: Folder = folder.path().join("data").into();
    save(&plain, &[batch(11, 1)]);
    let foreign = [
        "lost.jsonl".to_owned(),
        format!("{NAME}.gz"),
        format!("{NAME}.partial"),
        format!("old-{NAME}"),
        "mine.rewritten".to_owned(),
        "shard-03-epoch-2-base-10.partial".to_owned(),
        "notes".to_owned(),
    ];
    for name in &foreign {
        fs::write(plain.join("orphans").join(name), name).unwrap();
    }
    for seals in [true, false] {
        let data_dir = encrypted(folder.path(), seals);
        let vault = data_dir.vault().unwrap();
        assert_eq!(vault.survey(is_ours).unwrap().stale_files, 1);
        let mut rewriter = OrphanRewriter::default();
        rewriter.rewrite_stale(&data_dir, vault, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(vault.survey(is_ours).unwrap().stale_files, 0);
        for name in &foreign {
            let path = data_dir.join("orphans").join(name);
            assert_eq!(fs::read_to_string(path).unwrap(), *name);
        }
    }
}
