//! Values as programs of clients write them: numbers of all types above all.

use bytes::Bytes;
use proptest::option::weighted;
use proptest::prelude::{BoxedStrategy, Strategy, any, prop_oneof};
use proptest::sample::select;
use prost::encoding::encode_varint;

pub(crate) const V8: i32 = 1;
pub(crate) const LE64: i32 = 2;
pub(crate) const BYTES: i32 = 3;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    U64(u64),
    /// JavaScript numbers, as V8 writes them: whole ones as integers where they fit.
    Double(f64),
    Int(i32),
    UInt(u32),
    BigInt(i128),
    /// Well-formed values of other types, by V8's format without its header.
    Other(&'static [u8]),
    /// Bytes that no V8 reads.
    Damaged(&'static [u8]),
    Bytes(Vec<u8>),
    /// So many bytes of this encoding.
    Long(i32, usize),
}

impl Data {
    pub(crate) fn encoding(&self) -> i32 {
        match self {
            Self::U64(_) => LE64,
            Self::Bytes(_) => BYTES,
            Self::Long(encoding, _) => *encoding,
            _ => V8,
        }
    }

    /// In the format of V8 that is asked for, where that has one.
    pub(crate) fn bytes(&self, format: u8) -> Bytes {
        let v8 = |tag: &[u8], rest: &[u8]| [&[0xff, format], tag, rest].concat().into();
        match self {
            Self::U64(number) => Bytes::copy_from_slice(&number.to_le_bytes()),
            Self::Double(number) => v8(b"N", &number.to_le_bytes()),
            Self::Int(number) => {
                let zigzag = (number << 1) ^ (number >> 31);
                v8(b"I", &varint(zigzag.cast_unsigned().into()))
            }
            Self::UInt(number) => v8(b"U", &varint((*number).into())),
            Self::BigInt(number) => v8(b"Z", &bigint(*number)),
            Self::Other(data) => v8(data, b""),
            Self::Damaged(data) => Bytes::from_static(data),
            Self::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            Self::Long(_, length) => vec![7; *length].into(),
        }
    }
}

fn varint(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(number, &mut bytes);
    bytes
}

/// Digits of eight bytes, as V8 has them; zero has none.
fn bigint(number: i128) -> Vec<u8> {
    let magnitude = number.unsigned_abs().to_le_bytes();
    let digits = (16 - number.unsigned_abs().leading_zeros() as usize / 8).div_ceil(8) * 8;
    let sign = u64::from(number < 0);
    [varint((digits as u64) << 1 | sign), magnitude[..digits].to_vec()].concat()
}

fn u64s() -> BoxedStrategy<Data> {
    let edges = vec![0, 1, 2, 7, u64::MAX - 1, u64::MAX, 1 << 63];
    prop_oneof![4 => select(edges), 1 => any::<u64>()].prop_map(Data::U64).boxed()
}

fn doubles() -> BoxedStrategy<Data> {
    let edges = vec![0.0, -0.0, 0.5, -1.5, 1e308, f64::INFINITY, f64::NEG_INFINITY, 9e15];
    prop_oneof![
        3 => select(edges).prop_map(Data::Double),
        1 => any::<f64>().prop_map(Data::Double),
        4 => (-5..5).prop_map(Data::Int),
        1 => any::<i32>().prop_map(Data::Int),
        1 => any::<u32>().prop_map(Data::UInt),
    ]
    .boxed()
}

fn bigints() -> BoxedStrategy<Data> {
    let edges = vec![0, 1, -1, 3, -7, 1 << 64, -(1 << 64), (1 << 64) - 1, 1 << 100];
    let all = i128::from(i64::MIN)..i128::from(u64::MAX);
    prop_oneof![2 => select(edges), 1 => all, 2 => -9..9_i128].prop_map(Data::BigInt).boxed()
}

fn number() -> BoxedStrategy<Data> {
    prop_oneof![1 => u64s(), 1 => doubles(), 1 => bigints()].boxed()
}

fn no_number() -> BoxedStrategy<Data> {
    // undefined, null, true, false, "a", {}, [], a Date, an array of two numbers, a Map.
    let others: [&[u8]; 10] = [
        b"_",
        b"0",
        b"T",
        b"F",
        b"\"\x01a",
        b"o{\0",
        b"A\0$\0\0",
        b"D\0\0\0\0\0\0\xf0?",
        b"A\x02I\x02I\x04$\0\x02",
        b";:\0",
    ];
    // Empty ones often: of these alone one text is told.
    let damaged: [&[u8]; 10] = [
        b"",
        b"",
        b"",
        b"",
        b"\xff",
        b"\xff\x0f",
        b"\xff\x0fN\0",
        b"\xff\x0fZ\x10\x01",
        b"\x01\x02",
        b"\xff\x63I\x02",
    ];
    prop_oneof![
        3 => select(others.to_vec()).prop_map(Data::Other),
        3 => select(damaged.to_vec()).prop_map(Data::Damaged),
        3 => proptest::collection::vec(any::<u8>(), 0..12).prop_map(Data::Bytes),
    ]
    .boxed()
}

/// The operand of a sum and its bounds, mostly of one type.
pub(crate) fn operands() -> BoxedStrategy<(Data, Option<Data>, Option<Data>)> {
    let of = |data: BoxedStrategy<Data>, share| {
        (data.clone(), weighted(share, data.clone()), weighted(share, data))
    };
    let any_bound = prop_oneof![6 => number(), 1 => no_number()].boxed();
    let any = (data(), weighted(0.3, any_bound.clone()), weighted(0.3, any_bound));
    prop_oneof![3 => of(u64s(), 0.05), 6 => of(doubles(), 0.4), 6 => of(bigints(), 0.4), 2 => any]
        .boxed()
}

pub(crate) fn data() -> BoxedStrategy<Data> {
    let long = select(vec![V8, BYTES]).prop_map(|encoding| Data::Long(encoding, 65_536));
    prop_oneof![50 => number(), 14 => no_number(), 1 => long].boxed()
}
