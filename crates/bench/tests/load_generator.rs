//! The load generator against a server in this process: as a library, and as the real binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use meridian_bench::options::Options;
use meridian_bench::report::Report;
use meridian_bench::run::run;
use support::etcd::EtcdServer;
use support::{KvServer, TOKEN, le64};
use tokio::sync::watch;

const SHORT: [&str; 4] = ["--duration=200ms", "--warmup=20ms", "--keys=1500", "--timeout=5s"];

async fn measure(url: &str, token: &str, more: &[&str]) -> Result<Report, String> {
    let arguments =
        ["meridian-bench", "--url", url, "--access-token", token].into_iter().chain(SHORT);
    let options = Options::try_parse_from(arguments.chain(more.iter().copied())).unwrap();
    options.validate().unwrap();
    let (_keep, stopped) = watch::channel(false);
    match run(&options, stopped).await {
        (Some(report), None) => Ok(report),
        (_, Some(error)) => Err(error.to_string()),
        (None, None) => panic!("neither report nor error"),
    }
}

#[tokio::test]
async fn every_cell_is_measured() {
    let server = Arc::new(KvServer::default());
    let url = Arc::clone(&server).serve().await;
    let report = measure(&url, TOKEN, &["--connections=1,6"]).await.unwrap();

    assert_eq!(report.cells.len(), 12);
    assert_eq!(server.key_count(), 1500);
    for cell in &report.cells {
        assert!(cell.operations > 0 && cell.errors == 0, "{cell:?}");
        assert!(
            0.0 < cell.p50_ms && cell.p50_ms <= cell.p99_ms && cell.p99_ms <= cell.max_ms,
            "{cell:?}"
        );
        assert!((cell.measured_s - 0.2).abs() < 1e-9);
    }
    let links: Vec<u16> = report.cells.iter().map(|cell| cell.tcp_connections).collect();
    assert_eq!(links, [1, 6, 1, 6, 1, 6, 1, 4, 1, 4, 1, 4]);
    assert!(report.server.eventual_endpoint.unwrap().ends_with("/v2/eventual"));
}

#[tokio::test]
async fn refusals_are_errors_and_not_operations() {
    let server = Arc::new(KvServer { refuse_every: 3, ..KvServer::default() });
    let url = Arc::clone(&server).serve().await;
    let more = ["--operations=write", "--connections=2", "--http=h1", "--warmup=0s"];
    let report = measure(&url, TOKEN, &more).await.unwrap();

    let cell = &report.cells[0];
    assert_eq!(cell.first_error.as_deref(), Some("status 503 Service Unavailable: no leader yet"));
    assert_eq!(cell.errors, server.writes.load(Ordering::Relaxed) / 3);
    assert!(cell.operations + cell.errors <= server.writes.load(Ordering::Relaxed));
}

#[tokio::test]
async fn lost_connections_are_errors_and_are_replaced() {
    let url = Arc::new(KvServer { drop_every: 20, ..KvServer::default() }).serve().await;
    let more = ["--operations=write", "--connections=5", "--h2-connections=2"];
    for cell in measure(&url, TOKEN, &more).await.unwrap().cells {
        assert!(cell.errors > 1 && cell.operations > 19, "{cell:?}");
        assert!(cell.first_error.is_some());
        println!("{:?}", cell.first_error);
    }
}

#[tokio::test]
async fn failures_name_the_remedy() {
    let url = Arc::new(KvServer { without_eventual: true, ..KvServer::default() }).serve().await;
    for http in ["--http=h1", "--http=h2"] {
        let wrong_token = measure(&url, "wrong", &[http]).await.unwrap_err();
        assert!(
            wrong_token.contains("status 401 Unauthorized: Invalid access token."),
            "{wrong_token}"
        );
        let no_eventual = measure(&url, TOKEN, &[http]).await.unwrap_err();
        assert!(
            no_eventual.contains("names no eventual endpoint; give --eventual-url"),
            "{no_eventual}"
        );
        let unreachable = measure("http://127.0.0.1:1", TOKEN, &[http]).await.unwrap_err();
        assert!(
            unreachable.contains("cannot connect to 127.0.0.1:1: Connection refused"),
            "{unreachable}"
        );
    }
    let unloaded = ["--operations=strong-read", "--skip-load", "--connections=1", "--http=h1"];
    let report = measure(&url, TOKEN, &unloaded).await.unwrap();
    assert_eq!((report.cells[0].operations, report.cells[0].errors > 0), (0, true));
}

