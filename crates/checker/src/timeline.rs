//! The state at every point, by replay of the commits.

use std::collections::HashMap;
use std::fmt;

use meridian_types::Versionstamp;

use crate::commit::Effect;
use crate::commits::Commits;
use crate::history::{Entry, Value, Write};
use crate::lost_branch::QueryKind;

/// The state of a key from one point on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Register(u64),
    Counter(u64),
    /// The first `len` elements of a segment: a list that only grew.
    List {
        segment: usize,
        len: usize,
    },
}

#[derive(Debug, Clone, Copy)]
struct Version {
    /// The first point with this version.
    from: usize,
    /// The versionstamp of the commit that made it.
    versionstamp: Versionstamp,
    state: State,
}

/// All versions of a key, ascending by point. Before the first, the key is absent.
#[derive(Debug, Default)]
struct KeyTimeline {
    versions: Vec<Version>,
    /// Indexes in `versions` at which a failover restored the key. Between them, versions also
    /// ascend by versionstamp.
    restored: Vec<usize>,
    segments: Vec<Vec<u64>>,
    /// Indexes in `versions` of absences.
    absences: Vec<usize>,
}

/// The claim of an operation about one key at the point of its effect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Condition<'h> {
    pub(crate) key: &'h str,
    pub(crate) expected: Expected<'h>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected<'h> {
    Entry(&'h Entry),
    /// The key has this version; `None`: it is absent.
    Version(Option<Versionstamp>),
    /// The key does not have this version; `None`: it is present.
    NotVersion(Option<Versionstamp>),
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key;
        match self.expected {
            Expected::Entry(entry) => write!(f, "`{key}` = {entry}"),
            Expected::Version(Some(stamp)) => write!(f, "`{key}` has version {stamp}"),
            Expected::Version(None) => write!(f, "`{key}` is absent"),
            Expected::NotVersion(Some(stamp)) => {
                write!(f, "`{key}` has another version than {stamp}")
            }
            Expected::NotVersion(None) => write!(f, "`{key}` is present"),
        }
    }
}

/// An effect of a commit that a correct store would have refused.
pub(crate) enum Fault {
    /// A check did not hold in the state just before.
    Check { commit: usize, check: usize, found: Option<Versionstamp> },
    /// A sum on a key that holds no counter, or an append to a key that holds no list.
    Write { commit: usize, write: usize },
}

/// The state at every point, by replay of the commits on a model.
pub(crate) struct Timeline<'h> {
    keys: HashMap<&'h str, KeyTimeline>,
    pub(crate) faults: Vec<Fault>,
}

impl<'h> Timeline<'h> {
    pub(crate) fn replay(commits: &Commits<'h>) -> Self {
        let mut timeline = Self { keys: HashMap::new(), faults: Vec::new() };
        for (place, commit) in commits.list.iter().enumerate() {
            if let Effect::Undo { window } = commit.effect {
                let to = commits.lost_branches.get(window).map_or(place, |branch| branch.from);
                let lost = commits.list.iter().take(place).skip(to);
                for key in lost.flat_map(|lost| &lost.txn.writes).map(Write::key) {
                    let timeline = timeline.keys.entry(key).or_default();
                    timeline.restore(to, place + 1, commit.versionstamp);
                }
                continue;
            }
            let ambiguous = |key: &str| {
                commits.is_ambiguous(place, key, QueryKind::FailedCheck, commit.completed_ns)
            };
            for (index, check) in commit.txn.checks.iter().enumerate() {
                let found =
                    timeline.keys.get(check.key.as_str()).and_then(KeyTimeline::latest_version);
                if found != check.versionstamp && !ambiguous(&check.key) {
                    timeline.faults.push(Fault::Check { commit: place, check: index, found });
                }
            }
            for (index, write) in commit.txn.writes.iter().enumerate() {
                let key = timeline.keys.entry(write.key()).or_default();
                let fits = key.apply(write, place + 1, commit.versionstamp);
                if !fits && !ambiguous(write.key()) {
                    timeline.faults.push(Fault::Write { commit: place, write: index });
                }
            }
        }
        timeline
    }

