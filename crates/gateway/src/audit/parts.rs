//! Keys and values as text, where operators ask for them: what a request names, within a bound. The
//! text is all that is kept of them, so that the bound is one of memory, too.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meridian_types::{
    Check, Enqueue, Mutation, MutationKind, QueueName, ReadRange, Transaction, Value, ValueEncoding,
};
use meridian_values::{Key, Stored, json, v8};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::line::{Field, Line};

/// Of one line, without values and with them.
const KEYS_BYTES: usize = 32 << 10;
const VALUES_BYTES: usize = 256 << 10;
/// Values within each other. Those that read lines take 128 levels of JSON, with those of the line.
const MAX_LEVELS: u32 = 120;

/// The parts of a request, as far as they fit.
pub(super) struct PartsText {
    has_values: bool,
    /// JSON, with commas in between.
    text: String,
    parts: u64,
    left_out: u64,
}

impl PartsText {
    pub(super) fn new(has_values: bool) -> Self {
        Self { has_values, text: String::new(), parts: 0, left_out: 0 }
    }

    /// Of [`PartsText::finish`].
    pub(super) fn bytes(&self) -> usize {
        self.text.len() + "[]".len()
    }

    /// A list of the parts, and how many there is no room for.
    pub(super) fn finish(self, has_room: bool) -> (String, u64) {
        let Self { text, parts, left_out, .. } = self;
        match has_room {
            true => (format!("[{text}]"), left_out),
            false => ("[]".to_owned(), left_out + parts),
        }
    }

    /// `part` is given the bytes that are left for a value, if values are wanted.
    fn add(&mut self, part: impl FnOnce(&mut Line, Option<usize>)) {
        let limit = if self.has_values { VALUES_BYTES } else { KEYS_BYTES };
        // Behind the first that does not fit none is worth its text.
        if self.left_out == 0 {
            let left = limit.saturating_sub(self.bytes() + ",".len());
            let mut line = Line::default();
            part(&mut line, self.has_values.then_some(left));
            let part = line.encode_part();
            if part.len() <= left
                && let Ok(part) = std::str::from_utf8(&part)
            {
                if self.parts > 0 {
                    self.text.push(',');
                }
                self.text.push_str(part);
                self.parts += 1;
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
            self.add(|line, left| {
                line.set("enqueue", queue.as_str().to_owned());
                if let Some(left) = left {
                    line.set("payload", Field::Json(value(ValueEncoding::V8, payload, left)));
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
        self.add(|line, left| {
            line.set(name, key_text(key));
            if let (Some(Value { encoding, data }), Some(left)) = (written, left) {
                line.set("value", Field::Json(value(*encoding, data, left)));
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

/// As `meridian kv` writes values in lines of JSON, if that takes no more bytes; else in base64, as
/// other bytes.
fn value(encoding: ValueEncoding, data: &[u8], max_bytes: usize) -> String {
    let stored = match encoding {
        ValueEncoding::V8 => v8::read(data).ok().map(Stored::V8),
        ValueEncoding::Le64 => data.try_into().ok().map(u64::from_le_bytes).map(Stored::U64),
        ValueEncoding::Bytes => Some(Stored::Bytes(data.to_vec())),
    };
    let text = stored.and_then(|stored| json::value_within(&stored, max_bytes));
    let text = text.filter(|text| is_readable(text));
    text.unwrap_or_else(|| format!("\"{}\"", STANDARD.encode(data)))
}

/// Whether those that read lines make something of it: of halves of characters they do not, nor of
/// what is too deep.
fn is_readable(text: &str) -> bool {
    let mut reader = serde_json::Deserializer::from_str(text);
    Levels(MAX_LEVELS).deserialize(&mut reader).is_ok() && reader.end().is_ok()
}

/// Reads JSON of so many levels, and keeps nothing of it.
#[derive(Clone, Copy)]
struct Levels(u32);

impl Levels {
    fn below<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("it is too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Levels {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Levels {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while elements.next_element_seed(below)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut properties: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while properties.next_entry_seed(below, below)?.is_some() {}
        Ok(())
    }
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
            let bytes = parts.bytes();
            let (text, left_out) = parts.finish(true);
            assert_eq!(text.len(), bytes);
            let parts: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            assert_eq!(parts.len() as u64 + left_out, 9);
            assert_eq!(left_out > 0, has_values);
            assert_eq!(parts[0]["set"], "[ Uint8Array(1) [ 1 ] ]");
            assert_eq!(parts[0].get("value").is_some(), has_values);
        }
        let mut parts = PartsText::new(false);
        parts.transaction(&transaction);
        assert_eq!(parts.finish(false).1, 9);
    }

    #[test]
    fn value_that_is_too_deep_or_half_a_character_is_in_base64_so_that_its_line_can_be_read() {
        let nested = |levels| [&b"\xff\x0f"[..], &b"A\x01".repeat(levels), b"_"].concat();
        let ends = |levels| b"$\x00\x01".repeat(levels);
        for (data, is_shown) in [
            ([nested(50), ends(50)].concat(), true),
            ([nested(62), ends(62)].concat(), false),
            (b"\xff\x0fc\x02\x00\xd8".to_vec(), false),
        ] {
            let value = Value { encoding: ValueEncoding::V8, data: data.into() };
            let mut parts = PartsText::new(true);
            parts.mutation(b"\x02a\x00", &MutationKind::Set(value));
            let line = format!("{{\"parts\":{}}}", parts.finish(true).0);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["parts"][0]["value"].is_object(), is_shown, "{line}");
        }
    }
}
