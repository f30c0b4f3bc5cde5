//! Confirms that this node leads a group, before a strong read and before a term's first write.

use std::time::Instant;

use meridian_consensus::{NotLeading, RaftGroup};

use crate::read::shared_call::Rounds;

/// Says whether this node leads a group, for reads: by its lease, or else by asking a quorum, once
/// for all that wait.
pub(crate) struct ReadGate {
    rounds: Rounds<Result<(), NotLeading>>,
}

impl ReadGate {
    pub(crate) fn start(group: RaftGroup) -> Self {
        Self {
            rounds: Rounds::start(move || {
                let group = group.clone();
                async move { group.read_index().await }
            }),
        }
    }

    /// One whose quorum confirms everything.
    #[cfg(test)]
    pub(crate) fn confirmed() -> Self {
        Self { rounds: Rounds::start(|| async { Ok(()) }) }
    }

    /// On success the state applied here holds every write that was acknowledged before this call,
    /// and all that another voter has shown.
    ///
    /// A lease read also needs an entry of this term applied: before, the state may lack what an
    /// earlier leader acknowledged; and all that the other voters were told to be committed, since
    /// they may apply it sooner than the leader. The lease is looked at after the call began, so
    /// even a node that is stopped right after and wakes much later returns what was the newest
    /// state at some time during the call. The term in which that was so.
    pub(crate) async fn confirm(&self, group: &RaftGroup) -> Result<u64, NotLeading> {
        let leadership = group.leadership()?;
        let applied_term = group.applied().borrow().term;
        if applied_term == leadership.term
            && leadership.lease_until.is_some_and(|until| Instant::now() < until)
        {
            let applied = group.has_applied_what_it_advertised().await;
            return if applied { Ok(leadership.term) } else { Err(NotLeading { leader: None }) };
        }
        self.rounds.join().await.unwrap_or(Err(NotLeading { leader: None }))?;
        match group.leadership()? {
            // Another term began meanwhile: nobody knows which one the quorum confirmed.
            other if other.term != leadership.term => Err(NotLeading { leader: None }),
            same => Ok(same.term),
        }
    }
}
