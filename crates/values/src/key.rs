//! Keys: tuples of bytes, strings, bigints, numbers and booleans, in bytes that sort as the tuples
//! do.
//!
//! Of each part first a byte says its type, and types sort in the order of those bytes. Bytes and
//! strings (UTF-8) end with `00`; a `00` inside of them is `00 ff`. A number has its eight bytes,
//! big-endian, with the sign turned so that they sort. A bigint has the length of its magnitude in
//! the byte of its type (`14` is 0, `15` one byte, `13` minus one byte), beyond eight bytes in the
//! byte behind, and bytes of a negative one are inverted.

use num_bigint::{BigInt, Sign};

const BYTES: u8 = 0x01;
const TEXT: u8 = 0x02;
const BIGINT_MIN: u8 = 0x0b;
const NEGATIVE: u8 = 0x0c;
const BIGINT_ZERO: u8 = 0x14;
const BIGINT_MAX: u8 = 0x1d;
const NUMBER: u8 = 0x21;
const FALSE: u8 = 0x26;
const TRUE: u8 = 0x27;
/// Bytes of a magnitude whose length the byte of its type says.
const SHORT: u8 = 8;

#[derive(Debug, Clone, PartialEq)]
pub enum KeyPart {
    Bytes(Vec<u8>),
    Text(String),
    BigInt(BigInt),
    Number(f64),
    Bool(bool),
}

/// A key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Key(pub Vec<KeyPart>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("byte {at} of the key begins no part of a tuple: {byte:02x}")]
    UnknownType { at: usize, byte: u8 },
    #[error("the key ends within a part that began at byte {at}")]
    Cut { at: usize },
    #[error("the string at byte {at} of the key is not UTF-8")]
    NotUtf8 { at: usize },
    #[error("a bigint of a key has at most 255 bytes, and part {part} has {bytes}")]
    TooLarge { part: usize, bytes: usize },
}

impl Key {
    pub fn encode(&self) -> Result<Vec<u8>, KeyError> {
        let mut output = Vec::new();
        for (part, value) in self.0.iter().enumerate() {
            match value {
                KeyPart::Bytes(bytes) => escaped(BYTES, bytes, &mut output),
                KeyPart::Text(text) => escaped(TEXT, text.as_bytes(), &mut output),
                KeyPart::BigInt(integer) => bigint(part, integer, &mut output)?,
                KeyPart::Number(number) => {
                    output.push(NUMBER);
                    output.extend_from_slice(&sortable(*number).to_be_bytes());
                }
                KeyPart::Bool(false) => output.push(FALSE),
                KeyPart::Bool(true) => output.push(TRUE),
            }
        }
        Ok(output)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut input = Input { bytes, at: 0, start: 0 };
        let mut parts = Vec::new();
        while let Some(part) = input.part()? {
            parts.push(part);
        }
        Ok(Self(parts))
    }
}

fn escaped(kind: u8, bytes: &[u8], output: &mut Vec<u8>) {
    output.push(kind);
    for byte in bytes {
        output.push(*byte);
        if *byte == 0 {
            output.push(0xff);
        }
    }
    output.push(0);
}

fn bigint(part: usize, integer: &BigInt, output: &mut Vec<u8>) -> Result<(), KeyError> {
    let (sign, mut magnitude) = integer.to_bytes_be();
    if sign == Sign::NoSign {
        output.push(BIGINT_ZERO);
        return Ok(());
    }
    let bytes = magnitude.len();
    let length = u8::try_from(bytes).map_err(|_| KeyError::TooLarge { part, bytes })?;
    let is_negative = sign == Sign::Minus;
    match (length <= SHORT, is_negative) {
        (true, false) => output.push(BIGINT_ZERO + length),
        (true, true) => output.push(BIGINT_ZERO - length),
        (false, false) => output.extend([BIGINT_MAX, length]),
        (false, true) => output.extend([BIGINT_MIN, !length]),
    }
    if is_negative {
        magnitude.iter_mut().for_each(|byte| *byte = !*byte);
    }
    output.extend_from_slice(&magnitude);
    Ok(())
}

