//! A feed of one database's changes.

use hyper::Method;
use serde::Deserialize;

use crate::client::{CallError, KvClient};
use crate::lines::Lines;

/// Where a feed begins, and whether it goes on when all that is committed was told.
#[derive(Debug, Clone, Default)]
pub struct ChangesFrom<'a> {
    /// Of the keys, in base64url.
    pub prefix: &'a str,
    /// The hex text of a versionstamp. `None`: from now on.
    pub after: Option<&'a str>,
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
pub struct ChangeFeed(Lines);

impl ChangesFrom<'_> {
    fn path(&self) -> String {
        let Self { prefix, after, follow } = self;
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        format!("/kv/changes?prefix={prefix}&follow={follow}{after}")
    }
}

impl KvClient {
    /// A feed, once the gateway has begun to answer.
    pub async fn changes(&self, from: &ChangesFrom<'_>) -> Result<ChangeFeed, CallError> {
        let mut request = self.request(&from.path(), &self.headers(), bytes::Bytes::new())?;
        *request.method_mut() = Method::GET;
        Ok(ChangeFeed(Lines::of(self.begin(request).await?)))
    }
}

impl ChangeFeed {
    /// The next line; `None` once the gateway has ended the feed.
    ///
    /// # Errors
    /// When the connection broke, or what came is no line. May be dropped at any await: nothing is
    /// lost.
    pub async fn next(&mut self) -> Result<Option<ChangeLine>, CallError> {
        let Some(line) = self.0.next().await? else { return Ok(None) };
        let read = serde_json::from_slice(&line);
        read.map(Some).map_err(|error| CallError::NoAnswer(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gateway refuses an empty one.
    #[test]
    fn feed_that_begins_now_names_no_place_and_an_empty_place_is_sent_as_it_is() {
        let path = |after| ChangesFrom { prefix: "YQ", after, follow: true }.path();
        assert_eq!(path(None), "/kv/changes?prefix=YQ&follow=true");
        assert_eq!(path(Some("")), "/kv/changes?prefix=YQ&follow=true&after=");
    }
}
