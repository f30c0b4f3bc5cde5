//! An epoch has one region and one base, for ever; its voters change only while it is active, by an
//! operator's word; and only those that are its voters, or were, serve it.

use std::sync::Arc;

use meridian_directory::{Cluster, Phase};
use meridian_types::Position;

use super::{Answered, Observer};
use crate::topology::SHARD;

const NAME: &str = "one_primary_per_epoch";

pub(super) fn same_cluster(observer: &mut Observer, cluster: &Arc<Cluster>) {
    let same = observer
        .clusters
        .get(&cluster.version)
        .is_some_and(|known| Arc::ptr_eq(known, cluster) || known == cluster);
    if !same {
        observer.violated(
            NAME,
            format!("version {} of the cluster was committed twice", cluster.version),
        );
    }
}

pub(super) fn next_cluster(observer: &mut Observer, cluster: &Arc<Cluster>) {
    let Some(last) = observer.newest.clone() else { return };
    if cluster.version != last.version + 1 {
        observer.violated(NAME, format!("version {} follows {}", cluster.version, last.version));
    }
    let (Some(old), Some(new)) = (last.shards.get(&SHARD), cluster.shards.get(&SHARD)) else {
        return;
    };
    let step = new.epoch.0 - old.epoch.0;
    let kept =
        new.bases.starts_with(&old.bases) && new.bases.len() == old.bases.len() + usize::from(step);
    if step > 1 || !kept {
        observer
            .violated(NAME, format!("epoch {} follows {}: {:?}", new.epoch, old.epoch, new.bases));
    }
    observer.counts.voter_changes += u64::from(step == 0 && new.voters != old.voters);
    let is_active = old.phase == Phase::Active && new.phase == Phase::Active;
    let same_voters = new.voters == old.voters || is_active;
    if step == 0 && (!same_voters || new.primary_region != old.primary_region) {
        observer.violated(NAME, format!("epoch {} changed its primary", new.epoch));
    }
}

pub(super) fn answered(observer: &mut Observer, answered: Answered) {
    let Answered { node, epoch, position, .. } = answered;
    let versions = observer.clusters.values().filter_map(|cluster| cluster.shards.get(&SHARD));
    if !versions.into_iter().any(|shard| shard.epoch == epoch && shard.voters.contains(&node)) {
        observer.violated(NAME, format!("{node} served epoch {epoch} and does not vote in it"));
    }
    let committed = position == Position::ZERO
        || observer
            .truth(epoch)
            .get(crate::message::len_at(position.sequence - 1))
            .is_some_and(|batch| batch.position == position);
    if !committed {
        observer.violated(
            NAME,
            format!("{node} answered with {position}, which epoch {epoch} did not commit"),
        );
    }
}
