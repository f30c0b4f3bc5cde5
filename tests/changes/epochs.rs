//! Feeds over changes of epoch where no region is left aside: the log of before has to stay with
//! the nodes that voted.

use std::time::Duration;

use meridian_directory::Phase;
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, poll};
use meridian_types::NodeId;

use crate::follower::{Counting, Follower};
use crate::{DEADLINE, is_whole, level, options};

/// Waits until each of these nodes has the shard's whole log, and not only another one.
async fn all_have_the_log(cluster: &Cluster, nodes: &[NodeId]) {
    poll::until("each node has the whole log", DEADLINE, async || {
        for node in nodes {
            let status =
                cluster.shard_status(*node, 1).await.map_err(|status| status.to_string())?;
            if status.first_sequence != 1 {
                return Err(format!("node {node} from {}", status.first_sequence));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_of_two_regions_go_on_from_before_three_switchovers_and_a_failover() {
    let mut cluster = Cluster::start(options(&[3, 2])).await;
    let all = cluster.node_ids();
    let mut following = Follower::new(&[cluster.url(1), cluster.url(2)]);
    let counting = Counting::start(&cluster.url(1));
    let client = cluster.client(1, DEFAULT_DATABASE).with_timeout(Duration::from_secs(5));
    let mark = async |number: u64| {
        poll::until("a write", DEADLINE, async || {
            let set = client.set(b"done", number.to_string().as_bytes()).await;
            set.map_err(|error| error.to_string())
        })
        .await;
    };
    let hear = async |follower: &mut Follower, number: u64| {
        follower.hears_of(b"done", number.to_string().as_bytes()).await;
    };
    counting.more_written(50).await;
    poll::until("all shards are open", DEADLINE, async || {
        let shards = cluster.directory().await.shards;
        let open = shards.values().all(|shard| shard.phase == Phase::Active);
        if open { Ok(()) } else { Err(shards) }
    })
    .await;
    for (number, region) in (1..).zip(["region-2", "region-1", "region-2"]) {
        println!("{}", cluster.order(1, &["switchover", "--all", "--to", region, "--wait"]).await);
        counting.more_written(50).await;
        mark(number).await;
        hear(&mut following, number).await;
        // A feed that was away since before the first of them.
        let mut back = Follower::new(&[cluster.url(1)]);
        hear(&mut back, number).await;
        all_have_the_log(&cluster, &all).await;
    }

    // All is shipped before the region is lost. The directory has its majority in the other.
    let last = counting.finish().await;
    mark(4).await;
    level(&cluster, &all).await;
    for node in cluster.region(1) {
        cluster.kill(node);
    }
    mark(5).await;
    hear(&mut following, 5).await;
    all_have_the_log(&cluster, &cluster.region(0)).await;
    for node in cluster.region(1) {
        cluster.restart(node);
        cluster.node_ready(node).await;
    }
    level(&cluster, &all).await;
    all_have_the_log(&cluster, &all).await;
    let [mut near, mut far] = [1, 4].map(|node| Follower::new(&[cluster.url(node)]));
    hear(&mut near, 5).await;
    hear(&mut far, 5).await;
    for follower in [&following, &near, &far] {
        is_whole(follower, last);
    }
    cluster.assert_all_run();
}
