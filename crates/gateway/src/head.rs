//! The head of a request, apart from its path: token, database, consistency, the URL of this
//! gateway.

use hyper::Uri;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::http::uri::Authority;
use meridian_types::{Consistency, DatabaseId};

use crate::forwarded::Way;
use crate::refusal::Refusal;

/// The token of `Authorization: Bearer <token>`.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty())
        .ok_or(Refusal::MalformedAuthorization)
}

/// The database that a request of the data path names. Version 1 names it in a header of its own
/// and need not say its version.
pub(crate) fn database_id(headers: &HeaderMap) -> Result<DatabaseId, Refusal> {
    let id = match headers.get("x-denokv-version").map(|value| value.as_bytes()) {
        Some(b"2" | b"3") => headers.get("x-denokv-database-id"),
        Some(b"1") => headers.get("x-transaction-domain-id"),
        None => Some(headers.get("x-transaction-domain-id").ok_or(Refusal::ProtocolVersion)?),
        Some(_) => return Err(Refusal::ProtocolVersion),
    };
    id.and_then(|value| value.to_str().ok())
        .and_then(|id| id.parse().ok())
        .ok_or(Refusal::DatabaseId)
}

/// The consistency that a connect URL asks for with `?consistency=`.
pub(crate) fn consistency(uri: &Uri) -> Result<Consistency, Refusal> {
    let pairs = uri.query().unwrap_or_default().split('&');
    match pairs.filter_map(|pair| pair.strip_prefix("consistency=")).next_back() {
        None | Some("strong") => Ok(Consistency::Strong),
        Some("eventual") => Ok(Consistency::Eventual),
        Some(_) => Err(Refusal::ConsistencyParameter),
    }
}

/// The address of this gateway as the client sees it, `scheme://authority`. `None` if the request
/// does not say.
///
/// The host comes from the client, or from a trusted proxy, and only that client gets to see the
/// result.
pub(crate) fn base_url(uri: &Uri, headers: &HeaderMap, way: Option<&Way>) -> Option<String> {
    let told = way.and_then(|way| way.host.as_deref());
    let authority = match (told, uri.authority()) {
        (Some(host), _) => Authority::try_from(host).ok()?,
        (None, Some(authority)) => authority.clone(),
        (None, None) => Authority::try_from(headers.get(HOST)?.as_bytes()).ok()?,
    };
    let scheme = if way.is_some_and(|way| way.is_https) { "https" } else { "http" };
    (!authority.host().is_empty() && !authority.as_str().contains('@'))
        .then(|| format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn bearer_is_found_or_malformed() {
        for (value, token) in [("Bearer t0ken", "t0ken"), ("bearer t", "t"), ("BEARER  t ", "t")] {
            assert_eq!(bearer(&headers(&[("authorization", value)])).unwrap(), token);
        }
        assert!(matches!(bearer(&HeaderMap::new()), Err(Refusal::MalformedAuthorization)));
        for value in ["", "t0ken", "Bearer", "Bearer ", "Basic t0ken", "Bearer\tt0ken"] {
            let refused = bearer(&headers(&[("authorization", value)])).unwrap_err();
            assert!(matches!(refused, Refusal::MalformedAuthorization), "{value:?}");
        }
    }

    #[test]
    fn each_version_names_its_database() {
        const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
        let (version, v1, v2) =
            ("x-denokv-version", "x-transaction-domain-id", "x-denokv-database-id");
        for pairs in [&[(v1, ID)][..], &[(version, "1"), (v1, ID)], &[(version, "2"), (v2, ID)]] {
            assert_eq!(database_id(&headers(pairs)).unwrap(), ID.parse().unwrap());
        }
        assert_eq!(
            database_id(&headers(&[(version, "3"), (v2, ID)])).unwrap(),
            ID.parse().unwrap()
        );
        for pairs in [&[][..], &[(v2, ID)], &[(version, "4"), (v2, ID)], &[(version, ""), (v1, ID)]]
        {
            assert!(
                matches!(database_id(&headers(pairs)), Err(Refusal::ProtocolVersion)),
                "{pairs:?}"
            );
        }
        for pairs in [
            &[(version, "3")][..],
            &[(version, "3"), (v1, ID)],
            &[(version, "2"), (v2, "x")],
            &[(v1, "")],
        ] {
            assert!(matches!(database_id(&headers(pairs)), Err(Refusal::DatabaseId)), "{pairs:?}");
        }
    }

    #[test]
    fn consistency_is_a_query_parameter() {
        for (uri, expected) in [
            ("/", Consistency::Strong),
            ("/?", Consistency::Strong),
            ("/?other=1&consistency=strong", Consistency::Strong),
            ("/db/x?consistency=eventual", Consistency::Eventual),
            ("/?a&consistency=eventual&b=", Consistency::Eventual),
        ] {
            assert_eq!(consistency(&uri.parse().unwrap()).unwrap(), expected, "{uri}");
        }
        assert!(matches!(
            consistency(&"/?consistency=weak".parse().unwrap()),
            Err(Refusal::ConsistencyParameter)
        ));
    }

    #[test]
    fn base_url_comes_from_the_request_and_its_way() {
        let path = "/".parse::<Uri>().unwrap();
        let of = |uri: &Uri, host: &[(&'static str, &'static str)], way: Option<&Way>| {
            base_url(uri, &headers(host), way)
        };
        let [plain, secure] = [false, true].map(|tls| Way::direct([10, 0, 0, 1].into(), tls));
        for (way, url) in [
            (None, "http://kv:4512"),
            (Some(&plain), "http://kv:4512"),
            (Some(&secure), "https://kv:4512"),
        ] {
            assert_eq!(of(&path, &[("host", "kv:4512")], way).as_deref(), Some(url));
        }
        let told = |host: &str| Way { host: Some(host.to_owned()), ..secure.clone() };
        assert_eq!(
            of(&path, &[("host", "inner")], Some(&told("[::1]:80"))).as_deref(),
            Some("https://[::1]:80")
        );
        let absolute = "http://other:1/".parse().unwrap();
        assert_eq!(of(&absolute, &[("host", "kv")], None).as_deref(), Some("http://other:1"));
        assert_eq!(of(&path, &[], None), None);
        for host in ["", "user@kv", "a b", "kv/path"] {
            assert_eq!(of(&path, &[("host", host)], None), None, "{host:?}");
            assert_eq!(of(&path, &[("host", "kv")], Some(&told(host))), None, "{host:?}");
        }
    }
}
