//! Whether this member's votes count: those that it grants, and its own when it stands for election.

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
    #[error("this member's log is shorter than it was: it votes again when its leader has sent it as much")]
    Behind,
    #[error("this member is sealed: the epoch ends")]
    Sealed,
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
    /// The epoch ends: no leader may come after the present one. For the rest of this process, or until the
    /// group is opened again.
    Sealed,
}

impl VoteGate {
    /// A transfer is the leader's own will: its lease ends with it.
    fn check(self, leadership_transfer: bool) -> Result<(), NoVote> {
        match self {
            Self::Undecided => Err(NoVote::Undecided),
            Self::Never => Err(NoVote::Wiped),
            Self::Behind => Err(NoVote::Behind),
            Self::Sealed => Err(NoVote::Sealed),
            Self::OpensAt(at) if Instant::now() < at && !leadership_transfer => Err(NoVote::JustStarted),
            Self::OpensAt(_) => Ok(()),
        }
    }
}

/// Keeps a member's votes in until they are safe, and again once it is sealed. It is asked before Raft is
/// asked for a vote, and again before Raft's answer is used: none counts that came about meanwhile.
#[derive(Debug)]
pub(crate) struct Votes {
    gate: RwLock<VoteGate>,
}

impl Default for Votes {
    fn default() -> Self {
        Self { gate: RwLock::new(VoteGate::Undecided) }
    }
}

impl Votes {
    pub(crate) fn check(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        self.gate.read().check(leadership_transfer)
    }

    /// A member that is sealed stays sealed.
    pub(crate) fn settle(&self, gate: VoteGate) {
        let mut present = self.gate.write();
        if *present != VoteGate::Sealed {
            *present = gate;
        }
    }

    /// Runs `stand` if the member may stand for election; sealing does not come between.
    pub(crate) fn if_open(&self, stand: impl FnOnce()) {
        let gate = self.gate.read();
        if gate.check(false).is_ok() {
            stand();
        }
    }

    pub(crate) fn seal(&self, step_back: impl FnOnce()) {
        let mut gate = self.gate.write();
        *gate = VoteGate::Sealed;
        step_back();
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
        votes.settle(VoteGate::OpensAt(Instant::now() + Duration::from_secs(3600)));
        assert_eq!((votes.check(false), votes.check(true)), (Err(NoVote::JustStarted), Ok(())));
        votes.settle(VoteGate::OpensAt(Instant::now()));
        assert_eq!(votes.check(false), Ok(()));
        votes.settle(VoteGate::Never);
        assert_eq!(votes.check(true), Err(NoVote::Wiped));
    }

    #[test]
    fn what_is_sealed_stays_sealed() {
        let votes = Votes::default();
        let mut stands = false;
        votes.seal(|| ());
        votes.settle(VoteGate::OpensAt(Instant::now()));
        votes.if_open(|| stands = true);
        assert_eq!((votes.check(true), stands), (Err(NoVote::Sealed), false));
    }
}