/// All NaNs of a sign are one key.
fn sortable(number: f64) -> u64 {
    let number = if number.is_nan() { f64::NAN.copysign(number) } else { number };
    let bits = number.to_bits();
    if number.is_sign_negative() { !bits } else { bits ^ (1 << 63) }
}

fn from_sortable(bits: u64) -> f64 {
    f64::from_bits(if bits >> 63 == 0 { !bits } else { bits ^ (1 << 63) })
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the present part began.
    start: usize,
}

impl<'a> Input<'a> {
    fn part(&mut self) -> Result<Option<KeyPart>, KeyError> {
        self.start = self.at;
        let Some(&kind) = self.bytes.get(self.at) else { return Ok(None) };
        self.at += 1;
        Ok(Some(match kind {
            BYTES => KeyPart::Bytes(self.unescaped()?),
            TEXT => {
                let at = self.start;
                let text = String::from_utf8(self.unescaped()?);
                KeyPart::Text(text.map_err(|_| KeyError::NotUtf8 { at })?)
            }
            NUMBER => KeyPart::Number(from_sortable(u64::from_be_bytes(self.array()?))),
            FALSE => KeyPart::Bool(false),
            TRUE => KeyPart::Bool(true),
            BIGINT_MAX => {
                let [length] = self.array()?;
                KeyPart::BigInt(self.bigint(Sign::Plus, length)?)
            }
            BIGINT_MIN => {
                let [length] = self.array()?;
                KeyPart::BigInt(self.bigint(Sign::Minus, !length)?)
            }
            NEGATIVE..BIGINT_ZERO => KeyPart::BigInt(self.bigint(Sign::Minus, BIGINT_ZERO - kind)?),
            BIGINT_ZERO..BIGINT_MAX => {
                KeyPart::BigInt(self.bigint(Sign::Plus, kind - BIGINT_ZERO)?)
            }
            byte => return Err(KeyError::UnknownType { at: self.start, byte }),
        }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], KeyError> {
        let cut = KeyError::Cut { at: self.start };
        let end = self.at.checked_add(length).ok_or(cut)?;
        let taken = self.bytes.get(self.at..end).ok_or(cut)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], KeyError> {
        self.take(LENGTH)?.try_into().map_err(|_| KeyError::Cut { at: self.start })
    }

    fn unescaped(&mut self) -> Result<Vec<u8>, KeyError> {
        let mut output = Vec::new();
        loop {
            let [byte] = self.array()?;
            if byte == 0 {
                if self.bytes.get(self.at) != Some(&0xff) {
                    return Ok(output);
                }
                self.at += 1;
            }
            output.push(byte);
        }
    }

    fn bigint(&mut self, sign: Sign, length: u8) -> Result<BigInt, KeyError> {
        let magnitude = self.take(length.into())?;
        Ok(match sign {
            Sign::Minus => {
                let inverted: Vec<u8> = magnitude.iter().map(|byte| !byte).collect();
                BigInt::from_bytes_be(sign, &inverted)
            }
            _ => BigInt::from_bytes_be(sign, magnitude),
        })
    }
}

/// The keys that begin with `prefix` and have more parts: from, and up to.
pub fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    ([prefix, &[0x00]].concat(), [prefix, &[0xff]].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn part() -> impl Strategy<Value = KeyPart> {
        let bytes =
            proptest::collection::vec(prop_oneof![any::<u8>(), proptest::strategy::Just(0)], 0..12);
        let magnitude = proptest::collection::vec(any::<u8>(), 0..20);
        let bigint = (any::<bool>(), magnitude).prop_map(|(minus, magnitude)| {
            BigInt::from_bytes_be(if minus { Sign::Minus } else { Sign::Plus }, &magnitude)
        });
        prop_oneof![
            bytes.prop_map(KeyPart::Bytes),
            any::<String>().prop_map(KeyPart::Text),
            bigint.prop_map(KeyPart::BigInt),
            any::<f64>().prop_filter("equal to itself", |n| !n.is_nan()).prop_map(KeyPart::Number),
            any::<bool>().prop_map(KeyPart::Bool),
        ]
    }

    fn type_order(part: &KeyPart) -> u8 {
        match part {
            KeyPart::Bytes(_) => 0,
            KeyPart::Text(_) => 1,
            KeyPart::BigInt(_) => 2,
            KeyPart::Number(_) => 3,
            KeyPart::Bool(_) => 4,
        }
    }

    fn compare(a: &KeyPart, b: &KeyPart) -> std::cmp::Ordering {
        match (a, b) {
            (KeyPart::Bytes(a), KeyPart::Bytes(b)) => a.cmp(b),
            (KeyPart::Text(a), KeyPart::Text(b)) => a.cmp(b),
            (KeyPart::BigInt(a), KeyPart::BigInt(b)) => a.cmp(b),
            (KeyPart::Number(a), KeyPart::Number(b)) => a.total_cmp(b),
            (KeyPart::Bool(a), KeyPart::Bool(b)) => a.cmp(b),
            (a, b) => type_order(a).cmp(&type_order(b)),
        }
    }

    proptest! {
        #[test]
        fn keys_survive_and_sort_as_their_parts(
            a in proptest::collection::vec(part(), 0..4),
            b in proptest::collection::vec(part(), 0..4),
        ) {
            let (key_a, key_b) = (Key(a.clone()), Key(b.clone()));
            let (bytes_a, bytes_b) = (key_a.encode().unwrap(), key_b.encode().unwrap());
            prop_assert_eq!(Key::decode(&bytes_a).unwrap(), key_a);
            let parts = a.iter().zip(&b).map(|(a, b)| compare(a, b));
            let order = parts.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then);
            prop_assert_eq!(bytes_a.cmp(&bytes_b), order.then(a.len().cmp(&b.len())));
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(key) = Key::decode(&bytes) {
                key.encode().unwrap();
            }
        }
    }

    #[test]
    fn broken_keys_are_refused_with_the_place() {
        for (bytes, expected) in [
            (&[0x03][..], "byte 0 of the key begins no part of a tuple: 03"),
            (&[0x27, 0x02, 0x61], "the key ends within a part that began at byte 1"),
            (&[0x02, 0xc3, 0x00], "the string at byte 0 of the key is not UTF-8"),
            (&[0x21, 0x00], "the key ends within a part that began at byte 0"),
            (&[0x1d, 0xff, 0x00], "the key ends within a part that began at byte 0"),
            (&[0x0b], "the key ends within a part that began at byte 0"),
        ] {
            assert_eq!(Key::decode(bytes).unwrap_err().to_string(), expected);
        }
        let large = Key(vec![KeyPart::Bool(true), KeyPart::BigInt(BigInt::from(1) << 2040)]);
        assert_eq!(
            large.encode().unwrap_err().to_string(),
            "a bigint of a key has at most 255 bytes, and part 1 has 256"
        );
    }

    #[test]
    fn prefix_has_its_children_and_not_itself() {
        let prefix = Key(vec![KeyPart::Text("a".to_owned())]).encode().unwrap();
        let child = Key(vec![KeyPart::Text("a".to_owned()), KeyPart::Bool(true)]).encode().unwrap();
        let sibling = Key(vec![KeyPart::Text("a\0".to_owned())]).encode().unwrap();
        let (start, end) = prefix_range(&prefix);
        assert!((&start..&end).contains(&&child));
        assert!(!(&start..&end).contains(&&prefix) && !(&start..&end).contains(&&sibling));
    }
}
