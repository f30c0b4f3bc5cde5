//! Protobuf put together by hand, from (field number, wire type, value).

use std::fmt::Debug;

use prost::Message;

/// Values of 64-bit fields lie above this, so that a field narrowed to 32 bits fails.
pub(crate) const L: u64 = 1 << 32;

/// The encoded fields of one message, in the order of their numbers.
pub(crate) type Fields = Vec<Vec<u8>>;

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            encoded.push(low & 0x7f);
            return encoded;
        }
        encoded.push(low | 0x80);
    }
}

fn tag(field: u64, wire_type: u64) -> Vec<u8> {
    varint((field << 3) | wire_type)
}

/// uint32, uint64, bool, enum: wire type 0.
pub(crate) fn field_varint(field: u64, value: u64) -> Vec<u8> {
    [tag(field, 0), varint(value)].concat()
}

/// int32, int64: wire type 0, a negative number as its 64 bits in two's complement (sint would
/// zigzag).
pub(crate) fn field_signed(field: u64, value: i64) -> Vec<u8> {
    field_varint(field, u64::from_le_bytes(value.to_le_bytes()))
}

/// fixed32: wire type 5.
pub(crate) fn field_fixed32(field: u64, value: u32) -> Vec<u8> {
    [tag(field, 5), value.to_le_bytes().to_vec()].concat()
}

/// fixed64: wire type 1.
pub(crate) fn field_fixed64(field: u64, value: u64) -> Vec<u8> {
    [tag(field, 1), value.to_le_bytes().to_vec()].concat()
}

/// bytes, string: wire type 2. A repeated field has one of these for each element.
pub(crate) fn field_bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// A nested message: wire type 2.
pub(crate) fn field_message(field: u64, fields: &[Vec<u8>]) -> Vec<u8> {
    field_bytes(field, &fields.concat())
}

/// Repeated integers: wire type 2, all in one, without tags of their own.
pub(crate) fn field_packed(field: u64, values: &[u64]) -> Vec<u8> {
    field_bytes(field, &values.iter().copied().flat_map(varint).collect::<Vec<u8>>())
}

#[track_caller]
pub(crate) fn assert_golden<M: Message + Default + PartialEq + Debug>(
    message: &M,
    golden: &[Vec<u8>],
) {
    let golden = golden.concat();
    assert_eq!(message.encode_to_vec(), golden, "encoding {message:?}");
    assert_eq!(M::decode(golden.as_slice()).unwrap(), *message);
}

/// The examples of <https://protobuf.dev/programming-guides/encoding>.
#[test]
fn the_helpers_write_protobuf() {
    assert_eq!(field_varint(1, 150), b"\x08\x96\x01");
    assert_eq!(field_signed(1, -2), b"\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    assert_eq!(field_bytes(2, b"testing"), b"\x12\x07testing");
    assert_eq!(field_message(3, &[field_varint(1, 150)]), b"\x1a\x03\x08\x96\x01");
    assert_eq!(field_packed(6, &[3, 270, 86_942]), b"\x32\x06\x03\x8e\x02\x9e\xa7\x05");
    assert_eq!(field_varint(16, 1), b"\x80\x01\x01");
}
