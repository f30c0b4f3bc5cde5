//! Messages a second through one database's queue: enqueued, delivered and acknowledged.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use clap::Parser;
use meridian_kv_client::{Headers, HttpVersion, Lines, Link, Metadata, Target};
use meridian_proto::kv_connect as pb;
use prost::Message;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::BenchError;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Reports in one request, at most.
const REPORTS: usize = 1000;
/// V8's serializer makes this of a string of one byte, and more.
const V8_STRING: &[u8] = b"\xff\x0f\"";

/// Measure messages that are enqueued, delivered to listeners and acknowledged, through the queue of
/// one database. What was enqueued before is delivered and acknowledged as well.
#[derive(Debug, Clone, Parser)]
#[command(name = "meridian-bench-queue", version)]
pub struct Options {
    /// The connect URL, as given to Deno.openKv
    #[arg(long)]
    pub url: String,
    /// The access token of the database
    #[arg(long, env = "DENO_KV_ACCESS_TOKEN", hide_env_values = true)]
    pub access_token: String,
    /// Atomic writes that enqueue, in flight at a time, as streams of one HTTP/2 connection
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub enqueuers: u16,
    /// Messages that each of them enqueues
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub batch: u16,
    /// Listeners, each with a connection of its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub listeners: u16,
    /// Messages that a listener may hold at a time
    #[arg(long, default_value_t = 1000)]
    pub credits: u32,
    /// Bytes of each payload
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(8..=60_000))]
    pub payload_bytes: u16,
    /// Seconds that are measured, behind two that are not
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// Figures of one run.
#[derive(Debug)]
pub struct Measured {
    seconds: f64,
    enqueued: u64,
    acknowledged: u64,
    /// From the commit of an enqueue to the listener, ms, sorted.
    delays_ms: Vec<u64>,
    /// Messages that a listener got which another had got before.
    repeated: u64,
    late: u64,
}

/// Shared by all tasks of a run.
#[derive(Default)]
struct Counts {
    is_over: AtomicBool,
    enqueued: AtomicU64,
    acknowledged: AtomicU64,
    late: AtomicU64,
}

/// # Errors
/// When the gateway refuses something.
pub async fn measure(options: &Options) -> Result<Measured, BenchError> {
    let http = HttpVersion::H2;
    let metadata = Metadata::exchange(&options.url, &options.access_token, http, TIMEOUT).await?;
    let endpoint = metadata.strong.ok_or(BenchError::NoStrongEndpoint(options.url.clone()))?;
    let endpoint = Arc::new(endpoint);
    let target = |path: &str, headers: &Headers| {
        Ok::<_, BenchError>(Target::new(&endpoint.resolve(path)?, http, headers)?)
    };
    let counts = Arc::new(Counts::default());
    let mut tasks = JoinSet::new();
    let (delivered, mut deliveries) = mpsc::unbounded_channel();
    for _ in 0..options.listeners {
        let mut links = Link::open_shared(&endpoint, http, 2, TIMEOUT).await?;
        let (Some(reporter), Some(mut link)) = (links.pop(), links.pop()) else { break };
        let body = json!({ "credits": options.credits }).to_string();
        let listen = target("/kv/queue/listen", &metadata.headers)?.request(body.into());
        let body = link.begin(listen).await?;
        let report = target("/kv/queue/report", &metadata.headers)?;
        let listener =
            Listener { lines: Lines::over(body), reporter, report, counts: Arc::clone(&counts) };
        let delivered = delivered.clone();
        tasks.spawn(async move {
            let _link = link;
            listener.run(delivered).await
        });
    }
    let write = target("/kv/strong/atomic_write", &metadata.headers)?;
    let enqueues = vec![enqueue(options.payload_bytes); options.batch.into()];
    let write_body: Bytes =
        pb::AtomicWrite { enqueues, ..Default::default() }.encode_to_vec().into();
    for link in Link::open_shared(&endpoint, http, options.enqueuers.into(), TIMEOUT).await? {
        let (counts, write, body) = (Arc::clone(&counts), write.clone(), write_body.clone());
        tasks.spawn(enqueue_all(link, write, body, options.batch.into(), counts));
    }
    drop(delivered);
    let watched = async {
        let mut begun = None;
        let mut delays_ms = Vec::new();
        let (mut seen, mut repeated) = (BTreeSet::new(), 0);
        let warm = Instant::now() + Duration::from_secs(2);
        let until = warm + Duration::from_secs(options.seconds);
        while let Ok(Some((id, delay_ms))) =
            tokio::time::timeout_at(until.into(), deliveries.recv()).await
        {
            repeated += u64::from(!seen.insert(id));
            if Instant::now() >= warm {
                begun.get_or_insert_with(|| Moment::of(&counts));
                delays_ms.push(delay_ms);
            }
        }
        let (begun, ended) = (begun.unwrap_or_else(|| Moment::of(&counts)), Moment::of(&counts));
        delays_ms.sort_unstable();
        Measured {
            seconds: (ended.at - begun.at).as_secs_f64(),
            enqueued: ended.enqueued - begun.enqueued,
            acknowledged: ended.acknowledged - begun.acknowledged,
            delays_ms,
            repeated,
            late: counts.late.load(Ordering::Relaxed),
        }
    };
    let measured = tokio::select! {
        measured = watched => measured,
        Some(Ok(Err(failed))) = tasks.join_next() => return Err(failed),
    };
    // Enqueuers end, listeners acknowledge what they hold.
    counts.is_over.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(measured)
}

