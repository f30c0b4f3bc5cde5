//! Keys and values in JSON, in the form of the module `@deno/kv-utils`: each with the name of its
//! type.

use crate::date;
use crate::graph::{Array, Error, Graph, Object, ObjectId, Stored, Value, ViewKind};
use crate::key::{Key, KeyPart};
use crate::number;
use crate::text::Text;

/// The longest JSON of a value. Objects may lead to each other such that a short value has no end.
const MAX_BYTES: usize = 2 << 20;

pub fn key(key: &Key) -> String {
    let parts = key.0.iter().map(|part| match part {
        KeyPart::Bytes(bytes) => typed("Uint8Array", &quoted(&base64url(bytes))),
        KeyPart::Text(text) => typed("string", &quoted(text)),
        KeyPart::BigInt(integer) => typed("bigint", &quoted(&integer.to_string())),
        KeyPart::Number(number) => typed("number", &number_text(*number)),
        KeyPart::Bool(truth) => typed("boolean", &truth.to_string()),
    });
    format!("[{}]", parts.collect::<Vec<_>>().join(","))
}

/// `None`: the form has no way to say this value. That is so for holes and further properties of
/// arrays, boxed primitives, dates that are none, `Float16Array`, buffers that may grow, and objects
/// that lead to themselves.
pub fn value(value: &Stored) -> Option<String> {
    value_within(value, MAX_BYTES)
}

/// As [`value`]; nor where the text is longer than so many bytes, beyond which little is written.
pub fn value_within(value: &Stored, max_bytes: usize) -> Option<String> {
    let text = match value {
        Stored::U64(integer) => Some(typed("KvU64", &quoted(&integer.to_string()))),
        Stored::Bytes(bytes) => Some(typed("Uint8Array", &quoted(&base64url(bytes)))),
        Stored::V8(graph) => {
            let (within, output) = (Vec::new(), String::new());
            let mut writer = Writer { graph, max_bytes, within, output };
            writer.value(graph.root())?;
            Some(writer.output)
        }
    };
    text.filter(|text| text.len() <= max_bytes)
}

/// Bytes in the characters that need no escapes in a URL, without padding.
pub fn base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    push_base64url(&mut text, bytes);
    text
}

/// As [`base64url`], at the end of a text.
pub fn push_base64url(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        let [a, b, c] = three.map(u32::from);
        let bits = a << 16 | b << 8 | c;
        for digit in (0..=chunk.len()).map(|digit| bits >> (18 - 6 * digit) & 0x3f) {
            let digit = usize::try_from(digit).ok().and_then(|digit| DIGITS.get(digit));
            text.extend(digit.map(|digit| char::from(*digit)));
        }
    }
}

/// `None`: the text is not that of bytes in base64url, with or without padding.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.as_bytes().chunks(4) {
        let mut bits = 0;
        for digit in chunk {
            let six = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        let [_, a, b, c] = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend([a, b, c].iter().take(chunk.len().saturating_sub(1)));
    }
    (base64url(&bytes) == digits).then_some(bytes)
}

/// A string of JSON.
pub fn quoted(text: &str) -> String {
    quoted_units(&Text::from(text))
}

/// A lone surrogate is escaped.
pub(crate) fn quoted_units(text: &Text) -> String {
    let mut quoted = String::from('"');
    for unit in char::decode_utf16(text.units().iter().copied()) {
        match unit {
            Ok('"') => quoted.push_str("\\\""),
            Ok('\\') => quoted.push_str("\\\\"),
            Ok('\n') => quoted.push_str("\\n"),
            Ok('\r') => quoted.push_str("\\r"),
            Ok('\t') => quoted.push_str("\\t"),
            Ok(character) if character.is_control() => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            Ok(character) => quoted.push(character),
            Err(lone) => quoted.push_str(&format!("\\u{:04x}", lone.unpaired_surrogate())),
        }
    }
    quoted.push('"');
    quoted
}

fn typed(name: &str, value: &str) -> String {
    format!("{{\"type\":\"{name}\",\"value\":{value}}}")
}

