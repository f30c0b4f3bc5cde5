//! A URL that requests go to.

use std::fmt;

use hyper::Uri;
use hyper::http::uri::{Authority, PathAndQuery};

use crate::error::ClientError;

/// An `http://` or `https://` URL. Its path has no trailing `/`, unless it is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    is_https: bool,
    authority: Authority,
    path_and_query: String,
}

impl Endpoint {
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let error =
            |reason: &str| ClientError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| error("not a URL"))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(error("expected http://host:port or https://host")),
        };
        let authority = uri.authority().cloned().ok_or_else(|| error("the host is missing"))?;
        let path_and_query = uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
        Ok(Self { is_https, authority, path_and_query })
    }

    /// An endpoint of a metadata answer that came from this URL: absolute or relative.
    pub fn resolve(&self, reference: &str) -> Result<Self, ClientError> {
        let error = |source: url::ParseError| ClientError::Url {
            url: reference.to_owned(),
            reason: source.to_string(),
        };
        let joined = url::Url::parse(&self.to_string())
            .and_then(|base| base.join(reference))
            .map_err(error)?;
        Self::parse(joined.as_str())
    }

    /// The URL of a method below this endpoint.
    pub fn method(&self, name: &str) -> Self {
        let path_and_query = format!("{}/{name}", self.path_and_query.trim_end_matches('/'));
        Self { is_https: self.is_https, authority: self.authority.clone(), path_and_query }
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The URL without a path.
    pub fn origin(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// The target of an HTTP/1.1 request line.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.is_https { 443 } else { 80 })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path_and_query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_against_the_connect_url() {
        let base =
            Endpoint::parse("http://127.0.0.1:4512/db/connect?consistency=eventual").unwrap();
        assert_eq!(base.path_and_query(), "/db/connect?consistency=eventual");
        for (reference, expected) in [
            ("http://other:1/v2", "http://other:1/v2"),
            ("//other:1/v2", "http://other:1/v2"),
            ("/v2/eventual", "http://127.0.0.1:4512/v2/eventual"),
            ("v2", "http://127.0.0.1:4512/db/v2"),
            ("./v2", "http://127.0.0.1:4512/db/v2"),
            ("../v2/eventual", "http://127.0.0.1:4512/v2/eventual"),
            ("https://other/v2", "https://other/v2"),
        ] {
            assert_eq!(base.resolve(reference).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn methods_come_behind_one_slash() {
        for (url, expected) in
            [("http://h", "/snapshot_read"), ("http://h/v2", "/v2/snapshot_read")]
        {
            assert_eq!(
                Endpoint::parse(url).unwrap().method("snapshot_read").path_and_query(),
                expected
            );
        }
    }

    #[test]
    fn hosts_and_ports() {
        let endpoint = Endpoint::parse("http://[::1]:4512/x").unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("::1", 4512));
        assert_eq!(Endpoint::parse("http://h").unwrap().port(), 80);
        let secure = Endpoint::parse("https://h/x").unwrap();
        assert_eq!((secure.port(), &*secure.origin()), (443, "https://h"));
        assert_eq!(secure.resolve("../y").unwrap().to_string(), "https://h/y");
        for bad in ["ftp://h", "h:4512", "", "http://"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
