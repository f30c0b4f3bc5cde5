//! A node asks the leader of the directory for its epoch lease: carries out what [`LeaderSearch`]
//! decides.

use std::time::Duration;

use meridian_failover::{
    ASK_TIMEOUT, Inquiry, LeaderSearch, Lease, Next, ProgressHint, RENEW_TIMEOUT, Reply,
};
use meridian_types::{CommitProgress, NodeId, ShardReport};

use super::part::Part;
use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::wall_ms;
use crate::message::{Message, Question};
use crate::topology::{SHARD, region_of};

/// The search for the directory's leader, and the questions that are under way.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    search: LeaderSearch,
    next_at: Duration,
    /// The number of the newest try, and of the newest question.
    tries: u64,
    questions: u64,
    open: Vec<Open>,
    /// When it was last looked whether a question is late. An answer that came since then is
    /// taken, however long the process stood still meanwhile.
    looked_at: Duration,
}

#[derive(Debug)]
struct Open {
    question: u64,
    part_of: u64,
    began: Duration,
    asked_at: Duration,
    inquiry: Inquiry,
}

impl Renewals {
    pub(super) fn begin_now(&mut self) {
        self.next_at = Duration::ZERO;
    }
}

impl Node {
    pub(super) fn tick_renewal(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let looked_at = std::mem::replace(&mut self.renewals.looked_at, at);
        let lasts = |since: Duration| looked_at.saturating_sub(since);
        self.renewals.open.retain(|open| lasts(open.began) < RENEW_TIMEOUT);
        let late = self.renewals.open.extract_if(.., |open| lasts(open.asked_at) >= ASK_TIMEOUT);
        for open in late.collect::<Vec<_>>() {
            self.replied(context, open, Reply::Nothing);
        }
        if at < self.renewals.next_at {
            return;
        }
        let cluster = &self.disk.cluster;
        let voters = || cluster.directory_voters_near(region_of(cluster, self.id));
        let inquiries = self.renewals.search.begin(at, voters);
        self.renewals.next_at = at + self.renewals.search.next_in(at);
        self.renewals.tries += 1;
        for inquiry in inquiries {
            let (question, part_of) = (0, self.renewals.tries);
            self.ask(context, Open { question, part_of, began: at, asked_at: at, inquiry });
        }
    }

    fn ask(&mut self, context: &mut Context<'_>, open: Open) {
        let at = self.at(context);
        self.renewals.questions += 1;
        let number = self.renewals.questions;
        let message = Message::Renew {
            question: Question { incarnation: self.incarnation, number, sent_at: at },
            report: self.report(context),
            lost: self.lost(),
        };
        context.send(open.inquiry.asked(), message);
        self.renewals.open.push(Open { question: number, asked_at: at, ..open });
    }

    fn replied(&mut self, context: &mut Context<'_>, mut open: Open, reply: Reply) {
        let (at, renewals) = (self.at(context), &mut self.renewals);
        match renewals.search.replied(at, &mut open.inquiry, reply) {
            Next::Ask(_) => self.ask(context, open),
            Next::Done => renewals.open.retain(|other| other.part_of != open.part_of),
            Next::Over { again: Some(pause) } => {
                renewals.next_at = renewals.next_at.min(at + pause);
            }
            Next::Over { again: None } => {}
        }
    }

    /// The next tick renews.
    pub(super) fn renew_now(&mut self) {
        self.renewals.begin_now();
    }

    pub(super) fn granted(
        &mut self,
        context: &mut Context<'_>,
        question: Question,
        lease: &Lease,
        hints: Vec<ProgressHint>,
    ) -> bool {
        if context.bug == Some(Bug::CountLeaseFromReceipt)
            && question.incarnation == self.incarnation
        {
            // However late.
            self.lease.renewed(self.at(context), lease);
        }
        let Some(open) = self.take_open(question) else { return false };
        hints.into_iter().for_each(|hint| self.hints.observe(hint));
        self.lease.renewed(question.sent_at, lease);
        self.replied(context, open, Reply::Granted);
        true
    }

    pub(super) fn not_leader(
        &mut self,
        context: &mut Context<'_>,
        question: Question,
        leader: Option<NodeId>,
    ) {
        if let Some(open) = self.take_open(question) {
            self.replied(context, open, Reply::NotLeader(leader));
        }
    }

    /// The question, if it is waited for yet. One of this process before it restarted is not.
    fn take_open(&mut self, question: Question) -> Option<Open> {
        if question.incarnation != self.incarnation {
            return None;
        }
        let open = &mut self.renewals.open;
        let at = open.iter().position(|open| open.question == question.number)?;
        Some(open.swap_remove(at))
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
