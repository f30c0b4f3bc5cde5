//! Where a master key is read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fmt};

use zeroize::Zeroizing;

use crate::command::{self, MAX_KEY_BYTES};
use crate::error::KeyError;
use crate::key::MasterKey;

/// Where a master key is read, each time that it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    /// A credential of systemd, by its name.
    Credential(String),
    /// A program with its arguments, which writes the key to its standard output.
    Command(Vec<String>),
}

/// How the files of a data folder are to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionSettings {
    /// False: files are no longer encrypted, and those that are can be read.
    pub seals: bool,
    pub key: KeySource,
    /// Of the time before, while the key is changed.
    pub previous: Option<KeySource>,
}

impl KeySource {
    /// Whether a look costs nothing, so that a change is noticed by looking.
    pub fn is_watched(&self) -> bool {
        !matches!(self, Self::Command(_))
    }

    /// May take as long as a command may.
    ///
    /// # Errors
    /// [`KeyError`], which holds nothing of the key.
    pub fn read(&self) -> Result<MasterKey, KeyError> {
        match self {
            Self::File(path) => MasterKey::parse(&read_file(path, true)?, &self.to_string()),
            Self::Credential(name) => {
                let folder = env::var_os("CREDENTIALS_DIRECTORY").ok_or(KeyError::NoCredentials)?;
                // Its mode shows the mask of an access list: systemd lets this user alone read it.
                let content = read_file(&Path::new(&folder).join(name), false)?;
                MasterKey::parse(&content, &self.to_string())
            }
            Self::Command(words) => MasterKey::parse(&command::output(words)?, &self.to_string()),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the key file {}", path.display()),
            Self::Credential(name) => write!(f, "the credential `{name}`"),
            // Its arguments may hold a secret.
            Self::Command(words) => {
                write!(f, "the output of `{}`", words.first().map_or("", String::as_str))
            }
        }
    }
}

fn read_file(path: &Path, private: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |cause| KeyError::File { path: path.to_owned(), cause };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if private && mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    // As large as it gets: no copy of the key is left behind by growing.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_KEY_BYTES + 1));
    file.take(MAX_KEY_BYTES as u64).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}
