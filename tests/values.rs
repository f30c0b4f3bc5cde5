//! Values of the real clients: as they are stored, read by each other, and copied.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use meridian_tests::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE, range};
use meridian_tests::{Cluster, ClusterOptions, KvClient, clients, poll};

/// The V8 formats of the values that `formats.ts` wrote.
async fn v8_formats(kv: &KvClient) -> Vec<u8> {
    let list = range(b"\x02formats\0\0", b"\x02formats\0\xff", 100);
    let output = kv.read(meridian_types::Consistency::Strong, vec![list]).await.unwrap();
    output.ranges[0].values.iter().map(|entry| entry.value[1]).collect()
}

#[tokio::test]
async fn node_reads_what_deno_wrote_unless_a_database_keeps_formats_as_sent() {
    let cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let run = async |mut command: tokio::process::Command, program: &str, arguments: &[&str]| {
        command.arg(clients::program(program)).args(arguments);
        clients::run(command).await
    };
    let url = cluster.url(1);
    let written = run(clients::deno(), "formats.ts", &[&url, "write"]).await;
    run(clients::node(), "formats.mjs", &[&url, "read"]).await;
    assert_eq!(v8_formats(&cluster.client(1, DEFAULT_DATABASE)).await, [15; 7]);
    let vast = cluster.client(1, DEFAULT_DATABASE).get(b"\x02vast\0").await.unwrap().unwrap();
    assert_eq!(vast.value[1], 16, "format 15 cannot say how far the buffer may grow");

    cluster.order(1, &["databases", "set", "second", "--v8-format", "as-sent"]).await;
    let second = format!("{url}/db/second");
    poll::until("the gateway knows", std::time::Duration::from_secs(30), async || {
        assert_eq!(run(clients::deno(), "formats.ts", &[&second, "write"]).await, written);
        let formats = v8_formats(&cluster.client(1, SECOND_DATABASE)).await;
        if formats == [16; 7] { Ok(()) } else { Err(formats) }
    })
    .await;
    let listed = cluster.order(1, &["databases", "list"]).await;
    assert!(listed.contains("portable") && listed.contains("as-sent"), "{listed}");
}

/// As for the owner of a program that has a file of SQLite until now.
#[tokio::test]
async fn copy_brings_every_value_of_a_file_that_is_there_to_a_database_that_has_none() {
    let cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let (url, folder) = (cluster.url(1), tempfile::tempdir().unwrap());
    let file = folder.path().join("old.sqlite3").display().to_string();
    let deno = |program: std::path::PathBuf, arguments: &[&str]| {
        let mut command = clients::deno();
        command.arg("--allow-write").arg(program).args(arguments);
        command
    };
    let copy = clients::program("").join("../../deploy/deno/copy.ts");
    let formats = clients::program("formats.ts");
    let refused = async || {
        let copied = deno(copy.clone(), &[&file, &url]).output().await.unwrap();
        assert!(!copied.status.success());
        String::from_utf8_lossy(&copied.stderr).into_owned()
    };
    assert!(refused().await.contains("is not a file"));
    let written = clients::run(deno(formats.clone(), &[&file, "write"])).await;
    clients::run(deno(copy.clone(), &[&file, &url])).await;
    assert_eq!(clients::run(deno(formats, &[&url, "read"])).await, written);
    assert!(refused().await.contains("is not empty"));
    clients::run(deno(copy, &[&file, &url, "--go-on"])).await;
}

/// The corpus is the reference for the tests of the crate `values`.
#[tokio::test]
async fn corpus_of_values_is_what_deno_stores_and_prints() {
    let folder = clients::program("").join("../../crates/values/tests");
    let mut command = clients::deno();
    command.arg("--allow-write").arg(folder.join("corpus.ts"));
    let made = clients::run(command).await;
    let stored = std::fs::read_to_string(folder.join("deno.jsonl")).unwrap();
    for (made, stored) in made.lines().zip(stored.lines()) {
        // Deno does not make these alike each time.
        if !stored.starts_with("{\"name\":\"generated ") {
            assert_eq!(made, stored);
        }
    }
    assert_eq!(made.lines().count(), stored.lines().count());
}

#[tokio::test]
async fn package_for_node_and_bun_writes_values_that_deno_reads() {
    let cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let url = cluster.url(1);
    let run = async |mut command: tokio::process::Command, program: &str, verb: &str| {
        command.arg(clients::program(program)).args([&url, verb]);
        clients::run(command).await
    };
    let written = run(clients::deno(), "formats.ts", "write").await;
    for client in [clients::node, clients::bun] {
        run(client(), "formats.mjs", "write").await;
        assert_eq!(run(clients::deno(), "formats.ts", "read").await, written);
    }
}

#[tokio::test]
async fn codec_of_the_package_reads_and_writes_what_v8_does() {
    for mut command in [clients::node(), clients::bun(), clients::deno()] {
        command.arg(clients::program("v8.mjs"));
        clients::run(command).await;
    }
}
