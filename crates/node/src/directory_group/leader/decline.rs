//! Answers a request of a node that does not lead the directory.

use meridian_failover::ExecuteFailure;
use meridian_proto::directory::renew_response;
use meridian_proto::node_id_to_wire;
use meridian_types::NodeId;

use super::Request;

pub(super) fn decline(request: Request, leader: Option<NodeId>) {
    match request {
        Request::Renew { reply, .. } => {
            drop(reply.send(renew_response::Result::NotLeader(node_id_to_wire(leader))))
        }
        Request::Execute { reply, .. } => drop(reply.send(Err(ExecuteFailure::NotLeader))),
        // Its sender is told by the closed channel.
        Request::Inspect { .. } => {}
    }
}
