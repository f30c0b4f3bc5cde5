//! What waits for a disk, and where: these tests run on one thread, which drives all members and is to wait for none.

use std::sync::Arc;

use crate::support::{Node, at, equal, leader, set, until, write};
use crate::wire::Wire;

#[tokio::test]
async fn no_member_waits_for_its_disk_on_the_runtime() {
    let wire = Arc::new(Wire::default());
    let (mut nodes, voters) = (Vec::new(), set(1..=3));
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        if id < 3 {
            // The third is seeded: it joins by a snapshot.
            node.replicate(4, "before");
            node.form(1, &voters, at(1, 4));
        }
        node.watched.watch_this_thread(false);
        node.open(1, &voters).await;
        nodes.push(node);
    }
    let last = write(&nodes, 3, "here").await;
    until("all have it", async || nodes.iter().all(|node| node.state.position() == at(1, last))).await;
    assert!(wire.fetched(crate::support::group(1)) > 0, "the third was seeded");
    // Another leader: votes are saved.
    let first = leader(&nodes).await.id;
    let next = nodes.iter().find(|node| node.id != first).unwrap().id;
    until("another leads", async || {
        let leading = leader(&nodes).await;
        if leading.id == first {
            drop(leading.group().transfer_leadership(next).await);
        }
        leading.id != first
    })
    .await;
    let last = write(&nodes, 2, "there").await;
    equal(&nodes, at(1, last)).await;
    for node in &nodes {
        node.group().purge_through(last).await.unwrap();
        assert_eq!(node.watched.found(), Vec::<&str>::new(), "node {}", node.id);
    }
}
