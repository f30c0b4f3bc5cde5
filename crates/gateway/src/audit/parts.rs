//! Keys and values as text, where operators ask for them: what a request names, within a bound.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meridian_types::{
    Check, Enqueue, Mutation, MutationKind, QueueName, ReadRange, Transaction, Value, ValueEncoding,
};
use meridian_values::{Key, Stored, json, v8};
use serde_json::Value as Json;

use super::line::{Field, Line};

/// Of one line, without values and with them.
const KEYS_BYTES: usize = 32 << 10;
const VALUES_BYTES: usize = 256 << 10;

/// The parts of a request, as far as they fit.
pub(super) struct PartsText {
    has_values: bool,
    lines: Vec<Line>,
    bytes: usize,
    left_out: u64,
}

impl PartsText {
    pub(super) fn new(has_values: bool) -> Self {
        Self { has_values, lines: Vec::new(), bytes: 0, left_out: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The parts, and how many there is no room for.
    pub(super) fn finish(mut self, has_room: bool) -> (Vec<Line>, u64) {
        if !has_room {
            self.left_out += self.lines.len() as u64;
            self.lines.clear();
        }
        (self.lines, self.left_out)
    }

    fn add(&mut self, part: impl FnOnce(&mut Line, bool)) {
        let limit = if self.has_values { VALUES_BYTES } else { KEYS_BYTES };
        // Behind the first that does not fit none is worth its text.
        if self.left_out == 0 {
            let mut line = Line::default();
            part(&mut line, self.has_values);
            let bytes = line.encode().len();
            if self.bytes + bytes <= limit {
                self.bytes += bytes;
                self.lines.push(line);
                return;
            }
        }
        self.left_out += 1;
    }

    pub(super) fn key(&mut self, part: &'static str, key: &[u8]) {
        self.add(|line, _| line.set(part, key_text(key)));
    }

    pub(super) fn range(&mut self, range: &ReadRange) {
        self.add(|line, _| {
            line.set("start", key_text(&range.start));
            line.set("end", key_text(&range.end));
            line.set("limit", u64::from(range.limit));
            if range.reverse {
                line.set("reverse", true);
            }
        });
    }

    pub(super) fn queue(&mut self, name: &QueueName) {
        self.add(|line, _| line.set("queue", name.as_str().to_owned()));
    }

    pub(super) fn transaction(&mut self, transaction: &Transaction) {
        let Transaction { checks, mutations, enqueues, .. } = transaction;
        for Check { key, .. } in checks {
            self.key("check", key);
        }
        for Mutation { key, kind, .. } in mutations {
            self.mutation(key, kind);
        }
        for Enqueue { queue, payload, keys_if_undelivered, .. } in enqueues {
            self.add(|line, has_values| {
                line.set("enqueue", queue.as_str().to_owned());
                if has_values {
                    line.set("payload", Field::Json(value(ValueEncoding::V8, payload)));
                }
            });
            keys_if_undelivered.iter().for_each(|key| self.key("if_undelivered", key));
        }
    }

    fn mutation(&mut self, key: &[u8], kind: &MutationKind) {
        let (name, written) = match kind {
            MutationKind::Set(value) => ("set", Some(value)),
            MutationKind::Delete => ("delete", None),
            MutationKind::Sum { operand, .. } => ("sum", Some(operand)),
            MutationKind::Min(value) => ("min", Some(value)),
            MutationKind::Max(value) => ("max", Some(value)),
            MutationKind::SetSuffixVersionstampedKey(value) => {
                ("set_suffix_versionstamped_key", Some(value))
            }
        };
        self.add(|line, has_values| {
            line.set(name, key_text(key));
            if let Some(Value { encoding, data }) = written.filter(|_| has_values) {
                line.set("value", Field::Json(value(*encoding, data)));
            }
        });
    }
}

/// A key as programs write it; a bound of a range may have a byte behind a key; other bytes in hex.
fn key_text(bytes: &[u8]) -> String {
    if let Ok(key) = Key::decode(bytes) {
        return key.to_string();
    }
    if let Some((last, first)) = bytes.split_last()
        && let Ok(key) = Key::decode(first)
    {
        return format!("{key} {last:02x}");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As `meridian kv` writes values in lines of JSON; other bytes in base64.
fn value(encoding: ValueEncoding, data: &[u8]) -> Json {
    let stored = match encoding {
        ValueEncoding::V8 => v8::read(data).ok().map(Stored::V8),
        ValueEncoding::Le64 => data.try_into().ok().map(u64::from_le_bytes).map(Stored::U64),
        ValueEncoding::Bytes => Some(Stored::Bytes(data.to_vec())),
    };
    let text = stored.and_then(|stored| json::value(&stored));
    let json = text.and_then(|text| serde_json::from_str(&text).ok());
    json.unwrap_or_else(|| Json::String(STANDARD.encode(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_programs_write_them_and_bounds_of_ranges_with_their_byte() {
        for (bytes, text) in [
            (&b"\x02users\x00\x15\x07"[..], r#"[ "users", 7n ]"#),
            (b"\x02a\x0a\"\x00", "[ 'a\\n\"' ]"),
            (b"\x02users\x00\xff", r#"[ "users" ] ff"#),
            (b"\x02users\x00\x00", r#"[ "users" ] 00"#),
            (b"", "[]"),
            (b"\x00\xfe", "00fe"),
        ] {
            assert_eq!(key_text(bytes), text);
        }
    }

    #[test]
    fn parts_beyond_the_bound_are_counted_and_values_are_there_on_demand() {
        let set = |byte: u8| Mutation {
            key: vec![1, byte, 0].into(),
            kind: MutationKind::Set(Value {
                encoding: ValueEncoding::Bytes,
                data: vec![byte; 60_000].into(),
            }),
            expire_at_ms: 0,
        };
        let transaction =
            Transaction { mutations: (1..=9).map(set).collect(), ..Transaction::default() };
        for has_values in [false, true] {
            let mut parts = PartsText::new(has_values);
            parts.transaction(&transaction);
            assert!(parts.bytes() <= VALUES_BYTES);
            let (lines, left_out) = parts.finish(true);
            assert_eq!(lines.len() as u64 + left_out, 9);
            assert_eq!(left_out > 0, has_values);
            let first = String::from_utf8(lines[0].encode()).unwrap();
            assert!(first.starts_with(r#"{"set":"[ Uint8Array(1) [ 1 ] ]""#), "{first}");
            assert_eq!(first.contains("value"), has_values);
        }
        let mut parts = PartsText::new(false);
        parts.transaction(&transaction);
        assert_eq!(parts.finish(false).1, 9);
    }
}
