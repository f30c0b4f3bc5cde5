//! Deleted data goes from every node, also from a node that was away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use meridian_tests::{Cluster, ClusterOptions, KvClient, poll};
use meridian_types::{Consistency, DatabaseId};

const DEADLINE: Duration = Duration::from_secs(60);

async fn create(cluster: &Cluster, name: &str) -> DatabaseId {
    let create = ["databases", "create", name, "--primary-region", "region-1", "--json"];
    let created: serde_json::Value =
        serde_json::from_str(&cluster.order(1, &create).await).unwrap();
    created["id"].as_str().unwrap().parse().unwrap()
}

async fn written(client: &KvClient, key: &[u8]) {
    poll::until("the database serves", DEADLINE, async || client.set(key, b"v").await.map(drop))
        .await;
}

/// The lines of `databases list` about databases that are being deleted.
async fn deleting(cluster: &Cluster) -> Vec<String> {
    let (_, listed) = cluster.meridian(1, &["databases", "list"]).await;
    listed.lines().filter(|line| line.contains("being deleted")).map(str::to_owned).collect()
}

#[tokio::test]
async fn deleted_database_goes_from_every_node_even_an_absent_one() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let id = create(&cluster, "orders").await;
    let orders = cluster.client(2, id);
    written(&orders, b"k").await;
    let replica = cluster.client(6, id);
    poll::until("the replica has it", DEADLINE, async || {
        match replica.get_with(Consistency::Eventual, b"k").await {
            Ok(Some(_)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // The node votes in nothing that is needed here.
    cluster.kill(5);
    cluster.order(1, &["databases", "delete", "orders", "--yes-delete-all-data"]).await;
    poll::until("only the absent node is waited for", DEADLINE, async || {
        let deleting = deleting(&cluster).await;
        match deleting.as_slice() {
            [one] if one.ends_with("waits for region-2-b") => Ok(()),
            _ => Err(deleting),
        }
    })
    .await;
    assert!(orders.set(b"k", b"again").await.is_err());
    // Its name is free at once, for another database.
    let again = create(&cluster, "orders").await;
    assert_ne!(again, id);
    let orders = cluster.client(2, again);
    written(&orders, b"new").await;
    assert!(orders.get(b"k").await.unwrap().is_none());
    cluster.restart(5);
    poll::until("the deletion has ended", DEADLINE, async || {
        let deleting = deleting(&cluster).await;
        if deleting.is_empty() { Ok(()) } else { Err(deleting) }
    })
    .await;
    assert!(orders.get(b"new").await.unwrap().is_some());
    let changes = cluster.order(1, &["cluster", "changes"]).await;
    assert!(changes.contains("is gone from every node"), "{changes}");
    cluster.assert_all_run();
}
