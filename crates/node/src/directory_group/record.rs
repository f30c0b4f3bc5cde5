//! How the directory lies in its shard: the cluster under one key, and a record of every change.

use bytes::Bytes;
use meridian_directory::{Change, Cluster};
use meridian_storage::schema::{DIRECTORY_CHANGE_PREFIX, DIRECTORY_CLUSTER_KEY};
use meridian_storage::{ShardState, StorageError, or_fatal};
use meridian_types::{
    Check, Mutation, MutationKind, ReadRange, Transaction, Value, ValueEncoding, Versionstamp,
};
use serde::{Deserialize, Serialize};

use crate::cluster_view::directory_shard::DIRECTORY_DATABASE;

/// The latest changes that are recorded; the oldest goes with each that comes.
const MAX_RECORDS: u64 = 1000;
/// Of the name that a change is recorded under.
const MAX_ACTOR_BYTES: usize = 200;

/// One line of the record of changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) version: u64,
    /// Wall clock of the directory's leader, milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    pub(crate) actor: String,
    pub(crate) change: Change,
}

impl Recorded {
    /// Of a change without its keys, which the cluster alone has.
    pub(super) fn new(version: u64, time_ms: u64, mut actor: String, change: Change) -> Self {
        let whole = (0..=MAX_ACTOR_BYTES).rev().find(|&end| actor.is_char_boundary(end));
        actor.truncate(whole.unwrap_or(0));
        Self { version, time_ms, actor, change: change.without_keys() }
    }
}

/// The cluster, and what to check that it still is the newest; `None` before the first.
pub(super) fn read_cluster(state: &ShardState) -> Option<(Cluster, Versionstamp)> {
    let end = [DIRECTORY_CLUSTER_KEY, &[0]].concat();
    let range = ReadRange {
        start: DIRECTORY_CLUSTER_KEY.into(),
        end: end.into(),
        limit: 1,
        reverse: false,
    };
    let view = or_fatal(state.read(DIRECTORY_DATABASE, &[range], 0));
    let entry = view.ranges.into_iter().flatten().next()?;
    let corrupt = |error: serde_json::Error| StorageError::Corruption {
        what: "the directory's state".to_owned(),
        detail: error.to_string(),
    };
    Some((or_fatal(serde_json::from_slice(&entry.value.data).map_err(corrupt)), entry.versionstamp))
}

/// The latest changes, newest first.
pub(super) fn read_changes(state: &ShardState, limit: u32) -> Vec<Recorded> {
    let end = [DIRECTORY_CHANGE_PREFIX, &[0xff; 9]].concat();
    let range =
        ReadRange { start: DIRECTORY_CHANGE_PREFIX.into(), end: end.into(), limit, reverse: true };
    let view = or_fatal(state.read(DIRECTORY_DATABASE, &[range], 0));
    let entries = view.ranges.into_iter().flatten();
    entries.filter_map(|entry| serde_json::from_slice(&entry.value.data).ok()).collect()
}

/// One write: the next cluster, if the present one is still there, and the record of what changed.
pub(super) fn transaction(
    present: Option<Versionstamp>,
    next: &Cluster,
    recorded: &[Recorded],
) -> Transaction {
    let set = |key: Bytes, json: Result<Vec<u8>, serde_json::Error>| {
        // Plain data: it always can be written.
        let data = json.unwrap_or_default();
        let value = Value { encoding: ValueEncoding::Bytes, data: data.into() };
        Mutation { key, kind: MutationKind::Set(value), expire_at_ms: 0 }
    };
    let record =
        |recorded: &Recorded| set(record_key(recorded.version), serde_json::to_vec(recorded));
    // Versions have no gaps.
    let forget = |recorded: &Recorded| {
        let key = record_key(recorded.version.checked_sub(MAX_RECORDS)?);
        Some(Mutation { key, kind: MutationKind::Delete, expire_at_ms: 0 })
    };
    let cluster = set(DIRECTORY_CLUSTER_KEY.into(), serde_json::to_vec(next));
    let records = recorded.iter().map(record).chain(recorded.iter().filter_map(forget));
    Transaction {
        checks: vec![Check { key: DIRECTORY_CLUSTER_KEY.into(), versionstamp: present }],
        mutations: std::iter::once(cluster).chain(records).collect(),
        ..Transaction::default()
    }
}

fn record_key(version: u64) -> Bytes {
    [DIRECTORY_CHANGE_PREFIX, &version.to_be_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use meridian_directory::{WebhookKey, WebhookSettings};
    use meridian_types::DatabaseId;

    use super::*;

    #[test]
    fn key_of_a_webhook_is_not_recorded() {
        let settings = WebhookSettings {
            url: Some("https://example.com/".to_owned()),
            key: Some(WebhookKey::new(&[7; 32]).unwrap()),
            next_key: Some(WebhookKey::new(&[8; 32]).unwrap()),
            ..WebhookSettings::default()
        };
        let (id, queue) = (DatabaseId([1; 16]), String::new());
        let change = Change::SetWebhook { id, queue, settings };
        assert!(serde_json::to_string(&change).unwrap().contains("BwcH"));
        let recorded = Recorded::new(1, 2, "ops".to_owned(), change);
        let json = serde_json::to_string(&recorded).unwrap();
        assert!(json.contains("4bb06f8e") && json.contains("example.com"), "{json}");
        assert!(!json.contains("BwcH") && !json.contains("CAgI"), "{json}");
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let recorded = |actor: String| {
            Recorded::new(1, 2, actor, Change::NameCluster { id: "c".to_owned() }).actor
        };
        assert_eq!(recorded("ops".to_owned()), "ops");
        assert_eq!(recorded(format!("x{}", "é".repeat(100))), format!("x{}", "é".repeat(99)));
    }
}
