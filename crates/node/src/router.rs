//! From a gateway to the shard: who leads, what to retry, and until when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_gateway::{Database, Read, ReadOutput, Unavailable, Write, WriteFailure};
use meridian_proto::shard::{self as wire, read_response, shard_client::ShardClient, write_response};
use meridian_proto::{entry, read_range_to_wire, transaction_to_wire};
use meridian_storage::ReadView;
use meridian_types::{Consistency, Epoch, NodeId, Position, ShardId, Versionstamp, WriteOutcome, limits};
use parking_lot::Mutex;
use tonic::{Code, Status};

use crate::clock::boot_time;
use crate::directory::Directory;
use crate::hedge::{self, Failed, Hedging, Round, Try};
use crate::history::History;
use crate::peers::{MAX_MESSAGE_BYTES, PeerChannels};
use crate::proposer::{WriteReply, WriteRequest};
use crate::shard::{LocalShard, ReadReply};
use crate::shard_table::ShardTable;

/// How long one try may take, beyond two round trips. A node that lost its power says nothing; one that is only
/// slow answers the next try, which has the same id.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(800);
/// Beyond the usual time to answer, others are asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// To a node that has not answered yet.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(100);
/// A node that did not answer is tried after the others for so long.
const AVOID: Duration = Duration::from_secs(3);
/// Between two rounds through all voters: longer, the longer it takes already.
const MIN_PAUSE: Duration = Duration::from_millis(15);
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// A write whose outcome is unknown is asked for until request ids may be forgotten, with some to spare.
const UNKNOWN_DEADLINE: Duration = Duration::from_millis(limits::REQUEST_ID_RETENTION_MS * 4 / 5);

/// What a read has shown.
struct Shown {
    view: ReadView,
    epoch: Epoch,
    /// Who leads the shard, as far as the node knows that was read from.
    leader: Option<NodeId>,
}

/// Routes the operations of one gateway.
pub(crate) struct Router {
    /// Empty beside an application, where no node runs.
    local: Arc<ShardTable>,
    local_node: Option<NodeId>,
    region: String,
    directory: Arc<Directory>,
    peers: Arc<PeerChannels>,
    /// For an operation that certainly did not happen.
    deadline: Duration,
    leaders: Mutex<HashMap<ShardId, NodeId>>,
    /// When nodes did not answer.
    silent: Mutex<HashMap<NodeId, Instant>>,
    /// What this gateway has shown of each shard: what it shows next is no older.
    shown: Mutex<HashMap<ShardId, Position>>,
    /// How long nodes took to answer, smoothed: the nearest is asked first.
    round_trips: Mutex<HashMap<NodeId, Duration>>,
}

impl Router {
    pub(crate) fn new(
        local: Arc<ShardTable>,
        local_node: Option<NodeId>,
        region: String,
        directory: Arc<Directory>,
        peers: Arc<PeerChannels>,
        deadline: Duration,
    ) -> Self {
        Self {
            local,
            local_node,
            region,
            directory,
            peers,
            deadline,
            leaders: Mutex::default(),
            silent: Mutex::default(),
            shown: Mutex::default(),
            round_trips: Mutex::default(),
        }
    }

    fn shard(&self, database: meridian_types::DatabaseId) -> Result<(ShardId, Epoch), Unavailable> {
        let shard = self.directory.topology().shard_of(database).map(|shard| shard.id);
        let found = shard.and_then(|shard| Some((shard, self.directory.epoch(shard)?)));
        found.ok_or_else(|| unavailable(format!("no shard holds the database {database}")))
    }

    /// The voters to try, the supposed leader first, then those nearest.
    fn voters(&self, shard: ShardId) -> Vec<NodeId> {
        let topology = self.directory.topology();
        let Some(info) = topology.shards.get(&shard) else { return Vec::new() };
        let hint = self.leaders.lock().get(&shard).copied().or(info.preferred_leader);
        let mut voters: Vec<NodeId> = info.voters.iter().copied().collect();
        voters.sort_by_key(|voter| {
            (self.is_silent(*voter), Some(*voter) != hint, Some(*voter) != self.local_node, *voter)
        });
        voters
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.silent.lock().get(&node).is_some_and(|since| since.elapsed() < AVOID)
    }

    /// The sequence that an eventual read must not be older than. What a failover took back is not held
    /// against those who never had it.
    fn min_sequence(&self, shard: ShardId) -> u64 {
        let Some(shown) = self.shown.lock().get(&shard).copied() else { return 0 };
        let history = self.directory.shard(shard).map(|shard| History::new(shard.bases));
        match history.and_then(|history| history.leaves(shown)) {
            Some((_, base)) => base.sequence,
            None => shown.sequence,
        }
    }

