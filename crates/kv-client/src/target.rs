//! The parts that all requests to one method have in common.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};

use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::http_version::HttpVersion;

pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// A request without its body. To clone it costs no parsing.
#[derive(Debug, Clone)]
pub struct Target {
    uri: Uri,
    /// Of each database.
    headers: Arc<[HeaderMap]>,
}

impl Target {
    /// A POST to `url`; HTTP/1.1 takes the path and a host header, HTTP/2 the whole URL.
    pub fn new(
        url: &Endpoint,
        http: HttpVersion,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Self, ClientError> {
        let error =
            || ClientError::Url { url: url.to_string(), reason: "cannot be requested".into() };
        let mut map = HeaderMap::with_capacity(headers.len() + 1);
        let uri = match http {
            HttpVersion::H1 => {
                map.insert(HOST, HeaderValue::from_str(url.authority()).map_err(|_| error())?);
                url.path_and_query().parse()
            }
            HttpVersion::H2 => url.to_string().parse(),
        };
        map.extend(headers.iter().cloned());
        Ok(Self { uri: uri.map_err(|_| error())?, headers: [map].into() })
    }

    /// For these databases too.
    #[must_use]
    pub fn spread(self, more: &[Headers]) -> Self {
        if more.is_empty() {
            return self;
        }
        let first = self.headers.first().cloned().unwrap_or_default();
        let others = more.iter().map(|headers| {
            let mut map = first.clone();
            // One value for each name: it takes the place of the first database's.
            headers.iter().for_each(|(name, value)| drop(map.insert(name, value.clone())));
            map
        });
        let headers = [first.clone()].into_iter().chain(others).collect();
        Self { uri: self.uri, headers }
    }

    pub fn databases(&self) -> usize {
        self.headers.len()
    }

    pub fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        self.request_to(0, body)
    }

    /// Databases are counted from 0; a database that is not there is the first.
    pub fn request_to(&self, database: usize, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() =
            self.headers.get(database).or(self.headers.first()).cloned().unwrap_or_default();
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_database_has_headers_of_its_own() {
        let name = HeaderName::from_static("x-denokv-database-id");
        let of = |id| vec![(name.clone(), HeaderValue::from_static(id))];
        let target =
            Target::new(&Endpoint::parse("http://h:1/s").unwrap(), HttpVersion::H1, &of("a"))
                .unwrap();
        let target = target.spread(&[of("b"), of("c")]);
        assert_eq!(target.databases(), 3);
        let asked = (0..4).map(|database| {
            let request = target.request_to(database, Bytes::new());
            let ids: Vec<_> = request.headers().get_all(&name).iter().collect();
            assert_eq!((ids.len(), request.headers()[HOST].to_str().unwrap()), (1, "h:1"));
            ids[0].to_str().unwrap().to_owned()
        });
        assert_eq!(asked.collect::<Vec<_>>(), ["a", "b", "c", "a"]);
    }
}
