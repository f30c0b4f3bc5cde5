//! Why a call to another node gave nothing, and whether it may have done something there all the same.

use meridian_types::NodeId;
use tonic::{Code, Status};

/// Why one try gave nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The node does not lead; the leader, if it knows one. Nothing was done there, or will be.
    NotLeader(Option<NodeId>),
    /// Nothing was done there, or will be, for this reason.
    NotDone(String),
    /// As [`Failed::NotDone`]: the database has its share of what the node has, which serves others.
    /// No other node would do it instead.
    Busy(String),
    /// No connection: nothing was done there.
    Unreachable(String),
    /// Something may have been done, or may be yet.
    Unknown(String),
}

impl Failed {
    /// A call that failed before there was a connection did nothing; any other failure may have.
    pub(crate) fn from_status(status: Status) -> Self {
        let message = status.message().to_owned();
        match status {
            status if is_refusal(&status) => Self::NotDone(message),
            status if never_connected(&status) => Self::Unreachable(message),
            _ => Self::Unknown(message),
        }
    }
}

/// Whether the node refused the call before it looked at it: no such shard there, another epoch, a
/// malformed field, or a caller that may not.
fn is_refusal(status: &Status) -> bool {
    let refusals = [
        Code::NotFound,
        Code::FailedPrecondition,
        Code::InvalidArgument,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::Unimplemented,
    ];
    refusals.contains(&status.code())
}

/// Whether the call never got a connection.
fn never_connected(status: &Status) -> bool {
    use std::error::Error;
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
