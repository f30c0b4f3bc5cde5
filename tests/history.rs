//! Concurrent clients over all gateways while nodes are killed, paused and restarted:
//! `meridian-checker` must find nothing in their history.
//!
//! `MERIDIAN_HISTORY_SECONDS` is the duration of the faults, `MERIDIAN_SEED` the seed of the faults
//! and clients. The seed is printed; the same seed gives the same faults, though not the same
//! interleaving.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_tests::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE};
use meridian_tests::workload::{Gateway, Workload};
use meridian_tests::{Cluster, ClusterOptions, poll};
use meridian_types::NodeId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const CLIENTS_PER_DATABASE: u64 = 6;
const DEFAULT_SECONDS: u64 = 25;
/// Longer than elections, leases and single tries inside the cluster.
const PAUSE_MS: std::ops::Range<u64> = 1_500..3_500;
/// Long enough for an election, and too short for time-outs elsewhere: when the node goes on, the
/// messages held in its sockets are outdated.
const STALL_MS: std::ops::Range<u64> = 300..1_600;
const DOWN_MS: std::ops::Range<u64> = 0..1_500;
const CALM_MS: std::ops::Range<u64> = 200..1_000;
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL, and a restart a while later.
    Kill,
    /// SIGTERM, and a restart a while later.
    Stop,
    /// SIGSTOP, and SIGCONT later than every timeout.
    Pause,
    /// SIGSTOP, and SIGCONT soon after another node may have been elected.
    Stall,
}

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Kill, Fault::Stop, Fault::Pause, Fault::Pause, Fault::Stall, Fault::Stall];

struct Nemesis {
    cluster: Cluster,
    gateways: BTreeMap<NodeId, Arc<Gateway>>,
    rng: StdRng,
    started: Instant,
}

impl Nemesis {
    /// One voter and at times one replica beside it fail together, and are well again at the end.
    async fn strike(&mut self) {
        let voters = self.cluster.region(0);
        let voter = if self.rng.random_bool(0.6) {
            let shard = self.rng.random_range(1..=2);
            self.cluster.leader(shard).await
        } else {
            *voters.choose(&mut self.rng).unwrap()
        };
        let mut victims = vec![(voter, *FAULTS.choose(&mut self.rng).unwrap())];
        if self.rng.random_bool(0.5) {
            let replicas: Vec<_> =
                self.cluster.node_ids().into_iter().filter(|id| !voters.contains(id)).collect();
            victims.push((
                *replicas.choose(&mut self.rng).unwrap(),
                *FAULTS.choose(&mut self.rng).unwrap(),
            ));
        }
        for (node, fault) in &victims {
            self.say(&format!("{fault:?} node {node}"));
            match fault {
                Fault::Kill => self.cluster.kill(*node),
                Fault::Stop => {
                    assert!(self.cluster.stop(*node).success(), "node {node} stops cleanly")
                }
                Fault::Pause | Fault::Stall => self.cluster.pause(*node),
            }
        }
        let any = |wanted: fn(&Fault) -> bool| victims.iter().any(|(_, fault)| wanted(fault));
        let down = match () {
            () if any(|fault| matches!(fault, Fault::Pause)) => PAUSE_MS,
            () if any(|fault| matches!(fault, Fault::Stall)) => STALL_MS,
            () => DOWN_MS,
        };
        self.wait(down).await;
        for (node, _) in victims {
            if self.cluster.is_up(node) {
                self.cluster.resume(node);
            } else {
                self.start(node);
            }
            self.cluster.node_ready(node).await;
        }
    }

    async fn kill_all(&mut self) {
        self.say("kill all nodes");
        self.cluster.kill_all();
        self.wait(DOWN_MS).await;
        for node in self.cluster.node_ids() {
            self.start(node);
        }
        self.cluster.ready().await;
        self.say("all nodes serve again");
    }

    async fn hand_over(&mut self) {
        let shard = self.rng.random_range(1..=2);
        let leader = self.cluster.leader(shard).await;
        let others: Vec<_> =
            self.cluster.region(0).into_iter().filter(|id| *id != leader).collect();
        let to = *others.choose(&mut self.rng).unwrap();
        let done = self.cluster.transfer_leadership(shard, leader, to).await;
        self.say(&format!("shard {shard} handed from node {leader} to {to}: {done:?}"));
    }

