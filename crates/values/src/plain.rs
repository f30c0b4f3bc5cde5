//! Values as JSON by itself, for programs that know nothing of JavaScript: as `JSON.stringify` has
//! them, and where that has no way or forgets something, as near as JSON comes.

use crate::date;
use crate::graph::{Array, Graph, Object, ObjectId, Value};
use crate::json::{base64url, quoted};
use crate::number;
use crate::text::Text;
use crate::v8::MAX_DEPTH;

/// A value in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    pub json: String,
    /// `JSON.parse` makes the value of it, and nothing is lost.
    pub is_exact: bool,
}

/// `None`: the JSON would be longer than `max_bytes`, take too long to write, or have values within
/// values deeper than [`MAX_DEPTH`]. Objects may lead to each other such that a short value has no
/// end, and is deeper than its bytes.
///
/// | of JavaScript | in JSON |
/// |---|---|
/// | `undefined` | left out of an object, else `null` |
/// | a bigint | its digits in a string |
/// | NaN and the infinities, holes of arrays, objects within themselves | `null` |
/// | a `Date` | a string in ISO 8601; an invalid one is `null` |
/// | a `Map`; a `Set` | an array of pairs; an array |
/// | a buffer, and a view of one | a string in base64url |
/// | an `Error` | an object with its `name` and `message` |
/// | a `RegExp` | a string |
/// | a boxed primitive | the primitive |
/// | a lone surrogate in a string | the replacement character |
#[must_use]
pub fn value(graph: &Graph, max_bytes: usize) -> Option<Plain> {
    let steps = max_bytes;
    let within = Vec::new();
    let mut writer =
        Writer { graph, within, output: String::new(), max_bytes, steps, is_exact: true };
    writer.value(graph.root())?;
    let Writer { output, is_exact, .. } = writer;
    (output.len() <= max_bytes).then_some(Plain { json: output, is_exact })
}

