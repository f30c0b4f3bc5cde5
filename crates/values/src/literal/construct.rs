//! Constructors: what stands behind `new`.

use num_bigint::BigInt;

use crate::date;
use crate::graph::{Array, Buffer, Error, ErrorKind, Object, ObjectId, Value, View, ViewKind};
use crate::number;
use crate::text::Text;

use super::ParseError;
use super::parse::Parser;

/// No value under a key is longer.
const MAX_BUFFER_BYTES: u32 = 65_536;

impl Parser {
    pub(super) fn construct(&mut self) -> Result<Value, ParseError> {
        let start = self.scanner.position();
        let mut name = self.scanner.word();
        while self.scanner.take('.')? {
            name = format!("{name}.{}", self.scanner.word());
        }
        let arguments = self.arguments()?;
        let made = match (name.as_str(), arguments.as_slice()) {
            ("Deno.KvU64" | "KvU64", [Value::BigInt(integer)]) => self.kv_u64(integer),
            ("Date", [argument]) => self.new_date(argument),
            ("Date", []) => Err("the present time is not known here: name a time".to_owned()),
            ("Map", arguments) => self.new_map(arguments),
            ("Set", arguments) => self.new_set(arguments),
            ("RegExp", [Value::Text(source)]) => {
                return self.add_regexp(&source.to_string_lossy(), "");
            }
            ("RegExp", [Value::Text(source), Value::Text(flags)]) => {
                return self.add_regexp(&source.to_string_lossy(), &flags.to_string_lossy());
            }
            ("ArrayBuffer", [Value::Number(length)]) => {
                self.zeros(*length).map(|bytes| self.add_buffer(bytes))
            }
            ("Number", [value @ Value::Number(_)])
            | ("String", [value @ Value::Text(_)])
            | ("Boolean", [value @ Value::Bool(_)]) => {
                Ok(self.builder.add(Object::Boxed(value.clone())))
            }
            (other, arguments) => self.new_view_or_error(other, arguments),
        };
        made.map(Value::Object).map_err(|reason| ParseError { at: start, reason })
    }

    fn arguments(&mut self) -> Result<Vec<Value>, ParseError> {
        let mut arguments = Vec::new();
        self.scanner.expect('(')?;
        while !self.scanner.take(')')? {
            arguments.push(self.value()?);
            if !self.scanner.take(',')? {
                self.scanner.expect(')')?;
                break;
            }
        }
        Ok(arguments)
    }

    fn kv_u64(&mut self, integer: &BigInt) -> Result<ObjectId, String> {
        if self.depth > 1 {
            return Err(
                "a Deno.KvU64 is a value by itself, and cannot be within another".to_owned()
            );
        }
        let integer = u64::try_from(integer);
        self.u64 = Some(integer.map_err(|_| "a Deno.KvU64 is from 0n to 18446744073709551615n")?);
        Ok(self.builder.reserve())
    }

    fn new_date(&mut self, argument: &Value) -> Result<ObjectId, String> {
        let milliseconds = match argument {
            Value::Number(number) => *number,
            Value::Text(text) => date::parse(&text.to_string_lossy())
                .ok_or("a date is written as 2024-05-01 or 2024-05-01T12:30:00Z")?,
            _ => return Err("a date is a number of milliseconds or a string".to_owned()),
        };
        Ok(self.builder.add(Object::Date(milliseconds)))
    }

    /// The elements of an array without holes.
    fn elements(&self, value: &Value) -> Option<Vec<Value>> {
        let Value::Object(id) = value else { return None };
        let Object::Array(Array { length, elements, .. }) = self.builder.get(*id) else {
            return None;
        };
        (usize::try_from(*length) == Ok(elements.len()))
            .then(|| elements.iter().map(|(_, element)| element.clone()).collect())
    }

    fn new_map(&mut self, arguments: &[Value]) -> Result<ObjectId, String> {
        let entries = match arguments {
            [] => Vec::new(),
            [list] => {
                let list = self.elements(list).ok_or("a Map is made of an array of pairs")?;
                let pairs = list.iter().map(|pair| match self.elements(pair)?.as_slice() {
                    [key, value] => Some((key.clone(), value.clone())),
                    _ => None,
                });
                pairs.collect::<Option<Vec<_>>>().ok_or("an entry of a Map is [key, value]")?
            }
            _ => return Err("a Map is made of one array".to_owned()),
        };
        Ok(self.builder.add(Object::Map(entries)))
    }

    fn new_set(&mut self, arguments: &[Value]) -> Result<ObjectId, String> {
        let members = match arguments {
            [] => Vec::new(),
            [list] => self.elements(list).ok_or("a Set is made of an array")?,
            _ => return Err("a Set is made of one array".to_owned()),
        };
        Ok(self.builder.add(Object::Set(members)))
    }

