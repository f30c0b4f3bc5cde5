//! Names of files that outlast a loss of power.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes the name of a file durable, behind its bytes: that it was made, renamed or removed.
///
/// # Errors
/// When the disk says no.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
