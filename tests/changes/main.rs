//! Change feeds of a real cluster: nothing is left out, told twice or told in parts, whatever
//! happens to nodes; and a copy that is made as the documentation says is the database.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod epochs;
mod follower;
mod reading;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian_proto::kv_connect as pb;
use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::{
    CallError, ChangeLine, ChangesFrom, DEFAULT_DATABASE, client, delete, range, set,
};
use meridian_tests::{Cluster, ClusterOptions, KvClient, TOKEN, poll};
use meridian_types::{Consistency, NodeId};
use meridian_values::json::{base64url, from_base64url};

use follower::{Counting, Follower};
use reading::{all_behind, all_from, until_end};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Behind nothing.
pub(crate) const START: &str = "00000000000000000000";

pub(crate) fn options(topology: &'static [usize]) -> ClusterOptions {
    ClusterOptions { topology, log_retention_mb: None, max_memory_mb: None }
}

pub(crate) fn bytes(text: &Option<String>) -> Vec<u8> {
    from_base64url(text.as_deref().unwrap()).unwrap()
}

/// Waits until all nodes have what the shard's leader has.
pub(crate) async fn level(cluster: &Cluster, nodes: &[NodeId]) {
    poll::until("the copies are level", DEADLINE, async || {
        let leader = cluster.leader(1).await;
        let leads = cluster.shard_status(leader, 1).await.map_err(|status| status.to_string())?;
        for node in nodes {
            let copy = cluster.shard_status(*node, 1).await.map_err(|status| status.to_string())?;
            if copy.applied_sequence < leads.applied_sequence {
                return Err(format!("node {node} at {}", copy.applied_sequence));
            }
        }
        Ok(())
    })
    .await;
}

