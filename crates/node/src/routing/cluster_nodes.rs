//! The nodes of the cluster: that of this process, and the others over gRPC.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt, TryStreamExt};
use meridian_gateway::{
    Changed, ChangesWanted, QueueList, QueuePage, Read, Reports, Room, Write, size_of_news,
};
use meridian_memory::Held;
use meridian_proto::changes::changes_client::ChangesClient;
use meridian_proto::queue::queue_client::QueueClient;
use meridian_proto::shard::{self as wire, shard_client::ShardClient, write_response};
use meridian_proto::{node_id, node_id_to_wire, read_range_to_wire, transaction_to_wire};
use meridian_queue::Answer;
use meridian_types::{Consistency, Epoch, NodeId, ShardId, Versionstamp, WriteOutcome};
use prost::Message;
use tokio::sync::Notify;

use crate::changes::{ChangeLogs, NotGiven, wire as changes};
use crate::cluster_view::epoch_lease::Fenced;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::network::peers::PeerChannels;
use crate::queues::Listener;
use crate::read::execution::Reads;
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::routing::list_calls;
use crate::routing::nodes::{
    Answering, Feeding, LocalVoter, Nodes, ToldStream, Wanted, WriteTry, Written,
};
use crate::routing::queue_calls::{self, Over};
use crate::routing::read_answer;
use crate::routing::watch_news;
use crate::routing::write_calls::WriteCalls;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::watches::Watches;
use crate::write::proposer::{WriteReply, WriteRequest};

/// How a gateway reaches nodes.
pub(crate) struct ClusterNodes {
    /// Empty beside an application, where no node runs.
    pub(crate) local: Arc<ShardTable>,
    pub(crate) local_node: Option<NodeId>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) writes: Arc<WriteCalls>,
    /// For answers of other nodes.
    pub(crate) reads: Reads,
    /// Of the node here.
    pub(crate) changes: Arc<ChangeLogs>,
    pub(crate) watches: Arc<Watches>,
}

type Client = ShardClient<tonic::transport::Channel>;

impl ClusterNodes {
    fn client(&self, node: NodeId) -> Result<Client, Failed> {
        let channel = self.peers.requests(node);
        let client = ShardClient::new(channel.ok_or_else(|| unknown_node(node))?);
        Ok(client.max_decoding_message_size(read_answer::MAX_PART_BYTES))
    }

    fn here(&self, node: NodeId, shard: ShardId) -> Option<LocalShard> {
        (Some(node) == self.local_node).then(|| self.local.get(&shard)).flatten()
    }
}

impl Nodes for ClusterNodes {
    fn local_voter(&self, shard: ShardId) -> Option<LocalVoter> {
        match self.local.get(&shard)? {
            LocalShard::Voter(voter) => {
                Some(LocalVoter { leader: LocalShard::Voter(voter).leader() })
            }
            LocalShard::Replica(_) => None,
        }
    }

