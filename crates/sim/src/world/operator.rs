//! An operator that gives the shard other voters, and what goes wrong right then.

use std::collections::{BTreeMap, BTreeSet};

use meridian_directory::{Change, Cluster, Phase, Shard};
use meridian_types::NodeId;

use super::{Event, World};
use crate::clock::MS;
use crate::rng::Rng;
use crate::topology::{REGIONS, SHARD};

/// In every other run. Its choices are its own: what else happens from a seed does not depend on
/// them.
pub(super) fn of_seed(seed: u64) -> Option<Rng> {
    let mut rng = Rng::new(seed ^ 0x5E7_0E75);
    rng.chance(500).then_some(rng)
}

impl World {
    /// Now and then between two faults.
    pub(super) fn operate(&mut self) {
        let Some(mut rng) = self.operator.take() else { return };
        if rng.chance(350) {
            self.set_voters(&mut rng);
        }
        self.operator = Some(rng);
    }

    fn set_voters(&mut self, rng: &mut Rng) {
        let (Some(cluster), Some(shard)) = (self.cluster(), self.shard()) else { return };
        if shard.phase != Phase::Active {
            return;
        }
        let voters = other_voters(rng, &cluster, &shard);
        let changed: BTreeSet<_> = voters.symmetric_difference(&shard.voters).copied().collect();
        self.order(Change::SetVoters { shard: SHARD, voters: voters.clone() });
        match rng.below(10) {
            // The change is taken back, or goes elsewhere, while it is under way.
            0 => self.order(Change::SetVoters { shard: SHARD, voters: shard.voters }),
            1 | 2 => {
                if let Some(to) = rng.pick(&REGIONS) {
                    self.order(Change::BeginSwitchover { shard: SHARD, to: (*to).to_owned() });
                }
            }
            3 => self.hit(rng, &changed),
            4 => self.hit(rng, &shard.voters),
            5 => {
                let all = voters.union(&shard.voters).copied().collect();
                self.hit(rng, &all);
            }
            6 => self.cut_apart(rng, &shard.voters, &changed),
            _ => {}
        }
    }

    /// Some of these nodes restart while the change is under way.
    fn hit(&mut self, rng: &mut Rng, nodes: &BTreeSet<NodeId>) {
        for node in nodes {
            if rng.chance(300) {
                continue;
            }
            let at = rng.below(600) * MS;
            let lasts = if rng.chance(500) {
                rng.between(20, 300) * MS
            } else {
                rng.between(1, 12) * 1000 * MS
            };
            self.schedule(at, Event::Crash(*node));
            self.schedule(at + lasts, Event::Start(*node));
        }
    }

    /// One of the old voters is left with the newcomers, or without them.
    fn cut_apart(&mut self, rng: &mut Rng, old: &BTreeSet<NodeId>, changed: &BTreeSet<NodeId>) {
        let old: Vec<_> = old.iter().copied().collect();
        let Some(one) = rng.pick(&old).copied() else { return };
        let mut inside: BTreeSet<_> =
            if rng.chance(500) { changed.clone() } else { BTreeSet::new() };
        inside.insert(one);
        let outside: BTreeSet<_> = old.into_iter().chain(changed.iter().copied()).collect();
        let outside: BTreeSet<_> = outside.difference(&inside).copied().collect();
        let until = self.now + rng.between(200, 8000) * MS;
        self.say(&format!("cut: {inside:?} from {outside:?}, during a change of voters"));
        self.network.cut(inside.clone(), outside.clone(), until);
        self.network.cut(outside, inside, until);
    }
}

/// One voter replaced by another node of the region, two more or less, or any others.
fn other_voters(rng: &mut Rng, cluster: &Cluster, shard: &Shard) -> BTreeSet<NodeId> {
    let mut by_place: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for (id, node) in cluster.nodes_of(&shard.primary_region) {
        by_place.entry(&node.data_center).or_default().push(id);
    }
    let is_voter = |id: &NodeId| shard.voters.contains(id);
    let mut voters: Vec<NodeId> = Vec::new();
    let mut spares: Vec<NodeId> = Vec::new();
    let any = rng.chance(150);
    for nodes in by_place.values() {
        let voting = nodes.iter().copied().find(is_voter);
        match voting {
            Some(voter) if !any => voters.push(voter),
            _ => spares.extend(rng.pick(nodes)),
        }
    }
    let size = match rng.below(4) {
        0 => voters.len() + 2,
        1 if voters.len() > 2 => voters.len() - 2,
        _ => shard.voters.len(),
    };
    if size <= voters.len() && rng.chance(700) {
        replace(rng, &mut voters, &by_place);
    }
    while voters.len() > size {
        let index = rng.below(voters.len() as u64);
        voters.remove(usize::try_from(index).unwrap_or(0));
    }
    while voters.len() < size && !spares.is_empty() {
        let index = rng.below(spares.len() as u64);
        voters.push(spares.remove(usize::try_from(index).unwrap_or(0)));
    }
    voters.into_iter().collect()
}

/// One of `voters` by another node: of its own data center, or of a data center without a voter.
fn replace(rng: &mut Rng, voters: &mut [NodeId], by_place: &BTreeMap<&str, Vec<NodeId>>) {
    let index = usize::try_from(rng.below(voters.len() as u64)).unwrap_or(0);
    let Some(old) = voters.get(index).copied() else { return };
    let is_free = |nodes: &&Vec<NodeId>| {
        nodes.contains(&old) || !nodes.iter().any(|node| voters.contains(node))
    };
    let others: Vec<_> =
        by_place.values().filter(is_free).flatten().copied().filter(|node| *node != old).collect();
    if let (Some(new), Some(place)) = (rng.pick(&others).copied(), voters.get_mut(index)) {
        *place = new;
    }
}
