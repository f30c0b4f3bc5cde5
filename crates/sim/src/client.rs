//! Clients: each a gateway with one request at a time.

use meridian_types::{NodeId, Position};

use crate::clock::{Instant, MS, SECOND};
use crate::message::{Message, Operation};
use crate::rng::Rng;

/// Clients have ids from here on.
pub(crate) const FIRST_CLIENT: NodeId = NodeId(1000);

const ATTEMPT_TIMEOUT: Instant = 400 * MS;
/// Then the client waits no more, and the outcome is not known.
const DEADLINE: Instant = 20 * SECOND;

#[derive(Debug)]
struct Pending {
    operation: Operation,
    floor: Position,
    began: Instant,
    first_call: u64,
    retry_at: Instant,
}

/// A gateway with one request at a time: it tries again with the same id, at every node
/// that may know.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: NodeId,
    pub(crate) region: String,
    pending: Option<Pending>,
    /// The newest attempt.
    call: u64,
    /// The node that is said to lead.
    leader: Option<NodeId>,
    turn: usize,
    next_at: Instant,
    /// When a write was last acknowledged.
    pub(crate) acked_at: Instant,
}

impl Client {
    pub(crate) fn new(id: NodeId, region: &str) -> Self {
        Self {
            id,
            region: region.to_owned(),
            pending: None,
            call: 0,
            leader: None,
            turn: 0,
            next_at: 0,
            acked_at: 0,
        }
    }

    /// The next request of the client, if it has any; `write` makes a write.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        nodes: &[NodeId],
        floor: Position,
        write: impl FnOnce() -> Operation,
    ) -> Option<(NodeId, Message)> {
        self.pending.take_if(|pending| now > pending.began + DEADLINE);
        if self.pending.is_none() {
            if now < self.next_at {
                return None;
            }
            let operation = if rng.chance(700) { write() } else { Operation::Read };
            let (began, first_call) = (now, self.call + 1);
            self.pending = Some(Pending { operation, floor, began, first_call, retry_at: now });
        }
        let pending = self.pending.as_mut().filter(|pending| now >= pending.retry_at)?;
        pending.retry_at = now + ATTEMPT_TIMEOUT;
        self.call += 1;
        self.turn += 1;
        let to =
            self.leader.take().or_else(|| nodes.get(self.turn % nodes.len().max(1)).copied())?;
        let Pending { operation, floor, .. } = *pending;
        Some((to, Message::Request { call: self.call, operation, floor }))
    }

    /// The write that is acknowledged by that, if one is.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        from: NodeId,
        message: &Message,
    ) -> Option<(u64, Position)> {
        let pending = self.pending.as_mut()?;
        match message {
            // An answer to an earlier attempt is an answer.
            Message::Answer { call, position } if *call >= pending.first_call => {
                let operation = pending.operation;
                self.leader = Some(from);
                self.next_at = now + rng.between(10, 120) * MS;
                self.pending = None;
                if let Operation::Write { request, .. } = operation {
                    self.acked_at = now;
                    return Some((request, *position));
                }
            }
            Message::NotHere { call, leader } if *call == self.call => {
                self.leader = *leader;
                pending.retry_at = now + if leader.is_some() { 5 * MS } else { 30 * MS };
            }
            _ => {}
        }
        None
    }
}
