//! The whole answer to a request.

use bytes::Bytes;
use hyper::StatusCode;
use prost::Message;

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!((self.status, self.content_type.as_str()), (StatusCode::OK, "application/json"));
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.text());
        assert_eq!(self.content_type, "application/x-protobuf");
        M::decode(self.body.clone()).unwrap()
    }

    /// Asserts that this is the plain-text answer `status`, with `part` in it.
    pub(crate) fn refuses(&self, status: u16, part: &str) {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.text());
        assert!(self.content_type.starts_with("text/plain"), "{}", self.content_type);
        assert!(self.text().contains(part), "`{}` does not contain `{part}`", self.text());
    }
}
