//! Many seeds, and bugs of a driver that the invariants must see.

use super::world::{Bug, World};

const SEEDS: u64 = 150;

#[test]
fn every_run_keeps_the_invariants_and_settles_every_message() {
    let mut delivered = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed, None);
        if let Err(violation) = world.run() {
            panic!("seed {seed}: {violation}");
        }
        delivered += world.delivered;
    }
    assert!(delivered > 15_000, "{delivered} deliveries show little");
}

fn violations(bug: Bug) -> Vec<String> {
    (0..SEEDS).filter_map(|seed| World::new(seed, Some(bug)).run().err()).collect()
}

#[test]
fn leader_that_waits_for_no_claims_is_caught() {
    let found = violations(Bug::NoHold);
    assert!(found.iter().any(|violation| violation.contains("two holders")), "{:?}", found.first());
}

#[test]
fn report_that_is_answered_before_its_commit_is_caught() {
    let found = violations(Bug::SettledBeforeTheCommit);
    assert!(found.iter().any(|violation| violation.contains("there still")), "{:?}", found.first());
}

#[test]
fn session_that_breaks_unnoticed_is_caught() {
    let found = violations(Bug::BrokenSessionsAreForgotten);
    assert!(found.iter().any(|violation| violation.contains("lost")), "{:?}", found.first());
}
