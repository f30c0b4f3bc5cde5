//! The voters of a group, and the steps of a change.

use std::collections::BTreeSet;

use meridian_types::NodeId;

/// The members of a group: one set of voters, or two while they change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    configs: Vec<BTreeSet<NodeId>>,
    /// They are sent the log, and do not vote.
    learners: BTreeSet<NodeId>,
}

/// The next step on the way to other voters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// A newcomer has not caught up.
    Wait,
    Propose(Members),
}

impl Members {
    pub(crate) fn of(voters: BTreeSet<NodeId>) -> Self {
        Self { configs: vec![voters], learners: BTreeSet::new() }
    }

    /// During a change those before and after it.
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        self.configs.iter().any(|config| config.contains(&node))
    }

    pub(crate) fn all(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().chain(&self.learners).copied().collect()
    }

    /// Whether these voters, and no others, decide.
    pub(crate) fn are_just(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.configs.as_slice() == std::slice::from_ref(voters)
    }

    /// Whether those that satisfy `has` are a majority, in each set of voters.
    pub(crate) fn is_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let is_majority = |config: &BTreeSet<NodeId>| {
            config.iter().filter(|voter| has(**voter)).count() > config.len() / 2
        };
        !self.configs.is_empty() && self.configs.iter().all(is_majority)
    }

    /// The most that a quorum has reached.
    pub(crate) fn reached<M: Ord + Copy + Default>(&self, of: impl Fn(NodeId) -> M) -> M {
        let marks: BTreeSet<_> = self.configs.iter().flatten().map(|voter| of(*voter)).collect();
        let quorum =
            marks.into_iter().rev().find(|mark| self.is_quorum(|voter| of(voter) >= *mark));
        quorum.unwrap_or_default()
    }

    /// From a committed membership towards `goal`, in the steps in which the product goes there:
    /// newcomers are added as learners; then both sets decide; then the new one alone; then
    /// learners that were left go.
    pub(crate) fn step(&self, goal: &BTreeSet<NodeId>, caught_up: impl Fn(NodeId) -> bool) -> Step {
        if self.are_just(goal) {
            let is_clean = self.learners.is_empty();
            return if is_clean { Step::Done } else { Step::Propose(Self::of(goal.clone())) };
        }
        let (all, voters) = (self.all(), self.voters());
        if let Some(missing) = goal.difference(&all).next() {
            let mut next = self.clone();
            next.learners.insert(*missing);
            return Step::Propose(next);
        }
        if goal.difference(&voters).any(|newcomer| !caught_up(*newcomer)) {
            return Step::Wait;
        }
        let configs = match self.configs.last() {
            Some(last) if !self.configs.contains(goal) => vec![last.clone(), goal.clone()],
            _ => vec![goal.clone()],
        };
        let mut next = Self { configs, learners: self.learners.clone() };
        let voters = next.voters();
        next.learners.retain(|learner| !voters.contains(learner));
        Step::Propose(next)
    }
}
