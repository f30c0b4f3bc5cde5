//! Raft, as much as is needed: elections, replication, commits, rounds that confirm leadership, and
//! changes of members by joint consensus. Terms and votes are durable at once; entries when
//! [`Raft::on_synced`] says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meridian_types::NodeId;

use crate::rng::Rng;

pub(crate) use self::members::Members;

mod change;
mod members;

#[derive(Debug, Clone)]
pub(crate) struct Entry<C> {
    pub(crate) term: u64,
    /// `None`, without members, begins a term.
    pub(crate) command: Option<C>,
    /// They count from where they are in the log, committed or not.
    pub(crate) members: Option<Arc<Members>>,
}

/// The state of a member that survives a crash, up to `synced` entries.
#[derive(Debug, Clone)]
pub(crate) struct RaftDisk<C> {
    pub(crate) term: u64,
    pub(crate) voted_for: Option<NodeId>,
    pub(crate) log: Vec<Entry<C>>,
    pub(crate) synced: usize,
    /// Before the first change; empty where the group is not known yet.
    pub(crate) founders: Members,
    /// The directory has granted this node a lease on the group's epoch: it may be made a voter.
    pub(crate) vouched: bool,
    /// The term and the length of the log that was deleted when it left the group. The others may
    /// count on what was in it: back again, it votes only once it holds as much.
    pub(crate) left: (u64, usize),
}

