//! Losing data centers under load loses no acknowledged write, and fails no request of a client
//! whose gateway lives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::{CallError, DEFAULT_DATABASE, SECOND_DATABASE, mutation, range};
use meridian_tests::{Cluster, ClusterOptions, KvClient, TOKEN, Writer, poll};
use meridian_types::{Consistency, NodeId};

/// Far beyond every time-out inside the cluster.
const PAUSE: Duration = Duration::from_secs(4);
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn deno_writes_on_while_each_process_is_killed_in_turn() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    // The gateways of another voter, of the second region and of the third take turns as survivors.
    let leader = cluster.leader(1).await;
    let others = cluster.node_ids().into_iter().filter(|id| *id != leader);
    for victim in std::iter::once(leader).chain(others).collect::<Vec<_>>() {
        let survivors: Vec<NodeId> =
            cluster.node_ids().into_iter().filter(|id| *id != victim).collect();
        let near = survivors.iter().find(|id| cluster.region(0).contains(id)).unwrap();
        let far = survivors.last().unwrap();
        let mut writer = Writer::start(&[cluster.url(*near), cluster.url(*far)]).await;
        cluster.kill(victim);
        writer.more_written(50).await;
        cluster.restart(victim);
        writer.more_written(20).await;
        cluster.node_ready(victim).await;
        let (count, slowest_ms) = writer.finish().await;
        println!(
            "node {victim} killed: {count} writes acknowledged and there, the slowest after {slowest_ms} ms"
        );
    }
    cluster.assert_all_run();
}

/// One client that sets keys `prefix`0, `prefix`1 … and adds 1 to a counter with each.
struct RawWriter {
    client: KvClient,
    prefix: String,
    acknowledged: Vec<u64>,
    unknown: u64,
}

impl RawWriter {
    async fn write_until(mut self, stop: Arc<AtomicBool>) -> Self {
        for number in 0u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("{}{number:08}", self.prefix);
            let counter = format!("counter/{}", self.prefix);
            let value = number.to_le_bytes();
            let write = pb::AtomicWrite {
                mutations: vec![
                    meridian_tests::kv_connect::set(key.as_bytes(), &value),
                    mutation(
                        pb::MutationType::MSum,
                        counter.as_bytes(),
                        pb::ValueEncoding::VeLe64,
                        &1u64.to_le_bytes(),
                    ),
                ],
                ..Default::default()
            };
            match self.client.write(write).await {
                Ok(output) => {
                    assert_eq!(output.status, pb::AtomicWriteStatus::AwSuccess as i32);
                    self.acknowledged.push(number);
                }
                // The server says that the write was not done.
                Err(CallError::Refused { status, .. }) => assert_eq!(status.as_u16(), 503),
                Err(CallError::NotSent) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(CallError::NoAnswer(_)) => self.unknown += 1,
            }
        }
        self
    }

    /// Compares the stored keys with the acknowledged writes.
    async fn verify(&self, client: &KvClient) {
        let mut found = Vec::new();
        let mut start = self.prefix.clone().into_bytes();
        let end = format!("{}~", self.prefix).into_bytes();
        loop {
            let read =
                client.read(Consistency::Strong, vec![range(&start, &end, 1000)]).await.unwrap();
            let values = &read.ranges[0].values;
            found.extend(
                values.iter().map(|entry| u64::from_le_bytes(entry.value[..].try_into().unwrap())),
            );
            let Some(last) = values.last() else { break };
            start = [&last.key[..], &[0]].concat();
        }
        let lost: Vec<_> = self
            .acknowledged
            .iter()
            .filter(|number| found.binary_search(number).is_err())
            .collect();
        assert!(lost.is_empty(), "{}: acknowledged and lost: {lost:?}", self.prefix);
        let surplus = found.len() - self.acknowledged.len();
        assert!(surplus as u64 <= self.unknown, "{}: {surplus} more than asked for", self.prefix);
        let counter = client.get(format!("counter/{}", self.prefix).as_bytes()).await.unwrap();
        let counter =
            counter.map_or(0, |entry| u64::from_le_bytes(entry.value[..].try_into().unwrap()));
        assert_eq!(counter, found.len() as u64, "{}: each sum is applied once", self.prefix);
    }
}

/// A node that starts while all others are down answers what a program needs to open a database,
/// and says of nothing that it is not there.
async fn opens_databases_while_nothing_is_led(cluster: &mut Cluster, id: NodeId) {
    cluster.restart(id);
    let client = cluster.client(id, DEFAULT_DATABASE).with_timeout(Duration::from_secs(2));
    let exchange = async |path: &str, token: &str| {
        let headers = [("authorization", format!("Bearer {token}"))];
        client.post(path, &headers, br#"{"supportedVersions":[3]}"#.as_slice().into()).await
    };
    poll::until("metadata of a node that is alone", DEADLINE, async || {
        let reply = exchange("/", TOKEN).await.map_err(|error| error.to_string())?;
        if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
    })
    .await;
    assert_eq!(exchange("/db/second", TOKEN).await.unwrap().status, 200);
    // It says of no token that it is unknown.
    let unknown = exchange("/", "made-meanwhile").await;
    assert!(unknown.is_err(), "{unknown:?}");
    assert!(client.get(b"all/0/0/00000000").await.is_err(), "one of six nodes serves");
}

#[tokio::test]
async fn killing_all_processes_at_once_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for (number, id) in cluster.node_ids().into_iter().enumerate() {
            let database = if number % 2 == 0 { DEFAULT_DATABASE } else { SECOND_DATABASE };
            let client = cluster.client(id, database).with_timeout(Duration::from_secs(2));
            let prefix = format!("all/{round}/{number}/");
            let writer = RawWriter { client, prefix, acknowledged: Vec::new(), unknown: 0 };
            writers.push((id, database, tokio::spawn(writer.write_until(Arc::clone(&stop)))));
        }
        // Enough to have batches in flight at any time, and some of them flushed.
        let client = cluster.client(1, DEFAULT_DATABASE);
        poll::until("some writes", DEADLINE, async || {
            let key = format!("all/{round}/0/{:08}", 200);
            client.get(key.as_bytes()).await.ok().flatten().ok_or("fewer than 200")
        })
        .await;
        cluster.kill_all();
        stop.store(true, Ordering::Relaxed);
        let mut finished = Vec::new();
        for (id, database, writer) in writers {
            finished.push((id, database, writer.await.unwrap()));
        }
        opens_databases_while_nothing_is_led(&mut cluster, NodeId(6)).await;
        let restarted = Instant::now();
        cluster.start_all();
        cluster.ready().await;
        println!(
            "all six killed and serving again after {:.1} s",
            restarted.elapsed().as_secs_f64()
        );
        for (id, database, writer) in &finished {
            println!(
                "{}: {} acknowledged, {} unknown",
                writer.prefix,
                writer.acknowledged.len(),
                writer.unknown
            );
            writer.verify(&cluster.client(*id, *database)).await;
        }
    }
    cluster.assert_all_run();
}

