//! From a gateway to the node that can answer: the leader, retries, hedges, and what they may cost.

pub(crate) mod cluster_nodes;
pub(crate) mod hedge;
pub(crate) mod list_calls;
pub(crate) mod nodes;
pub(crate) mod queue_calls;
pub(crate) mod read_answer;
pub(crate) mod router;
mod watch_inbox;
pub(crate) mod watch_news;
pub(crate) mod watch_sending;
pub(crate) mod write_calls;
