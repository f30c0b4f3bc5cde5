//! Files with certificates and keys, which are read again when they change.
//!
//! Their contents are compared, and neither their times nor what the system tells of them: files that
//! are written anew, renamed, or reached through links that are exchanged all at once, as Kubernetes
//! does it, are alike then.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::Error as TlsError;

/// Between two looks at the files. A change is taken when two looks in a row saw it: a file that is
/// being written is not read when half of it is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A file that is of no use, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct Unusable {
    pub path: PathBuf,
    pub cause: Cause,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("it has more than {0} bytes")]
    TooLarge(usize),
    #[error("it has no certificate, which begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    #[error(
        "it has no private key, which begins with -----BEGIN PRIVATE KEY-----; an encrypted one is not read"
    )]
    NoKey,
    #[error("it is no whole PEM: {0}")]
    Pem(String),
    #[error("its certificate is broken: {0}")]
    Certificate(String),
    #[error("its private key is of no use: {0}")]
    Key(TlsError),
    #[error("its private key is not that of the first certificate in {}", .0.display())]
    OtherKey(PathBuf),
}

impl Unusable {
    pub(super) fn new(path: &Path, cause: Cause) -> Self {
        Self { path: path.to_owned(), cause }
    }
}

impl From<Unusable> for io::Error {
    fn from(unusable: Unusable) -> Self {
        Self::new(io::ErrorKind::InvalidData, unusable)
    }
}

/// The bytes of a file, whose name errors tell.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl PemFile {
    /// Of a file with an identity.
    pub const MAX_BYTES: usize = 64 << 10;
    /// Of a file with authorities, such as all those of a machine.
    pub const MAX_AUTHORITIES_BYTES: usize = 1 << 20;

    #[must_use]
    pub fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, bytes }
    }

    /// # Errors
    /// It cannot be read, or has more bytes.
    pub fn read(path: &Path, max_bytes: usize) -> Result<Self, Unusable> {
        let bytes =
            read(path, max_bytes).map_err(|error| Unusable::new(path, Cause::Read(error)))?;
        if bytes.len() > max_bytes {
            return Err(Unusable::new(path, Cause::TooLarge(max_bytes)));
        }
        Ok(Self::new(path.to_owned(), bytes))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Its bytes: a byte more than `max_bytes` where there are more.
fn read(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} bytes", self.path.display(), self.bytes.len())
    }
}

/// The warning that others may read the file of a private key, if they may. A process that is not the
/// file's owner reads it as one of its group: then that is meant.
#[must_use]
pub fn exposed_key(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    let (others, remedy) = if is_own { (0o077, "go-rwx") } else { (0o007, "o-rwx") };
    let mode = metadata.permissions().mode() & 0o777;
    (mode & others != 0).then(|| {
        let path = path.display();
        format!(
            "others than its owner can read the private key {path}, whose mode is {mode:o}: chmod {remedy}"
        )
    })
}

/// Files, each with the most bytes that it may have, as they were read last.
#[derive(Debug, Clone)]
pub struct Files {
    files: Vec<(PathBuf, usize)>,
    contents: Vec<PemFile>,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn read(files: Vec<(PathBuf, usize)>) -> Result<Self, Unusable> {
        let contents = contents(&files)?;
        Ok(Self { files, contents })
    }

    /// In the order in which they were named.
    #[must_use]
    pub fn contents(&self) -> &[PemFile] {
        &self.contents
    }

    /// Reads them again, on a thread that may wait for a disk.
    async fn look(&self) -> Result<Vec<PemFile>, String> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || contents(&files));
        let read = read.await.map_err(|error| error.to_string())?;
        read.map_err(|error| error.to_string())
    }
}

fn contents(files: &[(PathBuf, usize)]) -> Result<Vec<PemFile>, Unusable> {
    files.iter().map(|(path, max_bytes)| PemFile::read(path, *max_bytes)).collect()
}

/// Hands the files to `apply` whenever they have changed, until it is dropped. While they cannot be
/// read, or `apply` refuses them, that is said in the log and counted at each look; they are applied
/// as soon as they are others. `apply` keeps what it had when it refuses.
pub async fn follow<E: fmt::Display>(
    files: Files,
    mut apply: impl FnMut(&[PemFile]) -> Result<(), E>,
) {
    let mut following = Following::new(files);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        following.look(&mut apply).await;
    }
}

/// Files that are followed.
struct Following {
    files: Files,
    /// A change that one look has seen.
    seen: Option<Vec<PemFile>>,
    /// Why the present files are not in use.
    refused: Option<String>,
    trouble: Trouble,
}

impl Following {
    fn new(files: Files) -> Self {
        Self { files, seen: None, refused: None, trouble: Trouble::default() }
    }

