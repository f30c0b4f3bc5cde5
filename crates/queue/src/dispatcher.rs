//! All queues of a shard: events to their databases, and the time when something is due next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_types::{DatabaseId, Position};

use crate::event::{Action, Event, MessageKey, Moment, Opening, Refused, RowChange};
use crate::moved::Moved;
use crate::queue::{Context, HOLD, Hold, Queue};

/// Leases of a shard at a time, at most.
pub const MAX_LEASES_IN_ALL: usize = 100_000;
/// Listeners of a shard at a time, at most.
pub const MAX_LISTENERS_IN_ALL: usize = 10_000;

/// Which listener gets which message of a shard, in one term of its leader.
#[derive(Debug)]
pub struct Dispatcher {
    queues: BTreeMap<DatabaseId, Entry>,
    /// When the queues have something to do, in order.
    alarms: BTreeSet<(Duration, DatabaseId)>,
    hold: Hold,
    moved: Moved,
    paused: BTreeSet<DatabaseId>,
    leases: usize,
    listeners: usize,
}

#[derive(Debug)]
struct Entry {
    queue: Queue,
    alarm: Option<Duration>,
}

impl Dispatcher {
    /// For a term that begins now. `began`: what is applied at its beginning. Messages up to there
    /// may be held by listeners already.
    pub fn new(moment: Moment, began: Position) -> Self {
        Self {
            queues: BTreeMap::new(),
            alarms: BTreeSet::new(),
            hold: Hold { began, until: moment.now + HOLD },
            moved: Moved::default(),
            paused: BTreeSet::new(),
            leases: 0,
            listeners: 0,
        }
    }

    /// When [`Event::Tick`] is to come at the latest.
    pub fn wake_at(&self) -> Option<Duration> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// The messages of a database that listeners hold, or claim to.
    pub fn leases(&self, database: DatabaseId) -> usize {
        self.queues.get(&database).map_or(0, |entry| entry.queue.leases())
    }

    /// Of all databases.
    pub fn leases_in_all(&self) -> usize {
        self.leases
    }

    /// When the first message was due that no listener holds, of the databases that have listeners.
    pub fn first_due_ms(&self) -> Option<u64> {
        self.queues.values().filter_map(|entry| entry.queue.first_due_ms()).min()
    }

    /// Whether a listener holds the message of that very row, or claims to.
    pub fn is_leased(&self, database: DatabaseId, key: &MessageKey) -> bool {
        self.queues.get(&database).is_some_and(|entry| entry.queue.is_leased(key))
    }

    /// Whether the queue of the database hands out nothing.
    pub fn is_paused(&self, database: DatabaseId) -> bool {
        self.paused.contains(&database)
    }

    /// Deals with what has happened, and with what is due by now.
    pub fn step(&mut self, moment: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        // In the order of alarms, and each once: no database keeps the others from their turns.
        let due = self.alarms.iter().take_while(|(at, _)| *at <= moment.now);
        let mut turns: Vec<DatabaseId> = due.map(|(_, database)| *database).collect();
        turns.extend(self.happened(moment, event, &mut actions));
        let mut seen = BTreeSet::new();
        turns.retain(|database| seen.insert(*database));
        for database in turns {
            self.advance(moment, database, &mut actions);
        }
        actions
    }