/// Every number is told, in order, whole, and what was sent twice at most twice.
pub(crate) fn is_whole(follower: &Follower, last: u64) {
    let told = follower.values(b"a");
    assert_eq!(told, follower.values(b"b"), "of the same transactions");
    assert!(follower.told.iter().all(|(_, changes)| changes.len() <= 2));
    let mut numbers = told.clone();
    numbers.dedup();
    assert_eq!(numbers, Vec::from_iter(1..=last), "told: {} times", told.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_leave_nothing_out_over_changes_of_leaders_a_switchover_and_the_loss_of_a_region() {
    let mut cluster = Cluster::start(options(&[3, 2, 2])).await;
    let stateless = cluster.start_gateway(2).await;
    let near = [1, 2, 3].map(|node| cluster.url(node)).to_vec();
    let mut followers = [
        Follower::new(&[near.clone(), vec![cluster.url(6)]].concat()),
        Follower::new(&[cluster.url(4)]),
        Follower::new(&[stateless]),
    ];
    let counting = Counting::start(&cluster.url(5));
    let following = |last: u64, mut followers: [Follower; 3]| async move {
        for follower in &mut followers {
            follower.hears_of(b"done", last.to_string().as_bytes()).await;
        }
        followers
    };
    let mark = async |cluster: &Cluster, number: u64| {
        let client = cluster.client(5, DEFAULT_DATABASE);
        client.set(b"done", number.to_string().as_bytes()).await.unwrap();
    };
    counting.more_written(50).await;

    let leader = cluster.leader(1).await;
    let next = [1, 2, 3].map(NodeId).into_iter().find(|node| *node != leader).unwrap();
    poll::until("another leads", DEADLINE, async || match cluster.leader(1).await {
        leader if leader == next => Ok(()),
        leader => match cluster.transfer_leadership(1, leader, next).await {
            Ok(()) => Err("asked".to_owned()),
            Err(status) => Err(status.to_string()),
        },
    })
    .await;
    counting.more_written(50).await;
    mark(&cluster, 1).await;
    followers = following(1, followers).await;

    let killed = cluster.leader(1).await;
    cluster.kill(killed);
    counting.more_written(50).await;
    cluster.restart(killed);
    cluster.node_ready(killed).await;
    mark(&cluster, 2).await;
    followers = following(2, followers).await;

    println!("{}", cluster.order(4, &["switchover", "--all", "--to", "region-2", "--wait"]).await);
    counting.more_written(50).await;
    mark(&cluster, 3).await;
    followers = following(3, followers).await;

    // All is shipped before the region is lost.
    let last = counting.finish().await;
    mark(&cluster, 4).await;
    level(&cluster, &cluster.node_ids()).await;
    for node in cluster.region(1) {
        cluster.kill(node);
    }
    let after = cluster.client(6, DEFAULT_DATABASE).with_timeout(Duration::from_secs(5));
    poll::until("another region is primary", DEADLINE, async || {
        after.set(b"done", b"5").await.map_err(|error| error.to_string())
    })
    .await;
    // Its node is lost: it goes on at another.
    followers[1].clients = vec![client(cluster.url(6), DEFAULT_DATABASE)];
    let followers = following(5, followers).await;
    for follower in &followers {
        is_whole(follower, last);
    }
    println!("opened {:?} times", followers.map(|follower| follower.opened));
}

/// Waits until what lies behind `after` is refused as lost with a region.
async fn is_refused_as_lost(client: &KvClient, after: &str) {
    poll::until("the place is of no history", DEADLINE, async || {
        let from = ChangesFrom { prefix: "", after: Some(after), follow: true };
        match client.changes(&from).await {
            Err(CallError::Refused { status, text })
                if status == 410 && text.contains("that a failover lost") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn place_that_a_failover_lost_is_refused_and_a_bookmark_before_it_misses_nothing() {
    let mut cluster = Cluster::start(options(&[3, 2, 2])).await;
    let near = cluster.client(1, DEFAULT_DATABASE);
    for number in 0..20 {
        near.set(format!("kept/{number}").as_bytes(), b"v").await.unwrap();
    }
    level(&cluster, &cluster.node_ids()).await;
    let (_, kept) = all_behind(&near, "", START).await;
    // A write from now on is shipped nowhere.
    let replicas = [4, 5, 6, 7].map(NodeId);
    for node in replicas {
        cluster.kill(node);
    }
    let mut acknowledged = 0;
    let impatient = cluster.client(1, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    while acknowledged < 30 && impatient.set(b"lost", b"v").await.is_ok() {
        acknowledged += 1;
    }
    assert!(acknowledged > 0, "nothing was acknowledged that could be lost");
    let (told, lost) = all_behind(&near, "", &kept).await;
    assert!(told.len() >= acknowledged, "{told:?}");
    for node in cluster.region(0) {
        cluster.kill(node);
    }
    for node in replicas {
        cluster.restart(node);
    }
    let far = cluster.client(4, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    poll::until("another region serves", DEADLINE, async || {
        far.set(b"after", b"v").await.map(drop)
    })
    .await;
    is_refused_as_lost(&far, &lost).await;
    let (expected, _) = all_behind(&far, "", &kept).await;
    let key = Some(base64url(b"after"));
    let is_of_after = |line: &ChangeLine| match line {
        ChangeLine::Transaction { changes, .. } => changes.iter().all(|change| change.key == key),
        _ => false,
    };
    assert!(!expected.is_empty() && expected.iter().all(is_of_after), "{expected:?}");

    // The gateways of the region that comes back say the same, though their log began anew.
    for node in cluster.region(0) {
        cluster.restart(node);
    }
    for node in cluster.region(0) {
        cluster.node_ready(node).await;
    }
    level(&cluster, &cluster.node_ids()).await;
    is_refused_as_lost(&near, &lost).await;
    // A write without an answer may have committed late.
    let (again, _) = all_behind(&near, "", &kept).await;
    assert!(again.starts_with(&expected) && again.iter().all(is_of_after), "{again:?}");
    cluster.assert_all_run();
}

/// As the documentation says: a bookmark, then a list in as many reads as it takes, then the feed
/// from the bookmark, without what the list shows already.
async fn copied(client: &KvClient, consistency: Consistency) -> (Copied, String) {
    let (_, bookmark) = all_from(client, "", None).await;
    let (mut copy, mut start) = (Copied::default(), Vec::new());
    loop {
        let pages = vec![range(&start, b"\xff", 3)];
        let found = client.read(consistency, pages).await.unwrap().ranges.remove(0).values;
        let Some(last) = found.last() else { return (copy, bookmark) };
        start = [&last.key[..], &[0]].concat();
        for entry in found {
            let versionstamp =
                entry.versionstamp.iter().map(|byte| format!("{byte:02x}")).collect();
            copy.entries.insert(entry.key.to_vec(), (versionstamp, Some(entry.value.to_vec())));
        }
    }
}

/// Of each key the versionstamp of its last change, and its value.
#[derive(Default)]
struct Copied {
    entries: BTreeMap<Vec<u8>, (String, Option<Vec<u8>>)>,
    skipped: usize,
}

impl Copied {
    fn apply(&mut self, lines: Vec<ChangeLine>) {
        for line in lines {
            let ChangeLine::Transaction { versionstamp, changes } = line else {
                panic!("{line:?}")
            };
            for change in changes {
                let key = bytes(&change.key);
                let is_known =
                    self.entries.get(&key).is_some_and(|(stamp, _)| *stamp >= versionstamp);
                if is_known {
                    self.skipped += 1;
                    continue;
                }
                let value = change.value.is_some().then(|| bytes(&change.value));
                self.entries.insert(key, (versionstamp.clone(), value));
            }
        }
    }

    fn present(self) -> Vec<(Vec<u8>, String, Vec<u8>)> {
        let entries = self.entries.into_iter();
        entries.filter_map(|(key, (stamp, value))| Some((key, stamp, value?))).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_made_under_writes_is_the_database() {
    let cluster = Cluster::start(options(&[3, 2])).await;
    let stop = Arc::<AtomicBool>::default();
    let writers: Vec<_> = (0..4u64)
        .map(|number| {
            let (client, stop) =
                (cluster.client(1 + number % 3, DEFAULT_DATABASE), Arc::clone(&stop));
            tokio::spawn(async move {
                for round in 0u64.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let key = format!("key/{:02}", round.wrapping_mul(7 + number) % 40);
                    let value = format!("{number}.{round}");
                    let mutation = match (round + number) % 3 {
                        0 => delete(key.as_bytes()),
                        _ => set(key.as_bytes(), value.as_bytes()),
                    };
                    let mutations = vec![mutation];
                    client
                        .write(pb::AtomicWrite { mutations, ..Default::default() })
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    // A new shard takes no write before its leader has heard the clocks of others.
    let all = || vec![range(b"", b"\xff", 1000)];
    poll::until("writes go on", DEADLINE, async || {
        let read = cluster.client(1, DEFAULT_DATABASE).read(Consistency::Strong, all()).await;
        let keys = read.unwrap().ranges[0].values.len();
        if keys > 10 { Ok(()) } else { Err(keys) }
    })
    .await;
    // Through gateways of both regions.
    let mut copies = Vec::new();
    for round in 0..6 {
        let node = [1u64, 4, 2, 5, 3, 4][round];
        let consistency = if round % 2 == 0 { Consistency::Strong } else { Consistency::Eventual };
        let client = cluster.client(node, DEFAULT_DATABASE);
        let (mut copy, bookmark) = copied(&client, consistency).await;
        // A part while the writes go on.
        let (lines, bookmark) = all_behind(&client, "", &bookmark).await;
        copy.apply(lines);
        copies.push((client, copy, bookmark));
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    level(&cluster, &cluster.node_ids()).await;
    let read = cluster.client(1, DEFAULT_DATABASE).read(Consistency::Strong, all()).await.unwrap();
    let expected: Vec<_> = read.ranges[0]
        .values
        .iter()
        .map(|entry| {
            let stamp: String =
                entry.versionstamp.iter().map(|byte| format!("{byte:02x}")).collect();
            (entry.key.to_vec(), stamp, entry.value.to_vec())
        })
        .collect();
    assert!(expected.len() > 5);
    let mut skipped = 0;
    for (client, mut copy, bookmark) in copies {
        copy.apply(all_behind(&client, "", &bookmark).await.0);
        skipped += copy.skipped;
        assert_eq!(copy.present(), expected);
    }
    assert!(skipped > 0, "no list showed what its feed told, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feed_begins_where_the_log_does_and_says_so_and_expiry_and_prefix_are_told() {
    let options = ClusterOptions { log_retention_mb: Some(1), ..options(&[3]) };
    let cluster = Cluster::start(options).await;
    let near = cluster.client(1, DEFAULT_DATABASE);
    let first = near.set(b"first", b"1").await.unwrap();
    let first: String = first.iter().map(|byte| format!("{byte:02x}")).collect();
    let (lines, bookmark) = all_behind(&near, &base64url(b"fi"), START).await;
    assert_eq!(lines.len(), 1);
    let ahead = "0001ffffffffffffffff";
    let error = open_error(&near, ahead).await;
    assert!(error.contains("400") && error.contains("ahead of the database"), "{error}");
    let error = open_error(&near, "00070000000000010000").await;
    assert!(error.contains("400") && error.contains("ahead of the database"), "{error}");

    // A value that expires is told to be set and then to have expired.
    let expiring = pb::Mutation {
        expire_at_ms: i64::try_from(
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis(),
        )
        .unwrap()
            + 300,
        ..set(b"soon", b"gone")
    };
    near.write(pb::AtomicWrite { mutations: vec![expiring], ..Default::default() }).await.unwrap();
    let mut follower = Follower::new(&[cluster.url(2)]);
    follower.after = bookmark;
    let key = Some(base64url(b"soon"));
    let ops = async {
        loop {
            let changes = follower.told.iter().flat_map(|(_, changes)| changes);
            let ops: Vec<_> = changes
                .filter(|change| change.key == key)
                .map(|change| change.op.clone())
                .collect();
            if ops.len() == 2 {
                return ops;
            }
            follower.step().await;
        }
    };
    let ops = tokio::time::timeout(DEADLINE, ops).await.expect("it expires");
    assert_eq!(ops, ["set", "expire"]);

    // More than is kept, in more batches than are kept in any case.
    let large = "x".repeat(1500);
    poll::until("the first is no longer kept", 3 * DEADLINE, async || {
        let writes = (0..400).map(|_| near.set(b"filling", large.as_bytes()));
        for write in futures::future::join_all(writes).await {
            write.unwrap();
        }
        let from = ChangesFrom { prefix: "", after: Some(&first), follow: false };
        match near.changes(&from).await {
            Ok(_) => Err("it is there".to_owned()),
            Err(error) => Ok(error.to_string()),
        }
    })
    .await;
    let error = open_error(&near, &first).await;
    assert!(error.contains("410") && error.contains("Take a snapshot"), "{error}");
    // The log is cut again while what was written last is flushed, and each time the feed says so.
    let mut behind = error;
    let lines = poll::until("what is kept is told", DEADLINE, async || {
        let floor = behind.split("only those behind ").nth(1).expect("the feed says what is kept");
        let floor = floor[..20].to_owned();
        match until_end(&near, &base64url(b"filling"), Some(&floor)).await {
            Ok((lines, _)) => Ok(lines),
            Err(message) => {
                behind.clone_from(&message);
                Err(message)
            }
        }
    })
    .await;
    assert!(lines.len() > 100);
}

async fn open_error(client: &KvClient, after: &str) -> String {
    let from = ChangesFrom { prefix: "", after: Some(after), follow: true };
    client.changes(&from).await.expect_err("it is refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_shows_changes_follows_and_ends_with_its_token() {
    let cluster = Cluster::start(options(&[3])).await;
    let kv = |token: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(binary());
        command.arg("kv").args(arguments).env("DENO_KV_DEFAULT_PATH", cluster.url(1));
        command.env("DENO_KV_ACCESS_TOKEN", token).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let ok = async |arguments: &[&str]| {
        let output = kv(TOKEN, arguments).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    ok(&["set", "users", "1", "{ name: 'Ada' }"]).await;
    ok(&["set", "other", "1"]).await;
    ok(&["delete", "users", "1"]).await;
    // As of a variable that is not set: it is not taken for now.
    let refused = kv(TOKEN, &["changes", "--after", ""]).output().await.unwrap();
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    let shown = ok(&["changes", "users", "--after", START, "--output", "inspect"]).await;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[1], "  set [ \"users\", 1 ] => { name: \"Ada\" }", "{shown}");
    assert_eq!(lines[3], "  delete [ \"users\", 1 ]", "{shown}");
    let bookmark = lines[4].strip_prefix("bookmark ").unwrap();
    assert_eq!(
        ok(&["changes", "users", "--after", bookmark, "--output", "inspect"]).await.lines().count(),
        1
    );

    let created = cluster.order(1, &["tokens", "create", "reader", "--read-only", "--json"]).await;
    let created = &created[created.find('{').unwrap()..=created.rfind('}').unwrap()];
    let created: serde_json::Value = serde_json::from_str(created).unwrap();
    let secret = created["secret"].as_str().unwrap();
    let mut following = kv(secret, &["changes", "--after", bookmark, "--follow"]);
    let mut following = following.spawn().unwrap();
    let out = following.stdout.take().unwrap();
    let mut out = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
    ok(&["set", "users", "2", "42n"]).await;
    let line = loop {
        let line = tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap().unwrap();
        if !line.contains("bookmark") {
            break line;
        }
    };
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["changes"][0]["value"], serde_json::json!({"type": "bigint", "value": "42"}));
    cluster.order(1, &["tokens", "revoke", &created["id"].to_string()]).await;
    ok(&["set", "users", "3", "'a secret'"]).await;
    let ended =
        tokio::time::timeout(DEADLINE, following.wait_with_output()).await.unwrap().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && error.contains("no longer valid"), "{error}");
}
