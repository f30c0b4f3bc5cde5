//! Values as `Deno.inspect` shows them by default: four levels deep, 80 columns, a hundred elements
//! of a list.
//!
//! The texts are those of Deno to the byte, which the corpus shows, with three exceptions: frames of
//! a stack that repeat in a recursion are all shown, frames have no colours, and characters that
//! control a terminal are escaped wherever they come from.
//!
//! | module | what it holds |
//! |---|---|
//! | `layout` | parts to one line, columns, or a line each |
//! | `quote` | strings in quotes, and as names |
//! | `stack` | what is shown of an error before its parts |
//! | `style` | colours |

mod layout;
mod quote;
mod stack;
mod style;

use std::fmt;

use crate::date;
use crate::graph::{Array, Buffer, Graph, Object, ObjectId, Stored, Value, View, ViewKind};
use crate::key::{Key, KeyPart};
use crate::number;
use crate::text::Text;

use self::layout::{BREAK_LENGTH, Layout};
use self::quote::{property_name, quote};
use self::style::Style;

const DEPTH: usize = 4;
const MAX_ELEMENTS: usize = 100;
const MAX_STRING_UNITS: usize = 10_000;
/// Strings up to here are not broken into lines.
const MIN_LINE_UNITS: usize = 16;
/// Objects that are begun after so many bytes of output are only named. Objects may lead to each
/// other such that a value of a few bytes would print for ever; no value that does not comes near.
const MAX_OUTPUT_BYTES: usize = 4 << 20;

/// A stored value.
pub fn stored(value: &Stored, colours: bool) -> String {
    match value {
        Stored::V8(graph) => graph_text(graph, colours),
        Stored::U64(integer) => Style::Number.paint(&format!("[Deno.KvU64: {integer}n]"), colours),
        Stored::Bytes(bytes) => bytes_text(bytes, colours, 0),
    }
}

/// A key, on one line.
pub fn key(key: &Key, colours: bool) -> String {
    let parts = key.0.iter().map(|part| match part {
        KeyPart::Bytes(bytes) => {
            let numbers = bytes.iter().map(|byte| Style::Number.paint(&byte.to_string(), colours));
            let numbers = numbers.collect::<Vec<_>>().join(", ");
            let gap = if bytes.is_empty() { "" } else { " " };
            format!("Uint8Array({}) [{gap}{numbers}{gap}]", bytes.len())
        }
        KeyPart::Text(text) => Style::String.paint(&quote(text), colours),
        KeyPart::BigInt(integer) => Style::Number.paint(&format!("{integer}n"), colours),
        KeyPart::Number(number) => Style::Number.paint(&number::to_text(*number), colours),
        KeyPart::Bool(truth) => Style::Number.paint(&truth.to_string(), colours),
    });
    let parts = parts.collect::<Vec<_>>().join(", ");
    if parts.is_empty() { "[]".to_owned() } else { format!("[ {parts} ]") }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key(self, false))
    }
}

fn graph_text(graph: &Graph, colours: bool) -> String {
    Inspector::new(graph, colours).value(graph.root(), 0)
}

fn bytes_text(bytes: &[u8], colours: bool, indentation: usize) -> String {
    let graph = Graph::primitive(Value::Undefined);
    let mut inspector = Inspector::new(&graph, colours);
    inspector.indentation = indentation;
    let prefix = format!("{}({}) ", ViewKind::Uint8.name(), bytes.len());
    inspector.elements(ViewKind::Uint8, bytes, &prefix, 1)
}

/// The texts of an object's parts, and how they are laid out.
struct Parts {
    open: String,
    close: &'static str,
    texts: Vec<String>,
    is_list: bool,
    /// Whether all are numbers, which stand to the right of their columns.
    are_numbers: bool,
}

impl Parts {
    fn braces(open: String) -> Self {
        Self { open, close: "}", texts: Vec::new(), is_list: false, are_numbers: false }
    }

