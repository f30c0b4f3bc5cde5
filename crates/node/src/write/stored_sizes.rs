//! How much databases store, as it was measured last, and their quotas on that: what they reject is
//! counted here, since gateways cannot tell it from other rejections.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use meridian_storage::StoredSize;
use meridian_types::{DatabaseId, Quota, Quotas};
use parking_lot::RwLock;

/// The databases with such quotas in the shards that this node leads.
#[derive(Default)]
pub(crate) struct StoredSizes(RwLock<BTreeMap<DatabaseId, Stored>>);

/// One of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) size: StoredSize,
    /// Writes that its quotas rejected, since the node came to lead its shard.
    pub(crate) rejected: u64,
}

impl StoredSizes {
    pub(crate) fn measured(&self, database: DatabaseId, size: StoredSize) {
        self.0.write().entry(database).or_default().size = size;
    }

    /// Forgets all others.
    pub(crate) fn keep(&self, is_kept: impl Fn(DatabaseId) -> bool) {
        if !self.0.read().is_empty() {
            self.0.write().retain(|database, _| is_kept(*database));
        }
    }

    pub(crate) fn all(&self) -> Vec<(DatabaseId, Stored)> {
        self.0.read().iter().map(|(database, stored)| (*database, *stored)).collect()
    }

    /// Rejects a write that sets values or enqueues, and counts that, if a quota of the database is
    /// used up; with the reason. `quotas`: asked for if it was measured.
    pub(crate) fn reject(
        &self,
        database: DatabaseId,
        quotas: impl FnOnce() -> Quotas,
    ) -> Option<String> {
        let (quota, value, used) = self.used_up(database, quotas)?;
        if let Some(stored) = self.0.write().get_mut(&database) {
            stored.rejected += 1;
        }
        metrics::counter!("meridian_stored_quota_refusals_total", "quota" => quota.name())
            .increment(1);
        Some(format!(
            "The database has used up its quota {quota} of {value}: it had {used} when it was \
             measured last. No value is set meanwhile, not over another one either. Deletes are \
             taken, and count with the next measurement. {}",
            Quota::remedy("databases")
        ))
    }

    pub(crate) fn is_used_up(&self, database: DatabaseId, quotas: Quotas) -> bool {
        self.used_up(database, || quotas).is_some()
    }

    /// A quota that is used up, its value, and how much the database had.
    fn used_up(
        &self,
        database: DatabaseId,
        quotas: impl FnOnce() -> Quotas,
    ) -> Option<(Quota, NonZeroU64, u64)> {
        let StoredSize { keys, bytes } = self.0.read().get(&database)?.size;
        let quotas = quotas();
        let stored = [(Quota::StoredBytes, bytes), (Quota::Keys, keys)];
        stored.into_iter().find_map(|(quota, used)| {
            let value = quotas.get(quota)?;
            (used >= value.get()).then_some((quota, value, used))
        })
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    const DATABASE: DatabaseId = DatabaseId([1; 16]);

    fn quotas() -> Quotas {
        let one = |value: u64| value.try_into().unwrap();
        Quotas::from_iter([(Quota::StoredBytes, one(1000)), (Quota::Keys, one(10))])
    }

    #[test]
    fn measured_database_stores_no_more_once_a_quota_is_used_up() {
        let sizes = StoredSizes::default();
        assert_eq!(sizes.reject(DATABASE, quotas), None, "it was not measured yet");
        for (keys, bytes, named) in [
            (9, 999, None),
            (9, 1000, Some("stored-bytes of 1000: it had 1000")),
            (10, 999, Some("keys of 10: it had 10")),
            (0, 0, None),
        ] {
            sizes.measured(DATABASE, StoredSize { keys, bytes });
            let why = sizes.reject(DATABASE, quotas);
            assert_eq!(why.is_some(), named.is_some(), "{why:?}");
            assert_eq!(sizes.is_used_up(DATABASE, quotas()), named.is_some(), "{why:?}");
            assert!(why.unwrap_or_default().contains(named.unwrap_or_default()));
            // A quota that was raised or removed counts at once.
            assert_eq!(sizes.reject(DATABASE, Quotas::default), None);
        }
        sizes.measured(DATABASE, StoredSize { keys: 10, bytes: 0 });
        sizes.keep(|_| false);
        assert_eq!((sizes.reject(DATABASE, quotas), sizes.all()), (None, Vec::new()));
    }

    #[test]
    fn rejected_writes_are_counted_by_database_and_by_quota_over_measurements() {
        let (sizes, other) = (StoredSizes::default(), DatabaseId([2; 16]));
        let recorder = PrometheusBuilder::new().build_recorder();
        let (full, larger) =
            (StoredSize { keys: 10, bytes: 1 }, StoredSize { keys: 1, bytes: 1000 });
        metrics::with_local_recorder(&recorder, || {
            sizes.measured(DATABASE, full);
            sizes.measured(other, StoredSize::default());
            for _ in 0..3 {
                assert!(sizes.reject(DATABASE, quotas).is_some());
                assert!(sizes.reject(other, quotas).is_none());
            }
            sizes.measured(DATABASE, larger);
            assert!(sizes.reject(DATABASE, quotas).is_some());
        });
        let of = |size, rejected| Stored { size, rejected };
        let expected = [(DATABASE, of(larger, 4)), (other, of(StoredSize::default(), 0))];
        assert_eq!(sizes.all(), expected);
        let text = recorder.handle().render();
        for (quota, count) in [("keys", 3), ("stored-bytes", 1)] {
            let line =
                format!("meridian_stored_quota_refusals_total{{quota=\"{quota}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