    fn has_shown(&self, shard: ShardId, epoch: Epoch, sequence: u64) {
        let mut shown = self.shown.lock();
        let newest = shown.entry(shard).or_insert(Position::ZERO);
        *newest = (*newest).max(Position::new(epoch, sequence));
    }

    /// Waits before another round, or until the cluster has changed.
    async fn pause(&self, elapsed: Duration) {
        let mut known = self.directory.watch();
        known.mark_unchanged();
        // The directory lives as long as this process.
        drop(tokio::time::timeout(pause(elapsed), known.changed()).await);
    }

    /// How long the node usually takes to answer.
    fn round_trip(&self, node: NodeId) -> Duration {
        if Some(node) == self.local_node {
            return Duration::ZERO;
        }
        self.round_trips.lock().get(&node).copied().unwrap_or(UNKNOWN_ROUND_TRIP)
    }

    fn attempt_timeout(&self, node: NodeId) -> Duration {
        ATTEMPT_TIMEOUT + 2 * self.round_trip(node)
    }

    /// All of a strong operation, which only one node can serve; one by one for what any can.
    fn hedging(&self, all_at_once: bool) -> Hedging<impl Fn(NodeId) -> Duration> {
        Hedging { delay: |node| HEDGE_AFTER + self.round_trip(node), all_at_once }
    }

    fn took(&self, node: NodeId, elapsed: Duration) {
        let mut round_trips = self.round_trips.lock();
        let smoothed = round_trips.entry(node).or_insert(elapsed);
        *smoothed = (*smoothed * 7 + elapsed) / 8;
    }

    /// Keeps in mind whether the node answered at all, and who leads.
    fn heard<T>(&self, shard: ShardId, node: NodeId, result: &Result<T, Failed>) {
        match result {
            Err(Failed::Unreachable(_) | Failed::Unknown(_)) => drop(self.silent.lock().insert(node, Instant::now())),
            _ => drop(self.silent.lock().remove(&node)),
        }
        let Err(failed) = result else { return };
        let mut leaders = self.leaders.lock();
        match failed {
            Failed::NotLeader(Some(hint)) if *hint != node => drop(leaders.insert(shard, *hint)),
            _ if leaders.get(&shard) == Some(&node) => drop(leaders.remove(&shard)),
            _ => {}
        }
    }

    /// They were asked, and others were faster.
    fn were_late(&self, nodes: Vec<NodeId>) {
        self.silent.lock().extend(nodes.into_iter().map(|node| (node, Instant::now())));
    }

    fn found_leader(&self, shard: ShardId, leader: NodeId) {
        self.leaders.lock().insert(shard, leader);
    }

