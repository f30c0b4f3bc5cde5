//! The bounds of an accepted connection before a call of it is let through: a caller without a proof
//! costs as little as it can be made to cost.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

/// Calls without a proof on one connection.
const CALLS: u32 = 16;
/// Bytes before a call is let through: more than a client may send before it has heard anything. A
/// request to join has some hundred.
const BYTES: usize = 256 << 10;
/// Behind so many bytes the connection rests for a moment, in which the calls that have come are
/// judged: few come that it may not make, and none is lost that it may.
const REST_EVERY: usize = 8 << 10;
const REST: Duration = Duration::from_millis(1);
/// Bytes that are read at a time until then.
const AT_A_TIME: usize = 1 << 10;

/// The standing of a connection with the judges of its calls.
#[derive(Debug, Default)]
pub struct Standing {
    without_proof: AtomicU32,
    is_proven: AtomicBool,
}

/// The bytes of a connection before a call was let through.
#[derive(Debug, Default)]
pub(crate) struct Probation {
    bytes: usize,
    rest: Option<Pin<Box<Sleep>>>,
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

    /// Reads from a connection, as far as its standing allows.
    pub(crate) fn read<S: AsyncRead + Unpin>(
        &self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        probation: &mut Probation,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut probation.rest {
            ready!(rest.as_mut().poll(cx));
            probation.rest = None;
        }
        let is_proven = self.is_proven.load(Ordering::Relaxed);
        let has_enough = self.without_proof.load(Ordering::Relaxed) > CALLS;
        if has_enough || !is_proven && probation.bytes > BYTES {
            metrics::counter!("meridian_rpc_ended_connections_total").increment(1);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if is_proven {
            return stream.poll_read(cx, buf);
        }
        let mut bytes = [0; AT_A_TIME];
        let bytes = bytes.get_mut(..buf.remaining().min(AT_A_TIME)).unwrap_or_default();
        let mut few = ReadBuf::new(bytes);
        ready!(stream.as_mut().poll_read(cx, &mut few))?;
        let before = probation.bytes;
        probation.bytes += few.filled().len();
        if probation.bytes / REST_EVERY > before / REST_EVERY {
            probation.rest = Some(Box::pin(tokio::time::sleep(REST)));
        }
        buf.put_slice(few.filled());
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// How many bytes of a stream without end are read, at most `most`. `at`: told of each read.
    async fn read(standing: &Standing, most: usize, mut at: impl FnMut(usize)) -> usize {
        let (mut stream, mut probation) = (tokio::io::repeat(7), Probation::default());
        let (mut bytes, mut total) = (vec![0; 16 << 10], 0);
        while total < most {
            let mut buf = ReadBuf::new(&mut bytes);
            let read =
                poll_fn(|cx| standing.read(Pin::new(&mut stream), cx, &mut buf, &mut probation));
            if read.await.is_err() {
                break;
            }
            total += buf.filled().len();
            at(total);
        }
        total
    }

    #[tokio::test]
    async fn connection_ends_behind_some_bytes_unless_a_call_was_let_through() {
        let standing = Standing::default();
        let total = read(&standing, 1 << 20, |_| {}).await;
        assert!((BYTES..=BYTES + AT_A_TIME).contains(&total), "{total}");
        // Of which the head came first, and was judged when more had come than may.
        let standing = Standing::default();
        let judged = |total| {
            if total > BYTES {
                standing.note_proven();
            }
        };
        assert!(read(&standing, 1 << 20, judged).await >= 1 << 20);
    }

    /// Else all that is there would be read before any call of it is judged.
    #[tokio::test]
    async fn connection_rests_again_and_again_until_a_call_is_let_through() {
        let (standing, mut probation) = (Standing::default(), Probation::default());
        let (mut stream, mut bytes) = (tokio::io::repeat(7), [0; AT_A_TIME]);
        let mut came = 0;
        poll_fn(|cx| {
            loop {
                let mut buf = ReadBuf::new(&mut bytes);
                let read = standing.read(Pin::new(&mut stream), cx, &mut buf, &mut probation);
                match read {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
                came += buf.filled().len();
            }
        })
        .await;
        assert_eq!(came, REST_EVERY);
    }

    #[tokio::test]
    async fn connection_ends_behind_some_calls_without_a_proof() {
        let (standing, stranger) = (Standing::default(), Standing::default());
        standing.note_proven();
        (0..CALLS).for_each(|_| standing.note_refused());
        (0..CALLS).for_each(|_| stranger.note_open_to_all());
        // Of a later version.
        standing.note_open_to_all();
        let few = async |standing: &Standing| read(standing, 100, |_| {}).await;
        assert!(few(&standing).await > 0 && few(&stranger).await > 0);
        standing.note_refused();
        stranger.note_open_to_all();
        assert_eq!((few(&standing).await, few(&stranger).await), (0, 0));
    }
}
