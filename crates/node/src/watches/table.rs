//! The versions and values known of the watched keys of one shard, and the watches that have news:
//! as of the last batch that was heard of, so that each message is of one state.
//!
//! No clock, no task, no engine: [`super::hub`] drives it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use meridian_gateway::WatchedValue;
use meridian_proto::DecodedBatch;
use meridian_storage::schema::{StoredValue, is_expired};
use meridian_types::{DatabaseId, Effect, Entry, EpochHistory, Position, Value, Versionstamp};

use super::recent::Recent;
use super::signal::{Signal, Signals, WatcherId};
use super::{News, Shown, WatchedKey};

/// Values of one shard that are kept for the watches that have not taken them yet.
const RECENT_BYTES: usize = 8 << 20;
/// Keys that are read together: a small part of what is kept, also of the largest values.
const KEYS_AT_A_TIME: usize = 16;
/// Watches that are told at a time, while what is applied waits for them.
const SIGNALS_AT_A_TIME: usize = 256;
/// Keys whose watches hear at a time that they have expired.
const EXPIRED_AT_A_TIME: usize = 256;

pub(super) struct Table {
    /// Of the last batch that was heard of, and the shard's time then.
    position: Position,
    time_ms: u64,
    /// Of the state: what was read of another one is not of this.
    generation: u64,
    /// Of the shard, as far as this node knows.
    history: EpochHistory,
    /// The state has left that history.
    is_lost: bool,
    keys: HashMap<WatchedKey, Watched>,
    /// The keys that have a value which expires, by when.
    expiring: BTreeSet<(u64, WatchedKey)>,
    /// Keys whose watches have news, and the first of those that were not told.
    changed: VecDeque<(WatchedKey, WatcherId)>,
    /// Keys to be read.
    wanted: VecDeque<WatchedKey>,
    recent: Recent,
    watchers: WatcherId,
}

/// A key, while it is watched.
struct Watched {
    known: Known,
    /// Of the value that is known, unless it was forgotten.
    value: Option<WatchedValue>,
    expire_at_ms: u64,
    watchers: Signals,
    /// Those that wait for a read of it.
    waiting: Signals,
    is_wanted: bool,
    is_changed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing; effects behind this sequence would be known.
    Since(u64),
    /// Its versionstamp, if there is a value.
    Yes(Option<Versionstamp>),
}

/// The answer to a watch that asks for news.
pub(super) enum Told {
    News(News),
    Nothing,
    /// A key has to be read first; the signal is raised then.
    Reading,
    /// The state has left the shard's history: another node is to be asked.
    Lost,
}

/// Keys to be read together.
pub(super) struct Round {
    generation: u64,
    pub(super) keys: Vec<WatchedKey>,
}

