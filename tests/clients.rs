//! The real clients perform every operation through the gateways of every region.
//!
//! Each client's program lies in `clients/`, and ends with an error at the first wrong result. It
//! takes the URL of the gateway that it uses, and the URLs of all regions' gateways, through which
//! it reads its writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::num::NonZeroU32;
use std::process::Stdio;

use bytes::Bytes;
use deno_error::JsErrorBox;
use denokv_proto::{
    AtomicWrite, Check, Consistency, Database, KvEntry, KvValue, Mutation, MutationKind, ReadRange,
    SnapshotReadOptions,
};
use denokv_remote::{MetadataEndpoint, Remote, RemotePermissions, RemoteResponse, RemoteTransport};
use futures::Stream;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::{DEFAULT_DATABASE, mutation, point, set};
use meridian_tests::{Cluster, ClusterOptions, TOKEN, clients, poll};
use tokio::io::{AsyncBufReadExt, BufReader};
use url::Url;

/// The last node of each region: a voter that need not lead, a replica, and the third region's only
/// node.
fn gateways(cluster: &Cluster) -> Vec<String> {
    let nodes = (0..cluster.regions()).filter_map(|region| cluster.region(region).pop());
    nodes.map(|node| cluster.url(node)).collect()
}

async fn program_through_every_gateway(
    command: impl Fn() -> tokio::process::Command,
    program: &str,
) -> Cluster {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let urls = gateways(&cluster);
    for url in &urls {
        let mut command = command();
        command.arg(clients::program(program)).arg(url).args(&urls);
        clients::run(command).await;
    }
    cluster.assert_all_run();
    cluster
}

/// The cases go through a voter's and through a replica's gateway.
#[tokio::test]
async fn native_deno() {
    let mut cluster = program_through_every_gateway(clients::deno, "deno.ts").await;
    for url in &gateways(&cluster)[..2] {
        run_cases(clients::deno(), "deno_cases.ts", url).await;
    }
    cluster.assert_all_run();
}

async fn run_cases(mut command: tokio::process::Command, program: &str, url: &str) {
    command.arg(clients::program(program)).arg(url);
    println!("{url}: {}", clients::run(command).await.trim());
}

#[tokio::test]
async fn native_deno_with_the_module_writes_once_over_connections_that_break() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for url in gateways(&cluster) {
        let mut command = clients::deno_with_module(&url);
        command.arg(clients::program("module.ts")).arg(url).arg("default");
        clients::run(command).await;
    }
    cluster.assert_all_run();
}

#[tokio::test]
async fn native_deno_with_the_module_finds_nothing_missing_of_deno_kv() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for url in &gateways(&cluster)[..2] {
        run_cases(clients::deno_with_module(url), "deno_cases.ts", url).await;
        run_cases(clients::deno_with_module(url), "queue_cases.ts", url).await;
    }
    cluster.assert_all_run();
}

/// The data center of the leader is lost in the midst of the cases, through the gateways of another
/// voter and of the farthest replica, or, as they share one queue, of the replica alone.
/// Versionstamps say how many writes were before.
async fn cases_over_the_loss_of_the_leader(cluster: &mut Cluster, program: &str, shares: bool) {
    let leader = cluster.leader(1).await;
    let others: Vec<_> = cluster.node_ids().into_iter().filter(|id| *id != leader).collect();
    let [near, far] = [others[0], others[others.len() - 1]].map(|id| cluster.url(id));
    let urls = if shares { vec![far] } else { vec![near, far] };
    let mut runs = Vec::new();
    for url in &urls {
        let mut command = clients::deno_with_module(url);
        command.arg(clients::program(program)).arg(url).arg("loss");
        runs.push(tokio::spawn(clients::run(command)));
    }
    let client = cluster.client(others[0], DEFAULT_DATABASE);
    let sequence = async || {
        let write =
            pb::AtomicWrite { mutations: vec![set(b"\x02beside\0", b"v")], ..Default::default() };
        let stamp = client.write(write).await.unwrap().versionstamp;
        u64::from_be_bytes(stamp[..8].try_into().unwrap()) & 0xffff_ffff_ffff
    };
    let begin = sequence().await;
    let mut own = 0;
    poll::until("the cases are at work", clients::DEADLINE, async || {
        own += 1;
        // Its own may be of the same batch.
        let others = sequence().await.saturating_sub(begin + own);
        if others > 50 { Ok(()) } else { Err(others) }
    })
    .await;
    cluster.kill(leader);
    for run in runs {
        println!("{program} while node {leader} is lost: {}", run.await.unwrap().trim());
    }
    cluster.restart(leader);
    cluster.node_ready(leader).await;
}

