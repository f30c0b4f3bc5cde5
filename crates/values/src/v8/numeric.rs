//! Numbers and bigints alone: all that sums have to read.
//!
//! The treatment of numbers by the reference implementation is kept, to the byte.

use bytes::Bytes;
use num_bigint::{BigInt, Sign};

use super::input::{Cut, Input, push_varint};
use super::{NEWEST_VERSION, WRITTEN_VERSION, tag};

/// 14 is the oldest version that the reference implementation reads.
const READABLE_VERSIONS: std::ops::RangeInclusive<u32> = 14..=NEWEST_VERSION;
/// Everything that is no number, that a value can begin with and the reference can read.
const TAGS_NOT_NUMERIC: &[u8] = b"_0TFS\"coaADyxnzsR;'B~r";

/// A JavaScript number or bigint.
#[derive(Debug, Clone, PartialEq)]
pub enum Numeric {
    Number(f64),
    BigInt(BigInt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a value of V8's serializer")]
    Malformed,
    /// The bytes behind the tag were not checked.
    #[error("not a number")]
    NotNumeric,
}

impl From<Cut> for DecodeError {
    fn from(_: Cut) -> Self {
        Self::Malformed
    }
}

/// Reads a number or bigint. Bytes behind it are ignored, as V8 does.
pub fn decode(data: &[u8]) -> Result<Numeric, DecodeError> {
    let mut input = Input::new(data);
    if input.tag()? != tag::VERSION || !READABLE_VERSIONS.contains(&input.varint()?) {
        return Err(DecodeError::Malformed);
    }
    loop {
        return match input.tag()? {
            // A count of objects that old versions wrote. The value follows.
            tag::VERIFY_OBJECT_COUNT => {
                input.varint()?;
                continue;
            }
            tag::INT32 => Ok(Numeric::Number(f64::from(input.zigzag()?))),
            tag::UINT32 => Ok(Numeric::Number(f64::from(input.varint()?))),
            tag::DOUBLE => Ok(Numeric::Number(input.double()?)),
            tag::BIGINT => Ok(Numeric::BigInt(input.bigint()?)),
            other if TAGS_NOT_NUMERIC.contains(&other) => Err(DecodeError::NotNumeric),
            _ => Err(DecodeError::Malformed),
        };
    }
}

/// Writes what the reference writes: a number always as a double (V8 itself writes a small whole
/// one as an int32, and reads both), a bigint in as few bytes as it needs (V8 itself fills up to
/// eight), 0 in one.
pub fn encode(value: &Numeric) -> Bytes {
    match value {
        Numeric::Number(number) => {
            let [b0, b1, b2, b3, b4, b5, b6, b7] = number.to_le_bytes();
            Bytes::copy_from_slice(&[
                tag::VERSION,
                WRITTEN_VERSION,
                tag::DOUBLE,
                b0,
                b1,
                b2,
                b3,
                b4,
                b5,
                b6,
                b7,
            ])
        }
        Numeric::BigInt(integer) => {
            let (sign, magnitude) = integer.to_bytes_le();
            let mut data = vec![tag::VERSION, WRITTEN_VERSION, tag::BIGINT];
            let length = u64::try_from(magnitude.len()).unwrap_or(u64::MAX);
            push_varint((length << 1) | u64::from(sign == Sign::Minus), &mut data);
            data.extend_from_slice(&magnitude);
            data.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::{DecodeError, Numeric, decode, encode};

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn number(value: f64) -> Result<Numeric, DecodeError> {
        Ok(Numeric::Number(value))
    }

    fn bigint(text: &str) -> Result<Numeric, DecodeError> {
        Ok(Numeric::BigInt(text.parse().unwrap()))
    }

    /// The bytes are what `v8.serialize` of Node 20 printed for these values.
    #[test]
    fn reads_what_v8_writes() {
        for (data, value) in [
            ("ff0f4900", number(0.0)),
            ("ff0f4902", number(1.0)),
            ("ff0f4901", number(-1.0)),
            ("ff0f49ffffffff0f", number(-2_147_483_648.0)),
            ("ff0f4e0000000000000080", number(-0.0)),
            ("ff0f4e000000000000f83f", number(1.5)),
            ("ff0f4e000000000000e041", number(2_147_483_648.0)),
            ("ff0f4e0000e0ffffffef41", number(4_294_967_295.0)),
            ("ff0f5a00", bigint("0")),
            ("ff0f5a100100000000000000", bigint("1")),
            ("ff0f5a110100000000000000", bigint("-1")),
            ("ff0f5a10ff00000000000000", bigint("255")),
            ("ff0f5a2000000000000000000100000000000000", bigint("18446744073709551616")),
            ("ff0f5a2100000000000000000100000000000000", bigint("-18446744073709551616")),
        ] {
            assert_eq!(decode(&hex(data)), value, "{data}");
        }
        let Ok(Numeric::Number(nan)) = decode(&hex("ff0f4e000000000000f87f")) else {
            panic!("not a number")
        };
        assert!(nan.is_nan());
        let Ok(Numeric::Number(zero)) = decode(&hex("ff0f4e0000000000000080")) else {
            panic!("not a number")
        };
        assert!(zero.is_sign_negative());
    }

    #[test]
    fn reads_the_forms_that_only_others_write() {
        for (data, value) in [
            // Versions 14 and 16, and a uint32.
            ("ff0e4902", number(1.0)),
            ("ff104902", number(1.0)),
            ("ff0f55ffffffff0f", number(4_294_967_295.0)),
            // Padding before each tag, an object count, a varint longer than need be, bytes behind.
            ("00ff0f00004902", number(1.0)),
            ("ff0f3f034902", number(1.0)),
            ("ff0f498280808000", number(1.0)),
            ("ff0f49060000", number(3.0)),
            // A bigint in no multiple of eight bytes, and a zero with a sign.
            ("ff0f5a0201", bigint("1")),
            ("ff0f5a0300", bigint("0")),
        ] {
            assert_eq!(decode(&hex(data)), value, "{data}");
        }
    }

    /// Node 20 reads each of these as the value beside it.
    #[test]
    fn written_bytes_are_golden() {
        for (value, data) in [
            (number(1.0), "ff0f4e000000000000f03f"),
            (number(-0.0), "ff0f4e0000000000000080"),
            (number(1.5), "ff0f4e000000000000f83f"),
            (bigint("0"), "ff0f5a0200"),
            (bigint("1"), "ff0f5a0201"),
            (bigint("-1"), "ff0f5a0301"),
            (bigint("18446744073709551616"), "ff0f5a12000000000000000001"),
        ] {
            assert_eq!(encode(&value.unwrap()), hex(data), "{data}");
        }
        let long = format!("1{}", "0".repeat(200));
        // 84 bytes: the length needs two bytes of varint.
        let data = encode(&bigint(&long).unwrap());
        assert_eq!(data[..5], hex("ff0f5aa801"));
        assert_eq!(data.len(), 5 + 84);
        assert_eq!(decode(&data), bigint(&long));
    }

    #[test]
    fn tells_other_values_from_damaged_ones() {
        for other in [
            "ff0f5f",
            "ff0f30",
            "ff0f54",
            "ff0f46",
            "ff0f220161",
            "ff0f6f7b00",
            "ff0f410024",
            "ff0f4200",
        ] {
            assert_eq!(decode(&hex(other)), Err(DecodeError::NotNumeric), "{other}");
        }
        for damaged in [
            "",
            "00",
            "ff",
            "ff0f",
            "ff0d4902",
            "ff114902",
            "0f4902",
            "4902",
            "ff0f49",
            "ff0f4980",
            "ff0f3f",
            "ff0f3f00",
            "ff0f4e0000000000f83f",
            "ff0f5a",
            "ff0f5a02",
            "ff0f5afeffffff0f",
            "ff0f21",
            "ff0f5c00",
        ] {
            assert_eq!(decode(&hex(damaged)), Err(DecodeError::Malformed), "{damaged}");
        }
    }

    fn almost_a_number() -> impl Strategy<Value = Vec<u8>> {
        let after_header = proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(b"IUNZ?\0".as_slice())],
            0..24,
        );
        after_header.prop_map(|rest| [&[0xff, 0x0f], rest.as_slice()].concat())
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..64), near in almost_a_number()) {
            for data in [data, near] {
                if let Ok(value) = decode(&data) {
                    let again = encode(&value);
                    // By bytes, since NaN is not equal to itself.
                    prop_assert_eq!(encode(&decode(&again).unwrap()), again);
                }
            }
        }

        #[test]
        fn bigints_survive(sign: bool, magnitude in proptest::collection::vec(any::<u8>(), 0..300)) {
            let sign = if sign { super::Sign::Plus } else { super::Sign::Minus };
            let value = Numeric::BigInt(super::BigInt::from_bytes_le(sign, &magnitude));
            prop_assert_eq!(decode(&encode(&value)), Ok(value));
        }
    }
}