impl<C> Default for RaftDisk<C> {
    fn default() -> Self {
        Self {
            term: 0,
            voted_for: None,
            log: Vec::new(),
            synced: 0,
            founders: Members::default(),
            vouched: false,
            left: (0, 0),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum RaftMessage<C> {
    Vote {
        term: u64,
        last_term: u64,
        len: usize,
    },
    Voted {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        previous: usize,
        previous_term: u64,
        entries: Vec<Entry<C>>,
        commit: usize,
        round: u64,
    },
    /// `matched` entries are durable here and those of the leader; `Err`: what it may try from.
    Appended {
        term: u64,
        matched: Result<usize, usize>,
        round: u64,
        vouched: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Follower,
    Candidate,
    Leader,
}

#[derive(Debug, Default)]
struct Progress {
    next: usize,
    matched: usize,
    round: u64,
    heard_at: Option<Duration>,
    vouched: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct RaftTiming {
    pub(crate) heartbeat: Duration,
    pub(crate) election: Duration,
}

/// To be made durable: give it back to [`Raft::on_synced`] when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sync {
    len: usize,
    truncations: u64,
}

pub(crate) type Outbox<C> = Vec<(NodeId, RaftMessage<C>)>;

#[derive(Debug)]
pub(crate) struct Raft<C> {
    me: NodeId,
    /// The newest in the log, and how long the log is with them.
    members: Arc<Members>,
    members_at: usize,
    /// The voters to be, and what a newcomer among them has to hold.
    change: Option<(BTreeSet<NodeId>, usize)>,
    timing: RaftTiming,
    pub(crate) disk: RaftDisk<C>,
    role: Role,
    pub(crate) leader: Option<NodeId>,
    commit: usize,
    /// On a follower: so many entries are those of this term's leader.
    verified: usize,
    votes: BTreeSet<NodeId>,
    progress: BTreeMap<NodeId, Progress>,
    round: u64,
    elect_at: Duration,
    heartbeat_at: Duration,
    asked: Sync,
    truncations: u64,
    /// Promised not to leave this term: no election, no vote, no leader of a later one.
    pub(crate) frozen: bool,
}

const MAX_ENTRIES: usize = 64;

impl<C: Clone> Raft<C> {
    pub(crate) fn new(
        me: NodeId,
        timing: RaftTiming,
        disk: RaftDisk<C>,
        now: Duration,
        rng: &mut Rng,
    ) -> Self {
        let mut raft = Self {
            me,
            members: Arc::default(),
            members_at: 0,
            change: None,
            timing,
            disk,
            role: Role::Follower,
            leader: None,
            commit: 0,
            verified: 0,
            votes: BTreeSet::new(),
            progress: BTreeMap::new(),
            round: 0,
            elect_at: now,
            heartbeat_at: now,
            asked: Sync { len: 0, truncations: 0 },
            truncations: 0,
            frozen: false,
        };
        raft.read_members();
        raft.put_off_election(now, rng);
        raft
    }

    /// To stand for election at the next tick.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.elect_at = now;
    }

    pub(crate) fn term(&self) -> u64 {
        self.disk.term
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// It leads, and has committed an entry of its term: it knows all that was ever committed.
    pub(crate) fn is_settled_leader(&self) -> bool {
        self.is_leader() && self.commit > 0 && self.term_at(self.commit) == self.disk.term
    }

    /// And a majority has answered within an election timeout.
    pub(crate) fn leads(&self, now: Duration) -> bool {
        let fresh = |progress: &Progress| {
            progress.heard_at.is_some_and(|at| now.saturating_sub(at) <= self.timing.election)
        };
        let answers = |voter| voter == self.me || self.progress.get(&voter).is_some_and(fresh);
        self.is_settled_leader() && self.members.is_quorum(answers)
    }

    /// Committed and durable here.
    pub(crate) fn applicable(&self) -> usize {
        self.commit.min(self.disk.synced)
    }

    /// Everything in the leader's log is committed, and can be applied.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_settled_leader() && self.applicable() == self.disk.log.len()
    }

    pub(crate) fn propose(&mut self, now: Duration, command: C, out: &mut Outbox<C>) {
        assert!(self.is_settled_leader() && !self.frozen, "only a leader proposes");
        self.disk.log.push(Entry { term: self.disk.term, command: Some(command), members: None });
        self.replicate(now, out);
    }

    /// Begins a round; what is confirmed by [`confirmed`](Self::confirmed) was asked after this
    /// call.
    pub(crate) fn begin_round(&mut self, now: Duration, out: &mut Outbox<C>) -> u64 {
        self.round += 1;
        self.replicate(now, out);
        self.round
    }

    /// The round that begins with the next heartbeat, or before.
    pub(crate) fn next_round(&self) -> u64 {
        self.round + 1
    }

    /// A majority has answered rounds up to this one.
    pub(crate) fn confirmed(&self) -> u64 {
        if !self.is_settled_leader() {
            return 0;
        }
        let answered = |voter| self.progress.get(&voter).map_or(0, |progress| progress.round);
        self.members.reached(|voter| if voter == self.me { self.round } else { answered(voter) })
    }

    pub(crate) fn tick(&mut self, now: Duration, rng: &mut Rng, out: &mut Outbox<C>) {
        if self.is_leader() {
            if now >= self.heartbeat_at {
                self.round += 1;
                self.replicate(now, out);
            }
        } else if now >= self.elect_at && self.may_stand() {
            self.stand(now, rng, out);
        }
    }

    /// The fsync to begin, if the log has entries that are not on their way to the disk.
    pub(crate) fn take_sync(&mut self) -> Option<Sync> {
        let wanted = Sync { len: self.disk.log.len(), truncations: self.truncations };
        if wanted == self.asked || self.disk.synced == wanted.len {
            return None;
        }
        self.asked = wanted;
        Some(wanted)
    }

    pub(crate) fn on_synced(&mut self, now: Duration, sync: Sync, out: &mut Outbox<C>) {
        // The entries that were truncated meanwhile are covered by a later sync.
        if sync.truncations != self.truncations {
            return;
        }
        self.disk.synced = self.disk.synced.max(sync.len);
        if self.is_leader() {
            self.advance_commit(now, out);
        } else if let Some(leader) = self.leader {
            let matched = Ok(self.disk.synced.min(self.verified));
            let (term, vouched) = (self.disk.term, self.disk.vouched);
            out.push((leader, RaftMessage::Appended { term, matched, round: 0, vouched }));
        }
    }

    pub(crate) fn receive(
        &mut self,
        now: Duration,
        rng: &mut Rng,
        from: NodeId,
        message: RaftMessage<C>,
        out: &mut Outbox<C>,
    ) {
        let (RaftMessage::Vote { term, .. }
        | RaftMessage::Voted { term, .. }
        | RaftMessage::Append { term, .. }
        | RaftMessage::Appended { term, .. }) = message;
        let is_vote = matches!(message, RaftMessage::Vote { .. });
        if is_vote && !self.members.is_voter(from) && self.knows_a_leader(now) {
            return;
        }
        if term > self.disk.term {
            if self.frozen {
                return;
            }
            self.enter(term);
        }
        match message {
            RaftMessage::Vote { last_term, len, .. } => {
                let last = self.last();
                let granted = term == self.disk.term
                    && !self.frozen
                    && last >= self.disk.left
                    && self.disk.voted_for.is_none_or(|voted| voted == from)
                    && (last_term, len) >= last;
                if granted {
                    self.disk.voted_for = Some(from);
                    self.put_off_election(now, rng);
                }
                out.push((from, RaftMessage::Voted { term: self.disk.term, granted }));
            }
            RaftMessage::Voted { granted, .. } => {
                if granted && term == self.disk.term && self.role == Role::Candidate {
                    self.votes.insert(from);
                    self.count_votes(now, out);
                }
            }
            RaftMessage::Append { previous, previous_term, entries, commit, round, .. } => {
                if term < self.disk.term {
                    let (term, vouched) = (self.disk.term, self.disk.vouched);
                    return out.push((
                        from,
                        RaftMessage::Appended { term, matched: Err(0), round: 0, vouched },
                    ));
                }
                assert!(!self.is_leader(), "two leaders of term {term}");
                self.role = Role::Follower;
                self.leader = Some(from);
                self.put_off_election(now, rng);
                let matched = self.take(previous, previous_term, entries, commit);
                let vouched = self.disk.vouched;
                out.push((from, RaftMessage::Appended { term, matched, round, vouched }));
            }
            RaftMessage::Appended { matched, round, vouched, .. } => {
                if term == self.disk.term && self.is_leader() {
                    if let Some(progress) = self.progress.get_mut(&from) {
                        progress.vouched |= vouched;
                    }
                    self.on_appended(now, from, matched, round, out);
                }
            }
        }
    }

    /// A follower that is far behind was given all this; it is durable.
    pub(crate) fn seed(&mut self, founders: Members, log: Vec<Entry<C>>) {
        self.truncations += 1;
        self.commit = log.len();
        self.disk.founders = founders;
        (self.verified, self.disk.synced, self.disk.log) = (log.len(), log.len(), log);
        self.read_members();
    }

    /// The term and the number of the last entry.
    pub(crate) fn last(&self) -> (u64, usize) {
        let len = self.disk.log.len();
        (self.term_at(len), len)
    }

    fn term_at(&self, len: usize) -> u64 {
        len.checked_sub(1).and_then(|index| self.disk.log.get(index)).map_or(0, |entry| entry.term)
    }

    fn put_off_election(&mut self, now: Duration, rng: &mut Rng) {
        self.elect_at = now + self.timing.election.mul_f64(1.0 + rng.jitter());
    }

    fn enter(&mut self, term: u64) {
        (self.disk.term, self.disk.voted_for) = (term, None);
        (self.role, self.leader, self.verified) = (Role::Follower, None, 0);
    }

    fn stand(&mut self, now: Duration, rng: &mut Rng, out: &mut Outbox<C>) {
        self.enter(self.disk.term + 1);
        self.role = Role::Candidate;
        self.disk.voted_for = Some(self.me);
        self.votes = BTreeSet::from([self.me]);
        self.put_off_election(now, rng);
        let (last_term, len) = self.last();
        for voter in self.members.voters().into_iter().filter(|voter| *voter != self.me) {
            out.push((voter, RaftMessage::Vote { term: self.disk.term, last_term, len }));
        }
        self.count_votes(now, out);
    }

    fn count_votes(&mut self, now: Duration, out: &mut Outbox<C>) {
        if !self.members.is_quorum(|voter| self.votes.contains(&voter)) {
            return;
        }
        (self.role, self.leader) = (Role::Leader, Some(self.me));
        (self.progress, self.change) = (BTreeMap::new(), None);
        self.follow_members();
        self.disk.log.push(Entry { term: self.disk.term, command: None, members: None });
        self.replicate(now, out);
    }

    fn replicate(&mut self, now: Duration, out: &mut Outbox<C>) {
        self.heartbeat_at = now + self.timing.heartbeat;
        for (member, progress) in &mut self.progress {
            let previous = progress.next.min(self.disk.log.len());
            let entries: Vec<_> =
                self.disk.log.iter().skip(previous).take(MAX_ENTRIES).cloned().collect();
            // As if it arrived; a refusal, or silence and a later heartbeat, brings it back.
            progress.next = previous + entries.len();
            let previous_term = previous
                .checked_sub(1)
                .and_then(|index| self.disk.log.get(index))
                .map_or(0, |entry| entry.term);
            let (term, commit, round) = (self.disk.term, self.commit, self.round);
            out.push((
                *member,
                RaftMessage::Append { term, previous, previous_term, entries, commit, round },
            ));
        }
        self.advance_commit(now, out);
    }

    fn take(
        &mut self,
        previous: usize,
        previous_term: u64,
        entries: Vec<Entry<C>>,
        commit: usize,
    ) -> Result<usize, usize> {
        if previous > self.disk.log.len() || self.term_at(previous) != previous_term {
            return Err(previous.saturating_sub(1).min(self.disk.log.len()));
        }
        let end = previous + entries.len();
        let mut changes = entries.iter().any(|entry| entry.members.is_some());
        for (index, entry) in (previous..).zip(entries) {
            if self.disk.log.get(index).is_some_and(|held| held.term != entry.term) {
                assert!(index >= self.commit, "a committed entry was overwritten");
                self.disk.log.truncate(index);
                self.disk.synced = self.disk.synced.min(index);
                self.truncations += 1;
                changes = true;
            }
            if index == self.disk.log.len() {
                self.disk.log.push(entry);
            }
        }
        if changes {
            self.read_members();
        }
        self.verified = self.verified.max(end);
        self.commit = self.commit.max(commit.min(self.verified));
        Ok(self.disk.synced.min(self.verified))
    }

    fn on_appended(
        &mut self,
        now: Duration,
        from: NodeId,
        matched: Result<usize, usize>,
        round: u64,
        out: &mut Outbox<C>,
    ) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.heard_at = Some(now);
        progress.round = progress.round.max(round);
        match matched {
            Ok(matched) => {
                progress.matched = progress.matched.max(matched);
                if round > 0 && matched < progress.next && round == self.round {
                    // A heartbeat was answered, and what was sent before it may have been lost.
                    progress.next = progress.matched;
                }
            }
            // A log that was deleted and made anew holds less than it said once.
            Err(hint) => {
                progress.matched = progress.matched.min(hint);
                progress.next = hint;
            }
        }
        self.advance_commit(now, out);
    }

    fn advance_commit(&mut self, now: Duration, out: &mut Outbox<C>) {
        if !self.is_leader() {
            return;
        }
        let matched = |voter| self.progress.get(&voter).map_or(0, |progress| progress.matched);
        let commit = self
            .members
            .reached(|voter| if voter == self.me { self.disk.synced } else { matched(voter) });
        if commit > self.commit && self.term_at(commit) == self.disk.term {
            self.commit = commit;
            // The others learn of it at once, or with the next heartbeat.
            self.replicate(now, out);
            self.end_leadership();
        }
    }
}
