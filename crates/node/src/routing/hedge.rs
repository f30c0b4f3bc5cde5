//! One question put to several nodes: the next is asked when the one before fails, or takes too
//! long.
//!
//! Known as hedged requests (Dean and Barroso, "The Tail at Scale", 2013). An answer that is late
//! is still welcome when it comes. [`Attempt`] decides, [`drive`] carries out.

mod attempt;

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use meridian_types::NodeId;
use tokio::sync::watch;

use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use attempt::{Event, Step};

pub(crate) use attempt::{Attempt, Bounds, Patience, Try};

/// The result of one attempt.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// Of this node. Late nodes were asked long before it, and have not answered yet.
    Answer { node: NodeId, answer: T, late: Vec<NodeId> },
    /// Why no node had an answer, why a try may have done something (if one may), and which did
    /// not answer. `busy`: the database has its share, and no node is to be asked at once.
    Nothing { reason: String, unknown: Option<String>, lost: Option<NodeId>, busy: bool },
}

/// The surroundings that an attempt under way looks at.
pub(crate) trait Surroundings: Patience {
    /// Pays for another try, beyond the first and those at a node that is named as the leader;
    /// false, where there is nothing left to spend.
    fn pays(&self) -> bool;
}

/// The clock, the surroundings and the news that drive an attempt.
pub(crate) struct Driving<'a, C, S> {
    pub(crate) clock: &'a C,
    pub(crate) surroundings: &'a S,
    /// The leader that another operation finds meanwhile. A leader that was found before this was
    /// subscribed to is not told.
    pub(crate) found: watch::Receiver<Option<NodeId>>,
}

/// A call under way.
pub(crate) struct Asked<F> {
    pub(crate) call: F,
    /// By which the call can be taken back while it has not left; `None` where it makes no
    /// difference whether it has.
    pub(crate) departure: Option<Arc<Departure>>,
}

/// Carries one attempt out. `moved` ends when other nodes have the shard. `binds` says whether an
/// answer counts although another node was asked later; `ended` sees how every
/// try ended.
///
/// To drop it drops all calls that are under way.
pub(crate) async fn drive<T, F>(
    mut attempt: Attempt,
    driving: Driving<'_, impl Clock, impl Surroundings>,
    moved: impl Future<Output = ()>,
    mut ask: impl FnMut(Try) -> Asked<F>,
    binds: impl Fn(&T) -> bool,
    ended: impl Fn(NodeId, Result<(), &Failed>),
) -> Outcome<T>
where
    F: Future<Output = Result<T, Failed>>,
{
    let Driving { clock, surroundings, mut found } = driving;
    tokio::pin!(moved);
    let mut in_flight = FuturesUnordered::new();
    let mut departures = Vec::new();
    let mut answered = None;
    let mut event = Event::Begun;
    loop {
        match attempt.step(clock.now(), event, surroundings) {
            Step::Ask(tried) => {
                let (node, Asked { call, departure }) = (tried.node, ask(tried));
                departures.extend(departure.map(|departure| (node, departure)));
                in_flight.push(async move { (node, call.await) });
            }
            Step::Wait => {}
            Step::Pay => {
                event = Event::Paid(surroundings.pays());
                continue;
            }
            Step::GiveUp(node) => {
                let failed = take_back(node, &departures);
                // That it has not answered yet for an epoch that is over says nothing of it.
                if !attempt.has_moved() {
                    ended(node, Err(&failed));
                }
                event = Event::GivenUp { node, failed };
                continue;
            }
            Step::Accept { late } => {
                if let Some((node, answer)) = answered.take() {
                    return Outcome::Answer { node, answer, late };
                }
            }
            Step::Nothing { reason, unknown, lost, busy } => {
                return Outcome::Nothing { reason, unknown, lost, busy };
            }
        }
        let (listens, wakes_at) = (!attempt.has_moved(), attempt.wakes_at(surroundings));
        event = tokio::select! {
            // Most answers are there when they are asked for: then nothing else is looked at, and
            // no timer is made.
            biased;
            Some((node, result)) = in_flight.next() => {
                ended(node, result.as_ref().map(drop));
                match result {
                    Ok(answer) => {
                        let binds = binds(&answer);
                        answered = Some((node, answer));
                        Event::Answered { node, binds }
                    }
                    Err(failed) => Event::Failed { node, failed },
                }
            }
            Ok(()) = found.changed(), if listens => Event::Found(*found.borrow_and_update()),
            () = &mut moved, if listens => Event::Moved,
            () = async { clock.sleep_until(wakes_at.unwrap_or_default()).await }, if wakes_at.is_some() => Event::Woken,
            // Nothing is under way: the machine says so.
            else => Event::Woken,
        };
    }
}

/// Why a node gave nothing that is not waited for any more: what had not left did nothing.
fn take_back(node: NodeId, departures: &[(NodeId, Arc<Departure>)]) -> Failed {
    let reason = "no answer in time".to_owned();
    match departures.iter().rev().find(|(asked, _)| *asked == node) {
        Some((_, departure)) => departure.not_answered(reason),
        None => Failed::Unknown(reason),
    }
}

#[cfg(test)]
mod tests;
