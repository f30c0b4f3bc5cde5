//! Whole values from their bytes.
//!
//! Memory is bounded by the bytes: whatever takes memory takes a byte at least. Time is linear in
//! them, and the depth of recursion is bounded.

use crate::graph::{
    Array, Buffer, Builder, Error, ErrorKind, Graph, LENGTH_TRACKING, Object, ObjectId, RegExp,
    Value, View, ViewKind,
};
use crate::number;
use crate::text::Text;

use super::input::{Cut, Input, VARINT_BYTES};
use super::{NEWEST_VERSION, NODE_VIEWS, VIEW_TAGS, error_tag, tag};

/// Values within values. Deeper values are not read.
pub const MAX_DEPTH: usize = 400;

/// Host objects have had a tag of their own since 13, so that any other tag is an error.
const READABLE_VERSIONS: std::ops::RangeInclusive<u32> = 13..=NEWEST_VERSION;

/// Why bytes are no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {reason}")]
pub struct ReadError {
    /// How many bytes were read before.
    pub at: usize,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the value ends too early")]
    Cut,
    #[error("it does not begin with ff and a version of V8's format from 13 to 16")]
    Version,
    #[error("{0:#04x} is no tag of a value that Deno KV stores")]
    Tag(u8),
    #[error("values are within each other more than {MAX_DEPTH} deep")]
    Depth,
    #[error("a reference leads to no object before it")]
    Reference,
    #[error("the count at the end of an object is not that of its parts")]
    Count,
    #[error("a key of an object is neither a string nor a number")]
    Key,
    #[error("a string has no whole characters")]
    Text,
    #[error("a view does not lie within its buffer")]
    View,
}

impl From<Cut> for Reason {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

/// Whether the value in these bytes is the same in format 15.
pub(super) fn is_portable(data: &[u8]) -> bool {
    let mut reader = Reader::new(data);
    reader.whole().is_ok() && reader.is_portable
}

/// Reads a value. Bytes behind it are ignored, as V8 does.
pub fn read(data: &[u8]) -> Result<Graph, ReadError> {
    let mut reader = Reader::new(data);
    match reader.whole() {
        Ok(root) => Ok(reader.builder.build(root)),
        Err(reason) => Err(ReadError { at: reader.input.position(), reason }),
    }
}

struct Reader<'a> {
    input: Input<'a>,
    builder: Builder,
    /// Objects as V8 counts them. The buffers of Node's views are none.
    counted: Vec<ObjectId>,
    depth: usize,
    version: u32,
    /// All lengths so far are those that older formats have.
    is_portable: bool,
}

type Properties = Vec<(Text, Value)>;

impl<'a> Reader<'a> {
    fn new(data: &'a [u8]) -> Self {
        let (input, builder) = (Input::new(data), Builder::default());
        Self { input, builder, counted: Vec::new(), depth: 0, version: 0, is_portable: true }
    }

    fn whole(&mut self) -> Result<Value, Reason> {
        if self.input.tag() != Ok(tag::VERSION) {
            return Err(Reason::Version);
        }
        self.version = self.input.varint()?;
        if !READABLE_VERSIONS.contains(&self.version) {
            return Err(Reason::Version);
        }
        self.value()
    }

    fn value(&mut self) -> Result<Value, Reason> {
        let tag = loop {
            match self.input.tag()? {
                tag::VERIFY_OBJECT_COUNT => drop(self.input.varint()?),
                tag => break tag,
            }
        };
        let value = match self.primitive(tag)? {
            Some(value) => value,
            None => Value::Object(self.object(tag)?),
        };
        match value {
            // A view comes behind its buffer.
            Value::Object(id)
                if matches!(self.builder.get(id), Object::Buffer(_))
                    && self.input.peek_tag() == Some(tag::VIEW) =>
            {
                self.input.tag()?;
                Ok(Value::Object(self.view(id)?))
            }
            value => Ok(value),
        }
    }

    fn primitive(&mut self, tag: u8) -> Result<Option<Value>, Reason> {
        Ok(Some(match tag {
            tag::UNDEFINED => Value::Undefined,
            tag::NULL => Value::Null,
            tag::TRUE => Value::Bool(true),
            tag::FALSE => Value::Bool(false),
            tag::INT32 => Value::Number(self.input.zigzag()?.into()),
            tag::UINT32 => Value::Number(self.input.varint()?.into()),
            tag::DOUBLE => Value::Number(self.input.double()?),
            tag::BIGINT => Value::BigInt(self.input.bigint()?),
            tag::UTF8 | tag::ONE_BYTE | tag::TWO_BYTE => Value::Text(self.text(tag)?),
            tag::REFERENCE => {
                let number = self.length()?;
                Value::Object(*self.counted.get(number).ok_or(Reason::Reference)?)
            }
            _ => return Ok(None),
        }))
    }

