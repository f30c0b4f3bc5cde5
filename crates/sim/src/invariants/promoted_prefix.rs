//! The history of an epoch begins with a prefix of what the one before committed, up to the base;
//! every node holds a prefix of its epoch's history; and a request is in a history once.

use std::sync::Arc;

use meridian_directory::Cluster;
use meridian_types::{Epoch, NodeId};

use super::Observer;
use crate::message::{Batch, end_of, len_at, sequence};
use crate::topology::SHARD;

const NAME: &str = "promoted_prefix";

pub(super) fn next_cluster(observer: &mut Observer, cluster: &Arc<Cluster>) {
    let Some(shard) = cluster.shards.get(&SHARD) else { return };
    if observer.truth.contains_key(&shard.epoch) {
        return;
    }
    let base = shard.base();
    let old = observer.truth(Epoch(shard.epoch.0 - 1));
    let kept = old.get(..len_at(base.sequence)).unwrap_or(old).to_vec();
    if end_of(&kept) != base {
        let (from, end) = (Epoch(shard.epoch.0 - 1), end_of(old));
        observer.violated(
            NAME,
            format!("epoch {} begins after {base}, but {from} has {end} at most", shard.epoch),
        );
    }
    observer.requests.insert(shard.epoch, kept.iter().map(|batch| batch.request).collect());
    observer.truth.insert(shard.epoch, kept);
}

pub(super) fn committed(observer: &mut Observer, epoch: Epoch, node: NodeId, batch: Batch) {
    let len = sequence(observer.truth(epoch).len());
    if batch.position.sequence != len + 1 {
        return taken(observer, epoch, node, batch);
    }
    if batch.position.epoch != epoch {
        observer.violated(NAME, format!("{node} committed {} in epoch {epoch}", batch.position));
    }
    if !observer.requests.entry(epoch).or_default().insert(batch.request) {
        observer.violated(
            NAME,
            format!("{node} committed request {} twice in epoch {epoch}", batch.request),
        );
    }
    observer.truth.entry(epoch).or_default().push(batch);
}

pub(super) fn taken(observer: &mut Observer, epoch: Epoch, node: NodeId, batch: Batch) {
    let index = batch.position.sequence.checked_sub(1).map_or(usize::MAX, len_at);
    let expected = observer.truth(epoch).get(index).copied();
    if expected != Some(batch) {
        observer.violated(
            NAME,
            format!("{node} took {batch:?} in epoch {epoch}, where {expected:?} was committed"),
        );
    }
}
