//! The node that a call comes from, where the connection has proved it.

use meridian_types::NodeId;
use tonic::{Extensions, Status};

/// The authenticated node, as an extension of a call.
#[derive(Debug, Clone, Copy)]
pub struct CallingNode(pub NodeId);

/// Whether a call may speak for a node: a node speaks for itself alone. A call without proof comes
/// over a transport that asks for none.
///
/// # Errors
/// `PERMISSION_DENIED`, with both.
pub fn speaks_for(extensions: &Extensions, claimed: u64) -> Result<(), Status> {
    match extensions.get::<CallingNode>() {
        Some(CallingNode(node)) if node.0 != claimed => Err(Status::permission_denied(format!(
            "the call comes from node {node}, and speaks for node {claimed}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_speaks_for_itself_alone() {
        let mut extensions = Extensions::default();
        assert!(speaks_for(&extensions, 1).is_ok());
        extensions.insert(CallingNode(NodeId(1)));
        assert!(speaks_for(&extensions, 1).is_ok());
        let refused = speaks_for(&extensions, 2).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(refused.message().contains("from node 1, and speaks for node 2"), "{refused}");
    }
}
