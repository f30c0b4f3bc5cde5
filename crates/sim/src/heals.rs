//! When faults are over and all nodes are up, the shard becomes active within a bound, writes
//! succeed, and all nodes come to hold one and the same history, which is what was committed. The
//! shard's group has then the voters that the directory names.

use meridian_directory::Phase;

use crate::clock::{Instant, SECOND};
use crate::world::World;

const NAME: &str = "heals";

/// A failover, the next one if it comes to nothing, and the backoff of those that follow.
const BOUND: Instant = 40 * SECOND;
/// After that a shard that waits for an operator's word gets it, also one in manual mode that
/// stands still.
const PATIENCE: Instant = 20 * SECOND;
/// Delays, schedules, handlers that take long and leases that run out, one after the other.
const DRAINED: Instant = 90 * SECOND;
const SETTLED: Instant = 12 * SECOND;

/// Heals the world and watches it recover.
///
/// # Errors
/// The violation.
pub(crate) fn check(world: &mut World) -> Result<(), String> {
    world.heal();
    let began = world.now;
    while !is_active(world) || !world.all_acked_since(began) {
        let next = world.now + SECOND / 2;
        world.run_until(next)?;
        if world.now == began + PATIENCE {
            world.force_failover();
        }
        if world.now > began + BOUND {
            return Err(format!("{NAME}: after {} s: {:?}", BOUND / SECOND, world.shard()));
        }
    }
    world.hush();
    drain(world)?;
    let settled = world.now + SETTLED;
    world.run_until(settled)?;
    world.finish();
    if let Some(violation) = world.observer.violation.take() {
        return Err(violation);
    }
    let Some(shard) = world.shard() else { return Err(format!("{NAME}: there is no shard")) };
    let truth = world.observer.truth(shard.epoch).to_vec();
    if !world.nodes().any(|node| node.leads_just(&shard.voters)) {
        return Err(format!("{NAME}: no node leads a group of just {:?}", shard.voters));
    }
    for node in world.nodes() {
        if node.disk.history != truth {
            let (has, wanted) = (node.end(), crate::message::end_of(&truth));
            return Err(format!("{NAME}: n{} has {has}, and {wanted} was committed", node.id));
        }
    }
    Ok(())
}

/// Until each message is settled and each report answered, where there is a queue. Messages that are
/// not by then are lost, which their history shows.
fn drain(world: &mut World) -> Result<(), String> {
    let until = world.now + DRAINED;
    while !world.is_drained() && world.now < until {
        let next = world.now + SECOND / 2;
        world.run_until(next)?;
    }
    Ok(())
}

fn is_active(world: &World) -> bool {
    world.shard().is_some_and(|shard| shard.phase == Phase::Active)
}
