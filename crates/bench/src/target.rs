//! What every request to one method has in common.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};

use crate::endpoint::Endpoint;
use crate::error::BenchError;
use crate::options::HttpVersion;

/// A request without its body. To clone it costs no parsing.
#[derive(Debug, Clone)]
pub struct Target {
    uri: Uri,
    headers: HeaderMap,
}

impl Target {
    /// A POST to `url`; HTTP/1.1 takes the path and a host header, HTTP/2 the whole URL.
    pub fn new(url: &Endpoint, http: HttpVersion, headers: &[(HeaderName, HeaderValue)]) -> Result<Self, BenchError> {
        let error = || BenchError::Url { url: url.to_string(), reason: "cannot be requested".into() };
        let mut map = HeaderMap::with_capacity(headers.len() + 1);
        let uri = match http {
            HttpVersion::H1 => {
                map.insert(HOST, HeaderValue::from_str(url.authority()).map_err(|_| error())?);
                url.path_and_query().parse()
            }
            HttpVersion::H2 => url.to_string().parse(),
        };
        map.extend(headers.iter().cloned());
        Ok(Self { uri: uri.map_err(|_| error())?, headers: map })
    }

    pub fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}
