//! Whole values to their bytes, as V8 itself writes them.

use num_bigint::{BigInt, Sign};

use crate::graph::{
    Array, Buffer, Error, ErrorKind, Graph, Object, ObjectId, Value, View, ViewKind,
};
use crate::number;
use crate::text::Text;

use super::input::push_varint;
use super::portable::fits_portable;
use super::{VIEW_TAGS, WIDE_VERSION, WRITTEN_VERSION, error_tag, tag};

/// The bytes of a value. It must not be deeper than [`read`](super::read) reads.
pub fn write(graph: &Graph) -> Vec<u8> {
    let is_portable = graph.objects().all(fits_portable);
    let version = if is_portable { WRITTEN_VERSION } else { WIDE_VERSION };
    let mut writer = Writer {
        graph,
        data: vec![tag::VERSION, version],
        numbers: vec![None; graph.objects().len()],
        next: 0,
    };
    writer.value(graph.root());
    writer.data
}

struct Writer<'a> {
    graph: &'a Graph,
    data: Vec<u8>,
    /// For each object in the graph, its number among those that were written.
    numbers: Vec<Option<u64>>,
    next: u64,
}

fn long(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl Writer<'_> {
    fn varint(&mut self, value: u64) {
        push_varint(value, &mut self.data);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Undefined => self.data.push(tag::UNDEFINED),
            Value::Null => self.data.push(tag::NULL),
            Value::Bool(true) => self.data.push(tag::TRUE),
            Value::Bool(false) => self.data.push(tag::FALSE),
            Value::Number(number) => self.number(*number),
            Value::BigInt(integer) => {
                self.data.push(tag::BIGINT);
                self.bigint(integer);
            }
            Value::Text(text) => self.text(text),
            Value::Object(id) => self.object(*id),
        }
    }

    fn number(&mut self, number: f64) {
        match number::to_i32(number) {
            Some(integer) => {
                self.data.push(tag::INT32);
                let zigzag = (integer << 1) ^ (integer >> 31);
                self.varint(zigzag.cast_unsigned().into());
            }
            None => {
                self.data.push(tag::DOUBLE);
                self.double(number);
            }
        }
    }

    fn double(&mut self, number: f64) {
        self.data.extend_from_slice(&number.to_le_bytes());
    }

    /// In digits of eight bytes.
    fn bigint(&mut self, integer: &BigInt) {
        let (sign, mut magnitude) = integer.to_bytes_le();
        let digits = if sign == Sign::NoSign { 0 } else { magnitude.len().div_ceil(8) };
        magnitude.resize(digits * 8, 0);
        self.varint((long(digits * 8) << 1) | u64::from(sign == Sign::Minus));
        self.data.extend_from_slice(&magnitude);
    }

    fn text(&mut self, text: &Text) {
        if text.is_latin1() {
            self.data.push(tag::ONE_BYTE);
            self.varint(long(text.units().len()));
            self.data.extend(text.units().iter().map(|unit| unit.to_le_bytes()[0]));
            return;
        }
        let length = long(text.units().len() * 2);
        let mut head = Vec::new();
        push_varint(length, &mut head);
        // The units lie at even places.
        if (self.data.len() + 1 + head.len()) % 2 == 1 {
            self.data.push(tag::PADDING);
        }
        self.data.push(tag::TWO_BYTE);
        self.data.extend_from_slice(&head);
        self.data.extend(text.units().iter().flat_map(|unit| unit.to_le_bytes()));
    }

    /// Gives the object its number, or writes a reference to it if it has one.
    fn begin(&mut self, id: ObjectId) -> bool {
        let next = self.next;
        let Some(number) = self.numbers.get_mut(id.number()) else { return false };
        if let Some(number) = *number {
            self.data.push(tag::REFERENCE);
            self.varint(number);
            return false;
        }
        *number = Some(next);
        self.next += 1;
        true
    }

    fn object(&mut self, id: ObjectId) {
        let object = self.graph.object(id);
        if let Object::View(view) = object
            && self.numbers.get(id.number()).is_some_and(Option::is_none)
        {
            self.object(view.buffer);
        }
        if !self.begin(id) {
            return;
        }
        match object {
            Object::Plain(properties) => {
                self.data.push(tag::OBJECT);
                self.properties(properties);
                self.data.push(tag::END_OBJECT);
                self.varint(long(properties.len()));
            }
            Object::Array(array) => self.array(array),
            Object::Map(entries) => {
                self.data.push(tag::MAP);
                for (key, value) in entries {
                    self.value(key);
                    self.value(value);
                }
                self.data.push(tag::END_MAP);
                self.varint(long(entries.len() * 2));
            }
            Object::Set(members) => {
                self.data.push(tag::SET);
                members.iter().for_each(|member| self.value(member));
                self.data.push(tag::END_SET);
                self.varint(long(members.len()));
            }
            Object::Date(milliseconds) => {
                self.data.push(tag::DATE);
                self.double(*milliseconds);
            }
            Object::Boxed(value) => self.boxed(value),
            Object::RegExp(regexp) => {
                self.data.push(tag::REGEXP);
                self.text(&regexp.source);
                self.varint(regexp.flags.into());
            }
            Object::Buffer(buffer) => self.buffer(buffer),
            Object::View(view) => self.view(view),
            Object::Error(error) => self.error(error),
        }
    }

    fn properties(&mut self, properties: &[(Text, Value)]) {
        for (key, value) in properties {
            // V8 keeps a key that is an index as a number.
            match key.as_index() {
                Some(index) => self.number(index.into()),
                None => self.text(key),
            }
            self.value(value);
        }
    }

    fn array(&mut self, array: &Array) {
        let is_dense = long(array.elements.len()) == u64::from(array.length);
        self.data.push(if is_dense { tag::DENSE_ARRAY } else { tag::SPARSE_ARRAY });
        self.varint(array.length.into());
        let mut count = array.properties.len();
        for (index, element) in &array.elements {
            if !is_dense {
                self.number((*index).into());
                count += 1;
            }
            self.value(element);
        }
        self.properties(&array.properties);
        self.data.push(if is_dense { tag::END_DENSE_ARRAY } else { tag::END_SPARSE_ARRAY });
        self.varint(long(count));
        self.varint(array.length.into());
    }

    fn boxed(&mut self, value: &Value) {
        match value {
            Value::Bool(true) => self.data.push(tag::BOXED_TRUE),
            Value::Bool(false) => self.data.push(tag::BOXED_FALSE),
            Value::Number(number) => {
                self.data.push(tag::BOXED_NUMBER);
                self.double(*number);
            }
            Value::BigInt(integer) => {
                self.data.push(tag::BOXED_BIGINT);
                self.bigint(integer);
            }
            Value::Text(text) => {
                self.data.push(tag::BOXED_STRING);
                self.text(text);
            }
            // Nothing else is boxed.
            Value::Undefined | Value::Null | Value::Object(_) => {
                self.data.extend([tag::OBJECT, tag::END_OBJECT, 0]);
            }
        }
    }

    fn buffer(&mut self, buffer: &Buffer) {
        let is_resizable = buffer.max_length.is_some();
        self.data.push(if is_resizable { tag::RESIZABLE_BUFFER } else { tag::BUFFER });
        self.varint(long(buffer.bytes.len()));
        if let Some(max) = buffer.max_length {
            self.varint(max);
        }
        self.data.extend_from_slice(&buffer.bytes);
    }

    fn view(&mut self, view: &View) {
        let kinds = VIEW_TAGS.iter().zip(ViewKind::ALL);
        let kind = kinds.into_iter().find(|(_, kind)| *kind == view.kind);
        self.data.extend([tag::VIEW, kind.map_or(0, |(tag, _)| *tag)]);
        self.varint(long(view.offset));
        let follows = view.flags & crate::graph::LENGTH_TRACKING != 0;
        self.varint(if follows { 0 } else { long(view.length) });
        self.varint(view.flags.into());
    }

    fn error(&mut self, error: &Error) {
        self.data.push(tag::ERROR);
        let kinds = error_tag::KINDS.iter().zip(ErrorKind::ALL);
        let kind = kinds.into_iter().find(|(_, kind)| *kind == error.kind);
        self.data.extend(kind.map(|(tag, _)| *tag).filter(|tag| *tag != 0));
        for (tag, text) in [(error_tag::MESSAGE, &error.message), (error_tag::STACK, &error.stack)]
        {
            if let Some(text) = text {
                self.data.push(tag);
                self.text(text);
            }
        }
        if let Some(cause) = &error.cause {
            self.data.push(error_tag::CAUSE);
            self.value(cause);
        }
        self.data.push(error_tag::END);
    }
}