    fn text(&mut self, tag: u8) -> Result<Text, Reason> {
        let length = self.length()?;
        let bytes = self.input.bytes(length)?;
        match tag {
            tag::ONE_BYTE => Ok(Text::from_latin1(bytes)),
            tag::UTF8 => Ok(Text::from(std::str::from_utf8(bytes).map_err(|_| Reason::Text)?)),
            tag::TWO_BYTE => {
                let (units, rest) = bytes.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(Reason::Text);
                }
                Ok(Text::new(units.iter().map(|unit| u16::from_le_bytes(*unit))))
            }
            other => Err(Reason::Tag(other)),
        }
    }

    /// A string with its tag in front, as regular expressions and errors have them.
    fn tagged_text(&mut self) -> Result<Text, Reason> {
        let tag = self.input.tag()?;
        self.text(tag)
    }

    /// A length that fits 32 bits. Nothing is reserved by it.
    fn length(&mut self) -> Result<usize, Reason> {
        usize::try_from(self.input.varint()?).map_err(|_| Reason::Cut)
    }

    /// A length of bytes in a buffer: it may be larger in the newest version.
    fn buffer_length(&mut self) -> Result<u64, Reason> {
        if self.version < 16 {
            return Ok(self.input.varint()?.into());
        }
        let begin = self.input.position();
        let length = self.input.long_varint()?;
        let bytes = self.input.position() - begin;
        self.is_portable &= bytes <= VARINT_BYTES && u32::try_from(length).is_ok();
        Ok(length)
    }

    fn object(&mut self, tag: u8) -> Result<ObjectId, Reason> {
        if self.depth >= MAX_DEPTH {
            return Err(Reason::Depth);
        }
        self.depth += 1;
        // V8 counts an object when it begins.
        let id = self.builder.reserve();
        self.counted.push(id);
        let object = match tag {
            tag::OBJECT => self.plain()?,
            tag::DENSE_ARRAY => self.dense_array()?,
            tag::SPARSE_ARRAY => self.sparse_array()?,
            tag::MAP => self.map()?,
            tag::SET => self.set()?,
            tag::DATE => Object::Date(self.input.double()?),
            tag::BOXED_TRUE => Object::Boxed(Value::Bool(true)),
            tag::BOXED_FALSE => Object::Boxed(Value::Bool(false)),
            tag::BOXED_NUMBER => Object::Boxed(Value::Number(self.input.double()?)),
            tag::BOXED_BIGINT => Object::Boxed(Value::BigInt(self.input.bigint()?)),
            tag::BOXED_STRING => Object::Boxed(Value::Text(self.tagged_text()?)),
            tag::REGEXP => {
                let source = self.tagged_text()?;
                Object::RegExp(RegExp { source, flags: self.input.varint()? })
            }
            tag::BUFFER | tag::RESIZABLE_BUFFER => self.buffer(tag)?,
            tag::NODE_VIEW => self.node_view()?,
            tag::ERROR => self.error()?,
            other => return Err(Reason::Tag(other)),
        };
        self.builder.set(id, object);
        self.depth -= 1;
        Ok(id)
    }

    /// Keys and values up to `end`, with the count behind it.
    fn properties(
        &mut self,
        end: u8,
        mut take: impl FnMut(Value, Value) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let mut count: u32 = 0;
        while self.input.peek_tag() != Some(end) {
            let key = self.value()?;
            let value = self.value()?;
            take(key, value)?;
            count = count.checked_add(1).ok_or(Reason::Count)?;
        }
        self.input.tag()?;
        if self.input.varint()? == count { Ok(()) } else { Err(Reason::Count) }
    }

    fn plain(&mut self) -> Result<Object, Reason> {
        let mut properties = Properties::new();
        self.properties(tag::END_OBJECT, |key, value| {
            properties.push((property_key(key)?, value));
            Ok(())
        })?;
        Ok(Object::Plain(properties))
    }

    fn dense_array(&mut self) -> Result<Object, Reason> {
        let length = self.input.varint()?;
        let mut array = Array { length, ..Array::default() };
        for index in 0..length {
            if self.input.peek_tag() == Some(tag::HOLE) {
                self.input.tag()?;
                continue;
            }
            let element = self.value()?;
            array.elements.push((index, element));
        }
        let properties = &mut array.properties;
        self.properties(tag::END_DENSE_ARRAY, |key, value| {
            properties.push((property_key(key)?, value));
            Ok(())
        })?;
        if self.input.varint()? == length { Ok(Object::Array(array)) } else { Err(Reason::Count) }
    }

    fn sparse_array(&mut self) -> Result<Object, Reason> {
        let length = self.input.varint()?;
        let mut array = Array { length, ..Array::default() };
        self.properties(tag::END_SPARSE_ARRAY, |key, value| {
            match element_index(&key).filter(|index| *index < length) {
                Some(index) => array.elements.push((index, value)),
                None => array.properties.push((property_key(key)?, value)),
            }
            Ok(())
        })?;
        if self.input.varint()? != length {
            return Err(Reason::Count);
        }
        if !array.elements.is_sorted_by(|(a, _), (b, _)| a < b) {
            // Of an index that comes twice, the last holds.
            array.elements.reverse();
            array.elements.sort_by_key(|(index, _)| *index);
            array.elements.dedup_by_key(|(index, _)| *index);
        }
        Ok(Object::Array(array))
    }

    fn map(&mut self) -> Result<Object, Reason> {
        let mut entries = Vec::new();
        while self.input.peek_tag() != Some(tag::END_MAP) {
            let key = self.value()?;
            entries.push((key, self.value()?));
        }
        self.input.tag()?;
        // Keys and values are counted.
        if self.length()? == entries.len() * 2 {
            Ok(Object::Map(entries))
        } else {
            Err(Reason::Count)
        }
    }

    fn set(&mut self) -> Result<Object, Reason> {
        let mut members = Vec::new();
        while self.input.peek_tag() != Some(tag::END_SET) {
            members.push(self.value()?);
        }
        self.input.tag()?;
        if self.length()? == members.len() { Ok(Object::Set(members)) } else { Err(Reason::Count) }
    }

    fn buffer(&mut self, tag: u8) -> Result<Object, Reason> {
        let length = self.buffer_length()?;
        let max_length =
            if tag == tag::RESIZABLE_BUFFER { Some(self.buffer_length()?) } else { None };
        if max_length.is_some_and(|max| max < length) {
            return Err(Reason::Count);
        }
        let length = usize::try_from(length).map_err(|_| Reason::Cut)?;
        let bytes = self.input.bytes(length)?.to_vec();
        Ok(Object::Buffer(Buffer { bytes, max_length }))
    }

    fn view(&mut self, buffer: ObjectId) -> Result<ObjectId, Reason> {
        let tag = self.input.byte()?;
        let kinds = VIEW_TAGS.iter().zip(ViewKind::ALL);
        let kind = kinds.into_iter().find(|(known, _)| **known == tag).map(|(_, kind)| kind);
        let kind = kind.ok_or(Reason::Tag(tag))?;
        let offset = usize::try_from(self.buffer_length()?).map_err(|_| Reason::View)?;
        let length = usize::try_from(self.buffer_length()?).map_err(|_| Reason::View)?;
        let flags = if self.version >= 14 { self.input.varint()? } else { 0 };
        let Object::Buffer(Buffer { bytes, .. }) = self.builder.get(buffer) else {
            return Err(Reason::View);
        };
        let behind = bytes.len().checked_sub(offset).ok_or(Reason::View)?;
        let size = kind.element_bytes();
        let length = if flags & LENGTH_TRACKING == 0 { length } else { behind - behind % size };
        if length > behind || offset % size != 0 || length % size != 0 {
            return Err(Reason::View);
        }
        let id = self.builder.add(Object::View(View { kind, buffer, offset, length, flags }));
        self.counted.push(id);
        Ok(id)
    }

    /// A view as the `serialize` of Node's module `v8` writes it, and with it `@deno/kv` on Node: as
    /// an object of its host, with the bytes that it shows.
    fn node_view(&mut self) -> Result<Object, Reason> {
        let number = self.length()?;
        let kind = *NODE_VIEWS.get(number).ok_or(Reason::View)?;
        let length = self.length()?;
        let bytes = self.input.bytes(length)?.to_vec();
        if length % kind.element_bytes() != 0 {
            return Err(Reason::View);
        }
        let buffer = self.builder.add(Object::Buffer(Buffer { bytes, max_length: None }));
        Ok(Object::View(View { kind, buffer, offset: 0, length, flags: 0 }))
    }

    fn error(&mut self) -> Result<Object, Reason> {
        let mut error = Error { kind: ErrorKind::Error, message: None, stack: None, cause: None };
        loop {
            match self.input.tag()? {
                error_tag::END => return Ok(Object::Error(error)),
                error_tag::MESSAGE => error.message = Some(self.tagged_text()?),
                error_tag::STACK => error.stack = Some(self.tagged_text()?),
                error_tag::CAUSE => error.cause = Some(self.value()?),
                other => {
                    let kinds = error_tag::KINDS.iter().zip(ErrorKind::ALL);
                    let kind = kinds.into_iter().find(|(known, _)| **known == other);
                    error.kind = kind.map(|(_, kind)| kind).ok_or(Reason::Tag(other))?;
                }
            }
        }
    }
}

/// Numbers are written for keys that are whole ones.
fn property_key(key: Value) -> Result<Text, Reason> {
    match key {
        Value::Text(text) => Ok(text),
        Value::Number(number) => Ok(Text::from(number::to_text(number).as_str())),
        _ => Err(Reason::Key),
    }
}

fn element_index(key: &Value) -> Option<u32> {
    let Value::Number(number) = key else { return None };
    number::to_u32(*number)
}

#[cfg(test)]
mod tests;
