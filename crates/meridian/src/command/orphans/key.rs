//! Keys as Deno's clients encode them: a sequence of parts, each a tag and a value, whose bytes
//! sort as the values do.

use std::fmt;

use serde::Serialize;

const BYTES: u8 = 0x01;
const STRING: u8 = 0x02;
/// Integers: `ZERO` plus or minus the length of up to eight bytes; beyond, the length follows.
const NEGATIVE_LONG: u8 = 0x0b;
const NEGATIVE: u8 = 0x0c;
const ZERO: u8 = 0x14;
const POSITIVE_LONG: u8 = 0x1d;
const NUMBER: u8 = 0x21;
const FALSE: u8 = 0x26;
const TRUE: u8 = 0x27;
/// After a zero byte: the zero is part of the value. A zero byte without it ends bytes and strings.
const ESCAPE: u8 = 0xff;

/// One part of a key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Part {
    /// In hex.
    Bytes(String),
    String(String),
    Number(f64),
    /// In decimal, or in hex (`0x..`) beyond 128 bits.
    Bigint(String),
    Boolean(bool),
}

/// `None` for a key that no Deno client encodes.
pub(super) fn parts(mut key: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    while let Some((tag, rest)) = key.split_first() {
        let (part, rest) = part(*tag, rest)?;
        parts.push(part);
        key = rest;
    }
    Some(parts)
}

fn part(tag: u8, rest: &[u8]) -> Option<(Part, &[u8])> {
    match tag {
        BYTES => escaped(rest).map(|(bytes, rest)| (Part::Bytes(hex(&bytes)), rest)),
        STRING => {
            let (bytes, rest) = escaped(rest)?;
            Some((Part::String(String::from_utf8(bytes).ok()?), rest))
        }
        NUMBER => {
            let (bits, rest) = rest.split_first_chunk::<8>()?;
            let bits = u64::from_be_bytes(*bits);
            // The encoding flips bits so that the bytes sort as the numbers do.
            let bits = if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits };
            Some((Part::Number(f64::from_bits(bits)), rest))
        }
        FALSE => Some((Part::Boolean(false), rest)),
        TRUE => Some((Part::Boolean(true), rest)),
        POSITIVE_LONG => {
            let (length, rest) = rest.split_first()?;
            bigint(rest, usize::from(*length), false)
        }
        NEGATIVE_LONG => {
            let (length, rest) = rest.split_first()?;
            bigint(rest, usize::from(!*length), true)
        }
        ZERO..POSITIVE_LONG => bigint(rest, usize::from(tag - ZERO), false),
        NEGATIVE..ZERO => bigint(rest, usize::from(ZERO - tag), true),
        _ => None,
    }
}

/// The bytes up to the first zero byte that is not escaped.
fn escaped(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut bytes = Vec::new();
    loop {
        match rest {
            [0, ESCAPE, behind @ ..] => {
                bytes.push(0);
                rest = behind;
            }
            [0, behind @ ..] => return Some((bytes, behind)),
            [byte, behind @ ..] => {
                bytes.push(*byte);
                rest = behind;
            }
            [] => return None,
        }
    }
}

/// Big-endian; every bit of a negative number is flipped.
fn bigint(rest: &[u8], length: usize, negative: bool) -> Option<(Part, &[u8])> {
    let (bytes, rest) = rest.split_at_checked(length)?;
    let bytes: Vec<u8> = bytes.iter().map(|byte| if negative { !byte } else { *byte }).collect();
    let sign = if negative { "-" } else { "" };
    let text = if length <= 16 {
        bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte)).to_string()
    } else {
        format!("0x{}", hex(&bytes))
    };
    Some((Part::Bigint(format!("{sign}{text}")), rest))
}

impl fmt::Display for Part {
    /// In the notation of a program.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(hex) => write!(f, "bytes {hex}"),
            Self::String(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bigint(number) => write!(f, "{number}n"),
            Self::Boolean(truth) => write!(f, "{truth}"),
        }
    }
}

/// `["users", 42]`, or hex for a key that no Deno client encodes.
pub(super) fn text(key: &[u8]) -> String {
    match parts(key) {
        Some(parts) if !parts.is_empty() => {
            let parts: Vec<String> = parts.iter().map(Part::to_string).collect();
            format!("[{}]", parts.join(", "))
        }
        _ => format!("hex {}", hex(key)),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_deno_are_read() {
        // ["users", new Uint8Array([1, 0, 2]), "a\0b", true, false]
        let key = b"\x02users\0\x01\x01\0\xff\x02\0\x02a\0\xffb\0\x27\x26";
        assert_eq!(text(key), r#"["users", bytes 010002, "a\u0000b", true, false]"#);
        // [1, -1, 0.5]
        let key =
            b"\x21\xbf\xf0\0\0\0\0\0\0\x21\x40\x0f\xff\xff\xff\xff\xff\xff\x21\xbf\xe0\0\0\0\0\0\0";
        assert_eq!(text(key), "[1, -1, 0.5]");
        // [0n, 255n, -1n, -256n, 2n ** 64n, -(2n ** 64n)]
        let key = [
            b"\x14".as_slice(),
            b"\x15\xff",
            b"\x13\xfe",
            b"\x12\xfe\xff",
            b"\x1d\x09\x01\0\0\0\0\0\0\0\0",
            b"\x0b\xf6\xfe\xff\xff\xff\xff\xff\xff\xff\xff",
        ];
        assert_eq!(
            text(&key.concat()),
            "[0n, 255n, -1n, -256n, 18446744073709551616n, -18446744073709551616n]"
        );
        let long = [b"\x1d\x11".as_slice(), &[0xab; 17]].concat();
        assert_eq!(text(&long), format!("[0x{}n]", "ab".repeat(17)));
        let json = serde_json::to_string(&parts(b"\x02a\0\x15\x05").unwrap()).unwrap();
        assert_eq!(json, r#"[{"string":"a"},{"bigint":"5"}]"#);
    }

    #[test]
    fn keys_in_another_encoding_are_shown_in_hex() {
        for key in [
            b"".as_slice(),
            b"\x02open",
            b"\x99",
            b"\x21\0",
            b"\x15",
            b"\x02\xff\xfe\0",
            b"\x1d\x05\x01",
        ] {
            assert_eq!(text(key), format!("hex {}", hex(key)));
        }
    }
}
