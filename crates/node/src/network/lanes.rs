//! Streams that are many and last, over as many connections to one node as they need.

use std::sync::Arc;

use meridian_net::grpc::Peer;
use parking_lot::Mutex;
use tonic::transport::Channel;

/// Streams on one connection: half of what the other side has open at a time, since it notices
/// later than this side that a stream has ended. Beyond, a stream would wait at this side.
const STREAMS: usize = 4096;
/// Connections to one node. Nodes have fewer watches than fill them, and refuse further ones.
const MAX_LANES: usize = 8;

/// A stream that is open, until this is dropped.
#[must_use]
pub(crate) struct Open {
    _of_lane: Arc<()>,
}

/// The connections for such streams to one node. The first one lasts; others last as long as they
/// have streams, and until another stream begins.
pub(crate) struct Lanes {
    peer: Peer,
    lanes: Mutex<Vec<Lane>>,
}

struct Lane {
    channel: Channel,
    /// Shared with each stream that is open.
    streams: Arc<()>,
}

impl Lane {
    fn new(peer: &Peer) -> Self {
        Self { channel: peer.channel(), streams: Arc::new(()) }
    }

    fn open(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }
}

impl Lanes {
    pub(crate) fn new(peer: Peer) -> Self {
        let lanes = Mutex::new(vec![Lane::new(&peer)]);
        Self { peer, lanes }
    }

    /// The connection for one more stream.
    pub(crate) fn next(&self) -> (Channel, Open) {
        let mut lanes = self.lanes.lock();
        let mut at = 0;
        lanes.retain(|lane| {
            at += 1;
            at == 1 || lane.open() > 0
        });
        let is_full = lanes.iter().all(|lane| lane.open() >= STREAMS);
        if is_full && lanes.len() < MAX_LANES {
            lanes.push(Lane::new(&self.peer));
        }
        let with_room = lanes.iter().find(|lane| lane.open() < STREAMS);
        match with_room.or_else(|| lanes.iter().min_by_key(|lane| lane.open())) {
            Some(Lane { channel, streams }) => {
                (channel.clone(), Open { _of_lane: Arc::clone(streams) })
            }
            None => (self.peer.channel(), Open { _of_lane: Arc::default() }),
        }
    }

    #[cfg(test)]
    fn open(&self) -> Vec<usize> {
        self.lanes.lock().iter().map(Lane::open).collect()
    }
}

#[cfg(test)]
mod tests {
    use meridian_net::grpc::Way;

    use super::*;

    #[tokio::test]
    async fn further_streams_open_further_connections_which_end_with_them() {
        let lanes = Lanes::new(Peer::new("127.0.0.1:9", None, Way::Plain).unwrap());
        let mut open: Vec<_> = (0..2 * STREAMS + 1).map(|_| lanes.next().1).collect();
        assert_eq!(lanes.open(), [STREAMS, STREAMS, 1]);
        // A stream takes the place of another whose end was noticed.
        drop(open.swap_remove(0));
        let again = lanes.next();
        assert_eq!(lanes.open(), [STREAMS, STREAMS, 1]);
        open.truncate(10);
        drop(again);
        let next = lanes.next();
        assert!(lanes.open().len() <= 2, "{:?}", lanes.open());
        drop((open, next));
        let _next = lanes.next();
        assert_eq!(lanes.open(), [1]);
        let all: Vec<_> = (0..(MAX_LANES + 1) * STREAMS).map(|_| lanes.next()).collect();
        assert_eq!((lanes.open().len(), all.len()), (MAX_LANES, (MAX_LANES + 1) * STREAMS));
    }
}
