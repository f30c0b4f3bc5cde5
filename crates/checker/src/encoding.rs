//! Values as bytes, for workloads without an encoding of their own.

use meridian_types::ValueEncoding;
use meridian_types::limits::MAX_VALUE_BYTES;

use crate::history::Value;

/// The largest number of list elements that fit into a stored value.
pub const MAX_LIST_ELEMENTS: usize = (MAX_VALUE_BYTES - 1) / 8;

const REGISTER: u8 = b'r';
const LIST: u8 = b'l';

/// Stored bytes that no workload wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes in encoding {encoding:?} are no value of a workload")]
pub struct InvalidValue {
    pub encoding: ValueEncoding,
    pub bytes: usize,
}

impl Value {
    /// A counter is a little-endian u64 that the store can sum. A register is `r`, a list is `l`,
    /// each followed by little-endian u64s.
    pub fn encode(&self) -> (ValueEncoding, Vec<u8>) {
        match self {
            Self::Counter(value) => (ValueEncoding::Le64, value.to_le_bytes().to_vec()),
            Self::Register(value) => (ValueEncoding::Bytes, tagged(REGISTER, &[*value])),
            Self::List(elements) => (ValueEncoding::Bytes, tagged(LIST, elements)),
        }
    }

    pub fn decode(encoding: ValueEncoding, data: &[u8]) -> Result<Self, InvalidValue> {
        let value = match (encoding, data.split_first()) {
            (ValueEncoding::Le64, _) => numbers(data).and_then(only).map(Self::Counter),
            (ValueEncoding::Bytes, Some((&REGISTER, rest))) => {
                numbers(rest).and_then(only).map(Self::Register)
            }
            (ValueEncoding::Bytes, Some((&LIST, rest))) => numbers(rest).map(Self::List),
            (ValueEncoding::Bytes | ValueEncoding::V8, _) => None,
        };
        value.ok_or(InvalidValue { encoding, bytes: data.len() })
    }
}

fn tagged(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

fn numbers(data: &[u8]) -> Option<Vec<u64>> {
    data.chunks(8).map(|chunk| chunk.try_into().ok().map(u64::from_le_bytes)).collect()
}

fn only(numbers: Vec<u64>) -> Option<u64> {
    match numbers.as_slice() {
        [number] => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden_and_come_back() {
        let golden = [
            (Value::Counter(258), ValueEncoding::Le64, b"\x02\x01\0\0\0\0\0\0".as_slice()),
            (Value::Register(7), ValueEncoding::Bytes, b"r\x07\0\0\0\0\0\0\0"),
            (Value::List(vec![]), ValueEncoding::Bytes, b"l"),
            (
                Value::List(vec![1, 2]),
                ValueEncoding::Bytes,
                b"l\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            ),
        ];
        for (value, encoding, data) in golden {
            assert_eq!(value.encode(), (encoding, data.to_vec()));
            assert_eq!(Value::decode(encoding, data), Ok(value));
        }
        for (encoding, data) in [
            (ValueEncoding::Bytes, b"r".as_slice()),
            (ValueEncoding::Le64, b"1"),
            (ValueEncoding::V8, b"l"),
        ] {
            assert_eq!(
                Value::decode(encoding, data),
                Err(InvalidValue { encoding, bytes: data.len() })
            );
        }
    }
}
