//! One question put to several nodes: the next is asked when the one before fails, or takes too
//! long.
//!
//! Known as hedged requests (Dean and Barroso, "The Tail at Scale", 2013). An answer that is late
//! is still welcome when it comes.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use meridian_types::NodeId;
use tokio::sync::watch;

use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::routing::revival::Revival;

/// How often it is looked whether those who were asked are silent, while no more may be asked.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// One try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Try {
    pub(crate) node: NodeId,
    /// Of the round, one that may do something yet.
    pub(crate) overlaps: bool,
    /// A node that was asked before, in this round or the one before, and does not answer or leads
    /// no more.
    pub(crate) late: Option<NodeId>,
}

/// What came of one round.
#[derive(Debug)]
pub(crate) enum Round<T> {
    /// Of this node. Those who were asked long before it have not answered yet.
    Answer { node: NodeId, answer: T, late: Vec<NodeId> },
    /// Why nobody had an answer, whether a try may have done something, and who did not answer.
    Nothing { reason: String, unknown: bool, lost: Option<NodeId> },
}

/// How a round goes on while an answer is waited for.
pub(crate) struct Hedging<'a, C, Delay, Pays, Late, Silent, Moved> {
    pub(crate) clock: &'a C,
    /// After so long without an answer of a node the next one is asked.
    pub(crate) delay: Delay,
    /// Asked at a time, at most; those who are silent do not count.
    pub(crate) at_a_time: usize,
    /// Whether nothing at all was heard of the node since that time, long enough for it to have
    /// said that it is at work.
    pub(crate) is_silent: Silent,
    /// Whether another try may be made, beyond the first and those at a node that is named as the
    /// leader.
    pub(crate) pays: Pays,
    /// Once in the round the next try costs nothing, where a node refused at once: it did no work.
    pub(crate) refusal_is_free: bool,
    /// Why a node gave nothing that is not waited for any more.
    pub(crate) not_answered: Late,
    /// Who is found to lead meanwhile. What was found before this was subscribed to is not told.
    pub(crate) found: watch::Receiver<Revival>,
    /// Ends when none of the nodes is to be asked any more, since others have the shard.
    pub(crate) moved: Moved,
}

struct Pending {
    node: NodeId,
    asked: Duration,
    /// Another was asked since.
    overtaken: bool,
}

