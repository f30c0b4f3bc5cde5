//! How much databases store, as it was measured last, and their quotas on that.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use meridian_storage::StoredSize;
use meridian_types::{DatabaseId, Quota, Quotas};
use parking_lot::RwLock;

/// The databases with such quotas in the shards that this node leads.
#[derive(Default)]
pub(crate) struct StoredSizes(RwLock<BTreeMap<DatabaseId, StoredSize>>);

impl StoredSizes {
    pub(crate) fn measured(&self, database: DatabaseId, size: StoredSize) {
        self.0.write().insert(database, size);
    }

    /// Forgets all others.
    pub(crate) fn keep(&self, is_kept: impl Fn(DatabaseId) -> bool) {
        if !self.0.read().is_empty() {
            self.0.write().retain(|database, _| is_kept(*database));
        }
    }

    pub(crate) fn all(&self) -> Vec<(DatabaseId, StoredSize)> {
        self.0.read().iter().map(|(database, size)| (*database, *size)).collect()
    }

    /// Why the database may store no more, if it may not. `quotas`: asked for if it was measured.
    pub(crate) fn rejection(
        &self,
        database: DatabaseId,
        quotas: impl FnOnce() -> Quotas,
    ) -> Option<String> {
        let (quota, value, used) = self.used_up(database, quotas)?;
        Some(format!(
            "The database has used up its quota {quota} of {value}: it had {used} when it was \
             measured last. Deletes are taken, and count with the next measurement. {}",
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
        let StoredSize { keys, bytes } = *self.0.read().get(&database)?;
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
    use super::*;

    const DATABASE: DatabaseId = DatabaseId([1; 16]);

    #[test]
    fn measured_database_stores_no_more_once_a_quota_is_used_up() {
        let (sizes, one) = (StoredSizes::default(), |value: u64| value.try_into().unwrap());
        let quotas =
            || Quotas::from_iter([(Quota::StoredBytes, one(1000)), (Quota::Keys, one(10))]);
        assert_eq!(sizes.rejection(DATABASE, quotas), None, "it was not measured yet");
        for (keys, bytes, named) in [
            (9, 999, None),
            (9, 1000, Some("stored-bytes of 1000: it had 1000")),
            (10, 999, Some("keys of 10: it had 10")),
            (0, 0, None),
        ] {
            sizes.measured(DATABASE, StoredSize { keys, bytes });
            let why = sizes.rejection(DATABASE, quotas);
            assert_eq!(why.is_some(), named.is_some(), "{why:?}");
            assert_eq!(sizes.is_used_up(DATABASE, quotas()), named.is_some(), "{why:?}");
            assert!(why.unwrap_or_default().contains(named.unwrap_or_default()));
            // A quota that was raised or removed counts at once.
            assert_eq!(sizes.rejection(DATABASE, Quotas::default), None);
        }
        sizes.measured(DATABASE, StoredSize { keys: 10, bytes: 0 });
        sizes.keep(|_| false);
        assert_eq!((sizes.rejection(DATABASE, quotas), sizes.all()), (None, Vec::new()));
    }
}
