//! Measures the databases with quotas on what they store, where this node leads their shards.
//!
//! Each has its own time: after it was measured it rests for [`REST`] times as long as that took. A few
//! are measured at once, so that a large one holds up no small one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_storage::{ShardState, StorageError, StoredSize, fatal};
use meridian_types::DatabaseId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::background::pace::pace;
use crate::background::parts::DutyParts;
use crate::cluster_view::view::Directory;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// How fast the rows of one database are read at most.
const BYTES_PER_SECOND: u64 = 16 << 20;
const REST: u32 = 20;
const LEAST_REST: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Databases that are measured at a time.
const AT_ONCE: usize = 3;

pub(crate) struct Measuring {
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    stop: CancellationToken,
}

/// A measurement that has ended, and what it took. Without a size, it is made again.
type Measured = (DatabaseId, Option<StoredSize>, Duration);

impl Measuring {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            shards: Arc::clone(&parts.shards),
            directory: Arc::clone(&parts.directory),
            stop: parts.stop.clone(),
        }
    }

    /// Until the node stops; no state is read any more then.
    pub(crate) async fn run(self) {
        let mut running: JoinSet<Measured> = JoinSet::new();
        let mut due = Due::default();
        while !self.stop.is_cancelled() {
            let wanted = self.wanted();
            self.shards.stored().keep(|database| wanted.contains_key(&database));
            for database in due.begin(wanted.keys().copied(), Instant::now()) {
                let Some(state) = wanted.get(&database).map(Arc::clone) else { continue };
                let stop = self.stop.clone();
                running.spawn_blocking(move || measure(&state, database, &stop));
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(Ok((database, size, took))) = running.join_next() => {
                    due.ended(database, took, Instant::now());
                    size.into_iter().for_each(|size| self.shards.stored().measured(database, size));
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    fn wanted(&self) -> BTreeMap<DatabaseId, Arc<ShardState>> {
        let with_quotas = self.directory.with_stored_quotas();
        if with_quotas.is_empty() {
            return BTreeMap::new();
        }
        let led = self.shards.all().into_iter().filter(|(_, shard)| leads(shard));
        let led: BTreeMap<_, _> = led.map(|(id, shard)| (id, Arc::clone(shard.state()))).collect();
        let state = |(shard, database)| Some((database, Arc::clone(led.get(&shard)?)));
        with_quotas.into_iter().filter_map(state).collect()
    }
}

fn leads(shard: &LocalShard) -> bool {
    matches!(shard, LocalShard::Voter(voter) if voter.group.leadership().is_ok())
}

fn measure(state: &ShardState, database: DatabaseId, stop: &CancellationToken) -> Measured {
    let began = Instant::now();
    let mut pace = |bytes| pace(stop, bytes, BYTES_PER_SECOND);
    let size = match state.stored_size(database, &mut pace) {
        Ok(size) => Some(size),
        // The node stops, or a snapshot takes the state's place.
        Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => None,
        Err(error) => fatal(&error),
    };
    (database, size, began.elapsed())
}

/// When each database is measured next; `None`: it is being measured.
#[derive(Default)]
struct Due(BTreeMap<DatabaseId, Option<Instant>>);

impl Due {
    /// The databases to begin with now, of those that are wanted: the ones that wait longest.
    fn begin(&mut self, wanted: impl Iterator<Item = DatabaseId>, now: Instant) -> Vec<DatabaseId> {
        let before = std::mem::take(&mut self.0);
        let is_running = |(_, due): &(&DatabaseId, &Option<Instant>)| due.is_none();
        let running = before.iter().filter(is_running).map(|(database, due)| (*database, *due));
        self.0 = running.collect();
        let room = AT_ONCE.saturating_sub(self.0.len());
        for database in wanted {
            let due = before.get(&database).copied().unwrap_or(Some(now));
            self.0.insert(database, due);
        }
        let due = self.0.iter().filter_map(|(database, due)| Some(((*due)?, *database)));
        let mut due: Vec<_> = due.filter(|(due, _)| *due <= now).collect();
        due.sort_unstable();
        due.truncate(room);
        let begun: Vec<_> = due.into_iter().map(|(_, database)| database).collect();
        self.0.extend(begun.iter().map(|database| (*database, None)));
        begun
    }

    fn ended(&mut self, database: DatabaseId, took: Duration, now: Instant) {
        self.0.insert(database, Some(now + (took * REST).max(LEAST_REST)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> DatabaseId {
        DatabaseId([number; 16])
    }

    #[test]
    fn database_rests_for_twenty_times_as_long_as_it_took() {
        let (mut due, now) = (Due::default(), Instant::now());
        assert_eq!(due.begin([id(1)].into_iter(), now), [id(1)]);
        due.ended(id(1), Duration::from_secs(10), now);
        assert_eq!(due.begin([id(1)].into_iter(), now + Duration::from_secs(199)), []);
        assert_eq!(due.begin([id(1)].into_iter(), now + Duration::from_secs(200)), [id(1)]);
    }

    #[test]
    fn large_database_holds_up_no_other_and_each_rests_for_its_own_time() {
        let (mut due, now) = (Due::default(), Instant::now());
        let wanted = || (1..=5).map(id);
        assert_eq!(due.begin(wanted(), now), [id(1), id(2), id(3)]);
        assert_eq!(due.begin(wanted(), now), []);
        due.ended(id(2), Duration::from_millis(1), now);
        assert_eq!(due.begin(wanted(), now), [id(4)]);
        due.ended(id(4), Duration::from_secs(10), now);
        assert_eq!(due.begin(wanted(), now), [id(5)]);
        due.ended(id(5), Duration::from_millis(1), now);
        let later = now + LEAST_REST;
        assert_eq!(due.begin(wanted(), later), [id(2)], "1 and 3 are large, and 4 rests");
        // A database that is wanted no more goes, and begins anew; but not while it is being measured.
        assert_eq!(due.begin([id(1)].into_iter(), later), []);
        due.ended(id(2), Duration::from_millis(1), later);
        due.ended(id(3), Duration::from_millis(1), later);
        assert_eq!(due.begin(wanted(), later), [id(4), id(5)]);
        assert_eq!(due.begin(wanted(), later + Duration::from_secs(200)), []);
    }
}