#[tokio::test]
async fn a_node_paused_past_every_timeout_comes_back_without_harm() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let leader = cluster.leader(1).await;
    let follower = cluster.region(0).into_iter().find(|id| *id != leader).unwrap();
    for victim in [leader, follower] {
        let stop = Arc::new(AtomicBool::new(false));
        // Through the gateway of the victim too: requests that it holds when it stops stay unknown
        // until it wakes.
        let mut writers = Vec::new();
        for (number, id) in [1, 2, 3, 4, 6].into_iter().enumerate() {
            let client = cluster.client(id, DEFAULT_DATABASE);
            let prefix = format!("pause/{victim}/{number}/");
            let writer = RawWriter { client, prefix, acknowledged: Vec::new(), unknown: 0 };
            writers.push(tokio::spawn(writer.write_until(Arc::clone(&stop))));
        }
        let survivor = cluster.client(6, DEFAULT_DATABASE);
        let count = async |prefix: String| {
            let counter = survivor.get(format!("counter/{prefix}").as_bytes()).await.unwrap();
            counter.map_or(0, |entry| u64::from_le_bytes(entry.value[..].try_into().unwrap()))
        };
        let grown = async |prefix: String, by: u64| {
            let before = count(prefix.clone()).await;
            poll::until("the writers get on", DEADLINE, async || {
                let now = count(prefix.clone()).await;
                if now >= before + by { Ok(()) } else { Err(now) }
            })
            .await;
        };
        grown(format!("pause/{victim}/4/"), 50).await;
        cluster.pause(victim);
        let paused = Instant::now();
        // Two: one may have been in flight.
        grown(format!("pause/{victim}/4/"), 2).await;
        println!(
            "node {victim} paused: others write again after {:.2} s",
            paused.elapsed().as_secs_f64()
        );
        grown(format!("pause/{victim}/4/"), 50).await;
        tokio::time::sleep_until((paused + PAUSE).into()).await;
        cluster.resume(victim);
        let through_victim =
            [1, 2, 3, 4, 6].into_iter().position(|id| NodeId(id) == victim).unwrap();
        grown(format!("pause/{victim}/{through_victim}/"), 50).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let writer = writer.await.unwrap();
            assert_eq!(writer.unknown, 0, "{}: requests are held, not failed", writer.prefix);
            writer.verify(&survivor).await;
        }
        cluster.node_ready(victim).await;
    }
    cluster.assert_all_run();
}

/// A leader that is deposed with batches in flight must abandon them and follow. With two shards at
/// once, on a machine with as many cores, no other task could run if it did not.
#[tokio::test]
async fn a_leader_of_both_shards_deposed_under_load_follows() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let victim = NodeId(1);
    for _ in 0..3 {
        for shard in [1, 2] {
            let leader = cluster.leader(shard).await;
            if leader != victim {
                // Refused until the node's epoch lease is long enough and its log is close.
                poll::until("the victim leads", DEADLINE, async || {
                    let leader = cluster.leader(shard).await;
                    match leader == victim {
                        true => Ok(()),
                        false => cluster.transfer_leadership(shard, leader, victim).await,
                    }
                })
                .await;
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..12)
            .map(|number| {
                // Some through the gateway of the victim: it proposes them when it wakes, before it
                // learns of the new leader.
                let database = if number % 2 == 0 { DEFAULT_DATABASE } else { SECOND_DATABASE };
                let client = cluster.client([1, 1, 2][number % 3], database);
                let prefix = format!("deposed/{number}/");
                let writer = RawWriter { client, prefix, acknowledged: Vec::new(), unknown: 0 };
                tokio::spawn(writer.write_until(Arc::clone(&stop)))
            })
            .collect();
        let client = cluster.client(2, SECOND_DATABASE);
        let writing = async || {
            client.get(b"deposed/11/00000020").await.ok().flatten().ok_or("fewer than 20 writes")
        };
        poll::until("some writes", DEADLINE, writing).await;
        cluster.pause(victim);
        tokio::time::sleep(PAUSE / 2).await;
        cluster.resume(victim);
        let resumed = Instant::now();
        cluster.node_ready(victim).await;
        assert!(
            resumed.elapsed() < Duration::from_secs(8),
            "it served after {:?} only",
            resumed.elapsed()
        );
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            assert_eq!(writer.await.unwrap().unknown, 0, "requests are held, not failed");
        }
    }
    cluster.assert_all_run();
}