impl Table {
    pub(super) fn new(position: Position, time_ms: u64) -> Self {
        Self {
            position,
            time_ms,
            generation: 0,
            history: EpochHistory::first(),
            is_lost: false,
            keys: HashMap::new(),
            expiring: BTreeSet::new(),
            changed: VecDeque::new(),
            wanted: VecDeque::new(),
            recent: Recent::new(RECENT_BYTES),
            watchers: 0,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// A watch begins. The keys, as they are to be named from then on.
    pub(super) fn watch(
        &mut self,
        database: DatabaseId,
        keys: &[Bytes],
        signal: &Arc<Signal>,
    ) -> (WatcherId, Box<[WatchedKey]>) {
        self.watchers += 1;
        let (id, since) = (self.watchers, self.position.sequence);
        let mut begin = |key: &Bytes| {
            let key = (database, key.clone());
            let known = self.keys.get_key_value(&key).map(|(known, _)| known.clone());
            let key = known.unwrap_or(key);
            let watched = self.keys.entry(key.clone()).or_insert_with(|| Watched::new(since));
            watched.watchers.insert(id, signal);
            key
        };
        (id, keys.iter().map(&mut begin).collect())
    }

    pub(super) fn leave(&mut self, id: WatcherId, keys: &[WatchedKey]) {
        for key in keys {
            let Some(watched) = self.keys.get_mut(key) else { continue };
            watched.watchers.remove(id);
            watched.waiting.remove(id);
            if watched.watchers.is_empty() {
                self.expiring.remove(&(watched.expire_at_ms, key.clone()));
                self.keys.remove(key);
            }
        }
    }

    pub(super) fn apply(&mut self, batches: &[DecodedBatch]) {
        for DecodedBatch { batch, .. } in batches {
            self.position = batch.position;
            self.time_ms = self.time_ms.max(batch.time_ms);
            if self.keys.is_empty() {
                continue;
            }
            for (versionstamp, transaction) in batch.iter() {
                for effect in &transaction.effects {
                    self.take_effect(transaction.database, versionstamp, effect);
                }
            }
        }
        // The shard here may go on with a term of an epoch that is known to be over.
        self.look_at_history();
    }

    fn take_effect(&mut self, database: DatabaseId, versionstamp: Versionstamp, effect: &Effect) {
        match effect {
            Effect::Put { key, value, expire_at_ms } => {
                // Not the effect's own bytes, which would keep the whole batch.
                let key = self.keys.get_key_value(&(database, key.clone()));
                if let Some(key) = key.map(|(key, _)| key.clone()) {
                    self.put(&key, versionstamp, value.clone(), *expire_at_ms);
                    self.mark_changed(&key);
                }
            }
            Effect::Delete { key } => self.remove(&(database, key.clone())),
            Effect::Unindex { .. } | Effect::Queue(_) => {}
            Effect::DropDatabase => {
                let keys = self.keys.keys().filter(|(of, _)| *of == database);
                for key in keys.cloned().collect::<Vec<_>>() {
                    self.remove(&key);
                }
            }
        }
    }

    /// Whether a watched key has expired and its watches were not told.
    fn has_expired(&self) -> bool {
        self.expiring.first().is_some_and(|(at, _)| is_expired(*at, self.time_ms))
    }

    /// A value that expires at the time of a batch is gone with it, as all such: a watch that asks
    /// is told so of each of its keys, however many others have expired. That they have news is
    /// found out here, for some keys at a time.
    fn expire_some(&mut self) {
        for _ in 0..EXPIRED_AT_A_TIME {
            if !self.has_expired() {
                return;
            }
            let Some((_, key)) = self.expiring.pop_first() else { return };
            self.remove(&key);
        }
    }

    fn expire(&mut self, key: &WatchedKey) {
        let expires = self.keys.get(key).map_or(0, |watched| watched.expire_at_ms);
        if is_expired(expires, self.time_ms) {
            self.remove(key);
        }
    }

    fn put(&mut self, key: &WatchedKey, stamp: Versionstamp, value: Value, expire_at_ms: u64) {
        let Some(watched) = self.keys.get_mut(key) else { return };
        let value = WatchedValue::present(Entry { key: key.1.clone(), value, versionstamp: stamp });
        self.recent.add(key.clone(), stamp, value.size());
        self.expiring.remove(&(watched.expire_at_ms, key.clone()));
        if expire_at_ms != 0 {
            self.expiring.insert((expire_at_ms, key.clone()));
        }
        watched.known = Known::Yes(Some(stamp));
        (watched.value, watched.expire_at_ms) = (Some(value), expire_at_ms);
        while let Some((key, stamp)) = self.recent.next_to_forget() {
            if let Some(watched) = self.keys.get_mut(&key)
                && watched.known == Known::Yes(Some(stamp))
            {
                watched.value = None;
            }
        }
    }

    fn remove(&mut self, key: &WatchedKey) {
        let Some(watched) = self.keys.get_mut(key) else { return };
        if watched.known == Known::Yes(None) {
            return;
        }
        self.expiring.remove(&(watched.expire_at_ms, key.clone()));
        watched.known = Known::Yes(None);
        (watched.value, watched.expire_at_ms) = (None, 0);
        let key = self.keys.get_key_value(key).map(|(key, _)| key.clone());
        if let Some(key) = key {
            self.mark_changed(&key);
        }
    }

    fn mark_changed(&mut self, key: &WatchedKey) {
        if let Some(watched) = self.keys.get_mut(key)
            && !std::mem::replace(&mut watched.is_changed, true)
        {
            self.changed.push_back((key.clone(), 0));
        }
    }

    /// Another state took the place of this table's state.
    pub(super) fn replaced(&mut self, position: Position, time_ms: u64) {
        (self.position, self.time_ms) = (position, time_ms);
        self.is_lost = self.history.leaves(position).is_some();
        self.generation += 1;
        self.expiring.clear();
        for watched in self.keys.values_mut() {
            watched.known = Known::Since(position.sequence);
            (watched.value, watched.expire_at_ms) = (None, 0);
        }
        self.all_have_changed();
    }

    /// The history of the shard, as this node knows it from now on.
    pub(super) fn follow(&mut self, history: EpochHistory) {
        self.history = history;
        self.look_at_history();
    }

    /// Of a state that has left the shard's history nothing is told until another takes its place.
    fn look_at_history(&mut self) {
        if !self.is_lost && self.history.leaves(self.position).is_some() {
            self.is_lost = true;
            self.all_have_changed();
        }
    }

    fn all_have_changed(&mut self) {
        for key in self.keys.keys().cloned().collect::<Vec<_>>() {
            self.mark_changed(&key);
        }
    }

    /// Whether there are watches that have news and were not told.
    pub(super) fn has_news(&self) -> bool {
        !self.changed.is_empty() || self.has_expired()
    }

    /// Some of the watches that have news and were not told; none, when all were.
    pub(super) fn next_signals(&mut self) -> Vec<Arc<Signal>> {
        self.expire_some();
        let mut signals = Vec::new();
        while signals.len() < SIGNALS_AT_A_TIME
            && let Some((key, from)) = self.changed.pop_front()
        {
            let Some(watched) = self.keys.get_mut(&key) else { continue };
            if from == 0 {
                // Changes from now on are told anew, from the first watch.
                watched.is_changed = false;
            }
            let mut next = from;
            let room = SIGNALS_AT_A_TIME - signals.len();
            for (id, signal) in watched.watchers.starting_at(from).take(room) {
                signals.push(Arc::clone(signal));
                next = id + 1;
            }
            if signals.len() == SIGNALS_AT_A_TIME {
                self.changed.push_front((key, next));
            }
        }
        signals
    }

    /// The news of a watch that was `shown` this: the keys that have changed since, or all of them
    /// the first time. Where a value has to be read first, `signal` waits for it.
    pub(super) fn tell(
        &mut self,
        (id, signal): (WatcherId, &Arc<Signal>),
        keys: &[WatchedKey],
        shown: &mut [Shown],
        is_first: bool,
    ) -> Told {
        if self.is_lost {
            return Told::Lost;
        }
        if self.has_expired() {
            keys.iter().for_each(|key| self.expire(key));
        }
        let mut is_known = true;
        for (key, shown) in keys.iter().zip(&*shown) {
            let Some(watched) = self.keys.get_mut(key) else { continue };
            if watched.lacks_value(*shown) {
                is_known = false;
                watched.waiting.insert(id, signal);
                if !std::mem::replace(&mut watched.is_wanted, true) {
                    self.wanted.push_back(key.clone());
                }
            }
        }
        if !is_known {
            return Told::Reading;
        }
        let news = |(key, shown): (&WatchedKey, &mut Shown)| {
            let watched = self.keys.get(key)?;
            let Known::Yes(known) = watched.known else { return None };
            if shown.replace(known) == Some(known) {
                return None;
            }
            Some(watched.value.clone().unwrap_or_else(WatchedValue::absent))
        };
        let values: Vec<_> = keys.iter().zip(shown).map(news).collect();
        if is_first || values.iter().any(Option::is_some) {
            Told::News(News { position: self.position, values })
        } else {
            Told::Nothing
        }
    }

    pub(super) fn next_round(&mut self) -> Option<Round> {
        let mut keys = Vec::new();
        while keys.len() < KEYS_AT_A_TIME
            && let Some(key) = self.wanted.pop_front()
        {
            if self.keys.contains_key(&key) {
                keys.push(key);
            }
        }
        (!keys.is_empty()).then_some(Round { generation: self.generation, keys })
    }

    /// The keys are still to be read.
    pub(super) fn want_again(&mut self, round: Round) {
        self.wanted.extend(round.keys);
    }

    /// Takes over what was read of a state at this position. The watches that waited for it; `None`:
    /// not all batches up to there were heard of yet.
    ///
    /// Values that were read hold for the last batch that was heard of: effects on the key behind the
    /// position are known, and an effect is newer than the value that was read.
    pub(super) fn fill(
        &mut self,
        round: &Round,
        rows: &[Option<StoredValue>],
        position: Position,
    ) -> Option<Vec<Arc<Signal>>> {
        let is_other = round.generation != self.generation;
        if !is_other && self.position.sequence < position.sequence {
            return None;
        }
        let mut signals = Vec::new();
        for (key, row) in round.keys.iter().zip(rows) {
            let Some(watched) = self.keys.get_mut(key) else { continue };
            let is_late = matches!(watched.known, Known::Since(since) if position.sequence < since);
            if is_other || is_late {
                self.wanted.push_back(key.clone());
                continue;
            }
            watched.is_wanted = false;
            signals.extend(std::mem::take(&mut watched.waiting).into_all());
            self.take_row(key, row.as_ref());
        }
        Some(signals)
    }

    fn take_row(&mut self, key: &WatchedKey, row: Option<&StoredValue>) {
        let Some(watched) = self.keys.get_mut(key) else { return };
        let row = row.filter(|row| !is_expired(row.expire_at_ms, self.time_ms));
        let is_wanted = match watched.known {
            Known::Since(_) => true,
            known => {
                let read = row.map(|row| row.versionstamp);
                read.is_some() && known == Known::Yes(read) && watched.value.is_none()
            }
        };
        match row {
            Some(row) if is_wanted => {
                // Of its own: the row's bytes may be a part of more.
                self.put(key, row.versionstamp, row.value.clone(), row.expire_at_ms);
            }
            None if is_wanted => watched.known = Known::Yes(None),
            _ => {}
        }
    }

    /// Keys with a value that expires, or has expired unnoticed.
    #[cfg(test)]
    pub(super) fn expiring(&self) -> usize {
        self.expiring.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.expiring.is_empty()
    }
}

impl Watched {
    fn new(since: u64) -> Self {
        Self {
            known: Known::Since(since),
            value: None,
            expire_at_ms: 0,
            watchers: Signals::default(),
            waiting: Signals::default(),
            is_wanted: false,
            is_changed: false,
        }
    }

    /// Whether it has to be read to tell a watch that was `shown` this.
    fn lacks_value(&self, shown: Shown) -> bool {
        match self.known {
            Known::Since(_) => true,
            Known::Yes(known) => known.is_some() && self.value.is_none() && shown != Some(known),
        }
    }
}
