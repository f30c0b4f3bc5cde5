//! Errors of clusters.

use std::io;
use std::path::PathBuf;

use crate::network::Machine;
use crate::operator::OperatorError;
use crate::poll::Timeout;

/// The reason why a cluster cannot be had, or is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("{} is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    #[error("the topology is refused: {0}")]
    Topology(String),
    #[error("the configuration of a node is not as expected: {0}")]
    Configuration(String),
    #[error("no free ports on 127.0.0.1")]
    NoPorts,
    #[error("there is no {0}")]
    NoSuchMachine(Machine),
    #[error("{0} runs already")]
    RunsAlready(String),
    #[error("{0} is down")]
    IsDown(String),
    /// The end of a process, with its log.
    #[error("{0}")]
    Ended(String),
    #[error("the cluster is not ready; its logs and data are in {}", folder.display())]
    NotReady { source: Box<ClusterError>, folder: PathBuf },
    #[error("`meridian {command}` failed: {text}")]
    Refused { command: String, text: String },
    #[error("the cluster has no emulated network")]
    NoNetwork,
    #[error(transparent)]
    Timeout(#[from] Timeout),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Context(#[from] meridian_config::ContextError),
    #[error(transparent)]
    Identities(#[from] meridian_config::NoIdentities),
}

/// An error with its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

impl ClusterError {
    pub(super) fn io(what: &str, source: io::Error) -> Self {
        Self::Io { what: what.to_owned(), source }
    }
}
