//! Master keys, data keys, and the ciphers of files.

use std::fmt;

use aes::Aes256Enc;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper, StreamCipherSeek};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ctr::CtrCore;
use ctr::flavors::Ctr128BE;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{KeyError, VaultError};
use crate::key_id::KeyId;

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const NONCE_BYTES: usize = 12;
pub(crate) const TAG_BYTES: usize = 16;

pub(crate) type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// Fills bytes at random.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), VaultError> {
    SystemRandom::new().fill(bytes).map_err(|_| VaultError::NoRandomness)
}

pub(crate) fn random_key() -> Result<KeyBytes, VaultError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    fill(bytes.as_mut())?;
    Ok(bytes)
}

/// The key that opens a keyring.
pub struct MasterKey {
    bytes: KeyBytes,
    id: KeyId,
}

impl MasterKey {
    /// 32 bytes, raw or as text. `from` names where they are from, for errors.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], [`KeyError::Trivial`].
    pub fn parse(content: &[u8], from: &str) -> Result<Self, KeyError> {
        let bytes = decode(content).ok_or_else(|| KeyError::Malformed { from: from.to_owned() })?;
        if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
            return Err(KeyError::Trivial { from: from.to_owned() });
        }
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bytes.as_ref());
        let mut id = KeyId([0; 8]);
        let tag = ring::hmac::sign(&key, b"meridian master key");
        id.0.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Ok(Self { bytes, id })
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn sealing(&self) -> SealingKey {
        SealingKey::new(&self.bytes)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

fn decode(content: &[u8]) -> Option<KeyBytes> {
    let text = content.trim_ascii();
    // The first half of a key in hexadecimal, as a file that is being written may have it.
    let is_half = text.len() == KEY_BYTES && text.iter().all(u8::is_ascii_hexdigit);
    if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(content) {
        return (!is_half).then(|| Zeroizing::new(raw));
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if text.len() == 2 * KEY_BYTES {
        for (byte, digits) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
            let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
            *byte = u8::try_from(high? << 4 | low?).ok()?;
        }
        return Some(bytes);
    }
    // Whole groups of three bytes take more room than the key has.
    let mut decoded = Zeroizing::new([0; 2 * KEY_BYTES]);
    let engine = if text.ends_with(b"=") { STANDARD } else { STANDARD_NO_PAD };
    let length = engine.decode_slice(text, decoded.as_mut()).ok()?;
    *bytes = decoded.get(..length)?.try_into().ok()?;
    Some(bytes)
}

/// A key that seals short texts, each under a nonce that no other has.
pub(crate) struct SealingKey(Box<LessSafeKey>);

impl SealingKey {
    #[allow(clippy::expect_used, reason = "the length is a constant")]
    pub(crate) fn new(bytes: &KeyBytes) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_ref());
        Self(Box::new(LessSafeKey::new(key.expect("a key of this cipher has 32 bytes"))))
    }

    /// Encrypts `text` where it is, and puts the tag behind. `context` is authenticated with it.
    #[allow(clippy::expect_used, reason = "no text of ours is as long as the cipher's bound")]
    pub(crate) fn seal(&self, nonce: [u8; NONCE_BYTES], context: &[u8], text: &mut Vec<u8>) {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.0.seal_in_place_append_tag(nonce, Aad::from(context), text);
        sealed.expect("a text of less than 64 GiB can be sealed");
    }

    /// Decrypts what [`SealingKey::seal`] made, where it is. `None`: it was another key, or another
    /// text.
    pub(crate) fn open<'a>(
        &self,
        nonce: [u8; NONCE_BYTES],
        context: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(context), sealed).ok()
    }
}

/// A key of the keyring, which seals the keys of files.
pub(crate) struct DataKey {
    pub(crate) number: u32,
    pub(crate) created_ms: u64,
    pub(crate) bytes: KeyBytes,
    pub(crate) sealing: SealingKey,
}

impl DataKey {
    pub(crate) fn new(number: u32, created_ms: u64, bytes: KeyBytes) -> Self {
        let sealing = SealingKey::new(&bytes);
        Self { number, created_ms, bytes, sealing }
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.number)
    }
}

/// The cipher of one file that is read and written at any offset: AES-256 in counter mode. Its key
/// belongs to this file alone, so that the counter begins at zero.
pub struct FileCipher(Box<Aes256Enc>);

impl FileCipher {
    pub(crate) fn new(key: &KeyBytes) -> Self {
        Self(Box::new(Aes256Enc::new(GenericArray::from_slice(key.as_ref()))))
    }

    /// Encrypts or decrypts what stands at `offset` of the content.
    pub fn apply(&self, offset: u64, data: &mut [u8]) {
        let counter = GenericArray::from([0; 16]);
        let core =
            CtrCore::<Aes256Enc, Ctr128BE>::inner_iv_init(Aes256Enc::clone(&self.0), &counter);
        let mut stream = StreamCipherCoreWrapper::from_core(core);
        stream.seek(offset);
        stream.apply_keystream(data);
    }
}

impl fmt::Debug for FileCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileCipher")
    }
}

/// Takes a key out of bytes that were opened in place, and wipes those.
pub(crate) fn take_key(opened: &mut [u8]) -> Option<KeyBytes> {
    let bytes = <[u8; KEY_BYTES]>::try_from(&*opened).ok().map(Zeroizing::new);
    opened.zeroize();
    bytes
}
