//! The metadata exchange. Its JSON is that of `schema/kv-metadata-exchange-*.json` in
//! `denokv_proto`; version 3 has the shape of version 2.
//!
//! The token for the data path is the access token that the client sent: every gateway knows it, it
//! survives restarts, and taking it away takes effect at once. `expiresAt` bounds the age of
//! metadata, not of the token.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use meridian_types::{Consistency, DatabaseId};
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::route::{EVENTUAL_PATH, STRONG_PATH};

/// All that the answer to a metadata request is made of.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) database: DatabaseId,
    pub(crate) token: &'a str,
    /// The consistency that the connect URL asks for. With `Eventual`, the eventual path is offered
    /// as the strong endpoint too: native clients use the first strong endpoint for everything.
    pub(crate) consistency: Consistency,
    pub(crate) base: Base<'a>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// The beginning of the URLs of endpoints, without a slash at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base<'a> {
    /// As configured.
    Public(&'a str),
    /// The request went to `path`. From version 2 on, endpoints are relative to it, so that a
    /// client returns by the same proxies and the same scheme. Version 1 knows no relative URLs and
    /// gets `url`, this gateway's address as the client sees it, if the request says it.
    Asked { path: &'a str, url: Option<&'a str> },
}

impl Base<'_> {
    /// The URL of the endpoint at `path`, which begins with a slash.
    fn endpoint(&self, version: u8, path: &str) -> Result<String, Refusal> {
        match self {
            Self::Public(url) => Ok(format!("{url}{path}")),
            Self::Asked { url, .. } if version == 1 => {
                Ok(format!("{}{path}", url.ok_or(Refusal::UnknownHost)?))
            }
            Self::Asked { path: asked, .. } => {
                let up = asked.matches('/').count().saturating_sub(1);
                let here = if up == 0 { "." } else { "" };
                Ok(format!("{here}{}{path}", vec![".."; up].join("/")))
            }
        }
    }
}

// Fields beyond the schema are ignored, as the reference server does: later clients may send more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    supported_versions: Vec<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseMetadata<'a> {
    version: u8,
    database_id: String,
    endpoints: [EndpointInfo; 2],
    token: &'a str,
    expires_at: String,
}

#[derive(Serialize)]
struct EndpointInfo {
    url: String,
    consistency: &'static str,
}

/// When metadata given out at `now` expires.
pub(crate) fn expiry(now: DateTime<Utc>, lifetime: std::time::Duration) -> DateTime<Utc> {
    let seconds =
        lifetime.as_secs().clamp(crate::Options::MIN_TOKEN_LIFETIME.as_secs(), 365 * 24 * 3600);
    let lifetime = i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds).unwrap_or_default();
    now.checked_add_signed(lifetime).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The JSON for a request with `body`, in the highest version that both sides speak.
pub(crate) fn exchange(body: &[u8], exchange: &Exchange<'_>) -> Result<Vec<u8>, Refusal> {
    let version = version(body)?;
    let endpoint = |path: &str, consistency| {
        exchange.base.endpoint(version, path).map(|url| EndpointInfo { url, consistency })
    };
    let strong_path = match exchange.consistency {
        Consistency::Strong => STRONG_PATH,
        Consistency::Eventual => EVENTUAL_PATH,
    };
    let metadata = DatabaseMetadata {
        version,
        database_id: exchange.database.to_string(),
        endpoints: [endpoint(strong_path, "strong")?, endpoint(EVENTUAL_PATH, "eventual")?],
        token: exchange.token,
        expires_at: exchange.expires_at.to_rfc3339_opts(SecondsFormat::Secs, true),
    };
    // The metadata holds strings and numbers only, all of which JSON can express.
    serde_json::to_vec(&metadata).map_err(|_| Refusal::MetadataBody)
}

