//! The keys of a run: `[prefix, number]`, encoded as Deno encodes two strings, all of one length.

use bytes::Bytes;

/// Digits of a key's number.
pub const DIGITS: usize = 10;
const STRING_TAG: u8 = 0x02;
const STRING_END: u8 = 0x00;

#[derive(Debug, Clone)]
pub struct KeySpace {
    prefix: String,
    count: u32,
}

impl KeySpace {
    /// `prefix` holds no zero byte (the options check it), so it needs no escape.
    pub fn new(prefix: &str, count: u32) -> Self {
        Self { prefix: prefix.to_owned(), count }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn key(&self, index: u32) -> Bytes {
        let mut key = Vec::with_capacity(self.prefix.len() + DIGITS + 4);
        key.push(STRING_TAG);
        key.extend_from_slice(self.prefix.as_bytes());
        key.push(STRING_END);
        key.push(STRING_TAG);
        let mut digits = [0; DIGITS];
        write_digits(&mut digits, index);
        key.extend_from_slice(&digits);
        key.push(STRING_END);
        key.into()
    }

    /// A key after every key of this prefix, and before those of any later prefix.
    pub fn end(&self) -> Bytes {
        [&[STRING_TAG], self.prefix.as_bytes(), &[STRING_END, 0xff]].concat().into()
    }

    /// The offset of the digits in a key.
    pub fn digits_offset(&self) -> usize {
        self.prefix.len() + 3
    }
}

/// Fills `digits` with the decimal number, with leading zeros.
pub fn write_digits(digits: &mut [u8], number: u32) {
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_as_denos() {
        let space = KeySpace::new("b", 100);
        assert_eq!(space.key(42).as_ref(), b"\x02b\x00\x020000000042\x00");
        assert_eq!(&space.key(42)[space.digits_offset()..][..DIGITS], b"0000000042");
        assert_eq!(space.end().as_ref(), b"\x02b\x00\xff");
        assert!(
            space.key(u32::MAX) < space.end() && space.end() < KeySpace::new("b-hot", 1).key(0)
        );
    }
}
