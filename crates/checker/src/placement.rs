//! Where in the order of commits the operations that only look can lie.
//!
//! Every such operation must get a point, so that all its conditions hold there, and
//!
//! 1. the point is not below its *floor*: it has every commit that was acknowledged before the
//!    operation was invoked (strong operations only);
//! 2. the point is not above its *ceiling*: it has no commit that was invoked after the operation
//!    completed;
//! 3. of two operations, one completed before the other was invoked, the other's point is not
//!    lower.
//!
//! Within what a failover lost, not every condition can be demanded: see
//! [`crate::stretch::Stretch`].
//!
//! **These suffice.** Order everything by point, the commits between the points, and operations of
//! one point by invocation. This order keeps real time: between commits because versionstamps do
//! ([`crate::Invariant::Versionstamps`]); between a commit and an operation by 1 and 2; between
//! operations of different points by 3, and of one point since what completed before another's
//! invocation was invoked before it.
//!
//! **The smallest point finds them.** Operations are taken by invocation; each gets the least point
//! that satisfies 1 and 3 and its conditions. All that 3 asks about were invoked earlier, so they
//! have points already. Let any valid assignment be given. By induction no point chosen here is
//! above the given one: the given point satisfies 1 and the conditions, and lies above the given
//! points of all predecessors, so above those chosen here; the least such point is not higher.
//! Hence it is not above the ceiling either. So where a valid assignment exists, this one is found,
//! without a search; and where an operation gets no point, there is none.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::commits::{Bound, Commits};
use crate::stretch::Asker;
use crate::timeline::{Condition, Timeline};

/// An operation that looks at the state and does not change it.
pub(crate) struct Observation<'h> {
    pub(crate) record: usize,
    pub(crate) invoked_ns: u64,
    pub(crate) completed_ns: u64,
    pub(crate) asker: Asker,
    pub(crate) conditions: Vec<Condition<'h>>,
}

/// An observation for which there is no point. It bounds no others.
pub(crate) struct Misfit<'h> {
    pub(crate) observation: Observation<'h>,
    pub(crate) floor: Bound,
    pub(crate) ceiling: Bound,
}

/// Whether an observation must see what was acknowledged before it was invoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Acknowledged,
    Any,
}

/// Finds a point for every observation, and returns those that can have none.
pub(crate) fn place<'h>(
    mut observations: Vec<Observation<'h>>,
    freshness: Freshness,
    commits: &Commits<'h>,
    timeline: &Timeline<'h>,
) -> Vec<Misfit<'h>> {
    observations.sort_by_key(|observation| (observation.invoked_ns, observation.record));
    let mut placed = BinaryHeap::new();
    let mut shown = Bound { point: 0, cause: None };
    let mut misfits = Vec::new();
    for observation in observations {
        while let Some(Reverse((completed_ns, point, record))) = placed.peek().copied()
            && completed_ns < observation.invoked_ns
        {
            placed.pop();
            if point > shown.point {
                shown = Bound { point, cause: Some(record) };
            }
        }
        let floor = match freshness {
            Freshness::Acknowledged => {
                higher(shown, commits.acknowledged_before(observation.invoked_ns))
            }
            Freshness::Any => shown,
        };
        let ceiling = commits.invoked_by(observation.completed_ns);
        match least_point(&observation, floor.point, ceiling.point, commits, timeline) {
            Some(point) => {
                placed.push(Reverse((observation.completed_ns, point, observation.record)))
            }
            None => misfits.push(Misfit { observation, floor, ceiling }),
        }
    }
    misfits
}

/// The least point within the bounds where all holds that can be demanded there.
fn least_point(
    observation: &Observation<'_>,
    floor: usize,
    ceiling: usize,
    commits: &Commits<'_>,
    timeline: &Timeline<'_>,
) -> Option<usize> {
    let conditions = &observation.conditions;
    let known = timeline.first_point(conditions, floor, ceiling);
    let clouded = commits.stretches.iter().filter_map(|stretch| {
        let clear = |condition: &&Condition<'_>| {
            !stretch.clouds(condition.key, observation.asker, observation.completed_ns)
        };
        let demanded: Vec<_> = conditions.iter().filter(clear).copied().collect();
        if demanded.len() == conditions.len() {
            return None;
        }
        timeline.first_point(&demanded, floor.max(stretch.from), ceiling.min(stretch.to))
    });
    known.into_iter().chain(clouded).min()
}

fn higher(a: Bound, b: Bound) -> Bound {
    if a.point > b.point { a } else { b }
}

impl<'h> Misfit<'h> {
    /// Why there is no point, in words.
    pub(crate) fn reason(&self, commits: &Commits<'h>, timeline: &Timeline<'h>) -> String {
        const SHOWN: usize = 8;
        let conditions = &self.observation.conditions;
        if let Some(condition) =
            conditions.iter().find(|condition| timeline.next(condition, 0).is_none())
        {
            return format!("no committed state has that {condition}");
        }
        if timeline.first_point(conditions, 0, commits.end()).is_none() {
            let places: Vec<String> = conditions
                .iter()
                .filter_map(|condition| {
                    Some(format!("{condition} after {} commits", timeline.next(condition, 0)?))
                })
                .take(SHOWN)
                .collect();
            return format!(
                "fractured, no one committed state has all of it: {}",
                places.join("; ")
            );
        }
        match timeline.first_point(conditions, self.floor.point, commits.end()) {
            Some(point) => format!(
                "from the future, it shows {point} commits, and the one behind the first {} was invoked only after it",
                self.ceiling.point
            ),
            None => format!(
                "stale, what it shows was over before the {} commits that it had to see",
                self.floor.point
            ),
        }
    }

    /// The operation itself and those that bound it.
    pub(crate) fn records(&self) -> impl Iterator<Item = usize> {
        [Some(self.observation.record), self.floor.cause, self.ceiling.cause].into_iter().flatten()
    }
}
