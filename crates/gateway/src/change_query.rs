//! The query of a request for a change feed. A parameter that is misspelt would leave out changes:
//! it is refused.

use bytes::Bytes;
use hyper::Uri;
use hyper::header::{ACCEPT, HeaderMap};
use meridian_types::limits::MAX_READ_KEY_BYTES;
use meridian_types::{Position, Versionstamp};
use meridian_values::json::from_base64url;

use crate::change_lines::Form;
use crate::refusal::Refusal;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangeQuery {
    pub(crate) prefix: Bytes,
    /// `None`: from now on.
    pub(crate) after: Option<Versionstamp>,
    /// Whether the feed goes on when all that is committed was told.
    pub(crate) follow: bool,
    pub(crate) form: Form,
}

impl ChangeQuery {
    pub(crate) fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        let (mut prefix, mut after, mut follow) = (None, None, None);
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(Refusal::ChangesQuery)?;
            let slot = match name {
                "prefix" => &mut prefix,
                "after" => &mut after,
                "follow" => &mut follow,
                _ => return Err(Refusal::ChangesQuery),
            };
            if slot.replace(value).is_some() {
                return Err(Refusal::ChangesQuery);
            }
        }
        let stamp = |text: Option<&str>| {
            text.map(|text| versionstamp(text).ok_or(Refusal::ChangesQuery)).transpose()
        };
        let (last, after) = (stamp(last_event_id(headers)?)?, stamp(after)?);
        let prefix = from_base64url(prefix.unwrap_or_default());
        Ok(Self {
            prefix: prefix
                .filter(|prefix| prefix.len() <= MAX_READ_KEY_BYTES)
                .ok_or(Refusal::ChangesQuery)?
                .into(),
            after: last.or(after),
            follow: match follow {
                None | Some("true") => true,
                Some("false") => false,
                Some(_) => return Err(Refusal::ChangesQuery),
            },
            form: if wants_events(headers) { Form::Events } else { Form::Lines },
        })
    }
}

/// The place that the client has come to since it made the URL. A client that has had no event may
/// send an empty one.
fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut ids = headers.get_all("last-event-id").iter();
    let id = ids.next().map(|id| id.to_str().map_err(|_| Refusal::ChangesQuery)).transpose()?;
    match ids.next() {
        Some(_) => Err(Refusal::ChangesQuery),
        None => Ok(id.filter(|id| !id.is_empty())),
    }
}

/// All zeros stand before the first commit.
fn versionstamp(text: &str) -> Option<Versionstamp> {
    let stamp = Versionstamp::from_hex(text)?;
    let is_zero = stamp.0 == [0; Versionstamp::LEN];
    Some(if is_zero { Versionstamp::behind(Position::ZERO) } else { stamp })
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    kinds.any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use meridian_types::Epoch;

    use super::*;

    const STAMP: &str = "00020000000000070001";

    fn parse(
        query: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<ChangeQuery, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        ChangeQuery::parse(&format!("/kv/changes{query}").parse().unwrap(), &map)
    }

    fn stamp() -> Versionstamp {
        Versionstamp::new(Position::new(Epoch(2), 7), 1)
    }

    #[test]
    fn query_names_prefix_start_and_end() {
        let all =
            ChangeQuery { prefix: Bytes::new(), after: None, follow: true, form: Form::Lines };
        for query in ["", "?", "?prefix=", "?follow=true"] {
            assert_eq!(parse(query, &[]).unwrap(), all, "{query}");
        }
        let query = parse(&format!("?prefix=AnVzZXJzAA&after={STAMP}&follow=false"), &[]).unwrap();
        let (prefix, after) = (Bytes::from_static(b"\x02users\0"), Some(stamp()));
        assert_eq!(query, ChangeQuery { prefix, after, follow: false, form: Form::Lines });
        let zero = parse("?after=00000000000000000000", &[]).unwrap().after;
        assert_eq!(zero, Some(Versionstamp::behind(Position::ZERO)));
    }

    #[test]
    fn last_event_id_goes_before_the_url_and_events_are_asked_for_by_type() {
        let query = parse("?after=00000000000000000000", &[("last-event-id", STAMP)]).unwrap();
        assert_eq!(query.after, Some(stamp()));
        let query = format!("?after={STAMP}");
        assert_eq!(parse(&query, &[("last-event-id", "")]).unwrap().after, Some(stamp()));
        let events = [("accept", "text/html, text/event-stream;q=1")];
        assert_eq!(parse("", &events).unwrap().form, Form::Events);
        assert_eq!(parse("", &[("accept", "*/*")]).unwrap().form, Form::Lines);
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        let long = format!("?prefix={}", "A".repeat(4000));
        for query in [
            "?afer=00020000000000070001",
            "?after",
            // As of a variable that is not set: the feed would begin now.
            "?after=",
            "?after=7",
            "?after=00020000000000070001&after=00020000000000070001",
            "?follow=no",
            "?prefix=%41mEA",
            "?prefix=A",
            "?prefix=AmEB=A",
            "?prefix=AB",
            long.as_str(),
        ] {
            assert!(matches!(parse(query, &[]), Err(Refusal::ChangesQuery)), "{query}");
        }
        assert!(parse("", &[("last-event-id", "seven")]).is_err());
        assert!(parse("?after=", &[("last-event-id", STAMP)]).is_err());
        let (twice, empty) = (("last-event-id", STAMP), ("last-event-id", ""));
        assert!(parse("", &[twice, twice]).is_err() && parse("", &[empty, twice]).is_err());
    }
}
