//! A node that stops hands over what it leads.

use std::sync::Arc;
use std::time::Duration;

use meridian_types::NodeId;

use crate::directory_group::leader::DirectoryVoter;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;

/// How long the successor may take until clients of a stopping node find it.
const HANDOVER: Duration = Duration::from_secs(1);

/// Hands each leadership to the voter that has most, so that clients wait for no election. Where no
/// voter takes over, an election follows.
pub(crate) async fn hand_over(
    node_id: NodeId,
    shards: &ShardTable,
    directory: Option<Arc<DirectoryVoter>>,
) {
    let directory = directory.filter(|directory| directory.voter.group.leadership().is_ok());
    if let Some(directory) = directory {
        // Any other voter: none of them is known to be behind.
        let heir = directory.voter.group.voters().into_iter().find(|voter| *voter != node_id);
        hand_over_to(&directory.voter, heir).await;
    }
    for (id, shard) in shards.all() {
        let LocalShard::Voter(voter) = shard else { continue };
        hand_over_to(&voter, shards.followers(&id).and_then(|followers| followers.heir())).await;
    }
}

async fn hand_over_to(voter: &Voter, heir: Option<NodeId>) {
    let (Ok(leadership), Some(heir)) = (voter.group.leadership(), heir) else { return };
    if voter.group.transfer_leadership(heir).await.is_ok() {
        let over = voter.group.leadership_changed(Some(leadership.term));
        // Too late for anything else.
        drop(tokio::time::timeout(HANDOVER, over).await);
    }
}
