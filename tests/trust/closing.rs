//! A cluster that was open is closed while it serves, and its authority is replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use meridian_net::grpc::{Peer, Way};
use meridian_tests::kv_connect::{self, DEFAULT_DATABASE};
use meridian_tests::{Cluster, ClusterOptions, poll};
use tokio::task::JoinSet;

use crate::{DEADLINE, ended, follow};

/// Clients that write and read through every gateway until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for id in cluster.node_ids() {
            let client = kv_connect::client(cluster.url(id), DEFAULT_DATABASE);
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            clients.spawn(async move {
                let mut failures = Vec::new();
                for number in 0u64.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("{id}/{}", number % 100);
                    let made = async {
                        client.set(key.as_bytes(), &number.to_be_bytes()).await?;
                        client.get(key.as_bytes()).await
                    };
                    match made.await {
                        Ok(_) => drop(done.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                failures
            });
        }
        Self { stop, done, clients }
    }

    /// Waits until so many more are done.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::SeqCst);
        poll::until("requests are answered", DEADLINE, async || {
            let now = self.done.load(Ordering::SeqCst);
            if now > before + 200 { Ok(()) } else { Err(now) }
        })
        .await;
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let failures: Vec<String> = self.clients.join_all().await.concat();
        assert!(failures.is_empty(), "{failures:?}");
        self.done.load(Ordering::SeqCst)
    }
}

async fn transport(cluster: &Cluster) -> serde_json::Value {
    let shown = cluster.order(1, &["cluster", "transport", "--json"]).await;
    serde_json::from_str(&shown).unwrap()
}

#[tokio::test]
async fn open_cluster_is_closed_and_its_authority_replaced_without_a_failed_request() {
    let options = ClusterOptions { topology: &[3, 1], ..ClusterOptions::default() };
    let cluster = Cluster::start_open(options).await;
    assert_eq!(transport(&cluster).await["transport"], "off");
    let load = Load::start(&cluster);
    load.goes_on().await;
    for step in ["allow", "prefer"] {
        cluster.order(1, &["cluster", "transport", step]).await;
        load.goes_on().await;
    }
    // No operator could command it any more.
    let (done, text) = cluster.meridian(1, &["cluster", "transport", "require"]).await;
    assert!(!done && text.contains("operators add"), "{text}");
    let login = cluster.order(1, &["operators", "add", "ana", "--level", "admin"]).await;
    cluster.log_in(login.trim()).await;
    let in_the_clear = Peer::new(cluster.rpc_address(1), None, Way::Plain).unwrap().channel();
    let followed = follow(in_the_clear).await;
    cluster.order(1, &["cluster", "transport", "require"]).await;
    ended(followed).await;
    load.goes_on().await;
    let before = transport(&cluster).await;
    assert_eq!(before["transport"], "require");

    let before = cluster.folder().join("before.toml");
    std::fs::copy(cluster.context(), &before).unwrap();
    let said = cluster.order(1, &["cluster", "rotate-authority"]).await;
    assert!(said.contains("void") && said.contains("operators login-token"), "{said}");
    load.goes_on().await;
    // A context that was not used meanwhile believes no node, and the next token is good again.
    let before = before.to_str().unwrap();
    let (done, text) = cluster.meridian(1, &["nodes", "list", "--context", before]).await;
    assert!(!done && text.contains("operators login-token"), "{text}");
    let login = cluster.order(1, &["operators", "login-token", "ana"]).await;
    poll::until("the token before is refused", DEADLINE, async || {
        match cluster.meridian(1, &["nodes", "list"]).await {
            (true, _) => Err("it is still taken".to_owned()),
            (false, text) if text.contains("not known") => Ok(()),
            (false, text) => Err(text),
        }
    })
    .await;
    cluster.log_in(login.trim()).await;
    cluster.order(1, &["nodes", "list"]).await;
    let done = load.stop().await;
    assert!(done > 1000, "{done}");
}
