//! The identity of a process: files with its certificate and key, and those that it believes.

use std::path::{Path, PathBuf};

use crate::InvalidConfig;
use crate::file::IdentityTable;

/// Files of an operator's own authority, or of a development cluster's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM: the certificate, and those up to its authority's.
    pub certificate: PathBuf,
    /// PEM. May be the same file.
    pub key: PathBuf,
    /// PEM: the authorities whose certificates are believed.
    pub authorities: PathBuf,
    /// A context for commands of operators that are given this configuration.
    pub operator: Option<PathBuf>,
}

/// Relative paths start in the folder of the file.
pub(crate) fn check(
    table: Option<IdentityTable>,
    insecure: bool,
    path: &Path,
) -> Result<Option<IdentityFiles>, InvalidConfig> {
    let Some(table) = table else { return Ok(None) };
    if insecure {
        return Err(InvalidConfig::InsecureIdentity);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |field: &'static str, path: PathBuf| match path.as_os_str().is_empty() {
        true => Err(InvalidConfig::EmptyIdentity(field)),
        // Joining an absolute path gives that path.
        false => Ok(folder.join(path)),
    };
    Ok(Some(IdentityFiles {
        certificate: file("certificate", table.certificate)?,
        key: file("key", table.key)?,
        authorities: file("authorities", table.authorities)?,
        operator: table.operator.map(|path| file("operator", path)).transpose()?,
    }))
}
