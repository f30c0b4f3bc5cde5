//! When a cron ticks: minutes in UTC, as Deno reads them.

use chrono::{DateTime, Days, Utc};
use saffron::Cron;

/// Longer schedules are refused unread. The longest that says something new has about 400 bytes.
const MAX_BYTES: usize = 1024;
const MINUTE_MS: u64 = 60_000;
/// A tick is looked for this far back. An earlier tick has been missed.
const MISSED_MS: u64 = 3_600_000;

/// Days in which a schedule has a tick, from some day on. The rarest, a 29 February that is a certain
/// day of the week, comes after 40 years at most.
const MAX_DAYS: u64 = 50 * 366;
/// 2020-01-01.
const FIRST_DAY_S: i64 = 1_577_836_800;

/// A schedule that ticks some day.
#[derive(Debug, Clone)]
pub struct Schedule(Cron);

/// Why a text is no schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    #[error("it is no cron expression of five fields")]
    Malformed,
    #[error("it has more than 1,024 bytes")]
    Long,
    #[error("no day of any year is of it")]
    Never,
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, InvalidSchedule> {
        if text.len() > MAX_BYTES {
            return Err(InvalidSchedule::Long);
        }
        let cron: Cron = text.parse().map_err(|_| InvalidSchedule::Malformed)?;
        if ticks_some_day(text)? { Ok(Self(cron)) } else { Err(InvalidSchedule::Never) }
    }

    /// The first tick behind a time, both in milliseconds since the Unix epoch. Without one it is
    /// the end of time.
    pub fn next_after(&self, time_ms: u64) -> u64 {
        let next = moment(time_ms).and_then(|time| self.0.next_after(time));
        next.and_then(|next| next.timestamp_millis().try_into().ok()).unwrap_or(u64::MAX)
    }

    /// The latest tick that has come, of those from `from_ms` on; none of more than an hour ago.
    pub fn latest(&self, from_ms: u64, now_ms: u64) -> Option<u64> {
        let from_ms = from_ms.max(now_ms.saturating_sub(MISSED_MS));
        let mut latest = None;
        // A tick at `from_ms` itself is one, too.
        let mut next = self.next_after(from_ms.saturating_sub(MINUTE_MS));
        while next <= now_ms && next != u64::MAX {
            if next >= from_ms {
                latest = Some(next);
            }
            next = self.next_after(next);
        }
        latest
    }
}

/// The search of the library for the next tick goes to the end of its calendar.
fn ticks_some_day(text: &str) -> Result<bool, InvalidSchedule> {
    let fields: Vec<&str> = text.split([' ', '\t']).filter(|field| !field.is_empty()).collect();
    let [_, _, days @ ..] = &*fields else { return Err(InvalidSchedule::Malformed) };
    // Its minutes and hours are on any day.
    let days: Cron =
        format!("* * {}", days.join(" ")).parse().map_err(|_| InvalidSchedule::Malformed)?;
    let Some(first) = DateTime::from_timestamp(FIRST_DAY_S, 0) else { return Ok(false) };
    let mut some = (0..MAX_DAYS).filter_map(|day| first.checked_add_days(Days::new(day)));
    Ok(some.any(|day| days.contains(day)))
}

/// `None`: so far away that no calendar counts it.
fn moment(time_ms: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time_ms.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        text.parse::<DateTime<Utc>>().unwrap().timestamp_millis().try_into().unwrap()
    }

    fn next(schedule: &str, after: &str) -> u64 {
        Schedule::parse(schedule).unwrap().next_after(ms(after))
    }

    #[test]
    fn ticks_are_those_of_deno_in_utc() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-03-29T00:59:59.999Z", "2026-03-29T01:00:00Z"),
            ("* * * * *", "2026-03-29T01:00:00Z", "2026-03-29T01:01:00Z"),
            // Summer time begins in Europe: no hour is left out, and none comes twice.
            ("30 * * * *", "2026-03-29T00:31:00Z", "2026-03-29T01:30:00Z"),
            ("30 * * * *", "2026-10-25T00:31:00Z", "2026-10-25T01:30:00Z"),
            ("*/20 * * * *", "2026-01-01T00:40:00Z", "2026-01-01T01:00:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 L * *", "2026-02-01T00:00:00Z", "2026-02-28T00:00:00Z"),
            ("0 0 * 2 2#5", "2026-02-01T00:00:00Z", "2044-02-29T00:00:00Z"),
            // Days of the week count from Sunday, which is 1.
            ("0 12 * * 1", "2026-11-25T00:00:00Z", "2026-11-29T12:00:00Z"),
            ("0 12 * * MON-TUE", "2026-11-25T00:00:00Z", "2026-11-30T12:00:00Z"),
        ] {
            assert_eq!(next(schedule, after), ms(expected), "{schedule} after {after}");
        }
    }

    #[test]
    fn text_that_says_no_time_is_refused() {
        for (text, expected) in [
            ("", InvalidSchedule::Malformed),
            ("* * * *", InvalidSchedule::Malformed),
            ("* * * * * *", InvalidSchedule::Malformed),
            ("60 * * * *", InvalidSchedule::Malformed),
            ("@daily", InvalidSchedule::Malformed),
            ("0 0 30 2 *", InvalidSchedule::Never),
            // The library's own look would search 260,000 years for each of these.
            ("0 0 31W 2 *", InvalidSchedule::Never),
            ("0 0 L-30 2 *", InvalidSchedule::Never),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err(), expected, "{text}");
        }
        assert_eq!(Schedule::parse(&"1".repeat(2000)).unwrap_err(), InvalidSchedule::Long);
    }

    #[test]
    fn latest_tick_is_within_the_hour_and_not_before_its_begin() {
        let schedule = Schedule::parse("*/5 * * * *").unwrap();
        let now = ms("2026-01-01T12:03:00Z");
        assert_eq!(schedule.latest(0, now), Some(ms("2026-01-01T12:00:00Z")));
        assert_eq!(schedule.latest(ms("2026-01-01T12:00:00Z"), now), Some(now - 180_000));
        assert_eq!(schedule.latest(ms("2026-01-01T12:00:01Z"), now), None);
        assert_eq!(schedule.latest(now + 1, now), None);
        let daily = Schedule::parse("0 0 * * *").unwrap();
        assert_eq!(daily.latest(0, ms("2026-01-01T01:00:01Z")), None);
        assert_eq!(daily.latest(0, ms("2026-01-01T01:00:00Z")), Some(ms("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn times_beyond_the_calendar_have_no_tick() {
        let schedule = Schedule::parse("* * * * *").unwrap();
        assert_eq!(schedule.next_after(u64::MAX), u64::MAX);
        assert_eq!(schedule.next_after(8_210_266_876_799_999), u64::MAX);
        assert_eq!(schedule.latest(0, u64::MAX), None);
    }
}
