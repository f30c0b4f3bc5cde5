//! How the answer to a read travels: in parts, each bounded, as fast as the receiver takes them.
//!
//! The largest legal answer has 1,000 entries of 64 KiB under keys of 2 KiB, 68 MB, which no single
//! message between nodes holds. Time is counted to the first byte, and then from one part to the
//! next.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use meridian_memory::Held;
use meridian_proto::shard::{self as wire, read_part::Part};
use meridian_proto::{entry, entry_to_wire, node_id, node_id_to_wire};
use meridian_storage::ReadView;
use meridian_types::{Entry, Epoch, NodeId, Position};
use tokio::sync::Notify;
use tonic::{Status, Streaming};

use crate::network::call_failure::Failed;
use crate::read::execution::weight;
use crate::read::execution::{Reads, hold_with_last};
use crate::read::refusal::NotServed;
use crate::routing::nodes::{Answering, BrokenOff};
use crate::time_budget::WORKING_EVERY;

/// Of the entries of one part, about. Small beside what a slow link carries in the time that it is
/// waited for.
const PART_BYTES: usize = 256 << 10;
/// A part may have one entry more than that.
pub(crate) const MAX_PART_BYTES: usize = 1 << 20;
/// Of all entries of an answer: 1,000 of the largest. The least that a process may have for reads
/// is as much.
const MAX_ANSWER_BYTES: usize = 68 << 20;
/// Until the next part comes.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for `reply` here, and says meanwhile that it is worked at, as [`parts`] does for another
/// node.
pub(crate) async fn while_working<T>(reply: impl Future<Output = T>, working: &Notify) -> T {
    let mut reply = pin!(reply);
    loop {
        match tokio::time::timeout(WORKING_EVERY, &mut reply).await {
            Ok(reply) => return reply,
            Err(_) => working.notify_one(),
        }
    }
}

/// The parts of the answer that `reply` gives. To drop the stream ends the work on it.
pub(crate) fn parts(
    reply: impl Future<Output = (Result<ReadView, NotServed>, Option<NodeId>)> + Send + 'static,
) -> BoxStream<'static, Result<wire::ReadPart, Status>> {
    let reply: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(reply);
    let working = stream::unfold(Some(reply), |reply| async {
        let mut reply = reply?;
        match tokio::time::timeout(WORKING_EVERY, &mut reply).await {
            Err(_) => Some((
                stream::iter(vec![Part::Working(wire::Working {})]).left_stream(),
                Some(reply),
            )),
            Ok((reply, leader)) => Some((stream::iter(answer(reply, leader)).right_stream(), None)),
        }
    });
    working.flatten().map(|part| Ok(wire::ReadPart { part: Some(part) })).boxed()
}

fn answer(
    reply: Result<ReadView, NotServed>,
    leader: Option<NodeId>,
) -> Box<dyn Iterator<Item = Part> + Send> {
    match reply {
        Ok(view) => Box::new(view_parts(view, leader)),
        Err(NotServed::NotLeader(leader)) => {
            Box::new(std::iter::once(Part::NotLeader(wire::NotLeader {
                leader: node_id_to_wire(leader),
            })))
        }
        Err(NotServed::Refused(refusal)) => {
            Box::new(std::iter::once(Part::Unavailable(refusal.to_string())))
        }
    }
}

/// Encoded as they are taken: an answer that is on its way exists once.
fn view_parts(view: ReadView, leader: Option<NodeId>) -> impl Iterator<Item = Part> + Send {
    let entries: usize = view.ranges.iter().map(Vec::len).sum();
    let head = wire::ReadHead {
        ranges: u32::try_from(view.ranges.len()).unwrap_or(u32::MAX),
        entries: u32::try_from(entries).unwrap_or(u32::MAX),
        sequence: view.position.sequence,
        epoch: view.position.epoch.0.into(),
        leader: node_id_to_wire(leader),
        bytes: view.ranges.iter().flatten().map(|entry| weight(entry) as u64).sum(),
    };
    let ranges = view.ranges.into_iter().zip(0..).flat_map(|(entries, range)| {
        let mut entries = entries.into_iter();
        std::iter::from_fn(move || {
            let (mut values, mut bytes) = (Vec::new(), 0);
            while bytes < PART_BYTES
                && let Some(entry) = entries.next()
            {
                bytes += weight(&entry);
                values.push(entry_to_wire(entry));
            }
            (!values.is_empty()).then_some(Part::Entries(wire::ReadEntries { range, values }))
        })
    });
    std::iter::once(Part::Head(head)).chain(ranges)
}

/// For the answer of another node to be held here.
pub(crate) struct Room {
    pub(crate) reads: Reads,
    /// The room that an earlier answer to the same read needed.
    pub(crate) held: Option<Held>,
}

