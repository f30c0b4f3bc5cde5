//! The encryption of the node's files: its keys as they change, and files that are written again
//! until all are as new ones are.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::admin::EncryptionStatus;
use meridian_storage::{Engine, HighWater, StorageError, fatal};
use meridian_vault::{AUTHORITY_KEY, Folder, HIGH_WATER, Survey, Vault};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::background::pace::pace;
use crate::divergence::orphan_files::{self, OrphanRewriter};
use crate::host::disk::{DiskGuard, Room};

/// Between two looks at the master key, and at files that are not as new ones are.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at all files while some are written again.
const SURVEY: Duration = Duration::from_secs(1);
/// How fast files are written again at most.
const REWRITE_BYTES_PER_SECOND: u64 = 32 << 20;

/// The keys of a node's files, and how far its files are under them.
pub(crate) struct Encryption {
    data_dir: Folder,
    engine: Arc<dyn Engine>,
    high_water: Arc<HighWater>,
    disk: Arc<DiskGuard>,
    stop: CancellationToken,
    /// Of the last look at all files.
    survey: Mutex<Option<Survey>>,
    /// Why files stay as they are.
    problem: Mutex<Option<String>>,
    orphans: Mutex<OrphanRewriter>,
    /// Held while an operator's change of keys is under way, which may wait for a command.
    changing: Arc<Semaphore>,
}

impl Encryption {
    pub(crate) fn new(
        data_dir: Folder,
        engine: &Arc<dyn Engine>,
        high_water: &Arc<HighWater>,
        disk: &Arc<DiskGuard>,
        stop: CancellationToken,
    ) -> Self {
        let (engine, high_water) = (Arc::clone(engine), Arc::clone(high_water));
        let (survey, problem, orphans) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (disk, changing) = (Arc::clone(disk), Arc::new(Semaphore::new(1)));
        Self { data_dir, engine, high_water, disk, stop, survey, problem, orphans, changing }
    }

    fn vault(&self) -> Option<&Arc<Vault>> {
        self.data_dir.vault()
    }

