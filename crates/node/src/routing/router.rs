//! From a gateway to the shard: who leads, what to retry, and until when.

mod budget;
mod leaders;
mod reach;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use meridian_gateway::{Database, Read, ReadOutput, Unavailable, Write, WriteFailure};
use meridian_types::{
    Consistency, DatabaseId, Epoch, EpochHistory, NodeId, Position, ShardId, Transaction,
    WriteOutcome,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::cluster_view::view::{Directory, Known};
use crate::host::clock::{BootClock, Clock};
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::hedge::{self, Hedging, Round};
use crate::routing::nodes::{Answering, BrokenOff, Nodes, WriteTry, Written};
use crate::routing::revival::Revival;
use crate::time_budget::{ATTEMPT_TIMEOUT, HEDGE_AFTER, SAYS_THAT_IT_IS_AT_WORK, UNKNOWN_DEADLINE};

use budget::{Budget, pause};
use leaders::Leaders;
use reach::Reach;
use refusals::Refusals;

/// Nodes that carry out one read at a time. Any voter that has a leader can serve it, so one more
/// is enough.
const READS_AT_A_TIME: usize = 2;
/// Voters that have one write at a time: those that do not lead only wait for a leader.
const WRITES_AT_A_TIME: usize = 3;
/// Those who waited for a shard come back within this time, not all at once.
const REVIVAL_SPREAD: Duration = Duration::from_millis(10);

/// Routes the operations of one gateway.
pub(crate) struct Router<N = ClusterNodes, C = BootClock> {
    nodes: N,
    clock: C,
    /// `None` beside an application, where no node runs.
    local_node: Option<NodeId>,
    region: String,
    directory: Arc<Directory>,
    /// For an operation that certainly did not happen.
    deadline: Duration,
    leaders: Leaders,
    reach: Reach,
    refusals: Refusals,
    /// What this gateway has shown of each shard: what it shows next is no older.
    shown: Mutex<BTreeMap<ShardId, Position>>,
}

/// What came of a read at this node when it was first looked at.
enum Here {
    Read(ReadOutput),
    Begun(Begun),
}

struct Begun {
    shard: (ShardId, Epoch),
    working: Arc<Notify>,
    call: BoxFuture<'static, Result<Answering, Failed>>,
}

/// One operation on its way.
struct Pursuit {
    database: DatabaseId,
    /// Of each try.
    bytes: usize,
    /// Rounds that failed.
    rounds: u32,
    /// Who did not answer in the round before.
    lost: Option<NodeId>,
}

impl Pursuit {
    fn new(database: DatabaseId, bytes: usize) -> Self {
        Self { database, bytes, rounds: 0, lost: None }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = pause(self.rounds);
        self.rounds += 1;
        pause
    }
}

impl<N: Nodes, C: Clock> Router<N, C> {
    pub(crate) fn new(
        nodes: N,
        clock: C,
        local_node: Option<NodeId>,
        region: String,
        directory: Arc<Directory>,
        deadline: Duration,
    ) -> Self {
        Self {
            nodes,
            clock,
            local_node,
            region,
            directory,
            deadline,
            leaders: Leaders::default(),
            reach: Reach::new(local_node),
            refusals: Refusals::default(),
            shown: Mutex::default(),
        }
    }

    fn shard(&self, database: DatabaseId) -> Result<(ShardId, Epoch), Unavailable> {
        let shard = self.directory.known().cluster.shard_of(database).map(|(shard, _)| shard);
        let found = shard.and_then(|shard| Some((shard, self.directory.epoch(shard)?)));
        found.ok_or_else(|| unavailable(format!("no shard holds the database {database}")))
    }

    /// The voters to try, the supposed leader first, then those nearest; those last that do not
    /// answer.
    fn voters(&self, shard: ShardId) -> Vec<NodeId> {
        let known = self.directory.known();
        let Some(info) = known.cluster.shards.get(&shard) else { return Vec::new() };
        let now = self.clock.now();
        let local_knows = self.nodes.local_voter(shard).and_then(|local| local.leader);
        let hint = local_knows.or_else(|| self.leaders.hint(shard)).or(info.preferred_leader);
        let mut voters: Vec<NodeId> = info.voters.iter().copied().collect();
        let avoided: BTreeSet<NodeId> =
            voters.iter().copied().filter(|voter| self.reach.avoid(now, *voter)).collect();
        voters.sort_by_key(|voter| {
            (avoided.contains(voter), Some(*voter) != hint, Some(*voter) != self.local_node, *voter)
        });
        voters
    }

    /// Nodes to read from, in order. Strong: a voter here answers by itself; else the leader.
    /// Eventual: this node, then those of this region, then any. Those last that do not answer, or
    /// have refused lately.
    fn readers(&self, shard: ShardId, consistency: Consistency) -> Vec<NodeId> {
        let now = self.clock.now();
        if consistency == Consistency::Strong {
            let mut voters = self.voters(shard);
            let votes = self.nodes.local_voter(shard).is_some();
            voters.sort_by_cached_key(|voter| {
                let refuses = self.refusals.avoid(now, *voter, shard, consistency);
                let here =
                    votes && Some(*voter) == self.local_node && !self.reach.is_silent(now, *voter);
                (refuses, !here)
            });
            return voters;
        }
        let known = self.directory.known();
        let mut nodes: Vec<_> = known.cluster.present_nodes().collect();
        nodes.sort_by_cached_key(|(id, node)| {
            let far = self.reach.measured(*id).unwrap_or_default();
            let elsewhere = node.region != self.region;
            let avoided =
                self.refusals.avoid(now, *id, shard, consistency) || self.reach.avoid(now, *id);
            (avoided, Some(*id) != self.local_node, elsewhere, far, *id)
        });
        nodes.into_iter().map(|(id, _)| id).collect()
    }

    /// The sequence that an eventual read must not be older than. What a failover took back is not
    /// held against those who never had it.
    fn min_sequence(&self, (shard, epoch): (ShardId, Epoch)) -> u64 {
        let Some(shown) = self.shown.lock().get(&shard).copied() else { return 0 };
        if shown.epoch == epoch {
            return shown.sequence;
        }
        let history = self.directory.shard(shard).map(|shard| EpochHistory::new(shard.bases));
        match history.and_then(|history| history.leaves(shown)) {
            Some((_, base)) => base.sequence,
            None => shown.sequence,
        }
    }

    fn has_shown(&self, shard: ShardId, position: Position) {
        let mut shown = self.shown.lock();
        let newest = shown.entry(shard).or_insert(Position::ZERO);
        *newest = (*newest).max(position);
    }

    /// A read that this node may have at once, since what it reads is in memory, is had without a
    /// timer and without being hedged. One that takes longer goes on among the others. `None`:
    /// others are to be asked first.
    async fn read_here(&self, now: Duration, read: &Arc<Read>) -> Option<Here> {
        let (node, shard) = (self.local_node?, self.shard(read.database).ok()?);
        let strong = read.consistency == Consistency::Strong;
        let is_first = (!strong || self.nodes.local_voter(shard.0).is_some())
            && !self.reach.is_silent(now, node)
            && !self.refusals.has_refused(node, shard.0, read.consistency);
        if !is_first {
            return None;
        }
        let working = Arc::new(Notify::new());
        let mut call = self.nodes.read(
            node,
            shard,
            read,
            self.min_sequence(shard),
            Arc::clone(&working),
            None,
        );
        let call = match futures::poll!(&mut call) {
            Poll::Ready(Ok(Answering { position, leader, ranges })) => {
                let ranges = ranges.await.ok()?;
                self.leaders.read_here(now, shard.0, node, leader.filter(|_| strong));
                if !strong {
                    self.has_shown(shard.0, position);
                }
                return Some(Here::Read(ReadOutput { ranges }));
            }
            Poll::Ready(Err(failed)) => ready(Err(failed)).boxed(),
            Poll::Pending => call,
        };
        Some(Here::Begun(Begun { shard, working, call }))
    }

    /// Waits before another round: longer each time, and until it is paid for; or until the shard
    /// is served again, or has moved since the round began. News of the rest of the cluster puts
    /// nothing off. False: `left` ran out.
    async fn pause(
        &self,
        pursuit: &mut Pursuit,
        shard: (ShardId, Epoch),
        budget: &Budget,
        mut found: watch::Receiver<Revival>,
        known: watch::Receiver<Arc<Known>>,
        left: Duration,
    ) -> bool {
        let until = self.clock.now() + left;
        let moved = self.moved(pursuit.database, shard, known);
        tokio::pin!(moved);
        let spread = || {
            let spread = rand::random_range(Duration::ZERO..REVIVAL_SPREAD);
            self.clock.sleep_until(self.clock.now() + spread)
        };
        let mut next = self.clock.now() + pursuit.next_pause();
        loop {
            tokio::select! {
                () = self.clock.sleep_until(next.min(until)) => {
                    if next >= until {
                        return false;
                    }
                    if budget.pays(self.clock.now(), pursuit.bytes) {
                        return true;
                    }
                    next = self.clock.now() + pursuit.next_pause();
                }
                Ok(()) = found.changed() => {
                    spread().await;
                    return true;
                }
                () = &mut moved => {
                    // How often others failed, or did not answer, says nothing of those who have it
                    // now.
                    (pursuit.rounds, pursuit.lost) = (1, None);
                    spread().await;
                    return true;
                }
            }
        }
    }

    /// Ends when what is `known` has changed so that the database is elsewhere than in that epoch
    /// of that shard. For one that is gone nobody else is to be asked, and what is under way may
    /// have an answer yet.
    async fn moved(
        &self,
        database: DatabaseId,
        shard: (ShardId, Epoch),
        mut known: watch::Receiver<Arc<Known>>,
    ) {
        while known.changed().await.is_ok() {
            if self.shard(database).is_ok_and(|present| present != shard) {
                return;
            }
        }
        std::future::pending().await
    }

    /// One after the other, each when those before are late.
    #[allow(clippy::type_complexity, reason = "each of them is a closure that has no other name")]
    fn hedging<Late: Fn(NodeId) -> Failed, Moved: Future<Output = ()>>(
        &self,
        at_a_time: usize,
        budget: &Budget,
        bytes: usize,
        found: &watch::Receiver<Revival>,
        moved: Moved,
        not_answered: Late,
    ) -> Hedging<
        '_,
        C,
        impl Fn(NodeId) -> Duration,
        impl Fn() -> bool,
        Late,
        impl Fn(NodeId, Duration) -> bool,
        Moved,
    > {
        let delay = |node| HEDGE_AFTER + self.reach.round_trip(node);
        let pays = move || budget.pays(self.clock.now(), bytes);
        let is_silent = |node, since| {
            let said_by = since + SAYS_THAT_IT_IS_AT_WORK + self.reach.round_trip(node);
            said_by <= self.clock.now() && !self.reach.was_heard_since(since, node)
        };
        let found = found.clone();
        let refusal_is_free = false;
        Hedging {
            clock: &self.clock,
            delay,
            at_a_time,
            is_silent,
            pays,
            refusal_is_free,
            not_answered,
            found,
            moved,
        }
    }

    /// One try, to the first byte of its answer. A node that is at work on it is waited for until
    /// `latest`. What has not left by then, for want of a connection, is kept here: it did nothing.
    async fn within<T>(
        &self,
        node: NodeId,
        latest: Duration,
        working: &Notify,
        departure: &Departure,
        call: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let asked = self.clock.now();
        let timeout = ATTEMPT_TIMEOUT + 2 * self.reach.round_trip(node);
        let mut until = asked + timeout;
        tokio::pin!(call);
        let mut is_dead = false;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut call => break result,
                () = working.notified() => {
                    let now = self.clock.now();
                    self.reach.heard(now, node);
                    until = until.max((now + timeout).min(latest));
                }
                () = async { self.clock.sleep_until(until).await } => {
                    let waited = self.clock.now().saturating_sub(asked);
                    // A node that is slow is given more time. One that is gone is not, though
                    // others may have heard it after this asked: each of those who ask it would
                    // have the next wait longer, and miss that the shard has moved.
                    is_dead = !self.reach.is_heard(self.clock.now(), node);
                    break Err(departure.not_answered(format!("no answer within {} ms", waited.as_millis())));
                }
            }
        };
        if Some(node) != self.local_node
            && !is_dead
            && !matches!(result, Err(Failed::Unreachable(_)))
        {
            self.reach.took(node, self.clock.now().saturating_sub(asked));
        }
        result
    }

    /// Keeps in mind whether the node answered at all, and who leads.
    fn heard<T>(&self, shard: ShardId, node: NodeId, result: &Result<T, Failed>) {
        let now = self.clock.now();
        match result {
            Err(Failed::Unreachable(_)) => self.reach.is_cut_off(now, node),
            Err(Failed::Unknown(_)) => self.reach.was_silent(now, node),
            _ => self.reach.heard(now, node),
        }
        match result {
            Err(Failed::NotLeader(Some(hint))) if *hint != node => self.leaders.named(shard, *hint),
            Err(_) => self.leaders.failed(shard, node),
            Ok(_) => {}
        }
    }

    /// One round had an answer. Those who are `late` were asked, and others were faster.
    fn answered(&self, pursuit: &Pursuit, budget: &Budget, late: &[NodeId]) {
        let now = self.clock.now();
        late.iter().for_each(|node| self.reach.was_silent(now, *node));
        if pursuit.rounds > 0 {
            budget.answered(now);
        }
    }

    async fn try_write(
        &self,
        shard: (ShardId, Epoch),
        write: &Arc<Write>,
        attempt: WriteTry,
        departure: Arc<Departure>,
    ) -> Result<Written, Failed> {
        if attempt.retry && self.clock.now() >= attempt.expires_at {
            return Err(Failed::Unknown("its outcome may be forgotten by now".to_owned()));
        }
        let call = self.nodes.write(shard, write, attempt, Arc::clone(&departure));
        self.within(attempt.node, Duration::ZERO, &Notify::new(), &departure, call).await
    }

    /// Whether a voter is to pass a write on: the leader does not answer this gateway, which says
    /// nothing of others.
    fn passes_on(&self, shard: ShardId, attempt: &hedge::Try) -> bool {
        let cut_off = || {
            self.leaders.hint(shard).is_some_and(|hint| {
                hint != attempt.node && self.reach.is_silent(self.clock.now(), hint)
            })
        };
        attempt.late.is_some() || cut_off()
    }
}

