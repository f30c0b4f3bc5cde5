//! Times, durations and sizes, as people read and write them.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

/// The wall clock, milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch, as `2026-08-20T12:00:01.123Z`.
pub(crate) fn time(ms: u64) -> String {
    match i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => format!("{ms} ms since 1970"),
    }
}

/// `12 ms`, `1.2 s`, `2 min 5 s`, `3 h 4 min`, `2 d 3 h`.
pub(crate) fn duration(ms: u64) -> String {
    if ms == u64::MAX {
        return "unknown".to_owned();
    }
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let two = |large: u64, name: &str, small: u64, small_name: &str| match ms % large / small {
        0 => format!("{} {name}", ms / large),
        rest => format!("{} {name} {rest} {small_name}", ms / large),
    };
    match ms {
        0..SECOND => format!("{ms} ms"),
        SECOND..MINUTE => format!("{}.{} s", ms / SECOND, ms % SECOND / 100),
        MINUTE..HOUR => two(MINUTE, "min", SECOND, "s"),
        HOUR..DAY => two(HOUR, "h", MINUTE, "min"),
        DAY.. => two(DAY, "d", HOUR, "h"),
    }
}

/// `1 transaction`, `2 transactions`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `12 B`, `1.2 KiB`, `3.4 MiB`, `5.6 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// The digits that a text begins with, and the rest.
fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Parses a number of bytes above zero: `1000`, `64KiB`, `10MiB`, `2GiB`, or `64kB`, `10MB`, `2GB`.
pub(crate) fn parse_size(text: &str) -> Result<NonZeroU64, String> {
    let wrong = || format!("`{text}` is not a number of bytes such as 64KiB, 10MiB or 2GB");
    let (number, unit) = split_number(text);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.and_then(NonZeroU64::new).ok_or_else(wrong)
}

/// Parses a duration above zero: `500ms`, `90s`, `15m`, `12h`, `30d`, `2w`, or several in a row:
/// `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 90s, 15m, 12h, 30d or 2w");
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, unit_and_rest) = split_number(rest);
        let letters = unit_and_rest.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, behind) = unit_and_rest.split_at(letters.unwrap_or(unit_and_rest.len()));
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            "w" => 7 * 24 * 60 * 60 * 1000,
            _ => return Err(wrong()),
        };
        let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        total_ms = ms.and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
        rest = behind;
    }
    if total_ms == 0 { Err(wrong()) } else { Ok(Duration::from_millis(total_ms)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        let parsed = |text| parse_size(text).map(NonZeroU64::get).ok();
        for (text, bytes) in [("7", 7), ("64KiB", 65_536), ("10 MB", 10_000_000), ("2GiB", 2 << 30)]
        {
            assert_eq!(parsed(text), Some(bytes), "{text}");
        }
        for text in ["", "0", "0MB", "MB", "-1", "1.5GB", "1kb", "99999999999TiB", "1 2"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_parsed_and_written() {
        let parsed = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(parsed("30d"), Ok(30 * 24 * 3_600_000));
        assert_eq!(parsed("1h30m"), Ok(5_400_000));
        assert_eq!(parsed("2w"), Ok(14 * 24 * 3_600_000));
        assert_eq!(parsed("500ms"), Ok(500));
        for text in [
            "",
            "0s",
            "30",
            "d",
            "-1d",
            "1.5h",
            "1y",
            "99999999999999999999d",
            "999999999999999999w",
            "1h 30m",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        let written =
            [0, 999, 1000, 59_999, 60_000, 125_000, 3_600_000, 11_040_000, 86_400_000, 183_600_000];
        let expected = [
            "0 ms",
            "999 ms",
            "1.0 s",
            "59.9 s",
            "1 min",
            "2 min 5 s",
            "1 h",
            "3 h 4 min",
            "1 d",
            "2 d 3 h",
        ];
        assert_eq!(written.map(duration), expected);
    }

    #[test]
    fn times_and_sizes_are_written() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_787_227_201_123), "2026-08-20T12:00:01.123Z");
        assert_eq!(time(u64::MAX), "18446744073709551615 ms since 1970");
        assert_eq!(
            [0, 1023, 1024, 1_258_291, 1 << 34].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.1 MiB", "16.0 GiB"]
        );
        assert_eq!(count(1, "transaction"), "1 transaction");
        assert_eq!(count(0, "transaction"), "0 transactions");
    }
}
