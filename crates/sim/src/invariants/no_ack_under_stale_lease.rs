//! Nothing is acknowledged and no strong read is served in an epoch once the next one has been
//! decided.

use super::{Answered, Observer};
use crate::topology::SHARD;

const NAME: &str = "no_ack_under_stale_lease";

pub(super) fn answered(observer: &mut Observer, answered: Answered) {
    let Answered { node, epoch, operation, .. } = answered;
    let newest = observer
        .newest
        .as_ref()
        .and_then(|cluster| cluster.shards.get(&SHARD))
        .map(|shard| shard.epoch);
    if newest.is_some_and(|newest| newest > epoch) {
        observer.violated(
            NAME,
            format!("{node} answered {operation:?} in epoch {epoch}, after the next was decided"),
        );
    }
}
