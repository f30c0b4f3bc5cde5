//! `sum`, `min` and `max`, rule by rule as denokv_sqlite 0.14 has them (`mutate_le64` and `sum_v8`
//! there).
//!
//! An absent key takes the operand as it is: bounds say what a *sum* may be, and there is none.

use std::cmp::Ordering;

use meridian_types::{SumBounds, Value, ValueEncoding, limits::MAX_VALUE_BYTES};

use crate::number::{NotANumber, Number, le64, le64_value};
use crate::rejection::Rejection;

/// The operation of a u64 mutation on the stored integer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum U64Operation {
    /// Wraps.
    Sum,
    Min,
    Max,
}

impl U64Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// The new value, from the stored one, which is `None` where the key is absent.
    pub(crate) fn apply(self, stored: Option<&Value>, operand: &Value) -> Result<Value, Rejection> {
        let operand = le64(operand).ok_or(Rejection::OperandNotU64(self.name()))?;
        let Some(stored) = stored else { return Ok(le64_value(operand)) };
        let stored = le64(stored).ok_or(Rejection::StoredNotU64(self.name()))?;
        Ok(le64_value(match self {
            Self::Sum => stored.wrapping_add(operand),
            Self::Min => stored.min(operand),
            Self::Max => stored.max(operand),
        }))
    }
}

/// The sum of the stored value, `None` where the key is absent, and the operand.
///
/// The encoding of the operand decides: a u64 adds to u64s and has no bounds (they are ignored); a
/// V8 number or bigint adds to its like, within the bounds.
pub(crate) fn sum(
    stored: Option<&Value>,
    operand: &Value,
    bounds: &SumBounds,
) -> Result<Value, Rejection> {
    if operand.encoding == ValueEncoding::Le64 {
        return U64Operation::Sum.apply(stored, operand);
    }
    let operand = Number::parse(operand).map_err(|_| Rejection::InvalidParameters)?;
    let min = parse_bound(&bounds.min)?;
    let max = parse_bound(&bounds.max)?;

    let sum = match operand {
        Number::Double(operand) => {
            let bounds = Bounds { min: double(min)?, max: double(max)?, clamp: bounds.clamp };
            match parse_stored(stored)? {
                None => Number::Double(operand),
                Some(Number::Double(stored)) => Number::Double(bounds.hold(stored + operand)?),
                Some(stored) => return Err(types_differ(&stored, &Number::Double(operand))),
            }
        }
        Number::BigInt(operand) => {
            let unbounded = min.is_none() && max.is_none() && !bounds.clamp;
            let bounds = Bounds { min: bigint(min)?, max: bigint(max)?, clamp: bounds.clamp };
            match parse_stored(stored)? {
                None => Number::BigInt(operand),
                Some(Number::BigInt(stored)) => Number::BigInt(bounds.hold(stored + operand)?),
                // Programs older than `Deno.KvU64` operands add plain bigints to u64s.
                Some(Number::U64(stored)) if unbounded => match u64::try_from(&operand) {
                    Ok(operand) => Number::U64(stored.wrapping_add(operand)),
                    Err(_) => {
                        return Err(types_differ(&Number::U64(stored), &Number::BigInt(operand)));
                    }
                },
                Some(stored) => return Err(types_differ(&stored, &Number::BigInt(operand))),
            }
        }
        // Its encoding was seen to above.
        Number::U64(_) => return Err(Rejection::InvalidParameters),
    };
    let value = sum.into_value();
    // Beyond the reference: two bigints of the greatest size may not add up to a value beyond the
    // limit.
    if value.data.len() > MAX_VALUE_BYTES { Err(Rejection::OutOfRange) } else { Ok(value) }
}

/// The least and the greatest result of a sum.
struct Bounds<T> {
    min: Option<T>,
    max: Option<T>,
    clamp: bool,
}

impl<T: PartialOrd> Bounds<T> {
    /// NaN is within all bounds, and NaN as a bound bounds nothing. Of bounds that contradict each
    /// other the greatest wins when clamping, since it is looked at last.
    fn hold(self, mut sum: T) -> Result<T, Rejection> {
        for (bound, beyond) in [(self.min, Ordering::Less), (self.max, Ordering::Greater)] {
            let Some(bound) = bound else { continue };
            if sum.partial_cmp(&bound) == Some(beyond) {
                if !self.clamp {
                    return Err(Rejection::OutOfRange);
                }
                sum = bound;
            }
        }
        Ok(sum)
    }
}

fn parse_bound(data: &[u8]) -> Result<Option<Number>, Rejection> {
    match Number::parse_v8(data) {
        Ok(bound) => Ok(Some(bound)),
        Err(NotANumber::Empty) => Ok(None),
        Err(NotANumber::Invalid | NotANumber::Unsupported) => Err(Rejection::InvalidParameters),
    }
}

fn double(bound: Option<Number>) -> Result<Option<f64>, Rejection> {
    match bound {
        None => Ok(None),
        Some(Number::Double(bound)) => Ok(Some(bound)),
        Some(_) => Err(Rejection::BoundsOfOtherType),
    }
}

fn bigint(bound: Option<Number>) -> Result<Option<num_bigint::BigInt>, Rejection> {
    match bound {
        None => Ok(None),
        Some(Number::BigInt(bound)) => Ok(Some(bound)),
        Some(_) => Err(Rejection::BoundsOfOtherType),
    }
}

fn parse_stored(stored: Option<&Value>) -> Result<Option<Number>, Rejection> {
    let Some(stored) = stored else { return Ok(None) };
    Number::parse(stored).map(Some).map_err(|reason| match reason {
        NotANumber::Empty => Rejection::StoredEmpty,
        NotANumber::Unsupported => Rejection::StoredUnsupported,
        NotANumber::Invalid if stored.encoding == ValueEncoding::Le64 => {
            Rejection::StoredNotEightBytes
        }
        NotANumber::Invalid => Rejection::StoredInvalid,
    })
}

fn types_differ(stored: &Number, operand: &Number) -> Rejection {
    Rejection::TypesDiffer { stored: stored.type_name(), operand: operand.type_name() }
}

#[cfg(test)]
mod tests;