    fn start(&mut self, node: NodeId) {
        self.gateways[&node].restarted();
        self.cluster.restart(node);
    }

    /// The schedule of faults is the only thing here that follows the clock.
    async fn wait(&mut self, range_ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(range_ms))).await;
    }

    fn say(&self, what: &str) {
        println!("{:7.3} s: {what}", self.started.elapsed().as_secs_f64());
    }
}

/// Waits until commits end: writes whose clients have left are carried out by their gateways.
async fn quiescent(cluster: &Cluster) {
    let mut last = (Vec::new(), Instant::now());
    poll::until("nothing commits any more", DEADLINE, async || {
        let mut applied = Vec::new();
        for node in cluster.node_ids() {
            let status = cluster.status(node).await.map_err(|status| status.to_string())?;
            applied.extend(status.shards.iter().map(|shard| shard.applied_sequence));
        }
        if applied != last.0 {
            last = (applied, Instant::now());
        }
        // Longer than an attempt inside the cluster.
        if last.1.elapsed() >= Duration::from_secs(2) {
            Ok(())
        } else {
            Err(format!("{:?}", last.0))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_under_faults_are_strictly_serializable() {
    let seconds = std::env::var("MERIDIAN_HISTORY_SECONDS")
        .ok()
        .map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let seed =
        std::env::var("MERIDIAN_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!("MERIDIAN_SEED={seed} MERIDIAN_HISTORY_SECONDS={seconds}");

    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let gateways: BTreeMap<_, _> = cluster
        .node_ids()
        .into_iter()
        .map(|id| (id, Gateway::new(format!("node-{id}"), cluster.url(id))))
        .collect();
    let stateless = Gateway::new("stateless", cluster.start_gateway(1).await);
    let all: Vec<_> = gateways.values().cloned().chain([Arc::clone(&stateless)]).collect();
    let workloads =
        [DEFAULT_DATABASE, SECOND_DATABASE].map(|database| Workload::new(database, all.clone()));
    let mut clients = Vec::new();
    for (workload, first) in workloads.iter().zip([1, 1 + CLIENTS_PER_DATABASE]) {
        for number in first..first + CLIENTS_PER_DATABASE {
            clients.push(tokio::spawn(Arc::clone(workload).run_client(number, seed)));
        }
    }
    // At each voter of the primary region one client reads strongly, also at the voter that was
    // just paused.
    let mut number = 2 * CLIENTS_PER_DATABASE;
    for workload in &workloads {
        for voter in cluster.region(0) {
            number += 1;
            let gateway = Arc::clone(&gateways[&voter]);
            clients.push(tokio::spawn(Arc::clone(workload).run_reader(number, gateway, seed)));
        }
    }

    let started = Instant::now();
    let mut nemesis = Nemesis { cluster, gateways, rng: StdRng::seed_from_u64(seed), started };
    let mut all_killed = false;
    while started.elapsed() < Duration::from_secs(seconds) {
        nemesis.wait(CALM_MS).await;
        if !all_killed && started.elapsed() > Duration::from_secs(seconds) / 2 {
            all_killed = true;
            nemesis.kill_all().await;
        } else if nemesis.rng.random_bool(0.15) {
            nemesis.hand_over().await;
        } else {
            nemesis.strike().await;
        }
    }
    nemesis.say("all faults are healed");
    workloads.iter().for_each(|workload| workload.stop());
    for client in clients {
        client.await.unwrap();
    }
    nemesis.cluster.ready().await;
    quiescent(&nemesis.cluster).await;
    nemesis.cluster.assert_all_run();

    let mut clean = true;
    for (number, workload) in workloads.iter().enumerate() {
        // One history is finally read where it was written, the other from the farthest region.
        let gateway = if number == 0 { &stateless } else { &nemesis.gateways[&NodeId(6)] };
        let history = workload.finish(gateway).await;
        let report = meridian_checker::check(&history);
        println!("\n{report}");
        if !report.is_clean() {
            clean = false;
            let path = std::env::temp_dir().join(format!("meridian-history-{seed}-{number}.jsonl"));
            meridian_drills::recorder::save(&history, &path).unwrap();
            println!("the history is in {}", path.display());
        }
        let statistics = report.statistics;
        assert_eq!(statistics.keys_not_in_final_reads, 0);
        assert!(statistics.committed > 500, "too few to tell anything: {statistics:?}");
    }
    assert!(clean, "MERIDIAN_SEED={seed}");
}