#[tokio::test]
async fn a_second_url_serves_eventual_reads() {
    let url = Arc::new(KvServer { without_eventual: true, ..KvServer::default() }).serve().await;
    // Nothing replicates between the two servers: the second one is loaded with the same keys
    // beforehand.
    let other = Arc::new(KvServer::default());
    let other_url = Arc::clone(&other).serve().await;
    let load = ["--operations=strong-read", "--connections=1", "--http=h2"];
    measure(&other_url, TOKEN, &load).await.unwrap();
    let before = other.reads.load(Ordering::Relaxed);
    let more = [
        "--operations=eventual-read",
        "--connections=3",
        "--http=h2",
        "--eventual-url",
        &other_url,
    ];
    let report = measure(&url, TOKEN, &more).await.unwrap();
    assert!(report.cells[0].operations > 0 && report.cells[0].errors == 0);
    assert!(other.reads.load(Ordering::Relaxed) > before);
}

#[tokio::test]
async fn ranges_sums_and_contended_checks_are_measured() {
    let server = Arc::new(KvServer::default());
    let url = Arc::clone(&server).serve().await;
    let more = [
        "--operations=range,sum,contended",
        "--connections=8",
        "--hot-keys=1",
        "--http=h1",
        "--warmup=0s",
    ];
    let report = measure(&url, TOKEN, &more).await.unwrap();
    for cell in &report.cells {
        assert!(cell.operations > 0 && cell.errors == 0 && cell.unsent == 0, "{cell:?}");
    }
    let conflicts: Vec<u64> = report.cells.iter().map(|cell| cell.conflicts).collect();
    // Eight on one key cannot all come first; each conflict is counted, and none is an error.
    assert_eq!(conflicts, [0, 0, server.conflicts.load(Ordering::Relaxed)]);
    assert!(conflicts[2] > 0);
    let entries = server.entries.lock().unwrap();
    let sums =
        entries.iter().find(|(key, _)| key.starts_with(b"\x02meridian-bench-sum\0")).unwrap().1;
    let sum = le64(&sums.value);
    // The operations of the cell, and those in flight when it ended.
    assert!((report.cells[1].operations..=report.cells[1].operations + 8).contains(&sum), "{sum}");
}

#[tokio::test]
async fn open_loop_keeps_its_rate_and_counts_unsent_operations() {
    let server = Arc::new(KvServer::default());
    let url = Arc::clone(&server).serve().await;
    let more = ["--operations=write", "--connections=4", "--http=h1", "--warmup=0s", "--rate=500"];
    let cell = measure(&url, TOKEN, &more).await.unwrap().cells.remove(0);
    // 500 a second for 200 ms, be the server slow or fast: each is sent, or told.
    assert_eq!(server.writes.load(Ordering::Relaxed) + cell.unsent, 100, "{cell:?}");
    assert_eq!(cell.errors, 0);

    let closed = measure(&url, TOKEN, &more[..4]).await.unwrap().cells.remove(0);
    assert_eq!(closed.unsent, 0);
}

#[tokio::test]
async fn operations_behind_a_stalled_answer_are_late_too() {
    let more = ["--operations=write", "--connections=1", "--http=h1", "--warmup=0s", "--rate=100"];
    let stalled = |stall_ms| {
        Arc::new(KvServer { stall: Duration::from_millis(stall_ms), ..KvServer::default() })
    };
    // Of the 20 that are due in 200 ms, 15 are so before the first one is answered, the tenth 60 ms
    // before.
    let url = stalled(150).serve().await;
    let cell = measure(&url, TOKEN, &more).await.unwrap().cells.remove(0);
    assert!(cell.p50_ms > 45.0 && cell.p99_ms > 149.0, "{cell:?}");

    // Nothing is answered in time, and only the first one is sent; the others waited on average for
    // half the time.
    let url = stalled(300).serve().await;
    let cell = measure(&url, TOKEN, &more).await.unwrap().cells.remove(0);
    assert_eq!((cell.operations, cell.unsent, cell.errors), (0, 19, 0));
    assert!(cell.p50_ms > 90.0 && cell.max_ms > 299.0, "{cell:?}");
}

