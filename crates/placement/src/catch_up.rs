//! How a node comes to a position that others have reached: by the log of one of them, or, where that
//! begins too late, by a whole state.
//!
//! Two nodes need it when an epoch ends. A sealed replica is ordered to by the directory's leader,
//! which names the source and asks again when the time is over. A founder of the next epoch's group
//! asks every node in turn for what it lacks of the base.
//!
//! Invariants:
//! - Nothing is taken that is not in the shard's history as it is now: a source that lags behind the
//!   directory may hold what was lost.
//! - Nothing is taken past `through`: beyond it the next epoch begins.
//! - A write that was begun is finished, whatever the time.

use std::time::Duration;

use meridian_directory::Cluster;
use meridian_types::{EpochHistory, NodeId, Position, ShardId};

/// How long a source may take to answer, from when the call goes out.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two parts of a whole state.
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an order is carried out. The directory's leader asks again, and nothing else goes on in
/// the replica meanwhile.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds in which a founder asks every node for what it lacks; then it joins by a snapshot.
pub const PULL_ROUNDS: usize = 3;
/// Between two rounds.
pub const PULL_PAUSE: Duration = Duration::from_millis(300);

/// Why a node did not come to the position, or why a source was of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatchUpFailure {
    #[error("not at {0} in time")]
    Late(Position),
    #[error("it is not wanted any more")]
    Unwanted,
    #[error("no node has all up to {0}")]
    NoSource(Position),
    /// The source, or what lies between, failed for this reason.
    #[error("{0}")]
    Failed(String),
    #[error("node {source_id} sent {count} batches behind {previous}, not what follows {after}")]
    NotNext { source_id: NodeId, count: usize, previous: Position, after: Position },
    #[error("node {source_id} sent {position} behind {last}, up to {through}")]
    OffHistory { source_id: NodeId, position: Position, last: Position, through: Position },
    #[error("node {source_id}'s state: {wrong}")]
    WrongState { source_id: NodeId, wrong: WrongState },
}

/// A state that does not lie on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it stands at {at}, between {here} and {through} it may be")]
pub struct WrongState {
    at: Position,
    here: Position,
    through: Position,
}

/// The inputs of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatchUpEvent {
    /// To begin with: where the state stands.
    Begin { position: Position },
    /// The source's log has these behind `previous`.
    Batches { previous: Position, batches: Vec<Position> },
    /// The batches behind `previous` are no longer in the source's log.
    LogGone,
    /// [`CatchUpAction::WriteBatches`] is through: durable and applied up to here.
    Written { position: Position },
    /// The whole state has come, and stands here.
    StateFetched { position: Position },
    /// [`CatchUpAction::InstallState`] is through.
    StateInstalled { position: Position },
    /// The source does not answer, or refuses, or this node has no room for what it has.
    Failed { reason: String },
    /// The time that [`CatchUp::until`] says has come.
    Late,
    /// The whole state is not wanted any more: others have founded the group.
    Unwanted,
    /// [`CatchUpAction::Pause`] is over; the sources as they are now.
    Resumed { sources: Vec<NodeId> },
}

/// The next action of the driver: one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatchUpAction {
    /// Asks for batches; [`CALL_TIMEOUT`] counts from when the call goes out.
    ReadLog { source: NodeId, after: Position, through: Position },
    /// Appends the batches that have just come, syncs, applies. Not to be interrupted.
    WriteBatches,
    /// Begins to fetch the whole state of the source.
    FetchState { source: NodeId },
    /// Waits for the state that an earlier order has begun to fetch.
    AwaitState,
    /// Puts the state that has come in place. Not to be interrupted.
    InstallState,
    /// Waits for [`PULL_PAUSE`].
    Pause,
    /// The end. After `Ok` a state that is still on its way is not wanted any more.
    Finish(Result<(), CatchUpFailure>),
    /// The event was not waited for.
    Nothing,
}

/// One way to a position.
#[derive(Debug)]
pub struct CatchUp {
    history: EpochHistory,
    position: Position,
    through: Position,
    from: From,
    waits: Waits,
    /// A whole state is on its way.
    is_fetching: bool,
    failure: Option<CatchUpFailure>,
}

