//! The keys below one key.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Never the first byte of a part of a key: behind the zero byte that ends a text or a byte array it
/// says that the part goes on.
const GOES_ON: u8 = 0xff;

/// All keys that begin with the parts of one key, that key among them. `["a"]` holds `["a"]` and
/// `["a", 1]`, and neither `["ab"]` nor `["a\0"]`, whose bytes begin as those of `["a"]`.
///
/// So it is the range of bytes from the encoded key, up to the encoded key with `ff` behind it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPrefix(Bytes);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyPrefix {
    #[error("an empty prefix is no limit: leave it out")]
    Empty,
    #[error("a prefix has at most {} bytes as an encoded key", KeyPrefix::MAX_BYTES)]
    TooLong,
    #[error("a prefix is written as hexadecimal digits")]
    Digits,
}

impl KeyPrefix {
    pub const MAX_BYTES: usize = 512;

    /// Of an encoded key.
    ///
    /// # Errors
    /// [`InvalidKeyPrefix`]: it is empty or too long.
    pub fn new(encoded: impl Into<Bytes>) -> Result<Self, InvalidKeyPrefix> {
        let encoded = encoded.into();
        match encoded.len() {
            0 => Err(InvalidKeyPrefix::Empty),
            1..=Self::MAX_BYTES => Ok(Self(encoded)),
            _ => Err(InvalidKeyPrefix::TooLong),
        }
    }

    /// The key, encoded.
    pub fn key(&self) -> &Bytes {
        &self.0
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key.strip_prefix(&self.0[..]).is_some_and(|rest| rest.first() != Some(&GOES_ON))
    }

    /// Whether it has all keys from `start` on before `end`. A range without keys has to lie here,
    /// too.
    pub fn contains_range(&self, start: &[u8], end: &[u8]) -> bool {
        let ends_here = end
            .strip_prefix(&self.0[..])
            .is_some_and(|rest| rest.first() != Some(&GOES_ON) || rest.len() == 1);
        *start >= self.0[..] && start <= end && ends_here
    }
}

impl fmt::Debug for KeyPrefix {
    /// Its size alone: keys are in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPrefix({} bytes)", self.0.len())
    }
}

impl Serialize for KeyPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for KeyPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        let parsed = bytes.ok_or(InvalidKeyPrefix::Digits).and_then(Self::new);
        parsed.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `["a"]`.
    const A: &[u8] = b"\x02a\x00";

    fn a() -> KeyPrefix {
        KeyPrefix::new(A).unwrap()
    }

    fn with(rest: &[u8]) -> Vec<u8> {
        [A, rest].concat()
    }

    #[test]
    fn prefix_holds_its_key_and_keys_with_more_parts() {
        for key in [with(b""), with(b"\x02b\x00"), with(b"\x27"), with(b"\x01\xff\x00")] {
            assert!(a().contains(&key), "{key:?}");
        }
    }

    #[test]
    fn prefix_ends_at_the_boundary_of_a_part() {
        // ["ab"], ["a\0"], ["a\0b"], ["A"], a part of another type, and less than the prefix.
        let zero = with(b"\xff\x00");
        for key in
            [b"\x02ab\x00", &zero[..], &with(b"\xffb\x00"), b"\x02A\x00", b"\x01a\x00", b"\x02a"]
        {
            assert!(!a().contains(key), "{key:?}");
            assert!(!a().contains_range(key, key), "{key:?}");
        }
        assert!(!a().contains(b""));
    }

    #[test]
    fn range_lies_within_a_prefix_or_not() {
        // As clients list a prefix, read one key, and go on behind a key.
        for (start, end) in [
            (with(b"\x00"), with(b"\xff")),
            (with(b""), with(b"\xff")),
            (with(b""), with(b"\x00")),
            (with(b"\x02b\x00\x00"), with(b"\xff")),
            (with(b"\x02b\x00"), with(b"\x02b\x00\xff")),
            (with(b""), with(b"")),
        ] {
            assert!(a().contains_range(&start, &end), "{start:?} to {end:?}");
        }
        for (start, end) in [
            (b"".to_vec(), b"".to_vec()),
            (b"".to_vec(), vec![0xff; 2048]),
            (b"\x02a".to_vec(), with(b"\xff")),
            (with(b"\x00"), with(b"\xff\x00")),
            (with(b"\x00"), b"\x02b\x00".to_vec()),
            (with(b"\xff\x00"), with(b"\xff\x00")),
            (with(b"\x02b\x00"), with(b"\x02a\x00")),
            (b"\x02b\x00".to_vec(), b"\x02b\x00\xff".to_vec()),
        ] {
            assert!(!a().contains_range(&start, &end), "{start:?} to {end:?}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_keys_are_not_shown() {
        assert_eq!(KeyPrefix::new(Bytes::new()), Err(InvalidKeyPrefix::Empty));
        let long = vec![7; KeyPrefix::MAX_BYTES + 1];
        assert_eq!(KeyPrefix::new(long), Err(InvalidKeyPrefix::TooLong));
        assert_eq!(format!("{:?}", a()), "KeyPrefix(3 bytes)");
    }
}
