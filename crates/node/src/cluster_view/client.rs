//! A process's side of the directory: following the cluster, and renewing the node's lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use meridian_directory::Cluster;
use meridian_failover::{ASK_TIMEOUT, Inquiry, LeaderSearch, Lease, Next, RENEW_TIMEOUT, Reply};
use meridian_proto::directory::{self as wire, directory_client::DirectoryClient, renew_response};
use meridian_proto::{node_id, shard_report_to_wire};
use meridian_types::{Epoch, LineLimit, NodeId, ShardId, ShardReport};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::cluster_view::view::Directory;
use crate::network::peers::PeerChannels;
use crate::time_budget::FOLLOW_TIMEOUT;

const PAUSE: Duration = Duration::from_millis(200);
/// How long a node that does not vote in the directory is followed at a time.
const FOLLOW_OTHERS: Duration = Duration::from_secs(10);
/// Between two looks for uses of tokens that are to be told.
const TELL_USES: Duration = Duration::from_secs(10);

/// Follows the cluster from a voter of the directory, the nearest that answers.
pub(crate) struct Follower {
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) region: String,
    /// This node, which need not be asked.
    pub(crate) node: Option<NodeId>,
}

impl Follower {
    /// Until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut lines = LineLimit::new(1);
        loop {
            // Any node knows the cluster; voters know it first.
            let mut sources = self.directory.voters_near(&self.region);
            let known = self.directory.known();
            sources.extend(known.cluster.present_nodes().map(|(id, _)| id));
            for source in sources.into_iter().filter(|source| Some(*source) != self.node) {
                let patience = match known.cluster.directory_voters.contains(&source) {
                    true => Duration::MAX,
                    // It may know of other voters; these are asked then.
                    false => FOLLOW_OTHERS,
                };
                let mut updates = self.peers.updates();
                let was_followed = tokio::select! {
                    () = stop.cancelled() => return,
                    was_followed = self.follow(source, &mut lines) => was_followed,
                    () = tokio::time::sleep(patience) => true,
                    // A connection may be in the clear that is dialled with TLS now.
                    Ok(()) = updates.changed() => true,
                };
                if was_followed {
                    // The nearest voter is asked first again.
                    break;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Until the stream ends; whether anything came. `lines`: to say that this process is refused.
    async fn follow(&self, source: NodeId, lines: &mut LineLimit<Instant>) -> bool {
        let Some(channel) = self.peers.requests(source) else { return false };
        let mut client = DirectoryClient::new(channel)
            .max_decoding_message_size(meridian_net::MAX_MESSAGE_BYTES);
        let request = wire::FollowRequest { known_version: self.directory.known().cluster.version };
        let mut stream = match tokio::time::timeout(FOLLOW_TIMEOUT, client.follow(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                if let Some(left_out) = line_of_refusal(&status, lines, Instant::now()) {
                    tracing::warn!(%source, reason = status.message(), left_out, "nodes refuse the calls of this process: it has to join anew if its certificate was revoked");
                }
                return false;
            }
            Err(_) => return false,
        };
        let mut has_come = false;
        while let Ok(Ok(Some(state))) = tokio::time::timeout(FOLLOW_TIMEOUT, stream.message()).await
        {
            // News may be old: only a node in touch with the directory's leader sends the rest.
            if state.json.is_empty() {
                self.directory.note_up_to_date();
            } else if !learn(&self.directory, &state, source) {
                return has_come;
            }
            has_come = true;
        }
        tracing::debug!(%source, "the directory's stream ended");
        has_come
    }
}

/// Whether a line is to say that the other side does not believe this process, and how many were
/// left out before it: a process whose certificate was revoked is told so by nothing else.
fn line_of_refusal(status: &Status, lines: &mut LineLimit<Instant>, now: Instant) -> Option<u64> {
    (status.code() == Code::Unauthenticated).then(|| lines.take(now)).flatten()
}

/// Whether `source` is a node of this process's cluster, as far as what it says of the cluster
/// tells.
fn learn(directory: &Directory, state: &wire::ClusterState, source: NodeId) -> bool {
    match serde_json::from_slice::<Cluster>(&state.json) {
        Ok(cluster) => match directory.learn(cluster) {
            Ok(()) => true,
            Err(foreign) => {
                metrics::counter!("meridian_foreign_answers_total").increment(1);
                tracing::warn!(%source, %foreign, "the address of a node leads to another cluster; it is not listened to");
                false
            }
        },
        Err(error) => {
            tracing::warn!(%error, "the directory says what this version cannot read");
            true
        }
    }
}

/// Tells of the uses of tokens at a gateway without a node, by the nearest node that takes them.
pub(crate) struct TokenUseTelling {
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) region: String,
}

impl TokenUseTelling {
    /// Until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TELL_USES) => self.tell().await,
            }
        }
    }

    async fn tell(&self) {
        let uses = self.directory.token_uses().untold();
        if uses.is_empty() {
            return;
        }
        for node in self.directory.voters_near(&self.region) {
            let Some(channel) = self.peers.requests(node) else { continue };
            let request = wire::TokenUses { uses: uses.clone() };
            let mut client = DirectoryClient::new(channel);
            let told = tokio::time::timeout(ASK_TIMEOUT, client.tell_token_uses(request)).await;
            if let Ok(Ok(_)) = told {
                return self.directory.token_uses().told(&uses);
            }
        }
    }
}

