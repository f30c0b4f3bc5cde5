//! The meaning of an answer, or of its absence, for a message and for the endpoint.

use std::time::{Duration, SystemTime};

use meridian_net::post::{Answer, NotAnswered};

/// How soon a message may come again that an endpoint wants later, and how late.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// The end of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Acknowledged,
    Failed {
        /// A label of metrics.
        class: &'static str,
        /// For people, without anything of the message.
        reason: String,
        /// Instead of what the message's schedule says.
        retry_after: Option<Duration>,
        /// Other messages would fare no better.
        is_of_endpoint: bool,
    },
}

/// `now` is the wall clock's time, from which dates are counted.
pub(super) fn verdict(answered: &Result<Answer, NotAnswered>, now: SystemTime) -> Verdict {
    let answer = match answered {
        Ok(answer) => answer,
        Err(not_answered) => {
            let class = match not_answered {
                NotAnswered::NotConnected(_) => "not_connected",
                NotAnswered::Late(_) => "late",
                NotAnswered::Broken(_) => "broken",
            };
            let (reason, retry_after) = (not_answered.to_string(), None);
            return Verdict::Failed { class, reason, retry_after, is_of_endpoint: true };
        }
    };
    let status = answer.status;
    if status.is_success() {
        return Verdict::Acknowledged;
    }
    let class = match status.as_u16() {
        300..400 => "redirect",
        400..500 => "client_error",
        500..600 => "server_error",
        _ => "other_status",
    };
    let hint = if status.is_redirection() { ", which is not followed" } else { "" };
    Verdict::Failed {
        class,
        reason: format!("status {}{hint}", status.as_u16()),
        retry_after: answer.retry_after.as_deref().and_then(|text| retry_after(text, now)),
        is_of_endpoint: is_of_endpoint(status.as_u16()),
    }
}

/// Of the statuses that speak of the request, those that would meet any request: the URL or the key
/// is wrong, or there are too many.
fn is_of_endpoint(status: u16) -> bool {
    !(400..500).contains(&status)
        || matches!(status, 401 | 403 | 404 | 405 | 407 | 408 | 410 | 421 | 425 | 429)
}

/// Seconds, or a date; within its bounds.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if is_number {
        // A number that is too large for that is a long time.
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_within_a_second_and_an_hour() {
        let now = at(1_445_412_480);
        let seconds = |text: &str| retry_after(text, now).map(|wait| wait.as_secs());
        for (text, wait) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", Some(1)),
            ("3600", Some(3600)),
            ("3601", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(1)),
            ("Thu, 22 Oct 2015 07:28:00 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(text), wait, "{text}");
        }
    }

    fn of(status: u16, retry_after: Option<&str>) -> Verdict {
        let status = status.try_into().unwrap();
        let retry_after = retry_after.map(str::to_owned);
        verdict(&Ok(Answer { status, retry_after }), at(0))
    }

    #[test]
    fn answer_of_2xx_acknowledges_and_all_else_has_failed() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(of(status, Some("9")), Verdict::Acknowledged);
        }
        for (status, said, endpoint) in [
            (302, "redirect", true),
            (400, "client_error", false),
            (404, "client_error", true),
            (422, "client_error", false),
            (429, "client_error", true),
            (500, "server_error", true),
            (599, "server_error", true),
            (700, "other_status", true),
        ] {
            let Verdict::Failed { class, reason, retry_after, is_of_endpoint } =
                of(status, Some("9"))
            else {
                panic!("{status}")
            };
            assert!(reason.starts_with(&format!("status {status}")), "{reason}");
            assert_eq!((class, is_of_endpoint), (said, endpoint), "{status}");
            assert_eq!(retry_after, Some(Duration::from_secs(9)));
        }
        let late = verdict(&Err(NotAnswered::Late(Duration::from_secs(3))), at(0));
        let reason = "no answer within 3 s".to_owned();
        let (class, retry_after, is_of_endpoint) = ("late", None, true);
        assert_eq!(late, Verdict::Failed { class, reason, retry_after, is_of_endpoint });
    }
}
