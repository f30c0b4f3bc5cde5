//! The voters of a group, and how they are changed: one step after another, from wherever an
//! earlier call was dropped.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use meridian_storage::StorageError;
use meridian_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, RaftMetrics};
use parking_lot::Mutex;

use super::{NotLeading, RaftGroup, TypeConfig};
use crate::membership;

/// Before looking again whether a change can go on.
const PAUSE: Duration = Duration::from_millis(20);

/// Why Raft did not take a step.
type StepError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

/// Why the voters were not changed. A change that was begun stays so: call again, on the leader.
#[derive(Debug, thiserror::Error)]
pub enum ChangeVotersFailure {
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    #[error("a group without voters cannot be")]
    NoVoters,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The next step from one membership to another.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Done,
    /// The last change is not committed yet, or a newcomer has not caught up.
    Wait,
    /// As a copy that does not vote.
    Add(NodeId),
    /// The newcomers among the voters.
    Vote(BTreeSet<NodeId>),
    /// Copies that an earlier call left, on its way elsewhere.
    Remove(BTreeSet<NodeId>),
}

/// A membership as it is taken from Raft.
#[derive(Debug, Clone)]
struct Present {
    /// More than one during a change.
    configs: Vec<BTreeSet<NodeId>>,
    members: BTreeSet<NodeId>,
    committed: bool,
}

impl Present {
    fn from_metrics(metrics: &RaftMetrics<TypeConfig>) -> Self {
        let effective = &metrics.membership_config;
        let membership = effective.membership();
        Self {
            configs: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, ())| *id).collect(),
            committed: effective.log_id() == metrics.committed_membership_config.log_id(),
        }
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    fn step(&self, goal: &BTreeSet<NodeId>, caught_up: impl Fn(NodeId) -> bool) -> Step {
        if !self.committed {
            return Step::Wait;
        }
        if self.configs == [goal.clone()] {
            let surplus: BTreeSet<NodeId> = self.members.difference(goal).copied().collect();
            return if surplus.is_empty() { Step::Done } else { Step::Remove(surplus) };
        }
        if let Some(missing) = goal.difference(&self.members).next() {
            return Step::Add(*missing);
        }
        let newcomers: BTreeSet<NodeId> = goal.difference(&self.voters()).copied().collect();
        if newcomers.iter().any(|newcomer| !caught_up(*newcomer)) {
            return Step::Wait;
        }
        Step::Vote(newcomers)
    }
}

/// Calls of [`RaftGroup::change_voters`] on this member.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<(usize, Option<Instant>)>);

impl Changes {
    /// The time after which a change that an abandoned call asked of Raft shows in Raft's metrics.
    const AFTERMATH: Duration = Duration::from_secs(1);

    fn may_go_on(&self) -> bool {
        let (under_way, given_up_at) = *self.0.lock();
        under_way > 0 || given_up_at.is_some_and(|at| at.elapsed() < Self::AFTERMATH)
    }
}

struct UnderWay<'a> {
    changes: &'a Changes,
    is_done: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(changes: &'a Changes) -> Self {
        changes.0.lock().0 += 1;
        Self { changes, is_done: false }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let (under_way, given_up_at) = &mut *self.changes.0.lock();
        *under_way -= 1;
        if !self.is_done {
            *given_up_at = Some(Instant::now());
        }
    }
}

