//! A failover's report never says more than was lost, says no less once it is bounded, and is right
//! where it says that it is exact.

use std::sync::Arc;

use meridian_directory::{Cluster, FailoverReport};
use meridian_types::Epoch;

use super::Observer;
use crate::message::sequence;
use crate::topology::SHARD;

const NAME: &str = "loss_reported";

pub(super) fn next_cluster(observer: &mut Observer, cluster: &Arc<Cluster>) {
    let Some(shard) = cluster.shards.get(&SHARD) else { return };
    for report in &shard.reports {
        check(observer, report, false);
    }
}

/// Nothing is committed in an old epoch any more.
pub(super) fn finish(observer: &mut Observer) {
    let Some(cluster) = observer.newest.clone() else { return };
    for report in cluster.shards.get(&SHARD).into_iter().flat_map(|shard| &shard.reports) {
        check(observer, report, true);
        observer.counts.lost += lost(observer, report);
        observer.counts.exact_reports += u64::from(report.loss.exact && !report.planned);
    }
}

fn lost(observer: &Observer, report: &FailoverReport) -> u64 {
    let old = observer.truth(Epoch(report.epoch.0 - 1));
    sequence(old.len()).saturating_sub(report.base.sequence)
}

fn check(observer: &mut Observer, report: &FailoverReport, is_over: bool) {
    let (lost, said, epoch) = (lost(observer, report), &report.loss, report.epoch);
    // An epoch that was lost before it began has another history than its number says.
    let kept = report.base_transactions;
    if kept != report.base.sequence {
        observer
            .violated(NAME, format!("epoch {epoch} says {kept} transactions at {}", report.base));
    }
    if !report.planned && said.transactions > lost {
        observer.violated(
            NAME,
            format!("epoch {epoch} is said to have lost {}, but it is {lost}", said.transactions),
        );
    }
    if report.is_bounded() && said.at_most < lost {
        observer.violated(
            NAME,
            format!("epoch {epoch} has lost {lost}, and is said to at most {}", said.at_most),
        );
    }
    if said.exact && is_over && said.transactions != lost {
        observer.violated(
            NAME,
            format!("epoch {epoch} has lost {lost}, and exactly {} are said", said.transactions),
        );
    }
}