    fn write(
        &self,
        shard: (ShardId, Epoch),
        write: &Arc<Write>,
        attempt: WriteTry,
        departure: Arc<Departure>,
    ) -> impl Future<Output = Result<Written, Failed>> + Send + 'static {
        let WriteTry { node, retry, in_turn, late, pass_on, expires_at } = attempt;
        if let Some(LocalShard::Voter(voter)) = self.here(node, shard.0) {
            let request = WriteRequest {
                database: write.database,
                request_id: write.request_id,
                transaction: write.transaction.clone(),
                retry,
            };
            departure.leave();
            return async move { written(voter.write_when_led(request, late, expires_at).await) }
                .boxed();
        }
        let mut request = wire::WriteRequest {
            group: Some(shard_epoch(shard)),
            database: Bytes::copy_from_slice(&write.database.0),
            request_id: Bytes::copy_from_slice(&write.request_id.0),
            transaction: Some(transaction_to_wire(&write.transaction)),
            retry,
            late_leader: node_id_to_wire(late),
            pass_on,
            valid_until: None,
            turn: None,
        };
        // Now, since tries are made in the order of the requests.
        let first =
            in_turn.then(|| self.writes.next_turn(node, shard.0, request.encoded_len() as u64));
        request.turn = first.as_ref().map(|first| first.turn);
        let writes = Arc::clone(&self.writes);
        async move {
            let _under_way = first;
            written_from_wire(writes.call(node, request, expires_at, &departure).await?)
        }
        .boxed()
    }

    fn read(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        read: &Arc<Read>,
        min_sequence: u64,
        working: Arc<Notify>,
        room: Option<Held>,
    ) -> BoxFuture<'static, Result<Answering, Failed>> {
        let strong = read.consistency == Consistency::Strong;
        if let Some(local) = self.here(node, shard.0) {
            let reading = read_here(local, Arc::clone(read), min_sequence);
            return async move { read_answer::while_working(reading, &working).await }.boxed();
        }
        let request = wire::ReadRequest {
            group: Some(shard_epoch(shard)),
            database: Bytes::copy_from_slice(&read.database.0),
            strong,
            ranges: read.ranges.iter().map(read_range_to_wire).collect(),
            min_sequence,
        };
        let room = read_answer::Room { reads: self.reads.clone(), held: room };
        let mut client = match self.client(node) {
            Ok(client) => client,
            Err(failed) => return ready(Err(failed)).boxed(),
        };
        async move {
            let parts = client.read(request).await.map_err(Failed::from_status)?.into_inner();
            read_answer::begun(parts, &working, room).await
        }
        .boxed()
    }

    fn changes(
        &self,
        node: NodeId,
        shard: ShardId,
        wanted: &ChangesWanted,
        min_sequence: u64,
    ) -> BoxFuture<'static, Result<Result<Changed, NotGiven>, Failed>> {
        if let Some(local) = self.here(node, shard) {
            let (logs, wanted) = (Arc::clone(&self.changes), wanted.clone());
            return async move { Ok(logs.next(&local, &wanted, min_sequence).await) }.boxed();
        }
        // Most questions wait for a change, as watches do.
        let Some((channel, open)) = self.peers.watches(node) else {
            return ready(Err(unknown_node(node))).boxed();
        };
        let mut client =
            ChangesClient::new(channel).max_decoding_message_size(changes::MAX_ANSWER_BYTES);
        let request = changes::request(shard, wanted, min_sequence);
        async move {
            let _open = open;
            let answer = client.next(request).await.map_err(Failed::from_status)?.into_inner();
            let malformed = |field| Failed::Unknown(format!("a malformed answer: {field}"));
            changes::answer(answer).map_err(malformed)
        }
        .boxed()
    }

    fn watch(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        wanted: Wanted,
        room: Room,
    ) -> BoxFuture<'static, Result<Feeding, Failed>> {
        if let Some(local) = self.here(node, shard.0) {
            return watch_here(Arc::clone(&self.watches), local, shard.1, wanted, room).boxed();
        }
        let Some((channel, open)) = self.peers.watches(node) else {
            return ready(Err(unknown_node(node))).boxed();
        };
        let client = ShardClient::new(channel);
        let client = client.max_decoding_message_size(read_answer::MAX_PART_BYTES);
        let request = watch_news::request(shard_epoch(shard), &wanted);
        watch_news::begun(client, request, room, open).boxed()
    }

    fn listen(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        listener: Listener,
    ) -> BoxFuture<'static, Result<ToldStream, Over>> {
        if let Some(local) = self.here(node, shard.0) {
            return async move {
                let LocalShard::Voter(voter) = local else {
                    return Err(Over::Failed(Failed::NotLeader(None)));
                };
                let session = voter.queues().listen(listener).await.map_err(queue_calls::over)?;
                Ok(session.into_parts().map(queue_calls::told).boxed())
            }
            .boxed();
        }
        let Some((channel, open)) = self.peers.listeners(node) else {
            return ready(Err(Over::Failed(unknown_node(node)))).boxed();
        };
        let request = queue_calls::listener_to_wire(shard_epoch(shard), &listener);
        let (messages, database) = (self.reads.messages().clone(), listener.queue.database);
        async move {
            let parts = QueueClient::new(channel).listen(request).await;
            let failed = |status| Over::Failed(Failed::from_status(status));
            let told = move |part: Result<_, tonic::Status>| {
                let _open = &open;
                let told = queue_calls::told_from_wire(part.map_err(failed)?)?;
                queue_calls::held_by(&messages, database, told)
            };
            let mut parts = parts.map_err(failed)?.into_inner().map(told).boxed();
            match parts.next().await {
                Some(Ok(_)) => Ok(parts),
                Some(Err(over)) => Err(over),
                None => Err(Over::Failed(Failed::Unknown("an empty answer".to_owned()))),
            }
        }
        .boxed()
    }

    fn report(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        reports: &Reports,
    ) -> BoxFuture<'static, Result<Vec<Answer>, Failed>> {
        if let Some(local) = self.here(node, shard.0) {
            let Reports { queue, listener, reports } = reports.clone();
            return async move {
                let LocalShard::Voter(voter) = local else { return Err(Failed::NotLeader(None)) };
                let answers = voter.queues().report(queue, listener, reports).await;
                answers.map_err(queue_calls::failed)
            }
            .boxed();
        }
        let Some(channel) = self.peers.requests(node) else {
            return ready(Err(unknown_node(node))).boxed();
        };
        let request = queue_calls::reports_to_wire(shard_epoch(shard), reports);
        async move {
            let answer = QueueClient::new(channel).report(request).await;
            queue_calls::answers(answer.map_err(Failed::from_status)?.into_inner())
        }
        .boxed()
    }

    fn list_queue(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        list: &QueueList,
    ) -> BoxFuture<'static, Result<QueuePage, Failed>> {
        if let Some(local) = self.here(node, shard.0) {
            let list = list.clone();
            return async move {
                let LocalShard::Voter(voter) = local else { return Err(Failed::NotLeader(None)) };
                let page = voter.queues().list(list).await.map_err(queue_calls::failed)?;
                Ok(page.into_inner())
            }
            .boxed();
        }
        let Some(channel) = self.peers.requests(node) else {
            return ready(Err(unknown_node(node))).boxed();
        };
        let request = list_calls::list_to_wire(shard_epoch(shard), list);
        async move {
            let answer = QueueClient::new(channel).list(request).await;
            list_calls::page(answer.map_err(Failed::from_status)?.into_inner())
        }
        .boxed()
    }
}

