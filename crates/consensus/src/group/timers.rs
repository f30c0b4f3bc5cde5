//! The timers of a member: heartbeats of a leader, and the order in which voters stand for
//! election.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use meridian_types::NodeId;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::MeridianRaft;
use crate::RaftTiming;
use crate::votes::Votes;

/// When this member last led, followed a leader, or gave another its vote.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact(Arc<Mutex<Option<Instant>>>);

impl Contact {
    /// To be called when Raft has taken the message: the lease that it granted ends no later then
    /// than counted from here.
    pub(crate) fn renew(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    pub(super) fn is_since(&self, time: Instant) -> bool {
        self.0.lock().is_some_and(|last| last >= time)
    }

    /// `None`: never.
    fn last(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// The timers of a member: its heartbeats as leader, and its candidacies.
///
/// A leader sends heartbeats. openraft would, but it gives a follower only the time between two of
/// them to answer, and between regions the answer takes longer than heartbeats should be apart. It
/// would also have members stand for election, each at a random time and again after a time that is
/// too short for a slow disk, for ever.
pub(super) struct Timers(JoinHandle<()>);

impl Timers {
    pub(super) fn start(
        raft: MeridianRaft,
        node_id: NodeId,
        contact: Contact,
        votes: Arc<Votes>,
        timing: RaftTiming,
    ) -> Self {
        let task = Task {
            raft,
            node_id,
            contact,
            votes,
            heartbeat: Duration::from_millis(timing.heartbeat_ms),
            candidacies: Candidacies::new(timing, Instant::now()),
        };
        Self(tokio::spawn(task.run()))
    }
}

/// The task of a member's timers.
struct Task {
    raft: MeridianRaft,
    node_id: NodeId,
    contact: Contact,
    votes: Arc<Votes>,
    heartbeat: Duration,
    candidacies: Candidacies,
}

/// Raft has stopped: nothing is left to be timed.
struct Stopped;

impl Task {
    async fn run(mut self) {
        // Read from the very channel that wakes: it changes seldom, and another may be written
        // later. Only that of all metrics says that Raft has stopped.
        let mut server = self.raft.server_metrics();
        loop {
            let (state, has_leader, rank) = {
                let metrics = server.borrow_watched();
                let voters = metrics.membership_config.voter_ids();
                let rank = rank(voters, metrics.current_leader, self.node_id);
                (metrics.state, metrics.current_leader.is_some(), rank)
            };
            let is_shut_down = self.raft.metrics().borrow_watched().running_state.is_err();
            let now = Instant::now();
            let stands_at = self.stands_at(now, state, has_leader, rank);
            let acted = match state {
                ServerState::Leader => self.send_heartbeats().await,
                _ if stands_at.is_some_and(|at| at <= now) => self.stand(now),
                _ if is_shut_down => Err(Stopped),
                _ => Ok(()),
            };
            if acted.is_err() {
                return;
            }
            let again = looks_again(state, stands_at, now, self.heartbeat);
            if state == ServerState::Leader {
                tokio::time::sleep_until(again.into()).await;
            } else if rest(again, server.changed()).await.is_err() {
                return;
            }
        }
    }

    /// When this member stands for election next, if it may.
    fn stands_at(
        &mut self,
        now: Instant,
        state: ServerState,
        has_leader: bool,
        rank: Option<u32>,
    ) -> Option<Instant> {
        if !matches!(state, ServerState::Follower | ServerState::Candidate) {
            return None;
        }
        self.candidacies.may_vote(now, self.votes.check(false).is_ok());
        let heard = Heard { last: self.contact.last(), has_leader };
        self.candidacies.stands_at(rank?, heard, state == ServerState::Candidate)
    }

    async fn send_heartbeats(&self) -> Result<(), Stopped> {
        self.contact.renew();
        self.raft.trigger().heartbeat().await.map_err(|_| Stopped)
    }

    fn stand(&mut self, now: Instant) -> Result<(), Stopped> {
        self.candidacies.stood(now, rand::random_range(0.0..1.0));
        // Before a seal, so that a later question for the member's term hears of it; or not at all.
        // It waits for nothing but room in a queue, and is tried again.
        let stood = self.votes.if_open(|| self.raft.trigger().elect(true).now_or_never());
        stood.flatten().unwrap_or(Ok(())).map_err(|_| Stopped)
    }
}

/// When the timers go on: a heartbeat later at the latest, and when this member stands if that is
/// still to come. A follower sleeps until then: whatever it hears meanwhile puts that off, and it
/// looks anew before it stands.
fn looks_again(
    state: ServerState,
    stands_at: Option<Instant>,
    now: Instant,
    heartbeat: Duration,
) -> Instant {
    let latest = now + heartbeat;
    match stands_at.filter(|at| *at > now) {
        Some(at) if state == ServerState::Follower => at,
        Some(at) => at.min(latest),
        None => latest,
    }
}

/// Waits for the time, or until the leader or the voters have changed, whatever comes first: a
/// member that comes to lead begins with its heartbeats at once.
async fn rest<E>(until: Instant, changed: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::select! {
        biased;
        changed = changed => changed,
        () = tokio::time::sleep_until(until.into()) => Ok(()),
    }
}

/// Where the node stands in the line of voters, behind those of which one leads last; `None` if it
/// does not vote.
fn rank(
    voters: impl Iterator<Item = NodeId>,
    leader: Option<NodeId>,
    node_id: NodeId,
) -> Option<u32> {
    let mut line: Vec<NodeId> = voters.collect();
    line.sort_by_key(|voter| (Some(*voter) == leader, *voter));
    (0u32..).zip(line).find_map(|(rank, voter)| (voter == node_id).then_some(rank))
}

/// This member's last contact with a leader or candidate.
#[derive(Clone, Copy)]
struct Heard {
    /// When that was last: of a leader, or a candidate that it voted for.
    last: Option<Instant>,
    has_leader: bool,
}

/// When a member stands for election.
///
/// The first of the voters beside the leader stands as soon as the leader's lease has run out, the
/// next one a round trip later, and so on: in a line there is no vote to be split, and no reason to
/// wait for a random time.
///
/// Where no voter wins so, it asks again soon whether it would get the votes; a question in the
/// same term makes no answer void that is late. A candidate gives its votes the time that they may
/// take, and then a random time, longer after each try: however slow the members' disks are, one of
/// them has the time to win.
struct Candidacies {
    /// By when the others' leases end, after the leader was heard here: a little later or sooner
    /// than this one's.
    lease: Duration,
    step: Duration,
    answer: Duration,
    /// Between the first two tries.
    again: Duration,
    /// Where no leader was ever heard, no voter stands before.
    not_before: Instant,
    /// Since when this member may stand.
    open: Option<Instant>,
    /// The latest try since a leader was heard.
    stood: Option<Try>,
}

#[derive(Clone, Copy)]
struct Try {
    at: Instant,
    /// From 1.
    number: u32,
    /// From 0 to 1.
    random: f64,
}

impl Candidacies {
    /// The random time is no longer than so many times that for answers.
    const LONGEST: u32 = 8;

    fn new(timing: RaftTiming, started: Instant) -> Self {
        let heartbeat = Duration::from_millis(timing.heartbeat_ms);
        Self {
            lease: timing.election_timeout_max() + heartbeat / 2,
            step: Duration::from_millis(timing.heartbeat_answer_ms()),
            answer: Duration::from_millis(timing.vote_answer_ms()),
            again: 2 * heartbeat,
            not_before: started + Duration::from_millis(timing.election_timeout_min_ms),
            open: None,
            stood: None,
        }
    }

    /// Told again and again whether it may vote, of which `now` is the latest moment.
    fn may_vote(&mut self, now: Instant, votes: bool) {
        self.open = votes.then(|| self.open.unwrap_or(now));
    }

    /// `None` while it may not vote.
    fn stands_at(&mut self, rank: u32, heard: Heard, is_candidate: bool) -> Option<Instant> {
        let open = self.open?;
        if heard.has_leader
            && heard.last.zip(self.stood).is_some_and(|(last, stood)| last > stood.at)
        {
            self.stood = None;
        }
        let first = match heard.last {
            Some(last) => last + self.lease,
            None => open.max(self.not_before),
        };
        let in_line = first + self.step * rank;
        Some(
            self.stood
                .map_or(in_line, |stood| in_line.max(stood.at + self.pause(stood, is_candidate))),
        )
    }

    fn pause(&self, stood: Try, is_candidate: bool) -> Duration {
        let doubled = 2u32.saturating_pow(stood.number - 1);
        let longest =
            self.answer + (self.answer * doubled.min(Self::LONGEST)).mul_f64(stood.random);
        if is_candidate { longest } else { longest.min(self.again.saturating_mul(doubled)) }
    }

    fn stood(&mut self, now: Instant, random: f64) {
        let number = self.stood.map_or(1, |before| before.number.saturating_add(1));
        self.stood = Some(Try { at: now, number, random });
    }
}

impl Drop for Timers {
    /// Else the task would keep a group alive that no other code has.
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_last_leader_stands_last_and_a_copy_never() {
        let voters = || [3, 1, 2].map(NodeId).into_iter();
        let ranks = |leader| [1, 2, 3, 4].map(|node| rank(voters(), leader, NodeId(node)));
        assert_eq!(ranks(None), [Some(0), Some(1), Some(2), None]);
        assert_eq!(ranks(Some(NodeId(1))), [Some(2), Some(0), Some(1), None]);
    }

    #[test]
    fn a_member_was_in_touch_since_any_time_before_it_heard_of_another() {
        let (contact, start) = (Contact::default(), Instant::now());
        assert_eq!((contact.last(), contact.is_since(start)), (None, false));
        contact.renew();
        let heard = contact.last().unwrap();
        assert!(heard >= start);
        let since = [start, heard, heard + MS(1)].map(|time| contact.is_since(time));
        assert_eq!(since, [true, true, false]);
    }

    #[test]
    fn timers_go_on_when_the_member_stands_and_else_after_a_heartbeat() {
        let now = Instant::now();
        let looks = |state, stands_at| looks_again(state, stands_at, now, MS(50)) - now;
        for state in [ServerState::Follower, ServerState::Candidate, ServerState::Leader] {
            assert_eq!(looks(state, None), MS(50));
            // It has just stood.
            assert_eq!([now, now - MS(20)].map(|at| looks(state, Some(at))), [MS(50); 2]);
        }
        let later = |state| [20, 50, 500].map(|in_ms| looks(state, Some(now + MS(in_ms))));
        assert_eq!(later(ServerState::Candidate), [MS(20), MS(50), MS(50)]);
        assert_eq!(later(ServerState::Follower), [MS(20), MS(50), MS(500)]);
    }

    #[tokio::test]
    async fn a_follower_rests_until_it_stands_or_the_leader_changes() {
        let now = Instant::now();
        let (leader, mut changes) = tokio::sync::watch::channel(1);
        rest(now + MS(5), changes.changed()).await.unwrap();
        assert!(now.elapsed() >= MS(5));
        leader.send_replace(2);
        let rests =
            tokio::time::timeout(MS(20_000), rest(now + MS(3_600_000), changes.changed())).await;
        rests.expect("it comes to lead, and the others wait for its heartbeats").unwrap();
        drop(leader);
        assert!(rest(now + MS(3_600_000), changes.changed()).await.is_err(), "Raft has stopped");
    }

    #[test]
    fn voters_stand_in_a_line_and_later_after_each_try_until_a_leader_is_heard() {
        let (timing, start) = (RaftTiming::default(), Instant::now());
        let mut member = Candidacies::new(timing, start);
        let unheard = Heard { last: None, has_leader: false };
        let lost = Heard { last: Some(start + MS(1000)), has_leader: true };
        // Its vote does not count.
        for _ in 0..2 {
            assert_eq!([unheard, lost].map(|heard| member.stands_at(0, heard, false)), [None; 2]);
            member.may_vote(start + MS(5), true);
            member.may_vote(start + MS(10), false);
        }
        // No leader was ever heard.
        member.may_vote(start + MS(10), true);
        assert_eq!(member.stands_at(0, unheard, false), Some(start + MS(300)));
        assert_eq!(member.stands_at(2, unheard, false), Some(start + MS(700)));
        // It counts since later.
        member.may_vote(start + MS(20), false);
        member.may_vote(start + MS(500), true);
        member.may_vote(start + MS(600), true);
        assert_eq!(member.stands_at(0, unheard, false), Some(start + MS(500)));
        // The leader was heard, last at this time.
        let mut now = start + MS(1000 + 450 + 25 + 200);
        assert_eq!(member.stands_at(1, lost, false), Some(now));
        for (asks, stands) in
            [(100, 1), (200, 2), (400, 4), (800, 8), (1600, 8), (3200, 8), (449 * 9, 8)]
        {
            member.stood(now, 1.0);
            assert_eq!(member.stands_at(1, lost, false).unwrap() - now, MS(asks));
            let candidate = Heard { has_leader: false, ..lost };
            let again = member.stands_at(1, candidate, true).unwrap();
            assert_eq!(again - now, MS(449 * (1 + stands)));
            now = again;
        }
        member.stood(now, 0.0);
        assert_eq!(
            member.stands_at(0, lost, true).unwrap() - now,
            MS(449),
            "the answers are always waited for"
        );
        // A candidate that it voted for is no leader.
        let voted = Heard { last: Some(now + MS(100)), has_leader: false };
        assert_eq!(member.stands_at(0, voted, false), Some(now + MS(100 + 475)));
        assert!(member.stood.is_some());
        let heard = Heard { has_leader: true, ..voted };
        assert_eq!(member.stands_at(0, heard, false), Some(now + MS(100 + 475)));
        assert!(member.stood.is_none());
    }
}
