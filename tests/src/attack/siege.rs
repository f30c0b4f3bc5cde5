//! A cluster under attack.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::{MutationType, ValueEncoding};
use meridian_types::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::bystander::{Bystander, Seen};
use super::{Input, Target, name_of, stored};
use crate::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE, delete, mutation, set};
use crate::{Cluster, ClusterOptions, poll};

/// Little enough that the attacks would exceed it if they were not bounded.
const MAX_MEMORY_MB: u64 = 512;
const LARGE_VALUES: usize = 1000;
const BIGINTS: usize = 1000;
/// As many mutations as a write may have.
const WRITE: usize = 1000;
/// Values of 64 KiB in a write.
const LARGE_WRITE: usize = 12;
const VALUE_BYTES: usize = 65_536;
const DEADLINE: Duration = Duration::from_secs(60);
/// The time for an attacker to end after its attack.
const END: Duration = Duration::from_secs(20);

/// A cluster of three regions, with the data that attackers need, and a bystander.
pub struct Siege {
    cluster: Cluster,
    target: Target,
    bystander_token: String,
    program: PathBuf,
}

/// The results of one attack, or of a time without one.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub seen: Seen,
    /// The largest resident memory of a node, in MiB, and the node. `None`: unknown on this system.
    pub memory: Option<(u64, NodeId)>,
    /// The memory that a node may take, in MiB.
    pub max_memory_mb: u64,
    /// Nodes that ended, and changes of the epoch of a shard.
    pub faults: Vec<String>,
}

