//! Errors, with texts for the person at the command line.

use std::time::Duration;

use meridian_kv_client::ClientError;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Option(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server answered, but not with the result that the operation needs.
    #[error("{0}")]
    Unsuccessful(String),
    #[error("{0} names no strong endpoint")]
    NoStrongEndpoint(String),
    #[error(
        "{0} names no eventual endpoint; give --eventual-url, or leave eventual-read out of --operations"
    )]
    NoEventualEndpoint(String),
    #[error("--url and --eventual-url lead to different databases: {0} and {1}")]
    DifferentDatabases(String, String),
    #[error("loading the key space failed: {0}")]
    Load(Box<BenchError>),
    #[error(
        "the eventual endpoint did not show the loaded keys within {waited:?}; the last answer: {last}"
    )]
    NotReplicated { waited: Duration, last: String },
    #[error("interrupted before anything was measured")]
    Interrupted,
}

impl BenchError {
    /// Whether the connection is unusable afterwards.
    pub fn spoils_link(&self) -> bool {
        matches!(self, Self::Client(error) if error.spoils_link())
    }
}
