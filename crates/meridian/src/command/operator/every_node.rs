//! One question to every node of the cluster.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::join_all;
use meridian_directory::{Cluster, Node};
use meridian_types::NodeId;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The answers of all nodes that were not removed, by their ids. Nodes that do not answer in time are
/// reported on the standard error, where `what` says what could not be done, with their names behind.
///
/// # Errors
/// No node answers.
pub(crate) async fn every_node<'a, T>(
    cluster: &'a Cluster,
    what: &str,
    ask: impl AsyncFn(&'a Node) -> Result<T, tonic::Status>,
) -> Result<Vec<(NodeId, &'a Node, T)>> {
    let ask = &ask;
    let asked = cluster.present_nodes().map(|(id, node)| async move {
        let late = |_| Err(tonic::Status::deadline_exceeded("no answer"));
        match tokio::time::timeout(TIMEOUT, ask(node)).await.unwrap_or_else(late) {
            Ok(answer) => Some((id, node, answer)),
            Err(status) => {
                eprintln!("meridian: cannot {what} {}: {}", node.name, status.message());
                None
            }
        }
    });
    let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    if answers.is_empty() { bail!("no node of the cluster answers") } else { Ok(answers) }
}
