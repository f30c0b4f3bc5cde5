//! JavaScript values: what Deno KV stores under a key.

use num_bigint::BigInt;

use crate::text::Text;

/// A value with its encoding, as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    V8(Graph),
    /// `Deno.KvU64`
    U64(u64),
    /// A `Uint8Array` by itself.
    Bytes(Vec<u8>),
}

/// A value, and the objects that it leads to. Objects may lead to each other in circles, and to one
/// object from several places.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    root: Value,
    objects: Vec<Object>,
}

/// The place of an object in its graph. It is only made by the graph, and always leads to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId(usize);

impl ObjectId {
    /// How many objects of its graph come before it.
    pub(crate) fn number(self) -> usize {
        self.0
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    BigInt(BigInt),
    Text(Text),
    Object(ObjectId),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// Properties in their order.
    Plain(Vec<(Text, Value)>),
    Array(Array),
    Map(Vec<(Value, Value)>),
    Set(Vec<Value>),
    /// Milliseconds since the Unix epoch; NaN is no date.
    Date(f64),
    /// A boolean, number, bigint or string that is an object.
    Boxed(Value),
    RegExp(RegExp),
    Buffer(Buffer),
    View(View),
    Error(Error),
}

/// An array. Elements that are not among `elements` are holes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Array {
    pub length: u32,
    /// In ascending order, each index once and below `length`.
    pub elements: Vec<(u32, Value)>,
    pub properties: Vec<(Text, Value)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RegExp {
    pub source: Text,
    pub flags: u32,
}

/// The flags of regular expressions, in the order of their bits.
pub(crate) const REGEXP_FLAGS: [char; 9] = ['g', 'i', 'm', 'y', 'u', 's', 'l', 'd', 'v'];

impl RegExp {
    /// As it is written in a program.
    pub fn to_text(&self) -> String {
        // In the order that `flags` of a regular expression has.
        let flags = "dgimsuvy".chars().filter(|flag| {
            let bit = REGEXP_FLAGS.iter().position(|known| known == flag);
            bit.is_some_and(|bit| self.flags >> bit & 1 == 1)
        });
        format!("/{}/{}", self.source.to_string_lossy(), flags.collect::<String>())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    /// Of a buffer that can be resized: how far.
    pub max_length: Option<u64>,
}

/// A typed array or `DataView` over a buffer: a window within it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub kind: ViewKind,
    pub buffer: ObjectId,
    pub offset: usize,
    /// In bytes.
    pub length: usize,
    /// As they are stored: whether the length follows that of the buffer, and whether the buffer
    /// can be resized.
    pub flags: u32,
}

/// The bit of [`View::flags`] for a length that follows the buffer's.
pub(crate) const LENGTH_TRACKING: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewKind {
    Int8,
    Uint8,
    Uint8Clamped,
    Int16,
    Uint16,
    Int32,
    Uint32,
    Float16,
    Float32,
    Float64,
    BigInt64,
    BigUint64,
    DataView,
}

impl ViewKind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Int8,
        Self::Uint8,
        Self::Uint8Clamped,
        Self::Int16,
        Self::Uint16,
        Self::Int32,
        Self::Uint32,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::BigInt64,
        Self::BigUint64,
        Self::DataView,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "Int8Array",
            Self::Uint8 => "Uint8Array",
            Self::Uint8Clamped => "Uint8ClampedArray",
            Self::Int16 => "Int16Array",
            Self::Uint16 => "Uint16Array",
            Self::Int32 => "Int32Array",
            Self::Uint32 => "Uint32Array",
            Self::Float16 => "Float16Array",
            Self::Float32 => "Float32Array",
            Self::Float64 => "Float64Array",
            Self::BigInt64 => "BigInt64Array",
            Self::BigUint64 => "BigUint64Array",
            Self::DataView => "DataView",
        }
    }

    pub fn element_bytes(self) -> usize {
        match self {
            Self::Int8 | Self::Uint8 | Self::Uint8Clamped | Self::DataView => 1,
            Self::Int16 | Self::Uint16 | Self::Float16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Float64 | Self::BigInt64 | Self::BigUint64 => 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: Option<Text>,
    pub stack: Option<Text>,
    pub cause: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Error,
    Eval,
    Range,
    Reference,
    Syntax,
    Type,
    Uri,
}

impl ErrorKind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Error,
        Self::Eval,
        Self::Range,
        Self::Reference,
        Self::Syntax,
        Self::Type,
        Self::Uri,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "Error",
            Self::Eval => "EvalError",
            Self::Range => "RangeError",
            Self::Reference => "ReferenceError",
            Self::Syntax => "SyntaxError",
            Self::Type => "TypeError",
            Self::Uri => "URIError",
        }
    }
}

/// In the place of an object that a broken id would lead to.
static NOTHING: Object = Object::Plain(Vec::new());

impl Graph {
    /// A value that leads to no object.
    pub fn primitive(value: Value) -> Self {
        Self { root: value, objects: Vec::new() }
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    pub fn object(&self, id: ObjectId) -> &Object {
        self.objects.get(id.0).unwrap_or(&NOTHING)
    }

    /// The object that the value is, unless it is a primitive.
    pub fn root_object(&self) -> Option<&Object> {
        match self.root {
            Value::Object(id) => Some(self.object(id)),
            _ => None,
        }
    }

    pub(crate) fn objects(&self) -> impl ExactSizeIterator<Item = &Object> {
        self.objects.iter()
    }

    /// The bytes that a view shows.
    pub fn window(&self, view: &View) -> &[u8] {
        let Object::Buffer(buffer) = self.object(view.buffer) else { return &[] };
        let behind = buffer.bytes.get(view.offset..).unwrap_or_default();
        behind.get(..view.length).unwrap_or(behind)
    }
}

/// A graph that is being made.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    objects: Vec<Object>,
}

impl Builder {
    pub(crate) fn add(&mut self, object: Object) -> ObjectId {
        self.objects.push(object);
        ObjectId(self.objects.len() - 1)
    }

    /// A place for an object whose parts come first. Parts may lead back to it.
    pub(crate) fn reserve(&mut self) -> ObjectId {
        self.add(Object::Plain(Vec::new()))
    }

    pub(crate) fn set(&mut self, id: ObjectId, object: Object) {
        if let Some(place) = self.objects.get_mut(id.0) {
            *place = object;
        }
    }

    pub(crate) fn get(&self, id: ObjectId) -> &Object {
        self.objects.get(id.0).unwrap_or(&NOTHING)
    }

    pub(crate) fn build(self, root: Value) -> Graph {
        Graph { root, objects: self.objects }
    }
}