    /// The databases that it is about.
    fn happened(
        &mut self,
        moment: Moment,
        event: Event,
        actions: &mut Vec<Action>,
    ) -> Vec<DatabaseId> {
        let database = match event {
            Event::Tick => return Vec::new(),
            Event::Paused(paused) => return self.pause(paused),
            Event::Applied(changes) => return self.applied(moment, changes, actions),
            Event::Read { database, rows, next } => {
                self.with(moment, database, actions, |queue, _| queue.read(&rows, next));
                database
            }
            Event::Opened(opening) if !self.has_room_for(&opening) => {
                let (session, reason) = (opening.session, Refused::TooManyListeners);
                actions.push(Action::Refuse { session, reason });
                return Vec::new();
            }
            Event::Opened(opening) => {
                let database = opening.database;
                self.with(moment, database, actions, |queue, context| {
                    queue.opened(&opening, context);
                });
                database
            }
            Event::Closed { database, listener, session } => {
                self.with(moment, database, actions, |queue, _| {
                    queue.closed(listener, session, moment.now);
                });
                database
            }
            Event::Gone { database, keys } => {
                self.with(moment, database, actions, |queue, context| {
                    keys.into_iter().for_each(|key| queue.not_delivered(key, context));
                });
                database
            }
            Event::Checked { database, gone } => {
                self.with(moment, database, actions, |queue, context| {
                    queue.checked(&gone, context);
                });
                database
            }
            Event::Reported { database, listener, reports } => {
                self.with(moment, database, actions, |queue, context| {
                    for report in reports {
                        queue.reported(listener, report, context);
                    }
                });
                database
            }
            Event::Settled { database, lane } => {
                self.with(moment, database, actions, |queue, context| {
                    queue.settled(lane, context);
                });
                database
            }
        };
        vec![database]
    }

    fn pause(&mut self, paused: BTreeSet<DatabaseId>) -> Vec<DatabaseId> {
        let before = std::mem::replace(&mut self.paused, paused);
        let changed = before.symmetric_difference(&self.paused);
        changed.filter(|database| self.queues.contains_key(database)).copied().collect()
    }

    /// A listener that comes back takes its own place.
    fn has_room_for(&self, Opening { database, listener, .. }: &Opening) -> bool {
        let is_back = |entry: &Entry| entry.queue.listener(*listener).is_some();
        self.listeners < MAX_LISTENERS_IN_ALL || self.queues.get(database).is_some_and(is_back)
    }

    /// A database without listeners so far has nothing that this could change: its first read is
    /// yet to come.
    fn applied(
        &mut self,
        moment: Moment,
        changes: Vec<RowChange>,
        actions: &mut Vec<Action>,
    ) -> Vec<DatabaseId> {
        let mut databases = BTreeSet::new();
        for change in changes {
            let (RowChange::Put(database, key)
            | RowChange::Moved(database, key)
            | RowChange::Deleted(database, key)) = change;
            if !self.queues.contains_key(&database) {
                continue;
            }
            self.with(moment, database, actions, |queue, context| match change {
                RowChange::Put(..) => queue.put(key),
                RowChange::Moved(..) => {
                    context.moved.insert(key);
                    queue.put(key);
                }
                RowChange::Deleted(..) => queue.deleted(key, context),
            });
            databases.insert(database);
        }
        databases.into_iter().collect()
    }

    fn advance(&mut self, moment: Moment, database: DatabaseId, actions: &mut Vec<Action>) {
        let alarm = self.with(moment, database, actions, Queue::advance);
        if let Some(entry) = self.queues.get_mut(&database) {
            let before = std::mem::replace(&mut entry.alarm, alarm);
            before.map(|at| self.alarms.remove(&(at, database)));
            self.alarms.extend(alarm.map(|at| (at, database)));
        }
    }

    fn with<T>(
        &mut self,
        moment: Moment,
        database: DatabaseId,
        actions: &mut Vec<Action>,
        change: impl FnOnce(&mut Queue, &mut Context<'_>) -> T,
    ) -> T {
        let new = || Entry { queue: Queue::new(database), alarm: None };
        let queue = &mut self.queues.entry(database).or_insert_with(new).queue;
        let others = self.leases - queue.leases();
        let listeners = self.listeners - queue.listeners();
        let room = MAX_LEASES_IN_ALL.saturating_sub(self.leases);
        let (hold, moved) = (self.hold, &mut self.moved);
        let is_paused = self.paused.contains(&database);
        let context = &mut Context { moment, hold, is_paused, room, moved, actions };
        let result = change(queue, context);
        self.leases = others + queue.leases();
        self.listeners = listeners + queue.listeners();
        result
    }
}