    fn more(&mut self, remaining: usize, what: &str) {
        if remaining > 0 {
            let plural = if remaining > 1 { "s" } else { "" };
            self.texts.push(format!("... {remaining} more {what}{plural}"));
        }
    }
}

struct Inspector<'a> {
    graph: &'a Graph,
    colours: bool,
    indentation: usize,
    /// The depth of the object that was begun last.
    current_depth: usize,
    /// The objects that the present one is within.
    seen: Vec<ObjectId>,
    /// Objects that were met within themselves, in that order.
    circular: Vec<ObjectId>,
    printed: usize,
}

impl<'a> Inspector<'a> {
    fn new(graph: &'a Graph, colours: bool) -> Self {
        let (seen, circular) = (Vec::new(), Vec::new());
        Self { graph, colours, indentation: 0, current_depth: 0, seen, circular, printed: 0 }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.colours)
    }

    fn value(&mut self, value: &Value, depth: usize) -> String {
        match value {
            Value::Undefined => self.paint(Style::Undefined, "undefined"),
            Value::Null => self.paint(Style::Null, "null"),
            Value::Bool(truth) => self.paint(Style::Number, &truth.to_string()),
            Value::Number(number) => self.paint(Style::Number, &number::to_text(*number)),
            Value::BigInt(integer) => self.paint(Style::Number, &format!("{integer}n")),
            Value::Text(text) => self.string(text),
            Value::Object(id) => self.object(*id, depth),
        }
    }

    fn string(&self, text: &Text) -> String {
        let shown = text.units().get(..MAX_STRING_UNITS);
        let trailer = match shown {
            Some(shown) if shown.len() < text.units().len() => {
                let remaining = text.units().len() - shown.len();
                let plural = if remaining > 1 { "s" } else { "" };
                format!("... {remaining} more character{plural}")
            }
            _ => String::new(),
        };
        let shown = shown.unwrap_or(text.units());
        let is_long =
            shown.len() > MIN_LINE_UNITS && shown.len() + self.indentation + 4 > BREAK_LENGTH;
        let shown = String::from_utf16_lossy(shown);
        if !is_long {
            return self.paint(Style::String, &quote(&shown)) + &trailer;
        }
        let lines = shown.split_inclusive('\n').map(|line| self.paint(Style::String, &quote(line)));
        let indent = " ".repeat(self.indentation + 2);
        lines.collect::<Vec<_>>().join(&format!(" +\n{indent}")) + &trailer
    }

    fn object(&mut self, id: ObjectId, depth: usize) -> String {
        if self.seen.contains(&id) {
            let number = self.circle(id);
            return self.paint(Style::Special, &format!("[Circular *{number}]"));
        }
        let graph = self.graph;
        let object = graph.object(id);
        // One object may be met often: each time counts.
        let is_enough = self.printed > MAX_OUTPUT_BYTES;
        if !is_enough && let Some(text) = self.without_parts(object) {
            self.printed += text.len();
            return text;
        }
        if depth > DEPTH || is_enough {
            return self.paint(Style::Special, &format!("[{}]", constructor(object)));
        }
        let depth = depth + 1;
        self.seen.push(id);
        self.current_depth = depth;
        let mut base = match object {
            Object::Error(error) => self.stack(error),
            _ => String::new(),
        };
        let parts = self.parts(object, depth);
        if let Some(number) = self.circular.iter().position(|circular| *circular == id) {
            let reference = self.paint(Style::Special, &format!("<ref *{}>", number + 1));
            base = if base.is_empty() { reference } else { format!("{reference} {base}") };
        }
        self.seen.pop();
        let text = self.lay_out(parts, &base, depth);
        self.printed += text.len();
        text
    }

    /// The number of an object that is met within itself.
    fn circle(&mut self, id: ObjectId) -> usize {
        let known = self.circular.iter().position(|circular| *circular == id);
        known.unwrap_or_else(|| {
            self.circular.push(id);
            self.circular.len() - 1
        }) + 1
    }

    fn lay_out(&self, parts: Parts, base: &str, depth: usize) -> String {
        let layout = Layout {
            base,
            open: &parts.open,
            close: parts.close,
            indentation: self.indentation,
            levels_within: self.current_depth - depth,
            is_list: parts.is_list,
            are_numbers: parts.are_numbers,
        };
        layout.text(parts.texts)
    }

    /// The whole text of an object that has no parts to show.
    fn without_parts(&mut self, object: &Object) -> Option<String> {
        Some(match object {
            Object::Plain(properties) if properties.is_empty() => "{}".to_owned(),
            Object::Array(array) if array.length == 0 && array.properties.is_empty() => {
                "[]".to_owned()
            }
            Object::Map(entries) if entries.is_empty() => "Map(0) {}".to_owned(),
            Object::Set(members) if members.is_empty() => "Set(0) {}".to_owned(),
            Object::View(view) if view.length == 0 && view.kind != ViewKind::DataView => {
                format!("{}(0) []", view.kind.name())
            }
            Object::Date(milliseconds) => {
                let text = date::to_text(*milliseconds);
                self.paint(Style::Date, text.as_deref().unwrap_or("Invalid Date"))
            }
            Object::RegExp(regexp) => {
                self.paint(Style::RegExp, &quote::escape_controls(&regexp.to_text()))
            }
            Object::Boxed(value) => self.boxed(value),
            Object::Error(error) if error.cause.is_none() => self.stack(error),
            _ => return None,
        })
    }

    fn boxed(&self, value: &Value) -> String {
        let (name, style, text) = match value {
            Value::Bool(truth) => ("Boolean", Style::Number, truth.to_string()),
            Value::BigInt(integer) => ("BigInt", Style::Number, format!("{integer}n")),
            Value::Text(text) => ("String", Style::String, quote(&text.to_string_lossy())),
            Value::Number(number) => ("Number", Style::Number, number::to_text(*number)),
            Value::Undefined | Value::Null | Value::Object(_) => return "{}".to_owned(),
        };
        self.paint(style, &format!("[{name}: {text}]"))
    }

    fn parts(&mut self, object: &Object, depth: usize) -> Parts {
        match object {
            Object::Plain(properties) => {
                let mut parts = Parts::braces("{".to_owned());
                self.properties(properties, depth, &mut parts);
                parts
            }
            Object::Array(array) => self.array(array, depth),
            Object::Map(entries) => {
                let mut parts = Parts::braces(format!("Map({}) {{", entries.len()));
                self.indentation += 2;
                for (key, value) in entries.iter().take(MAX_ELEMENTS) {
                    let (key, value) = (self.value(key, depth), self.value(value, depth));
                    parts.texts.push(format!("{key} => {value}"));
                }
                self.indentation -= 2;
                parts.more(entries.len().saturating_sub(MAX_ELEMENTS), "item");
                parts
            }
            Object::Set(members) => {
                let mut parts = Parts::braces(format!("Set({}) {{", members.len()));
                self.indentation += 2;
                for member in members.iter().take(MAX_ELEMENTS) {
                    parts.texts.push(self.value(member, depth));
                }
                self.indentation -= 2;
                parts.more(members.len().saturating_sub(MAX_ELEMENTS), "item");
                parts
            }
            Object::Buffer(buffer) => self.buffer(buffer),
            Object::View(view) if view.kind == ViewKind::DataView => self.data_view(view, depth),
            Object::View(view) => self.typed_array(view),
            Object::Error(error) => {
                let mut parts = Parts::braces("{".to_owned());
                let cause = error.cause.as_ref().unwrap_or(&Value::Undefined);
                let cause = self.within(|inspector| inspector.value(cause, depth));
                parts.texts.push(format!("[cause]: {cause}"));
                parts
            }
            Object::Date(_) | Object::RegExp(_) | Object::Boxed(_) => Parts::braces("{".to_owned()),
        }
    }

    fn within<T>(&mut self, shown: impl FnOnce(&mut Self) -> T) -> T {
        self.indentation += 2;
        let shown = shown(self);
        self.indentation -= 2;
        shown
    }

    fn properties(&mut self, properties: &[(Text, Value)], depth: usize, parts: &mut Parts) {
        for (key, value) in properties {
            let value = self.within(|inspector| inspector.value(value, depth));
            let name = property_name(&key.to_string_lossy(), self.colours);
            parts.texts.push(format!("{name}: {value}"));
        }
    }

    fn array(&mut self, array: &Array, depth: usize) -> Parts {
        let mut parts = Parts::braces("[".to_owned());
        (parts.close, parts.is_list) = ("]", true);
        let mut next: u32 = 0;
        for (index, element) in &array.elements {
            if parts.texts.len() < MAX_ELEMENTS && *index > next {
                parts.texts.push(self.holes(*index - next));
                next = *index;
            }
            if parts.texts.len() >= MAX_ELEMENTS {
                break;
            }
            parts.texts.push(self.within(|inspector| inspector.value(element, depth)));
            next = index.saturating_add(1);
        }
        let remaining = array.length - next;
        let is_number = |value: &Value| matches!(value, Value::Number(_) | Value::BigInt(_));
        if parts.texts.len() < MAX_ELEMENTS {
            if remaining > 0 {
                parts.texts.push(self.holes(remaining));
            }
        } else {
            parts.more(usize::try_from(remaining).unwrap_or(usize::MAX), "item");
        }
        self.properties(&array.properties, depth, &mut parts);
        // As many elements are looked at as there are texts.
        let looked_at = array.elements.iter().zip(0u32..).take(parts.texts.len());
        let mut numbers =
            looked_at.take_while(|((index, element), place)| index == place && is_number(element));
        parts.are_numbers = numbers.by_ref().count() == parts.texts.len();
        parts
    }

    fn holes(&self, count: u32) -> String {
        let plural = if count > 1 { "s" } else { "" };
        self.paint(Style::Undefined, &format!("<{count} empty item{plural}>"))
    }

    fn buffer(&self, buffer: &Buffer) -> Parts {
        let mut parts = Parts::braces("ArrayBuffer {".to_owned());
        let shown = buffer.bytes.iter().take(MAX_ELEMENTS).map(|byte| format!("{byte:02x}"));
        let mut contents = shown.collect::<Vec<_>>().join(" ");
        let remaining = buffer.bytes.len().saturating_sub(MAX_ELEMENTS);
        if remaining > 0 {
            let plural = if remaining > 1 { "s" } else { "" };
            contents.push_str(&format!(" ... {remaining} more byte{plural}"));
        }
        let label = self.paint(Style::Special, "[Uint8Contents]");
        parts.texts.push(format!("{label}: <{contents}>"));
        parts.texts.push(format!("byteLength: {}", self.count(buffer.bytes.len())));
        parts
    }

    fn count(&self, count: usize) -> String {
        self.paint(Style::Number, &count.to_string())
    }

    fn data_view(&mut self, view: &View, depth: usize) -> Parts {
        let mut parts = Parts::braces("DataView {".to_owned());
        parts.texts.push(format!("byteLength: {}", self.count(view.length)));
        parts.texts.push(format!("byteOffset: {}", self.count(view.offset)));
        let buffer = self.within(|inspector| inspector.object(view.buffer, depth));
        parts.texts.push(format!("buffer: {buffer}"));
        parts
    }

    fn typed_array(&mut self, view: &View) -> Parts {
        let count = view.length / view.kind.element_bytes();
        let prefix = format!("{}({count}) ", view.kind.name());
        self.element_parts(view.kind, self.graph.window(view), &prefix)
    }

    fn elements(&self, kind: ViewKind, bytes: &[u8], prefix: &str, depth: usize) -> String {
        if bytes.is_empty() {
            return format!("{prefix}[]");
        }
        let mut inspector =
            Inspector { current_depth: depth, ..Inspector::new(self.graph, self.colours) };
        inspector.indentation = self.indentation;
        inspector.lay_out(self.element_parts(kind, bytes, prefix), "", depth)
    }

    fn element_parts(&self, kind: ViewKind, bytes: &[u8], prefix: &str) -> Parts {
        let mut parts = Parts::braces(format!("{prefix}["));
        (parts.close, parts.is_list, parts.are_numbers) = ("]", true, true);
        let elements = bytes.chunks_exact(kind.element_bytes());
        let remaining = elements.len().saturating_sub(MAX_ELEMENTS);
        for element in elements.take(MAX_ELEMENTS) {
            parts.texts.push(self.paint(Style::Number, &element_text(kind, element)));
        }
        parts.more(remaining, "item");
        parts
    }
}

