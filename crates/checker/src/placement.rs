//! Where in the order of commits the operations lie that only show the state: reads and failed
//! checks.
//!
//! Every such operation must get a point at which all its conditions hold, and
//!
//! 1. the point is not below its *floor*: it includes every commit that was acknowledged before the
//!    operation was invoked (strong operations only);
//! 2. the point is not above its *ceiling*: it includes no commit that was invoked after the
//!    operation completed;
//! 3. of two operations, one completed before the other was invoked, the other's point is not
//!    lower.
//!
//! On a branch that a failover ended, not every condition can be demanded: see
//! [`crate::lost_branch::LostBranch`].
//!
//! **These suffice.** Order everything by point, the commits between the points, and operations of
//! one point by invocation. This order keeps real time: between commits because versionstamps do
//! ([`crate::Invariant::Versionstamps`]); between a commit and an operation by 1 and 2; between
//! operations of different points by 3, and of one point because an operation that completed before
//! another's invocation was also invoked before it.
//!
//! **The smallest point finds them.** Operations are taken by invocation; each gets the least point
//! that satisfies 1, 3 and its conditions. All operations that 3 compares with were invoked
//! earlier, so they have points already. Let any valid assignment be given. By induction no point
//! chosen here is above the given one: the given point satisfies 1 and the conditions, and lies
//! above the given points of all predecessors, so above the points chosen here; the least such
//! point is not higher. Hence it is not above the ceiling either. So where a valid assignment
//! exists, this one is found, without a search; and where an operation gets no point, there is
//! none.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::commits::{Bound, Commits};
use crate::lost_branch::QueryKind;
use crate::timeline::{Condition, Timeline};

/// A read, or the failed checks of a transaction: an operation that shows the state and does not
/// change it.
pub(crate) struct Query<'h> {
    pub(crate) record: usize,
    pub(crate) invoked_ns: u64,
    pub(crate) completed_ns: u64,
    pub(crate) kind: QueryKind,
    pub(crate) conditions: Vec<Condition<'h>>,
}

/// A query for which there is no point. It bounds no others.
pub(crate) struct Unplaceable<'h> {
    pub(crate) query: Query<'h>,
    pub(crate) floor: Bound,
    pub(crate) ceiling: Bound,
}

/// Whether a query must see all commits that were acknowledged before it was invoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Acknowledged,
    Any,
}

/// Finds a point for every query, and returns the queries for which there is none.
pub(crate) fn find_points<'h>(
    mut queries: Vec<Query<'h>>,
    freshness: Freshness,
    commits: &Commits<'h>,
    timeline: &Timeline<'h>,
) -> Vec<Unplaceable<'h>> {
    queries.sort_by_key(|query| (query.invoked_ns, query.record));
    let mut placed = BinaryHeap::new();
    let mut shown = Bound { point: 0, cause: None };
    let mut unplaceable = Vec::new();
    for query in queries {
        while let Some(Reverse((completed_ns, point, record))) = placed.peek().copied()
            && completed_ns < query.invoked_ns
        {
            placed.pop();
            if point > shown.point {
                shown = Bound { point, cause: Some(record) };
            }
        }
        let floor = match freshness {
            Freshness::Acknowledged => higher(shown, commits.acknowledged_before(query.invoked_ns)),
            Freshness::Any => shown,
        };
        let ceiling = commits.invoked_by(query.completed_ns);
        match least_point(&query, floor.point, ceiling.point, commits, timeline) {
            Some(point) => placed.push(Reverse((query.completed_ns, point, query.record))),
            None => unplaceable.push(Unplaceable { query, floor, ceiling }),
        }
    }
    unplaceable
}

/// The least point within the bounds at which all conditions hold that can be demanded there.
fn least_point(
    query: &Query<'_>,
    floor: usize,
    ceiling: usize,
    commits: &Commits<'_>,
    timeline: &Timeline<'_>,
) -> Option<usize> {
    let conditions = &query.conditions;
    let known = timeline.first_point(conditions, floor, ceiling);
    let ambiguous = commits.lost_branches.iter().filter_map(|branch| {
        let clear = |condition: &&Condition<'_>| {
            !branch.has_ambiguous(condition.key, query.kind, query.completed_ns)
        };
        let demanded: Vec<_> = conditions.iter().filter(clear).copied().collect();
        if demanded.len() == conditions.len() {
            return None;
        }
        timeline.first_point(&demanded, floor.max(branch.from), ceiling.min(branch.to))
    });
    known.into_iter().chain(ambiguous).min()
}

fn higher(a: Bound, b: Bound) -> Bound {
    if a.point > b.point { a } else { b }
}

impl<'h> Unplaceable<'h> {
    /// Explains why there is no point.
    pub(crate) fn reason(&self, commits: &Commits<'h>, timeline: &Timeline<'h>) -> String {
        const SHOWN: usize = 8;
        let conditions = &self.query.conditions;
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

    /// The records of the operation itself and of the operations that bound it.
    pub(crate) fn records(&self) -> impl Iterator<Item = usize> {
        [Some(self.query.record), self.floor.cause, self.ceiling.cause].into_iter().flatten()
    }
}