    fn new_view_or_error(&mut self, name: &str, arguments: &[Value]) -> Result<ObjectId, String> {
        let view = ViewKind::ALL.into_iter().find(|kind| kind.name() == name);
        if let Some(kind) = view.filter(|kind| *kind != ViewKind::DataView) {
            return match arguments {
                [] => Ok(self.add_view(kind, Vec::new())),
                [Value::Number(length)] => {
                    #[allow(clippy::cast_precision_loss, reason = "at most 8")]
                    let bytes = self.zeros(*length * kind.element_bytes() as f64)?;
                    Ok(self.add_view(kind, bytes))
                }
                [list] => {
                    let list = self.elements(list).ok_or_else(|| {
                        format!("a {name} is made of an array of numbers, or of a length")
                    })?;
                    let elements = list.iter().map(|element| element_bytes(kind, element));
                    let bytes = elements.collect::<Result<Vec<_>, _>>()?.concat();
                    Ok(self.add_view(kind, bytes))
                }
                _ => Err(format!("a {name} is made of one array")),
            };
        }
        let Some(kind) = ErrorKind::ALL.into_iter().find(|kind| kind.name() == name) else {
            return Err(match name {
                "" => "a name stands behind `new`".to_owned(),
                _ => format!("there is no `new {name}` here, or none with these arguments"),
            });
        };
        let (message, cause) = match arguments {
            [] => (None, None),
            [Value::Text(message)] => (Some(message.clone()), None),
            [Value::Text(message), options] => (Some(message.clone()), self.cause(options)),
            _ => return Err(format!("a {name} is made of a message")),
        };
        let stack = message.as_ref().map_or_else(
            || kind.name().to_owned(),
            |message| format!("{}: {}", kind.name(), message.to_string_lossy()),
        );
        let stack = Some(Text::from(stack.as_str()));
        Ok(self.builder.add(Object::Error(Error { kind, message, stack, cause })))
    }

    fn cause(&self, options: &Value) -> Option<Value> {
        let Value::Object(id) = options else { return None };
        let Object::Plain(properties) = self.builder.get(*id) else { return None };
        let cause = properties.iter().find(|(key, _)| *key == Text::from("cause"));
        cause.map(|(_, cause)| cause.clone())
    }

    /// A typed array as `Deno.inspect` prints it: `Uint8Array(2) [ 1, 2 ]`, from behind its name.
    pub(super) fn printed_view(&mut self, kind: ViewKind) -> Result<Value, ParseError> {
        self.scanner.expect('(')?;
        let length = self.value()?;
        self.scanner.expect(')')?;
        self.scanner.skip_space()?;
        let start = self.scanner.position();
        let list = self.value()?;
        let failed = |reason: String| ParseError { at: start, reason };
        let list = self.elements(&list).ok_or_else(|| failed("expected an array".to_owned()))?;
        let claimed = match length {
            Value::Number(length) => number::to_u32(length).and_then(|n| usize::try_from(n).ok()),
            _ => None,
        };
        if claimed != Some(list.len()) {
            return Err(failed(format!("{} elements, and not as many as before", list.len())));
        }
        let elements = list.iter().map(|element| element_bytes(kind, element));
        let bytes = elements.collect::<Result<Vec<_>, _>>().map_err(failed)?.concat();
        Ok(Value::Object(self.add_view(kind, bytes)))
    }

    /// Bytes that the text does not hold: all of them together fit into a value.
    fn zeros(&mut self, length: f64) -> Result<Vec<u8>, String> {
        let left = MAX_BUFFER_BYTES - self.zeros;
        let length = number::to_u32(length).filter(|length| *length <= left);
        let length = length.ok_or_else(|| {
            format!("lengths are from 0 to {MAX_BUFFER_BYTES} bytes, all of them together")
        })?;
        self.zeros += length;
        Ok(vec![0; usize::try_from(length).unwrap_or_default()])
    }

    fn add_buffer(&mut self, bytes: Vec<u8>) -> ObjectId {
        self.builder.add(Object::Buffer(Buffer { bytes, max_length: None }))
    }

    fn add_view(&mut self, kind: ViewKind, bytes: Vec<u8>) -> ObjectId {
        let length = bytes.len();
        let buffer = self.add_buffer(bytes);
        self.builder.add(Object::View(View { kind, buffer, offset: 0, length, flags: 0 }))
    }
}

/// An element of a typed array. JavaScript would wrap a number that does not fit; here it is taken
/// for a mistake.
fn element_bytes(kind: ViewKind, element: &Value) -> Result<Vec<u8>, String> {
    let beyond = || format!("{} has no such element", kind.name());
    match (kind, element) {
        (ViewKind::BigInt64, Value::BigInt(integer)) => {
            let integer = i64::try_from(integer).map_err(|_| beyond())?;
            Ok(integer.to_le_bytes().to_vec())
        }
        (ViewKind::BigUint64, Value::BigInt(integer)) => {
            let integer = u64::try_from(integer).map_err(|_| beyond())?;
            Ok(integer.to_le_bytes().to_vec())
        }
        (ViewKind::BigInt64 | ViewKind::BigUint64, _) => {
            Err(format!("the elements of a {} are bigints", kind.name()))
        }
        (ViewKind::Float16, Value::Number(n)) => Ok(number::to_half(*n).to_le_bytes().to_vec()),
        #[allow(clippy::cast_possible_truncation, reason = "the nearest number of 32 bits")]
        (ViewKind::Float32, Value::Number(n)) => Ok((*n as f32).to_le_bytes().to_vec()),
        (ViewKind::Float64, Value::Number(n)) => Ok(n.to_le_bytes().to_vec()),
        (_, Value::Number(number)) => {
            let (low, high): (i64, i64) = match kind {
                ViewKind::Int8 => (-0x80, 0x7f),
                ViewKind::Int16 => (-0x8000, 0x7fff),
                ViewKind::Uint16 => (0, 0xffff),
                ViewKind::Int32 => (-0x8000_0000, 0x7fff_ffff),
                ViewKind::Uint32 => (0, 0xffff_ffff),
                _ => (0, 0xff),
            };
            let whole = i64::from(number::to_u32(number.abs()).ok_or_else(beyond)?);
            let whole = if *number < 0.0 { -whole } else { whole };
            if !(low..=high).contains(&whole) {
                return Err(beyond());
            }
            Ok(whole.to_le_bytes().into_iter().take(kind.element_bytes()).collect())
        }
        _ => Err(format!("the elements of a {} are numbers", kind.name())),
    }
}