#[tokio::test]
async fn native_deno_finds_nothing_missing_while_a_data_center_and_a_region_are_lost() {
    // Two data centers in each replica region: enough for a failover by itself.
    let options = ClusterOptions { topology: &[3, 2, 2], ..Default::default() };
    let mut cluster = Cluster::start(options).await;
    cases_over_the_loss_of_the_leader(&mut cluster, "deno_cases.ts", false).await;
    cases_over_the_loss_of_the_leader(&mut cluster, "queue_cases.ts", true).await;
    // Behind the failover, through the gateways of the new primary's region and of the other one.
    for node in cluster.region(0) {
        cluster.kill(node);
    }
    let urls = gateways(&cluster);
    for url in &urls[1..] {
        for program in ["deno_cases.ts", "queue_cases.ts"] {
            run_cases(clients::deno_with_module(url), program, url).await;
        }
    }
}

#[tokio::test]
async fn native_deno_with_the_module_follows_the_changes_of_a_database() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for url in &gateways(&cluster)[..2] {
        run_cases(clients::deno_with_module(url), "module_changes.ts", url).await;
    }
    cluster.assert_all_run();
}

/// Messages go in at one region and come out at another.
#[tokio::test]
async fn native_deno_with_the_module_enqueues_and_listens() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let urls = gateways(&cluster);
    for (writing, listening) in urls.iter().zip(urls.iter().cycle().skip(1)) {
        let mut command = clients::deno_with_module(writing);
        command.arg(clients::program("module_queue.ts")).arg(writing).arg(listening);
        clients::run(command).await;
    }
    cluster.assert_all_run();
}

/// Handlers that are at work while the leader is lost run once: their gateway lives.
#[tokio::test]
async fn listener_of_the_module_runs_each_handler_once_over_the_loss_of_its_leader() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let leader = cluster.leader(1).await;
    let mut others = cluster.node_ids();
    others.retain(|id| *id != leader);
    let [near, far] = [others[0], others[others.len() - 1]].map(|id| cluster.url(id));
    let mut command = clients::deno_with_module(&near);
    command.arg(clients::program("module_failover.ts"));
    command.args([near, far, DEFAULT_DATABASE.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut program = command.spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let said = tokio::time::timeout(clients::DEADLINE, lines.next_line()).await;
    assert_eq!(said.expect("a word").unwrap().as_deref(), Some("held"));
    cluster.kill(leader);
    drop(program.stdin.take());
    let ended = tokio::time::timeout(clients::DEADLINE, program.wait()).await;
    assert!(ended.expect("an end").unwrap().success(), "see what it wrote to stderr");
}

#[tokio::test]
async fn module_changes_nothing_at_a_server_that_is_no_meridian() {
    let mut cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let mut command = clients::deno_with_module(&cluster.url(1));
    command.arg(clients::program("module_other.ts")).arg(cluster.url(1));
    clients::run(command).await;
    cluster.assert_all_run();
}

#[tokio::test]
async fn package_for_node_and_bun_enqueues_and_listens() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for url in gateways(&cluster) {
        for mut command in [clients::node(), clients::bun()] {
            command.arg(clients::program("module.mjs")).arg(&url);
            clients::run(command).await;
        }
    }
    cluster.assert_all_run();
}

/// Against a gateway that the program plays.
#[tokio::test]
async fn listener_of_the_module_keeps_its_messages_over_breaks_and_reports_until_answered() {
    for mut command in [clients::deno(), clients::node()] {
        command.arg(clients::program("listener.mjs"));
        clients::run(command).await;
    }
}

#[tokio::test]
async fn npm_on_node() {
    program_through_every_gateway(clients::node, "node.mjs").await;
}

#[tokio::test]
async fn python() {
    program_through_every_gateway(clients::python, "python.py").await;
}

/// hyper, in the form of an HTTP client that `denokv_remote` accepts.
#[derive(Clone)]
struct Transport(Client<HttpConnector, Full<Bytes>>);

struct Body(Bytes);

impl RemoteTransport for Transport {
    type Response = Body;

