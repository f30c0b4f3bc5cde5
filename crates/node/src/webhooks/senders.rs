//! A sender for each webhook whose shard this node leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Webhook, WebhookKey};
use meridian_memory::ByteBudget;
use meridian_net::post::{Posts, Trust};
use meridian_queue::ListenerId;
use meridian_types::{QueueId, ShardId};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::delivery::{Deliveries, REQUEST_BYTES};
use super::request::Destination;
use super::sender::{AGAIN, Sender};
use super::signature::Keys;
use super::standing::{Queue, Standings};
use crate::cluster_view::view::Directory;
use crate::host::clock::{boot_time, wall_ms};
use crate::routing::router::Router;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// How often this node looks which shards it leads, where there are webhooks.
const LOOK: Duration = Duration::from_millis(250);
/// A node that stops waits for the answers to requests that are under way, and no longer than this.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The means that webhooks are served with.
pub(crate) struct SenderParts {
    pub(crate) router: Arc<Router>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) standings: Arc<Standings>,
    /// For requests that are under way.
    pub(crate) memory_bytes: usize,
}

/// The webhook of a queue, and the name of its database.
type Settings = (String, Webhook);

/// A sender, or the attempt to have one.
struct Running {
    settings: Settings,
    stop: CancellationToken,
    task: AbortHandle,
}

/// The senders of this node.
pub(crate) struct Senders {
    parts: Arc<SenderParts>,
    bytes: ByteBudget,
    running: BTreeMap<Queue, Running>,
    /// Of those that run, and of those that were stopped and have requests under way.
    tasks: JoinSet<()>,
}

impl Senders {
    pub(crate) fn new(parts: SenderParts) -> Self {
        let bytes = ByteBudget::new("webhooks", parts.memory_bytes.max(2 * REQUEST_BYTES));
        let (running, tasks) = (BTreeMap::new(), JoinSet::new());
        Self { parts: Arc::new(parts), bytes, running, tasks }
    }

    /// Until `stop`, and then for as long as requests that are under way may take.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut known = self.parts.directory.watch();
        loop {
            known.borrow_and_update();
            let has_webhooks = self.look();
            tokio::select! {
                () = stop.cancelled() => break,
                // The directory lives as long as this.
                _ = known.changed() => {}
                () = tokio::time::sleep(LOOK), if has_webhooks || !self.running.is_empty() => {}
            }
        }
        self.adjust(&BTreeMap::new());
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(STOP_WITHIN, ended).await);
    }

    /// Whether there are webhooks at all.
    fn look(&mut self) -> bool {
        let known = self.parts.directory.known();
        let mut has_webhooks = false;
        let mut wanted = BTreeMap::new();
        for (id, database) in &known.cluster.databases {
            for webhook in &database.webhooks {
                has_webhooks = true;
                if self.leads(database.shard) && !database.queue_paused {
                    let settings = (database.name.clone(), webhook.clone());
                    wanted.insert((*id, webhook.queue.clone()), settings);
                }
            }
        }
        self.adjust(&wanted);
        has_webhooks
    }

    /// As this node knows it.
    fn leads(&self, shard: ShardId) -> bool {
        match self.parts.shards.get(&shard) {
            Some(LocalShard::Voter(voter)) => voter.group.leadership().is_ok(),
            Some(LocalShard::Replica(_)) | None => false,
        }
    }

    /// Has these senders and no others. A sender with other settings ends, and begins anew.
    fn adjust(&mut self, wanted: &BTreeMap<Queue, Settings>) {
        while self.tasks.try_join_next().is_some() {}
        let standings = &self.parts.standings;
        self.running.retain(|queue, running| {
            let stays = wanted.get(queue) == Some(&running.settings);
            if !stays {
                running.stop.cancel();
                standings.forget(queue);
            }
            stays && !running.task.is_finished()
        });
        for (queue, settings) in wanted {
            if self.running.contains_key(queue) {
                continue;
            }
            let (settings, stop) = (settings.clone(), CancellationToken::new());
            let webhook = (queue.clone(), settings.clone());
            let (parts, bytes) = (Arc::clone(&self.parts), self.bytes.clone());
            let task = self.tasks.spawn(send(parts, bytes, webhook, stop.clone()));
            self.running.insert(queue.clone(), Running { settings, stop, task });
        }
    }
}

/// Sends until it is stopped, or until it cannot, which is said.
async fn send(
    parts: Arc<SenderParts>,
    bytes: ByteBudget,
    (queue, (name, webhook)): (Queue, Settings),
    stop: CancellationToken,
) {
    let trust = match trust(&webhook.url).await {
        Ok(trust) => trust,
        Err(reason) => {
            parts.standings.fails(&queue, &name, &reason, (boot_time(), wall_ms()));
            return drop(tokio::time::timeout(AGAIN, stop.cancelled()).await);
        }
    };
    let (Ok(uri), Ok(of_database)) = (webhook.url.parse(), queue.1.parse()) else {
        let reason = "the URL is none for HTTP";
        parts.standings.fails(&queue, &name, reason, (boot_time(), wall_ms()));
        return drop(tokio::time::timeout(AGAIN, stop.cancelled()).await);
    };
    let keys = std::iter::once(&webhook.key).chain(&webhook.next_key);
    let keys: Vec<Vec<u8>> = keys.filter_map(WebhookKey::bytes).collect();
    let deliveries = Deliveries {
        queue: Arc::new(Arc::clone(&parts.router)),
        listener: ListenerId(Uuid::new_v4().into_bytes()),
        destination: Destination {
            queue: QueueId { database: queue.0, name: of_database },
            name,
            uri,
            keys: Keys::new(keys.iter().map(Vec::as_slice)),
        },
        posts: Posts::new(trust, usize::try_from(webhook.concurrency).unwrap_or(usize::MAX)),
        timeout: Duration::from_millis(webhook.timeout_ms),
        bytes,
    };
    let standings = Arc::clone(&parts.standings);
    Sender::run(deliveries, webhook.concurrency, (queue, standings), stop).await;
}

/// Certificates are read for each sender anew.
async fn trust(url: &str) -> Result<Trust, String> {
    if !url.starts_with("https:") {
        return Trust::none().map_err(|error| error.to_string());
    }
    let read = tokio::task::spawn_blocking(Trust::of_machine).await;
    let trust = read.map_err(|error| error.to_string())?;
    trust.map_err(|error| format!("this machine names no certificate authorities: {error}"))
}
