//! Files that are written once, from their beginning to their end, and read again.
//!
//! Behind its header such a file is chunks of 64 KiB, each sealed by AES-256-GCM under the key of
//! the file; only the last may be shorter, and may be empty. The nonce of a chunk is its number
//! (8 bytes, big-endian) and whether it is the last (4), so that no chunk can be left out, moved or
//! added: the construction STREAM, with a key of its own for each file in place of a prefix.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::durable::sync_name;
use crate::header::{Beginning, HEADER_BYTES, Kind, USED_BYTES};
use crate::key::{NONCE_BYTES, SealingKey, TAG_BYTES};
use crate::vault::Vault;

pub(crate) const CHUNK_BYTES: usize = 64 << 10;
const SEALED_BYTES: u64 = (CHUNK_BYTES + TAG_BYTES) as u64;

/// Behind the name of a file that [`Vault::rewrite`] has not put in its place yet.
pub const REWRITTEN: &str = ".rewritten";

/// Writes a file. Without [`FileWriter::finish`], it is cut short.
#[derive(Debug)]
pub struct FileWriter {
    form: WrittenForm,
}

#[derive(Debug)]
enum WrittenForm {
    Plain(BufWriter<File>),
    Sealed(Chunks),
}

impl FileWriter {
    pub(crate) fn create(path: &Path, vault: Option<&Vault>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let begun = vault.map(|vault| vault.begin(Kind::Chunks)).transpose();
        let form = match begun.map_err(io::Error::other)?.flatten() {
            None => WrittenForm::Plain(BufWriter::new(file)),
            Some((header, key)) => {
                file.write_all(&header)?;
                let chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
                WrittenForm::Sealed(Chunks {
                    file,
                    key: Key(SealingKey::new(&key)),
                    chunk,
                    next: Some(0),
                })
            }
        };
        Ok(Self { form })
    }

    /// Makes the file durable, if not its name.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn finish(self) -> io::Result<()> {
        match self.form {
            WrittenForm::Plain(mut file) => {
                file.flush()?;
                file.get_ref().sync_all()
            }
            WrittenForm::Sealed(mut chunks) => {
                chunks.write_out(true)?;
                chunks.file.sync_all()
            }
        }
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.form {
            WrittenForm::Plain(file) => file.write(bytes),
            WrittenForm::Sealed(chunks) => chunks.write(bytes),
        }
    }

    /// Of an encrypted file, whole chunks are written alone.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.form {
            WrittenForm::Plain(file) => file.flush(),
            WrittenForm::Sealed(_) => Ok(()),
        }
    }
}

/// A key without a word in `Debug`.
struct Key(SealingKey);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[derive(Debug)]
struct Chunks {
    file: File,
    key: Key,
    /// Not written yet: it may be the last.
    chunk: Vec<u8>,
    /// `None`: a chunk could not be written, so nothing comes after it.
    next: Option<u64>,
}

impl Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.chunk.len() == CHUNK_BYTES {
            self.write_out(false)?;
        }
        let (taken, _) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.chunk.len()));
        self.chunk.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn write_out(&mut self, is_last: bool) -> io::Result<()> {
        let failed = || io::Error::other("a chunk before could not be written");
        let number = self.next.take().ok_or_else(failed)?;
        self.key.0.seal(nonce(number, is_last), &[], &mut self.chunk);
        let written = self.file.write_all(&self.chunk);
        self.chunk.clear();
        written?;
        self.next = Some(number + 1);
        Ok(())
    }
}

fn nonce(chunk: u64, is_last: bool) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    let of = chunk.to_be_bytes().into_iter().chain([0, 0, 0, u8::from(is_last)]);
    nonce.iter_mut().zip(of).for_each(|(to, from)| *to = from);
    nonce
}

/// Reads a file, encrypted or not. Bytes that are not those that were written are an error of the
/// kind [`ErrorKind::InvalidData`], if the file is encrypted.
#[derive(Debug)]
pub struct FileReader {
    form: ReadForm,
    content_bytes: u64,
}

#[derive(Debug)]
enum ReadForm {
    Plain(BufReader<File>),
    Sealed(SealedChunks),
}

impl FileReader {
    pub(crate) fn open(path: &Path, vault: Option<&Vault>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut head = Vec::with_capacity(USED_BYTES);
        Read::by_ref(&mut file).take(USED_BYTES as u64).read_to_end(&mut head)?;
        let number = match Beginning::read(&head, length) {
            Beginning::Sealed { number } => number,
            Beginning::CutShort => return Err(invalid("it is cut short")),
            Beginning::Plain => {
                file.seek(SeekFrom::Start(0))?;
                return Ok(Self {
                    form: ReadForm::Plain(BufReader::new(file)),
                    content_bytes: length,
                });
            }
        };
        let vault = vault.ok_or_else(|| invalid("it is encrypted, and no key is configured"))?;
        let key = vault.open_header(path, &head, number, Kind::Chunks).map_err(invalid)?;
        let chunks = (length - HEADER_BYTES as u64).div_ceil(SEALED_BYTES);
        let content_bytes =
            (length - HEADER_BYTES as u64).saturating_sub(chunks * TAG_BYTES as u64);
        if chunks == 0 {
            return Err(invalid("it is cut short"));
        }
        let key = Key(SealingKey::new(&key));
        let sealed = SealedChunks { file, key, chunks, chunk: Vec::new(), held: None, position: 0 };
        Ok(Self { form: ReadForm::Sealed(sealed), content_bytes })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        match &self.form {
            ReadForm::Plain(file) => file.get_ref().metadata(),
            ReadForm::Sealed(chunks) => chunks.file.metadata(),
        }
    }

