//! Quotas that are set while a cluster of processes serves: of databases, of tokens, and of what is
//! stored; and the command that shows the use of each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::{DEFAULT_DATABASE, delete};
use meridian_tests::{Cluster, ClusterOptions, poll};

const DEADLINE: Duration = Duration::from_secs(90);

fn key(number: usize) -> Vec<u8> {
    format!("key-{number:05}").into_bytes()
}

/// The JSON of a command that a node's operator gives.
async fn order(cluster: &Cluster, arguments: &[&str]) -> serde_json::Value {
    let said = cluster.order(1, &[arguments, &["--json"]].concat()).await;
    let from = said.find(['{', '[']).unwrap_or_else(|| panic!("{said}"));
    let to = said.rfind(['}', ']']).unwrap_or_else(|| panic!("{said}"));
    serde_json::from_str(&said[from..=to]).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_are_set_while_serving_hold_and_are_shown() {
    let options = ClusterOptions { topology: &[3], log_retention_mb: None, max_memory_mb: None };
    let cluster = Cluster::start(options).await;
    let client = cluster.client(2, DEFAULT_DATABASE);
    for number in 0..120 {
        client.set(&key(number), b"value").await.unwrap();
    }
    let set = ["databases", "set-quotas", "default", "--keys=100", "--stored-bytes=1GiB"];
    let quotas = order(&cluster, &set).await;
    assert_eq!(quotas, serde_json::json!({"keys": 100, "stored-bytes": 1 << 30}));

    // A write that stores more is rejected for good once the leader has measured, and nothing else is.
    let rejected = poll::until("the leader has measured the database", DEADLINE, async || {
        match client.set(&key(0), b"other").await {
            Ok(_) => Err("it is taken"),
            Err(error) => Ok(error.to_string()),
        }
    })
    .await;
    assert!(rejected.contains("400") && rejected.contains("its quota keys of 100"), "{rejected}");
    assert!(rejected.contains("set-quotas"), "{rejected}");
    assert_eq!(client.get(&key(1)).await.unwrap().unwrap().value, b"value".as_slice());
    let refused = {
        let client = client.clone();
        tokio::spawn(async move { while client.set(&key(0), b"other").await.is_err() {} })
    };
    let top = order(&cluster, &["databases", "top", "--every=300ms", "-n", "1"]).await;
    assert_eq!((&top[0]["name"], &top[0]["keys"]), (&"default".into(), &120.into()), "{top}");
    // The leader counts them, and no gateway.
    assert!(top[0]["refused_per_second"].as_f64().unwrap() > 0.0, "{top}");
    refused.abort();
    for number in 50..120 {
        let mutations = vec![delete(&key(number))];
        client.write(pb::AtomicWrite { mutations, ..Default::default() }).await.unwrap();
    }
    poll::until("deletes have made room", DEADLINE, async || {
        client.set(&key(0), b"again").await.map_err(|error| error.to_string())
    })
    .await;

    // A token's pace holds for it alone.
    let created = order(&cluster, &["tokens", "create", "slow"]).await;
    let (id, secret) = (created["id"].to_string(), created["secret"].as_str().unwrap());
    let slow = client.clone().with_token(secret);
    poll::until("the gateway knows the token", DEADLINE, async || {
        slow.get(&key(1)).await.map_err(|error| error.to_string())
    })
    .await;
    let set = ["tokens", "set-quotas", "slow", "--requests-per-second=1"];
    assert_eq!(order(&cluster, &set).await, serde_json::json!({"requests-per-second": 1}));
    let refused = poll::until("requests of the token are refused", DEADLINE, async || {
        let reads = (0..10).map(async |_| slow.get(&key(1)).await);
        let read = futures::future::join_all(reads).await;
        read.into_iter().find_map(|read| read.err().map(|error| error.to_string())).ok_or("none is")
    })
    .await;
    assert!(refused.contains("its quota requests-per-second of 1 at this gateway"), "{refused}");
    for _ in 0..20 {
        client.get(&key(1)).await.unwrap();
    }
    let top = order(&cluster, &["databases", "top", "--tokens", "--every=300ms", "-n", "1"]).await;
    let shown = top.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap());
    let name = format!("{id} (slow)");
    assert!(shown.clone().any(|shown| shown == name), "{top}");
    let remove = ["tokens", "set-quotas", "slow", "--remove=requests-per-second"];
    assert_eq!(order(&cluster, &remove).await, serde_json::json!({}));
    poll::until("the token is as before", DEADLINE, async || {
        let reads = (0..10).map(async |_| slow.get(&key(1)).await);
        let read = futures::future::join_all(reads).await;
        read.into_iter()
            .map(|read| read.map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, _>>()
    })
    .await;
}
