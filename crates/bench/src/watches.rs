//! The memory and CPU that open watches take of a gateway's process, and the time until a change has
//! reached all of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use meridian_kv_client::{HttpVersion, Link, Metadata, Target, Watching, message};
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::cpu;
use crate::error::BenchError;

/// The time in which a request is answered, or a change arrives everywhere; then it is an error.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory and CPU are looked at for so long.
const IDLE: Duration = Duration::from_secs(10);
const VALUE_BYTES: usize = 128;

/// Measure open watches at one gateway: first of a key each, while nothing changes, then of one key
/// that all watch.
#[derive(Debug, Clone, Parser)]
#[command(name = "meridian-bench-watches", version)]
pub struct Options {
    /// The connect URL, as given to Deno.openKv
    #[arg(long)]
    pub url: String,
    /// The access token of the database
    #[arg(long, env = "DENO_KV_ACCESS_TOKEN", hide_env_values = true)]
    pub access_token: String,
    /// The gateway's process, on this machine
    #[arg(long)]
    pub process: u32,
    /// Number of watches
    #[arg(long, default_value_t = 10_000)]
    pub watches: usize,
    /// HTTP/2 connections that they share
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: u16,
    /// Changes of the key that all watch
    #[arg(long, default_value_t = 20)]
    pub changes: usize,
}

/// Figures of one run.
#[derive(Debug)]
pub struct Measured {
    watches: usize,
    memory_bytes: u64,
    idle_cpu: Duration,
    /// From sending a write until every watch has it, sorted.
    to_all: Vec<Duration>,
    /// From sending a write until it is answered, sorted.
    answers: Vec<Duration>,
    /// Of the gateway's process, for one change.
    cpu_of_change: Duration,
}

/// # Errors
/// When the gateway refuses something, or does not do it within a minute.
pub async fn measure(options: &Options) -> Result<Measured, BenchError> {
    let stage = Stage::open(options).await?;
    // Threads, caches and allocators get what they keep in any case.
    stage.set(&key("hot"), 0).await?;
    drop(stage.watch_all(options.watches.min(200), |_| key("hot")).await?);

    let before = memory_bytes(options.process)?;
    let idle = stage.watch_all(options.watches, |watch| key(&format!("idle {watch}"))).await?;
    let (begin, end) = (Instant::now(), Instant::now() + IDLE);
    let used = cpu::used_between(&[options.process], begin, end).await?;
    let after = memory_bytes(options.process)?;
    drop(idle);

    let mut hot = stage.watch_all(options.watches, |_| key("hot")).await?;
    let used_before = cpu::used_ns(&[options.process])?;
    let (mut to_all, mut answers) = (Vec::new(), Vec::new());
    for change in 1..=options.changes {
        let begun = Instant::now();
        let answered = async {
            stage.set(&key("hot"), change).await?;
            Ok::<_, BenchError>(begun.elapsed())
        };
        let (answered, arrived) = tokio::join!(answered, hot.all_have(change));
        arrived?;
        to_all.push(begun.elapsed());
        answers.push(answered?);
    }
    let used_by_changes = cpu::used_ns(&[options.process])?.saturating_sub(used_before);
    to_all.sort();
    answers.sort();
    Ok(Measured {
        watches: options.watches,
        memory_bytes: after.saturating_sub(before),
        idle_cpu: Duration::from_nanos(used).div_f64(IDLE.as_secs_f64()),
        to_all,
        answers,
        cpu_of_change: Duration::from_nanos(used_by_changes)
            / u32::try_from(options.changes).unwrap_or(u32::MAX).max(1),
    })
}

/// The gateway, and the connections to it.
struct Stage {
    watch: Target,
    write: Target,
    links: Vec<Mutex<Link>>,
    writer: Mutex<Link>,
}

impl Stage {
    async fn open(options: &Options) -> Result<Self, BenchError> {
        let http = HttpVersion::H2;
        let metadata =
            Metadata::exchange(&options.url, &options.access_token, http, PATIENCE).await?;
        let endpoint = metadata.strong.ok_or(BenchError::NoStrongEndpoint(options.url.clone()))?;
        let target = |method| Target::new(&endpoint.method(method), http, &metadata.headers);
        let (watch, write) = (target("watch")?, target("atomic_write")?);
        let endpoint = Arc::new(endpoint);
        let mut links = Vec::with_capacity(options.connections.into());
        for _ in 0..options.connections {
            links.push(Link::open(&endpoint, http, PATIENCE).await?.into());
        }
        let writer = Link::open(&endpoint, http, PATIENCE).await?;
        Ok(Self { watch, write, links, writer: writer.into() })
    }

