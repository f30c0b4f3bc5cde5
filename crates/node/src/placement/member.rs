//! The tasks of a group's member on this node.

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_consensus::Peers;
use meridian_storage::StorageError;
use meridian_types::NodeId;

use crate::cluster_view::view::Directory;
use crate::shard::voter::Voter;

/// The authority that has to vouch for a member before it takes part.
pub(crate) enum VoteAuthority {
    /// The other members alone: the directory's own group.
    ByOthers,
    /// The directory, which knows the folders of nodes; with its name, a lease on the epoch is
    /// waited for. A voter that restarts has forgotten whether it was sealed, and a
    /// wiped voter what it voted: neither gets a lease.
    By(Option<Arc<Directory>>),
}

/// The tasks of a group's member, until the voter's `stop`: it takes part, and a group that stops
/// by itself stops the process.
pub(crate) fn run_member(
    voter: &Arc<Voter>,
    voters: BTreeSet<NodeId>,
    peers: Arc<dyn Peers>,
    authority: VoteAuthority,
    stands_first: bool,
) {
    let (group, stop) = (voter.group.clone(), voter.stop.clone());
    tokio::spawn(async move {
        let part = async {
            if let VoteAuthority::By(Some(directory)) = &authority {
                directory.granted(group.id().shard, group.id().epoch).await;
            }
            let vouched = matches!(authority, VoteAuthority::By(_));
            if let Err(error) = group.take_part(&voters, &peers, vouched).await {
                // It cannot tell whether it may vote: storage has failed.
                meridian_storage::fatal(&error);
            }
            if stands_first {
                // No election timeout is waited for when a group is new.
                group.elect_now().await;
            }
            if let Err(error) = group.announce(&voters, &peers).await {
                meridian_storage::fatal(&error);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = part => {}
            // Also while it waits to take part: it follows then already.
            reason = group.stopped() => if !stop.is_cancelled() {
                meridian_storage::fatal(&StorageError::RaftStopped { group: group.id(), reason });
            }
        }
    });
}