    async fn post(
        &self,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(Url, StatusCode, Body), JsErrorBox> {
        let client = self.0.clone();
        // In a task of its own, because hyper's futures are not `Sync`.
        let answered = tokio::spawn(async move {
            let failed = |error: &dyn std::error::Error| JsErrorBox::generic(error.to_string());
            let mut request = Request::post(url.as_str());
            if let Some(all) = request.headers_mut() {
                *all = headers;
            }
            let request = request.body(Full::new(body)).map_err(|error| failed(&error))?;
            let response = client.request(request).await.map_err(|error| failed(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| failed(&error))?;
            Ok((url, status, Body(body.to_bytes())))
        });
        answered.await.map_err(|error| JsErrorBox::generic(error.to_string()))?
    }
}

impl RemoteResponse for Body {
    async fn bytes(self) -> Result<Bytes, JsErrorBox> {
        Ok(self.0)
    }

    async fn text(self) -> Result<String, JsErrorBox> {
        Ok(String::from_utf8_lossy(&self.0).into_owned())
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, JsErrorBox>> + Send + Sync {
        futures::stream::iter([Ok(self.0)])
    }
}

#[derive(Clone)]
struct Anywhere;

impl RemotePermissions for Anywhere {
    fn check_net_url(&self, _: &Url) -> Result<(), JsErrorBox> {
        Ok(())
    }
}

type Kv = Remote<Anywhere, Transport>;

fn connect(url: &str) -> Kv {
    let transport = Transport(Client::builder(TokioExecutor::new()).build(HttpConnector::new()));
    let endpoint = MetadataEndpoint { url: url.parse().unwrap(), access_token: TOKEN.to_owned() };
    Remote::new(transport, Anywhere, endpoint)
}

async fn list(
    kv: &Kv,
    prefix: &str,
    limit: u32,
    reverse: bool,
    consistency: Consistency,
) -> Vec<KvEntry> {
    let range = ReadRange {
        start: prefix.as_bytes().to_vec(),
        end: format!("{prefix}~").into_bytes(),
        limit: NonZeroU32::new(limit).unwrap(),
        reverse,
    };
    let mut ranges =
        kv.snapshot_read(vec![range], SnapshotReadOptions { consistency }).await.unwrap();
    ranges.pop().unwrap().entries
}

async fn number(kv: &Kv, key: &str) -> Option<u64> {
    let entry = list(kv, key, 1, false, Consistency::Strong).await.pop()?;
    match entry.value {
        KvValue::U64(number) => Some(number),
        other => panic!("{key} is {other:?}"),
    }
}

fn mutate(key: &str, kind: MutationKind) -> Mutation {
    Mutation { key: key.as_bytes().to_vec(), kind, expire_at: None }
}

fn write(checks: Vec<Check>, mutations: Vec<Mutation>) -> AtomicWrite {
    AtomicWrite { checks, mutations, enqueues: Vec::new() }
}

async fn commit(kv: &Kv, mutations: Vec<Mutation>) -> [u8; 10] {
    kv.atomic_write(write(vec![], mutations))
        .await
        .unwrap()
        .expect("a write without checks")
        .versionstamp
}

fn bytes(text: &str) -> KvValue {
    KvValue::Bytes(text.as_bytes().to_vec())
}

async fn official_rust_client(url: &str, urls: &[String], root: &str) {
    let kv = connect(url);
    values(&kv, root).await;
    numbers(&kv, root).await;
    checks(&kv, root).await;
    versionstamped_keys(&kv, root).await;
    lists(&kv, root).await;
    large_values(&kv, root, urls).await;
}

async fn values(kv: &Kv, root: &str) {
    let key = |name: &str| format!("{root}/{name}");
    let versionstamp = commit(kv, vec![mutate(&key("value"), MutationKind::Set(bytes("v")))]).await;
    let entry = list(kv, &key("value"), 10, false, Consistency::Strong).await.pop().unwrap();
    assert_eq!((entry.versionstamp, entry.key), (versionstamp, key("value").into_bytes()));
    assert!(matches!(entry.value, KvValue::Bytes(value) if value == b"v"));
    commit(kv, vec![mutate(&key("value"), MutationKind::Delete)]).await;
    assert!(list(kv, &key("value"), 10, false, Consistency::Strong).await.is_empty());
}

async fn numbers(kv: &Kv, root: &str) {
    let key = |name: &str| format!("{root}/{name}");
    let sum = |value| MutationKind::Sum {
        value: KvValue::U64(value),
        min_v8: vec![],
        max_v8: vec![],
        clamp: false,
    };
    for (expected, kind) in [
        (5, sum(5)),
        (7, sum(2)),
        (3, MutationKind::Min(KvValue::U64(3))),
        (3, MutationKind::Min(KvValue::U64(9))),
        (8, MutationKind::Max(KvValue::U64(8))),
        (1, sum(u64::MAX - 6)),
    ] {
        commit(kv, vec![mutate(&key("number"), kind)]).await;
        assert_eq!(number(kv, &key("number")).await, Some(expected));
    }
}

async fn checks(kv: &Kv, root: &str) {
    let key = |name: &str| format!("{root}/{name}");
    let absent = || vec![Check { key: key("checked").into_bytes(), versionstamp: None }];
    let set = || vec![mutate(&key("checked"), MutationKind::Set(bytes("v")))];
    let first = kv
        .atomic_write(write(absent(), set()))
        .await
        .unwrap()
        .expect("the key is absent")
        .versionstamp;
    assert!(kv.atomic_write(write(absent(), set())).await.unwrap().is_none());
    let at_first = vec![Check { key: key("checked").into_bytes(), versionstamp: Some(first) }];
    let second = kv
        .atomic_write(write(at_first, set()))
        .await
        .unwrap()
        .expect("it has this version")
        .versionstamp;
    assert!(second > first);
}

async fn versionstamped_keys(kv: &Kv, root: &str) {
    let key = |name: &str| format!("{root}/{name}");
    let kind = MutationKind::SetSuffixVersionstampedKey(bytes("v"));
    let versionstamp = commit(kv, vec![mutate(&key("stamped"), kind)]).await;
    let hex: String = versionstamp.iter().map(|byte| format!("{byte:02x}")).collect();
    let entry = list(kv, &key("stamped"), 10, false, Consistency::Strong).await.pop().unwrap();
    assert_eq!(entry.key, [key("stamped").as_bytes(), b"\x02", hex.as_bytes(), b"\0"].concat());
}

async fn lists(kv: &Kv, root: &str) {
    let key = |name: &str| format!("{root}/{name}");
    let items =
        (0..20).map(|at| mutate(&format!("{}{at:02}", key("item")), MutationKind::Set(bytes("v"))));
    commit(kv, items.collect()).await;
    for (limit, reverse, expected) in [(3, false, [0, 1, 2]), (3, true, [19, 18, 17])] {
        let found = list(kv, &key("item"), limit, reverse, Consistency::Strong).await;
        let found: Vec<_> =
            found.into_iter().map(|entry| String::from_utf8(entry.key).unwrap()).collect();
        assert_eq!(found, expected.map(|at| format!("{}{at:02}", key("item"))));
    }
    assert_eq!(list(kv, &key("item"), 500, false, Consistency::Strong).await.len(), 20);
}

async fn large_values(kv: &Kv, root: &str, urls: &[String]) {
    let key = |name: &str| format!("{root}/{name}");
    let large = KvValue::Bytes(vec![7; 65536]);
    let long = format!("{}{}", key("long"), "x".repeat(2048 - key("long").len()));
    let versionstamp = commit(kv, vec![mutate(&long, MutationKind::Set(large))]).await;
    for other in urls {
        let there = connect(other);
        let entry = list(&there, &key("long"), 1, false, Consistency::Strong).await.pop().unwrap();
        assert_eq!((entry.versionstamp, entry.key.len()), (versionstamp, 2048), "{other}");
        assert!(matches!(entry.value, KvValue::Bytes(value) if value.len() == 65536));
        poll::until("an eventual read", std::time::Duration::from_secs(10), async || {
            let found = list(&there, &key("long"), 1, false, Consistency::Eventual).await.pop();
            found.filter(|entry| entry.versionstamp == versionstamp).map(drop).ok_or(())
        })
        .await;
    }
}

#[tokio::test]
async fn denokv_remote_in_rust() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let urls = gateways(&cluster);
    for (number, url) in urls.iter().enumerate() {
        official_rust_client(url, &urls, &format!("rust/{number}")).await;
    }
    cluster.assert_all_run();
}

/// `@deno/kv` sends no versionstamped keys: here they are sent by hand, through every gateway.
#[tokio::test]
async fn versionstamped_keys_by_hand() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    for id in cluster.node_ids() {
        let client = cluster.client(id, DEFAULT_DATABASE);
        let kind = pb::MutationType::MSetSuffixVersionstampedKey;
        let stamped = mutation(kind, b"stamped", pb::ValueEncoding::VeBytes, b"v");
        let output = client
            .write(pb::AtomicWrite { mutations: vec![stamped], ..Default::default() })
            .await
            .unwrap();
        let hex: String = output.versionstamp.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = [b"stamped\x02", hex.as_bytes(), b"\0"].concat();
        let read =
            client.read(meridian_types::Consistency::Strong, vec![point(&key)]).await.unwrap();
        assert_eq!(read.ranges[0].values[0].value, &b"v"[..]);
        assert_eq!(read.ranges[0].values[0].versionstamp, output.versionstamp);
    }
}
