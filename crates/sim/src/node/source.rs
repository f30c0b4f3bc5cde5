//! The streams that a node serves to its followers.

use std::sync::Arc;
use std::time::Duration;

use meridian_shipping::{
    BatchSize, Heartbeat, Sender, SenderAction, SenderConfig, SenderEvent, Status,
};
use meridian_types::{Epoch, NodeId, Position};

use super::part::Part;
use super::replica::BATCH_BYTES;
use super::{Context, Node};
use crate::clock::wall_ms;
use crate::message::{Link, Message, Shipped, end_of, len_at};

const STATUS_EVERY: Duration = Duration::from_millis(300);

impl Node {
    fn status(&self, at: Duration) -> Option<Status> {
        match &self.part {
            Part::None => None,
            Part::Voter(voter) => {
                Some(Status::of_primary_member(self.id, voter.epoch, self.end(), Duration::ZERO))
            }
            Part::Replica(replica) => Some(replica.receiver.status(at, self.id)),
        }
    }

    fn may_serve(&self) -> bool {
        match &self.part {
            Part::None => false,
            Part::Voter(voter) => voter.seeded,
            Part::Replica(replica) => replica.receiver.may_serve(),
        }
    }

    fn tail(&self) -> SenderEvent {
        let purged = end_of(self.disk.history.get(..self.disk.purged).unwrap_or(&[]));
        SenderEvent::LogTail { purged, available: self.end() }
    }

    pub(super) fn tick_senders(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        if at >= self.next_status {
            self.next_status = at + STATUS_EVERY;
            if let Some(status) = self.status(at) {
                let others: Vec<_> =
                    self.disk.cluster.nodes.keys().copied().filter(|id| *id != self.id).collect();
                others.into_iter().for_each(|other| context.send(other, Message::Status(status)));
            }
        }
        let tail = self.tail();
        let links: Vec<_> = self.senders.keys().copied().collect();
        for link in links {
            self.sender(context, link, tail.clone());
        }
    }

    pub(super) fn close_senders(&mut self, context: &mut Context<'_>) {
        let links: Vec<_> = self.senders.keys().copied().collect();
        for link in links {
            self.sender(context, link, SenderEvent::EpochChanged);
        }
    }

    pub(super) fn subscribed(&mut self, context: &mut Context<'_>, link: Link, from: Position) {
        // A node has one subscription at a source. A request that comes late is of no use.
        if self.senders.keys().any(|other| other.0 == link.0 && *other >= link) {
            return;
        }
        self.senders.retain(|other, _| other.0 != link.0);
        let Some(epoch) = self.part.epoch().filter(|_| self.may_serve()) else {
            return context.send(
                link.0,
                Message::ToReceiver { source: self.id, link, event: Shipped::Closed },
            );
        };
        let config = SenderConfig { window_bytes: 30 * BATCH_BYTES, ..SenderConfig::default() };
        self.senders.insert(link, Sender::new(config, self.at(context), epoch, from));
        context.send(
            link.0,
            Message::ToReceiver { source: self.id, link, event: Shipped::Connected(epoch) },
        );
        let tail = self.tail();
        self.sender(context, link, tail);
    }

    pub(super) fn acked(&mut self, context: &mut Context<'_>, link: Link, durable: Position) {
        self.sender(context, link, SenderEvent::Acked { durable });
    }

    fn sender(&mut self, context: &mut Context<'_>, link: Link, event: SenderEvent) {
        let at = self.at(context);
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(sender) = self.senders.get_mut(&link) else { return };
            for action in sender.step(at, event) {
                let shipped = match action {
                    SenderAction::Read { after, max_bytes } => {
                        events.push(self.read(after, max_bytes));
                        continue;
                    }
                    SenderAction::Send { position, previous } => {
                        let index = len_at(position.sequence - 1);
                        let Some(batch) = self.disk.history.get(index).copied() else { continue };
                        Shipped::Batch { batch, previous }
                    }
                    SenderAction::Heartbeat => {
                        let Some(status) = self.status(at) else { continue };
                        let (committed, time_ms) = match &self.part {
                            Part::Replica(replica) => {
                                let commit = replica.receiver.committed();
                                commit.map_or((Position::ZERO, 0), |commit| {
                                    (commit.position, commit.time_ms)
                                })
                            }
                            Part::None | Part::Voter(_) => (self.end(), wall_ms(context.now)),
                        };
                        Shipped::Heartbeat(Heartbeat { status, committed, time_ms })
                    }
                    SenderAction::SnapshotNeeded { diverged } => {
                        self.senders.remove(&link);
                        Shipped::SnapshotNeeded { diverged }
                    }
                    SenderAction::Close { .. } => {
                        self.senders.remove(&link);
                        Shipped::Closed
                    }
                };
                context.send(link.0, Message::ToReceiver { source: self.id, link, event: shipped });
            }
        }
    }

    fn read(&self, after: Position, max_bytes: u64) -> SenderEvent {
        let skip = len_at(after.sequence);
        if skip < self.disk.purged {
            return SenderEvent::ReadMissing;
        }
        let previous = end_of(self.disk.history.get(..skip).unwrap_or(&[]));
        let count = len_at((max_bytes / BATCH_BYTES).max(1));
        let size = |batch: &crate::message::Batch| BatchSize {
            position: batch.position,
            bytes: BATCH_BYTES,
        };
        SenderEvent::Read {
            previous,
            batches: self.disk.history.iter().skip(skip).take(count).map(size).collect(),
        }
    }

    pub(super) fn give_snapshot(
        &mut self,
        context: &mut Context<'_>,
        to: NodeId,
        incarnation: u64,
        fetch: u64,
        epoch: Epoch,
    ) {
        let may_give = self.may_serve() && self.part.epoch() == Some(epoch);
        let history = may_give.then(|| Arc::new(self.disk.history.clone()));
        context.send(to, Message::Snapshot { incarnation, fetch, history });
    }
}
