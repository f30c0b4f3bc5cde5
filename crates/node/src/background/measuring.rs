//! Measures the databases with quotas on what they store, where this node leads their shards.
//!
//! Each has its own time: after it was measured it rests for [`REST`] times as long as that took,
//! within bounds. A few are measured at once, and large ones leave a place to others: a measurement
//! that does not end soon is broken off, and made again as that of a large database.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_storage::{ShardState, StorageError, StoredSize, fatal};
use meridian_types::{DatabaseId, Quotas, ShardId};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
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
const MOST_REST: Duration = Duration::from_secs(3600);
/// While a quota is used up: its clients may have made room.
const MOST_REST_USED_UP: Duration = Duration::from_secs(600);
/// Between two looks at the databases that are to be measured.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Measurements that begin from one look to the next, however many databases are small.
const BEGUN_PER_LOOK: usize = 100;
/// Databases that are measured at a time.
const AT_ONCE: usize = 3;
/// Large ones among them.
const LARGE_AT_ONCE: usize = 2;
/// A database is small whose measurement takes less.
const LARGE: Duration = Duration::from_secs(5);

pub(crate) struct Measuring {
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    stop: CancellationToken,
}

/// A database to measure.
struct Wanted {
    state: Arc<ShardState>,
    /// A quota of what it stores is used up.
    is_used_up: bool,
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
        let mut wanted: BTreeMap<DatabaseId, Wanted> = BTreeMap::new();
        let mut due = Due::default();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stop.is_cancelled() {
            while let Some((database, limit)) = due.begin(Instant::now()) {
                // Begun are those of the last look.
                let Some(Wanted { state, .. }) = wanted.get(&database) else { continue };
                let (state, stop) = (Arc::clone(state), self.stop.clone());
                running.spawn_blocking(move || measure(&state, database, limit, &stop));
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                _ = looks.tick() => {
                    wanted = self.wanted();
                    self.shards.stored().keep(|database| wanted.contains_key(&database));
                    let used_up = wanted.iter().map(|(id, wanted)| (*id, wanted.is_used_up));
                    due.look(used_up, Instant::now());
                }
                Some(Ok((database, size, took))) = running.join_next() => {
                    let is_wanted = due.ended(database, took, size.is_some(), Instant::now());
                    if let Some(size) = size.filter(|_| is_wanted) {
                        self.shards.stored().measured(database, size);
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    fn wanted(&self) -> BTreeMap<DatabaseId, Wanted> {
        let with_quotas = self.directory.with_stored_quotas();
        if with_quotas.is_empty() {
            return BTreeMap::new();
        }
        let led = self.shards.all().into_iter().filter(|(_, shard)| leads(shard));
        let led: BTreeMap<_, _> = led.map(|(id, shard)| (id, Arc::clone(shard.state()))).collect();
        let wanted = |(shard, database, quotas): (ShardId, DatabaseId, Quotas)| {
            let state = Arc::clone(led.get(&shard)?);
            let is_used_up = self.shards.stored().is_used_up(database, quotas);
            Some((database, Wanted { state, is_used_up }))
        };
        with_quotas.into_iter().filter_map(wanted).collect()
    }
}

fn leads(shard: &LocalShard) -> bool {
    matches!(shard, LocalShard::Voter(voter) if voter.group.leadership().is_ok())
}

/// Without a size if that takes as long as `limit`.
fn measure(
    state: &ShardState,
    database: DatabaseId,
    limit: Option<Duration>,
    stop: &CancellationToken,
) -> Measured {
    let began = Instant::now();
    let mut pace = |bytes| {
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            return ControlFlow::Break(());
        }
        pace(stop, bytes, BYTES_PER_SECOND)
    };
    let size = match state.stored_size(database, &mut pace) {
        Ok(size) => Some(size),
        // It is broken off, the node stops, or a snapshot takes the state's place.
        Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => None,
        Err(error) => fatal(&error),
    };
    (database, size, began.elapsed())
}

/// How long a database rests. Bounded: a process or a disk that stood still adds to the time that a
/// measurement took.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(LEAST_REST, MOST_REST)
}

/// When each database is measured next. A look costs as much as there are databases, and a
/// measurement hardly more with many.
#[derive(Default)]
struct Due {
    /// The databases that are wanted and not being measured, by when they are due.
    small: BTreeSet<(Instant, DatabaseId)>,
    large: BTreeSet<(Instant, DatabaseId)>,
    running: BTreeMap<DatabaseId, Running>,
    /// Measurements that may begin before the next look.
    left: usize,
}

struct Running {
    is_large: bool,
    is_wanted: bool,
}

impl Due {
    /// Takes note of all that are wanted, each with whether a quota of it is used up. A new one is
    /// due now.
    fn look(&mut self, wanted: impl Iterator<Item = (DatabaseId, bool)>, now: Instant) {
        self.left = BEGUN_PER_LOOK;
        self.running.values_mut().for_each(|running| running.is_wanted = false);
        let small = std::mem::take(&mut self.small).into_iter().map(|known| (known, false));
        let large = std::mem::take(&mut self.large).into_iter().map(|known| (known, true));
        let before: BTreeMap<DatabaseId, (Instant, bool)> =
            small.chain(large).map(|((due, id), is_large)| (id, (due, is_large))).collect();
        for (database, is_used_up) in wanted {
            if let Some(running) = self.running.get_mut(&database) {
                running.is_wanted = true;
                continue;
            }
            let (due, is_large) = before.get(&database).copied().unwrap_or((now, false));
            let latest = if is_used_up { now + MOST_REST_USED_UP } else { due };
            self.queue(is_large).insert((due.min(latest), database));
        }
    }

    /// The next database to measure, if there is a place for it now, and the time after which that
    /// is broken off. Of the databases that are due, it waits longest.
    fn begin(&mut self, now: Instant) -> Option<(DatabaseId, Option<Duration>)> {
        if self.left == 0 || self.running.len() >= AT_ONCE {
            return None;
        }
        let large = self.running.values().filter(|running| running.is_large).count();
        let large = self.large.first().filter(|_| large < LARGE_AT_ONCE).copied();
        let next = self.small.first().copied().into_iter().chain(large).min()?;
        let (due, database) = next;
        if due > now {
            return None;
        }
        let is_large = large == Some(next);
        self.queue(is_large).remove(&next);
        self.running.insert(database, Running { is_large, is_wanted: true });
        self.left -= 1;
        Some((database, (!is_large).then_some(LARGE)))
    }

    /// Whether the database is still wanted: its size counts then.
    fn ended(
        &mut self,
        database: DatabaseId,
        took: Duration,
        is_measured: bool,
        now: Instant,
    ) -> bool {
        let Some(running) = self.running.remove(&database) else { return false };
        let is_large = took >= LARGE;
        let is_broken_off = is_large && !running.is_large && !is_measured;
        if running.is_wanted {
            let due = if is_broken_off { now } else { now + rest(took) };
            self.queue(is_large).insert((due, database));
        }
        running.is_wanted
    }

    fn queue(&mut self, is_large: bool) -> &mut BTreeSet<(Instant, DatabaseId)> {
        if is_large { &mut self.large } else { &mut self.small }
    }
}

#[cfg(test)]
mod tests {
    use meridian_storage::{Engine, MemoryEngine};

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn id(number: u8) -> DatabaseId {
        DatabaseId([number; 16])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn look(due: &mut Due, wanted: impl IntoIterator<Item = u8>, now: Instant) {
        due.look(wanted.into_iter().map(|number| (id(number), false)), now);
    }

    /// All that begin now.
    fn begun(due: &mut Due, now: Instant) -> Vec<DatabaseId> {
        std::iter::from_fn(|| due.begin(now)).map(|(database, _)| database).collect()
    }

    #[test]
    fn database_rests_for_twenty_times_as_long_as_it_took() {
        let (mut due, now) = (Due::default(), Instant::now());
        look(&mut due, [1], now);
        assert_eq!(begun(&mut due, now), [id(1)]);
        assert!(due.ended(id(1), seconds(10), true, now));
        assert_eq!(begun(&mut due, now + seconds(199)), []);
        assert_eq!(begun(&mut due, now + seconds(200)), [id(1)]);
    }

    #[test]
    fn no_database_rests_for_over_an_hour_or_over_ten_minutes_while_a_quota_is_used_up() {
        let (mut due, now) = (Due::default(), Instant::now());
        look(&mut due, 1..=3, now);
        assert_eq!(begun(&mut due, now), [1, 2, 3].map(id));
        for number in 1..=3 {
            assert!(due.ended(id(number), seconds(3200), true, now));
        }
        due.look([(id(1), false), (id(2), true), (id(3), false)].into_iter(), now);
        // A quota that was made smaller, and is used up now, while the other database rests on.
        let lowered = now + seconds(100);
        due.look([(id(1), false), (id(2), true), (id(3), true)].into_iter(), lowered);
        assert_eq!(begun(&mut due, now + seconds(599)), []);
        assert_eq!(begun(&mut due, now + seconds(600)), [id(2)]);
        assert_eq!(begun(&mut due, now + seconds(699)), []);
        assert_eq!(begun(&mut due, now + seconds(700)), [id(3)]);
        assert!(due.ended(id(3), SHORT, true, now + seconds(700)));
        look(&mut due, [1], now + seconds(700));
        assert_eq!(begun(&mut due, now + seconds(3599)), []);
        assert_eq!(begun(&mut due, now + seconds(3600)), [id(1)]);
    }

    #[test]
    fn large_databases_leave_a_place_to_others_also_before_any_was_measured() {
        let (mut due, now) = (Due::default(), Instant::now());
        look(&mut due, 1..=6, now);
        assert_eq!(due.begin(now), Some((id(1), Some(LARGE))), "it is broken off if it is large");
        assert_eq!(begun(&mut due, now), [2, 3].map(id));
        let later = now + LARGE;
        for number in 1..=3 {
            assert!(due.ended(id(number), LARGE, false, later));
        }
        assert_eq!(begun(&mut due, later), [4, 5, 6].map(id));
        for number in 4..=6 {
            assert!(due.ended(id(number), SHORT, true, later));
        }
        assert_eq!(due.begin(later), Some((id(1), None)), "it is measured to its end");
        assert_eq!(begun(&mut due, later), [id(2)], "two large ones at a time");
        let rested = later + LEAST_REST;
        for number in 4..=6 {
            assert_eq!(begun(&mut due, rested), [id(number)]);
            assert!(due.ended(id(number), SHORT, true, rested));
        }
        assert!(due.ended(id(1), seconds(3200), true, rested));
        assert_eq!(begun(&mut due, rested), [id(3)]);
        // It was large for a while only, such as on a disk that stood still.
        assert!(due.ended(id(3), SHORT, true, rested));
        assert_eq!(begun(&mut due, rested + LEAST_REST), [3, 4].map(id));
    }

    #[test]
    fn measurements_of_a_second_are_bounded_and_all_databases_have_their_turn() {
        let (mut due, now) = (Due::default(), Instant::now());
        let mut second = |now| {
            look(&mut due, 0..250, now);
            let mut measured = Vec::new();
            while let Some((database, _)) = due.begin(now) {
                assert!(due.ended(database, SHORT, true, now));
                measured.push(database);
            }
            measured
        };
        assert_eq!(second(now), (0..100).map(id).collect::<Vec<_>>());
        assert_eq!(second(now), (100..200).map(id).collect::<Vec<_>>());
        let rested = now + LEAST_REST;
        let waiting_longest = (200..250).chain(0..50).map(id);
        assert_eq!(second(rested), waiting_longest.collect::<Vec<_>>());
    }

    #[test]
    fn database_that_is_wanted_no_more_goes_and_begins_anew() {
        let (mut due, now) = (Due::default(), Instant::now());
        look(&mut due, 1..=3, now);
        assert_eq!(begun(&mut due, now), [1, 2, 3].map(id));
        assert!(due.ended(id(2), seconds(10), true, now));
        look(&mut due, [1], now);
        assert!(!due.ended(id(3), SHORT, true, now), "its size counts no more");
        look(&mut due, 1..=3, now);
        assert_eq!(begun(&mut due, now), [2, 3].map(id), "the first is being measured");
        assert!(due.ended(id(1), SHORT, true, now));
    }

    #[test]
    fn measurement_ends_with_its_limit_and_with_the_node() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let state = ShardState::open(engine, ShardId(1)).unwrap();
        let stop = CancellationToken::new();
        let measured = |limit| measure(&state, id(1), limit, &stop).1;
        assert_eq!(measured(None), Some(StoredSize::default()));
        assert_eq!(measured(Some(Duration::ZERO)), None);
        stop.cancel();
        assert_eq!(measured(None), None);
    }
}
