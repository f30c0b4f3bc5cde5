//! All queues of a shard: events to each of them, and the time when something is due next.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meridian_types::limits::MAX_QUEUE_NAMES;
use meridian_types::{DatabaseId, Position, QueueId};

use crate::event::{Action, Event, MessageKey, Moment, Opening, Refused, RowChange};
use crate::leases::{MAX_LEASES, MIN_LEASES};
use crate::listeners::MAX_LISTENERS;
use crate::moved::Moved;
use crate::queue::{Context, HOLD, Hold, Queue};

/// Leases of a shard at a time, at most.
pub const MAX_LEASES_IN_ALL: usize = 100_000;
/// Listeners of a shard at a time, at most.
pub const MAX_LISTENERS_IN_ALL: usize = 10_000;
/// Named queues without listeners and leases that are known, at most: of those that were forgotten
/// the next listener reads from the front. Unnamed queues are as few as databases.
pub const MAX_IDLE: usize = 1000;

/// Leases of one database at a time with those that each queue may have.
const MAX_LEASES_OF_NAMES: usize = MAX_LEASES + (MAX_QUEUE_NAMES + 1) * MIN_LEASES;

/// Which listener gets which message of a shard, in one term of its leader.
#[derive(Debug)]
pub struct Dispatcher {
    queues: BTreeMap<QueueId, Known>,
    /// When the queues have something to do, in order.
    alarms: BTreeSet<(Duration, QueueId)>,
    /// Named queues that were idle, the longest known first.
    idle: VecDeque<QueueId>,
    hold: Hold,
    moved: Moved,
    paused: BTreeSet<DatabaseId>,
    /// Of the databases that have any.
    of_database: BTreeMap<DatabaseId, Count>,
    in_all: Count,
}

#[derive(Debug)]
struct Known {
    queue: Queue,
    alarm: Option<Duration>,
    /// It is among those that were idle.
    was_idle: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    leases: usize,
    listeners: usize,
}

impl Count {
    fn of(queue: &Queue) -> Self {
        Self { leases: queue.leases(), listeners: queue.listeners() }
    }

    /// Of a database: leases that a queue may have beyond its part of them.
    fn room(&self, part: &Self) -> usize {
        let of_all = MAX_LEASES.saturating_sub(self.leases);
        let own = MIN_LEASES.saturating_sub(part.leases);
        of_all.max(own.min(MAX_LEASES_OF_NAMES.saturating_sub(self.leases)))
    }

    /// Of a database: leases of the leader before that may go on. Whichever of its queues it gave
    /// them to, all find room, in any order.
    fn room_for_claims(&self) -> usize {
        MAX_LEASES_OF_NAMES.saturating_sub(self.leases)
    }

    /// With a queue's part as it was before replaced.
    fn replace(&mut self, before: Self, part: Self) {
        self.leases = self.leases - before.leases + part.leases;
        self.listeners = self.listeners - before.listeners + part.listeners;
    }
}

impl Dispatcher {
    /// For a term that begins now. `began`: what is applied at its beginning. Messages up to there
    /// may be held by listeners already.
    pub fn new(moment: Moment, began: Position) -> Self {
        Self {
            queues: BTreeMap::new(),
            alarms: BTreeSet::new(),
            idle: VecDeque::new(),
            hold: Hold { began, until: moment.now + HOLD },
            moved: Moved::default(),
            paused: BTreeSet::new(),
            of_database: BTreeMap::new(),
            in_all: Count::default(),
        }
    }

    /// When [`Event::Tick`] is to come at the latest.
    pub fn wake_at(&self) -> Option<Duration> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// The messages of a queue that listeners hold, or claim to.
    pub fn leases(&self, queue: &QueueId) -> usize {
        self.queues.get(queue).map_or(0, |known| known.queue.leases())
    }

    /// Of all queues.
    pub fn leases_in_all(&self) -> usize {
        self.in_all.leases
    }

    /// When the first message was due that no listener holds, of the queues that have listeners.
    pub fn first_due_ms(&self) -> Option<u64> {
        self.queues.values().filter_map(|known| known.queue.first_due_ms()).min()
    }

    /// Whether a listener holds the message of that very row, or claims to.
    pub fn is_leased(&self, queue: &QueueId, key: &MessageKey) -> bool {
        self.queues.get(queue).is_some_and(|known| known.queue.is_leased(key))
    }

    /// Whether the queues of the database hand out nothing.
    pub fn is_paused(&self, database: DatabaseId) -> bool {
        self.paused.contains(&database)
    }

    /// Deals with what has happened, and with what is due by now.
    pub fn step(&mut self, moment: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        // In the order of alarms, and each once: no queue keeps the others from their turns.
        let due = self.alarms.iter().take_while(|(at, _)| *at <= moment.now);
        let mut turns: Vec<QueueId> = due.map(|(_, queue)| queue.clone()).collect();
        turns.extend(self.happened(moment, event, &mut actions));
        let mut seen = BTreeSet::new();
        turns.retain(|queue| seen.insert(queue.clone()));
        for queue in &turns {
            self.advance(moment, queue, &mut actions);
        }
        self.forget_idle();
        actions
    }