/// A client that sends no body speaks version 1 only.
fn version(body: &[u8]) -> Result<u8, Refusal> {
    if body.is_empty() {
        return Ok(1);
    }
    let request: Request = serde_json::from_slice(body).map_err(|_| Refusal::MetadataBody)?;
    let speaks = |version: u8| request.supported_versions.contains(&f64::from(version));
    [3, 2, 1].into_iter().find(|version| speaks(*version)).ok_or(Refusal::NoCommonVersion)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    fn ask<'a>() -> Exchange<'a> {
        Exchange {
            database: ID.to_uppercase().parse().unwrap(),
            token: "t\"0ken",
            consistency: Consistency::Strong,
            base: Base::Public("http://kv:4512"),
            expires_at: expiry(
                DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap(),
                Duration::ZERO,
            ),
        }
    }

    fn golden(version: u8, strong: &str, eventual: &str) -> String {
        format!(
            "{{\"version\":{version},\"databaseId\":\"{ID}\",\"endpoints\":[\
             {{\"url\":\"{strong}\",\"consistency\":\"strong\"}},{{\"url\":\"{eventual}\",\"consistency\":\"eventual\"}}],\
             \"token\":\"t\\\"0ken\",\"expiresAt\":\"2023-11-14T23:13:20Z\"}}"
        )
    }

    #[test]
    fn each_version_is_golden() {
        for (body, version) in [
            ("", 1),
            (r#"{"supportedVersions":[1]}"#, 1),
            (r#"{"supportedVersions":[2,1]}"#, 2),
            (r#"{"supportedVersions":[1,2,3]}"#, 3),
            (r#"{"supportedVersions":[3.0,4,1e300,-1]}"#, 3),
            (r#" {"supportedVersions":[2],"more":{}} "#, 2),
        ] {
            let json = String::from_utf8(exchange(body.as_bytes(), &ask()).unwrap()).unwrap();
            assert_eq!(
                json,
                golden(version, "http://kv:4512/kv/strong", "http://kv:4512/kv/eventual"),
                "{body}"
            );
        }
    }

    #[test]
    fn eventual_takes_the_place_of_strong_where_it_is_asked_for() {
        let asked = Exchange { consistency: Consistency::Eventual, ..ask() };
        let json = exchange(br#"{"supportedVersions":[3]}"#, &asked).unwrap();
        let url = "http://kv:4512/kv/eventual";
        assert_eq!(String::from_utf8(json).unwrap(), golden(3, url, url));
    }

    #[test]
    fn without_a_public_url_endpoints_are_relative_to_what_was_asked() {
        for (path, base) in [("/", "."), ("/db/main", ".."), ("/databases/x/connect", "../..")] {
            let asked = Exchange { base: Base::Asked { path, url: None }, ..ask() };
            for version in [2, 3] {
                let body = format!(r#"{{"supportedVersions":[{version}]}}"#);
                let json = String::from_utf8(exchange(body.as_bytes(), &asked).unwrap()).unwrap();
                assert_eq!(
                    json,
                    golden(version, &format!("{base}/kv/strong"), &format!("{base}/kv/eventual"))
                );
            }
            assert!(matches!(exchange(b"", &asked), Err(Refusal::UnknownHost)));
            let asked = Exchange { base: Base::Asked { path, url: Some("https://kv") }, ..ask() };
            let json = String::from_utf8(exchange(b"", &asked).unwrap()).unwrap();
            assert_eq!(json, golden(1, "https://kv/kv/strong", "https://kv/kv/eventual"));
        }
    }

    #[test]
    fn bad_bodies_are_refused() {
        for body in [
            "{}",
            "[]",
            "null",
            "{",
            "\u{0}",
            r#"{"supportedVersions":3}"#,
            r#"{"supportedVersions":["3"]}"#,
        ] {
            let refused = exchange(body.as_bytes(), &ask()).unwrap_err();
            assert!(matches!(refused, Refusal::MetadataBody), "{body}");
            assert!(refused.to_string().contains("1, 2 and 3"));
        }
        for body in [r#"{"supportedVersions":[]}"#, r#"{"supportedVersions":[0,4,2.5]}"#] {
            let refused = exchange(body.as_bytes(), &ask()).unwrap_err();
            assert!(matches!(refused, Refusal::NoCommonVersion), "{body}");
            assert!(refused.to_string().contains("1, 2 and 3"));
        }
    }

    #[test]
    fn metadata_lives_between_an_hour_and_a_year() {
        let now = DateTime::from_timestamp(0, 0).unwrap();
        let seconds = |lifetime| expiry(now, lifetime).timestamp();
        assert_eq!(seconds(Duration::from_secs(1)), 3600);
        assert_eq!(seconds(Duration::from_secs(7200)), 7200);
        assert_eq!(seconds(Duration::MAX), 365 * 24 * 3600);
    }
}
