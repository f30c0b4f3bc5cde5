//! The first epoch of a shard, whose voters join one after the other.

use super::scenario::{Actor, Scenario};
use super::*;

/// As in a cluster whose replica regions are set up before its primary region.
#[test]
fn first_epoch_waits_for_its_voters_to_join_and_then_fails_over_as_any_other() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    let come = |scenario: &mut Scenario, id: u64, has_come: bool| {
        let node = scenario.cluster.nodes.get_mut(&NodeId(id)).unwrap();
        node.incarnation = has_come.then(|| "0a".to_owned());
    };
    [1, 2, 3].into_iter().for_each(|id| come(&mut scenario, id, false));
    scenario.run(120_000);
    assert_eq!(scenario.shard().epoch, Epoch::FIRST);
    assert_eq!(scenario.text(), "waits for n1, n2, n3 to join");
    // Nor does it fail over while one of them is replaced.
    let like = node(8, "a", "a3");
    scenario.order(Change::ReplaceNode { old: NodeId(3), new: like });
    scenario.actors.insert(NodeId(8), Actor::new(false));
    scenario.down(&[8]);
    scenario.run(120_000);
    assert_eq!(scenario.shard().epoch, Epoch::FIRST);
    assert_eq!(scenario.text(), "waits for n1, n2, n8 to join");
    scenario.up(&[1]);
    come(&mut scenario, 1, true);
    scenario.run(120_000);
    assert_eq!(scenario.text(), "waits for n2, n8 to join");
    // They have the time that every region has to elect a leader.
    scenario.up(&[2]);
    come(&mut scenario, 2, true);
    scenario.run(2000);
    assert_eq!(scenario.shard().epoch, Epoch::FIRST);
    scenario.actor(1).leads = true;
    scenario.run(120_000);
    assert_eq!(scenario.shard().epoch, Epoch::FIRST);
    scenario.down(&[1, 2]);
    scenario.run_until_active(2);
}