fn number_text(number: f64) -> String {
    let text = number::to_text(number);
    if number.is_finite() { text } else { quoted(&text) }
}

struct Writer<'a> {
    graph: &'a Graph,
    max_bytes: usize,
    /// The objects that the present one is within.
    within: Vec<ObjectId>,
    output: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Option<()> {
        if self.output.len() > self.max_bytes {
            return None;
        }
        let text = match value {
            Value::Undefined => "{\"type\":\"undefined\"}".to_owned(),
            Value::Null => typed("null", "null"),
            Value::Bool(truth) => typed("boolean", &truth.to_string()),
            Value::Number(number) => typed("number", &number_text(*number)),
            Value::BigInt(integer) => typed("bigint", &quoted(&integer.to_string())),
            Value::Text(text) => typed("string", &quoted_units(text)),
            Value::Object(id) => return self.object(*id),
        };
        self.output.push_str(&text);
        Some(())
    }

    fn object(&mut self, id: ObjectId) -> Option<()> {
        if self.within.contains(&id) {
            return None;
        }
        self.within.push(id);
        let graph = self.graph;
        match graph.object(id) {
            Object::Plain(properties) => {
                self.begin("object", '{');
                for (at, (key, value)) in properties.iter().enumerate() {
                    self.separate(at);
                    self.output.push_str(&quoted_units(key));
                    self.output.push(':');
                    self.value(value)?;
                }
                self.output.push_str("}}");
            }
            Object::Array(array) => self.array(array)?,
            Object::Map(entries) => {
                self.begin("Map", '[');
                for (at, (key, value)) in entries.iter().enumerate() {
                    self.separate(at);
                    self.output.push('[');
                    self.value(key)?;
                    self.output.push(',');
                    self.value(value)?;
                    self.output.push(']');
                }
                self.output.push_str("]}");
            }
            Object::Set(members) => self.list("Set", members.iter())?,
            Object::Error(error) => self.error(error)?,
            other => self.output.push_str(&whole(graph, other)?),
        }
        self.within.pop();
        Some(())
    }

    fn begin(&mut self, name: &str, bracket: char) {
        self.output.push_str(&format!("{{\"type\":\"{name}\",\"value\":{bracket}"));
    }

    fn separate(&mut self, at: usize) {
        if at > 0 {
            self.output.push(',');
        }
    }

    fn list<'b>(&mut self, name: &str, values: impl Iterator<Item = &'b Value>) -> Option<()> {
        self.begin(name, '[');
        for (at, value) in values.enumerate() {
            self.separate(at);
            self.value(value)?;
        }
        self.output.push_str("]}");
        Some(())
    }

    fn array(&mut self, array: &Array) -> Option<()> {
        let is_whole = usize::try_from(array.length) == Ok(array.elements.len());
        if !is_whole || !array.properties.is_empty() {
            return None;
        }
        self.list("Array", array.elements.iter().map(|(_, element)| element))
    }

    fn error(&mut self, error: &Error) -> Option<()> {
        self.begin(error.kind.name(), '{');
        let message = error.message.clone().unwrap_or_default();
        self.output.push_str(&format!("\"message\":{}", quoted_units(&message)));
        if let Some(cause) = &error.cause {
            self.output.push_str(",\"cause\":");
            self.value(cause)?;
        }
        if let Some(stack) = &error.stack {
            self.output.push_str(&format!(",\"stack\":{}", quoted_units(stack)));
        }
        self.output.push_str("}}");
        Some(())
    }
}

