//! Other members, by joint consensus.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::NodeId;

use super::members::Step;
use super::{Entry, Members, Outbox, Progress, Raft, Role};

impl<C: Clone> Raft<C> {
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// Whether these voters decide, and will under any later leader.
    pub(crate) fn is_settled_on(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.members_at <= self.commit && self.members.are_just(voters)
    }

    /// Takes the next step towards `goal`, if the one before is committed. To be called again and
    /// again, on the leader.
    pub(crate) fn change_voters(
        &mut self,
        now: Duration,
        goal: &BTreeSet<NodeId>,
        out: &mut Outbox<C>,
    ) {
        if !self.is_settled_leader() || self.members_at > self.commit {
            return;
        }
        let len = self.disk.log.len();
        let behind = match &self.change {
            Some((wanted, behind)) if wanted == goal => *behind,
            _ => len,
        };
        self.change = Some((goal.clone(), behind));
        let has_it = |node| {
            self.progress.get(&node).is_some_and(|known| known.vouched && known.matched >= behind)
        };
        let step = self.members.step(goal, |node| node == self.me || has_it(node));
        let Step::Propose(members) = step else { return };
        let members = Arc::new(members);
        self.disk.log.push(Entry {
            term: self.disk.term,
            command: None,
            members: Some(Arc::clone(&members)),
        });
        (self.members, self.members_at) = (members, len + 1);
        self.follow_members();
        self.replicate(now, out);
    }

    /// After the log has changed.
    pub(super) fn read_members(&mut self) {
        let newest = self.disk.log.iter().enumerate().rev().find_map(|(index, entry)| {
            let members = entry.members.as_ref()?;
            Some((Arc::clone(members), index + 1))
        });
        let founders = || (Arc::new(self.disk.founders.clone()), 0);
        (self.members, self.members_at) = newest.unwrap_or_else(founders);
    }

    /// On a leader: the log goes to all members, and only to them.
    pub(super) fn follow_members(&mut self) {
        let (all, next) = (self.members.all(), self.disk.log.len());
        self.progress.retain(|member, _| all.contains(member));
        for member in all.into_iter().filter(|member| *member != self.me) {
            self.progress.entry(member).or_insert_with(|| Progress { next, ..Progress::default() });
        }
    }

    /// A leader that is no voter any more leads until that is committed.
    pub(super) fn end_leadership(&mut self) {
        if self.is_leader() && self.members_at <= self.commit && !self.members.is_voter(self.me) {
            (self.role, self.leader) = (Role::Follower, None);
        }
    }

    pub(super) fn may_stand(&self) -> bool {
        !self.frozen && self.last() >= self.disk.left && self.members.is_voter(self.me)
    }

    /// While it hears of a leader, it does not listen to those that are no voters any more.
    pub(super) fn knows_a_leader(&self, now: Duration) -> bool {
        self.is_leader() || (self.leader.is_some() && now < self.elect_at)
    }
}