async fn measure_etcd(server: &Arc<EtcdServer>, more: &[&str]) -> Report {
    let url = Arc::clone(server).serve().await;
    let more: Vec<&str> = ["--protocol=etcd", "--warmup=0s"].iter().chain(more).copied().collect();
    measure(&url, "", &more).await.unwrap()
}

#[tokio::test]
async fn every_operation_is_measured_at_etcd() {
    let server = Arc::new(EtcdServer::default());
    let operations = "--operations=write,strong-read,eventual-read,range,sum,contended";
    let report = measure_etcd(&server, &[operations, "--connections=8", "--hot-keys=1"]).await;
    assert_eq!(report.cells.len(), 6);
    for cell in &report.cells {
        assert!(cell.operations > 0 && cell.errors == 0, "{cell:?}");
        assert_eq!((cell.http.name(), cell.tcp_connections), ("h2", 4));
    }
    let state = server.state.lock().unwrap();
    assert_eq!(state.entries.len(), 1500 + 2);
    assert!(state.serializable_reads >= report.cells[2].operations);
    assert!(state.linearizable_reads >= report.cells[1].operations + report.cells[3].operations);
    let conflicts: Vec<u64> = report.cells.iter().map(|cell| cell.conflicts).collect();
    assert!(conflicts[4] > 0 && conflicts[5] > 0);
    assert_eq!((&conflicts[..4], conflicts[4] + conflicts[5]), (&[0; 4][..], state.conflicts));
    // No increment is lost: the number is the count of successful increments.
    let sums = state
        .entries
        .iter()
        .find(|(key, _)| key.starts_with(b"\x02meridian-bench-sum\0"))
        .unwrap()
        .1;
    let sum = le64(&sums.value);
    assert!((report.cells[4].operations..=report.cells[4].operations + 8).contains(&sum), "{sum}");
}

#[tokio::test]
async fn a_refusal_of_etcd_is_an_error() {
    let server = Arc::new(EtcdServer { refuse_every: 3, ..EtcdServer::default() });
    let report = measure_etcd(&server, &["--operations=write", "--connections=2"]).await;
    let cell = &report.cells[0];
    assert_eq!(cell.first_error.as_deref(), Some("gRPC status 14: etcdserver: no leader"));
    let state = server.state.lock().unwrap();
    assert_eq!(cell.errors, state.refused);
    assert!(cell.operations > 0 && cell.operations + cell.errors <= state.puts);
}

fn binary(url: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian-bench"));
    command.args(["--url", url, "--access-token", TOKEN]).args(SHORT).args(more);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_prints_a_table_and_writes_json() {
    let url = Arc::new(KvServer::default()).serve().await;
    let file = std::env::temp_dir().join(format!("meridian-bench-{}.json", std::process::id()));
    let more = ["--connections=1,16", "--output=both", "--json-file", file.to_str().unwrap()];
    let mut command = binary(&url, &more);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();

    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    println!("{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("| ")).count(), 13);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(json["cells"].as_array().unwrap().len(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_prints_what_was_measured() {
    let server = Arc::new(KvServer::default());
    let url = Arc::clone(&server).serve().await;
    let mut command = binary(&url, &["--operations=write", "--connections=2", "--output=json"]);
    command.args(["--warmup=0s", "--duration=10m"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "measuring write over h1, 2 connections\n");
    while server.writes.load(Ordering::Relaxed) < 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(child.wait().unwrap().success());
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["interrupted"], true);
    assert_eq!(json["cells"].as_array().unwrap().len(), 1);
    assert!(json["cells"][0]["operations"].as_u64().unwrap() >= 90);
    assert!(json["cells"][0]["measured_s"].as_f64().unwrap() < 60.0);
}