fn constructor(object: &Object) -> &'static str {
    match object {
        Object::Plain(_) => "Object",
        Object::Array(_) => "Array",
        Object::Map(_) => "Map",
        Object::Set(_) => "Set",
        Object::Date(_) => "Date",
        Object::Boxed(_) => "Boxed",
        Object::RegExp(_) => "RegExp",
        Object::Buffer(_) => "ArrayBuffer",
        Object::View(view) => view.kind.name(),
        Object::Error(error) => error.kind.name(),
    }
}

/// One element of a typed array.
fn element_text(kind: ViewKind, bytes: &[u8]) -> String {
    // In eight bytes, little-endian.
    let mut wide = [0; 8];
    wide.iter_mut().zip(bytes).for_each(|(wide, byte)| *wide = *byte);
    let unsigned = u64::from_le_bytes(wide);
    let bits = u32::try_from(bytes.len() * 8).unwrap_or(64);
    let signed = unsigned.cast_signed() << (64 - bits) >> (64 - bits);
    match kind {
        ViewKind::Int8 | ViewKind::Int16 | ViewKind::Int32 => signed.to_string(),
        ViewKind::BigInt64 => format!("{signed}n"),
        ViewKind::BigUint64 => format!("{unsigned}n"),
        ViewKind::Float16 => {
            number::to_text(number::from_half(u16::try_from(unsigned).unwrap_or(0)))
        }
        ViewKind::Float32 => {
            let bits = u32::try_from(unsigned).unwrap_or(0);
            number::to_text(f32::from_bits(bits).into())
        }
        ViewKind::Float64 => number::to_text(f64::from_bits(unsigned)),
        ViewKind::Uint8
        | ViewKind::Uint8Clamped
        | ViewKind::Uint16
        | ViewKind::Uint32
        | ViewKind::DataView => unsigned.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v8;

    #[test]
    fn output_of_objects_that_share_without_end_has_a_bound() {
        // Lists of a hundred, each of which leads to the next one a hundred times: 10^10 elements.
        let mut data = b"\xff\x0f".to_vec();
        data.extend(b"A\x64".repeat(5));
        data.extend(b"T".repeat(100));
        data.extend([b'$', 0, 100]);
        for level in (1..5u8).rev() {
            data.extend([b'^', level].repeat(99));
            data.extend([b'$', 0, 100]);
        }
        let graph = v8::read(&data).unwrap();
        let text = stored(&Stored::V8(graph), false);
        // Nested text is counted at each level.
        let length = text.len();
        assert!(length > MAX_OUTPUT_BYTES / 4 && length < 2 * MAX_OUTPUT_BYTES, "{length}");
        assert!(text.contains("[Array]"));
    }

    #[test]
    fn nothing_of_a_value_reaches_the_terminal_as_a_command() {
        let mut data = b"\xff\x0fA\x03r".to_vec();
        data.extend(b"s\"\x04E\x1b[2.");
        data.extend(b"R\"\x02\x1b[\x00");
        data.extend(b"\"\x02\x1b[$\x00\x03");
        let text = stored(&Stored::V8(v8::read(&data).unwrap()), false);
        assert_eq!(text, "[ [E\\x1b[2], /\\x1b[/, \"\\x1b[\" ]");
        let key = Key(vec![KeyPart::Text("\x1b[2J".to_owned())]);
        assert_eq!(key.to_string(), "[ \"\\x1b[2J\" ]");
    }
}
