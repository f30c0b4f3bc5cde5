//! The internal writer that deletes what has expired. Until the log says so, a value is there for
//! all, whatever a clock says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_storage::{Expired, or_fatal};
use meridian_types::{DatabaseId, Effect};

use super::internal::{InternalWriter, Seen};

/// How often it is looked whether something has expired. With [`super::TICK`], at least every
/// 250 ms.
pub(super) const SWEEP: Duration = Duration::from_millis(100);
/// The most expired values that one batch removes.
const SWEEP_ROWS: usize = 2000;
const SWEEP_BYTES: usize = 1 << 20;

/// Kept over terms: a sweep that was refused is not tried again at once.
pub(super) struct Expiry {
    next: Instant,
    /// The batch that was collected last removes as much as a batch may: there may be more.
    is_full: bool,
}

impl Expiry {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, is_full: false }
    }
}

impl InternalWriter for Expiry {
    const ONLY_DELETES: bool = true;

    fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// Nothing, and so no batch, unless something expires by that time that is there.
    async fn collect(&mut self, seen: Seen<'_>) -> BTreeMap<DatabaseId, Vec<Effect>> {
        self.next = Instant::now() + SWEEP;
        let Seen { state, overlay, time_ms } = seen;
        let mut by_database: BTreeMap<DatabaseId, Vec<Effect>> = BTreeMap::new();
        if or_fatal(state.expired(time_ms, 1)).is_empty() {
            return by_database;
        }
        let state = Arc::clone(state);
        let looking =
            tokio::task::spawn_blocking(move || or_fatal(state.expired(time_ms, SWEEP_ROWS)));
        // It panics never, and a cancelled one is the node stopping.
        let Ok(expired) = looking.await else { return by_database };
        self.is_full = expired.len() >= SWEEP_ROWS;
        let (mut rows, mut bytes) = (0, 0);
        for Expired { expire_at_ms, database, key, is_current } in expired {
            let effects = by_database.entry(database).or_default();
            let unindex = Effect::Unindex { key: key.clone(), expire_at_ms };
            (rows, bytes) = (rows + 1, bytes + 2 * unindex.size());
            effects.push(unindex);
            // A value that a batch in flight writes there is newer than the expired one.
            if is_current && overlay.get(database, &key).is_none() {
                effects.push(Effect::Delete { key });
            }
            if bytes >= SWEEP_BYTES {
                self.is_full = true;
                break;
            }
        }
        metrics::counter!("meridian_proposer_swept_rows_total").increment(rows);
        by_database
    }

    fn proposed(&mut self) {
        if self.is_full {
            self.next = Instant::now();
        }
    }
}
