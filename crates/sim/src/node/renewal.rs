//! A node asks the leader of the directory for its epoch lease.

use std::time::Duration;

use meridian_failover::Lease;
use meridian_types::{CommitProgress, NodeId, ShardReport};

use super::part::Part;
use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::wall_ms;
use crate::message::Message;
use crate::topology::SHARD;

const RENEW_EVERY: Duration = Duration::from_millis(500);

/// The node that this one takes for the directory's leader, and when it asks it next.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    leader: Option<NodeId>,
    next_at: Duration,
    answered: bool,
    turn: usize,
}

impl Renewal {
    pub(super) fn now(&mut self) {
        self.next_at = Duration::ZERO;
    }

    pub(super) fn not_leader(&mut self, from: NodeId, leader: Option<NodeId>) {
        if self.leader.is_none_or(|known| known == from) {
            self.leader = leader;
            self.answered = leader.is_some();
            self.next_at = Duration::ZERO;
        }
    }
}

impl Node {
    pub(super) fn tick_renewal(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        if at < self.renewal.next_at {
            return;
        }
        self.renewal.next_at = at + RENEW_EVERY;
        let voters: Vec<_> = self.disk.cluster.directory_voters.iter().copied().collect();
        if !self.renewal.answered {
            self.renewal.turn += 1;
            self.renewal.leader = voters.get(self.renewal.turn % voters.len().max(1)).copied();
        }
        self.renewal.answered = false;
        let Some(to) = self.renewal.leader else { return };
        let message = Message::Renew {
            incarnation: self.incarnation,
            sent_at: at,
            report: self.report(context),
            shown: self.disk.shown.iter().map(|(epoch, shown)| (*epoch, *shown)).collect(),
        };
        context.send(to, message);
    }

    /// The next tick renews.
    pub(super) fn renew_now(&mut self) {
        self.renewal.now();
    }

    pub(super) fn renewed(&mut self, context: &Context<'_>, sent_at: Duration, lease: &Lease) {
        self.renewal.answered = true;
        let counted_from = if context.bug == Some(Bug::CountLeaseFromReceipt) {
            self.at(context)
        } else {
            sent_at
        };
        self.lease.renewed(counted_from, lease);
    }

    fn report(&self, context: &Context<'_>) -> Option<ShardReport> {
        let at = self.at(context);
        let (leads, lag_ms) = match &self.part {
            Part::None => return None,
            Part::Voter(voter) => (voter.leads(at), 0),
            Part::Replica(replica) => {
                let last = self.disk.history.last().map_or(0, |batch| batch.time_ms);
                let lag_ms = match replica.receiver.committed() {
                    Some(commit) if commit.position.sequence <= self.end().sequence => 0,
                    Some(_) => wall_ms(context.now).saturating_sub(last),
                    None => u64::MAX,
                };
                (false, lag_ms)
            }
        };
        let epoch = self.part.epoch()?;
        let last_time_ms = self.disk.history.last().map_or(0, |batch| batch.time_ms);
        let progress = CommitProgress::new(self.end().sequence, last_time_ms);
        Some(ShardReport {
            leads,
            voters_confirmed_at: if leads && self.has_wanted_voters() {
                self.disk.cluster.version
            } else {
                0
            },
            lag_ms,
            hint: self.hints.get(SHARD, epoch),
            ..ShardReport::new(SHARD, epoch, self.end(), progress)
        })
    }
}
