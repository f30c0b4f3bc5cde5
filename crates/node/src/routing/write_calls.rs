//! How a write travels to another node: in order, and no later than its id may be forgotten.
//!
//! A process may be suspended at any moment, and what it has sent may lie in a socket meanwhile. So
//! that it is old is found by the node that carries it out, on a clock of its own: a node says with
//! each answer what its clock shows, and is told in its own time how long a request is valid.

mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_proto::shard::{self as wire, shard_client::ShardClient, write_response};
use meridian_types::{NodeId, ShardId};
use parking_lot::Mutex;
use tonic::Status;

use crate::host::clock::boot_time;
use crate::network::call_failure::Failed;
use crate::network::departure::{Departing, Departure};
use crate::network::peers::PeerChannels;
use crate::routing::read_answer::MAX_PART_BYTES;
use crate::time_budget::CLOCK_KNOWN_FOR;

pub(crate) use turns::Turns;

/// This moment, as other nodes may speak of it to this process.
pub(crate) fn clock() -> wire::ProcessTime {
    wire::ProcessTime { process: process(), millis: millis(boot_time()) }
}

fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    *PROCESS.get_or_init(rand::random)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Until when, on this process's clock; `None` if that is not known.
pub(crate) fn valid_until(wire: Option<wire::ProcessTime>) -> Option<Duration> {
    wire.filter(|time| time.process == process()).map(|time| Duration::from_millis(time.millis))
}

#[derive(Clone, Copy)]
struct Sample {
    clock: wire::ProcessTime,
    /// When it was here, on this process's clock: the node's showed what it says before that.
    received: Duration,
}

impl Sample {
    /// No later than `at` of this process's clock, on the other one.
    fn translate(&self, at: Duration, now: Duration) -> Option<wire::ProcessTime> {
        if now.saturating_sub(self.received) > CLOCK_KNOWN_FOR {
            return None;
        }
        let millis = (self.clock.millis + millis(at)).saturating_sub(millis(self.received) + 1);
        Some(wire::ProcessTime { millis, ..self.clock })
    }
}

/// Numbers for the writes to one shard at one node.
struct Sender {
    sender: u64,
    last: u64,
    /// Bytes of first tries that are under way.
    under_way: Arc<AtomicU64>,
}

/// A first try that is under way, until this is dropped.
pub(crate) struct FirstTry {
    pub(crate) turn: wire::Turn,
    bytes: u64,
    under_way: Arc<AtomicU64>,
}

impl Drop for FirstTry {
    fn drop(&mut self) {
        self.under_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Calls other nodes with writes.
pub(crate) struct WriteCalls {
    peers: Arc<PeerChannels>,
    samples: Mutex<HashMap<NodeId, Sample>>,
    senders: Mutex<HashMap<(NodeId, ShardId), Sender>>,
}

impl WriteCalls {
    pub(crate) fn new(peers: Arc<PeerChannels>) -> Self {
        Self { peers, samples: Mutex::default(), senders: Mutex::default() }
    }

    /// The place of a first try of so many bytes among those to this node.
    pub(crate) fn next_turn(&self, node: NodeId, shard: ShardId, bytes: u64) -> FirstTry {
        let mut senders = self.senders.lock();
        let sender = senders.entry((node, shard)).or_insert_with(|| Sender {
            sender: rand::random(),
            last: 0,
            under_way: Arc::default(),
        });
        sender.last += 1;
        let bytes_ahead = sender.under_way.fetch_add(bytes, Ordering::Relaxed);
        let turn = wire::Turn { sender: sender.sender, number: sender.last, bytes_ahead };
        FirstTry { turn, bytes, under_way: Arc::clone(&sender.under_way) }
    }

    /// `valid_until`: on this process's clock. Nothing is sent once it was taken back from
    /// `departure`.
    pub(crate) async fn call(
        &self,
        node: NodeId,
        mut request: wire::WriteRequest,
        valid_until: Duration,
        departure: &Arc<Departure>,
    ) -> Result<wire::WriteResponse, Failed> {
        let channel = self.peers.requests(node);
        let channel =
            channel.ok_or_else(|| Failed::NotDone(format!("node {node} is not known")))?;
        let channel = Departing { channel, departure: Arc::clone(departure) };
        let mut client = ShardClient::new(channel).max_decoding_message_size(MAX_PART_BYTES);
        // Once more when the node had to say what its clock shows.
        for _ in 0..2 {
            let known = self.samples.lock().get(&node).copied();
            request.valid_until =
                known.and_then(|sample| sample.translate(valid_until, boot_time()));
            let response = client.write(request.clone()).await;
            let response = response.map_err(|status| failed(status, departure))?.into_inner();
            if let Some(clock) = response.clock {
                self.samples.lock().insert(node, Sample { clock, received: boot_time() });
            }
            if !matches!(response.result, Some(write_response::Result::ClockUnknown(_))) {
                return Ok(response);
            }
            departure.come_back();
        }
        Err(Failed::NotDone(format!("node {node} does not say what its clock shows")))
    }
}

/// A write that has not left by then did nothing, whatever its call failed of.
fn failed(status: Status, departure: &Departure) -> Failed {
    match Failed::from_status(status) {
        Failed::Unknown(reason) => departure.not_answered(reason),
        failed => failed,
    }
}

#[cfg(test)]
mod tests;
