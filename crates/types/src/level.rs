//! How much an operator may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How much an operator may do. Each level may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Look at the cluster, and change nothing.
    View,
    /// Move leaders and primaries, set voters, pause queues.
    Operate,
    /// All: nodes, databases, tokens, operators, certificates, and reading what a failover lost.
    Admin,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::View, Self::Operate, Self::Admin];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no level: view, operate or admin")]
pub struct NotALevel(String);

impl FromStr for Level {
    type Err = NotALevel;

    fn from_str(text: &str) -> Result<Self, NotALevel> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| NotALevel(text.chars().take(40).collect()))
    }
}
