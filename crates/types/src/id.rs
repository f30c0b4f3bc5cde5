//! Identities of nodes, databases, shards and requests.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A node of the cluster: one `meridian serve` process, or one of the six inside `meridian dev`.
/// An id is never used for a second node. No node has the id 0: a configuration with it is refused,
/// and the directory counts from there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The plain number too: logs and errors show sets of nodes so.
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl FromStr for NodeId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// Text that is not a UUID where one was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a UUID")]
pub struct InvalidId(pub String);

/// A client's database: a key space and transaction domain of its own, in exactly one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DatabaseId(pub [u8; 16]);

impl DatabaseId {
    pub const LEN: usize = 16;
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Uuid::from_bytes(self.0))
    }
}

impl From<DatabaseId> for String {
    fn from(id: DatabaseId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DatabaseId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl FromStr for DatabaseId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::parse_str(text)
            .map(|id| Self(id.into_bytes()))
            .map_err(|_| InvalidId(text.to_owned()))
    }
}

/// A Raft group in its primary region plus its followers in replica regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one write of one client, so that retrying it inside the cluster applies it once.
/// A UUIDv7, made by the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    pub const LEN: usize = 16;
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Uuid::from_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00010203-0405-0607-0809-0a0b0c0d0e0f";

    /// Configurations, the directory's JSON, logs and tables have it so.
    #[test]
    fn node_id_is_shown_and_read_as_its_number() {
        let id = NodeId(7);
        assert_eq!(
            (format!("{id}"), format!("{id:>3}"), format!("{id:?}")),
            ("7".to_owned(), "  7".to_owned(), "7".to_owned())
        );
        assert_eq!("7".parse(), Ok(id));
        assert!("n7".parse::<NodeId>().is_err());
    }

    /// Clients, tokens and the directory's JSON name databases so.
    #[test]
    fn a_database_is_named_by_its_uuid_and_found_by_that_name() {
        let id = DatabaseId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!((id.to_string().as_str(), String::from(id).as_str()), (TEXT, TEXT));
        assert_eq!(TEXT.parse(), Ok(id));
        assert_eq!(DatabaseId::try_from(TEXT.to_owned()), Ok(id));
        let unfit = "00010203-0405".to_owned();
        assert_eq!(DatabaseId::try_from(unfit.clone()), Err(InvalidId(unfit)));
    }
}
