//! Words, strings and numbers to values.

use std::collections::HashMap;

use crate::graph::{Array, Builder, Object, REGEXP_FLAGS, RegExp, Value, ViewKind};
use crate::number;
use crate::text::Text;
use crate::v8::MAX_DEPTH;

use super::ParseError;
use super::scan::Scanner;

pub(super) struct Parser {
    pub(super) scanner: Scanner,
    pub(super) builder: Builder,
    /// The value is a `Deno.KvU64`.
    pub(super) u64: Option<u64>,
    pub(super) depth: usize,
    /// Bytes of buffers of which only the lengths were written.
    pub(super) zeros: u32,
}

impl Parser {
    pub(super) fn new(text: &str) -> Self {
        let (scanner, builder) = (Scanner::new(text), Builder::default());
        Self { scanner, builder, u64: None, depth: 0, zeros: 0 }
    }

    /// The one value of the text.
    pub(super) fn whole(&mut self) -> Result<Value, ParseError> {
        let value = self.value()?;
        self.scanner.skip_space()?;
        match self.scanner.peek() {
            None => Ok(value),
            Some(_) => Err(self.scanner.unexpected("the end")),
        }
    }

    pub(super) fn value(&mut self) -> Result<Value, ParseError> {
        if self.depth >= MAX_DEPTH {
            return Err(self
                .scanner
                .error(format!("more than {MAX_DEPTH} values within each other")));
        }
        self.scanner.skip_space()?;
        self.depth += 1;
        let value = match self.scanner.peek() {
            Some('{') => self.object(),
            Some('[') => self.array(),
            Some('"' | '\'' | '`') => self.scanner.string().map(Value::Text),
            Some('/') => self.regexp(),
            Some('-' | '+') => self.signed(),
            Some('.' | '0'..='9') => self.scanner.number(),
            _ => self.named(),
        };
        self.depth -= 1;
        value
    }

    fn signed(&mut self) -> Result<Value, ParseError> {
        let start = self.scanner.position();
        let is_negative = self.scanner.next() == Some('-');
        self.scanner.skip_space()?;
        let value = match self.scanner.peek() {
            Some('.' | '0'..='9') => self.scanner.number()?,
            _ => self.named()?,
        };
        match value {
            Value::Number(number) if is_negative => Ok(Value::Number(-number)),
            Value::Number(number) => Ok(Value::Number(number)),
            Value::BigInt(integer) if is_negative => Ok(Value::BigInt(-integer)),
            _ => Err(ParseError { at: start, reason: "a sign stands before a number".to_owned() }),
        }
    }

    /// A value that begins with a word.
    fn named(&mut self) -> Result<Value, ParseError> {
        let start = self.scanner.position();
        let word = self.scanner.word();
        Ok(match word.as_str() {
            "" => return Err(self.scanner.unexpected("a value")),
            "undefined" => Value::Undefined,
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "NaN" => Value::Number(f64::NAN),
            "Infinity" => Value::Number(f64::INFINITY),
            "new" => {
                self.scanner.skip_space()?;
                return self.construct();
            }
            _ => match ViewKind::ALL.into_iter().find(|kind| kind.name() == word) {
                Some(kind) if kind != ViewKind::DataView => return self.printed_view(kind),
                _ => {
                    let reason = format!(
                        "`{word}` is no value: strings stand in quotes, constructors behind `new`"
                    );
                    return Err(ParseError { at: start, reason });
                }
            },
        })
    }

    fn array(&mut self) -> Result<Value, ParseError> {
        self.scanner.expect('[')?;
        let id = self.builder.reserve();
        let mut array = Array::default();
        loop {
            if self.scanner.take(']')? {
                break;
            }
            if !self.scanner.take(',')? {
                let element = self.value()?;
                array.elements.push((array.length, element));
                if !self.scanner.take(',')? {
                    array.length += 1;
                    self.scanner.expect(']').map_err(|_| self.scanner.unexpected("`,` or `]`"))?;
                    break;
                }
            }
            array.length += 1;
        }
        self.builder.set(id, Object::Array(array));
        Ok(Value::Object(id))
    }

    fn object(&mut self) -> Result<Value, ParseError> {
        self.scanner.expect('{')?;
        let id = self.builder.reserve();
        let mut properties: Vec<(Text, Value)> = Vec::new();
        let mut places: HashMap<Text, usize> = HashMap::new();
        loop {
            if self.scanner.take('}')? {
                break;
            }
            let key = self.property_key()?;
            self.scanner.expect(':')?;
            let value = self.value()?;
            // A key that comes again keeps its place.
            match places.get(&key).and_then(|place| properties.get_mut(*place)) {
                Some(property) => property.1 = value,
                None => {
                    places.insert(key.clone(), properties.len());
                    properties.push((key, value));
                }
            }
            if !self.scanner.take(',')? {
                self.scanner.expect('}').map_err(|_| self.scanner.unexpected("`,` or `}`"))?;
                break;
            }
        }
        // Keys that are indexes come first, in their order.
        properties.sort_by_key(|(key, _)| key.as_index().map_or(u64::MAX, u64::from));
        self.builder.set(id, Object::Plain(properties));
        Ok(Value::Object(id))
    }

    fn property_key(&mut self) -> Result<Text, ParseError> {
        self.scanner.skip_space()?;
        match self.scanner.peek() {
            Some('"' | '\'') => self.scanner.string(),
            Some('[') => {
                self.scanner.expect('[')?;
                self.scanner.skip_space()?;
                let key = self.scanner.string()?;
                self.scanner.expect(']')?;
                Ok(key)
            }
            Some('.' | '0'..='9') => match self.scanner.number()? {
                Value::Number(number) => Ok(Text::from(number::to_text(number).as_str())),
                Value::BigInt(integer) => Ok(Text::from(integer.to_string().as_str())),
                _ => Err(self.scanner.unexpected("a key")),
            },
            _ => match self.scanner.word() {
                word if word.is_empty() => Err(self.scanner.unexpected("a key or `}`")),
                word => Ok(Text::from(word.as_str())),
            },
        }
    }

    /// A regular expression between slashes.
    fn regexp(&mut self) -> Result<Value, ParseError> {
        let start = self.scanner.position();
        self.scanner.next();
        let (mut source, mut in_class) = (String::new(), false);
        loop {
            match self.scanner.next() {
                Some('/') if !in_class => break,
                None | Some('\n') => {
                    let reason = "the regular expression has no end".to_owned();
                    return Err(ParseError { at: start, reason });
                }
                Some(c) => {
                    source.push(c);
                    match c {
                        '[' => in_class = true,
                        ']' => in_class = false,
                        '\\' => source.extend(self.scanner.next()),
                        _ => {}
                    }
                }
            }
        }
        let flags = self.scanner.word();
        self.add_regexp(&source, &flags)
    }

    pub(super) fn add_regexp(&mut self, source: &str, flags: &str) -> Result<Value, ParseError> {
        let mut bits = 0;
        for flag in flags.chars() {
            let bit = REGEXP_FLAGS.iter().position(|known| *known == flag && flag != 'l');
            let bit = bit.map(|bit| 1 << bit).filter(|bit| bits & bit == 0);
            bits |= bit.ok_or_else(|| {
                self.scanner
                    .error(format!("`{flag}` is no flag of a regular expression, or comes twice"))
            })?;
        }
        let regexp = RegExp { source: Text::from(source), flags: bits };
        Ok(Value::Object(self.builder.add(Object::RegExp(regexp))))
    }
}