/// An object without parts of its own.
fn whole(graph: &Graph, object: &Object) -> Option<String> {
    match object {
        Object::Date(milliseconds) => Some(typed("Date", &quoted(&date::to_text(*milliseconds)?))),
        Object::RegExp(regexp) if regexp.source.is_well_formed() => {
            Some(typed("RegExp", &quoted(&regexp.to_text())))
        }
        Object::Buffer(buffer) if buffer.max_length.is_none() => {
            Some(typed("ArrayBuffer", &quoted(&base64url(&buffer.bytes))))
        }
        Object::View(view) if view.kind != ViewKind::Float16 && view.flags == 0 => {
            Some(typed(view.kind.name(), &quoted(&base64url(graph.window(view)))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v8;

    fn of_v8(data: &[u8]) -> Option<String> {
        value(&Stored::V8(v8::read(data).unwrap()))
    }

    #[test]
    fn bytes_come_out_of_their_base64_and_out_of_no_other_text() {
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(67)).collect();
            let text = base64url(&bytes);
            assert_eq!(from_base64url(&text), Some(bytes.clone()));
            assert_eq!(from_base64url(&format!("{text}==")), Some(bytes));
        }
        for text in ["A", "AB", "AmEB=A", "%41mEA", "AmE+", "AAAAA"] {
            assert_eq!(from_base64url(text), None, "{text}");
        }
    }

    #[test]
    fn base64_has_the_characters_of_urls_and_no_padding() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"\x01", "AQ"),
            (b"\x01\x02", "AQI"),
            (b"\x01\x02\x03", "AQID"),
            (b"\xfb\xff", "-_8"),
        ] {
            assert_eq!(base64url(bytes), text);
        }
    }

    #[test]
    fn values_have_the_form_of_kv_utils() {
        let typed_object = r#"{"type":"object","value":{"a":{"type":"number","value":1}}}"#;
        assert_eq!(of_v8(b"\xff\x0fo\"\x01aI\x02{\x01").unwrap(), typed_object);
        assert_eq!(of_v8(b"\xff\x0f_").unwrap(), r#"{"type":"undefined"}"#);
        assert_eq!(
            of_v8(b"\xff\x0fN\0\0\0\0\0\0\xf0\x7f").unwrap(),
            r#"{"type":"number","value":"Infinity"}"#
        );
        assert_eq!(
            of_v8(b"\xff\x0f;I\x02_:\x02").unwrap(),
            r#"{"type":"Map","value":[[{"type":"number","value":1},{"type":"undefined"}]]}"#
        );
        // A window of two bytes over a buffer of three.
        let window = of_v8(b"\xff\x0fB\x03\x01\x02\x03VB\x01\x02\x00").unwrap();
        assert_eq!(window, r#"{"type":"Uint8Array","value":"AgM"}"#);
        assert_eq!(value(&Stored::U64(5)).unwrap(), r#"{"type":"KvU64","value":"5"}"#);
        let lone = of_v8(b"\xff\x0fc\x02\x00\xd8").unwrap();
        assert_eq!(lone, r#"{"type":"string","value":"\ud800"}"#);
    }

    #[test]
    fn what_json_cannot_say_is_not_said() {
        for data in [
            // A hole, a property of an array, a boxed number, a cycle, no date, a buffer that grows.
            &b"\xff\x0fa\x01@\x00\x01"[..],
            b"\xff\x0fA\x00\"\x01aI\x02$\x01\x00",
            b"\xff\x0fn\0\0\0\0\0\0\0\0",
            b"\xff\x0fA\x01^\x00$\x00\x01",
            b"\xff\x0fD\0\0\0\0\0\0\xf8\x7f",
            b"\xff\x0f~\x01\x02\x07",
        ] {
            assert_eq!(of_v8(data), None, "{data:?}");
        }
    }

    #[test]
    fn objects_that_share_without_end_are_given_up() {
        // Fifty levels, each of which leads to the next twice.
        let mut data = b"\xff\x0f".to_vec();
        data.extend(b"A\x02".repeat(50));
        data.extend(b"A\x00$\x00\x00");
        for level in (0..50u8).rev() {
            data.extend([b'^', level + 1, b'$', 0, 2]);
        }
        assert_eq!(of_v8(&data), None);
    }

    #[test]
    fn text_that_is_longer_than_it_may_be_is_not_made() {
        let map = v8::read(b"\xff\x0f;I\x02_:\x02").unwrap();
        for stored in [Stored::U64(5), Stored::Bytes(vec![7; 9]), Stored::V8(map)] {
            let text = value(&stored).unwrap();
            assert_eq!(value_within(&stored, text.len()).as_ref(), Some(&text));
            assert_eq!(value_within(&stored, text.len() - 1), None);
        }
    }
}
