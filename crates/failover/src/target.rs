//! Which region a shard fails over to: one policy, by which the controller decides and which the
//! preview shows to operators.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use meridian_directory::{Cluster, majority};
use meridian_types::{NodeId, Position};

/// Data centers of `region` with a node that is `usable`.
pub(crate) fn data_centers(
    cluster: &Cluster,
    region: &str,
    usable: impl Fn(NodeId) -> bool,
) -> usize {
    let nodes = cluster.nodes_of(region).filter(|(id, _)| usable(*id));
    nodes.map(|(_, node)| &node.data_center).collect::<BTreeSet<_>>().len()
}

/// Whether `region` can be made the primary without an operator's word: a commit there has to lie
/// in two data centers, and the usable ones have to be a majority of those that will vote.
pub(crate) fn can_take_over(
    cluster: &Cluster,
    region: &str,
    usable: impl Fn(NodeId) -> bool,
) -> bool {
    let data_centers = data_centers(cluster, region, usable);
    data_centers >= 2 && data_centers >= majority(cluster.voters_in(region))
}

/// The region that a failover goes to, chosen anew as long as nodes come, go and catch up.
#[derive(Debug, Default)]
pub(crate) struct TargetChoice {
    /// Kept while it can take over, so that a node that answers late does not turn the choice.
    chosen: Option<String>,
    /// Regions that were chosen and came no nearer to the base: they would have to pull batches
    /// that no reachable node has.
    passed_over: BTreeSet<String>,
}

impl TargetChoice {
    /// The most advanced region that can take over, by the `position` of its `usable` nodes; among
    /// equals, the order in which regions were named. `home`, the region that has failed, comes
    /// last: what survived there is pulled from it.
    pub(crate) fn choose(
        &mut self,
        cluster: &Cluster,
        home: &str,
        usable: impl Fn(NodeId) -> bool,
        position: impl Fn(NodeId) -> Option<Position>,
    ) -> Option<String> {
        let eligible: Vec<&String> = cluster
            .regions
            .iter()
            .filter(|region| can_take_over(cluster, region, &usable))
            .collect();
        if self.chosen.as_ref().is_some_and(|chosen| eligible.contains(&chosen)) {
            return self.chosen.clone();
        }
        let most = |region: &str| -> Option<Position> {
            let nodes = cluster.nodes_of(region).map(|(node, _)| node);
            nodes.filter(|node| usable(*node)).filter_map(&position).max()
        };
        let preference = |region: &&String| {
            (self.passed_over.contains(*region), **region == home, Reverse(most(region)))
        };
        // The first of equals.
        self.chosen = eligible.into_iter().min_by_key(preference).cloned();
        self.chosen.clone()
    }

    /// The chosen region came no nearer to the base. Returns whether there was one.
    pub(crate) fn pass_over(&mut self) -> bool {
        let Some(region) = self.chosen.take() else { return false };
        self.passed_over.insert(region);
        true
    }

    /// The plan has changed: a region is chosen anew.
    pub(crate) fn forget(&mut self) {
        self.chosen = None;
    }
}

#[cfg(test)]
impl TargetChoice {
    /// A choice that was made.
    pub(crate) fn kept(region: &str) -> Self {
        Self { chosen: Some(region.to_owned()), ..Self::default() }
    }

    pub(crate) fn chosen(&self) -> Option<&str> {
        self.chosen.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use meridian_directory::testing::{at, cluster};

    use super::*;

    /// Positions of nodes 4 and 5, in region `b`, and of 6 and 7, in `c`.
    fn choose(choice: &mut TargetChoice, positions: [u64; 4]) -> Option<String> {
        let position = |node: NodeId| {
            let index = usize::try_from(node.0).ok()?.checked_sub(4)?;
            positions.get(index).map(|sequence| at(1, *sequence))
        };
        choice.choose(&cluster(), "a", |node| position(node).is_some(), position)
    }

    #[test]
    fn the_most_advanced_region_is_chosen_and_kept() {
        let mut choice = TargetChoice::default();
        assert_eq!(choose(&mut choice, [90, 80, 95, 70]).as_deref(), Some("c"));
        assert_eq!(choose(&mut choice, [99, 99, 95, 70]).as_deref(), Some("c"));
        choice.forget();
        assert_eq!(choose(&mut choice, [99, 99, 95, 70]).as_deref(), Some("b"));
    }

    #[test]
    fn first_named_region_wins_among_equals_and_a_passed_over_region_loses() {
        let mut choice = TargetChoice::default();
        assert!(!choice.pass_over());
        assert_eq!(choose(&mut choice, [90; 4]).as_deref(), Some("b"));
        assert!(choice.pass_over());
        assert_eq!(choose(&mut choice, [99, 99, 1, 1]).as_deref(), Some("c"));
    }

    #[test]
    fn the_region_that_has_failed_is_chosen_only_where_no_other_can_take_over() {
        let cluster = cluster();
        let all = |_| Some(at(1, 9));
        let mut choice = TargetChoice::default();
        assert_eq!(choice.choose(&cluster, "a", |_| true, all).as_deref(), Some("b"));
        let mut choice = TargetChoice::default();
        assert_eq!(choice.choose(&cluster, "a", |node| node.0 <= 3, all).as_deref(), Some("a"));
        let mut choice = TargetChoice::default();
        assert_eq!(choice.choose(&cluster, "a", |node| node.0 % 3 == 1, all), None, "one each");
    }
}
