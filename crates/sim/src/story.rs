//! One run.

use crate::bugs::Bug;
use crate::clock::{Instant, SECOND};
use crate::heals;
use crate::invariants::Counts;
use crate::world::World;

const CALM: Instant = 3 * SECOND;
const CHAOS: Instant = 45 * SECOND;

/// One run: a calm beginning, faults, and the recovery from them.
///
/// # Errors
/// Which invariant was violated, when and how.
pub fn run(seed: u64, bug: Option<Bug>, verbose: bool) -> Result<Counts, String> {
    let mut world = World::new(seed, bug, verbose);
    world.run_until(CALM)?;
    world.break_things();
    world.run_until(CALM + CHAOS)?;
    heals::check(&mut world)?;
    Ok(world.observer.counts)
}