/// Asks the nodes in this order, each once, and once more whoever is named or found as the leader.
/// `lost` did not answer in the round before. `told` hears of every try that ended. `accepts` says
/// whether an answer counts, given whether another node was asked after the one that gave it.
///
/// Those who are late are not waited for when all others have answered, and none that has says that
/// one of them leads, or when the shard has moved: what they may have done is unknown then.
pub(crate) async fn round<T, F>(
    nodes: Vec<NodeId>,
    mut lost: Option<NodeId>,
    hedging: Hedging<
        '_,
        impl Clock,
        impl Fn(NodeId) -> Duration,
        impl Fn() -> bool,
        impl Fn(NodeId) -> Failed,
        impl Fn(NodeId, Duration) -> bool,
        impl Future<Output = ()>,
    >,
    mut ask: impl FnMut(Try) -> F,
    accepts: impl Fn(&T, bool) -> bool,
    told: impl Fn(NodeId, &Result<T, Failed>),
) -> Round<T>
where
    F: Future<Output = Result<T, Failed>>,
{
    let Hedging {
        clock,
        delay,
        at_a_time,
        is_silent,
        pays,
        mut refusal_is_free,
        not_answered,
        mut found,
        moved,
    } = hedging;
    tokio::pin!(moved);
    let mut has_moved = false;
    let mut next = VecDeque::from(nodes);
    let (mut in_flight, mut pending) = (FuturesUnordered::new(), Vec::<Pending>::new());
    let (mut hinted, mut refused, mut named) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut unknown, mut why) = (false, None);
    // One that answered says that none of those who are waited for leads.
    let mut leads_elsewhere = false;
    let mut start = true;
    let mut hedge_at = clock.now();
    loop {
        if std::mem::take(&mut start)
            && let Some(node) = next.pop_front()
        {
            let overlaps = unknown || !pending.is_empty();
            let attempt = ask(Try {
                node,
                overlaps,
                late: lost.or_else(|| pending.first().map(|first| first.node)),
            });
            pending.iter_mut().for_each(|earlier| earlier.overtaken = true);
            pending.push(Pending { node, asked: clock.now(), overtaken: false });
            hedge_at = clock.now() + delay(node);
            in_flight.push(async move { (node, attempt.await) });
        }
        if pending.is_empty() && next.is_empty() {
            let reason = why.unwrap_or_else(|| "it has no leader at present".to_owned());
            return Round::Nothing { reason, unknown, lost };
        }
        let late_at = |pending: &Pending| pending.asked + delay(pending.node);
        let in_vain = has_moved
            || leads_elsewhere
                && next.is_empty()
                && pending.iter().all(|one| !named.contains(&one.node));
        let give_up_at = pending.iter().map(late_at).max().filter(|_| in_vain);
        tokio::select! {
            // Most answers are there when they are asked for: then nothing else is looked at, and
            // no timer is made.
            biased;
            Some((node, result)) = in_flight.next() => {
                told(node, &result);
                let at = pending.iter().position(|pending| pending.node == node);
                let ended = at.map(|at| pending.remove(at));
                let overtaken = ended.as_ref().is_some_and(|ended| ended.overtaken);
                let failed = match result {
                    Ok(answer) if accepts(&answer, overtaken) => {
                        let late = pending.iter().filter(|pending| late_at(pending) <= clock.now());
                        return Round::Answer { node, answer, late: late.map(|pending| pending.node).collect() };
                    }
                    Ok(_) => Failed::Unknown("the answer came when another node had been asked".to_owned()),
                    Err(failed) => failed,
                };
                unknown |= matches!(failed, Failed::Unknown(_));
                if !matches!(failed, Failed::NotLeader(Some(_)) | Failed::NotDone(_)) {
                    lost = lost.or(Some(node));
                }
                let free = ended.is_some_and(|ended| late_at(&ended) > clock.now())
                    && matches!(failed, Failed::NotLeader(None) | Failed::NotDone(_));
                let is_pending = |node: NodeId| pending.iter().any(|pending| pending.node == node);
                match failed {
                    Failed::NotLeader(Some(leader)) if is_pending(leader) => drop(named.insert(leader)),
                    Failed::NotLeader(Some(leader))
                        if !has_moved && !refused.contains(&leader) && hinted.insert(leader) =>
                    {
                        leads_elsewhere = true;
                        named.insert(leader);
                        next.retain(|node| *node != leader);
                        next.push_front(leader);
                        start = true;
                    }
                    Failed::NotLeader(_) => leads_elsewhere = true,
                    Failed::NotDone(reason) => {
                        refused.insert(node);
                        why = Some(reason);
                    }
                    Failed::Unreachable(reason) | Failed::Unknown(reason) => why = Some(reason),
                }
                if !start && pending.is_empty() && !next.is_empty() {
                    match free && std::mem::take(&mut refusal_is_free) || pays() {
                        true => start = true,
                        false => next.clear(),
                    }
                } else if pending.iter().all(|one| late_at(one) <= clock.now()) {
                    // Whoever was asked because of them knows nothing: the next is asked at once.
                    hedge_at = clock.now();
                }
            }
            Ok(()) = found.changed(), if !has_moved => {
                let leader = found.borrow_and_update().leader;
                if let Some(leader) = leader.filter(|leader| !pending.iter().any(|one| one.node == *leader))
                    && hinted.insert(leader)
                {
                    leads_elsewhere = true;
                    named.insert(leader);
                    next.retain(|node| *node != leader);
                    next.push_front(leader);
                    start = true;
                }
            }
            () = &mut moved, if !has_moved => {
                has_moved = true;
                next.clear();
            }
            () = async { clock.sleep_until(hedge_at).await }, if !next.is_empty() => {
                let at_work = || pending.iter().filter(|one| !is_silent(one.node, one.asked)).count();
                match pending.len() < at_a_time || at_work() < at_a_time {
                    true if pays() => start = true,
                    true => hedge_at = clock.now() + pending.last().map_or(Duration::ZERO, |last| delay(last.node)),
                    // Until one of those who were asked turns out to be silent.
                    false => hedge_at = clock.now() + LOOK_AGAIN,
                }
            }
            () = async { clock.sleep_until(give_up_at.unwrap_or(hedge_at)).await }, if give_up_at.is_some() => {
                for Pending { node, .. } in pending.drain(..) {
                    let failed = not_answered(node);
                    unknown |= matches!(failed, Failed::Unknown(_));
                    lost = lost.or(Some(node));
                    // That it has not answered yet for an epoch that is over says nothing of it.
                    if !has_moved {
                        told(node, &Err(failed));
                    }
                }
            }
            else => {}
        }
    }
}

#[cfg(test)]
mod tests;
