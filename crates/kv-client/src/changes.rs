//! A feed of one database's changes.

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde::Deserialize;

use crate::client::{CallError, KvClient, Sender};

/// Where a feed begins, and whether it goes on when all that is committed was told.
#[derive(Debug, Clone, Default)]
pub struct ChangesFrom<'a> {
    /// Of the keys, in base64url.
    pub prefix: &'a str,
    /// The hex text of a versionstamp. Empty: from now on.
    pub after: &'a str,
    pub follow: bool,
}

/// A line of a feed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ChangeLine {
    Transaction { versionstamp: String, changes: Vec<Change> },
    Bookmark { bookmark: String },
    End { end: String, message: String },
}

/// The change of one key by a transaction; of all keys where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    pub op: String,
    /// In base64url, as the value.
    pub key: Option<String>,
    pub encoding: Option<String>,
    pub value: Option<String>,
    pub expire_at: Option<u64>,
}

/// A feed under way. To drop it ends it.
#[derive(Debug)]
pub struct ChangeFeed {
    body: Incoming,
    received: BytesMut,
    /// Of the connection that the body comes over.
    _sender: Sender,
}

impl KvClient {
    /// A feed, once the gateway has begun to answer.
    pub async fn changes(&self, from: &ChangesFrom<'_>) -> Result<ChangeFeed, CallError> {
        let ChangesFrom { prefix, after, follow } = from;
        let path = format!("/kv/changes?prefix={prefix}&after={after}&follow={follow}");
        let mut request = self.request(&path, &self.headers(), bytes::Bytes::new())?;
        *request.method_mut() = Method::GET;
        let begun = tokio::time::timeout(self.timeout, self.exchange(request)).await;
        let (response, sender) = begun.unwrap_or_else(|_| Err(self.too_late()))?;
        if response.status() == StatusCode::OK {
            let received = BytesMut::new();
            return Ok(ChangeFeed { body: response.into_body(), received, _sender: sender });
        }
        let (status, body) = (response.status(), response.into_body().collect().await);
        let body = body.map_err(|error| CallError::NoAnswer(error.to_string()))?.to_bytes();
        Err(CallError::Refused { status, text: String::from_utf8_lossy(&body).into_owned() })
    }
}

impl ChangeFeed {
    /// The next line; `None` once the gateway has ended the feed.
    ///
    /// # Errors
    /// When the connection broke, or what came is no line. May be dropped at any await: nothing is
    /// lost.
    pub async fn next(&mut self) -> Result<Option<ChangeLine>, CallError> {
        let failed = |error: &dyn std::error::Error| CallError::NoAnswer(error.to_string());
        let mut searched = 0;
        loop {
            let fresh = self.received.get(searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.received.split_to(searched + at + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|error| failed(&error));
            }
            searched = self.received.len();
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| failed(&error))?;
            self.received.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        }
    }
}
