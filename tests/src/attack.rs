//! All known attacks on a cluster, and their effect on another client.
//!
//! An [`Input`] is one kind of attack that once took a node down, took its memory or kept others
//! out; an [`Attacker`] is able to carry some of them out, by its knowledge. Attackers run as
//! processes of their own, at the lowest priority: they share the cores with the cluster, and the
//! measure is the work that they cause in the cluster, not the CPU that they take as any busy
//! program would.
//!
//! [`Siege`] is a cluster with its [`bystander`] and the measurements.

pub mod bystander;
pub mod outsider;
mod peer;
mod reader;
mod siege;
mod silent;
mod stranger;
mod wire;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::KvClient;
use crate::kv_connect::DEFAULT_DATABASE;

pub use siege::{Row, Siege};

/// A kind of attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attacker {
    /// Has no token.
    Stranger,
    /// Has a token for reading one database.
    Reader,
    /// Has it too, and reads no answer.
    Silent,
    /// Has a token for reading and writing one database.
    Writer,
    /// Reaches the ports that nodes have for each other, and has nothing.
    Outsider,
    /// Reaches them, too, and has the certificate of one.
    Peer,
}

impl Attacker {
    pub const ALL: &[Self] =
        &[Self::Stranger, Self::Reader, Self::Silent, Self::Writer, Self::Outsider, Self::Peer];

    pub fn inputs(self) -> &'static [Input] {
        match self {
            Self::Stranger => &[
                Input::Sockets,
                Input::LongHeads,
                Input::Heads,
                Input::Guesses,
                Input::StrangeResets,
                Input::Noise,
                Input::Metrics,
            ],
            Self::Reader => {
                &[Input::Bodies, Input::Scans, Input::Lists, Input::Resets, Input::Probes]
            }
            Self::Silent => &[Input::Unread, Input::UnreadStreams, Input::Pipeline],
            Self::Writer => &[Input::Sums, Input::Checks],
            Self::Outsider => &[
                Input::Foreign,
                Input::PeerSockets,
                Input::Refusals,
                Input::MarkedRefusals,
                Input::HalfJoins,
            ],
            Self::Peer => &[Input::Terms, Input::States, Input::Logs],
        }
    }
}

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// As many idle connections as possible.
    Sockets,
    /// Requests whose heads never end, a byte now and then.
    Heads,
    /// As many connections as possible, each with a head of nearly the largest size.
    LongHeads,
    /// Guesses of tokens, databases and their names.
    Guesses,
    /// Requests over HTTP/2 that are reset at once, without a token.
    StrangeResets,
    /// Bytes that no client would send.
    Noise,
    /// Half requests for the metrics, and many whole ones.
    Metrics,
    /// Heads of requests over HTTP/2 whose bodies never come.
    Bodies,
    /// Reads of an absent key before many deleted rows, in the way of `@deno/kv`.
    Scans,
    /// The largest legal answers.
    Lists,
    /// Large reads that are reset at once.
    Resets,
    /// Other databases, writes, bodies that are no protobuf.
    Probes,
    /// The largest legal answers, of which not a byte is read.
    Unread,
    /// The same over HTTP/2.
    UnreadStreams,
    /// Small requests without an end, whose answers are not read.
    Pipeline,
    /// 10 KB that make 64 MB of effects.
    Sums,
    /// As many look-ups as a write may make.
    Checks,
    /// Calls for another cluster.
    Foreign,
    /// A term that no group reaches.
    Terms,
    /// Whole states of shards, asked for and not read.
    States,
    /// Batches of the log, many answers at a time.
    Logs,
    /// Idle connections to the ports for nodes.
    PeerSockets,
    /// Calls without a proof, as many as possible.
    Refusals,
    /// The same on connections that say they are of control.
    MarkedRefusals,
    /// Requests to join that never end.
    HalfJoins,
}

/// The knowledge of attackers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Addresses of gateways, `host:port`.
    pub gateways: Vec<String>,
    /// Ports of nodes for each other, in the order of the nodes' numbers.
    pub nodes: Vec<(u64, String)>,
    pub metrics: Vec<String>,
    /// The id of the cluster.
    pub cluster: String,
    /// A folder with the certificates of nodes.
    pub identities: PathBuf,
    /// A token for reading the database `default`.
    pub reader: String,
    /// A token for reading and writing it.
    pub writer: String,
}