impl RaftGroup {
    /// The present voters, as far as this member knows; during a change those before and after it.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().collect()
    }

    /// Whether the node votes by any membership that may decide, as far as this member knows, or leads
    /// it: a leader that leaves the group leads until all know of it, and hands over.
    pub(crate) fn may_have_voter(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader == Some(node) {
            return true;
        }
        let memberships = [&metrics.membership_config, &metrics.committed_membership_config];
        memberships.iter().any(|stored| stored.membership().voter_ids().any(|voter| voter == node))
    }

    /// The voters that decide, and will under any later leader; `None` during a change, and while
    /// one may begin that this member was asked for.
    pub fn stable_voters(&self) -> Option<BTreeSet<NodeId>> {
        if self.changes.may_go_on() {
            return None;
        }
        let present = Present::from_metrics(&self.raft.metrics().borrow_watched());
        if !present.committed {
            return None;
        }
        <[_; 1]>::try_from(present.configs).ok().map(|[voters]| voters)
    }

    /// Makes the group's members exactly these voters, if this node leads. Waits until the
    /// newcomers have caught up; their nodes must have opened the group and begun to take part. May
    /// be dropped at any await and called again, also on another leader. Nothing happens if it is
    /// so already.
    ///
    /// A leader that is not among them stops leading soon after.
    pub async fn change_voters(
        &self,
        voters: &BTreeSet<NodeId>,
    ) -> Result<(), ChangeVotersFailure> {
        if voters.is_empty() {
            return Err(ChangeVotersFailure::NoVoters);
        }
        let mut under_way = UnderWay::begin(&self.changes);
        // A newcomer must have the log up to its present end; entries go on coming all the time.
        let behind = self.raft.metrics().borrow_watched().last_log_index;
        loop {
            let step = self.next_step(voters, behind);
            if step == Step::Done {
                under_way.is_done = true;
                return Ok(());
            }
            let term = self.leadership()?.term;
            let changed = tokio::select! {
                changed = self.carry_out(step, voters) => changed?,
                // openraft answers once the change is applied here or cut off. A leader that was
                // deposed and is no member any more is sent neither; nor does a newcomer answer for
                // ever that is gone.
                () = self.leadership_changed(Some(term)) => continue,
            };
            match changed {
                // Looked at again, since what Raft publishes trails.
                Some(Ok(_)) | None => {}
                Some(Err(RaftError::Fatal(fatal))) => {
                    return Err(self.raft_stopped(fatal).into());
                }
                // The lease has run out for a moment, or another change is under way, or another
                // leads.
                Some(Err(RaftError::APIError(error))) => {
                    tracing::info!(group = %self.id, %error, "changing the voters goes on");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Raft's answer to the step, if the step asks Raft for anything.
    async fn carry_out(
        &self,
        step: Step,
        voters: &BTreeSet<NodeId>,
    ) -> Result<Option<Result<(), StepError>>, StorageError> {
        let taken = match step {
            Step::Done | Step::Wait => return Ok(None),
            Step::Add(node) => self.raft.add_learner(node, (), false).await,
            Step::Vote(newcomers) => {
                for newcomer in newcomers {
                    let engine = self.state.engine();
                    membership::introduce(engine, self.id, newcomer, voters, &self.peers).await?;
                }
                self.raft.change_membership(voters.clone(), false).await
            }
            Step::Remove(nodes) => {
                self.raft.change_membership(ChangeMembers::RemoveNodes(nodes), false).await
            }
        };
        Ok(Some(taken.map(drop)))
    }

    fn next_step(&self, goal: &BTreeSet<NodeId>, behind: Option<u64>) -> Step {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let present = Present::from_metrics(&metrics);
        let replicated =
            |node| metrics.replication.as_ref()?.get(&node)?.as_ref().map(|log_id| log_id.index);
        present.step(goal, |node| node == self.node_id || replicated(node) >= behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn present(configs: &[&[u64]], members: &[u64]) -> Present {
        let configs = configs.iter().map(|config| set(config)).collect();
        Present { configs, members: set(members), committed: true }
    }

    #[test]
    fn a_change_may_go_on_until_it_is_done_and_for_a_while_after_it_was_given_up() {
        let changes = Changes::default();
        assert!(!changes.may_go_on());
        let (mut first, mut second) = (UnderWay::begin(&changes), UnderWay::begin(&changes));
        assert!(changes.may_go_on());
        first.is_done = true;
        drop(first);
        assert!(changes.may_go_on(), "one of two is done");
        second.is_done = true;
        drop(second);
        assert!(!changes.may_go_on());
        // Raft may still do what it was asked.
        drop(UnderWay::begin(&changes));
        assert!(changes.may_go_on());
        changes.0.lock().1 = Instant::now().checked_sub(Changes::AFTERMATH);
        assert!(!changes.may_go_on());
    }

    #[test]
    fn a_change_takes_one_step_after_another_from_wherever_it_stands() {
        let goal = set(&[2, 3, 4]);
        let start = present(&[&[1, 2, 3]], &[1, 2, 3]);
        assert_eq!(start.step(&goal, |_| true), Step::Add(NodeId(4)));
        assert_eq!(Present { committed: false, ..start }.step(&goal, |_| true), Step::Wait);
        let added = present(&[&[1, 2, 3]], &[1, 2, 3, 4]);
        assert_eq!(added.step(&goal, |node| node != NodeId(4)), Step::Wait);
        assert_eq!(added.step(&goal, |node| node == NodeId(4)), Step::Vote(set(&[4])));
        // A change that was interrupted in the middle, and another that was on its way elsewhere.
        assert_eq!(
            present(&[&[1, 2, 3], &[2, 3, 4]], &[1, 2, 3, 4]).step(&goal, |_| true),
            Step::Vote(set(&[]))
        );
        assert_eq!(
            present(&[&[1, 2, 3], &[3, 5]], &[1, 2, 3, 5]).step(&goal, |_| true),
            Step::Add(NodeId(4))
        );
        assert_eq!(
            present(&[&[2, 3, 4]], &[2, 3, 4, 5]).step(&goal, |_| true),
            Step::Remove(set(&[5]))
        );
        assert_eq!(present(&[&[2, 3, 4]], &[2, 3, 4]).step(&goal, |_| true), Step::Done);
    }
}
