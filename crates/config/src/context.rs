//! A context: the cluster that an operator's commands are for, with the proof of their author.

use std::fmt;
use std::path::{Path, PathBuf};

use meridian_net::grpc::Access;
use meridian_net::tls::PemFile;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// The nodes of a cluster to ask, the authorities that vouch for them, and the operator's
/// certificate or token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The id of the cluster.
    pub cluster: String,
    /// `host:port` of nodes to ask first.
    pub nodes: Vec<String>,
    /// PEM.
    pub authorities: String,
    /// PEM: the operator's certificate and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// In the place of a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl fmt::Debug for Context {
    /// Without the key and the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("cluster", &self.cluster)
            .field("nodes", &self.nodes)
            .finish()
    }
}

/// A context that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("cannot read the context {}: {cause}", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    /// The parser's own words would quote the line, which may hold a secret.
    #[error("{} is no context: `meridian login` writes one", .0.display())]
    Malformed(PathBuf),
    #[error("cannot write the context {}: {cause}", path.display())]
    Write { path: PathBuf, cause: std::io::Error },
    #[error("the context {} cannot be used: {cause}", path.display())]
    Unusable { path: PathBuf, cause: std::io::Error },
}

impl Context {
    /// # Errors
    /// [`ContextError`].
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ContextError::Read { path: path.to_owned(), cause })?;
        toml::from_str(&text).map_err(|_| ContextError::Malformed(path.to_owned()))
    }

    /// The way to the nodes, with the proof of the commands' author. `path`: where the context is
    /// from, for errors.
    ///
    /// # Errors
    /// [`ContextError::Unusable`].
    pub fn access(&self, path: &Path) -> Result<Access, ContextError> {
        let file = |text: &String| PemFile::new(path.to_owned(), text.as_bytes().to_vec());
        let identity = self.identity.as_ref().map(file);
        let access =
            Access::secure(self.cluster.clone(), &file(&self.authorities), identity.as_ref());
        let shown = match &self.token {
            Some(token) => access.and_then(|access| access.with_token(token)),
            None => access,
        };
        shown.map_err(|cause| ContextError::Unusable { path: path.to_owned(), cause })
    }

    /// As a file that its owner alone reads.
    ///
    /// # Errors
    /// [`ContextError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        let failed = |cause| ContextError::Write { path: path.to_owned(), cause };
        let text = toml::to_string(self).map_err(|error| failed(std::io::Error::other(error)))?;
        private_file::write(path, text.as_bytes()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_is_read_as_it_was_written_and_shows_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.toml");
        let context = Context {
            cluster: "00ff00ff00ff00ff".to_owned(),
            nodes: vec!["127.0.0.1:1".to_owned()],
            authorities: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            identity: Some("hush".to_owned()),
            token: Some("quiet".to_owned()),
        };
        context.save(&path).unwrap();
        assert_eq!(Context::load(&path).unwrap(), context);
        let shown = format!("{context:?}");
        assert!(!shown.contains("hush") && !shown.contains("quiet"), "{shown}");
        std::fs::write(&path, "token = \"hush").unwrap();
        let error = Context::load(&path).unwrap_err().to_string();
        assert!(error.contains("operator.toml") && !error.contains("hush"), "{error}");
        assert!(matches!(Context::load(folder.path()), Err(ContextError::Read { .. })));
    }
}
