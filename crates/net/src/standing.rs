//! What the other side of an accepted connection may do before a call of it is let through: a caller
//! without a proof costs its calls, and the frames between them, as little as it can be made to cost.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Calls without a proof on one connection.
const CALLS: u32 = 16;
/// Bytes before a call is let through. A request to join has some hundred.
const BYTES: usize = 64 << 10;
/// Bytes that are read at a time until then, so that the connection ends before many more calls have
/// come than it may make.
const AT_A_TIME: usize = 1 << 10;

/// How a connection stands with those who judge its calls.
#[derive(Debug, Default)]
pub struct Standing {
    without_proof: AtomicU32,
    is_proven: AtomicBool,
}

impl Standing {
    /// A call was refused.
    pub fn note_refused(&self) {
        self.without_proof.fetch_add(1, Ordering::Relaxed);
    }

    /// A call needs no proof, or is none that this version knows: a process of a later one may make
    /// many of these.
    pub fn note_open_to_all(&self) {
        if !self.is_proven.load(Ordering::Relaxed) {
            self.note_refused();
        }
    }

    /// A call was let through, by its proof or since none is asked for.
    pub fn note_proven(&self) {
        self.is_proven.store(true, Ordering::Relaxed);
    }

    /// Reads from a connection that has had so many bytes `before`, which are counted on.
    pub(crate) fn read<S: AsyncRead + Unpin>(
        &self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        before: &mut usize,
    ) -> Poll<io::Result<()>> {
        if self.without_proof.load(Ordering::Relaxed) > CALLS || *before > BYTES {
            metrics::counter!("meridian_rpc_ended_connections_total").increment(1);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.is_proven.load(Ordering::Relaxed) {
            return stream.poll_read(cx, buf);
        }
        let mut bytes = [0; AT_A_TIME];
        let bytes = bytes.get_mut(..buf.remaining().min(AT_A_TIME)).unwrap_or_default();
        let mut few = ReadBuf::new(bytes);
        ready!(stream.as_mut().poll_read(cx, &mut few))?;
        *before += few.filled().len();
        buf.put_slice(few.filled());
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// How many bytes of a stream without end are read, at most `most`.
    async fn read(standing: &Standing, most: usize) -> usize {
        let (mut stream, mut before, mut total) = (tokio::io::repeat(7), 0, 0);
        let mut bytes = vec![0; 16 << 10];
        while total < most {
            let mut buf = ReadBuf::new(&mut bytes);
            let read =
                poll_fn(|cx| standing.read(Pin::new(&mut stream), cx, &mut buf, &mut before));
            if read.await.is_err() {
                break;
            }
            total += buf.filled().len();
        }
        total
    }

    #[tokio::test]
    async fn connection_ends_behind_some_bytes_unless_a_call_was_let_through() {
        let standing = Standing::default();
        let total = read(&standing, 1 << 20).await;
        assert!((BYTES..=BYTES + AT_A_TIME).contains(&total), "{total}");
        standing.note_proven();
        assert!(read(&standing, 1 << 20).await >= 1 << 20);
    }

    #[tokio::test]
    async fn connection_ends_behind_some_calls_without_a_proof() {
        let (standing, stranger) = (Standing::default(), Standing::default());
        standing.note_proven();
        (0..CALLS).for_each(|_| standing.note_refused());
        (0..CALLS).for_each(|_| stranger.note_open_to_all());
        // Of a later version.
        standing.note_open_to_all();
        assert!(read(&standing, 100).await > 0 && read(&stranger, 100).await > 0);
        standing.note_refused();
        stranger.note_open_to_all();
        assert_eq!((read(&standing, 100).await, read(&stranger, 100).await), (0, 0));
    }
}