impl Siege {
    /// `program` is `meridian-attack`; so many rows are written and deleted.
    pub async fn start(program: PathBuf, deleted_rows: usize) -> Self {
        let options =
            ClusterOptions { max_memory_mb: Some(MAX_MEMORY_MB), ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await;
        let ids = cluster.node_ids();
        let token = async |label: &str, database: &str, more: &[&str]| {
            let arguments = [&["tokens", "create", label, "--database", database], more].concat();
            cluster.order(1, &arguments).await.lines().next().unwrap_or_default().trim().to_owned()
        };
        let target = Target {
            gateways: ids
                .iter()
                .map(|id| cluster.url(*id).trim_start_matches("http://").to_owned())
                .collect(),
            nodes: ids.iter().map(|id| (id.0, cluster.rpc_address(*id).to_owned())).collect(),
            metrics: ids.iter().map(|id| cluster.metrics_address(*id).to_owned()).collect(),
            cluster: cluster.directory().await.id.unwrap_or_default(),
            identities: cluster.folder().join("identities"),
            reader: token("reader", "default", &["--read-only"]).await,
            writer: token("writer", "default", &[]).await,
        };
        let bystander_token = token("bystander", "second", &[]).await;
        let siege = Self { cluster, target, bystander_token, program };
        siege.fill(deleted_rows).await;
        siege
    }

    async fn fill(&self, deleted_rows: usize) {
        for gateway in &self.target.gateways {
            for (token, database) in
                [(&self.target.writer, DEFAULT_DATABASE), (&self.bystander_token, SECOND_DATABASE)]
            {
                let client = crate::kv_connect::client(format!("http://{gateway}"), database)
                    .with_token(token);
                poll::until("the token is known", DEADLINE, async || client.get(b"k").await).await;
            }
        }
        let client = self.cluster.client(1, DEFAULT_DATABASE).with_token(&*self.target.writer);
        let write = async |mutations: Vec<pb::Mutation>| {
            // Slowed writes may be refused for a while.
            poll::until("the data is written", DEADLINE, async || {
                client
                    .write(pb::AtomicWrite { mutations: mutations.clone(), ..Default::default() })
                    .await
                    .map(drop)
            })
            .await;
        };
        let numbers: Vec<usize> = (0..LARGE_VALUES.max(BIGINTS).max(deleted_rows)).collect();
        let value = vec![7; VALUE_BYTES];
        for chunk in numbers[..LARGE_VALUES].chunks(LARGE_WRITE) {
            write(chunk.iter().map(|number| set(&stored::large_key(*number), &value)).collect())
                .await;
        }
        let bigint = largest_bigint();
        for chunk in numbers[..BIGINTS].chunks(LARGE_WRITE) {
            let set = |number: &usize| {
                mutation(
                    MutationType::MSet,
                    &stored::key(stored::BIGINTS, *number),
                    ValueEncoding::VeV8,
                    &bigint,
                )
            };
            write(chunk.iter().map(set).collect()).await;
        }
        for chunk in numbers[..deleted_rows].chunks(WRITE) {
            write(
                chunk
                    .iter()
                    .map(|number| set(&stored::key(stored::DELETED, *number), b""))
                    .collect(),
            )
            .await;
            write(
                chunk.iter().map(|number| delete(&stored::key(stored::DELETED, *number))).collect(),
            )
            .await;
        }
    }

    /// The bystander's results while an attacker carries out all of `inputs`.
    pub async fn row(&mut self, name: &str, inputs: &[Input], duration: Duration) -> Row {
        let ids = self.cluster.node_ids();
        let pids: Vec<(NodeId, u32)> =
            ids.iter().map(|id| (*id, self.cluster.process_id(*id))).collect();
        pids.iter().for_each(|(_, pid)| forget_peak(*pid));
        let epochs = self.epochs().await;
        let bystander =
            Bystander::start(&self.target.gateways, SECOND_DATABASE, &self.bystander_token);
        if inputs.is_empty() {
            tokio::time::sleep(duration).await;
        } else {
            self.attack(inputs, duration).await;
        }
        let seen = bystander.stop().await;
        let memory = pids.iter().filter_map(|(id, pid)| Some((peak_mb(*pid)?, *id))).max();
        let mut faults: Vec<String> = self.cluster.ended().into_iter().collect();
        let after = self.epochs().await;
        if after != epochs {
            faults.push(format!("the epochs of the shards were {epochs:?}, and are {after:?}"));
        }
        Row { name: name.to_owned(), seen, memory, max_memory_mb: MAX_MEMORY_MB, faults }
    }

    async fn epochs(&self) -> Vec<u16> {
        self.cluster.directory().await.shards.values().map(|shard| shard.epoch.0).collect()
    }

    /// Runs an attacker's process, at the lowest priority, to its end.
    async fn attack(&self, inputs: &[Input], duration: Duration) {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(&self.program);
        command
            .args(["with", "--seconds", &duration.as_secs().to_string()])
            .args(inputs.iter().map(|input| name_of(*input)));
        // The target has secrets, and every user of the machine can see arguments.
        let mut child = command.stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let target = serde_json::to_vec(&self.target).unwrap();
        child.stdin.take().unwrap().write_all(&target).await.unwrap();
        let ended = tokio::time::timeout(duration + END, child.wait()).await;
        assert!(
            ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success())),
            "{inputs:?} did their worst"
        );
    }

    /// Keeps the folder of the nodes' logs, and returns it.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.cluster.keep_folder()
    }
}

/// ff 0f `Z`, a varint of twice the number of bytes, and the magnitude: a legal value of 65,536
/// bytes.
fn largest_bigint() -> Vec<u8> {
    let magnitude = VALUE_BYTES - 6;
    let mut bigint = vec![0xff, 0x0f, b'Z'];
    let mut bits = magnitude << 1;
    while bits >= 0x80 {
        bigint.push((bits & 0x7f) as u8 | 0x80);
        bits >>= 7;
    }
    bigint.push(bits as u8);
    bigint.resize(bigint.len() + magnitude, 0x11);
    bigint
}

/// The largest resident memory since it was last reset.
fn peak_mb(pid: u32) -> Option<u64> {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kb: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kb.div_ceil(1024))
}

fn forget_peak(pid: u32) {
    // If it cannot be reset, the peak is that of all attacks so far.
    drop(std::fs::write(Path::new("/proc").join(pid.to_string()).join("clear_refs"), "5"));
}
