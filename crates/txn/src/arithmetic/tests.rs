use bytes::Bytes;
use meridian_types::{SumBounds, Value, ValueEncoding};

use super::{U64Operation, sum};
use crate::number::{Number, le64_value};

const SUM_TYPES: &str = "Some of the parameters are not valid V8 values";
const OUT_OF_RANGE: &str = "The result of a Sum operation would exceed its range limit";

fn number(value: f64) -> Value {
    Number::Double(value).into_value()
}

fn bigint(text: &str) -> Value {
    Number::BigInt(text.parse().unwrap()).into_value()
}

fn u64(value: u64) -> Value {
    le64_value(value)
}

fn raw(encoding: ValueEncoding, data: &'static [u8]) -> Value {
    Value { encoding, data: Bytes::from_static(data) }
}

fn bounds(min: Option<Value>, max: Option<Value>, clamp: bool) -> SumBounds {
    let data = |bound: Option<Value>| bound.map_or_else(Bytes::new, |bound| bound.data);
    SumBounds { min: data(min), max: data(max), clamp }
}

fn unbounded() -> SumBounds {
    SumBounds::default()
}

fn summed(stored: Option<Value>, operand: Value, bounds: SumBounds) -> Result<Value, String> {
    sum(stored.as_ref(), &operand, &bounds).map_err(|rejection| rejection.to_string())
}

fn rejected<T>(text: &str) -> Result<T, String> {
    Err(text.to_owned())
}

#[test]
fn u64_sums_wrap() {
    assert_eq!(summed(Some(u64(u64::MAX)), u64(3), unbounded()), Ok(u64(2)));
    assert_eq!(summed(Some(u64(4)), u64(3), unbounded()), Ok(u64(7)));
}

#[test]
fn a_u64_operand_ignores_bounds() {
    assert_eq!(summed(Some(u64(4)), u64(3), bounds(None, Some(number(5.0)), false)), Ok(u64(7)));
}

#[test]
fn min_and_max_compare_u64s() {
    assert_eq!(U64Operation::Min.apply(Some(&u64(4)), &u64(3)), Ok(u64(3)));
    assert_eq!(U64Operation::Min.apply(Some(&u64(4)), &u64(5)), Ok(u64(4)));
    assert_eq!(U64Operation::Max.apply(Some(&u64(4)), &u64(3)), Ok(u64(4)));
    // As numbers, not as bytes: 256 is 00 01 in little-endian.
    assert_eq!(U64Operation::Max.apply(Some(&u64(255)), &u64(256)), Ok(u64(256)));
}

#[test]
fn an_absent_key_takes_the_operand() {
    for operand in [u64(7), number(7.0), bigint("7")] {
        assert_eq!(summed(None, operand.clone(), unbounded()), Ok(operand));
    }
    assert_eq!(U64Operation::Min.apply(None, &u64(7)), Ok(u64(7)));
    assert_eq!(U64Operation::Max.apply(None, &u64(7)), Ok(u64(7)));
    // Also beyond the bounds, and an int32 becomes a double, as in the reference.
    assert_eq!(summed(None, number(7.0), bounds(None, Some(number(5.0)), false)), Ok(number(7.0)));
    assert_eq!(
        summed(None, raw(ValueEncoding::V8, b"\xff\x0fI\x0e"), unbounded()),
        Ok(number(7.0))
    );
}

#[test]
fn u64_mutations_want_u64s() {
    for (operation, name) in
        [(U64Operation::Sum, "sum"), (U64Operation::Min, "min"), (U64Operation::Max, "max")]
    {
        let applied = |stored, operand| {
            operation.apply(Some(&stored), &operand).map_err(|error| error.to_string())
        };
        for other in [
            number(1.0),
            bigint("1"),
            raw(ValueEncoding::Bytes, b"12345678"),
            raw(ValueEncoding::Le64, b"1"),
        ] {
            assert_eq!(
                applied(other.clone(), u64(1)),
                rejected(&format!(
                    "Failed to perform '{name}' mutation on a non-U64 value in the database"
                ))
            );
            assert_eq!(
                applied(u64(1), other),
                rejected(&format!("Failed to perform '{name}' mutation on a non-U64 operand"))
            );
        }
    }
}

#[test]
fn numbers_and_bigints_add_to_their_like() {
    assert_eq!(summed(Some(number(1.5)), number(2.0), unbounded()), Ok(number(3.5)));
    assert_eq!(
        summed(Some(raw(ValueEncoding::V8, b"\xff\x0fI\x02")), number(2.0), unbounded()),
        Ok(number(3.0))
    );
    assert_eq!(
        summed(Some(bigint("18446744073709551615")), bigint("1"), unbounded()),
        Ok(bigint("18446744073709551616"))
    );
    assert_eq!(summed(Some(bigint("1")), bigint("-2"), unbounded()), Ok(bigint("-1")));
}

#[test]
fn types_do_not_mix() {
    for (stored, operand, text) in [
        (u64(1), number(1.0), "Cannot sum KvU64 with Number"),
        (number(1.0), bigint("1"), "Cannot sum Number with BigInt"),
        (bigint("1"), number(1.0), "Cannot sum BigInt with Number"),
        (u64(1), bigint("-1"), "Cannot sum KvU64 with BigInt"),
        (u64(1), bigint("18446744073709551616"), "Cannot sum KvU64 with BigInt"),
        (
            number(1.0),
            u64(1),
            "Failed to perform 'sum' mutation on a non-U64 value in the database",
        ),
    ] {
        assert_eq!(summed(Some(stored), operand, unbounded()), rejected(text));
    }
}