/// The counts so far.
struct Moment {
    at: Instant,
    enqueued: u64,
    acknowledged: u64,
}

impl Moment {
    fn of(counts: &Counts) -> Self {
        Self {
            at: Instant::now(),
            enqueued: counts.enqueued.load(Ordering::Relaxed),
            acknowledged: counts.acknowledged.load(Ordering::Relaxed),
        }
    }
}

fn enqueue(payload_bytes: u16) -> pb::Enqueue {
    let mut payload = V8_STRING.to_vec();
    // The length of the text, as a varint of three bytes.
    let length = payload_bytes.saturating_sub(6);
    let [high, low] = (length & 0x3fff).to_be_bytes();
    payload.extend([low | 0x80, high << 1 | low >> 7 | 0x80, (length >> 14).to_be_bytes()[1]]);
    payload.resize(payload.len() + usize::from(length), b'm');
    pb::Enqueue { payload: payload.into(), ..Default::default() }
}

async fn enqueue_all(
    mut link: Link,
    write: Target,
    body: Bytes,
    batch: u64,
    counts: Arc<Counts>,
) -> Result<(), BenchError> {
    while !counts.is_over.load(Ordering::Relaxed) {
        let answer = link.call(write.request(body.clone())).await?;
        let output = pb::AtomicWriteOutput::decode(answer)
            .map_err(|error| BenchError::Unsuccessful(format!("a write's answer: {error}")))?;
        if output.status() != pb::AtomicWriteStatus::AwSuccess {
            let text = format!("an enqueue was answered {:?}", output.status());
            return Err(BenchError::Unsuccessful(text));
        }
        counts.enqueued.fetch_add(batch, Ordering::Relaxed);
    }
    Ok(())
}

/// A stream of messages, and reports on them.
struct Listener {
    lines: Lines,
    reporter: Link,
    report: Target,
    counts: Arc<Counts>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Open { listener: String },
    Message { id: String, due: u64, enqueued: u64 },
    Release {},
    Ping,
    End { reason: String },
}

impl Listener {
    /// Acknowledges what comes, as it comes: while a report is under way the next one gathers.
    async fn run(self, delivered: mpsc::UnboundedSender<(String, u64)>) -> Result<(), BenchError> {
        let Self { mut lines, mut reporter, report, counts } = self;
        let Some(Line::Open { listener }) = next(&mut lines).await? else {
            return Err(BenchError::Unsuccessful("a listener's stream did not open".to_owned()));
        };
        let (handled, mut to_report) = mpsc::unbounded_channel();
        let reports = async {
            let mut some = Vec::new();
            while to_report.recv_many(&mut some, REPORTS).await > 0 {
                let ack = |(id, due)| json!({ "id": id, "due": due, "verdict": "ack" });
                let reports: Vec<_> = some.drain(..).map(ack).collect();
                let body = json!({ "listener": listener, "reports": reports }).to_string();
                let answer = reporter.call(report.request(body.into())).await?;
                let Results { results } = serde_json::from_slice(&answer)
                    .map_err(|error| BenchError::Unsuccessful(format!("a report: {error}")))?;
                let done = results.iter().filter(|result| *result == "done").count() as u64;
                counts.acknowledged.fetch_add(done, Ordering::Relaxed);
                counts.late.fetch_add(results.len() as u64 - done, Ordering::Relaxed);
            }
            Ok(())
        };
        let listened = async {
            while let Some(line) = next(&mut lines).await? {
                match line {
                    Line::Message { id, due, enqueued } => {
                        let delay_ms = now_ms().saturating_sub(enqueued);
                        drop(delivered.send((id.clone(), delay_ms)));
                        drop(handled.send((id, due)));
                    }
                    Line::End { reason } => return Err(BenchError::Unsuccessful(reason)),
                    Line::Open { .. } | Line::Release {} | Line::Ping => {}
                }
            }
            Ok(())
        };
        tokio::select! {
            listened = listened => listened,
            reported = reports => reported,
        }
    }
}

#[derive(Deserialize)]
struct Results {
    results: Vec<String>,
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// `None` at the end of the stream.
async fn next(lines: &mut Lines) -> Result<Option<Line>, BenchError> {
    let failed = |error: &dyn fmt::Display| BenchError::Unsuccessful(error.to_string());
    let line = lines.next().await.map_err(|error| failed(&error))?;
    line.map(|line| serde_json::from_slice(&line)).transpose().map_err(|error| failed(&error))
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a_second = |count: u64| count as f64 / self.seconds.max(f64::MIN_POSITIVE);
        let at = |at: usize| self.delays_ms.get(at).copied().unwrap_or_default();
        let count = self.delays_ms.len();
        writeln!(f, "| messages | |\n|---|---:|")?;
        writeln!(f, "| enqueued a second | {:.0} |", a_second(self.enqueued))?;
        writeln!(f, "| acknowledged a second | {:.0} |", a_second(self.acknowledged))?;
        writeln!(
            f,
            "| from commit to listener, ms, p50 and p99 | {}, {} |",
            at(count / 2),
            at(count * 99 / 100)
        )?;
        writeln!(f, "| delivered twice; acknowledged late | {}; {} |", self.repeated, self.late)
    }
}