#[derive(Debug)]
enum From {
    /// The directory's leader named the source.
    Order { source: NodeId, until: Duration },
    /// Each in turn, in rounds.
    Any { sources: Vec<NodeId>, next: usize, round: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Begin,
    Log,
    Disk,
    State,
    Installation,
    Pause,
    Nothing,
}

impl CatchUp {
    /// Of a sealed replica, as ordered at `now`. `is_fetching`: an earlier order has begun to fetch a
    /// whole state. That goes on coming between orders, since it may take longer than one lasts, and
    /// is put in place only while one is carried out.
    pub fn ordered(
        now: Duration,
        history: EpochHistory,
        source: NodeId,
        through: Position,
        is_fetching: bool,
    ) -> Self {
        let from = From::Order { source, until: now + ORDER_TIMEOUT };
        Self::new(history, through, from, is_fetching)
    }

    /// Of a founder that lacks something of the history's base.
    pub fn to_base(history: EpochHistory, sources: Vec<NodeId>) -> Self {
        let base = history.base();
        Self::new(history, base, From::Any { sources, next: 0, round: 0 }, false)
    }

    fn new(history: EpochHistory, through: Position, from: From, is_fetching: bool) -> Self {
        let (position, waits, failure) = (Position::ZERO, Waits::Begin, None);
        Self { history, position, through, from, waits, is_fetching, failure }
    }

    pub fn history(&self) -> &EpochHistory {
        &self.history
    }

    /// Where it is to come.
    pub fn through(&self) -> Position {
        self.through
    }

    /// When [`CatchUpEvent::Late`] is due while the driver waits for another node.
    pub fn until(&self) -> Option<Duration> {
        match (self.waits, &self.from) {
            (Waits::Log | Waits::State, From::Order { until, .. }) => Some(*until),
            _ => None,
        }
    }

    /// Why the source before the present one was of no use, once.
    pub fn take_failure(&mut self) -> Option<CatchUpFailure> {
        self.failure.take()
    }

    /// Takes an event, and says what is next.
    pub fn step(&mut self, now: Duration, event: CatchUpEvent) -> CatchUpAction {
        match (self.waits, event) {
            (Waits::Begin, CatchUpEvent::Begin { position }) => self.reached(now, position),
            (Waits::Disk, CatchUpEvent::Written { position })
            | (Waits::Installation, CatchUpEvent::StateInstalled { position }) => {
                self.reached(now, position)
            }
            (Waits::Log, CatchUpEvent::Batches { previous, batches }) => {
                match self.check(previous, &batches) {
                    Ok(()) => self.wait(Waits::Disk, CatchUpAction::WriteBatches),
                    Err(failure) => self.failed(now, failure),
                }
            }
            (Waits::Log, CatchUpEvent::LogGone) if self.is_fetching => {
                self.wait(Waits::State, CatchUpAction::AwaitState)
            }
            (Waits::Log, CatchUpEvent::LogGone) => match self.source() {
                Some(source) => {
                    self.is_fetching = true;
                    self.wait(Waits::State, CatchUpAction::FetchState { source })
                }
                None => self.next(now),
            },
            (Waits::State, CatchUpEvent::StateFetched { position }) => {
                self.is_fetching = false;
                match check_state(&self.history, self.position, position, self.through) {
                    Ok(()) => self.wait(Waits::Installation, CatchUpAction::InstallState),
                    Err(wrong) => {
                        let source_id = self.source().unwrap_or(NodeId(0));
                        self.failed(now, CatchUpFailure::WrongState { source_id, wrong })
                    }
                }
            }
            (Waits::State, CatchUpEvent::Unwanted) => self.failed(now, CatchUpFailure::Unwanted),
            (Waits::Log | Waits::State, CatchUpEvent::Late) => {
                self.finish(Err(CatchUpFailure::Late(self.through)))
            }
            (Waits::Nothing | Waits::Begin | Waits::Pause, CatchUpEvent::Failed { .. }) => {
                CatchUpAction::Nothing
            }
            (_, CatchUpEvent::Failed { reason }) => {
                self.failed(now, CatchUpFailure::Failed(reason))
            }
            (Waits::Pause, CatchUpEvent::Resumed { sources: present }) => {
                let From::Any { sources, next, round } = &mut self.from else {
                    return CatchUpAction::Nothing;
                };
                (*sources, *next, *round) = (present, 0, *round + 1);
                if *round >= PULL_ROUNDS {
                    return self.finish(Err(CatchUpFailure::NoSource(self.through)));
                }
                self.ask(now)
            }
            _ => CatchUpAction::Nothing,
        }
    }

