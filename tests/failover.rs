//! A region is lost and comes back, is left and returned to; nodes are refused and replaced.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;
use std::time::Duration;

use meridian_directory::{Phase, Shard};
use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE, Watching};
use meridian_tests::{Cluster, ClusterOptions, KvClient, Writer, clients, poll};
use meridian_types::{Consistency, DatabaseId, Epoch, NodeId, ShardId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far beyond every time-out inside the cluster.
const DEADLINE: Duration = Duration::from_secs(60);
/// Two data centers in each replica region: enough for a failover by itself.
const THREE_REGIONS: ClusterOptions =
    ClusterOptions { topology: &[3, 2, 2], log_retention_mb: None, max_memory_mb: None };

async fn shard(cluster: &Cluster, id: u32) -> Shard {
    cluster.directory().await.shards.get(&ShardId(id)).unwrap().clone()
}

/// Waits until the shard is open in `region`, in its `epoch`.
async fn open_in(cluster: &Cluster, id: u32, region: &str, epoch: u16) {
    poll::until("the shard is open there", DEADLINE, async || {
        let shard = shard(cluster, id).await;
        let open = shard.phase == Phase::Active
            && shard.primary_region == region
            && shard.epoch == Epoch(epoch);
        if open { Ok(()) } else { Err((shard.phase, shard.primary_region, shard.epoch)) }
    })
    .await;
}

/// Waits until all nodes of `nodes` have as much as the shard's leader.
async fn level(cluster: &Cluster, id: u32, nodes: &[NodeId]) {
    poll::until("the copies are level", DEADLINE, async || {
        let leader = cluster.leader(id).await;
        let leads = cluster.shard_status(leader, id).await.map_err(|status| status.to_string())?;
        for node in nodes {
            let copy =
                cluster.shard_status(*node, id).await.map_err(|status| status.to_string())?;
            if copy.applied_sequence != leads.applied_sequence || copy.epoch != leads.epoch {
                return Err(format!("node {node} at {}.{}", copy.epoch, copy.applied_sequence));
            }
        }
        Ok(())
    })
    .await;
}

/// With the followers gone no new write is acknowledged, and the acknowledged ones are shipped
/// before the leader goes too. So the Deno program, which counts its acknowledged writes, may see
/// each of them.
async fn lose_region_once_all_is_shipped(cluster: &mut Cluster) {
    for id in [1, 2] {
        // Refused until the node's epoch lease is long enough and its log is close.
        poll::until("node 1 leads", DEADLINE, async || match cluster.leader(id).await {
            NodeId(1) => Ok(()),
            leader => cluster.transfer_leadership(id, leader, 1).await,
        })
        .await;
    }
    cluster.kill(2);
    cluster.kill(3);
    let replicas: Vec<NodeId> =
        [1, 2].into_iter().flat_map(|region| cluster.region(region)).collect();
    for id in [1, 2] {
        poll::until("committed batches are shipped", DEADLINE, async || {
            let leads = cluster.shard_status(1, id).await.map_err(|status| status.to_string())?;
            for node in &replicas {
                let copy =
                    cluster.shard_status(*node, id).await.map_err(|status| status.to_string())?;
                if copy.applied_sequence != leads.applied_sequence {
                    return Err(format!("node {node} at {}", copy.applied_sequence));
                }
            }
            Ok(())
        })
        .await;
    }
    cluster.kill(1);
}

/// Messages of all databases that are not delivered, by the gauges of a node.
async fn undelivered(cluster: &Cluster, node: NodeId) -> Result<u64, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut socket = TcpStream::connect(cluster.metrics_address(node)).await.map_err(text)?;
    let request = b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
    socket.write_all(request).await.map_err(text)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.map_err(text)?;
    let counts = answer
        .lines()
        .filter(|line| line.starts_with("meridian_queue_undelivered_messages{"))
        .filter_map(|line| line.rsplit(' ').next()?.split('.').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Has the Node client enqueue so many messages, which are due in an hour.
async fn enqueue(cluster: &Cluster, through: NodeId, count: u32) {
    let mut program = clients::node();
    program.arg(clients::program("enqueue.mjs")).arg(cluster.url(through)).arg(count.to_string());
    clients::run(program).await;
}

async fn messages_are_at(cluster: &Cluster, nodes: &[NodeId], count: u64) {
    for node in nodes {
        poll::until("the messages are there", DEADLINE, async || {
            match undelivered(cluster, *node).await {
                Ok(found) if found == count => Ok(()),
                found => Err(format!("node {node}: {found:?}")),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn deno_writes_through_the_loss_of_its_primary_region_and_the_way_back() {
    let mut cluster = Cluster::start(THREE_REGIONS).await;
    let mut writer = Writer::start(&[cluster.url(4), cluster.url(7)]).await;
    enqueue(&cluster, NodeId(4), 3).await;
    lose_region_once_all_is_shipped(&mut cluster).await;
    writer.more_written(50).await;
    messages_are_at(&cluster, &[4, 5, 6, 7].map(NodeId), 3).await;
    enqueue(&cluster, NodeId(7), 2).await;
    messages_are_at(&cluster, &[4, 5, 6, 7].map(NodeId), 5).await;
    let report = shard(&cluster, 1).await.reports.last().unwrap().clone();
    assert_eq!((report.from_region.as_str(), report.planned), ("region-1", false), "{report:?}");
    assert_eq!(report.loss.transactions, 0, "{report:?}");

    for node in cluster.region(0) {
        cluster.restart(node);
    }
    for node in cluster.region(0) {
        cluster.node_ready(node).await;
    }
    writer.more_written(50).await;
    // A shard that is still being moved cannot be moved back.
    open_in(&cluster, 1, "region-2", 2).await;
    open_in(&cluster, 2, "region-2", 2).await;
    println!("{}", cluster.order(4, &["failback", "--all", "--wait"]).await);
    open_in(&cluster, 1, "region-1", 3).await;
    writer.more_written(50).await;
    let report = shard(&cluster, 1).await.reports.last().unwrap().clone();
    assert!(report.planned && report.loss.exact && report.loss.transactions == 0, "{report:?}");
    let (count, slowest_ms) = writer.finish().await;
    println!("{count} writes acknowledged and there, the slowest after {slowest_ms} ms");
    level(&cluster, 1, &cluster.node_ids()).await;
    messages_are_at(&cluster, &cluster.node_ids(), 5).await;
    cluster.assert_all_run();
}

#[tokio::test]
async fn returning_region_follows_and_keeps_its_lost_batches() {
    let mut cluster = Cluster::start(THREE_REGIONS).await;
    let near = cluster.client(1, DEFAULT_DATABASE);
    for number in 0..20 {
        near.set(format!("kept/{number}").as_bytes(), b"v").await.unwrap();
    }
    let replicas: Vec<NodeId> =
        [1, 2].into_iter().flat_map(|region| cluster.region(region)).collect();
    level(&cluster, 1, &replicas).await;
    // Nothing is shipped, while the bound on the loss still lets some writes be acknowledged.
    // (Paused replicas would find them in their sockets.)
    for node in &replicas {
        cluster.kill(*node);
    }
    let mut acknowledged = 0u64;
    let impatient = cluster.client(1, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    while acknowledged < 30
        && impatient.set(format!("lost/{acknowledged}").as_bytes(), b"v").await.is_ok()
    {
        acknowledged += 1;
    }
    assert!(acknowledged > 0, "nothing was acknowledged that could be lost");
    for node in cluster.region(0) {
        cluster.kill(node);
    }
    for node in &replicas {
        cluster.restart(*node);
    }
    let far = cluster.client(4, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    poll::until("another region serves", DEADLINE, async || {
        far.set(b"after", b"v").await.map(drop)
    })
    .await;
    let epoch = shard(&cluster, 1).await.epoch;
    assert!(far.get(b"kept/19").await.unwrap().is_some());
    assert!(far.get(b"lost/0").await.unwrap().is_none());

    for node in cluster.region(0) {
        cluster.restart(node);
    }
    for node in cluster.region(0) {
        cluster.node_ready(node).await;
    }
    level(&cluster, 1, &cluster.node_ids()).await;
    let loss = poll::until("the loss is known", DEADLINE, async || {
        let shard = shard(&cluster, 1).await;
        let report = shard.reports.iter().find(|report| report.epoch == epoch).unwrap();
        if report.loss.exact { Ok(report.loss.clone()) } else { Err(report.loss.clone()) }
    })
    .await;
    // One more write may have been in flight when the processes were killed.
    assert!(
        (acknowledged..=acknowledged + 1).contains(&loss.at_most),
        "{acknowledged} acknowledged, {loss:?}"
    );
    assert!(loss.transactions <= acknowledged + 1, "{acknowledged} acknowledged, {loss:?}");
    let listed = cluster.order(4, &["orphans", "list"]).await;
    assert!(listed.contains("region-1-a/shard-1-epoch-"), "{listed}");
    let file = listed.split_whitespace().find(|word| word.ends_with(".orphans")).unwrap();
    let shown = cluster.order(4, &["orphans", "show", file]).await;
    // The keys are not in Deno's encoding: shown in hex.
    assert!(shown.contains("6c6f73742f30") && shown.contains("committed"), "{shown}");
    // Lost writes stay lost, also for eventual reads of the old region.
    let eventual = cluster
        .client(1, DEFAULT_DATABASE)
        .get_with(Consistency::Eventual, b"lost/0")
        .await
        .unwrap();
    assert!(eventual.is_none(), "{eventual:?}");
    cluster.assert_all_run();
}

/// Waits until a watch of one key tells of this value.
async fn hears_of(watch: &mut Watching, value: &[u8]) {
    let hears = async {
        loop {
            let told = watch.news().await.unwrap().keys.pop().unwrap().entry_if_changed;
            if told.is_some_and(|entry| entry.value == value) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, hears).await.expect("the watch tells of it");
}

#[tokio::test]
async fn hung_primary_region_serves_nothing_when_it_wakes() {
    let mut cluster = Cluster::start(THREE_REGIONS).await;
    let old = cluster.client(2, DEFAULT_DATABASE);
    old.set(b"k", b"old").await.unwrap();
    level(&cluster, 1, &cluster.node_ids()).await;
    // Both streams live on: that of a gateway which hangs, and that of one in the next primary region.
    let mut hanging = old.watch(Consistency::Strong, &[b"k"]).await.unwrap();
    let elsewhere = cluster.client(4, DEFAULT_DATABASE);
    let mut elsewhere = elsewhere.watch(Consistency::Eventual, &[b"k"]).await.unwrap();
    hears_of(&mut hanging, b"old").await;
    hears_of(&mut elsewhere, b"old").await;
    for node in cluster.region(0) {
        cluster.pause(node);
    }
    let new = cluster.client(5, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    poll::until("another region serves", DEADLINE, async || new.set(b"k", b"new").await.map(drop))
        .await;
    hears_of(&mut elsewhere, b"new").await;
    for node in cluster.region(0) {
        cluster.resume(node);
    }
    hears_of(&mut hanging, b"new").await;
    // The old region's gateways answer with the new region's state from now on.
    for node in cluster.region(0) {
        let reader = cluster.client(node, DEFAULT_DATABASE).with_timeout(Duration::from_secs(15));
        for _ in 0..20 {
            assert_eq!(reader.get(b"k").await.unwrap().unwrap().value.as_ref(), b"new");
        }
    }
    level(&cluster, 1, &cluster.node_ids()).await;
    cluster.assert_all_run();
}

#[tokio::test]
async fn switchovers_back_and_forth_lose_nothing_and_fail_no_request() {
    let mut cluster = Cluster::start(THREE_REGIONS).await;
    for id in [1, 2] {
        open_in(&cluster, id, "region-1", 1).await;
    }
    let mut writer = Writer::start(&[cluster.url(1), cluster.url(5)]).await;
    for region in ["region-2", "region-3", "region-1"] {
        println!("{}", cluster.order(4, &["switchover", "--all", "--to", region, "--wait"]).await);
        writer.more_written(30).await;
    }
    let (count, slowest_ms) = writer.finish().await;
    println!("{count} writes acknowledged and there, the slowest after {slowest_ms} ms");
    for id in [1, 2] {
        let shard = shard(&cluster, id).await;
        assert_eq!((shard.epoch, shard.primary_region.as_str()), (Epoch(4), "region-1"));
        assert!(
            shard.reports.iter().all(|report| report.planned && report.loss.exact),
            "{:?}",
            shard.reports
        );
        level(&cluster, id, &cluster.node_ids()).await;
    }
    let (done, refusal) = cluster.meridian(4, &["switchover", "1", "--to", "nowhere"]).await;
    assert!(!done && refusal.contains("nowhere"), "{refusal}");
    let (done, refusal) = cluster.meridian(4, &["failover", "1"]).await;
    assert!(!done && refusal.contains("--allow-data-loss"), "{refusal}");
    cluster.assert_all_run();
}

/// Replaces `gone` by a new node, with a configuration like the one in `template`; returns the new
/// node's process, and a client of it.
async fn replace(
    cluster: &Cluster,
    gone: impl Into<NodeId>,
    template: &str,
    name: &str,
) -> (tokio::process::Child, KvClient) {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [rpc, kv] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    drop(listeners);
    let config = cluster.folder().join(name).join("node.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let template = cluster.folder().join(template).join("node.toml");
    let gone = gone.into().to_string();
    let arguments = [
        "node",
        "replace",
        &gone,
        "--yes",
        "--name",
        name,
        "--rpc-address",
        &rpc,
        "--kv-address",
        &kv,
    ];
    let files = ["--config", template.to_str().unwrap(), "--config-out", config.to_str().unwrap()];
    println!("{}", cluster.order(1, &[&arguments[..], &files[..]].concat()).await);
    let mut serve = tokio::process::Command::new(binary());
    serve
        .args(["serve", "--config", config.to_str().unwrap()])
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let client = meridian_tests::kv_connect::client(format!("http://{kv}"), DEFAULT_DATABASE)
        .with_timeout(Duration::from_secs(2));
    (serve.spawn().unwrap(), client)
}

#[tokio::test]
async fn wiped_node_is_refused_and_a_new_node_takes_its_place() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for id in [1, 2] {
        open_in(&cluster, id, "region-1", 1).await;
    }
    let client = cluster.client(4, DEFAULT_DATABASE);
    for number in 0..50 {
        client.set(format!("before/{number}").as_bytes(), b"v").await.unwrap();
    }
    cluster.kill(3);
    cluster.wipe(3);
    cluster.restart(3);
    poll::until("the cluster refuses it", DEADLINE, async || {
        let log = cluster.log(3);
        if log.contains("meridian node replace 3") { Ok(()) } else { Err(log) }
    })
    .await;
    poll::until("its process has ended", DEADLINE, async || cluster.ended().map(drop).ok_or(()))
        .await;

    let (mut new, through_new) = replace(&cluster, 3, "region-1-a", "region-1-new").await;
    poll::until("the new node serves", DEADLINE, async || {
        match through_new.get_with(Consistency::Eventual, b"before/49").await {
            Ok(Some(_)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // The shard works with the new node's vote: without another voter there still is a majority.
    poll::until("the new node votes", DEADLINE, async || {
        let (_, status) = cluster.meridian(1, &["cluster", "status"]).await;
        let votes =
            status.lines().any(|line| line.contains("region-1-new") && line.contains("shard 1"));
        let settled = !status.contains("changing");
        if votes && settled { Ok(()) } else { Err(status) }
    })
    .await;
    client.set(b"between", b"v").await.unwrap();
    poll::until("the group's members are the new ones", DEADLINE, async || {
        let directory = cluster.directory().await;
        let voters = &directory.shards[&ShardId(1)].voters;
        if voters.contains(&NodeId(7)) && !voters.contains(&NodeId(3)) {
            Ok(())
        } else {
            Err(voters.clone())
        }
    })
    .await;
    cluster.kill(2);
    let patient = cluster.client(4, DEFAULT_DATABASE).with_timeout(Duration::from_secs(30));
    patient.set(b"with the new one's vote", b"v").await.unwrap();
    assert!(through_new.get(b"before/0").await.unwrap().is_some());
    assert!(new.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn lost_voter_of_the_directory_is_replaced() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let before = cluster.directory().await.directory_voters;
    // One in each region.
    let gone = *before.iter().find(|voter| cluster.region(1).contains(voter)).unwrap();
    let survivors: Vec<NodeId> = before.iter().copied().filter(|voter| *voter != gone).collect();
    cluster.kill(gone);
    cluster.wipe(gone);
    let (mut new, _) = replace(&cluster, gone, "region-2-a", "region-2-new").await;
    let settled =
        poll::until("the new node is a member of the directory's group", DEADLINE, async || {
            let (_, status) = cluster.meridian(1, &["cluster", "status", "--json"]).await;
            let status: serde_json::Value = serde_json::from_str(&status).map_err(|_| status)?;
            let directory = &status["directory"];
            let votes = directory["voters"]
                .as_array()
                .is_some_and(|voters| voters.iter().any(|voter| *voter == 7));
            let settled =
                votes && directory["leader_answers"] == true && directory["progress"].is_null();
            if settled { Ok(directory.clone()) } else { Err(directory.to_string()) }
        })
        .await;
    println!("{settled}");
    // Without the new node's vote there is no majority any more.
    cluster.kill(survivors[0]);
    poll::until("the directory takes changes", DEADLINE, async || {
        let create = ["databases", "create", "later", "--primary-region", "region-1"];
        match cluster.meridian(survivors[1], &create).await {
            (true, _) => Ok(()),
            // The change was made, and its answer was lost.
            (false, printed) if printed.contains("already") => Ok(()),
            (false, printed) => Err(printed),
        }
    })
    .await;
    assert!(new.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn databases_and_tokens_come_and_go_while_the_cluster_serves() {
    let cluster = Cluster::start(THREE_REGIONS).await;
    let create = ["databases", "create", "orders", "--primary-region", "region-2", "--json"];
    let created: serde_json::Value =
        serde_json::from_str(&cluster.order(1, &create).await).unwrap();
    let id: DatabaseId = created["id"].as_str().unwrap().parse().unwrap();
    let number = u32::try_from(created["shard"].as_u64().unwrap()).unwrap();
    assert_ne!(number, 1);
    open_in(&cluster, number, "region-2", 1).await;
    let orders = cluster.client(6, id);
    poll::until("the new database serves", DEADLINE, async || {
        orders.set(b"k", b"v").await.map(drop)
    })
    .await;
    assert!(cluster.client(1, id).get(b"k").await.unwrap().is_some());

    let create = ["tokens", "create", "reporting", "--database", "orders", "--read-only", "--json"];
    let token: serde_json::Value = serde_json::from_str(&cluster.order(1, &create).await).unwrap();
    let secret = token["secret"].as_str().unwrap();
    let reporting = |node: u64, database| cluster.client(node, database).with_token(secret);
    poll::until("the token opens it", DEADLINE, async || {
        reporting(3, id)
            .get(b"k")
            .await
            .map_err(|error| error.to_string())?
            .map(drop)
            .ok_or("nothing".to_owned())
    })
    .await;
    assert!(reporting(3, id).set(b"k", b"w").await.is_err());
    assert!(reporting(3, SECOND_DATABASE).get(b"k").await.is_err());
    let listed = cluster.order(1, &["tokens", "list"]).await;
    assert!(listed.contains("reporting") && !listed.contains(secret), "{listed}");
    cluster.order(1, &["tokens", "revoke", &token["id"].to_string()]).await;
    poll::until("the token opens nothing", DEADLINE, async || {
        if reporting(3, id).get(b"k").await.is_err() { Ok(()) } else { Err(()) }
    })
    .await;

    let (done, refusal) = cluster.meridian(1, &["databases", "delete", "orders"]).await;
    assert!(!done && refusal.contains("--yes-delete-all-data"), "{refusal}");
    cluster.order(1, &["databases", "delete", "orders", "--yes-delete-all-data"]).await;
    poll::until("the database is gone", DEADLINE, async || {
        if orders.get(b"k").await.is_err() { Ok(()) } else { Err(()) }
    })
    .await;
}
