//! The module for Deno in programs that are not run by `deno run`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use meridian_tests::{Cluster, ClusterOptions, clients, poll};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};

async fn cluster() -> Cluster {
    Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await
}

#[tokio::test]
async fn deno_test_finds_nothing_left_behind_by_the_module() {
    let cluster = cluster().await;
    let url = cluster.url(1);
    let mut command = clients::deno_with_module_by("test", &url);
    command.arg(clients::program("module_test.ts")).env("MERIDIAN_URL", &url);
    println!("{}", clients::run(command).await);
}

#[tokio::test]
async fn deno_serve_enqueues_and_listens_by_an_import_and_ends_when_it_is_told_to() {
    let cluster = cluster().await;
    let url = cluster.url(1);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("main.ts");
    let source = std::fs::read_to_string(clients::program("module_serve.ts")).unwrap();
    let import = format!("import \"{url}/.meridian/v1/deno.js\";\n");
    std::fs::write(&program, import + &source).unwrap();
    let mut command = clients::deno_with_module_by("serve", &url);
    command.args(["--host", "127.0.0.1", "--port", "0"]).arg(&program).env("MERIDIAN_URL", &url);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut served = command.spawn().unwrap();
    let mut lines = BufReader::new(served.stderr.take().unwrap()).lines();
    let address = tokio::time::timeout(clients::DEADLINE, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("an address");
            if let Some((_, address)) = line.split_once("Listening on ") {
                return address.to_owned();
            }
        }
    });
    let address = address.await.expect("it listens");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let ask = async |method: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(&address);
        let answer = client.request(request.body(body.into()).unwrap()).await.unwrap();
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    };
    assert_eq!(ask("POST", "first").await, r#"{"ok":true}"#);
    assert_eq!(ask("POST", "second").await, r#"{"ok":true}"#);
    poll::until("both are heard", clients::DEADLINE, async || {
        let heard = ask("GET", "").await;
        if heard == r#"["first","second"]"# { Ok(()) } else { Err(heard) }
    })
    .await;
    let id = Pid::from_raw(served.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    let ended = tokio::time::timeout(clients::DEADLINE, served.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}
