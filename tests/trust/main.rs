//! Callers and their calls: every method with every role and with none, certificates that are wrong, a
//! cluster that grows by join tokens, and a cluster that is closed while it serves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod calls;
mod closing;
mod joining;
mod members;

use std::time::Duration;

use meridian_proto::directory::directory_client::DirectoryClient;
use meridian_proto::directory::{ClusterState, FollowRequest};
use tonic::Streaming;
use tonic::transport::Channel;

/// Far beyond every time-out inside the cluster.
const DEADLINE: Duration = Duration::from_secs(60);

/// Follows the cluster at a node, whose stream has no end of its own.
async fn follow(channel: Channel) -> Streaming<ClusterState> {
    let mut client = DirectoryClient::new(channel);
    let mut followed = client.follow(FollowRequest::default()).await.unwrap().into_inner();
    assert!(followed.message().await.unwrap().is_some());
    followed
}

/// Waits until the node has ended the stream.
async fn ended(mut followed: Streaming<ClusterState>) {
    let read = async { while let Ok(Some(_)) = followed.message().await {} };
    tokio::time::timeout(DEADLINE, read).await.expect("the stream goes on");
}
