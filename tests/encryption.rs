//! Data folders that are encrypted while the cluster serves, over restarts, changes of keys, and
//! copies of whole states.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, KvClient, poll};
use meridian_types::{Consistency, NodeId};

const DEADLINE: Duration = Duration::from_secs(90);
const KEY: &str = "key-that-is-not-to-be-read";
const VALUE: &str = "value-that-is-not-to-be-read";

/// A data folder and the node's file in it.
fn data_folder(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.folder().join(name)
}

/// The files below a folder with a key or a value in them, but for the node's configuration.
fn telling(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // Compacted away meanwhile.
            let Ok(bytes) = fs::read(&path) else { continue };
            let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            if holds(KEY) || holds(VALUE) {
                found.push(path);
            }
        }
    }
    found
}

fn write_key(path: &Path, seed: char) {
    fs::write(path, String::from(seed).repeat(63) + "f").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Names a key in the node's file.
fn configure(folder: &Path, fields: &str) {
    let path = folder.join("node.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split("\n[encryption]").next().unwrap();
    fs::write(&path, format!("{before}\n[encryption]\n{fields}\n")).unwrap();
}

async fn write_many(client: &KvClient, from: usize, count: usize) {
    for number in from..from + count {
        // Incompressible, but for the beginning.
        let noise = (0..2000).map(|at| u8::try_from(at * at * (number + 7) % 251).unwrap());
        let value = VALUE.bytes().chain(noise).collect::<Vec<u8>>();
        client.set(format!("{KEY}/{number:06}").as_bytes(), &value).await.unwrap();
    }
}

async fn has(cluster: &Cluster, node: u64, number: usize) {
    let client = cluster.client(node, DEFAULT_DATABASE);
    poll::until("the node has what was written", DEADLINE, async || {
        match client.get_with(Consistency::Eventual, format!("{KEY}/{number:06}").as_bytes()).await
        {
            Ok(Some(entry)) if entry.value.starts_with(VALUE.as_bytes()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn state(cluster: &Cluster, node: u64) -> (String, String, u32) {
    let encryption = cluster.status(node).await.unwrap().encryption.unwrap();
    (encryption.state, encryption.master_key, encryption.data_key)
}

async fn encrypted(cluster: &Cluster, node: u64) {
    poll::until("the node's files are encrypted", DEADLINE, async || {
        match state(cluster, node).await {
            (state, ..) if state == "on" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn data_folder_of_an_encrypted_node_tells_no_key_and_no_value() {
    let options =
        ClusterOptions { topology: &[3, 1, 1], log_retention_mb: Some(1), ..Default::default() };
    let mut cluster = Cluster::start(options).await;
    let names = cluster.directory().await.nodes;
    let folders: Vec<PathBuf> =
        names.values().map(|node| data_folder(&cluster, &node.name)).collect();
    let client = cluster.client(2u64, DEFAULT_DATABASE);
    write_many(&client, 0, 200).await;
    for node in 1..=5 {
        has(&cluster, node, 199).await;
        assert_eq!(state(&cluster, node).await.0, "off");
    }
    assert!(cluster.status_text().contains("encryption at rest: off\n"));
    for folder in &folders {
        assert!(!telling(folder).is_empty(), "the search finds what is not encrypted");
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        let tables = fs::read_dir(folder.join("db")).unwrap();
        for file in tables.map(|entry| entry.unwrap()) {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{:?}", file.path());
        }
    }
    // One node after the other, while the others serve.
    for (node, folder) in (1u64..).zip(&folders) {
        write_key(&folder.with_extension("key"), 'a');
        configure(folder, &format!("key_file = {:?}", folder.with_extension("key")));
        cluster.kill(NodeId(node));
        cluster.restart(NodeId(node));
        cluster.node_ready(NodeId(node)).await;
        write_many(&client, 200 * usize::try_from(node).unwrap(), 200).await;
    }
    // A replica that comes back behind the log takes a whole state.
    cluster.kill(5u64);
    let mut written = 2000;
    poll::until("the log is purged behind the replica", DEADLINE, async || {
        write_many(&client, written, 300).await;
        written += 300;
        let first = cluster.shard_status(1u64, 1).await.unwrap().first_sequence;
        if first > 1500 { Ok(()) } else { Err(first) }
    })
    .await;
    cluster.restart(5u64);
    cluster.node_ready(5u64).await;
    for node in 1..=5 {
        has(&cluster, node, written - 1).await;
        has(&cluster, node, 0).await;
        encrypted(&cluster, node).await;
    }
    assert!(cluster.status_text().contains("encryption at rest: on\n"));
    for folder in &folders {
        assert_eq!(telling(folder), Vec::<PathBuf>::new());
    }
    cluster.kill_all();
    for folder in &folders {
        assert_eq!(telling(folder), Vec::<PathBuf>::new());
    }
    cluster.start_all();
    cluster.ready().await;
    has(&cluster, 4, written - 1).await;
}

#[tokio::test]
async fn node_changes_its_keys_while_it_serves_and_starts_with_no_other() {
    let mut cluster =
        Cluster::start(ClusterOptions { topology: &[3, 1, 1], ..ClusterOptions::default() }).await;
    let name = cluster.directory().await.nodes[&NodeId(5)].name.clone();
    let folder = data_folder(&cluster, &name);
    let client = cluster.client(1u64, DEFAULT_DATABASE);
    write_many(&client, 0, 100).await;
    let [old, new] = ["old", "new"].map(|name| folder.with_extension(name));
    write_key(&old, 'a');
    configure(&folder, &format!("key_file = {old:?}"));
    cluster.kill(5u64);
    cluster.restart(5u64);
    cluster.node_ready(5u64).await;
    encrypted(&cluster, 5).await;
    let (_, before, _) = state(&cluster, 5).await;
    let (refused, said) = cluster.meridian(1u64, &["encryption", "rotate", "1"]).await;
    assert!(!refused && said.contains("no key is configured"), "{said}");
    // Another key in the same file: the node is told, or looks by itself.
    write_key(&old, 'b');
    let said = cluster.order(1u64, &["encryption", "rotate", &name, "--new-data-key"]).await;
    let (_, now, data_key) = state(&cluster, 5).await;
    assert!(now != before && data_key == 2 && said.contains(&now), "{said}");
    write_key(&old, 'c');
    poll::until("the node sees the key change", DEADLINE, async || {
        match state(&cluster, 5).await {
            (_, key, _) if key != now => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    encrypted(&cluster, 5).await;
    write_many(&client, 100, 100).await;
    has(&cluster, 5, 199).await;
    let (_, now, _) = state(&cluster, 5).await;
    assert!(cluster.order(1u64, &["encryption", "status"]).await.contains(&now));
    cluster.kill(5u64);

    // With another key the node does not start, says which one it wants, and changes nothing.
    write_key(&new, 'd');
    let keyring = fs::read(folder.join("keyring")).unwrap();
    for fields in [format!("key_file = {new:?}"), "key_command = [\"false\"]".to_owned()] {
        configure(&folder, &fields);
        let said = start_in_vain(&folder).await;
        assert!(said.contains(&now) || said.contains("`false` for the key fails"), "{said}");
    }
    assert_eq!(fs::read(folder.join("keyring")).unwrap(), keyring);
    configure(&folder, &format!("key_file = {new:?}\nprevious_key_file = {old:?}"));
    cluster.restart(5u64);
    cluster.node_ready(5u64).await;
    has(&cluster, 5, 199).await;
    assert_ne!(state(&cluster, 5).await.1, now);
    encrypted(&cluster, 5).await;
    assert_eq!(telling(&folder), Vec::<PathBuf>::new());
}

/// The words of a node that does not start.
async fn start_in_vain(folder: &Path) -> String {
    let mut command = tokio::process::Command::new(binary());
    command.arg("serve").arg("--config").arg(folder.join("node.toml")).kill_on_drop(true);
    let ended = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = ended.expect("the node ends").unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}
