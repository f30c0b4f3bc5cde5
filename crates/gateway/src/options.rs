//! The settings and limits of a gateway.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use meridian_net::http::HTTP1_BUFFER_BYTES;
use meridian_net::tls;

use crate::audit::Audit;
use crate::forwarded::TrustedProxies;
use crate::usage::Usage;

/// The settings of a gateway. The limits hold for each gateway, not for the cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The URL at which clients reach this gateway. `None`: taken from each metadata request.
    pub public_url: Option<PublicUrl>,
    /// The side of TLS that clients connect to. `None`: they send plain HTTP.
    pub tls: Option<tls::Server>,
    pub handshakes: HandshakeLimits,
    /// The proxies that are believed in which client a request is of.
    pub trusted_proxies: TrustedProxies,
    /// A line for each request. `None`: there is no such log.
    pub audit: Option<Audit>,
    /// The counts of how much each database and token uses.
    pub usage: Usage,
    /// The region of this gateway, for logs.
    pub region: String,
    /// How long clients may keep metadata; between [`Options::MIN_TOKEN_LIFETIME`] and a year.
    pub token_lifetime: Duration,
    /// The largest body of a request. It fits any message within the protocol's limits.
    pub max_body_bytes: usize,
    /// Connections open at a time. Beyond, connections without a valid token make room for new
    /// ones, then idle connections of the address that has most; if no connection can be spared,
    /// new ones wait.
    pub max_connections: usize,
    /// Requests in progress at a time, on all connections. Further requests are refused with 503.
    /// No token can have them all.
    pub max_concurrent_requests: u32,
    /// Bytes of bodies of all requests in progress. Beyond, requests are refused with 503. No token
    /// can have them all.
    pub max_bodies_bytes: u64,
    /// Bytes of answers that clients have not taken yet. Beyond, reads are refused with 503. No
    /// token can have them all.
    pub max_answers_bytes: u64,
    /// Requests in progress at a time on one HTTP/2 connection, beside watches; further requests
    /// wait at the client. The server ends a connection without a valid token that has many fewer.
    pub max_streams_per_connection: u32,
    /// Watches open at a time, on all connections. Further watches are refused with 503. No token
    /// can have more than three quarters of them.
    pub max_watches: u32,
    /// Change feeds open at a time, on all connections. Further feeds are refused with 503. No
    /// token can have more than three quarters of them.
    pub max_change_feeds: u32,
    /// The time from accepting a connection to its first complete request head, and between
    /// requests on a connection that never carried a valid token.
    pub first_request_timeout: Duration,
    /// The time between requests. Also bounds how long the head of a request and the reading of an
    /// answer may take.
    pub idle_timeout: Duration,
    /// How long a metadata request with an unknown token or database is held while this process has
    /// not heard from its cluster. Deno waits for 30 s.
    pub hearing_timeout: Duration,
    /// The time from a request's head to the end of its body.
    pub body_timeout: Duration,
    /// The time for requests in progress to finish at shutdown.
    pub drain_timeout: Duration,
}

impl Options {
    /// One token has room for 15,000 of them.
    pub const DEFAULT_MAX_WATCHES: u32 = 20_000;
    /// A feed costs work with each batch of its shard.
    pub const DEFAULT_MAX_CHANGE_FEEDS: u32 = 1000;
    /// Clients fetch metadata again for every request when it has less than five minutes left.
    pub const MIN_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
    /// The memory of a connection before it carried a token: its buffers, an incomplete head, and
    /// its task. TLS takes [`tls::CONNECTION_BYTES`] more.
    pub const CONNECTION_BYTES: usize = HTTP1_BUFFER_BYTES + 16 * 1024;

    /// The most streams of one HTTP/2 connection: the requests, watches and change feeds of a whole
    /// program.
    pub(crate) fn max_http2_streams(&self) -> u32 {
        let streams = self.max_watches.saturating_add(self.max_change_feeds);
        self.max_streams_per_connection.saturating_add(streams)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            public_url: None,
            tls: None,
            handshakes: HandshakeLimits::default(),
            trusted_proxies: TrustedProxies::default(),
            audit: None,
            usage: Usage::default(),
            region: String::new(),
            token_lifetime: Self::MIN_TOKEN_LIFETIME,
            max_body_bytes: 1024 * 1024,
            max_connections: 8192,
            max_concurrent_requests: 8192,
            max_bodies_bytes: 256 << 20,
            max_answers_bytes: 512 << 20,
            max_streams_per_connection: 1024,
            max_watches: Self::DEFAULT_MAX_WATCHES,
            max_change_feeds: Self::DEFAULT_MAX_CHANGE_FEEDS,
            first_request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            hearing_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// The bounds on handshakes of TLS, before anything is known of a client.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeLimits {
    /// Under way at a time. One address cannot have half of them.
    pub in_all: usize,
    /// Of one address, that begin at once; further ones wait for their turn.
    pub at_once: u32,
    /// Of one address, beyond those that begin at once.
    pub per_second: u32,
    /// From accepting a connection to the end of its handshake.
    pub within: Duration,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { in_all: 1024, at_once: 128, per_second: 64, within: Duration::from_secs(5) }
    }
}

/// An absolute `http` or `https` URL without a query, and without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

/// Text that is not the URL of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an http or https URL without a query")]
pub struct InvalidPublicUrl(pub String);

impl PublicUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicUrl {
    type Err = InvalidPublicUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPublicUrl> {
        let trimmed = text.trim_end_matches('/');
        let sound = trimmed.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.query().is_none()
                && !text.contains('#')
        });
        if sound { Ok(Self(trimmed.to_owned())) } else { Err(InvalidPublicUrl(text.to_owned())) }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_absolute_and_does_not_end_in_a_slash() {
        for (text, url) in [
            ("http://kv.example.com", "http://kv.example.com"),
            ("https://kv.example.com/", "https://kv.example.com"),
            ("http://[::1]:4512/prefix//", "http://[::1]:4512/prefix"),
        ] {
            assert_eq!(text.parse::<PublicUrl>().unwrap().as_str(), url);
        }
        for text in [
            "",
            "/",
            "kv.example.com",
            "ftp://kv",
            "http://",
            "http://kv?x=1",
            "http://kv/#x",
            "http://k v",
        ] {
            assert_eq!(text.parse::<PublicUrl>(), Err(InvalidPublicUrl(text.to_owned())), "{text}");
        }
    }
}