async fn watch_here(
    watches: Arc<Watches>,
    local: LocalShard,
    epoch: Epoch,
    wanted: Wanted,
    room: Room,
) -> Result<Feeding, Failed> {
    let Wanted { database, keys, shown, min_sequence } = wanted;
    let watcher = watches.begin(&local, (database, &keys, &shown), (epoch, min_sequence)).await;
    let mut watcher = watcher.map_err(not_served)?;
    let refused = |refusal: ReadRefusal| Failed::NotDone(refusal.to_string());
    // A watch of the state here ends with an error only.
    let first = watcher.next().await.unwrap_or(Err(ReadRefusal::Stopping)).map_err(refused)?;
    let kept = room.take(size_of_news(&first.values));
    Ok(kept.map(|kept| (first, kept, watcher.map_err(refused).boxed())))
}

fn not_served(not_served: NotServed) -> Failed {
    match not_served {
        NotServed::NotLeader(leader) => Failed::NotLeader(leader),
        NotServed::Refused(refusal) => Failed::NotDone(refusal.to_string()),
    }
}

fn unknown_node(node: NodeId) -> Failed {
    Failed::NotDone(format!("node {node} is not known"))
}

async fn read_here(
    local: LocalShard,
    read: Arc<Read>,
    min_sequence: u64,
) -> Result<Answering, Failed> {
    let reply = match &local {
        LocalShard::Voter(voter) if read.consistency == Consistency::Strong => {
            voter.read_strong(read.database, &read.ranges).await.map(Fenced::into_inner)
        }
        LocalShard::Replica(_) if read.consistency == Consistency::Strong => {
            Err(NotServed::NotLeader(None))
        }
        local => local.read_eventual(read.database, &read.ranges, min_sequence).await,
    };
    match reply {
        Ok(view) => Ok(Answering {
            position: view.position,
            leader: local.leader(),
            ranges: Box::pin(ready(Ok(view.ranges))) as BoxFuture<'static, _>,
        }),
        Err(refused) => Err(not_served(refused)),
    }
}

fn written(reply: WriteReply) -> Result<Written, Failed> {
    match reply {
        WriteReply::Done(outcome) => Ok(Written { outcome: outcome.into_inner(), leader: None }),
        WriteReply::NotLeader(leader) => Err(Failed::NotLeader(leader)),
        WriteReply::NotCommitted(refusal) if refusal.is_of_its_database() => {
            Err(Failed::Busy(refusal.to_string()))
        }
        WriteReply::NotCommitted(refusal) => Err(Failed::NotDone(refusal.to_string())),
        WriteReply::Unknown => Err(Failed::Unknown("leadership was lost".to_owned())),
    }
}

pub(crate) fn written_from_wire(response: wire::WriteResponse) -> Result<Written, Failed> {
    use write_response::Result as Wire;
    let outcome = match response.result {
        Some(Wire::Committed(stamp)) => match Versionstamp::from_slice(&stamp) {
            Some(stamp) => WriteOutcome::Committed(stamp),
            None => return Err(Failed::Unknown("a malformed versionstamp".to_owned())),
        },
        Some(Wire::CheckFailed(failed)) => WriteOutcome::CheckFailed(failed.indexes),
        Some(Wire::Rejected(text)) => WriteOutcome::Rejected(text),
        Some(Wire::NotLeader(hint)) => return Err(Failed::NotLeader(node_id(hint.leader))),
        Some(Wire::NotCommitted(reason)) if response.busy => return Err(Failed::Busy(reason)),
        Some(Wire::NotCommitted(reason)) => return Err(Failed::NotDone(reason)),
        Some(Wire::Unknown(reason)) => return Err(Failed::Unknown(reason)),
        Some(Wire::ClockUnknown(_)) => {
            return Err(Failed::NotDone("its clock is not known".to_owned()));
        }
        None => return Err(Failed::Unknown("an empty answer".to_owned())),
    };
    Ok(Written { outcome, leader: node_id(response.leader) })
}

fn shard_epoch((shard, epoch): (ShardId, Epoch)) -> wire::ShardEpoch {
    wire::ShardEpoch { shard: shard.0, epoch: epoch.0.into() }
}

#[cfg(test)]
mod tests;
