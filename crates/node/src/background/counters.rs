//! Metrics that are to be there, and right, also where nothing happens.

use std::collections::{BTreeMap, BTreeSet};

use meridian_shipping::Lag;
use meridian_types::{NodeId, ShardId};

/// Every counter of a node, with what it counts. Those that have labels begin with one series that
/// has none.
const COUNTERS: [(&str, &str); 28] = [
    ("meridian_damaged_messages_total", "Messages of other nodes whose checksum did not match."),
    ("meridian_foreign_answers_total", "Answers of nodes of another cluster, not believed."),
    ("meridian_foreign_calls_total", "Calls that were meant for another cluster, refused."),
    ("meridian_refused_calls_total", "Calls whose caller may not make them, refused."),
    ("meridian_refused_joins_total", "Join tokens that were refused."),
    ("meridian_failed_certificate_renewals_total", "Tries to renew the certificate that failed."),
    ("meridian_rpc_failed_handshakes_total", "Connections of nodes that ended before they served."),
    (
        "meridian_proposer_rpo_refusals_total",
        "Writes refused because more would be lost than may be.",
    ),
    (
        "meridian_proposer_rpo_slowed_total",
        "Writes that hold up the next of their database, because replication lags.",
    ),
    (
        "meridian_proposer_share_refusals_total",
        "Writes refused because their database has its share of what may wait.",
    ),
    ("meridian_gateway_moved_watches_total", "How often a watch looked for another node."),
    ("meridian_proposer_swept_rows_total", "Expired rows that were deleted."),
    ("meridian_queue_delivered_messages_total", "Messages that were handed out to listeners."),
    (
        "meridian_queue_settled_messages_total",
        "Messages whose delivery was logged: as done, or as failed.",
    ),
    ("meridian_replica_comparisons_total", "Comparisons of this node's state with another's."),
    (
        "meridian_replica_divergence_total",
        "Comparisons in which another node's state differed: look at once.",
    ),
    (
        "meridian_refused_batches_total",
        "Batches that were not stored because their bytes are not what they should be.",
    ),
    (
        "meridian_rpc_refused_connections_total",
        "Connections of other nodes refused because too many are open, or come.",
    ),
    (
        "meridian_rpc_ended_connections_total",
        "Connections to the node that ended because their calls showed no proof.",
    ),
    ("meridian_shipping_sent_wire_bytes_total", "Bytes of log sent to replicas, compressed."),
    (
        "meridian_shipping_received_wire_bytes_total",
        "Bytes of log received as a replica, compressed.",
    ),
    ("meridian_shipping_source_failures_total", "Sources of the log that failed."),
    ("meridian_snapshot_fetches_total", "Fetches of a whole state that were begun."),
    ("meridian_snapshot_received_bytes_total", "Bytes of whole states received, decompressed."),
    (
        "meridian_storage_awaited_flushes_total",
        "Flushes that writes waited for: memtables are at their bound.",
    ),
    (
        "meridian_storage_slowed_writes_total",
        "Writes of state that were slowed: compactions do not keep up.",
    ),
    (
        "meridian_stored_quota_refusals_total",
        "Writes refused since a quota on what their database stores is used up, by quota.",
    ),
    ("meridian_webhook_requests_total", "Requests to webhooks, by what came of them."),
];

/// Has every counter begin at 0: its first increment is then seen by `rate()`, and its absence
/// means something.
pub(crate) fn register() {
    for (name, counts) in COUNTERS {
        metrics::describe_counter!(name, counts);
        metrics::counter!(name).increment(0);
    }
}

/// How far each follower of the shards that this node leads is behind.
#[derive(Default)]
pub(crate) struct LagGauges {
    shown: BTreeSet<(ShardId, NodeId)>,
}

impl LagGauges {
    /// Shows these, and 0 for whatever was shown before and is not known here any more: another
    /// node leads and shows it, or the follower is gone.
    pub(crate) fn show(&mut self, lags: BTreeMap<(ShardId, NodeId), Lag>) {
        let shown = lags.keys().copied().collect();
        for (shard, node) in std::mem::replace(&mut self.shown, shown) {
            if !lags.contains_key(&(shard, node)) {
                set(shard, node, Lag { batches: 0, bytes: 0, millis: 0 });
            }
        }
        for ((shard, node), lag) in lags {
            set(shard, node, lag);
        }
    }
}

fn set(shard: ShardId, node: NodeId, lag: Lag) {
    let labels = [("shard", shard.to_string()), ("node", node.to_string())];
    metrics::gauge!("meridian_replication_lag_batches", &labels).set(lag.batches as f64);
    metrics::gauge!("meridian_replication_lag_bytes", &labels).set(lag.bytes as f64);
    metrics::gauge!("meridian_replication_lag_seconds", &labels).set(lag.millis as f64 / 1000.0);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    fn counters_in(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                counters_in(&path, found);
            } else {
                let text = std::fs::read_to_string(path).unwrap();
                let calls =
                    text.split("counter!(\"").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(calls.filter(|name| name.starts_with("meridian_")).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_counter_is_there_from_the_start() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            register();
            recorder.handle().render()
        });
        let mut counted = BTreeSet::new();
        for source in ["src", "../consensus/src", "../proto/src", "../storage/src"] {
            counters_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source), &mut counted);
        }
        assert!(counted.len() >= 7, "{counted:?}");
        for name in counted {
            assert!(
                text.contains(&format!("\n{name} 0\n")),
                "{name} does not begin at 0: add it to COUNTERS\n{text}"
            );
        }
    }

    #[test]
    fn a_lag_that_this_node_knows_no_more_does_not_stand_for_ever() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = |gauges: &mut LagGauges, lags: &[(u64, u64)]| {
            let lag = |batches| Lag { batches, bytes: batches * 10, millis: batches * 1000 };
            let lags =
                lags.iter().map(|(node, batches)| ((ShardId(1), NodeId(*node)), lag(*batches)));
            let lags = lags.collect();
            metrics::with_local_recorder(&recorder, || gauges.show(lags));
            recorder.handle().render()
        };
        let line = |node: u64, seconds| {
            format!("meridian_replication_lag_seconds{{shard=\"1\",node=\"{node}\"}} {seconds}\n")
        };
        let mut gauges = LagGauges::default();
        let text = shown(&mut gauges, &[(2, 7), (3, 8)]);
        assert!(text.contains(&line(2, 7)) && text.contains(&line(3, 8)), "{text}");
        let text = shown(&mut gauges, &[(2, 6)]);
        assert!(
            text.contains(&line(2, 6)) && text.contains(&line(3, 0)),
            "a follower is gone: {text}"
        );
        let text = shown(&mut gauges, &[]);
        assert!(text.contains(&line(2, 0)) && text.contains(&line(3, 0)), "another leads: {text}");
    }
}