/// Reads up to the head of the answer; the rest comes with [`Answering::ranges`].
pub(crate) async fn begun(
    mut parts: Streaming<wire::ReadPart>,
    working: &Notify,
    room: Room,
) -> Result<Answering, Failed> {
    loop {
        let part = parts.message().await.map_err(Failed::from_status)?;
        match part.and_then(|part| part.part) {
            Some(Part::Working(_)) => working.notify_one(),
            Some(Part::Head(head)) => {
                let epoch = u16::try_from(head.epoch)
                    .map_err(|_| Failed::Unknown("a malformed epoch".to_owned()))?;
                return Ok(Answering {
                    position: Position::new(Epoch(epoch), head.sequence),
                    leader: node_id(head.leader),
                    ranges: Box::pin(taken(parts, head, room)),
                });
            }
            Some(Part::NotLeader(hint)) => return Err(Failed::NotLeader(node_id(hint.leader))),
            Some(Part::Unavailable(reason)) => return Err(Failed::NotDone(reason)),
            Some(Part::Entries(_)) | None => {
                return Err(Failed::Unknown("a malformed answer".to_owned()));
            }
        }
    }
}

/// Takes the rest of an answer when there is room for all of it.
///
/// Where there is none, the answer is not waited for: what has come of it would be in the way of
/// all other answers of that node, for which a connection takes so many bytes at a time, and the
/// node would hold the rest. It is asked for again once there is room.
async fn taken(
    parts: Streaming<wire::ReadPart>,
    head: wire::ReadHead,
    room: Room,
) -> Result<Vec<Vec<Entry>>, BrokenOff> {
    let bytes = match head.bytes {
        // Of an earlier version, which does not say.
        0 if head.entries > 0 => MAX_ANSWER_BYTES,
        said => usize::try_from(said).unwrap_or(usize::MAX),
    };
    if bytes > MAX_ANSWER_BYTES {
        return Err(BrokenOff::Failed(format!(
            "the answer is larger than {MAX_ANSWER_BYTES} bytes"
        )));
    }
    let mut held = match room.held {
        Some(mut held) if held.bytes() >= bytes => {
            held.shrink_to(bytes);
            held
        }
        too_little => {
            drop(too_little);
            let Some(held) = room.reads.take_now(bytes) else {
                drop(parts);
                let taken = room.reads.take(bytes).await;
                return Err(taken.map_or_else(
                    |exhausted| BrokenOff::Failed(exhausted.to_string()),
                    BrokenOff::ForRoom,
                ));
            };
            held
        }
    };
    let mut ranges = rest(parts, head, bytes).await.map_err(BrokenOff::Failed)?;
    // Of an answer that did not say its bytes, most of what was taken for it.
    held.shrink_to(ranges.iter().flatten().map(weight).sum());
    hold_with_last(&mut ranges, held);
    Ok(ranges)
}

async fn rest(
    mut parts: Streaming<wire::ReadPart>,
    head: wire::ReadHead,
    max_bytes: usize,
) -> Result<Vec<Vec<Entry>>, String> {
    let ranges = usize::try_from(head.ranges).unwrap_or(usize::MAX);
    if ranges > meridian_types::limits::MAX_READ_RANGES {
        return Err("a malformed answer: too many ranges".to_owned());
    }
    let mut answer: Vec<Vec<Entry>> = vec![Vec::new(); ranges];
    let (mut missing, mut bytes) = (head.entries, 0);
    while missing > 0 {
        let part = tokio::time::timeout(PROGRESS_TIMEOUT, parts.message()).await;
        let part =
            part.map_err(|_| format!("the answer stopped for {} s", PROGRESS_TIMEOUT.as_secs()))?;
        let part = part.map_err(|status| format!("the answer broke off: {}", status.message()))?;
        let Some(wire::ReadPart { part: Some(Part::Entries(entries)) }) = part else {
            return Err(format!("the answer ended with {missing} entries missing"));
        };
        let malformed = || "a malformed answer".to_owned();
        let range = usize::try_from(entries.range)
            .ok()
            .and_then(|range| answer.get_mut(range))
            .ok_or_else(malformed)?;
        let count = u32::try_from(entries.values.len()).map_err(|_| malformed())?;
        missing = missing.checked_sub(count).filter(|_| count > 0).ok_or_else(malformed)?;
        for value in entries.values {
            let entry = entry(value).map_err(|error| error.to_string())?;
            bytes += weight(&entry);
            range.push(entry);
        }
        if bytes > max_bytes {
            return Err("a malformed answer: larger than it said".to_owned());
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
