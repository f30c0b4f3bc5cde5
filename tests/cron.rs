//! Crons of unchanged Deno programs over gateways of different regions, and `meridian run`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::TcpStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, TOKEN, clients, cluster, poll};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Longer than a minute, which a tick takes to come.
const DEADLINE: Duration = Duration::from_secs(90);
/// The key of the cron's row.
const ROW: &[u8] = b"\x02meridian\0\x02cron\0\x02each minute\0";

/// A program, with the lines that it prints.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("a line")
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id().unwrap(), signal);
    }

    async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        ended.expect("an end in time").unwrap()
    }
}

fn kill(id: u32, signal: Signal) {
    kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), signal).unwrap();
}

fn is_alive(id: u32) -> bool {
    Path::new("/proc").join(id.to_string()).exists()
}

/// `meridian run` with the pinned Deno.
fn meridian_run() -> Command {
    let mut command = Command::new(cluster::binary());
    command.env("DENO_NO_UPDATE_CHECK", "1").env("NO_COLOR", "1").arg("run");
    command
}

fn with_program(mut command: Command, program: &str) -> Command {
    command.args([
        "--quiet",
        "--no-config",
        "--no-lock",
        "--allow-net",
        "--allow-env",
        "--allow-read",
    ]);
    command.arg(clients::program(program));
    command
}