/// Makes the reports on shards and orphans that the node sends with each renewal.
pub(crate) type Report = Arc<dyn Fn() -> (Vec<ShardReport>, Vec<wire::Orphans>) + Send + Sync>;

/// Keeps the node's lease.
pub(crate) struct LeaseRenewal {
    pub(crate) node: NodeId,
    pub(crate) region: String,
    pub(crate) incarnation: Bytes,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) report: Report,
    /// Why the directory wants nothing of this node, once it has said so.
    pub(crate) refused: watch::Sender<Option<String>>,
    /// Of the directory's leader.
    pub(crate) search: Mutex<LeaderSearch>,
}

impl LeaseRenewal {
    /// Until `stop`. Tries do not wait for each other: an answer that never comes delays none.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        loop {
            let renewal = Arc::clone(&this);
            tokio::spawn(async move {
                drop(tokio::time::timeout(RENEW_TIMEOUT, renewal.renew()).await)
            });
            let pause = this.search.lock().next_in(this.directory.now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = this.directory.renewal_is_wanted() => {}
            }
        }
    }

    /// One try.
    async fn renew(&self) {
        let voters = || self.directory.voters_near(&self.region);
        let inquiries = self.search.lock().begin(self.directory.now(), voters);
        let mut asks: FuturesUnordered<_> =
            inquiries.into_iter().map(|inquiry| self.inquire(inquiry)).collect();
        while let Some(is_done) = asks.next().await {
            if is_done {
                return;
            }
        }
    }

    /// Asks a node, and those that it points to; whether the try has come to its end.
    async fn inquire(&self, mut inquiry: Inquiry) -> bool {
        loop {
            let reply = self.ask(inquiry.asked()).await;
            let now = self.directory.now();
            let next = self.search.lock().replied(now, &mut inquiry, reply);
            match next {
                Next::Ask(_) => {}
                Next::Done => return true,
                Next::Over { again } => {
                    if let Some(pause) = again {
                        let directory = Arc::clone(&self.directory);
                        tokio::spawn(async move {
                            tokio::time::sleep(pause).await;
                            directory.renew_now();
                        });
                    }
                    return false;
                }
            }
        }
    }

    async fn ask(&self, node: NodeId) -> Reply {
        let Some(channel) = self.peers.control(node) else { return Reply::Nothing };
        let (reports, orphans) = (self.report)();
        let token_uses = self.directory.token_uses().untold();
        let request = wire::RenewRequest {
            node_id: self.node.0,
            incarnation: self.incarnation.clone(),
            reports: reports.iter().map(shard_report_to_wire).collect(),
            orphans,
            known_version: self.directory.known().cluster.version,
            token_uses: token_uses.clone(),
        };
        let sent_at = self.directory.now();
        let mut client = DirectoryClient::new(channel)
            .max_decoding_message_size(meridian_net::MAX_MESSAGE_BYTES);
        let asked = tokio::time::timeout(ASK_TIMEOUT, client.renew(request)).await;
        match asked.ok().and_then(Result::ok).and_then(|response| response.into_inner().result) {
            Some(renew_response::Result::Lease(lease)) => {
                if lease
                    .cluster
                    .as_ref()
                    .is_some_and(|cluster| !learn(&self.directory, cluster, node))
                {
                    return Reply::Nothing;
                }
                let hints: Vec<_> = lease
                    .furthest
                    .iter()
                    .filter_map(crate::cluster_view::wire::progress_hint)
                    .collect();
                let shards = lease.shards.iter().filter_map(|leased| {
                    Some((ShardId(leased.shard), Epoch(u16::try_from(leased.epoch).ok()?)))
                });
                let lease =
                    Lease { ttl: Duration::from_millis(lease.ttl_ms), shards: shards.collect() };
                self.directory.token_uses().told(&token_uses);
                self.directory.observe_hints(hints);
                self.directory.renewed(sent_at, &lease);
                Reply::Granted
            }
            Some(renew_response::Result::NotLeader(leader)) => Reply::NotLeader(node_id(leader)),
            Some(renew_response::Result::Refused(reason)) => {
                self.refused.send_replace(Some(reason));
                Reply::Refused
            }
            None => Reply::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_is_refused_says_so_once_a_minute_and_not_of_other_failures() {
        let (mut lines, now) = (LineLimit::new(1), Instant::now());
        let refused = Status::unauthenticated("the certificate of gateway/edge was revoked");
        let mut line = |status: &Status, after| {
            line_of_refusal(status, &mut lines, now + Duration::from_secs(after))
        };
        for other in [Status::unavailable("it starts"), Status::permission_denied("no node")] {
            assert_eq!(line(&other, 0), None);
        }
        assert_eq!(line(&refused, 0), Some(0));
        assert!((1..60).all(|after| line(&refused, after).is_none()));
        assert_eq!(line(&refused, 60), Some(59));
    }
}
