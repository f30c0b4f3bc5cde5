//! The beginning of a file that is encrypted: 4096 bytes, so that what follows lies on the same
//! pages as it would without.
//!
//! | bytes | what |
//! |---|---|
//! | 0–15 | the magic |
//! | 16 | the format, 1 |
//! | 17 | how the content is encrypted: [`Kind`] |
//! | 18–19 | 0 |
//! | 20–23 | the number of the data key, little-endian |
//! | 24–35 | a random nonce |
//! | 36–83 | the key of the file, sealed by the data key, with bytes 0–23 authenticated |
//! | 84–4095 | 0 |

use zeroize::Zeroize;

use crate::error::VaultError;
use crate::key::{
    DataKey, KEY_BYTES, KeyBytes, NONCE_BYTES, TAG_BYTES, fill, random_key, take_key,
};

/// The length of a header.
pub const HEADER_BYTES: usize = 4096;

/// No file of RocksDB begins so: not with its first byte (a table, text), or not with its seventh
/// (the type of a record of a log or manifest). Nor does a file of ours.
const MAGIC: [u8; 16] = *b"\x89meridian vault\n";
const FORMAT: u8 = 1;
const CONTEXT_BYTES: usize = 24;
const SEALED_AT: usize = CONTEXT_BYTES + NONCE_BYTES;
/// The bytes that say something.
pub(crate) const USED_BYTES: usize = SEALED_AT + KEY_BYTES + TAG_BYTES;

/// How the content of a file is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AES-256 in counter mode, to be read at any offset: files of RocksDB.
    Stream = 1,
    /// AES-256-GCM by chunks: files that are written once, from their beginning to their end.
    Chunks = 2,
}

/// The beginning of a file, as its bytes say without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    Plain,
    /// The file ends within its header: no content of it was ever durable.
    CutShort,
    Sealed {
        number: u32,
    },
}

impl Beginning {
    /// `head`: the file's first bytes, as many as it has up to those that are used of a header.
    pub(crate) fn read(head: &[u8], file_bytes: u64) -> Self {
        let known = head.len().min(MAGIC.len());
        if known == 0 || head.get(..known) != MAGIC.get(..known) {
            return Self::Plain;
        }
        if file_bytes < HEADER_BYTES as u64 {
            return Self::CutShort;
        }
        let number = head.get(20..CONTEXT_BYTES).and_then(|bytes| bytes.try_into().ok());
        Self::Sealed { number: number.map_or(0, u32::from_le_bytes) }
    }
}

/// The header of a new file, and the file's key.
pub(crate) fn make(kind: Kind, by: &DataKey) -> Result<(Vec<u8>, KeyBytes), VaultError> {
    let key = random_key()?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend([FORMAT, kind as u8, 0, 0]);
    header.extend(by.number.to_le_bytes());
    let mut nonce = [0; NONCE_BYTES];
    fill(&mut nonce)?;
    let mut sealed = Vec::with_capacity(KEY_BYTES + TAG_BYTES);
    sealed.extend_from_slice(key.as_ref());
    by.sealing.seal(nonce, &header, &mut sealed);
    header.extend(nonce);
    header.extend(&sealed);
    header.resize(HEADER_BYTES, 0);
    Ok((header, key))
}

/// The key of a file with this header. `None` if it is damaged, or of another kind.
pub(crate) fn open(head: &[u8], kind: Kind, by: &DataKey) -> Option<KeyBytes> {
    let (context, rest) = head.split_at_checked(CONTEXT_BYTES)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>()?;
    let (sealed, _) = rest.split_first_chunk::<{ KEY_BYTES + TAG_BYTES }>()?;
    if context.get(16..18)? != [FORMAT, kind as u8] {
        return None;
    }
    let mut sealed = *sealed;
    let key = by.sealing.open(*nonce, context, &mut sealed).and_then(take_key);
    sealed.zeroize();
    key
}
