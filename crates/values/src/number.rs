//! Numbers as JavaScript prints them.

/// As `String(number)`, but with the sign of a zero.
pub(crate) fn to_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    if number.is_infinite() {
        return format!("{sign}Infinity");
    }
    if number == 0.0 {
        return format!("{sign}0");
    }
    // The shortest digits that are read as this number, and the power of ten of the first.
    let scientific = format!("{:e}", number.abs());
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = digits.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{sign}{}", place(&digits, exponent))
}

fn place(digits: &str, exponent: i32) -> String {
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    match exponent {
        _ if !(-6..21).contains(&exponent) => {
            let (first, rest) = digits.split_at_checked(1).unwrap_or((digits, ""));
            let point = if rest.is_empty() { "" } else { "." };
            let plus = if exponent > 0 { "+" } else { "" };
            format!("{first}{point}{rest}e{plus}{exponent}")
        }
        _ if exponent < 0 => format!("0.{}{digits}", zeros(-exponent - 1)),
        _ if exponent >= count - 1 => format!("{digits}{}", zeros(exponent - count + 1)),
        _ => {
            let whole = usize::try_from(exponent + 1).unwrap_or(0);
            let (whole, fraction) = digits.split_at_checked(whole).unwrap_or((digits, ""));
            format!("{whole}.{fraction}")
        }
    }
}

/// The whole number that this is, where it fits.
pub(crate) fn to_u32(number: f64) -> Option<u32> {
    let is_whole = number.fract() == 0.0 && number.is_sign_positive();
    let fits = number <= f64::from(u32::MAX);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole, and within the range"
    )]
    (is_whole && fits).then_some(number as u32)
}

/// The whole number that this is, where it fits.
pub(crate) fn to_i32(number: f64) -> Option<i32> {
    let is_whole = number.fract() == 0.0 && !(number == 0.0 && number.is_sign_negative());
    let fits = number >= f64::from(i32::MIN) && number <= f64::from(i32::MAX);
    #[allow(clippy::cast_possible_truncation, reason = "whole, and within the range")]
    (is_whole && fits).then_some(number as i32)
}

/// A number of 16 bits, as `Float16Array` has it.
pub(crate) fn from_half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f64::from(bits & 0x3ff);
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    }
}

/// The nearest number of 16 bits; of two as near, the even one.
pub(crate) fn to_half(number: f64) -> u16 {
    let sign = if number.is_sign_negative() { 0x8000 } else { 0 };
    if number.is_nan() {
        return 0x7e00;
    }
    let magnitude = number.abs();
    // Those that round to more than 65504.
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    // Below the smallest normal number, the exponent stays.
    let exponent = i32::try_from(magnitude.to_bits() >> 52).unwrap_or(0) - 1023;
    let exponent = exponent.max(-14);
    let fraction = (magnitude * 2f64.powi(10 - exponent)).round_ties_even();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 2048, as the exponent is that of the number"
    )]
    let fraction = fraction as u16;
    let exponent = u16::try_from(exponent + 14).unwrap_or(0);
    // A fraction that was rounded up to the next power of two carries into the exponent.
    sign | ((exponent << 10) + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_javascript() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (1e-6, "0.000001"),
            (1.25e-7, "1.25e-7"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e21, "1e+21"),
            (1.5e300, "1.5e+300"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (100.0, "100"),
            (120.5, "120.5"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(to_text(number), text);
        }
    }

    #[test]
    fn halves_survive() {
        for bits in (0..=u16::MAX).step_by(7) {
            let number = from_half(bits);
            if !number.is_nan() {
                assert_eq!(to_half(number), bits, "{number}");
            }
        }
        for (number, bits) in
            [(0.1, 0x2e66), (65504.0, 0x7bff), (65519.0, 0x7bff), (65520.0, 0x7c00), (6e-8, 1)]
        {
            assert_eq!(to_half(number), bits, "{number}");
        }
    }
}
