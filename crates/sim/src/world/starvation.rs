//! Processes that get too little of their machine: they run for a moment, stand still for longer,
//! and find what came meanwhile all at once. They answer late, but answer.

use meridian_types::NodeId;

use super::{Event, World};
use crate::clock::{Instant, MS, SECOND};
use crate::rng::Rng;

/// In every third run. Its choices are its own: what else happens from a seed does not depend on
/// them.
pub(super) fn of_seed(seed: u64) -> Option<Rng> {
    let mut rng = Rng::new(seed ^ 0x57A_12FE);
    rng.chance(330).then_some(rng)
}

/// Which processes are starved, and until when.
pub(super) struct Starved {
    rng: Rng,
    nodes: Vec<NodeId>,
    until: Instant,
    /// A process stands still for so long at most.
    still: Instant,
}

impl Starved {
    pub(super) fn new(rng: Rng) -> Self {
        Self { rng, nodes: Vec::new(), until: 0, still: 0 }
    }
}

impl World {
    /// Now and then between two faults.
    pub(super) fn starve(&mut self) {
        let Some(mut starved) = self.starved.take() else { return };
        if self.now > starved.until && starved.rng.chance(250) {
            let primary = self.shard().map(|shard| shard.primary_region).unwrap_or_default();
            starved.nodes = match starved.rng.below(3) {
                0 => self.nodes_in(&primary),
                1 => self.directory().into_iter().collect(),
                _ => self.ids.clone(),
            };
            starved.until = self.now + starved.rng.between(5, 15) * SECOND;
            starved.still = starved.rng.between(100, 1400) * MS;
            self.say(&format!(
                "starved: {:?}, still for up to {} ms",
                starved.nodes,
                starved.still / MS
            ));
            for id in starved.nodes.clone() {
                let first = starved.rng.below(starved.still);
                self.schedule(first, Event::Slice { node: id, runs: false });
            }
        }
        self.starved = Some(starved);
    }

    /// The process begins to stand still, or to run.
    pub(super) fn slice(&mut self, id: NodeId, runs: bool) {
        let Some(mut starved) = self.starved.take() else { return };
        let is_over = self.faults.is_none() || self.now > starved.until;
        let lasts = if runs {
            starved.rng.between(5, 80) * MS
        } else {
            starved.rng.below(starved.still) + MS
        };
        self.starved = Some(starved);
        if runs || is_over {
            self.resume(id);
        } else {
            self.pause(id);
        }
        // A node that it left standing goes on.
        if !is_over || !runs {
            self.schedule(lasts, Event::Slice { node: id, runs: !runs });
        }
    }
}