    /// Of the content.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }
}

impl Read for FileReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.form {
            ReadForm::Plain(file) => file.read(into),
            ReadForm::Sealed(chunks) => chunks.read(into),
        }
    }
}

impl Seek for FileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.form {
            ReadForm::Plain(file) => file.seek(to),
            ReadForm::Sealed(chunks) => {
                let position = match to {
                    SeekFrom::Start(position) => Some(position),
                    SeekFrom::End(offset) => self.content_bytes.checked_add_signed(offset),
                    SeekFrom::Current(offset) => chunks.position.checked_add_signed(offset),
                };
                chunks.position = position
                    .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "before the file"))?;
                Ok(chunks.position)
            }
        }
    }
}

#[derive(Debug)]
struct SealedChunks {
    file: File,
    key: Key,
    chunks: u64,
    /// The content of the chunk that is `held`.
    chunk: Vec<u8>,
    held: Option<u64>,
    position: u64,
}

impl SealedChunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let number = self.position / CHUNK_BYTES as u64;
        if into.is_empty() || number >= self.chunks {
            return Ok(0);
        }
        if self.held != Some(number) {
            self.fetch(number)?;
        }
        let within = usize::try_from(self.position % CHUNK_BYTES as u64).unwrap_or(CHUNK_BYTES);
        let rest = self.chunk.get(within..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.position += count as u64;
        Ok(count)
    }

    fn fetch(&mut self, number: u64) -> io::Result<()> {
        self.held = None;
        let is_last = number + 1 == self.chunks;
        self.chunk.resize(CHUNK_BYTES + TAG_BYTES, 0);
        let mut length = 0;
        // A read may be short before the end.
        while let Some(rest) = self.chunk.get_mut(length..).filter(|rest| !rest.is_empty()) {
            let at = HEADER_BYTES as u64 + number * SEALED_BYTES + length as u64;
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.chunk.truncate(length);
        let opened = self.key.0.open(nonce(number, is_last), &[], &mut self.chunk);
        let length = opened.map(|opened| opened.len());
        let damaged = || invalid(format!("chunk {number} is not as it was written"));
        self.chunk.truncate(length.ok_or_else(damaged)?);
        self.held = Some(number);
        Ok(())
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl Vault {
    /// Writes a file of ours again as a new one would be, and puts it in its place durably. It must
    /// be a file that nothing else writes. Where `path` is a link, the link stays.
    ///
    /// # Errors
    /// When the disk says no, or the file is damaged; it stays as it was, alone.
    /// [`ErrorKind::NotFound`] if it was deleted or replaced meanwhile.
    pub fn rewrite(&self, path: &Path) -> io::Result<()> {
        let path = &fs::canonicalize(path)?;
        let temporary = rewritten(path);
        let mut from = FileReader::open(path, Some(self))?;
        // Open until the end: no other file can have its inode.
        let source = from.metadata()?;
        let copied = self.copy(&mut from, &temporary);
        let copied = copied.and_then(|()| put_in_place(&temporary, path, &source));
        if copied.is_err() {
            // The disk may be full of it, and it may be in the clear.
            drop(fs::remove_file(&temporary));
        }
        copied?;
        sync_name(path)
    }

    fn copy(&self, from: &mut FileReader, to: &Path) -> io::Result<()> {
        let mut to = FileWriter::create(to, Some(self))?;
        io::copy(from, &mut to)?;
        to.finish()
    }
}

/// Renames a copy to the name of its source, if the source still has it: what an operator deleted
/// meanwhile does not come back.
fn put_in_place(copy: &Path, path: &Path, source: &Metadata) -> io::Result<()> {
    let present = fs::symlink_metadata(path)?;
    if (present.dev(), present.ino()) != (source.dev(), source.ino()) {
        return Err(io::Error::new(ErrorKind::NotFound, "it was replaced by another file"));
    }
    fs::rename(copy, path)
}

/// The name of a file while it is written again.
pub(crate) fn rewritten(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REWRITTEN);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::random_key;

    #[test]
    fn file_that_was_deleted_or_replaced_while_it_was_copied_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let [path, copy] =
            ["a.orphans", "a.orphans.rewritten"].map(|name| folder.path().join(name));
        fs::write(&path, "as it was").unwrap();
        fs::write(&copy, "again").unwrap();
        let opened = FileReader::open(&path, None).unwrap();
        let put = || put_in_place(&copy, &path, &opened.metadata().unwrap()).map_err(|e| e.kind());
        fs::remove_file(&path).unwrap();
        assert_eq!(put(), Err(ErrorKind::NotFound));
        assert!(!path.exists());
        fs::write(&path, "another").unwrap();
        assert_eq!(put(), Err(ErrorKind::NotFound));
        assert_eq!(fs::read(&path).unwrap(), b"another");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "as it was").unwrap();
        let opened = FileReader::open(&path, None).unwrap();
        put_in_place(&copy, &path, &opened.metadata().unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"again");
    }

    #[test]
    fn nothing_follows_a_chunk_that_could_not_be_written() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let key = Key(SealingKey::new(&random_key().unwrap()));
        let chunks = Chunks { file, key, chunk: Vec::new(), next: Some(0) };
        let mut writer = FileWriter { form: WrittenForm::Sealed(chunks) };
        let bytes = vec![1; CHUNK_BYTES + 1];
        assert_eq!(writer.write_all(&bytes).unwrap_err().kind(), ErrorKind::StorageFull);
        writer.write_all(b"more").unwrap();
        let refused = writer.finish().unwrap_err().to_string();
        assert!(refused.contains("a chunk before"), "{refused}");
    }
}
