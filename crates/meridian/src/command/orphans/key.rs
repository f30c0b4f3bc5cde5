//! Keys as an operator reads them: as Deno's clients mean them, or in hex.

use meridian_values::{Key, KeyPart};
use serde::Serialize;

/// One part of a key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Part {
    /// In hex.
    Bytes(String),
    String(String),
    Number(f64),
    /// In decimal.
    Bigint(String),
    Boolean(bool),
}

impl From<KeyPart> for Part {
    fn from(part: KeyPart) -> Self {
        match part {
            KeyPart::Bytes(bytes) => Self::Bytes(hex(&bytes)),
            KeyPart::Text(text) => Self::String(text),
            KeyPart::Number(number) => Self::Number(number),
            KeyPart::BigInt(integer) => Self::Bigint(integer.to_string()),
            KeyPart::Bool(truth) => Self::Boolean(truth),
        }
    }
}

/// `None` for a key that no Deno client encodes.
pub(super) fn parts(key: &[u8]) -> Option<Vec<Part>> {
    Some(Key::decode(key).ok()?.0.into_iter().map(Part::from).collect())
}

/// `[ "users", 42 ]`, or hex for a key that no Deno client encodes.
pub(super) fn text(key: &[u8]) -> String {
    match Key::decode(key) {
        Ok(decoded) if !decoded.0.is_empty() => decoded.to_string(),
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
        // ["users", new Uint8Array([1, 0, 2]), "a\0b", true, 0.5, -256n]
        let key = b"\x02users\0\x01\x01\0\xff\x02\0\x02a\0\xffb\0\x27\x21\xbf\xe0\0\0\0\0\0\0\x12\xfe\xff";
        let shown = r#"[ "users", Uint8Array(3) [ 1, 0, 2 ], "a\x00b", true, 0.5, -256n ]"#;
        assert_eq!(text(key), shown);
        let json = serde_json::to_string(&parts(b"\x02a\0\x15\x05\x01\xff\0").unwrap()).unwrap();
        assert_eq!(json, r#"[{"string":"a"},{"bigint":"5"},{"bytes":"ff"}]"#);
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
