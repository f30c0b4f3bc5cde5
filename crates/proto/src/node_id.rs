//! A node that a message may leave out: zero stands for none, since no node has that id.

use meridian_types::NodeId;

/// The node of a message, if it names one.
pub fn node_id(wire: u64) -> Option<NodeId> {
    Some(wire).filter(|node| *node != 0).map(NodeId)
}

/// As a message has it.
pub fn node_id_to_wire(node: Option<NodeId>) -> u64 {
    node.map_or(0, |node| node.0)
}
