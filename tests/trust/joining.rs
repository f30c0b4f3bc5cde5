//! A cluster that one node founds, and that others join by tokens.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meridian_config::{Context, IdentityFolder, private_file};
use meridian_drills::cluster::PortBlock;
use meridian_pki::{Authority, Holder, KeyAndRequest, Secret, Subject};
use meridian_tests::cluster::{binary, log_in};
use meridian_tests::kv_connect::{self, DEFAULT_DATABASE};
use meridian_tests::{KvClient, as_node, poll};
use meridian_types::NodeId;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use crate::{DEADLINE, ended, follow};

const DAY: Duration = Duration::from_secs(24 * 3600);
const TOKEN: &str = "an-access-token-for-a-test";
/// Of each node's file.
const ENCRYPTION: &str = "[encryption]\nkey_file = \"key\"\n";

struct Grown {
    folder: TempDir,
    ports: PortBlock,
}

impl Grown {
    fn new() -> Self {
        let ports = PortBlock::take().expect("free ports");
        let grown = Self { folder: tempfile::tempdir().unwrap(), ports };
        private_file::write(&grown.file("key"), "0123456789abcdef".repeat(4).as_bytes()).unwrap();
        grown
    }

    fn address(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.ports.all().nth(number).unwrap())
    }

    fn rpc(&self, node: usize) -> String {
        self.address(2 * node - 2)
    }

    fn kv(&self, node: usize) -> String {
        self.address(2 * node - 1)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn context(&self) -> PathBuf {
        self.file("one/identity/operator.toml")
    }

    /// The file of the first node, which describes three.
    fn founder(&self) -> PathBuf {
        let nodes: String = (1..=3)
            .map(|id| {
                let data_center = ['a', 'b', 'c'][id - 1];
                format!(
                    "[[nodes]]\nid = {id}\nname = \"n{id}\"\nregion = \"home\"\ndata_center = \"{data_center}\"\n\
                     rpc_address = \"{}\"\nkv_address = \"{}\"\n",
                    self.rpc(id),
                    self.kv(id)
                )
            })
            .collect();
        let text = format!(
            "node = 1\ndata_dir = \"one\"\nmax_memory_mb = 400\nregions = [\"home\"]\ndefault_database = \"main\"\n\
             {nodes}[[shards]]\nid = 1\nprimary_region = \"home\"\n\
             [[databases]]\nid = \"00000000-0000-4000-8000-000000000001\"\nname = \"main\"\nshard = 1\n\
             [[tokens]]\nsecret = \"{TOKEN}\"\ndatabases = [\"*\"]\naccess = \"read-write\"\n{ENCRYPTION}"
        );
        let path = self.file("one.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn joiner(&self, name: &str, more: &str, token: &str) -> PathBuf {
        let path = self.file(&format!("{name}.toml"));
        let text = format!("join = \"{token}\"\nmax_memory_mb = 400\n{more}");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, command: &str, file: &Path) -> Child {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(file.with_extension("log"))
            .unwrap();
        let mut process = Command::new(binary());
        process.arg(command).arg("--config").arg(file).kill_on_drop(true);
        process.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until the log of one of the processes has the text.
    async fn say(&self, names: &[&str], text: &str) {
        poll::until("a log says so", DEADLINE, async || {
            let logs: String = names.iter().map(|name| self.log(name)).collect();
            if logs.contains(text) { Ok(()) } else { Err(logs) }
        })
        .await;
    }

    async fn meridian(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary());
        command.args(arguments).env("MERIDIAN_CONTEXT", self.context()).kill_on_drop(true);
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(text) } else { Err(text + &errors) }
    }

    async fn token(&self, arguments: &[&str]) -> String {
        let made =
            poll::until("a token is made", DEADLINE, async || self.meridian(arguments).await);
        made.await.trim().to_owned()
    }

    /// Starts the founder, and the two other nodes by tokens, and waits until all take part.
    async fn start_all(&self) -> Vec<Child> {
        let mut processes = vec![self.start("serve", &self.founder())];
        poll::until("the founder has its context", DEADLINE, async || {
            if self.context().exists() { Ok(()) } else { Err(self.log("one")) }
        })
        .await;
        for (name, data_dir) in [("n2", "two"), ("n3", "three")] {
            let token = self.token(&["nodes", "join-token", name]).await;
            let more = format!("data_dir = \"{data_dir}\"\n{ENCRYPTION}");
            let file = self.joiner(data_dir, &more, &token);
            processes.push(self.start("serve", &file));
        }
        let client = self.client(1, TOKEN);
        poll::until("the cluster takes a write", DEADLINE, async || {
            client.set(b"first", b"write").await.map_err(|error| (error, self.log("two")))
        })
        .await;
        poll::until("the directory has its three voters", DEADLINE, async || {
            let status = self.meridian(&["cluster", "status", "--json"]).await?;
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            match status["directory"]["voters"].as_array().map(Vec::len) {
                Some(3) => Ok(()),
                _ => Err(status.to_string()),
            }
        })
        .await;
        processes
    }

    /// A channel to the first node, with the certificate of a process that keeps it in this folder.
    fn channel_of(&self, folder: &str) -> Channel {
        let id = Context::load(&self.context()).unwrap().cluster;
        let files = IdentityFolder::of(&self.file(folder)).files();
        as_node::channel_with(&files, (NodeId(1), self.rpc(1).as_str()), &id)
    }

    fn client(&self, node: usize, token: &str) -> KvClient {
        let url = format!("http://{}", self.kv(node));
        kv_connect::client(url, DEFAULT_DATABASE).with_token(token)
    }
}

