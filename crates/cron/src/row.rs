//! The state of a cron, which its fleet shares, as it is stored: two values of an ordinary database.
//!
//! | key | value |
//! |---|---|
//! | `["meridian", "cron", name]` | [`Row`], as a string of JSON |
//! | `["meridian", "cron", name, "due"]` | `true`; it expires when [`Row::next`] is due |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of a name at most, as Deno has it.
const MAX_NAME_BYTES: usize = 64;

/// The state of a cron. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The latest tick that was claimed. It is never ahead of the time that the cluster logs.
    pub tick: u64,
    /// The tick that the second key expires at, and the only tick that can be claimed next.
    pub next: u64,
    /// Attempts of `tick` that have failed.
    pub failures: u32,
    pub state: State,
    /// The program that runs `tick`, or is about to run it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// The state of the latest tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has succeeded, or failed as often as it may.
    #[default]
    Done,
    Running,
    /// Its program is gone. Another one may run it again.
    Left,
}

/// The keys of a cron.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) row: Bytes,
    pub(crate) due: Bytes,
}

impl Keys {
    /// `None`: Deno has no cron of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let is_known = |byte: u8| {
            byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"-_".contains(&byte)
        };
        if name.len() > MAX_NAME_BYTES || !name.bytes().all(is_known) {
            return None;
        }
        // No such name needs an escape.
        let row = [b"\x02meridian\0\x02cron\0\x02", name.as_bytes(), b"\0"].concat();
        let due = [&row[..], b"\x02due\0"].concat();
        Some(Self { row: row.into(), due: due.into() })
    }
}

/// A string in V8's serialization: its version, the tag of a string of one-byte characters, and the
/// length as a varint.
const STRING: [u8; 3] = [0xff, 0x0f, b'"'];

impl Row {
    /// As a string of JSON, such that `meridian kv get` shows it.
    pub(crate) fn encode(&self) -> Bytes {
        // A struct of numbers and a text of ASCII always has a JSON.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut data = STRING.to_vec();
        let mut length = json.len();
        while length >= 0x80 {
            data.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        data.push(u8::try_from(length).unwrap_or_default());
        data.extend(json);
        data.into()
    }

    /// `None`: the bytes are no row. Another program has written them. Fields of later versions are
    /// passed over.
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let rest = data.strip_prefix(&STRING)?;
        let length_bytes = rest.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        serde_json::from_slice(rest.get(length_bytes..)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bytes_of_a_row_are_golden() {
        let row = Row {
            tick: 1_790_000_040_000,
            next: 1_790_000_100_000,
            failures: 2_000_000_000,
            state: State::Running,
            holder: Some("a".repeat(36)),
        };
        let json = format!(
            r#"{{"tick":1790000040000,"next":1790000100000,"failures":2000000000,"state":"running","holder":"{}"}}"#,
            "a".repeat(36)
        );
        let expected = [&b"\xff\x0f\"\x83\x01"[..], json.as_bytes()].concat();
        assert_eq!((json.len(), row.encode()), (131, expected.into()));
        assert_eq!(Row::decode(&row.encode()), Some(row));
        let done = Row::default();
        let json = br#"{"tick":0,"next":0,"failures":0,"state":"done"}"#;
        assert_eq!(done.encode(), [&b"\xff\x0f\"\x2f"[..], json].concat());
        assert_eq!(Row::decode(&done.encode()), Some(done));
    }

    #[test]
    fn row_of_a_later_version_with_another_field_is_read() {
        let json = br#"{"tick":7,"next":8,"failures":1,"state":"running","holder":"a","later":{}}"#;
        let bytes = [&b"\xff\x0f\"\x49"[..], json].concat();
        let row = Row::decode(&bytes).unwrap();
        assert_eq!((row.tick, row.state, row.holder.as_deref()), (7, State::Running, Some("a")));
        let unknown = br#"{"tick":7,"next":8,"failures":1,"state":"later"}"#;
        assert_eq!(Row::decode(&[&b"\xff\x0f\"\x30"[..], unknown].concat()), None);
    }

    #[test]
    fn bytes_that_are_no_row_are_none() {
        for bytes in [&b""[..], b"\xff", b"\xff\x0f\"", b"\xff\x0f\"\x02{}", b"\xff\x0f\"\xff\xff"]
        {
            assert_eq!(Row::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn keys_are_tuples_and_names_are_those_of_deno() {
        let keys = Keys::of("Clean up-2_x").unwrap();
        assert_eq!(&keys.row[..], b"\x02meridian\0\x02cron\0\x02Clean up-2_x\0");
        assert_eq!(&keys.due[..], b"\x02meridian\0\x02cron\0\x02Clean up-2_x\0\x02due\0");
        assert!(Keys::of(&"a".repeat(64)).is_some());
        for name in ["a.b", "a\0b", "é", &"a".repeat(65)] {
            assert_eq!(Keys::of(name), None, "{name}");
        }
    }
}