impl<N: Nodes, C: Clock> Database for Router<N, C> {
    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        let started = self.clock.now();
        let read = Arc::new(read);
        let strong = read.consistency == Consistency::Strong;
        let mut begun = match self.read_here(started, &read).await {
            Some(Here::Read(output)) => return Ok(output),
            Some(Here::Begun(begun)) => Some(begun),
            None => None,
        };
        let mut pursuit = Pursuit::new(read.database, 0);
        // For an answer that was larger than what was free.
        let mut room = None;
        loop {
            // Anew each time: it may have moved on.
            let known = self.directory.watch();
            let shard = self.shard(read.database)?;
            let (budget, found) = self.leaders.of(shard.0);
            if pursuit.rounds == 0 && room.is_none() {
                budget.first_try(self.clock.now());
            }
            let min_sequence = self.min_sequence(shard);
            // What is eventual is as good from any epoch: whoever is at work on it is waited for.
            let known_then = known.clone();
            let moved = async {
                match strong {
                    true => self.moved(read.database, shard, known_then).await,
                    false => std::future::pending().await,
                }
            };
            let round = hedge::round(
                self.readers(shard.0, read.consistency),
                pursuit.lost,
                Hedging {
                    refusal_is_free: true,
                    ..self.hedging(READS_AT_A_TIME, &budget, pursuit.bytes, &found, moved, |_| {
                        no_answer()
                    })
                },
                |attempt| {
                    let here = begun.take().filter(|begun| {
                        begun.shard == shard && Some(attempt.node) == self.local_node
                    });
                    let (working, call) = match here {
                        Some(Begun { working, call, .. }) => (working, call),
                        None => {
                            let working = Arc::new(Notify::new());
                            let reporting = Arc::clone(&working);
                            (
                                working,
                                self.nodes.read(
                                    attempt.node,
                                    shard,
                                    &read,
                                    min_sequence,
                                    reporting,
                                    room.take(),
                                ),
                            )
                        }
                    };
                    let latest = started + self.deadline;
                    // Whether a read has left makes no difference to anybody.
                    let departure = Departure::default();
                    departure.leave();
                    async move { self.within(attempt.node, latest, &working, &departure, call).await }
                },
                |_, _| true,
                |node, tried| {
                    self.heard(shard.0, node, tried);
                    self.refusals.told(self.clock.now(), node, shard.0, read.consistency, tried);
                },
            );
            let reason = match round.await {
                Round::Answer { node, answer: Answering { position, leader, ranges }, late } => {
                    self.answered(&pursuit, &budget, &late);
                    match leader {
                        Some(leader) if strong => {
                            self.leaders.answered(self.clock.now(), shard.0, node, leader)
                        }
                        _ => {}
                    }
                    pursuit.lost = None;
                    match ranges.await {
                        Ok(ranges) => {
                            if !strong {
                                self.has_shown(shard.0, position);
                            }
                            return Ok(ReadOutput { ranges });
                        }
                        Err(BrokenOff::Failed(reason)) => reason,
                        Err(BrokenOff::ForRoom(held))
                            if self.clock.now() < started + self.deadline =>
                        {
                            room = Some(held);
                            continue;
                        }
                        Err(BrokenOff::ForRoom(_)) => {
                            "this process was short of memory for reads".to_owned()
                        }
                    }
                }
                Round::Nothing { reason, lost, .. } => {
                    pursuit.lost = lost;
                    reason
                }
            };
            let left = (started + self.deadline).saturating_sub(self.clock.now());
            if left.is_zero() || !self.pause(&mut pursuit, shard, &budget, found, known, left).await
            {
                return Err(unavailable(format!("shard {} cannot be read now: {reason}", shard.0)));
            }
        }
    }

    /// Tries the leader, and goes on with the same request id until the outcome is known: what was
    /// tried and is unknown may have committed, and whoever leads next can tell.
    ///
    /// No later than ids may be forgotten, however long this process stood still: nothing is sent
    /// again then, and what was sent and arrives later is refused.
    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        let started = self.clock.now();
        let expires_at = started + UNKNOWN_DEADLINE;
        let mut pursuit = Pursuit::new(write.database, bytes_of(&write.transaction));
        let write = Arc::new(write);
        // Why an earlier try may have committed.
        let mut unknown: Option<String> = None;
        loop {
            // Anew each time: a new epoch knows the request ids of those before.
            let known = self.directory.watch();
            let shard =
                self.shard(write.database).map_err(|gone| failure(unknown.take(), gone.reason))?;
            let (budget, found) = self.leaders.of(shard.0);
            if pursuit.rounds == 0 {
                budget.first_try(self.clock.now());
            }
            let retried = unknown.is_some();
            // Of the latest try at each node.
            let departures = Mutex::new(BTreeMap::<NodeId, Arc<Departure>>::new());
            let not_answered = |node| match departures.lock().get(&node) {
                Some(departure) => departure.not_answered("no answer in time".to_owned()),
                None => no_answer(),
            };
            let moved = self.moved(write.database, shard, known.clone());
            let round = hedge::round(
                self.voters(shard.0),
                pursuit.lost,
                self.hedging(WRITES_AT_A_TIME, &budget, pursuit.bytes, &found, moved, not_answered),
                |attempt| {
                    let retry = retried || attempt.overlaps;
                    let pass_on = self.passes_on(shard.0, &attempt);
                    let attempt = WriteTry {
                        node: attempt.node,
                        retry,
                        late: attempt.late,
                        pass_on,
                        expires_at,
                    };
                    let departure = Arc::<Departure>::default();
                    departures.lock().insert(attempt.node, Arc::clone(&departure));
                    let tried = self.try_write(shard, &write, attempt, departure);
                    async move { Ok((tried.await?, retry)) }
                },
                // What did not commit is binding once it is logged: else a try that overtook it may
                // commit yet.
                |(written, logged), overtaken| {
                    *logged || !overtaken || matches!(written.outcome, WriteOutcome::Committed(_))
                },
                |node, tried| self.heard(shard.0, node, tried),
            );
            let reason = match round.await {
                Round::Answer { node, answer: (written, _), late } => {
                    self.answered(&pursuit, &budget, &late);
                    self.leaders.answered(
                        self.clock.now(),
                        shard.0,
                        node,
                        written.leader.unwrap_or(node),
                    );
                    return Ok(written.outcome);
                }
                Round::Nothing { reason, unknown: maybe, lost } => {
                    pursuit.lost = lost;
                    if maybe {
                        unknown = Some(reason.clone());
                    }
                    reason
                }
            };
            let limit = if unknown.is_some() { UNKNOWN_DEADLINE } else { self.deadline };
            let left = (started + limit).saturating_sub(self.clock.now());
            if left.is_zero() || !self.pause(&mut pursuit, shard, &budget, found, known, left).await
            {
                return Err(failure(
                    unknown,
                    format!("shard {} cannot be written now: {reason}", shard.0),
                ));
            }
        }
    }
}

/// About what a try of it sends.
fn bytes_of(transaction: &Transaction) -> usize {
    use meridian_types::MutationKind::{Delete, Max, Min, Set, SetSuffixVersionstampedKey, Sum};
    let checks = transaction.checks.iter().map(|check| check.key.len());
    let mutations = transaction.mutations.iter().map(|mutation| match &mutation.kind {
        Set(value)
        | Min(value)
        | Max(value)
        | SetSuffixVersionstampedKey(value)
        | Sum { operand: value, .. } => mutation.key.len() + value.data.len(),
        Delete => mutation.key.len(),
    });
    checks.chain(mutations).sum()
}

/// Why a write has no outcome. That it did not commit is said only where no try of it may have.
fn failure(unknown: Option<String>, reason: String) -> WriteFailure {
    match unknown {
        Some(why) => WriteFailure::Unknown(why),
        None => WriteFailure::NotCommitted(unavailable(reason)),
    }
}

fn no_answer() -> Failed {
    Failed::Unknown("no answer in time".to_owned())
}

fn unavailable(reason: String) -> Unavailable {
    Unavailable { reason }
}

#[cfg(test)]
mod tests;