#[test]
fn a_bigint_adds_to_a_u64_unless_it_has_bounds() {
    assert_eq!(summed(Some(u64(4)), bigint("3"), unbounded()), Ok(u64(7)));
    assert_eq!(
        summed(Some(u64(u64::MAX)), bigint("18446744073709551615"), unbounded()),
        Ok(u64(u64::MAX - 1))
    );
    for bounds in [
        bounds(Some(bigint("0")), None, false),
        bounds(None, Some(bigint("9")), true),
        bounds(None, None, true),
    ] {
        assert_eq!(
            summed(Some(u64(4)), bigint("3"), bounds),
            rejected("Cannot sum KvU64 with BigInt")
        );
    }
}

#[test]
fn stored_values_that_are_no_numbers_are_told_apart() {
    for (stored, text) in [
        (raw(ValueEncoding::V8, b"\xff\x0f\"\x01a"), "unsupported value type"),
        (raw(ValueEncoding::Bytes, b"\xff\x0fI\x02"), "unsupported value type"),
        (raw(ValueEncoding::V8, b"\xff\x0fN\x00"), "invalid v8 value"),
        (raw(ValueEncoding::V8, b""), "operand cannot be empty"),
        (raw(ValueEncoding::Le64, b"1"), "Invalid sum operand"),
    ] {
        assert_eq!(summed(Some(stored), number(1.0), unbounded()), rejected(text));
    }
}

#[test]
fn parameters_must_be_numbers() {
    let text = raw(ValueEncoding::V8, b"\xff\x0f\"\x01a");
    for operand in
        [text.clone(), raw(ValueEncoding::V8, b""), raw(ValueEncoding::Bytes, b"12345678")]
    {
        assert_eq!(summed(Some(number(1.0)), operand, unbounded()), rejected(SUM_TYPES));
    }
    // Before anything is read: also on an absent key.
    assert_eq!(
        summed(None, number(1.0), bounds(Some(text.clone()), None, true)),
        rejected(SUM_TYPES)
    );
    assert_eq!(summed(None, number(1.0), bounds(None, Some(text), true)), rejected(SUM_TYPES));
}

#[test]
fn bounds_are_of_the_operands_type() {
    let text = "Min/max parameters have different types than the operand";
    assert_eq!(summed(None, number(1.0), bounds(Some(bigint("0")), None, false)), rejected(text));
    assert_eq!(summed(None, bigint("1"), bounds(None, Some(number(0.0)), false)), rejected(text));
}

#[test]
fn bounds_hold_or_clamp() {
    let min_max = |clamp| bounds(Some(number(0.0)), Some(number(10.0)), clamp);
    assert_eq!(summed(Some(number(9.0)), number(1.0), min_max(false)), Ok(number(10.0)));
    assert_eq!(summed(Some(number(1.0)), number(-1.0), min_max(false)), Ok(number(0.0)));
    assert_eq!(summed(Some(number(9.0)), number(2.0), min_max(false)), rejected(OUT_OF_RANGE));
    assert_eq!(summed(Some(number(9.0)), number(2.0), min_max(true)), Ok(number(10.0)));
    assert_eq!(summed(Some(number(1.0)), number(-2.0), min_max(false)), rejected(OUT_OF_RANGE));
    assert_eq!(summed(Some(number(1.0)), number(-2.0), min_max(true)), Ok(number(0.0)));

    let min_max = |clamp| bounds(Some(bigint("0")), Some(bigint("10")), clamp);
    assert_eq!(summed(Some(bigint("9")), bigint("1"), min_max(false)), Ok(bigint("10")));
    assert_eq!(summed(Some(bigint("9")), bigint("2"), min_max(false)), rejected(OUT_OF_RANGE));
    assert_eq!(summed(Some(bigint("9")), bigint("2"), min_max(true)), Ok(bigint("10")));
    assert_eq!(summed(Some(bigint("1")), bigint("-2"), min_max(true)), Ok(bigint("0")));
}

#[test]
fn bounds_do_not_stop_nan() {
    let nan = summed(
        Some(number(1.0)),
        number(f64::NAN),
        bounds(Some(number(0.0)), Some(number(1.0)), false),
    );
    assert_eq!(nan.unwrap().data.len(), 11);
    assert_eq!(
        summed(Some(number(1.0)), number(1.0), bounds(Some(number(f64::NAN)), None, false)),
        Ok(number(2.0))
    );
}

#[test]
fn a_sum_stays_within_the_limit_of_a_value() {
    let largest =
        Number::BigInt(num_bigint::BigInt::from_bytes_le(num_bigint::Sign::Plus, &[0xff; 65_530]))
            .into_value();
    assert_eq!(largest.data.len(), 65_536);
    assert_eq!(summed(Some(largest.clone()), bigint("1"), unbounded()), rejected(OUT_OF_RANGE));
    assert_eq!(summed(Some(largest.clone()), bigint("0"), unbounded()), Ok(largest));
    let larger = Number::BigInt(num_bigint::BigInt::from(1) << (65_532 * 8)).into_value();
    assert_eq!(summed(Some(larger), bigint("1"), unbounded()), rejected(OUT_OF_RANGE));
}
