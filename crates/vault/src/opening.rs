//! Opens the keys of a data folder, before anything else of it is opened.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::VaultError;
use crate::key::MasterKey;
use crate::key_id::KeyId;
use crate::keyring::{self, Keyring, SealedKeyring};
use crate::source::{EncryptionSettings, KeySource};
use crate::survey::{FOLDERS, Survey};
use crate::vault::Vault;

/// How long a process that ends, or a command that it has just started, may keep the lock.
const ENDING: Duration = Duration::from_secs(1);

/// The vault of a folder. `None`: nothing is encrypted there, nor is to be.
///
/// Data keys that no file is under any more leave the keyring here, while nothing can begin one; the
/// newest of them, and all where a file could not be seen, stay.
///
/// # Errors
/// [`VaultError`]. Nothing was changed then.
pub(crate) fn open(
    folder: &Path,
    settings: Option<&EncryptionSettings>,
) -> Result<Option<Vault>, VaultError> {
    let seals = settings.is_some_and(|settings| settings.seals);
    if !seals && !keyring::path(folder).exists() {
        refuse_encrypted(folder, &Ok(None))?;
        return Ok(None);
    }
    // Before the keyring is read: a process that holds the lock may replace it.
    let lock = lock(folder)?;
    let sealed = SealedKeyring::load(&keyring::path(folder));
    let Some(settings) = settings else {
        refuse_encrypted(folder, &sealed)?;
        return Ok(None);
    };
    let sealed = sealed?;
    if sealed.is_none() && !settings.seals {
        refuse_encrypted(folder, &Ok(None))?;
        return Ok(None);
    }
    let wanted = sealed.as_ref().map(|sealed| sealed.master);
    let master = read_key(folder, &settings.key, wanted)?;
    let survey = look(folder)?;
    let keyring = match sealed {
        None => create(folder, &master, &survey)?,
        Some(sealed) => take_over(folder, sealed, &master, settings, &survey)?,
    };
    Ok(Some(Vault::new(folder, settings, master, keyring, lock)))
}

/// Without a key, a folder can be opened in which nothing is encrypted. A keyring is of no use then.
fn refuse_encrypted(
    folder: &Path,
    keyring: &Result<Option<SealedKeyring>, VaultError>,
) -> Result<(), VaultError> {
    let survey = look(folder)?;
    if let Some((_, file)) = survey.in_use.into_iter().next() {
        let wanted = match keyring {
            Ok(Some(sealed)) => sealed.master.to_string(),
            Ok(None) => "of a keyring that is not there".to_owned(),
            Err(_) => "of a keyring that cannot be read".to_owned(),
        };
        return Err(VaultError::NoKey { file, wanted });
    }
    if !matches!(keyring, Ok(None)) && survey.unseen.is_empty() {
        let (path, aside) = (keyring::path(folder), keyring::path_aside(folder));
        fs::rename(&path, &aside).map_err(VaultError::file(&path))?;
        tracing::info!("nothing is encrypted any more: the keyring is now `keyring.old`");
    }
    Ok(())
}

/// Looks which data keys files are under.
fn look(folder: &Path) -> Result<Survey, VaultError> {
    let survey = Survey::take(folder, None, &|_| true)?;
    for (path, cause) in &survey.unseen {
        tracing::warn!(path = %path.display(), cause, "a file cannot be seen: no data key leaves the keyring");
    }
    Ok(survey)
}

/// The first keyring of a folder, durable before anything is encrypted. It has the keys of a keyring that
/// was put aside under the same master key, when encryption was turned off.
fn create(folder: &Path, master: &MasterKey, survey: &Survey) -> Result<Keyring, VaultError> {
    let aside = SealedKeyring::load(&keyring::path_aside(folder)).ok().flatten();
    let aside = aside.filter(|aside| aside.master == master.id());
    let aside = aside.and_then(|aside| aside.open(master));
    let has = |number| aside.as_ref().is_some_and(|aside| aside.get(number).is_some());
    if let Some((_, file)) = survey.in_use.iter().find(|(number, _)| !has(**number)) {
        let keyring = keyring::path(folder);
        return Err(VaultError::NoKeyring { file: file.clone(), keyring });
    }
    let created = aside.map_or_else(Keyring::create, |aside| aside.with_new_key())?;
    keyring::replace(folder, &created.encode(master)?)?;
    tracing::info!(key = %master.id(), "a keyring is made: new files are encrypted");
    Ok(created)
}