/// The tick is that of the next minute; no other is waited for.
#[tokio::test]
async fn tick_runs_in_one_of_two_programs_and_in_the_other_when_that_is_killed() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let [near, _, far] = [0, 1, 2].map(|region| cluster.url(cluster.region(region)[0]));
    let mut programs = Vec::new();
    for url in [near, far] {
        let mut command = meridian_run();
        command.env("DENO_KV_ACCESS_TOKEN", TOKEN).args(["--url", &url]);
        let mut program = Program::start(with_program(command, "cron.ts"));
        let first = program.line().await;
        let deno: u32 = first.strip_prefix("runs ").expect("its id").parse().unwrap();
        programs.push((program, deno));
    }
    let [(mut one, one_deno), (mut other, other_deno)] = <[_; 2]>::try_from(programs).ok().unwrap();
    let one_has_it = tokio::select! {
        line = one.line() => { assert_eq!(line, "call 1"); true }
        line = other.line() => { assert_eq!(line, "call 1"); false }
    };
    let client = cluster.client(1, DEFAULT_DATABASE);
    let row = client.get(ROW).await.unwrap().expect("a row");
    let row = String::from_utf8_lossy(&row.value).into_owned();
    assert!(row.contains(r#""failures":0,"state":"running""#), "{row}");

    let (mut killed, killed_deno, mut left, left_deno) = if one_has_it {
        (one, one_deno, other, other_deno)
    } else {
        (other, other_deno, one, one_deno)
    };
    kill(killed_deno, Signal::KILL);
    assert_eq!(killed.ended().await.code(), Some(128 + 9));
    assert_eq!(left.line().await, "call 2", "the other runs the tick again, and runs it alone");
    assert_eq!(left.line().await, "done 2");
    poll::until("the tick is done", DEADLINE, async || {
        let row = client.get(ROW).await.unwrap().expect("a row");
        let row = String::from_utf8_lossy(&row.value).into_owned();
        if row.contains(r#""state":"done""#) { Ok(()) } else { Err(row) }
    })
    .await;
    left.signal(Signal::TERM);
    assert_eq!(left.ended().await.code(), Some(128 + 15));
    assert!(!is_alive(left_deno) && !is_alive(killed_deno));
    cluster.assert_all_run();
}

#[tokio::test]
async fn program_of_meridian_run_has_all_it_needs_and_leaves_nothing_behind() {
    program_has_all_it_needs(&[]).await;
}

#[tokio::test]
async fn program_of_meridian_run_has_all_it_needs_over_https() {
    program_has_all_it_needs(&["--https"]).await;
}

async fn program_has_all_it_needs(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = meridian_run();
    command.env_remove("DENO_KV_ACCESS_TOKEN").env("TMPDIR", folder.path());
    command.args(["--ephemeral", "--topology", "1", "--allow-weak-quorum"]);
    command.args(["--port", &port.to_string()]).args(more);
    let mut command = with_program(command, "run.ts");
    command.args(["--port", "7"]);
    let mut program = Program::start(command);
    assert_eq!(program.line().await, "heard a message");
    let line = program.line().await;
    assert!(line.contains("cron `never`: schedule `0 0 30 2 *`: no day"), "{line}");
    assert_eq!(program.line().await, r#"waits with ["--port","7"]"#);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.code(), Some(7));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the cluster has ended");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn free_port() -> u16 {
    // Below the ports of outgoing connections, and of the tests' other clusters; the cluster's gRPC
    // port is 100 higher.
    let is_free = |port: &u16| {
        [*port, *port + 100]
            .iter()
            .all(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
    };
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Each caller of this process looks behind those before.
    let first = NEXT.fetch_add(200, Ordering::Relaxed);
    let first = first + 10_000 + u16::try_from(std::process::id() % 1600).unwrap();
    (first..).find(is_free).unwrap()
}

#[tokio::test]
async fn gateway_serves_crons_on_loopback_alone_and_to_programs_alone() {
    let mut cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    cluster.start_gateway(0).await;
    let config = std::fs::read_to_string(cluster.folder().join("gateway-1.toml")).unwrap();
    let listen = config.lines().find(|line| line.starts_with("kv = ")).unwrap();
    let config = config.replace(listen, "kv = \"127.0.0.1:0\"");
    let folder = tempfile::tempdir().unwrap();
    let (file, token) = (folder.path().join("gateway.toml"), folder.path().join("token"));
    std::fs::write(&file, config).unwrap();
    std::fs::write(&token, TOKEN).unwrap();
    let gateway = |address: &str| {
        let mut command = Command::new(cluster::binary());
        command.arg("gateway").arg("--config").arg(&file);
        command.args(["--cron-listen", address]).arg("--cron-token-file").arg(&token);
        command
    };
    let output = gateway("0.0.0.0:0").output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("loopback"), "{text}");

    let mut gateway = Program::start(gateway("127.0.0.1:0"));
    assert!(gateway.line().await.starts_with("gateway serves KV Connect at"));
    let said = gateway.line().await;
    let (_, address) = said.split_once("DENO_UNSTABLE_CRON_SOCK=tcp:").expect("the variable");
    // A browser can be made to send this, too.
    let request = "POST / HTTP/1.1\r\n\r\n{\"kind\":\"register\",\"crons\":[{\"name\":\"stolen\",\"schedule\":\"* * * * *\"}]}\n";
    for (sent, is_served) in [
        (request, false),
        (
            "{\"kind\":\"register\",\"crons\":[{\"name\":\"each minute\",\"schedule\":\"0 0 1 1 *\"}]}\n",
            true,
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let client = cluster.client(1, DEFAULT_DATABASE);
        if is_served {
            poll::until("the cron has a row", DEADLINE, async || {
                client.get(ROW).await.unwrap().ok_or("there is none")
            })
            .await;
        } else {
            let mut lines = BufReader::new(stream).lines();
            let end = tokio::time::timeout(DEADLINE, lines.next_line()).await;
            assert!(!matches!(end.unwrap(), Ok(Some(_))), "it is closed without an answer");
            let stolen = b"\x02meridian\0\x02cron\0\x02stolen\0";
            assert!(client.get(stolen).await.unwrap().is_none());
        }
    }
    // Each such schedule is searched for through fifty years, and no more than a hundred of them.
    let never = "{\"name\":\"never\",\"schedule\":\"0 0 30 2 *\"},".repeat(1000);
    let line = format!("{{\"kind\":\"register\",\"crons\":[{}]}}\n", never.trim_end_matches(','));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut refused = 0;
    let closed = async {
        while let Ok(Some(line)) = lines.next_line().await {
            assert!(line.contains("no day"), "{line}");
            refused += 1;
        }
    };
    tokio::time::timeout(DEADLINE, closed).await.expect("it is closed");
    assert!(refused <= 100, "{refused}");
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    cluster.assert_all_run();
}