    fn wait(&mut self, waits: Waits, action: CatchUpAction) -> CatchUpAction {
        self.waits = waits;
        action
    }

    fn finish(&mut self, result: Result<(), CatchUpFailure>) -> CatchUpAction {
        self.wait(Waits::Nothing, CatchUpAction::Finish(result))
    }

    fn source(&self) -> Option<NodeId> {
        match &self.from {
            From::Order { source, .. } => Some(*source),
            From::Any { sources, next, .. } => sources.get(*next).copied(),
        }
    }

    fn reached(&mut self, now: Duration, position: Position) -> CatchUpAction {
        self.position = position;
        if position.sequence >= self.through.sequence {
            return self.finish(Ok(()));
        }
        self.ask(now)
    }

    /// Asks the source at hand for what follows.
    fn ask(&mut self, now: Duration) -> CatchUpAction {
        if let From::Order { until, .. } = self.from
            && now >= until
        {
            return self.finish(Err(CatchUpFailure::Late(self.through)));
        }
        let (after, through) = (self.position, self.through);
        match self.source() {
            Some(source) => {
                self.wait(Waits::Log, CatchUpAction::ReadLog { source, after, through })
            }
            None => self.wait(Waits::Pause, CatchUpAction::Pause),
        }
    }

    /// The end of an order; a founder goes on to the next source.
    fn failed(&mut self, now: Duration, failure: CatchUpFailure) -> CatchUpAction {
        if self.waits == Waits::State {
            self.is_fetching = false;
        }
        match self.from {
            From::Order { .. } => self.finish(Err(failure)),
            From::Any { .. } => {
                self.failure = Some(failure);
                self.next(now)
            }
        }
    }

    fn next(&mut self, now: Duration) -> CatchUpAction {
        if let From::Any { next, .. } = &mut self.from {
            *next += 1;
        }
        self.ask(now)
    }

    /// Whether the batches are what follows, and not more.
    fn check(&self, previous: Position, batches: &[Position]) -> Result<(), CatchUpFailure> {
        let (after, through) = (self.position, self.through);
        let source_id = self.source().unwrap_or(NodeId(0));
        if previous != after || batches.is_empty() {
            let count = batches.len();
            return Err(CatchUpFailure::NotNext { source_id, count, previous, after });
        }
        let mut last = after;
        for &position in batches {
            if position.sequence != last.sequence + 1
                || self.history.at(position.sequence) != position
                || position > through
            {
                return Err(CatchUpFailure::OffHistory { source_id, position, last, through });
            }
            last = position;
        }
        Ok(())
    }
}

/// Whether a state at `at` brings one at `here` nearer to `through`, and not past it: beyond would be
/// outside of the history of an epoch that begins there.
///
/// # Errors
/// Where it stands instead.
pub fn check_state(
    history: &EpochHistory,
    here: Position,
    at: Position,
    through: Position,
) -> Result<(), WrongState> {
    if at.sequence <= here.sequence || history.at(at.sequence) != at || at > through {
        return Err(WrongState { at, here, through });
    }
    Ok(())
}

/// The nodes that a founder asks: all others, those of its own region first.
pub fn sources(cluster: &Cluster, shard: ShardId, node: NodeId) -> Vec<NodeId> {
    let home = cluster.shards.get(&shard).map(|shard| shard.primary_region.as_str());
    let others = cluster.nodes.iter().filter(|(id, other)| **id != node && !other.removed);
    let mut others: Vec<_> =
        others.map(|(id, other)| (Some(other.region.as_str()) != home, *id)).collect();
    others.sort_unstable();
    others.into_iter().map(|(_, id)| id).collect()
}

/// Why a node has nothing to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotASource {
    /// This position is not in the node's history.
    OffHistory(Position),
    /// The node stands here, and nothing lies behind what is asked for.
    OnlyUpTo(Position),
}

/// Whether a node that stands at `here` may be a source of what lies behind `after`, or, without
/// `after`, of its whole state.
///
/// # Errors
/// Why it may not.
pub fn check_source(
    history: &EpochHistory,
    here: Position,
    after: Option<Position>,
) -> Result<(), NotASource> {
    let asked = after.unwrap_or(here);
    if history.leaves(here).is_some() || history.at(asked.sequence) != asked {
        return Err(NotASource::OffHistory(asked));
    }
    match after {
        Some(after) if after.sequence >= here.sequence => Err(NotASource::OnlyUpTo(here)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
