//! One direction of one connection: bytes that arrive, travel, and leave.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut, buf::BufMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::controls::{Broken, Controls, Way, passable};
use crate::shaper::{MAX_CHUNK_BYTES, Shaper};
use crate::timer::sleep_until;

/// How much travels in one direction of one connection; a sender of more waits, as on a full TCP
/// window.
pub const LANE_CAPACITY_BYTES: usize = 16 * 1024 * 1024;

/// A buffer with less room than this is left to the chunks that were cut from it.
const MIN_READ_BYTES: usize = 4 * 1024;

/// A parcel of one direction; they travel in the order in which they arrived.
#[derive(Debug)]
struct Parcel {
    due: Instant,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Bytes, OwnedSemaphorePermit),
    /// The sender has shut its side down.
    Finished,
    /// The sender's side failed.
    Reset,
}

/// Where the bytes of a direction enter. Dropped when nothing more will.
#[derive(Debug)]
pub(crate) struct Entrance {
    parcels: mpsc::UnboundedSender<Parcel>,
    room: Arc<Semaphore>,
    shaper: Shaper,
}

/// Where the bytes of a direction leave.
#[derive(Debug)]
pub(crate) struct Exit {
    parcels: mpsc::UnboundedReceiver<Parcel>,
    way: Way,
}

/// A new direction of a connection. Its queue is bounded in bytes by the semaphore, so not in
/// parcels.
pub(crate) fn lane(way: Way, shaper: Shaper) -> (Entrance, Exit) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(LANE_CAPACITY_BYTES));
    (Entrance { parcels: sender, room, shaper }, Exit { parcels: receiver, way })
}

impl Entrance {
    /// Takes in what `from` sends, until it ends or fails. Reads on while the direction is cut.
    pub(crate) async fn take_in(
        mut self,
        mut from: ReadHalf<'_>,
        controls: watch::Receiver<Controls>,
    ) {
        let mut buffer = BytesMut::new();
        loop {
            let chunk_bytes = Shaper::chunk_bytes(&controls.borrow().profile);
            if buffer.capacity() < chunk_bytes.min(MIN_READ_BYTES) {
                buffer.reserve(MAX_CHUNK_BYTES);
            }
            let read = from.read_buf(&mut (&mut buffer).limit(chunk_bytes)).await;
            let profile = controls.borrow().profile;
            let now = Instant::now();
            let length = match read {
                Ok(0) | Err(_) => {
                    let content = if read.is_ok() { Content::Finished } else { Content::Reset };
                    let due = self.shaper.pass(&profile, now, 0).due;
                    self.send(due, content);
                    return;
                }
                Ok(length) => length,
            };
            let passage = self.shaper.pass(&profile, now, length);
            let Ok(permits) = u32::try_from(length) else { return };
            let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(permits).await else {
                return;
            };
            if !self.send(passage.due, Content::Bytes(buffer.split().freeze(), permit)) {
                return;
            }
            if let Some(at) = passage.read_again_at {
                sleep_until(at).await;
            }
        }
    }

    /// Returns whether there is a receiver that takes it.
    fn send(&self, due: Instant, content: Content) -> bool {
        self.parcels.send(Parcel { due, content }).is_ok()
    }
}

impl Exit {
    /// Delivers to `to` what arrives, each parcel when it is due, none before `open_at`, none while
    /// cut.
    ///
    /// Returns when the sender's end of stream is delivered, and an error when the connection is to
    /// be reset.
    pub(crate) async fn deliver(
        mut self,
        mut to: WriteHalf<'_>,
        mut controls: watch::Receiver<Controls>,
        open_at: Instant,
    ) -> Result<(), Broken> {
        while let Some(parcel) = self.parcels.recv().await {
            sleep_until(parcel.due.max(open_at)).await;
            passable(&mut controls, self.way).await?;
            match parcel.content {
                Content::Reset => return Err(Broken),
                Content::Finished => {
                    return match to.shutdown().await {
                        Ok(()) => Ok(()),
                        Err(_) => Err(self.report_failure(controls).await),
                    };
                }
                Content::Bytes(bytes, _permit) => {
                    if self.write(&mut to, bytes, &mut controls).await?.is_err() {
                        return Err(self.report_failure(controls).await);
                    }
                }
            }
        }
        Err(Broken)
    }

    /// Writes all of `bytes`; stops where it is while the direction is cut.
    async fn write(
        &self,
        to: &mut WriteHalf<'_>,
        mut bytes: Bytes,
        controls: &mut watch::Receiver<Controls>,
    ) -> Result<io::Result<()>, Broken> {
        while !bytes.is_empty() {
            passable(controls, self.way).await?;
            tokio::select! {
                biased;
                written = to.write_buf(&mut bytes) => match written {
                    Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
                    Ok(_) => {}
                    Err(error) => return Ok(Err(error)),
                },
                changed = controls.changed() => changed?,
            }
        }
        Ok(Ok(()))
    }

    /// The receiver is gone: lets its reset travel back to the sender.
    async fn report_failure(&self, mut controls: watch::Receiver<Controls>) -> Broken {
        let delay = controls.borrow().profile.one_way_delay;
        tokio::time::sleep(delay).await;
        match passable(&mut controls, self.way.opposite()).await {
            Ok(()) | Err(Broken) => Broken,
        }
    }
}
