//! Access tokens: a hash of each, and what it opens.

use std::collections::BTreeSet;

use meridian_types::DatabaseId;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub label: String,
    /// SHA-256 of the secret, in hex.
    pub sha256: String,
    pub scope: TokenScope,
    pub write: bool,
    /// Wall clock, milliseconds since the Unix epoch. `None`: never.
    pub expires_at_ms: Option<u64>,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenScope {
    All,
    Databases(BTreeSet<DatabaseId>),
}
