use meridian_types::{NodeId, Position};

use crate::clock::{Instant, MS, SECOND};
use crate::message::{Message, Operation};
use crate::rng::Rng;

/// Clients have ids from here on.
pub(crate) const FIRST_CLIENT: NodeId = 1000;

const ATTEMPT_TIMEOUT: Instant = 400 * MS;
/// Then nobody waits any more, and the outcome is not known.
const DEADLINE: Instant = 20 * SECOND;

#[derive(Debug)]
struct Pending {
    operation: Operation,
    floor: Position,
    began: Instant,
    /// The attempt under way.
    call: u64,
    sent_at: Instant,
}

/// A gateway with one request at a time: it tries again with the same id, wherever somebody may know.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: NodeId,
    pub(crate) region: String,
    pending: Option<Pending>,
    calls: u64,
    leader: Option<NodeId>,
    turn: usize,
    next_at: Instant,
    /// Writes that were acknowledged, and when the last one was.
    pub(crate) acked_at: Instant,
}

impl Client {
    pub(crate) fn new(id: NodeId, region: &str) -> Self {
        Self {
            id,
            region: region.to_owned(),
            pending: None,
            calls: 0,
            leader: None,
            turn: 0,
            next_at: 0,
            acked_at: 0,
        }
    }

    /// What it sends now, if anything. `request` gives a new id.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        nodes: &[NodeId],
        floor: Position,
        request: &mut u64,
        admits: bool,
    ) -> Option<(NodeId, Message)> {
        if self.pending.as_ref().is_some_and(|pending| now > pending.began + DEADLINE) {
            self.pending = None;
        }
        match &mut self.pending {
            None => {
                if now < self.next_at || !admits {
                    return None;
                }
                let operation = if rng.chance(700) {
                    *request += 1;
                    Operation::Write { request: *request }
                } else {
                    Operation::Read
                };
                self.calls += 1;
                self.pending = Some(Pending { operation, floor, began: now, call: self.calls, sent_at: now });
            }
            Some(pending) => {
                if now < pending.sent_at + ATTEMPT_TIMEOUT {
                    return None;
                }
                self.leader = None;
                self.calls += 1;
                (pending.call, pending.sent_at) = (self.calls, now);
            }
        }
        let pending = self.pending.as_ref()?;
        if self.leader.is_none() {
            self.turn += 1;
        }
        let to = self.leader.or_else(|| nodes.get(self.turn % nodes.len().max(1)).copied())?;
        let Pending { call, operation, floor, .. } = *pending;
        Some((to, Message::Request { call, operation, floor }))
    }

    pub(crate) fn receive(&mut self, now: Instant, rng: &mut Rng, from: NodeId, message: &Message) {
        let Some(pending) = &mut self.pending else { return };
        match message {
            Message::Answer { call, .. } => {
                // An answer to an earlier attempt is an answer.
                if *call > self.calls || now < pending.began {
                    return;
                }
                if *call == pending.call || *call + 1 == pending.call {
                    if let Operation::Write { .. } = pending.operation {
                        self.acked_at = now;
                    }
                    self.leader = Some(from);
                    self.pending = None;
                    self.next_at = now + rng.between(10, 120) * MS;
                }
            }
            Message::NotHere { call, leader } if *call == pending.call => {
                self.leader = *leader;
                // Not at once: nobody leads for a while.
                pending.sent_at = (now + 40 * MS).saturating_sub(ATTEMPT_TIMEOUT);
                if let Some(leader) = leader {
                    self.turn = usize::try_from(*leader).unwrap_or(0);
                }
            }
            _ => {}
        }
    }
}
