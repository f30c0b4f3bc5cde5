//! Three primary members, two replica regions of three nodes: lossy, duplicating and reordering
//! links, crashes that lose what was not persisted, dead relays, cut links, purged logs, failovers
//! that lose the tail. Every run must keep the invariants (`world.rs` checks them at each action)
//! and must heal.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code outside of #[test] functions"
)]

mod node;
mod rng;
mod world;

use meridian_types::NodeId;
use node::PRIMARY;
use world::{Bug, World};

const REPLICAS: [NodeId; 6] =
    [NodeId(11), NodeId(12), NodeId(13), NodeId(21), NodeId(22), NodeId(23)];

/// Runs `ms` milliseconds, with a batch committed every 10 of them.
fn run(world: &mut World, ms: u64, mut each: impl FnMut(&mut World)) -> Result<(), String> {
    let end = world.now + ms;
    while world.now < end {
        if world.now.is_multiple_of(10) {
            world.commit();
        }
        each(world);
        world.step();
        if let Some(violation) = world.violation.take() {
            return Err(format!("at {} ms: {violation}", world.now));
        }
    }
    Ok(())
}

fn chaos(world: &mut World) {
    if world.rng.chance(4) {
        let id = REPLICAS[world.rng.below(6) as usize];
        let node = world.nodes.get_mut(&id).unwrap();
        if node.up { node.crash() } else { node.start(world.now) }
    }
    if world.rng.chance(2) {
        let relay = world.nodes.values().find(|node| {
            node.follower.as_ref().is_some_and(|follower| follower.election.is_relay())
        });
        if let Some(id) = relay.map(|node| node.id) {
            world.nodes.get_mut(&id).unwrap().crash();
        }
    }
    if world.rng.chance(2) {
        let id = PRIMARY[world.rng.below(3) as usize];
        let node = world.nodes.get_mut(&id).unwrap();
        if node.up { node.crash() } else { node.start(world.now) }
    }
    if world.rng.chance(4) {
        let pair = (
            REPLICAS[world.rng.below(6) as usize],
            *world.nodes.keys().nth(world.rng.below(9) as usize).unwrap(),
        );
        if world.cut.len() > 4 { world.cut.clear() } else { world.cut.push(pair) }
    }
    if world.rng.chance(3) {
        let id = *world.nodes.keys().nth(world.rng.below(9) as usize).unwrap();
        let keep = world.rng.below(200) as usize;
        world.purge(id, keep);
    }
    if world.rng.chance(1) {
        let lost = world.rng.below(15);
        world.fail_over(lost);
    }
}

fn heal(world: &mut World) -> Result<(), String> {
    world.lossy = false;
    world.cut.clear();
    let now = world.now;
    world.nodes.values_mut().filter(|node| !node.up).for_each(|node| node.start(now));
    run(world, 20_000, |_| {})?;
    let want = world.truth().last().copied().unwrap();
    for id in REPLICAS {
        let node = &world.nodes[&id];
        if node.last().epoch != want.epoch || node.last().sequence + 20 < want.sequence {
            let receiver = &node.follower.as_ref().unwrap().receiver;
            return Err(format!("{id} stays at {} of {want}: {receiver:?}", node.last()));
        }
        let first = node.purged.sequence as usize;
        if node.log != world.truth()[first..first + node.log.len()] {
            return Err(format!("{id} holds what was not committed"));
        }
    }
    for region in [1, 2] {
        let relays = REPLICAS.iter().filter(|id| id.0 / 10 == region);
        let relays =
            relays.filter(|id| world.nodes[id].follower.as_ref().unwrap().election.is_relay());
        if relays.count() != 1 {
            return Err(format!("region {region} does not have one relay"));
        }
    }
    Ok(())
}

fn story(seed: u64, bug: Bug) -> Result<World, String> {
    let mut world = World::new(seed, bug);
    world.lossy = true;
    run(&mut world, 20_000, chaos)?;
    heal(&mut world)?;
    Ok(world)
}

fn seeds() -> u64 {
    std::env::var("MERIDIAN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn every_run_keeps_the_invariants_and_heals() {
    let (mut snapshots, mut orphans, mut failovers) = (0, 0, 0);
    for seed in 0..seeds() {
        let world = story(seed, Bug::None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        snapshots += world.snapshots;
        orphans += world.orphans;
        failovers += world.bases.len();
    }
    println!("{snapshots} snapshots, {orphans} orphans, {failovers} failovers");
    assert!(snapshots > 0 && orphans > 0 && failovers > 0, "the simulation became too gentle");
}

#[test]
fn in_calm_weather_each_batch_crosses_each_wan_link_once() {
    for seed in 0..10 {
        let mut world = World::new(seed, Bug::None);
        run(&mut world, 30_000, |_| {}).unwrap();
        for region in [1, 2] {
            let (crossed, committed) = (world.wan_batches[&region], world.truth().len() as u64);
            assert!(crossed <= committed && crossed + 20 > committed, "{crossed} of {committed}");
        }
    }
}

#[test]
fn a_dead_relay_costs_each_region_little_wan_traffic() {
    let mut world = World::new(7, Bug::None);
    run(&mut world, 10_000, |_| {}).unwrap();
    for id in [11, 21].map(NodeId) {
        assert!(world.nodes[&id].follower.as_ref().unwrap().election.is_relay());
        world.nodes.get_mut(&id).unwrap().crash();
    }
    run(&mut world, 10_000, |_| {}).unwrap();
    assert!(world.nodes[&NodeId(12)].follower.as_ref().unwrap().election.is_relay());
    world.nodes.get_mut(&NodeId(11)).unwrap().start(20_000);
    run(&mut world, 10_000, |_| {}).unwrap();
    assert!(world.nodes[&NodeId(12)].follower.as_ref().unwrap().election.is_relay(), "sticky");
    for region in [1, 2] {
        let (crossed, committed) = (world.wan_batches[&region], world.truth().len() as u64);
        // The batches in the dead relay's window (30), and those that it had not passed on, cross
        // again.
        assert!(crossed < committed + 80, "{crossed} of {committed}");
    }
}

fn is_caught(bug: Bug, by: &str) -> bool {
    (0..20).any(|seed| story(seed, bug).is_err_and(|error| error.contains(by)))
}

#[test]
fn a_receiver_that_reports_before_it_persists_is_caught() {
    assert!(is_caught(Bug::ReportsBeforePersisted, "is durable"));
}

#[test]
fn a_receiver_that_skips_the_contiguity_check_is_caught() {
    assert!(is_caught(Bug::SkipsTheContiguityCheck, "persists"));
}