impl Target {
    fn clients<'a>(&'a self, token: &'a str) -> impl Iterator<Item = KvClient> + 'a {
        self.gateways.iter().map(move |gateway| {
            crate::kv_connect::client(format!("http://{gateway}"), DEFAULT_DATABASE)
                .with_token(token)
        })
    }
}

/// The content of the writer's database that some attacks need.
pub mod stored {
    /// The prefix of values of the largest size, under keys of the largest size.
    pub const LARGE: &[u8] = b"\x02large\0";
    /// The prefix of bigints of the largest size.
    pub const BIGINTS: &[u8] = b"\x02bigints\0";
    /// The prefix of deleted rows.
    pub const DELETED: &[u8] = b"\x02deleted\0";

    /// The `number`th key under a prefix.
    pub fn key(prefix: &[u8], number: usize) -> Vec<u8> {
        [prefix, format!("{number:08}").as_bytes()].concat()
    }

    /// The `number`th of [`LARGE`].
    pub fn large_key(number: usize) -> Vec<u8> {
        let mut key = key(LARGE, number);
        key.resize(2000, b'x');
        key
    }
}

/// The name on the command line.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Carries out all of these attacks at once, again and again, for `duration`.
pub async fn attack(with: &[Input], target: Arc<Target>, duration: Duration) {
    let until = Instant::now() + duration;
    let mut inputs = JoinSet::new();
    for input in with {
        match input {
            Input::Sockets => inputs.spawn(stranger::sockets(Arc::clone(&target))),
            Input::Heads => inputs.spawn(stranger::heads(Arc::clone(&target))),
            Input::LongHeads => inputs.spawn(stranger::long_heads(Arc::clone(&target))),
            Input::Guesses => inputs.spawn(stranger::guesses(Arc::clone(&target))),
            Input::StrangeResets => inputs.spawn(stranger::resets(Arc::clone(&target))),
            Input::Noise => inputs.spawn(stranger::noise(Arc::clone(&target))),
            Input::Metrics => inputs.spawn(stranger::metrics(Arc::clone(&target))),
            Input::Bodies => inputs.spawn(reader::bodies(Arc::clone(&target))),
            Input::Scans => inputs.spawn(reader::scans(Arc::clone(&target))),
            Input::Lists => inputs.spawn(reader::lists(Arc::clone(&target))),
            Input::Resets => inputs.spawn(reader::resets(Arc::clone(&target))),
            Input::Probes => inputs.spawn(reader::probes(Arc::clone(&target))),
            Input::Unread => inputs.spawn(silent::unread(Arc::clone(&target))),
            Input::UnreadStreams => inputs.spawn(silent::unread_streams(Arc::clone(&target))),
            Input::Pipeline => inputs.spawn(silent::pipeline(Arc::clone(&target))),
            Input::Sums => inputs.spawn(writer::sums(Arc::clone(&target))),
            Input::Checks => inputs.spawn(writer::checks(Arc::clone(&target))),
            Input::Foreign => inputs.spawn(peer::foreign(Arc::clone(&target))),
            Input::Terms => inputs.spawn(peer::terms(Arc::clone(&target))),
            Input::States => inputs.spawn(peer::states(Arc::clone(&target))),
            Input::Logs => inputs.spawn(peer::logs(Arc::clone(&target))),
            Input::PeerSockets => inputs.spawn(peer::sockets(Arc::clone(&target))),
            Input::Refusals => inputs.spawn(outsider::refusals(Arc::clone(&target))),
            Input::MarkedRefusals => inputs.spawn(outsider::marked_refusals(Arc::clone(&target))),
            Input::HalfJoins => inputs.spawn(outsider::half_joins(Arc::clone(&target))),
        };
    }
    // The attacks run for ever; an attack that ends was refused for good, which is not measured here.
    drop(tokio::time::timeout_at(until.into(), all(inputs)).await);
    tokio::time::sleep_until(until.into()).await;
}

/// Runs `times` copies of an attack, each again and again.
async fn again<F: Future<Output = ()> + Send + 'static>(
    times: usize,
    what: impl Fn(usize) -> F + Send + Sync + 'static,
) {
    /// The pause after an attack that was refused at once.
    const PAUSE: Duration = Duration::from_millis(10);
    let what = Arc::new(what);
    let mut copies = JoinSet::new();
    for number in 0..times {
        let what = Arc::clone(&what);
        copies.spawn(async move {
            loop {
                what(number).await;
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    all(copies).await;
}

/// Waits for all tasks.
///
/// # Panics
/// When a task does: the cluster gave an attacker more than its rights.
async fn all(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}
