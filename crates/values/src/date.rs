//! Dates as JavaScript prints and reads them: ISO 8601 in UTC.

const DAY_MS: i64 = 86_400_000;
/// Beyond, a date is none.
const MAX_MS: f64 = 8.64e15;

/// As `toISOString`; `None` where JavaScript has an invalid date.
pub(crate) fn to_text(milliseconds: f64) -> Option<String> {
    if milliseconds.is_nan() || milliseconds.abs() > MAX_MS {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "within the range, as was checked")]
    let milliseconds = milliseconds as i64;
    let (days, time) = (milliseconds.div_euclid(DAY_MS), milliseconds.rem_euclid(DAY_MS));
    let (year, month, day) = civil(days);
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ if year < 0 => format!("-{:06}", -year),
        _ => format!("+{year:06}"),
    };
    let (hour, minute) = (time / 3_600_000, time / 60_000 % 60);
    let (second, millisecond) = (time / 1000 % 60, time % 1000);
    Some(format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z"))
}

/// Year, month and day of a day since 1970-01-01. Years are counted from March, so that the day
/// that is left out now and then is the last one; 400 of them have 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let month = (month + 9) % 12;
    era * 146_097 + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Milliseconds since the Unix epoch: `2024-05-01`, `2024-05-01T12:30Z`, `2024-05-01T12:30:00.5Z`,
/// with an offset (`+02:00`) in the place of `Z`. A time without either is not read: which zone is
/// meant would depend on the machine.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let (negative, date) = match date.strip_prefix('-') {
        Some(date) => (true, date),
        None => (false, date.strip_prefix('+').unwrap_or(date)),
    };
    let mut parts = date.split('-');
    let mut next = |digits: usize| number(parts.next()?, digits);
    let year = next(if text.starts_with(['+', '-']) { 6 } else { 4 })?;
    let (month, day) = (next(2)?, next(2)?);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let start = days(if negative { -year } else { year }, month, day);
    if civil(start) != (if negative { -year } else { year }, month, day) {
        return None;
    }
    let time = time.map_or(Some(0), parse_time)?;
    #[allow(clippy::cast_precision_loss, reason = "years have at most six digits")]
    let milliseconds = (start * DAY_MS + time) as f64;
    (milliseconds.abs() <= MAX_MS).then_some(milliseconds)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn parse_time(text: &str) -> Option<i64> {
    let (time, offset) = match text.strip_suffix('Z') {
        Some(time) => (time, 0),
        None => {
            let (time, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let (hours, minutes) = offset.get(1..)?.split_once(':')?;
            let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
            match offset.get(..1)? {
                "+" => (time, -minutes),
                "-" => (time, minutes),
                _ => return None,
            }
        }
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let milliseconds: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let mut parts = time.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |second| number(second, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some(((hour * 60 + minute + offset) * 60 + second) * 1000 + milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_they_are_printed() {
        for (milliseconds, text) in [
            (0.0, "1970-01-01T00:00:00.000Z"),
            (-1.0, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000.0, "2000-02-29T00:00:00.000Z"),
            (1_234_567_890_123.0, "2009-02-13T23:31:30.123Z"),
            (-62_198_755_200_000.0, "-000001-01-01T00:00:00.000Z"),
            (8.64e15, "+275760-09-13T00:00:00.000Z"),
        ] {
            assert_eq!(to_text(milliseconds).unwrap(), text);
            assert_eq!(parse(text), Some(milliseconds), "{text}");
        }
        assert_eq!(to_text(f64::NAN), None);
        assert_eq!(to_text(8.64e15 + 1.0), None);
    }

    #[test]
    fn other_forms_are_read_and_impossible_ones_refused() {
        for (text, same) in [
            ("2024-05-01", "2024-05-01T00:00:00.000Z"),
            ("2024-05-01T12:30Z", "2024-05-01T12:30:00.000Z"),
            ("2024-05-01 12:30:01.5+02:00", "2024-05-01T10:30:01.500Z"),
            ("2024-05-01T00:30-01:00", "2024-05-01T01:30:00.000Z"),
        ] {
            assert_eq!(parse(text), parse(same), "{text}");
            assert!(parse(text).is_some(), "{text}");
        }
        for text in
            ["", "2024", "2024-13-01", "2023-02-29", "2024-05-01T12:30", "2024-05-01T24:00Z", "x"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