    /// The queues that it is about.
    fn happened(
        &mut self,
        moment: Moment,
        event: Event,
        actions: &mut Vec<Action>,
    ) -> Vec<QueueId> {
        let id = match event {
            Event::Tick => return Vec::new(),
            Event::Paused(paused) => return self.pause(paused),
            Event::Applied(changes) => return self.applied(moment, changes, actions),
            Event::Read { queue: id, rows, next } => {
                self.with(moment, &id, actions, |queue, _| queue.read(&rows, next));
                id
            }
            Event::Opened(opening) if !self.has_room_for(&opening) => {
                let (session, reason) = (opening.session, Refused::TooManyListeners);
                actions.push(Action::Refuse { session, reason });
                return Vec::new();
            }
            Event::Opened(opening) => {
                let id = opening.queue.clone();
                self.with(moment, &id, actions, |queue, context| queue.opened(&opening, context));
                id
            }
            Event::Closed { queue: id, listener, session } => {
                self.with(moment, &id, actions, |queue, _| {
                    queue.closed(listener, session, moment.now);
                });
                id
            }
            Event::Gone { queue: id, keys } => {
                self.with(moment, &id, actions, |queue, context| {
                    keys.into_iter().for_each(|key| queue.not_delivered(key, context));
                });
                id
            }
            Event::Checked { queue: id, gone } => {
                self.with(moment, &id, actions, |queue, context| queue.checked(&gone, context));
                id
            }
            Event::Reported { queue: id, listener, reports } => {
                self.with(moment, &id, actions, |queue, context| {
                    for report in reports {
                        queue.reported(listener, report, context);
                    }
                });
                id
            }
            Event::Settled { queue: id, lane } => {
                self.with(moment, &id, actions, |queue, context| queue.settled(lane, context));
                id
            }
        };
        vec![id]
    }

    fn pause(&mut self, paused: BTreeSet<DatabaseId>) -> Vec<QueueId> {
        let before = std::mem::replace(&mut self.paused, paused);
        let changed: BTreeSet<_> = before.symmetric_difference(&self.paused).collect();
        let is_changed = |queue: &&QueueId| changed.contains(&queue.database);
        self.queues.keys().filter(is_changed).cloned().collect()
    }

    /// A listener that comes back takes its own place.
    fn has_room_for(&self, Opening { queue, listener, .. }: &Opening) -> bool {
        let of_database = self.of_database.get(&queue.database).copied().unwrap_or_default();
        let is_back = |known: &Known| known.queue.listener(*listener).is_some();
        let has_room =
            self.in_all.listeners < MAX_LISTENERS_IN_ALL && of_database.listeners < MAX_LISTENERS;
        has_room || self.queues.get(queue).is_some_and(is_back)
    }

    /// A queue without listeners so far has nothing that this could change: its first read is
    /// yet to come.
    fn applied(
        &mut self,
        moment: Moment,
        changes: Vec<RowChange>,
        actions: &mut Vec<Action>,
    ) -> Vec<QueueId> {
        let mut changed = BTreeSet::new();
        for change in changes {
            let (RowChange::Put(id, key) | RowChange::Moved(id, key) | RowChange::Deleted(id, key)) =
                &change;
            // Also of a queue that was forgotten.
            if let RowChange::Moved(..) = &change
                && (self.queues.contains_key(id) || self.moved.knows(key.id))
            {
                self.moved.insert(id.database, *key);
            }
            if !self.queues.contains_key(id) {
                continue;
            }
            self.with(moment, id, actions, |queue, context| match change {
                RowChange::Put(..) | RowChange::Moved(..) => queue.put(*key),
                RowChange::Deleted(..) => queue.deleted(*key, context),
            });
            if !changed.contains(id) {
                changed.insert(id.clone());
            }
        }
        changed.into_iter().collect()
    }

    fn advance(&mut self, moment: Moment, id: &QueueId, actions: &mut Vec<Action>) {
        let (alarm, is_idle) = self
            .with(moment, id, actions, |queue, context| (queue.advance(context), queue.is_idle()));
        let Some(known) = self.queues.get_mut(id) else { return };
        let before = std::mem::replace(&mut known.alarm, alarm);
        if before != alarm {
            before.map(|at| self.alarms.remove(&(at, id.clone())));
            self.alarms.extend(alarm.map(|at| (at, id.clone())));
        }
        if is_idle && !id.name.is_default() && !std::mem::replace(&mut known.was_idle, true) {
            self.idle.push_back(id.clone());
        }
    }

    /// Clients may name any number of queues, one after the other.
    fn forget_idle(&mut self) {
        while self.idle.len() > MAX_IDLE
            && let Some(longest) = self.idle.pop_front()
        {
            match self.queues.entry(longest) {
                Entry::Occupied(known) if known.get().queue.is_idle() => drop(known.remove()),
                Entry::Occupied(mut known) => known.get_mut().was_idle = false,
                Entry::Vacant(_) => {}
            }
        }
    }

    fn with<T>(
        &mut self,
        moment: Moment,
        id: &QueueId,
        actions: &mut Vec<Action>,
        change: impl FnOnce(&mut Queue, &mut Context<'_>) -> T,
    ) -> T {
        let new = || Known { queue: Queue::new(id.clone()), alarm: None, was_idle: false };
        let queue = &mut self.queues.entry(id.clone()).or_insert_with(new).queue;
        let before = Count::of(queue);
        let of_database = self.of_database.entry(id.database).or_default();
        let of_shard = MAX_LEASES_IN_ALL.saturating_sub(self.in_all.leases);
        let room = of_database.room(&before).min(of_shard);
        let room_for_claims = of_database.room_for_claims().min(of_shard);
        let (hold, moved) = (self.hold, &self.moved);
        let is_paused = self.paused.contains(&id.database);
        let context =
            &mut Context { moment, hold, is_paused, room, room_for_claims, moved, actions };
        let result = change(queue, context);
        let part = Count::of(queue);
        self.in_all.replace(before, part);
        of_database.replace(before, part);
        if *of_database == Count::default() {
            self.of_database.remove(&id.database);
        }
        result
    }
}
