//! A Deno program that writes while a test injects faults.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::{clients, poll};

/// Far beyond every time-out inside the cluster.
const DEADLINE: Duration = Duration::from_secs(60);

/// A Deno program that writes until it is told to stop, then checks that every acknowledged write
/// is there.
pub struct Writer {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Writer {
    /// Starts writing through each of these gateways; returns when some writes are acknowledged.
    pub async fn start(urls: &[String]) -> Self {
        let mut command = clients::deno();
        command.arg(clients::program("writer.ts")).args(urls);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut writer = Self { child, stdin, lines: BufReader::new(stdout).lines() };
        writer.more_written(20).await;
        writer
    }

    /// Waits until `more` writes are acknowledged that were sent after this call.
    pub async fn more_written(&mut self, more: u64) {
        // Writes in flight at the time do not count.
        let first = self.count().await + 4;
        poll::until("the writer gets on", DEADLINE, async || match self.count().await {
            count if count >= first + more => Ok(()),
            count => Err(count),
        })
        .await;
    }

    async fn count(&mut self) -> u64 {
        self.ask("count").await.parse().unwrap()
    }

    async fn ask(&mut self, question: &str) -> String {
        let asked = async {
            // A program that has failed has closed its input, and reports the reason below.
            drop(self.stdin.write_all(format!("{question}\n").as_bytes()).await);
            self.lines.next_line().await.unwrap()
        };
        let answer = tokio::time::timeout(DEADLINE, asked).await.expect("an answer of the writer");
        answer.expect("the writer has ended: see what it wrote to stderr")
    }

    /// The number of acknowledged writes, all of which are there, and the longest latency of a
    /// write, in ms.
    pub async fn finish(mut self) -> (u64, f64) {
        let answer = self.ask("finish").await;
        assert!(self.child.wait().await.unwrap().success(), "{answer}");
        let (count, slowest) = answer.split_once(' ').unwrap();
        (count.parse().unwrap(), slowest.parse().unwrap())
    }
}
