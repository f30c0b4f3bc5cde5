//! Values and keys as they are written in a program: `{ name: "Ada", tags: new Set(["a"]) }`.
//!
//! The grammar is that of people's input and of keys as `Deno.inspect` prints them: JSON and JSON5,
//! and of JavaScript the values that Deno KV stores. It is no program: there are no variables, no
//! functions but constructors, and no clock (`new Date()` is refused).
//!
//! | module | what it holds |
//! |---|---|
//! | `scan` | characters to words, strings and numbers |
//! | `parse` | these to values |
//! | `construct` | what stands behind `new` |

mod construct;
mod parse;
mod scan;

use crate::graph::{Graph, Object, Stored, Value, ViewKind};
use crate::key::{Key, KeyPart};
use crate::number;

use self::parse::Parser;

/// Why a text is no value, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {}: {reason}", at + 1)]
pub struct ParseError {
    /// Characters before.
    pub at: usize,
    pub reason: String,
}

/// A value as Deno's client stores it: a `Uint8Array` by itself as bytes, a `Deno.KvU64` as a u64.
pub fn parse(text: &str) -> Result<Stored, ParseError> {
    let mut parser = Parser::new(text);
    let root = parser.whole()?;
    if let Some(integer) = parser.u64 {
        return Ok(Stored::U64(integer));
    }
    let graph = parser.builder.build(root);
    if let Some(Object::View(view)) = graph.root_object()
        && view.kind == ViewKind::Uint8
    {
        return Ok(Stored::Bytes(graph.window(view).to_vec()));
    }
    Ok(Stored::V8(graph))
}

/// A key: an array.
pub fn parse_key(text: &str) -> Result<Key, ParseError> {
    let mut parser = Parser::new(text);
    let root = parser.whole()?;
    let no_key = |reason: &str| ParseError { at: 0, reason: reason.to_owned() };
    if parser.u64.is_some() {
        return Err(no_key("a key is an array"));
    }
    let graph = parser.builder.build(root);
    let Some(Object::Array(array)) = graph.root_object() else {
        return Err(no_key("a key is an array, such as [\"users\", 42]"));
    };
    if usize::try_from(array.length) != Ok(array.elements.len()) {
        return Err(no_key("a key has no empty parts"));
    }
    let parts = array.elements.iter().map(|(index, value)| {
        key_part(&graph, value).ok_or_else(|| {
            no_key(&format!(
                "part {} of the key is none: a part is a string, number, bigint, boolean or Uint8Array",
                index + 1
            ))
        })
    });
    Ok(Key(parts.collect::<Result<_, _>>()?))
}

/// One part of a key, by itself on a command line: a boolean, a number or bigint as JavaScript prints
/// it, a quoted string, a `Uint8Array`; and everything else as the string that it is, `1e5` and `007`
/// too.
pub fn parse_key_word(word: &str) -> Result<KeyPart, ParseError> {
    let is_quoted = word.starts_with(['"', '\'', '`']);
    let is_array = word.starts_with("new ") || word.starts_with("Uint8Array(");
    let mut parser = Parser::new(word);
    let part = parser.whole().map(|root| {
        let graph = parser.builder.build(root);
        key_part(&graph, graph.root())
    });
    match part {
        Ok(Some(KeyPart::Number(number))) if number::to_text(number) != word => {
            Ok(KeyPart::Text(word.to_owned()))
        }
        Ok(Some(KeyPart::BigInt(integer))) if format!("{integer}n") != word => {
            Ok(KeyPart::Text(word.to_owned()))
        }
        Ok(Some(KeyPart::Bool(truth))) if truth.to_string() != word => {
            Ok(KeyPart::Text(word.to_owned()))
        }
        // Space and comments make no literal of a word.
        Ok(Some(KeyPart::Text(_))) if !is_quoted => Ok(KeyPart::Text(word.to_owned())),
        Ok(Some(KeyPart::Bytes(_))) if !is_array => Ok(KeyPart::Text(word.to_owned())),
        Ok(Some(part)) => Ok(part),
        Err(error) if is_quoted || is_array => Err(error),
        Ok(None) | Err(_) => Ok(KeyPart::Text(word.to_owned())),
    }
}

fn key_part(graph: &Graph, value: &Value) -> Option<KeyPart> {
    match value {
        Value::Bool(truth) => Some(KeyPart::Bool(*truth)),
        Value::Number(number) => Some(KeyPart::Number(*number)),
        Value::BigInt(integer) => Some(KeyPart::BigInt(integer.clone())),
        Value::Text(text) => Some(KeyPart::Text(text.to_string_lossy())),
        Value::Object(id) => match graph.object(*id) {
            Object::View(view) if view.kind == ViewKind::Uint8 => {
                Some(KeyPart::Bytes(graph.window(view).to_vec()))
            }
            _ => None,
        },
        Value::Undefined | Value::Null => None,
    }
}

#[cfg(test)]
mod tests;