    async fn look<E: fmt::Display>(&mut self, apply: &mut impl FnMut(&[PemFile]) -> Result<(), E>) {
        match self.files.look().await {
            Err(error) => {
                self.seen = None;
                self.trouble.begin(error);
            }
            Ok(contents) if contents == self.files.contents => {
                self.seen = None;
                match self.refused.clone() {
                    Some(error) => self.trouble.begin(error),
                    None => self.trouble.end(),
                }
            }
            Ok(contents) if self.seen.as_ref() != Some(&contents) => self.seen = Some(contents),
            Ok(contents) => {
                self.seen = None;
                self.refused = apply(&contents).err().map(|error| error.to_string());
                self.files.contents = contents;
                match self.refused.clone() {
                    Some(error) => self.trouble.begin(error),
                    None => {
                        self.trouble.end();
                        let paths: Vec<_> = self.files.files.iter().map(|(path, _)| path).collect();
                        tracing::info!(?paths, "changed certificates are in use");
                    }
                }
            }
        }
    }
}

/// The reason for which the former certificates are still in use. It is said once.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn begin(&mut self, error: String) {
        metrics::counter!("meridian_tls_failed_reloads_total").increment(1);
        if self.0.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                "changed certificates cannot be used: the former ones stay in use"
            );
            self.0 = Some(error);
        }
    }

    fn end(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn key_that_others_than_its_owner_may_read_is_warned_of() {
        let folder = TempDir::new().unwrap();
        let key = folder.path().join("key");
        assert_eq!(exposed_key(&key), None, "it is not there");
        fs::write(&key, "key").unwrap();
        for (mode, is_warned_of) in
            [(0o644, true), (0o640, true), (0o604, true), (0o600, false), (0o400, false)]
        {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            let warning = exposed_key(&key);
            assert_eq!(warning.is_some(), is_warned_of, "{mode:o} {warning:?}");
            let says = format!("mode is {mode:o}: chmod go-rwx");
            assert!(warning.is_none_or(|warning| warning.contains(&says)), "{mode:o}");
        }
    }

    /// A folder with two files, which are followed; a text with `bad` is refused.
    struct Followed {
        folder: TempDir,
        following: Following,
    }

    impl Followed {
        fn start(prepare: impl FnOnce(&Path)) -> Self {
            let folder = TempDir::new().unwrap();
            prepare(folder.path());
            let paths = ["crt", "key"].map(|name| (folder.path().join(name), 10));
            let following = Following::new(Files::read(paths.to_vec()).unwrap());
            Self { folder, following }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        /// The texts that so many looks applied.
        async fn looks(&mut self, count: u32) -> Vec<String> {
            let mut applied = Vec::new();
            for _ in 0..count {
                let mut apply = |files: &[PemFile]| {
                    let texts = files.iter().map(|file| String::from_utf8_lossy(file.bytes()));
                    let text = texts.collect::<Vec<_>>().join(" ");
                    applied.push(text.clone());
                    if text.contains("bad") { Err("bad text") } else { Ok(()) }
                };
                self.following.look(&mut apply).await;
            }
            applied
        }
    }

    fn write_pair(folder: &Path) {
        fs::write(folder.join("crt"), "c1").unwrap();
        fs::write(folder.join("key"), "k1").unwrap();
    }

    #[tokio::test]
    async fn files_are_applied_once_two_looks_saw_the_same_change() {
        let mut followed = Followed::start(write_pair);
        assert!(followed.looks(3).await.is_empty());
        followed.write("crt", "c2");
        assert!(followed.looks(1).await.is_empty(), "one look has seen a part of the change");
        followed.write("key", "k2");
        assert_eq!(followed.looks(3).await, ["c2 k2"]);
        // The same text in another file.
        fs::rename(followed.folder.path().join("key"), followed.folder.path().join("old")).unwrap();
        followed.write("key", "k2");
        assert!(followed.looks(3).await.is_empty());
    }

    #[tokio::test]
    async fn files_that_are_missing_too_large_or_refused_are_tried_again_when_they_change() {
        let mut followed = Followed::start(write_pair);
        fs::remove_file(followed.folder.path().join("key")).unwrap();
        assert!(followed.looks(3).await.is_empty());
        followed.write("key", "more than ten");
        assert!(followed.looks(3).await.is_empty());
        followed.write("key", "bad");
        assert_eq!(followed.looks(5).await, ["c1 bad"]);
        followed.write("key", "k3");
        assert_eq!(followed.looks(3).await, ["c1 k3"]);
    }

    #[tokio::test]
    async fn links_that_are_exchanged_all_at_once_are_followed() {
        let write = |folder: &Path, version: &str| {
            let data = folder.join(version);
            fs::create_dir(&data).unwrap();
            fs::write(data.join("crt"), format!("c{version}")).unwrap();
            fs::write(data.join("key"), format!("k{version}")).unwrap();
            symlink(&data, folder.join("new")).unwrap();
            fs::rename(folder.join("new"), folder.join("data")).unwrap();
        };
        let mut followed = Followed::start(|folder| {
            write(folder, "1");
            symlink("data/crt", folder.join("crt")).unwrap();
            symlink("data/key", folder.join("key")).unwrap();
        });
        write(followed.folder.path(), "2");
        assert_eq!(followed.looks(3).await, ["c2 k2"]);
    }
}
