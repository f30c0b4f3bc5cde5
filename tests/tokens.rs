//! Access tokens with a scope, as the real client of Deno meets them, and their rotation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;

use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, clients, poll};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// The encoded key `["carts", "watched"]`.
const WATCHED: &[u8] = b"\x02carts\x00\x02watched\x00";
const VALUES: [&[u8]; 3] = [b"one", b"two", b"three"];

async fn cluster() -> Cluster {
    Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await
}

/// Runs `meridian tokens`, and returns the secret that it has made.
async fn secret_of(cluster: &Cluster, arguments: &[&str]) -> String {
    let arguments = [&["tokens"], arguments, &["--json"]].concat();
    let said = cluster.order(1, &arguments).await;
    let token: serde_json::Value = serde_json::from_str(&said).unwrap();
    token["secret"].as_str().unwrap().to_owned()
}

/// Once every gateway knows the token.
async fn known(cluster: &Cluster, secret: &str, key: &[u8]) {
    for node in 1..=3u64 {
        poll::until("the token is known", clients::DEADLINE, async || {
            let client = cluster.client(node, DEFAULT_DATABASE).with_token(secret);
            client.get(key).await.map(drop)
        })
        .await;
    }
}

fn program(mode: &str, url: &str, secret: &str) -> Command {
    let mut command = clients::deno_with_module(url);
    command.arg(clients::program("scoped.ts")).args([mode, url]);
    command.env("DENO_KV_ACCESS_TOKEN", secret);
    command
}

#[tokio::test]
async fn native_deno_with_a_token_for_a_prefix_does_what_it_may_and_is_refused_the_rest() {
    let cluster = cluster().await;
    cluster.client(1, DEFAULT_DATABASE).set(b"\x02secret\x00", VALUES[0]).await.unwrap();
    let secret = secret_of(&cluster, &["create", "web", "--prefix", "[\"carts\"]"]).await;
    known(&cluster, &secret, WATCHED).await;
    println!("{}", clients::run(program("scope", &cluster.url(3), &secret)).await);
    let kept = cluster.client(1, DEFAULT_DATABASE).get(b"\x02secret\x00").await.unwrap();
    assert!(kept.is_some(), "nothing was changed beside the prefix");
    // The use comes to the directory with the nodes' renewals.
    poll::until("the use of the token is listed", clients::DEADLINE, async || {
        let listed = cluster.order(1, &["tokens", "show", "web"]).await;
        let used = listed.lines().find(|line| line.starts_with("last used")).unwrap_or_default();
        if used.contains(" ago, ") { Ok(()) } else { Err(listed) }
    })
    .await;
    let changes = cluster.order(1, &["cluster", "changes", "-n", "50", "--json"]).await;
    assert!(changes.contains("web") && !changes.contains(&secret), "{changes}");
}

/// A program that watches.
struct Watching {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Watching {
    fn start(url: &str, secret: &str) -> Self {
        let mut command = program("watch", url, secret);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        Self { lines: BufReader::new(child.stdout.take().unwrap()).lines(), _child: child }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(clients::DEADLINE, self.lines.next_line());
        line.await.expect("a line in time").unwrap().expect("the program goes on")
    }
}

#[tokio::test]
async fn watch_outlives_a_rotation_by_its_overlap_and_ends_with_the_next_one() {
    let cluster = cluster().await;
    let owner = cluster.client(1, DEFAULT_DATABASE);
    let first = secret_of(&cluster, &["create", "web", "--prefix", "[\"carts\"]"]).await;
    known(&cluster, &first, WATCHED).await;
    let mut old = Watching::start(&cluster.url(2), &first);
    assert_eq!(old.line().await, "value null");
    owner.set(WATCHED, VALUES[0]).await.unwrap();
    assert_eq!(old.line().await, "value one");

    let second = secret_of(&cluster, &["rotate", "web", "--overlap", "1h"]).await;
    known(&cluster, &second, WATCHED).await;
    let mut new = Watching::start(&cluster.url(2), &second);
    assert_eq!(new.line().await, "value one");
    owner.set(WATCHED, VALUES[1]).await.unwrap();
    assert_eq!((old.line().await.as_str(), new.line().await.as_str()), ("value two", "value two"));
    known(&cluster, &first, WATCHED).await;

    // The oldest of three ends, and nothing of the others.
    let third = secret_of(&cluster, &["rotate", "web", "--overlap", "1h"]).await;
    let ended = old.line().await;
    assert!(ended.starts_with("ended"), "{ended}");
    known(&cluster, &second, WATCHED).await;
    known(&cluster, &third, WATCHED).await;
    owner.set(WATCHED, VALUES[2]).await.unwrap();
    assert_eq!(new.line().await, "value three");
    let refused = cluster.client(2, DEFAULT_DATABASE).with_token(&first).get(WATCHED).await;
    assert!(refused.is_err());

    cluster.order(1, &["tokens", "revoke", "web"]).await;
    let ended = new.line().await;
    assert!(ended.starts_with("ended"), "{ended}");
    for secret in [second, third] {
        poll::until("a revoked token opens nothing", clients::DEADLINE, async || {
            let client = cluster.client(2, DEFAULT_DATABASE).with_token(&secret);
            if client.get(WATCHED).await.is_err() { Ok(()) } else { Err(()) }
        })
        .await;
    }
}
