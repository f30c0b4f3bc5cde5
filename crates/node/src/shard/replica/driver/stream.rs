//! One subscription of a replica, as events for its driver.

use std::sync::Arc;

use meridian_net::MAX_MESSAGE_BYTES;
use meridian_proto::shipping::{
    self as wire, shipment, shipping_client::ShippingClient, subscribe_request,
};
use meridian_shipping::{Heartbeat, StreamEvent, StreamId};
use meridian_storage::ShardState;
use meridian_types::{NodeId, Position};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Driver, OpenStream};
use crate::replication::compression::{DECOMPRESSOR_BYTES, Decompressor};
use crate::replication::shipped_batch::{Shipped, unpack};
use crate::replication::wire::{heartbeat_from_wire, position_to_wire};

/// An event of a stream, with the batch where it is one.
pub(super) struct Incoming {
    pub(super) stream: StreamId,
    pub(super) event: StreamEvent,
    pub(super) shipped: Option<Shipped>,
}

impl Driver {
    /// Opens a stream in the place of the present one.
    pub(super) fn connect(&mut self, stream: StreamId, source: NodeId, from: Position) {
        if let Some(old) = self.stream.take() {
            old.task.abort();
        }
        let memory = self.parts.streams.try_take(DECOMPRESSOR_BYTES).ok();
        let start = wire::Start {
            shard: self.group().shard.0,
            epoch: self.group().epoch.0.into(),
            node_id: self.parts.node_id.0,
            durable: Some(position_to_wire(from)),
            keeps_window: memory.is_some(),
        };
        let (reports, requests) = mpsc::channel(64);
        let message = Some(subscribe_request::Message::Start(start));
        reports.try_send(wire::SubscribeRequest { message }).ok();
        let channel = self.parts.peers.shipping(source);
        let (events, state) = (self.streams.clone(), Arc::clone(&self.parts.state));
        let decompressor = Decompressor::new(memory);
        let task = tokio::spawn(async move {
            if let Some(channel) = channel
                && let Err(status) =
                    read_stream(channel, requests, decompressor, &state, stream, &events).await
            {
                tracing::debug!(%source, %status, "a log stream ended");
            }
            let closed = Incoming { stream, event: StreamEvent::Closed, shipped: None };
            drop(events.send(closed).await);
        });
        self.stream = Some(OpenStream { id: stream, source, reports, task });
    }
}

/// Turns one subscription into events, until it ends.
async fn read_stream(
    channel: tonic::transport::Channel,
    requests: mpsc::Receiver<wire::SubscribeRequest>,
    mut decompressor: Decompressor,
    state: &ShardState,
    stream: StreamId,
    events: &mpsc::Sender<Incoming>,
) -> Result<(), tonic::Status> {
    let mut client = ShippingClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut shipments = client.subscribe(ReceiverStream::new(requests)).await?.into_inner();
    let malformed =
        |what: &str| tonic::Status::invalid_argument(format!("malformed shipment: {what}"));
    while let Some(shipment) = shipments.message().await? {
        let mut found = Vec::new();
        match shipment.message.ok_or_else(|| malformed("empty"))? {
            shipment::Message::OpenedEpoch(epoch) => {
                let epoch = u16::try_from(epoch).map_err(|_| malformed("epoch"))?;
                found.push((StreamEvent::Connected { epoch: meridian_types::Epoch(epoch) }, None));
            }
            shipment::Message::Heartbeat(heartbeat) => {
                let heartbeat: Heartbeat =
                    heartbeat_from_wire(heartbeat).ok_or_else(|| malformed("heartbeat"))?;
                found.push((StreamEvent::Heartbeat(heartbeat), None));
            }
            shipment::Message::SnapshotNeeded(needed) => {
                found.push((StreamEvent::SnapshotNeeded { diverged: needed.diverged }, None));
            }
            shipment::Message::Batches(batches) => {
                metrics::counter!("meridian_shipping_received_wire_bytes_total")
                    .increment(batches.zstd.len() as u64);
                let (mut previous, batches) = unpack(state, &mut decompressor, &batches)
                    .map_err(|error| malformed(&error))?;
                for shipped in batches {
                    let (position, bytes) = (shipped.position(), shipped.bytes.len() as u64);
                    found.push((StreamEvent::Batch { position, previous, bytes }, Some(shipped)));
                    previous = position;
                }
            }
        }
        for (event, shipped) in found {
            if events.send(Incoming { stream, event, shipped }).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