    /// Every key that a commit wrote.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'h str> {
        self.keys.keys().copied()
    }

    /// The least point from `from` to `to` where all conditions hold. Each condition can only push
    /// the point up, so the first point that none of them pushes is the least.
    pub(crate) fn first_point(
        &self,
        conditions: &[Condition<'h>],
        from: usize,
        to: usize,
    ) -> Option<usize> {
        let mut point = from;
        loop {
            let before = point;
            for condition in conditions {
                point = self.next(condition, point).filter(|point| *point <= to)?;
            }
            if point == before {
                return (point <= to).then_some(point);
            }
        }
    }

    /// The least point from `from` on where the condition holds.
    pub(crate) fn next(&self, condition: &Condition<'h>, from: usize) -> Option<usize> {
        let Some(key) = self.keys.get(condition.key) else {
            let absent = matches!(
                condition.expected,
                Expected::Version(None) | Expected::NotVersion(Some(_))
            );
            return absent.then_some(from);
        };
        match condition.expected {
            Expected::Entry(entry) => {
                key.next_version(entry.versionstamp, from, |state| key.holds(state, &entry.value))
            }
            Expected::Version(Some(stamp)) => key.next_version(stamp, from, |_| true),
            Expected::Version(None) => key.next_absence(from),
            Expected::NotVersion(stamp) => key.next_other(stamp, from),
        }
    }

    /// The entry of the key at `point`.
    pub(crate) fn entry(&self, key: &str, point: usize) -> Option<Entry> {
        let key = self.keys.get(key)?;
        key.materialize(key.versions.get(key.place_at(point)?)?)
    }
}

impl KeyTimeline {
    /// `false`: the write did not fit the kind of value that was there, and replaced it.
    fn apply(&mut self, write: &Write, point: usize, versionstamp: Versionstamp) -> bool {
        let current = self.versions.last().map_or(State::Absent, |version| version.state);
        let (state, fits) = match (write, current) {
            (Write::SetRegister { value, .. }, _) => (State::Register(*value), true),
            (Write::Delete { .. }, _) => (State::Absent, true),
            (Write::Sum { amount, .. }, State::Counter(value)) => {
                (State::Counter(value.wrapping_add(*amount)), true)
            }
            (Write::Sum { amount, .. }, state) => (State::Counter(*amount), state == State::Absent),
            (Write::Append { element, .. }, State::List { segment, len }) => {
                (self.append(segment, len, *element), true)
            }
            (Write::Append { element, .. }, state) => {
                self.segments.push(vec![*element]);
                (State::List { segment: self.segments.len() - 1, len: 1 }, state == State::Absent)
            }
        };
        // Deleting an absent key makes no version: an absence has no versionstamp that could tell
        // it apart.
        if !(state == State::Absent && current == State::Absent) {
            self.push(Version { from: point, versionstamp, state });
        }
        fits
    }

    fn append(&mut self, segment: usize, len: usize, element: u64) -> State {
        let Some(list) = self.segments.get_mut(segment).filter(|list| list.len() == len) else {
            // The rest of the segment belongs to a branch that ended.
            let mut list = self.list(segment, len).unwrap_or_default().to_vec();
            list.push(element);
            self.segments.push(list);
            return State::List { segment: self.segments.len() - 1, len: len + 1 };
        };
        list.push(element);
        State::List { segment, len: list.len() }
    }

    /// From `point` on, the key has the state that it had at the point `to`. `versionstamp` is that
    /// of the failover.
    fn restore(&mut self, to: usize, point: usize, versionstamp: Versionstamp) {
        let Some(last) = self.versions.last().filter(|last| last.from > to && last.from < point)
        else {
            return;
        };
        let current = last.state;
        let before = self.place_at(to).and_then(|place| self.versions.get(place)).copied();
        let before = before.unwrap_or(Version { from: 0, versionstamp, state: State::Absent });
        if !(before.state == State::Absent && current == State::Absent) {
            self.restored.push(self.versions.len());
            self.push(Version { from: point, ..before });
        }
    }