struct Writer<'a> {
    graph: &'a Graph,
    /// The objects that the present one is within.
    within: Vec<ObjectId>,
    output: String,
    max_bytes: usize,
    /// Values that may be looked at still: those that are left out have no bytes.
    steps: usize,
    is_exact: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Option<()> {
        self.step()?;
        match value {
            Value::Null => self.output.push_str("null"),
            Value::Bool(truth) => self.output.push_str(if *truth { "true" } else { "false" }),
            // Also a minus before zero, which `JSON.stringify` leaves out.
            Value::Number(number) if number.is_finite() => {
                self.output.push_str(&number::to_text(*number));
            }
            Value::Undefined | Value::Number(_) => self.inexact("null"),
            Value::BigInt(integer) => self.inexact(&quoted(&integer.to_string())),
            Value::Text(text) => self.text(text),
            Value::Object(id) => return self.object(*id),
        }
        Some(())
    }

    fn step(&mut self) -> Option<()> {
        self.steps = self.steps.checked_sub(1)?;
        (self.output.len() <= self.max_bytes).then_some(())
    }

    fn inexact(&mut self, json: &str) {
        self.is_exact = false;
        self.output.push_str(json);
    }

    fn text(&mut self, text: &Text) {
        self.is_exact &= text.is_well_formed();
        self.output.push_str(&quoted(&text.to_string_lossy()));
    }

    fn object(&mut self, id: ObjectId) -> Option<()> {
        if self.within.contains(&id) {
            self.inexact("null");
            return Some(());
        }
        if self.within.len() >= MAX_DEPTH {
            return None;
        }
        self.within.push(id);
        let graph = self.graph;
        match graph.object(id) {
            Object::Plain(properties) => self.properties(properties)?,
            Object::Array(array) => self.array(array)?,
            Object::Map(entries) => self.pairs(entries)?,
            Object::Set(members) => {
                self.is_exact = false;
                self.list(members.iter())?;
            }
            Object::Boxed(value) => {
                self.is_exact = false;
                self.value(value)?;
            }
            Object::Date(milliseconds) => match date::to_text(*milliseconds) {
                Some(text) => self.inexact(&quoted(&text)),
                None => self.inexact("null"),
            },
            Object::RegExp(regexp) => self.inexact(&quoted(&regexp.to_text())),
            Object::Buffer(buffer) => self.inexact(&quoted(&base64url(&buffer.bytes))),
            Object::View(view) => self.inexact(&quoted(&base64url(graph.window(view)))),
            Object::Error(error) => {
                self.inexact(&format!("{{\"name\":{},\"message\":", quoted(error.kind.name())));
                self.text(&error.message.clone().unwrap_or_default());
                self.output.push('}');
            }
        }
        self.within.pop();
        Some(())
    }

    fn properties(&mut self, properties: &[(Text, Value)]) -> Option<()> {
        self.output.push('{');
        let mut separator = "";
        for (name, value) in properties {
            if *value == Value::Undefined {
                self.is_exact = false;
                self.step()?;
                continue;
            }
            self.output.push_str(separator);
            self.text(name);
            self.output.push(':');
            self.value(value)?;
            separator = ",";
        }
        self.output.push('}');
        Some(())
    }

    fn array(&mut self, array: &Array) -> Option<()> {
        let is_whole = usize::try_from(array.length) == Ok(array.elements.len());
        self.is_exact &= is_whole && array.properties.is_empty();
        let mut elements = array.elements.iter().peekable();
        let hole = Value::Undefined;
        self.list((0..array.length).map(|index| {
            elements.next_if(|(at, _)| *at == index).map_or(&hole, |(_, element)| element)
        }))
    }

    fn list<'b>(&mut self, values: impl Iterator<Item = &'b Value>) -> Option<()> {
        self.output.push('[');
        for (at, value) in values.enumerate() {
            if at > 0 {
                self.output.push(',');
            }
            self.value(value)?;
        }
        self.output.push(']');
        Some(())
    }

    fn pairs(&mut self, entries: &[(Value, Value)]) -> Option<()> {
        self.inexact("[");
        for (at, (key, value)) in entries.iter().enumerate() {
            if at > 0 {
                self.output.push(',');
            }
            self.list([key, value].into_iter())?;
        }
        self.output.push(']');
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Stored;
    use crate::{literal, v8};

    fn of(text: &str) -> (String, bool) {
        let Stored::V8(graph) = literal::parse(text).unwrap() else { panic!("{text}") };
        // As it is stored.
        let graph = v8::read(&v8::write(&graph)).unwrap();
        let Plain { json, is_exact } = value(&graph, 1 << 20).unwrap();
        (json, is_exact)
    }

    #[test]
    fn value_that_json_has_is_written_exactly() {
        for (text, json) in [
            ("null", "null"),
            ("true", "true"),
            ("-1.5e300", "-1.5e+300"),
            ("-0", "-0"),
            ("'a\"\\n\u{e9}'", "\"a\\\"\\n\u{e9}\""),
            ("[]", "[]"),
            ("{ a: [1, { b: 'x' }], 'c d': {} }", r#"{"a":[1,{"b":"x"}],"c d":{}}"#),
        ] {
            assert_eq!(of(text), (json.to_owned(), true), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok());
        }
    }

    #[test]
    fn value_that_json_lacks_is_written_as_near_as_it_comes() {
        for (text, json) in [
            ("undefined", "null"),
            ("NaN", "null"),
            ("12345678901234567890n", "\"12345678901234567890\""),
            ("{ a: undefined, b: 1 }", r#"{"b":1}"#),
            ("[1, undefined]", "[1,null]"),
            ("new Date('2024-05-01T00:00:00Z')", "\"2024-05-01T00:00:00.000Z\""),
            ("new Map([[1, 'a'], [2, null]])", r#"[[1,"a"],[2,null]]"#),
            ("new Set([1, 2])", "[1,2]"),
            ("/a+/g", "\"/a+/g\""),
        ] {
            assert_eq!(of(text), (json.to_owned(), false), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
        }
    }

    /// Sets within each other, the innermost of which refers to the root of those before: each chain
    /// is as deep as bytes may be, and all of them are one.
    #[test]
    fn value_that_is_deeper_than_its_bytes_is_not_written() {
        let (depth, chains) = (MAX_DEPTH - 10, 40u8);
        let mut bytes = vec![0xff, 0x0f, b'a', chains];
        for chain in 0..chains {
            // The last chain is the first element, and refers to those before.
            bytes.extend([b'I', 2 * (chains - 1 - chain)]);
            bytes.extend(vec![b'\''; depth]);
            if chain > 0 {
                let root = u16::try_from(1 + usize::from(chain - 1) * depth).unwrap();
                let [low, high] = [root % 0x80 + 0x80, root / 0x80];
                bytes.extend([b'^', u8::try_from(low).unwrap(), u8::try_from(high).unwrap()]);
                bytes.extend([b',', 1].repeat(depth));
            } else {
                bytes.extend([b',', 0]);
                bytes.extend([b',', 1].repeat(depth - 1));
            }
        }
        bytes.extend([b'@', chains, chains]);
        let graph = v8::read(&bytes).unwrap();
        assert_eq!(value(&graph, 1 << 18), None);
    }

    #[test]
    fn value_without_an_end_is_not_written() {
        let Stored::V8(graph) = literal::parse("['abcdefgh', 1]").unwrap() else { panic!() };
        let json = value(&graph, 14).unwrap().json;
        assert_eq!(json, r#"["abcdefgh",1]"#);
        assert_eq!(value(&graph, json.len() - 1), None);
        // An array of 4,294,967,295 holes, in ten bytes.
        let sparse = [0xff, 0x0f, b'a', 0xff, 0xff, 0xff, 0xff, 0x0f, b'@', 0x00, 0xff];
        let mut sparse = sparse.to_vec();
        sparse.extend([0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(value(&v8::read(&sparse).unwrap(), 1 << 16), None);
        // Two arrays of two arrays of two arrays … each of which is there once.
        let mut doubling = vec![0xff, 0x0f];
        for depth in 0..30 {
            doubling.extend([b'A', 2]);
            if depth == 29 {
                doubling.extend([b'0', b'0', b'$', 0, 2]);
            }
        }
        for depth in (1..30).rev() {
            doubling.extend([b'^', depth, b'$', 0, 2]);
        }
        assert_eq!(value(&v8::read(&doubling).unwrap(), 1 << 16), None);
    }
}