/// Reads a key. `wanted`: that of the keyring, if there is a keyring.
fn read_key(
    folder: &Path,
    source: &KeySource,
    wanted: Option<KeyId>,
) -> Result<MasterKey, VaultError> {
    source.read().map_err(|cause| match wanted {
        Some(wanted) => VaultError::KeyNotThere { keyring: keyring::path(folder), wanted, cause },
        None => VaultError::Key(cause),
    })
}

/// The keyring that is there, from now on under the present master key.
fn take_over(
    folder: &Path,
    sealed: SealedKeyring,
    master: &MasterKey,
    settings: &EncryptionSettings,
    survey: &Survey,
) -> Result<Keyring, VaultError> {
    let wanted = sealed.master;
    let opened = open_sealed(folder, sealed, master, settings)?;
    let mut sees_all = survey.unseen.is_empty();
    for (number, file) in &survey.in_use {
        if opened.get(*number).is_some() {
            continue;
        }
        let unknown = VaultError::UnknownDataKey { file: file.clone(), number: *number };
        if !Survey::is_orphan(folder, file) {
            return Err(unknown);
        }
        tracing::warn!(error = %unknown, "a file of orphans cannot be read: no data key leaves the keyring");
        sees_all = false;
    }
    let kept = opened.with_keys_in_use(|key| !sees_all || survey.in_use.contains_key(&key));
    let dropped = opened.older.len() - kept.older.len();
    if wanted == master.id() && dropped == 0 {
        return Ok(opened);
    }
    let removed = if dropped > 0 { sync_removals(folder) } else { Ok(()) };
    match removed.and_then(|()| keyring::replace(folder, &kept.encode(master)?)) {
        Ok(()) => {
            tracing::info!(key = %master.id(), dropped, "the keyring is written anew");
            Ok(kept)
        }
        // Such as on a full disk, on which the node is to start all the same.
        Err(error) if wanted == master.id() => {
            tracing::warn!(%error, "data keys that are of no use any more stay in the keyring");
            Ok(opened)
        }
        Err(error) => Err(error),
    }
}

/// Opens a keyring by the master key, or by the previous one.
fn open_sealed(
    folder: &Path,
    sealed: SealedKeyring,
    master: &MasterKey,
    settings: &EncryptionSettings,
) -> Result<Keyring, VaultError> {
    let (keyring, wanted) = (keyring::path(folder), sealed.master);
    let opened = if wanted == master.id() {
        sealed.open(master)
    } else {
        let mut met = format!("{} has the key {}", settings.key, master.id());
        let previous = settings.previous.as_ref();
        let previous = previous.map(|previous| {
            let key = read_key(folder, previous, Some(wanted))?;
            met = format!("{met}, {previous} the key {}", key.id());
            Ok::<_, VaultError>(key)
        });
        match previous.transpose()?.filter(|previous| previous.id() == wanted) {
            Some(previous) => sealed.open(&previous),
            None => return Err(VaultError::WrongKey { keyring, wanted, met }),
        }
    };
    let detail = "the key that it names does not open it".to_owned();
    opened.ok_or(VaultError::DamagedKeyring { path: keyring, detail })
}

/// Makes it durable that files under older data keys are gone: a file that a power loss brought back
/// would be under a key that is not there.
fn sync_removals(folder: &Path) -> Result<(), VaultError> {
    for within in FOLDERS {
        let within = folder.join(within);
        match File::open(&within).and_then(|within| within.sync_all()) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            synced => synced.map_err(VaultError::file(&within))?,
        }
    }
    Ok(())
}

/// Held as long as the folder is open: two processes would take each other's keys away.
fn lock(folder: &Path) -> Result<File, VaultError> {
    let path = folder.join("keyring.lock");
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(VaultError::file(&path))?;
    let until = Instant::now() + ENDING;
    while file.try_lock().is_err() {
        if Instant::now() >= until {
            return Err(VaultError::InUse(folder.to_owned()));
        }
        std::thread::sleep(ENDING / 100);
    }
    Ok(file)
}