    fn push(&mut self, version: Version) {
        // Of several writes of one transaction to the key, only the last is visible.
        if self.versions.last().is_some_and(|last| last.from == version.from) {
            self.versions.pop();
            self.absences.pop_if(|place| *place == self.versions.len());
        }
        if version.state == State::Absent {
            self.absences.push(self.versions.len());
        }
        self.versions.push(version);
    }

    fn latest_version(&self) -> Option<Versionstamp> {
        self.versions.last().and_then(Version::visible)
    }

    /// The index of the version at `point`; `None` before the first.
    fn place_at(&self, point: usize) -> Option<usize> {
        self.versions.partition_point(|version| version.from <= point).checked_sub(1)
    }

    /// The point from which the version at `place` shows, at `from` or later; `None`: it is over by
    /// then.
    fn start_within(&self, place: usize, from: usize) -> Option<usize> {
        let version = self.versions.get(place)?;
        let lasts = self.versions.get(place + 1).is_none_or(|next| next.from > from);
        lasts.then_some(version.from.max(from))
    }

    fn next_version(
        &self,
        stamp: Versionstamp,
        from: usize,
        fits: impl Fn(State) -> bool,
    ) -> Option<usize> {
        let starts = [0].into_iter().chain(self.restored.iter().copied());
        let ends = self.restored.iter().copied().chain([self.versions.len()]);
        starts.zip(ends).find_map(|(start, end)| {
            let ascending = self.versions.get(start..end)?;
            let first = ascending.partition_point(|version| version.versionstamp < stamp);
            // More than one only if a versionstamp was given twice.
            ascending
                .iter()
                .enumerate()
                .skip(first)
                .take_while(|(_, version)| version.versionstamp == stamp)
                .filter(|(_, version)| version.state != State::Absent && fits(version.state))
                .find_map(|(place, _)| self.start_within(start + place, from))
        })
    }

    fn next_absence(&self, from: usize) -> Option<usize> {
        let Some(place) = self.place_at(from) else { return Some(from) };
        let next = self.absences.partition_point(|absence| *absence < place);
        self.absences.get(next).and_then(|absence| self.start_within(*absence, from))
    }

    fn next_other(&self, stamp: Option<Versionstamp>, from: usize) -> Option<usize> {
        match self.place_at(from) {
            None if stamp.is_some() => Some(from),
            place => (place.unwrap_or(0)..self.versions.len())
                .find(|place| {
                    self.versions.get(*place).is_some_and(|version| version.visible() != stamp)
                })
                .and_then(|place| self.start_within(place, from)),
        }
    }

    fn holds(&self, state: State, value: &Value) -> bool {
        match (state, value) {
            (State::Register(held), Value::Register(value))
            | (State::Counter(held), Value::Counter(value)) => held == *value,
            (State::List { segment, len }, Value::List(list)) => {
                self.list(segment, len) == Some(list)
            }
            _ => false,
        }
    }

    fn list(&self, segment: usize, len: usize) -> Option<&[u64]> {
        self.segments.get(segment)?.get(..len)
    }

    fn materialize(&self, version: &Version) -> Option<Entry> {
        let value = match version.state {
            State::Absent => return None,
            State::Register(value) => Value::Register(value),
            State::Counter(value) => Value::Counter(value),
            State::List { segment, len } => Value::List(self.list(segment, len)?.to_vec()),
        };
        Some(Entry { value, versionstamp: version.versionstamp })
    }
}

impl Version {
    /// The versionstamp that a read or a check sees.
    fn visible(&self) -> Option<Versionstamp> {
        (self.state != State::Absent).then_some(self.versionstamp)
    }
}