    /// Starts its duties, if there is anything to do; they end with the node.
    pub(crate) fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        if self.vault().is_none() {
            return Vec::new();
        }
        let (watching, rewriting) = (Arc::clone(self), Arc::clone(self));
        vec![
            tokio::spawn(async move { watching.each(Self::watch_key).await }),
            tokio::spawn(async move { rewriting.each(Self::rewrite).await }),
        ]
    }

    /// Does the work now and then, on a thread that may block. Work that has begun is finished.
    async fn each(self: Arc<Self>, work: fn(&Self)) {
        loop {
            let this = Arc::clone(&self);
            // It panics never, and a cancelled one is the node stopping.
            drop(tokio::task::spawn_blocking(move || work(&this)).await);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn watch_key(&self) {
        if let Some(vault) = self.vault() {
            vault.watch_master_key();
        }
    }

    /// Looks for files that are not as new ones are, and writes them again.
    fn rewrite(&self) {
        let Some(vault) = self.vault() else { return };
        if !self.look(vault) {
            *self.problem.lock() = None;
            return;
        }
        if self.disk.room() != Room::Enough {
            return;
        }
        let mut looked = Instant::now();
        let mut admit = |path: &Path, bytes| {
            if looked.elapsed() >= SURVEY {
                looked = Instant::now();
                self.look(vault);
            }
            self.admit(path, bytes)
        };
        match self.rewrite_files(vault, &mut admit) {
            // The node stops, the disk has no room, or a state is dropped: looked for anew.
            Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => {}
            Ok(()) => *self.problem.lock() = None,
            // Of one file that is no part of the database; it stays as it was.
            Err(error @ (StorageError::File { .. } | StorageError::Corruption { .. })) => {
                let problem = error.to_string();
                let known = self.problem.lock().replace(problem.clone());
                if known != Some(problem) {
                    tracing::warn!(%error, "a file cannot be written again as new ones are encrypted");
                }
            }
            Err(error) => fatal(&error),
        }
        self.look(vault);
    }

    /// Surveys the folder. Whether any file is to be written again.
    fn look(&self, vault: &Vault) -> bool {
        match vault.survey(orphan_files::is_ours) {
            Ok(survey) => {
                let is_stale = survey.stale_files > 0;
                let known = self.survey.lock().replace(survey);
                if known.is_some_and(|known| known.stale_files > 0) && !is_stale {
                    tracing::info!("all files are encrypted as new ones are");
                }
                is_stale
            }
            Err(error) => {
                tracing::warn!(%error, "how the files are encrypted cannot be seen");
                false
            }
        }
    }

    fn rewrite_files(
        &self,
        vault: &Vault,
        admit: &mut dyn FnMut(&Path, u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        // Either may not be there.
        let is_stale = |path: &Path| vault.is_stale(path).unwrap_or(false);
        if is_stale(&self.data_dir.join(HIGH_WATER)) {
            self.high_water.rewrite()?;
        }
        let authority_key = self.data_dir.join(AUTHORITY_KEY);
        if is_stale(&authority_key) {
            let rewritten = vault.rewrite(&authority_key);
            let path = || authority_key.display().to_string();
            rewritten.map_err(|source| StorageError::File { path: path(), source })?;
        }
        // The database before files that may each have a problem of their own.
        let database = self.data_dir.join("db");
        self.engine.rewrite(&mut |bytes| admit(&database, bytes))?;
        self.orphans.lock().rewrite_stale(&self.data_dir, vault, admit)
    }

    /// Blocks for as long as so many bytes may take, before they are written beside this file, or
    /// in this folder; at once, with a break, when the node stops, or the disk there, which may be
    /// another than the data folder's, has no room for them.
    fn admit(&self, path: &Path, bytes: u64) -> ControlFlow<()> {
        pace(&self.stop, bytes, REWRITE_BYTES_PER_SECOND)?;
        if self.disk.has_room_for(path, bytes) {
            return ControlFlow::Continue(());
        }
        let (path, mib) = (path.display(), bytes.div_ceil(1 << 20));
        *self.problem.lock() = Some(format!("the disk of {path} has no room for {mib} MiB more"));
        ControlFlow::Break(())
    }

    /// Reads the master key again, and makes another data key if that is wanted. Whether the master
    /// key is another one.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if nothing is encrypted here, or the key cannot be had; `UNAVAILABLE`
    /// while another call does the same.
    pub(crate) async fn rotate(self: Arc<Self>, new_data_key: bool) -> Result<bool, Status> {
        let off = || Status::failed_precondition("no key is configured: [encryption] names one");
        let vault = Arc::clone(self.vault().ok_or_else(off)?);
        let busy = |_| Status::unavailable("another change of keys is under way");
        let turn = Arc::clone(&self.changing).try_acquire_owned().map_err(busy)?;
        let rotated = tokio::task::spawn_blocking(move || {
            // Also when the call is dropped.
            let _turn = turn;
            let changed = vault.reread_master_key()?;
            if new_data_key {
                vault.rotate_data_key()?;
            }
            self.look(&vault);
            Ok(changed)
        });
        let rotated = rotated.await.map_err(|error| Status::unavailable(error.to_string()))?;
        rotated.map_err(|error: meridian_vault::VaultError| {
            Status::failed_precondition(error.to_string())
        })
    }

    pub(crate) fn status(&self) -> EncryptionStatus {
        let Some(keys) = self.vault().map(|vault| vault.status()) else {
            return EncryptionStatus {
                state: "off".to_owned(),
                percent: 100,
                ..EncryptionStatus::default()
            };
        };
        let survey = self.survey.lock().clone();
        let percent = survey.as_ref().map_or(0, Survey::percent);
        let state = match (keys.seals, percent) {
            (true, 100) => "on",
            (true, _) => "encrypting",
            (false, 100) => "off",
            (false, _) => "decrypting",
        };
        EncryptionStatus {
            state: state.to_owned(),
            percent: percent.into(),
            master_key: keys.master.to_string(),
            data_key: keys.data_key,
            data_key_ms: keys.data_key_ms,
            older_data_keys: u32::try_from(keys.older_keys).unwrap_or(u32::MAX),
            files_until_restart: survey.map_or(0, |survey| survey.stale_until_restart),
        }
    }

    /// The warnings for operators: the master key cannot be read any more, or files stay as they are.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let Some(vault) = self.vault() else { return Vec::new() };
        let key = vault.status().problem.map(|problem| {
            format!("the next start would not find the key of the data folder: {problem}")
        });
        let stuck =
            self.problem.lock().clone().map(|problem| {
                format!("files are not encrypted as the configuration says: {problem}")
            });
        key.into_iter().chain(stuck).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use meridian_storage::MemoryEngine;
    use meridian_vault::{EncryptionSettings, KeySource};

    use super::*;

    const ORPHANS: &str = "orphans/shard-3-epoch-2-base-10-1.orphans";

    /// Of a data folder that holds one file of orphans, plain, and is to be encrypted.
    fn encryption(folder: &Path, disk: &Arc<DiskGuard>) -> Encryption {
        let (key, data) = (folder.join("key"), folder.join("data"));
        fs::write(&key, (0..32).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(data.join("orphans")).unwrap();
        fs::write(data.join(ORPHANS), "plain").unwrap();
        let settings =
            EncryptionSettings { seals: true, key: KeySource::File(key), previous: None };
        let data_dir = Folder::open(&data, Some(&settings)).unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let high_water = Arc::new(HighWater::open_in(&data_dir).unwrap());
        Encryption::new(data_dir, &engine, &high_water, disk, CancellationToken::new())
    }

    #[test]
    fn no_file_is_written_again_for_which_the_disk_has_no_room() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(DiskGuard::default()));
        let encryption = encryption(folder.path(), &disk);
        let vault = encryption.vault().unwrap();
        let stale = || vault.survey(orphan_files::is_ours).unwrap().stale_files;
        // From one file to the next.
        disk.check(folder.path(), u64::MAX);
        let mut asked = Vec::new();
        let ended = encryption.rewrite_files(vault, &mut |path, bytes| {
            asked.push(path.to_owned());
            encryption.admit(path, bytes)
        });
        assert!(matches!(ended, Err(StorageError::Cancelled(_))), "{ended:?}");
        assert_eq!(asked, [encryption.data_dir.join(ORPHANS)], "its folder may be on another disk");
        assert_eq!(stale(), 1);
        let warnings = encryption.warnings();
        assert!(
            warnings.iter().any(|warning| warning.contains("no room for 1 MiB")),
            "{warnings:?}"
        );
        disk.check(folder.path(), 0);
        encryption.rewrite();
        assert_eq!((stale(), encryption.warnings()), (0, Vec::new()));
    }

    #[test]
    fn room_is_looked_for_on_the_disk_of_the_file() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(DiskGuard::default()));
        let encryption = encryption(folder.path(), &disk);
        assert_eq!(
            encryption.admit(&encryption.data_dir.join(ORPHANS), 1),
            ControlFlow::Continue(())
        );
        // A file system without room for anything.
        assert_eq!(encryption.admit(Path::new("/proc"), 1), ControlFlow::Break(()));
        let warnings = encryption.warnings().concat();
        assert!(warnings.contains("the disk of /proc has no room for 1 MiB"), "{warnings}");
    }

    #[test]
    fn file_that_cannot_be_written_again_is_named_until_it_is_gone() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(DiskGuard::default()));
        let encryption = encryption(folder.path(), &disk);
        encryption.rewrite();
        let path = encryption.data_dir.join(ORPHANS);
        let mut damaged = fs::read(&path).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&path, damaged).unwrap();
        encryption.vault().unwrap().rotate_data_key().unwrap();
        for _ in 0..2 {
            encryption.rewrite();
            let warnings = encryption.warnings().concat();
            assert!(warnings.contains(ORPHANS), "{warnings}");
        }
        fs::remove_file(&path).unwrap();
        encryption.rewrite();
        assert_eq!(encryption.warnings(), Vec::<String>::new());
    }
}