    fn client(&self, node: NodeId) -> Result<ShardClient<tonic::transport::Channel>, Failed> {
        let channel = self.peers.requests(node);
        let none = || Failed::NotDone(format!("node {node} is not known"));
        let client = ShardClient::new(channel.ok_or_else(none)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn try_write(
        &self,
        Try { node, late, .. }: Try,
        shard: (ShardId, Epoch),
        write: &Write,
        retry: bool,
    ) -> Result<WriteOutcome, Failed> {
        let timeout = self.attempt_timeout(node);
        if Some(node) == self.local_node
            && let Some(LocalShard::Voter(voter)) = self.local.get(&shard.0)
        {
            let request = WriteRequest {
                database: write.database,
                request_id: write.request_id,
                transaction: write.transaction.clone(),
                retry,
            };
            let Ok(reply) = tokio::time::timeout(timeout, voter.write(request, late)).await else {
                return Err(Failed::Unknown("this node does not answer itself".to_owned()));
            };
            return match reply {
                WriteReply::Done(outcome) => Ok(outcome),
                WriteReply::NotLeader(leader) => Err(Failed::NotLeader(leader)),
                WriteReply::NotCommitted(reason) => Err(Failed::NotDone(reason)),
                WriteReply::Unknown => Err(Failed::Unknown("leadership was lost".to_owned())),
            };
        }
        let request = wire::WriteRequest {
            group: Some(shard_epoch(shard)),
            database: Bytes::copy_from_slice(&write.database.0),
            request_id: Bytes::copy_from_slice(&write.request_id.0),
            write: Some(transaction_to_wire(&write.transaction)),
            retry,
            late_leader: late.unwrap_or(0),
        };
        let asked = Instant::now();
        let response = attempt(timeout, self.client(node)?.write(request)).await?;
        self.took(node, asked.elapsed());
        use write_response::Result as Wire;
        match response.result {
            Some(Wire::Committed(stamp)) => match Versionstamp::from_slice(&stamp) {
                Some(stamp) => Ok(WriteOutcome::Committed(stamp)),
                None => Err(Failed::Unknown("a malformed versionstamp".to_owned())),
            },
            Some(Wire::CheckFailed(failed)) => Ok(WriteOutcome::CheckFailed(failed.indexes)),
            Some(Wire::Rejected(text)) => Ok(WriteOutcome::Rejected(text)),
            Some(Wire::NotLeader(hint)) => Err(not_leader(&hint)),
            Some(Wire::NotCommitted(reason)) => Err(Failed::NotDone(reason)),
            Some(Wire::Unknown(reason)) => Err(Failed::Unknown(reason)),
            None => Err(Failed::Unknown("an empty answer".to_owned())),
        }
    }

    async fn try_read(&self, node: NodeId, shard: (ShardId, Epoch), read: &Read) -> Result<Shown, Failed> {
        let strong = read.consistency == Consistency::Strong;
        let min_sequence = self.min_sequence(shard.0);
        if Some(node) == self.local_node
            && let Some(local) = self.local.get(&shard.0)
        {
            let reply = match &local {
                LocalShard::Voter(voter) if strong => {
                    let read = voter.read_strong(read.database, &read.ranges);
                    let read = tokio::time::timeout(self.attempt_timeout(node), read).await;
                    read.unwrap_or_else(|_| ReadReply::Unavailable("this node does not answer itself".to_owned()))
                }
                LocalShard::Replica(_) if strong => ReadReply::NotLeader(None),
                local => local.read_eventual(read.database, &read.ranges, min_sequence).await,
            };
            return match reply {
                ReadReply::Done(view) => Ok(Shown { view, epoch: local.epoch(), leader: local.leader() }),
                ReadReply::NotLeader(leader) => Err(Failed::NotLeader(leader)),
                ReadReply::Unavailable(reason) => Err(Failed::NotDone(reason)),
            };
        }
        let request = wire::ReadRequest {
            group: Some(shard_epoch(shard)),
            database: Bytes::copy_from_slice(&read.database.0),
            strong,
            ranges: read.ranges.iter().map(read_range_to_wire).collect(),
            min_sequence,
        };
        let asked = Instant::now();
        let response = attempt(self.attempt_timeout(node), self.client(node)?.read(request)).await?;
        self.took(node, asked.elapsed());
        match response.result {
            Some(read_response::Result::Output(output)) => {
                let malformed = |error: meridian_proto::InvalidTransaction| Failed::Unknown(error.to_string());
                let range = |range: meridian_proto::kv_connect::ReadRangeOutput| {
                    range.values.into_iter().map(entry).collect::<Result<Vec<_>, _>>().map_err(malformed)
                };
                let ranges = output.ranges.into_iter().map(range).collect::<Result<_, _>>()?;
                let epoch = u16::try_from(output.epoch).map_err(|_| Failed::Unknown("a malformed epoch".to_owned()))?;
                let view = ReadView { ranges, sequence: output.sequence };
                Ok(Shown { view, epoch: Epoch(epoch), leader: Some(output.leader).filter(|leader| *leader != 0) })
            }
            Some(read_response::Result::NotLeader(hint)) => Err(not_leader(&hint)),
            Some(read_response::Result::Unavailable(reason)) => Err(Failed::NotDone(reason)),
            None => Err(Failed::Unknown("an empty answer".to_owned())),
        }
    }

    /// Nodes to read from, in order. Strong: a voter here answers by itself; else the leader. Eventual: this
    /// node, then those of this region, then any.
    fn readers(&self, shard: ShardId, consistency: Consistency) -> Vec<NodeId> {
        let local_voter = matches!(self.local.get(&shard), Some(LocalShard::Voter(_)));
        if consistency == Consistency::Strong {
            let mut voters = self.voters(shard);
            if local_voter {
                voters.sort_by_key(|voter| Some(*voter) != self.local_node);
            }
            return voters;
        }
        let topology = self.directory.topology();
        let mut nodes: Vec<_> = topology.nodes.values().collect();
        let round_trips = self.round_trips.lock().clone();
        nodes.sort_by_key(|node| {
            let far = round_trips.get(&node.id).copied().unwrap_or_default();
            let elsewhere = node.region != self.region;
            (Some(node.id) != self.local_node, self.is_silent(node.id), elsewhere, far, node.id)
        });
        nodes.iter().map(|node| node.id).collect()
    }
}

impl Database for Router {
    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        let started = Instant::now();
        let strong = read.consistency == Consistency::Strong;
        let mut lost = None;
        loop {
            // Anew each time: it may have moved on.
            let shard = self.shard(read.database)?;
            let round = hedge::round(
                self.readers(shard.0, read.consistency),
                lost,
                self.hedging(strong),
                |attempt| self.try_read(attempt.node, shard, &read),
                |_, _| true,
                |node, tried| self.heard(shard.0, node, tried),
            );
            match round.await {
                Round::Answer { answer: Shown { view, epoch, leader }, late, .. } => {
                    self.were_late(late);
                    if !strong {
                        self.has_shown(shard.0, epoch, view.sequence);
                    } else if let Some(leader) = leader {
                        self.found_leader(shard.0, leader);
                    }
                    return Ok(ReadOutput { ranges: view.ranges });
                }
                Round::Nothing { reason, .. } if started.elapsed() >= self.deadline => {
                    return Err(unavailable(format!("shard {} cannot be read now: {reason}", shard.0)));
                }
                Round::Nothing { lost: late, .. } => {
                    lost = late;
                    self.pause(started.elapsed()).await;
                }
            }
        }
    }

    /// Tries the leader, and goes on with the same request id until the outcome is known: what was tried
    /// and is unknown may have committed, and whoever leads next can tell.
    ///
    /// No later than ids may be forgotten, however long this process stood still: nothing is sent again then.
    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        let started = boot_time();
        let elapsed = || boot_time().saturating_sub(started);
        let (mut unknown, mut lost) = (None, None);
        loop {
            // Anew each time: a new epoch knows the request ids of those before.
            let shard = self.shard(write.database)?;
            let retried = unknown.is_some();
            let round = hedge::round(
                self.voters(shard.0),
                lost,
                self.hedging(true),
                |attempt| {
                    let retry = retried || attempt.overlaps;
                    let too_late = retry && elapsed() >= UNKNOWN_DEADLINE;
                    let tried = self.try_write(attempt, shard, &write, retry);
                    async move {
                        if too_late {
                            return Err(Failed::Unknown("its outcome may be forgotten by now".to_owned()));
                        }
                        Ok((tried.await?, retry))
                    }
                },
                // What did not commit is binding once it is logged: else a try that overtook it may commit yet.
                |(outcome, logged), overtaken| *logged || !overtaken || matches!(outcome, WriteOutcome::Committed(_)),
                |node, tried| self.heard(shard.0, node, tried),
            );
            match round.await {
                Round::Answer { node, answer: (outcome, _), late } => {
                    self.were_late(late);
                    self.found_leader(shard.0, node);
                    return Ok(outcome);
                }
                Round::Nothing { reason, unknown: true, lost: late } => (unknown, lost) = (Some(reason), late),
                Round::Nothing { reason, .. } if unknown.is_none() && elapsed() >= self.deadline => {
                    let reason = format!("shard {} cannot be written now: {reason}", shard.0);
                    return Err(WriteFailure::NotCommitted(unavailable(reason)));
                }
                Round::Nothing { lost: late, .. } => lost = late,
            }
            match unknown.take_if(|_| elapsed() >= UNKNOWN_DEADLINE) {
                Some(why) => return Err(WriteFailure::Unknown(why)),
                None => self.pause(elapsed()).await,
            }
        }
    }
}

