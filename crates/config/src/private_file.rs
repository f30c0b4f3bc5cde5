//! Files that hold secrets or data of applications.

use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

/// Puts a file with `bytes` at `path`, readable by its owner only, whatever was there: whole, or
/// not at all, also when the power fails.
///
/// # Errors
/// When the disk says no.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made with mode 0600, under a name of its own.
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    meridian_vault::sync_name(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_was_open_to_all_is_private_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_link_leads_to_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("node.toml"), folder.path().join("other"));
        std::fs::write(&other, "other").unwrap();
        symlink(&other, &path).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