    /// Sets a key to a value that names the change.
    async fn set(&self, key: &[u8], change: usize) -> Result<(), BenchError> {
        let mut data = change.to_string().into_bytes();
        data.resize(VALUE_BYTES, b' ');
        let write =
            pb::AtomicWrite { mutations: vec![message::set(key, &data)], ..Default::default() };
        let request = self.write.request(write.encode_to_vec().into());
        let answer = self.writer.lock().await.call(request).await?;
        let output = pb::AtomicWriteOutput::decode(answer)
            .map_err(|error| BenchError::Unsuccessful(format!("a write's answer: {error}")))?;
        match output.status() {
            pb::AtomicWriteStatus::AwSuccess => Ok(()),
            status => Err(BenchError::Unsuccessful(format!("a write was answered {status:?}"))),
        }
    }

    /// Opens so many watches, each of one key; done once each has told its first state.
    async fn watch_all(
        &self,
        watches: usize,
        key: impl Fn(usize) -> Bytes,
    ) -> Result<Watches, BenchError> {
        let told = Arc::new(Told::default());
        let mut tasks = JoinSet::new();
        for (watch, link) in (0..watches).zip(self.links.iter().cycle()) {
            let request = pb::Watch { keys: vec![pb::WatchKey { key: key(watch) }] };
            let request = self.watch.request(request.encode_to_vec().into());
            let watching = Watching::over(link.lock().await.begin(request).await?);
            tasks.spawn(follow(watching, Arc::clone(&told)));
        }
        let mut watches = Watches { number: watches, told, tasks };
        watches.all_have(0).await?;
        Ok(watches)
    }
}

/// Watches that are open.
struct Watches {
    number: usize,
    told: Arc<Told>,
    /// Each ends with why its watch did.
    tasks: JoinSet<BenchError>,
}

/// How many states were told, by all watches together.
#[derive(Default)]
struct Told {
    states: AtomicUsize,
    one_more: Notify,
}

impl Watches {
    /// Waits until each has told so many changes of its key, and its first state.
    async fn all_have(&mut self, changes: usize) -> Result<(), BenchError> {
        let wanted = self.number * (changes + 1);
        let told = Arc::clone(&self.told);
        let arrived = async {
            while told.states.load(Ordering::Acquire) < wanted {
                told.one_more.notified().await;
            }
        };
        let too_late = || {
            let states = self.told.states.load(Ordering::Acquire);
            BenchError::Unsuccessful(format!("{states} of {wanted} states came in time"))
        };
        tokio::select! {
            () = arrived => Ok(()),
            Some(Ok(ended)) = self.tasks.join_next() => Err(ended),
            () = tokio::time::sleep(PATIENCE) => Err(too_late()),
        }
    }
}

/// Counts what a watch tells, until it ends.
async fn follow(mut watching: Watching, told: Arc<Told>) -> BenchError {
    loop {
        match watching.news().await {
            Ok(_) => {
                told.states.fetch_add(1, Ordering::Release);
                told.one_more.notify_one();
            }
            Err(error) => return BenchError::Unsuccessful(format!("a watch ended: {error}")),
        }
    }
}

/// A key of one part, as clients encode it.
fn key(name: &str) -> Bytes {
    [&[1], name.as_bytes(), &[0]].concat().into()
}

/// Memory that is the process's own, and no file's.
fn memory_bytes(process: u32) -> Result<u64, BenchError> {
    let wrong = |text: String| BenchError::Option(format!("--process {process}: {text}"));
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))
        .map_err(|error| wrong(error.to_string()))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = kib.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| wrong("its memory is not told".to_owned()))
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let each = self.memory_bytes / self.watches.max(1) as u64;
        writeln!(f, "| {} watches | |\n|---|---:|", self.watches)?;
        writeln!(f, "| memory of the gateway for each, bytes | {each} |")?;
        writeln!(f, "| CPU while nothing changes, ms/s | {:.1} |", ms(self.idle_cpu))?;
        for (name, sorted) in
            [("all have a change", &self.to_all), ("it is answered", &self.answers)]
        {
            let at = |at: usize| sorted.get(at).copied().map_or(0.0, ms);
            let (p50, max) = (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)));
            writeln!(f, "| until {name}, ms, p50 and most | {p50:.0}, {max:.0} |")?;
        }
        writeln!(f, "| CPU of the gateway for a change, ms | {:.0} |", ms(self.cpu_of_change))
    }
}
