//! Which files of a data folder are under which data key.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::VaultError;
use crate::header::{Beginning, HEADER_BYTES, USED_BYTES};

/// Files of RocksDB that hold neither keys nor values, and are never encrypted: some of them are
/// written once for all time, and would keep an old data key in use. They are written under a name
/// with the extension `dbtmp` first.
const WITHOUT_DATA: &[&str] = &["CURRENT", "IDENTITY", "LOCK", "OPTIONS-"];

/// Whether a file is one of [`WITHOUT_DATA`].
pub(crate) fn is_without_data(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    WITHOUT_DATA.iter().any(|without| name.starts_with(without)) || name.ends_with(".dbtmp")
}

/// Files that RocksDB begins when it opens a database, and writes until it closes it: the list of
/// its tables, with their first and last keys, and its log for people.
const OF_AN_OPENING: &[&str] = &["MANIFEST-", "LOG"];

/// RocksDB's log for people of an earlier opening.
pub(crate) const OLD_INFO_LOG: &str = "LOG.old.";

/// How far the files of a data folder are encrypted as new ones are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The files that hold data or keys, but for those that are begun anew with each start.
    pub files: u64,
    pub bytes: u64,
    /// Files that are begun anew with the next start of the node, and are not as they will be.
    pub stale_until_restart: u64,
    /// Those of `files` that are not as a new file would be, or cannot be read.
    pub stale_files: u64,
    pub stale_bytes: u64,
    /// The data keys that files are under, each with one such file; one of the database if there is.
    pub(crate) in_use: BTreeMap<u32, PathBuf>,
    /// Files and folders that could not be seen, each with the cause: they may be under any key.
    pub(crate) unseen: Vec<(PathBuf, String)>,
}

impl Survey {
    /// `current`: the data key of new files; `None`: they are plain. `is_counted`: whether a file of
    /// this name among the orphans is Meridian's; others have a data key, and are not counted.
    pub(crate) fn take(
        folder: &Path,
        current: Option<u32>,
        is_counted: &dyn Fn(&str) -> bool,
    ) -> Result<Self, VaultError> {
        let mut survey = Self::default();
        let [database, orphans] = FOLDERS.map(|within| folder.join(within));
        let mut needed = list(&database).map_err(VaultError::file(&database))?;
        needed.extend([HIGH_WATER, AUTHORITY_KEY].map(|file| folder.join(file)));
        for file in needed {
            survey.look_at(&file, current, true).map_err(VaultError::file(&file))?;
        }
        // A node serves without these.
        let found = list(&orphans).unwrap_or_else(|error| {
            survey.unseen.push((orphans, error.to_string()));
            Vec::new()
        });
        for file in found {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let is_counted = is_counted(&name);
            if let Err(error) = survey.look_at(&file, current, is_counted) {
                survey.files += u64::from(is_counted);
                survey.stale_files += u64::from(is_counted);
                survey.unseen.push((file, error.to_string()));
            }
        }
        Ok(survey)
    }

    /// Whether the node serves without the file.
    pub(crate) fn is_orphan(folder: &Path, file: &Path) -> bool {
        let [_, orphans] = FOLDERS;
        file.starts_with(folder.join(orphans))
    }

    fn look_at(&mut self, file: &Path, current: Option<u32>, is_counted: bool) -> io::Result<()> {
        if is_without_data(file) {
            return Ok(());
        }
        let (beginning, bytes) = match beginning(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Else it was deleted meanwhile, or is not there.
                if file.is_symlink() {
                    self.unseen.push((file.to_owned(), error.to_string()));
                }
                return Ok(());
            }
            seen => seen?,
        };
        if let Beginning::Sealed { number } = beginning {
            self.in_use.entry(number).or_insert_with(|| file.to_owned());
        }
        if !is_counted {
            return Ok(());
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_of_an_opening = OF_AN_OPENING.iter().any(|kind| name.starts_with(kind));
        if is_of_an_opening && !name.starts_with(OLD_INFO_LOG) {
            self.stale_until_restart += u64::from(is_stale(beginning, bytes, current));
            return Ok(());
        }
        self.files += 1;
        self.bytes += bytes;
        if is_stale(beginning, bytes, current) {
            self.stale_files += 1;
            self.stale_bytes += bytes;
        }
        Ok(())
    }

    /// How much is as it should be, in percent; 100 only if all is.
    pub fn percent(&self) -> u8 {
        if self.stale_files == 0 {
            return 100;
        }
        let done = u128::from(self.bytes - self.stale_bytes) * 100;
        u8::try_from(done / u128::from(self.bytes.max(1))).unwrap_or(99).min(99)
    }
}

/// Whether a file is not as a new one would be. An empty file holds nothing.
pub(crate) fn is_stale(beginning: Beginning, bytes: u64, current: Option<u32>) -> bool {
    match beginning {
        Beginning::Plain => current.is_some() && bytes > 0,
        Beginning::CutShort => false,
        Beginning::Sealed { number } => current != Some(number) && bytes > HEADER_BYTES as u64,
    }
}

/// How a file begins, and how many bytes it has.
pub(crate) fn beginning(path: &Path) -> io::Result<(Beginning, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = Vec::with_capacity(USED_BYTES);
    Read::by_ref(&mut file).take(USED_BYTES as u64).read_to_end(&mut head)?;
    Ok((Beginning::read(&head, bytes), bytes))
}

/// The file of high-water marks, in a data folder.
pub const HIGH_WATER: &str = "high-water";
/// The key of the cluster's authority, which the first node has until the directory has it.
pub const AUTHORITY_KEY: &str = "identity/authority-key.pem";

/// Of a data folder: the database, and orphan files, beside which operators may have files of their
/// own. Other files of the data folder than these and the two above are never encrypted.
pub(crate) const FOLDERS: [&str; 2] = ["db", "orphans"];

/// The files of a folder, sorted, also those that are links or cannot be looked at. None if there is
/// no folder.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        // A link to a folder that is not there is no folder that was never made.
        Err(error) if error.kind() == ErrorKind::NotFound && !folder.is_symlink() => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.metadata().map_or(true, |metadata| metadata.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