fn pause(elapsed: Duration) -> Duration {
    (elapsed / 20).clamp(MIN_PAUSE, MAX_PAUSE)
}

fn unavailable(reason: String) -> Unavailable {
    Unavailable { reason }
}

fn not_leader(hint: &wire::NotLeader) -> Failed {
    Failed::NotLeader(Some(hint.leader).filter(|leader| *leader != 0))
}

fn shard_epoch((shard, epoch): (ShardId, Epoch)) -> wire::ShardEpoch {
    wire::ShardEpoch { shard: shard.0, epoch: epoch.0.into() }
}

/// One call. What failed before a connection was there did nothing; any other failure may have.
async fn attempt<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if is_refusal(&status) => Err(Failed::NotDone(status.message().to_owned())),
        Ok(Err(status)) if never_connected(&status) => Err(Failed::Unreachable(status.message().to_owned())),
        Ok(Err(status)) => Err(Failed::Unknown(status.message().to_owned())),
        Err(_) => Err(Failed::Unknown(format!("no answer within {} ms", timeout.as_millis()))),
    }
}

/// Whether the node refused the call before it looked at it: no such shard there, another epoch, a malformed
/// field.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument)
}

/// Whether the call never got a connection.
fn never_connected(status: &Status) -> bool {
    use std::error::Error;
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
