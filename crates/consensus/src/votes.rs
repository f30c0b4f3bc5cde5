//! Whether this member's votes count, the granted ones and its own when it stands for election, and
//! which leaders it may answer.

use std::time::Instant;

use parking_lot::RwLock;

/// Why this member's vote is not to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoVote {
    #[error("this member does not know yet whether it may vote")]
    Undecided,
    #[error("this member has just started, and may have granted a lease before")]
    JustStarted,
    #[error("this member's folder was wiped: it does not vote")]
    Wiped,
    #[error(
        "this member's log is shorter than it was: it votes again when its leader has sent it as much"
    )]
    Behind,
    #[error("this member is sealed: the epoch ends")]
    Sealed,
    #[error(
        "this member may have forgotten a vote that it gave in a later term than {0}: it answers no leader of that"
    )]
    MayHaveForgotten(u64),
}

/// Where a member stands on its way to voting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteGate {
    /// It may be a wiped one.
    Undecided,
    /// When every lease that it may have granted before has run out.
    OpensAt(Instant),
    /// Another incarnation has voted.
    Never,
    /// Until its log is as long as it was.
    Behind,
}

impl VoteGate {
    /// A transfer is the leader's own will: its lease ends with it.
    fn check(self, leadership_transfer: bool) -> Result<(), NoVote> {
        match self {
            Self::Undecided => Err(NoVote::Undecided),
            Self::Never => Err(NoVote::Wiped),
            Self::Behind => Err(NoVote::Behind),
            Self::OpensAt(at) if Instant::now() < at && !leadership_transfer => {
                Err(NoVote::JustStarted)
            }
            Self::OpensAt(_) => Ok(()),
        }
    }
}

/// Keeps a member's votes in until they are safe, and again once it is sealed. It is asked before
/// Raft is asked for a vote, and again before Raft's answer is used: none counts that came about
/// meanwhile.
#[derive(Debug)]
pub(crate) struct Votes {
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    gate: VoteGate,
    /// The epoch ends: no leader may come after the present one. For the rest of this process, or
    /// until the group is opened again.
    is_sealed: bool,
    /// The first term whose leader this member may answer; `None`: not known yet. A leader takes
    /// each answer for the word that this member has voted in no later term, which a member that
    /// forgot its votes cannot give.
    follows_from: Option<u64>,
}

impl Default for Votes {
    fn default() -> Self {
        Self {
            state: RwLock::new(State {
                gate: VoteGate::Undecided,
                is_sealed: false,
                follows_from: None,
            }),
        }
    }
}

impl State {
    fn check(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        if self.is_sealed { Err(NoVote::Sealed) } else { self.gate.check(leadership_transfer) }
    }
}

impl Votes {
    pub(crate) fn check(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        self.state.read().check(leadership_transfer)
    }

    /// Whether this member may say that it knows of no later leader. A member that is sealed, or
    /// has just started, has its votes.
    pub(crate) fn may_confirm(&self) -> Result<(), NoVote> {
        self.state.read().gate.check(true)
    }

    /// Whether what the leader of `term` sends may be taken and acknowledged.
    pub(crate) fn may_follow(&self, term: u64) -> Result<(), NoVote> {
        match self.state.read().follows_from {
            Some(from) if from <= term => Ok(()),
            _ => Err(NoVote::MayHaveForgotten(term)),
        }
    }

    /// This member has forgotten no vote of a later term than this.
    pub(crate) fn follow_from(&self, term: u64) {
        self.state.write().follows_from = Some(term);
    }

    /// This member has forgotten votes, and does not know yet of which terms.
    pub(crate) fn follow_no_leader(&self) {
        self.state.write().follows_from = None;
    }

    /// A member that is sealed stays sealed.
    pub(crate) fn set_gate(&self, gate: VoteGate) {
        self.state.write().gate = gate;
    }

    /// Runs `stand` if the member may stand for election; sealing does not come between.
    pub(crate) fn if_open<T>(&self, stand: impl FnOnce() -> T) -> Option<T> {
        let state = self.state.read();
        state.check(false).is_ok().then(stand)
    }

    pub(crate) fn seal(&self) {
        self.state.write().is_sealed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn votes_are_kept_in_until_they_are_safe() {
        let votes = Votes::default();
        assert_eq!(votes.check(true), Err(NoVote::Undecided));
        votes.set_gate(VoteGate::OpensAt(Instant::now() + Duration::from_secs(3600)));
        assert_eq!((votes.check(false), votes.check(true)), (Err(NoVote::JustStarted), Ok(())));
        votes.set_gate(VoteGate::OpensAt(Instant::now()));
        assert_eq!(votes.check(false), Ok(()));
        votes.set_gate(VoteGate::Never);
        assert_eq!(votes.check(true), Err(NoVote::Wiped));
    }

    #[test]
    fn what_is_sealed_stays_sealed() {
        let votes = Votes::default();
        votes.seal();
        votes.set_gate(VoteGate::OpensAt(Instant::now()));
        assert_eq!((votes.check(true), votes.if_open(|| ())), (Err(NoVote::Sealed), None));
    }

    #[test]
    fn a_member_that_may_have_forgotten_a_vote_answers_no_earlier_leader_sealed_or_not() {
        let votes = Votes::default();
        let forgotten = |term| Err(NoVote::MayHaveForgotten(term));
        assert_eq!(
            (votes.may_follow(7), votes.may_confirm()),
            (forgotten(7), Err(NoVote::Undecided))
        );
        votes.set_gate(VoteGate::Never);
        votes.follow_from(6);
        votes.seal();
        assert_eq!((votes.may_follow(5), votes.may_follow(6)), (forgotten(5), Ok(())));
        assert_eq!(votes.may_confirm(), Err(NoVote::Wiped));
        votes.set_gate(VoteGate::Behind);
        assert_eq!(votes.may_confirm(), Err(NoVote::Behind));
        votes.set_gate(VoteGate::OpensAt(Instant::now() + Duration::from_secs(3600)));
        assert_eq!((votes.may_confirm(), votes.check(true)), (Ok(()), Err(NoVote::Sealed)));
    }
}
