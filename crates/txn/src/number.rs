//! Numbers in values, as `sum`, `min` and `max` know them.

use bytes::Bytes;
use meridian_types::{Value, ValueEncoding};
use meridian_values::v8;
use num_bigint::BigInt;

/// A value that a sum can add.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Number {
    /// A JavaScript number, in V8's serialization.
    Double(f64),
    /// A JavaScript bigint, in V8's serialization.
    BigInt(BigInt),
    /// A little-endian unsigned 64-bit integer, `Deno.KvU64`.
    U64(u64),
}

/// Why a value is no [`Number`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotANumber {
    Empty,
    /// Not what its encoding says.
    Invalid,
    /// A well-formed value of another type.
    Unsupported,
}

impl Number {
    pub(crate) fn parse(value: &Value) -> Result<Self, NotANumber> {
        match value.encoding {
            ValueEncoding::V8 => Self::parse_v8(&value.data),
            ValueEncoding::Le64 => le64(value).map(Self::U64).ok_or(NotANumber::Invalid),
            ValueEncoding::Bytes => Err(NotANumber::Unsupported),
        }
    }

    pub(crate) fn parse_v8(data: &[u8]) -> Result<Self, NotANumber> {
        if data.is_empty() {
            return Err(NotANumber::Empty);
        }
        match v8::decode(data) {
            Ok(v8::Numeric::Number(number)) => Ok(Self::Double(number)),
            Ok(v8::Numeric::BigInt(integer)) => Ok(Self::BigInt(integer)),
            Err(v8::DecodeError::Malformed) => Err(NotANumber::Invalid),
            Err(v8::DecodeError::NotNumeric) => Err(NotANumber::Unsupported),
        }
    }

    pub(crate) fn into_value(self) -> Value {
        match self {
            Self::Double(number) => v8_value(&v8::Numeric::Number(number)),
            Self::BigInt(integer) => v8_value(&v8::Numeric::BigInt(integer)),
            Self::U64(integer) => le64_value(integer),
        }
    }

    /// As the messages to clients name it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Double(_) => "Number",
            Self::BigInt(_) => "BigInt",
            Self::U64(_) => "KvU64",
        }
    }
}

fn v8_value(value: &v8::Numeric) -> Value {
    Value { encoding: ValueEncoding::V8, data: v8::encode(value) }
}

/// `None` unless `value` is a u64 of eight bytes.
pub(crate) fn le64(value: &Value) -> Option<u64> {
    let bytes = <[u8; 8]>::try_from(value.data.as_ref()).ok()?;
    (value.encoding == ValueEncoding::Le64).then(|| u64::from_le_bytes(bytes))
}

pub(crate) fn le64_value(integer: u64) -> Value {
    Value { encoding: ValueEncoding::Le64, data: Bytes::copy_from_slice(&integer.to_le_bytes()) }
}