#[tokio::test]
async fn nodes_and_a_gateway_join_by_tokens_that_work_once_and_leave_when_they_are_revoked() {
    let cluster = Grown::new();
    let mut processes = cluster.start_all().await;
    let through_one = cluster.client(1, TOKEN);
    let key = std::fs::read(cluster.file("one/identity/authority-key.pem")).unwrap();
    assert!(key.starts_with(b"\x89meridian vault"), "the authority's key is encrypted");
    let status = cluster.meridian(&["status"]).await.unwrap();
    assert!(status.contains("encryption at rest: on\n"), "{status}");

    // A gateway without data, and an operator with a token.
    let token = cluster.token(&["gateways", "add", "edge"]).await;
    let listen = cluster.address(6);
    let more =
        format!("region = \"home\"\nstate_dir = \"edge-state\"\n[listen]\nkv = \"{listen}\"\n");
    let of_edge = more.clone();
    let file = cluster.joiner("edge", &more, &token);
    processes.push(cluster.start("gateway", &file));
    let created = cluster.token(&["tokens", "create", "app", "--database", "main"]).await;
    let secret = created.lines().next().unwrap().trim().to_owned();
    let through_edge =
        kv_connect::client(format!("http://{listen}"), DEFAULT_DATABASE).with_token(&*secret);
    poll::until("the gateway serves", DEADLINE, async || {
        through_edge.get(b"first").await.map_err(|error| (error, cluster.log("edge")))
    })
    .await;

    // The token was used: another process does not join with it.
    let more = more.replace("edge-state", "thief-state").replace(&listen, "127.0.0.1:0");
    let thief = cluster.joiner("thief", &more, &token);
    let mut thief = cluster.start("gateway", &thief);
    assert!(!tokio::time::timeout(DEADLINE, thief.wait()).await.unwrap().unwrap().success());
    assert!(cluster.log("thief").contains("used already"), "{}", cluster.log("thief"));

    // A gateway whose certificates are revoked reads nothing more, also by a stream from before, and
    // the nodes serve on.
    let followed = follow(cluster.channel_of("edge-state")).await;
    cluster.meridian(&["gateways", "revoke", "edge"]).await.unwrap();
    ended(followed).await;
    poll::until("the gateway is refused", DEADLINE, async || {
        match through_edge.get(b"first").await {
            Ok(_) => Err("it still reads"),
            Err(_) => Ok(()),
        }
    })
    .await;
    through_one.set(b"second", b"write").await.unwrap();
    // It says so itself, as do the nodes that it was connected to, and the list of gateways.
    cluster.say(&["edge"], "the certificate of gateway/edge was revoked").await;
    cluster.say(&["one", "two", "three"], r#"holders={"gateway/edge"}"#).await;
    let listed = cluster.meridian(&["gateways", "list"]).await.unwrap();
    assert!(listed.contains("edge     refused from before 20"), "{listed}");
    // With another token it joins again.
    let token = cluster.token(&["gateways", "join-token", "edge"]).await;
    drop(processes.pop());
    let file = cluster.joiner("edge", &of_edge, &token);
    processes.push(cluster.start("gateway", &file));
    poll::until("the gateway serves again", DEADLINE, async || {
        through_edge.get(b"second").await.map_err(|error| (error, cluster.log("edge")))
    })
    .await;
    // The record names the operator, and the address.
    let changes = cluster.meridian(&["cluster", "changes"]).await.unwrap();
    assert!(changes.contains("operator/admin/founder from 127.0.0.1"), "{changes}");
    assert!(!changes.contains(&secret), "{changes}");

    // A node that starts again needs no token.
    processes.remove(1).kill().await.unwrap();
    processes.push(cluster.start("serve", &cluster.file("two.toml")));
    // The token of the first node's file is known to that node alone.
    let through_two = cluster.client(2, &secret);
    poll::until("the second node serves again", DEADLINE, async || {
        through_two.get(b"second").await.map_err(|error| (error, cluster.log("two")))
    })
    .await;

    // The authority's key is in the directory by now, and the founder's folder keeps no other copy.
    processes[0].kill().await.unwrap();
    processes[0] = cluster.start("serve", &cluster.file("one.toml"));
    poll::until("the first node serves again", DEADLINE, async || {
        through_one.get(b"second").await.map_err(|error| (error, cluster.log("one")))
    })
    .await;
    assert!(!cluster.file("one/identity/authority-key.pem").exists());
}

#[tokio::test]
async fn founder_whose_certificate_expired_while_it_was_off_serves_again_and_lets_others_join() {
    let cluster = Grown::new();
    let founder = cluster.founder();
    // As it was two months ago.
    let long_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - 60 * DAY;
    let id = "00ff00ff00ff00ff00ff00ff00ff00ff".to_owned();
    let authority = Authority::new(&id, long_ago).unwrap();
    let asked = KeyAndRequest::new().unwrap();
    let subject = Subject { cluster: id.clone(), holder: Holder::Node(NodeId(1)) };
    let issued = authority.issue(&asked.request, &subject, long_ago, 30 * DAY).unwrap();
    let context = Context {
        cluster: id,
        nodes: vec![cluster.rpc(1)],
        authorities: authority.certificate_pem().to_owned(),
        identity: None,
        token: Some(Secret::random().expose().to_owned()),
    };
    let identity = IdentityFolder::of(&cluster.file("one"));
    identity.write("authority-key.pem", authority.key_pem().as_bytes()).unwrap();
    identity.write("authority.pem", authority.certificate_pem().as_bytes()).unwrap();
    context.save(&cluster.context()).unwrap();
    identity.keep(&(issued.chain_pem + &asked.key_pem), authority.certificate_pem()).unwrap();

    let _founder = cluster.start("serve", &founder);
    let line = cluster.token(&["nodes", "join-token", "n2"]).await;
    let two = cluster.joiner("two", "data_dir = \"two\"\n", &line);
    let _two = cluster.start("serve", &two);
    poll::until("the second node is heard of", DEADLINE, async || {
        let status = cluster.meridian(&["cluster", "status", "--json"]).await?;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let is_two = |node: &&serde_json::Value| node["name"] == "n2";
        let two = status["nodes"].as_array().and_then(|nodes| nodes.iter().find(is_two));
        match two.is_some_and(|two| two["state"] == "up") {
            true => Ok(()),
            false => Err(status.to_string() + &cluster.log("two")),
        }
    })
    .await;
    assert!(cluster.log("one").contains("issues one for itself"), "{}", cluster.log("one"));
}

/// As where the context of the last admin was lost.
#[tokio::test]
async fn voter_of_the_directory_adds_an_admin_where_no_operator_is_left() {
    let cluster = Grown::new();
    let _processes = cluster.start_all().await;
    let refused = cluster.meridian(&["operators", "remove", "founder"]).await.unwrap_err();
    assert!(refused.contains("another operator"), "{refused}");
    std::fs::remove_file(cluster.context()).unwrap();
    let file = cluster.file("two.toml");
    let recover = ["operators", "recover", "ana", "--config", file.to_str().unwrap()];
    let token = cluster.meridian(&recover).await.unwrap();
    let context = log_in(token.trim(), &cluster.file("home")).await;
    std::fs::rename(context, cluster.context()).unwrap();
    cluster.meridian(&["operators", "remove", "founder"]).await.unwrap();
    let changes = cluster.meridian(&["cluster", "changes"]).await.unwrap();
    assert!(changes.contains("node/2"), "{changes}");
}
