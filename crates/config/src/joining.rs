//! A process that gets its certificate, and the cluster, from a join token; and the folder in which
//! a process keeps an identity of its own.

use std::path::{Path, PathBuf};

use meridian_directory::Cluster;
use meridian_pki::{JoinToken, Secret, Subject};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, IdentityFiles, InvalidConfig, private_file};

/// The value of `join` in a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum JoinWord {
    /// The node has been added, and its file describes the cluster.
    Plain(bool),
    Token(String),
}

impl Default for JoinWord {
    fn default() -> Self {
        Self::Plain(false)
    }
}

impl JoinWord {
    pub(crate) fn is_plain(&self) -> bool {
        *self == Self::Plain(true)
    }

    pub(crate) fn token(&self) -> Result<Option<JoinToken>, InvalidConfig> {
        match self {
            Self::Plain(_) => Ok(None),
            Self::Token(text) => text.parse().map(Some).map_err(InvalidConfig::Join),
        }
    }
}

/// The folder of a process's own identity, within its data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFolder(PathBuf);

/// The cluster as a process got it with its first certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// As in the certificate.
    pub subject: String,
    /// SHA-256 of the secret of the token, in hex: a process that is given another token joins anew.
    pub token: String,
    pub cluster: Cluster,
}

impl Joined {
    pub(crate) fn subject(&self) -> Option<Subject> {
        self.subject.parse().ok()
    }
}

impl IdentityFolder {
    const NAME: &str = "identity";
    const JOINED: &str = "joined.json";
    const IDENTITY: &str = "identity.pem";
    const AUTHORITIES: &str = "authorities.pem";

    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join(Self::NAME))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The files of the identity: the certificate and its key are one file, which is replaced whole.
    #[must_use]
    pub fn files(&self) -> IdentityFiles {
        let identity = self.file(Self::IDENTITY);
        IdentityFiles {
            certificate: identity.clone(),
            key: identity,
            authorities: self.file(Self::AUTHORITIES),
            operator: Some(self.file("operator.toml")).filter(|path| path.exists()),
        }
    }

    /// Whether the process has its identity.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let files = self.files();
        files.certificate.exists() && files.authorities.exists()
    }

    /// Puts a file into it that its owner alone reads: whole, or not at all.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        private_file::write(&self.file(name), bytes)
    }

    /// Keeps an identity (the certificate, those up to its authority's, and the key) and the authorities
    /// to believe, as PEM. With the identity, which comes last, a first one is complete.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn keep(&self, identity: &str, authorities: &str) -> std::io::Result<()> {
        self.write(Self::AUTHORITIES, authorities.as_bytes())?;
        self.write(Self::IDENTITY, identity.as_bytes())
    }

    /// Remembers a join, behind all else that belongs to it.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn remember(&self, joined: &Joined) -> std::io::Result<()> {
        self.write(Self::JOINED, &serde_json::to_vec(joined).map_err(std::io::Error::other)?)
    }

    /// `None`: the process has not joined yet with this token.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn joined(&self, token: &JoinToken) -> Result<Option<Joined>, ConfigError> {
        let digest = Secret::digest(token.secret.expose());
        Ok(self.read()?.filter(|joined| joined.token == digest))
    }

    fn read(&self) -> Result<Option<Joined>, ConfigError> {
        let path = self.file(Self::JOINED);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let read = serde_json::from_slice(&bytes).map_err(std::io::Error::other);
                read.map(Some).map_err(|cause| ConfigError::Read { path, cause })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(ConfigError::Read { path, cause }),
        }
    }
}

/// A process that is to join before it has a configuration.
#[derive(Debug, Clone)]
pub struct Joining {
    pub token: JoinToken,
    pub folder: IdentityFolder,
    /// As in the file.
    pub worker_threads: Option<usize>,
}

/// A file, as far as it can be made into a configuration.
#[derive(Debug)]
pub enum Loaded<C> {
    Config(Box<C>),
    /// It is a configuration once the process has joined.
    Joining(Joining),
}

impl<C> Loaded<C> {
    /// # Errors
    /// [`ConfigError::NotJoined`].
    pub(crate) fn config(self, path: &Path) -> Result<C, ConfigError> {
        match self {
            Self::Config(config) => Ok(*config),
            Self::Joining(_) => Err(ConfigError::NotJoined { path: path.to_owned() }),
        }
    }
}
