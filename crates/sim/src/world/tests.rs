//! Runs that are told step by step, where chance would seldom come.

use std::collections::BTreeSet;

use meridian_directory::{Change, FailoverMode, Phase};
use meridian_failover::ControllerConfig;
use meridian_types::{Epoch, NodeId, Position};

use super::World;
use crate::clock::{MS, SECOND};
use crate::message::sequence;
use crate::topology::SHARD;

/// Data centers: three in a, two in b, two in c; the directory votes with the first of each.
const NODES: [u64; 7] = [11, 12, 13, 21, 22, 31, 32];

/// A run of these nodes that has been well for some seconds, with its primary in a.
fn calm(seed: u64) -> Option<World> {
    let mut world = World::new(seed, None, false);
    let fails_over = |world: &World| {
        let cluster = world.cluster().unwrap();
        cluster.databases.values().all(|database| database.failover == FailoverMode::Auto)
    };
    if world.ids != NODES.map(NodeId) || !fails_over(&world) {
        return None;
    }
    world.run_until(5 * SECOND).unwrap();
    world.faults = Some(SECOND);
    Some(world)
}

fn run(world: &mut World, time: u64) {
    world.run_until(world.now + time).unwrap();
}

fn run_until_sealed(world: &mut World) {
    while !matches!(world.shard().unwrap().phase, Phase::Sealing(_)) {
        // Before any node has been told.
        run(world, MS / 10);
        assert!(world.now < 30 * SECOND, "{:?}", world.shard());
    }
}

/// Until it is active in the second epoch, after which region and base. A transaction of which the
/// leader told the directory before the other regions had it is waited for first, for
/// `starved_after`.
fn outcome(world: &mut World) -> (String, Position) {
    let starved_after = ControllerConfig::DEFAULT.starved_after.as_micros();
    let until = world.now + u64::try_from(starved_after).unwrap() + 10 * SECOND;
    while world.shard().unwrap().phase != Phase::Active || world.shard().unwrap().epoch != Epoch(2)
    {
        run(world, 100 * MS);
        assert!(world.now < until, "{:?}", world.shard());
    }
    let shard = world.shard().unwrap();
    (shard.primary_region.clone(), shard.base())
}

fn end(world: &World, id: u64) -> Position {
    world.nodes[&NodeId(id)].end()
}

#[test]
fn voters_of_the_old_primary_found_the_next_epoch_with_what_only_others_have() {
    let mut seen = 0;
    for mut world in (0..40).filter_map(calm) {
        // The leader ships what is committed long before it comes to tell the other voters.
        let (voters, until) = (BTreeSet::from([11, 12, 13].map(NodeId)), world.now + 9 * SECOND);
        world.network.slow(voters.clone(), voters, until, 250 * MS);
        run(&mut world, 2 * SECOND);
        [11, 12, 13].into_iter().for_each(|id| world.crash(NodeId(id)));
        run_until_sealed(&mut world);
        // No other region is left with two data centers.
        [22, 32].into_iter().for_each(|id| world.crash(NodeId(id)));
        let (kept, here) =
            (end(&world, 21).max(end(&world, 31)), end(&world, 12).max(end(&world, 13)));
        [12, 13].into_iter().for_each(|id| world.start(NodeId(id)));
        seen += usize::from(here < kept);
        assert_eq!(outcome(&mut world), ("a".to_owned(), kept.max(here)));
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn where_no_log_reaches_back_a_whole_state_is_taken() {
    let mut seen = 0;
    for mut world in (0..40).filter_map(calm) {
        [22, 32].into_iter().for_each(|id| world.crash(NodeId(id)));
        run(&mut world, 2 * SECOND);
        [11, 12, 13].into_iter().for_each(|id| world.crash(NodeId(id)));
        let (epoch, cause) = (Epoch(1), "by hand".to_owned());
        while !matches!(world.shard().unwrap().phase, Phase::Sealing(_)) {
            let cause = cause.clone();
            world.order(Change::ForceFailover {
                shard: SHARD,
                epoch,
                to: Some("b".to_owned()),
                since_ms: 1,
                cause,
            });
            run(&mut world, 100 * MS);
        }
        run(&mut world, SECOND / 2);
        // The most advanced nodes have it in their state only.
        for id in [21, 31].map(NodeId) {
            let disk = &mut world.nodes.get_mut(&id).unwrap().disk;
            disk.purged = disk.history.len();
            assert!(sequence(disk.purged) > 0);
        }
        let kept = end(&world, 21).max(end(&world, 31));
        seen += usize::from(end(&world, 22) < kept);
        [22, 32].into_iter().for_each(|id| world.start(NodeId(id)));
        assert_eq!(outcome(&mut world), ("b".to_owned(), kept));
    }
    assert!(seen > 5, "{seen}");
}
