//! The file of the log, which others may rename or remove at any time.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// By which it is known: device and inode.
    identity: (u64, u64),
    /// It ends within a line, of a process that was killed or of a disk that was full.
    is_torn: bool,
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl LogFile {
    /// Opens the file behind its last line, or makes it, for its owner alone.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        // To open a pipe would wait for its reader.
        if let Ok(metadata) = path.metadata()
            && !metadata.is_file()
            && !metadata.file_type().is_char_device()
        {
            return Err(Error::new(ErrorKind::InvalidInput, "it is no file"));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.permissions().mode() & 0o007 != 0 {
            warn!(path = %path.display(), "every user of this machine can read the audit log");
        }
        let mut last = [b'\n'];
        if let Some(at) = metadata.len().checked_sub(1).filter(|_| metadata.is_file()) {
            file.read_exact_at(&mut last, at)?;
        }
        let is_torn = last != [b'\n'];
        Ok(Self { path: path.to_owned(), identity: identity(&metadata), file, is_torn })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what is behind `at`, which goes on with what is written. A file that has taken the place
    /// of this one gets whole lines.
    pub(super) fn write(&mut self, lines: &[u8], at: &mut usize) -> std::io::Result<()> {
        if !self.path.metadata().is_ok_and(|metadata| identity(&metadata) == self.identity) {
            let written = lines.get(..*at).unwrap_or_default();
            *at = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            *self = Self::open(&self.path)?;
        }
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.is_torn = false;
        }
        while let Some(rest) = lines.get(*at..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => *at += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A device may not know how to.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        match self.file.sync_data() {
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &mut LogFile, lines: &str) {
        file.write(lines.as_bytes(), &mut 0).unwrap();
    }

    #[test]
    fn file_is_private_and_behind_a_torn_line_the_next_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        write(&mut LogFile::open(&path).unwrap(), "1\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        write(&mut LogFile::open(&path).unwrap(), "2\n{\"to");
        write(&mut LogFile::open(&path).unwrap(), "3\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n{\"to\n3\n");
    }

    #[test]
    fn renamed_removed_or_emptied_file_gives_way_to_one_with_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let (path, rotated) = (logs.join("audit"), logs.join("audit.1"));
        let mut file = LogFile::open(&path).unwrap();
        write(&mut file, "1\n");
        std::fs::rename(&path, &rotated).unwrap();
        // Of "2\n3\n" the first three bytes were written before.
        let mut at = 3;
        file.write(b"2\n3\n", &mut at).unwrap();
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((at, text(&rotated).as_str(), text(&path).as_str()), (4, "1\n", "3\n"));
        std::fs::remove_file(&path).unwrap();
        write(&mut file, "4\n");
        assert_eq!(text(&path), "4\n");
        // As `copytruncate` of logrotate does.
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        write(&mut file, "5\n");
        assert_eq!(text(&path), "5\n");
        // The next file comes once there is a folder for it; until then the line waits.
        std::fs::remove_dir_all(&logs).unwrap();
        assert!(file.write(b"6\n", &mut 0).is_err());
        std::fs::create_dir(&logs).unwrap();
        write(&mut file, "6\n");
        assert_eq!(text(&path), "6\n");
    }

    #[test]
    fn path_that_leads_to_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(LogFile::open(&folder.path().join("none/audit")).is_err());
        let refused = LogFile::open(folder.path()).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "it is no file");
    }
}
