//! Reading the body of a request, within its limits of size and time.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;

use crate::refusal::{Overload, Refusal};
use crate::shares::Share;

/// The number of bytes beyond the limit that are read and thrown away, so that the client is still
/// listening when the refusal comes.
const MAX_DISCARDED_BYTES: u64 = 8 * 1024 * 1024;
/// The time for reading and throwing away the rest of a refused request's body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The memory that a declared length may reserve before the bytes are there.
const MAX_RESERVED_BYTES: usize = 64 * 1024;

/// The whole body of a request, and the share of bytes that was taken for it as it came. A small
/// body, which comes in one piece, is not copied.
pub(crate) async fn collect<B>(
    body: B,
    mut share: Share,
    max_bytes: usize,
    timeout: Duration,
) -> Result<(Bytes, Share), Refusal>
where
    B: Body<Data = Bytes>,
{
    let take = |bytes| {
        let limit = share.total();
        let overloaded = Refusal::Overloaded { what: Overload::Bodies, limit };
        if share.grow(bytes) { Ok(()) } else { Err(overloaded) }
    };
    let bytes = within(timeout, read(body, take, max_bytes)).await?;
    Ok((bytes, share))
}

/// The whole body of a request that is too small to need a share of bytes.
pub(crate) async fn collect_small<B>(
    body: B,
    max_bytes: usize,
    timeout: Duration,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    within(timeout, read(body, |_| Ok(()), max_bytes)).await
}

/// Reads and throws away the rest of a refused request's body, within `max_bytes` and a few
/// seconds. An HTTP/1.1 client often listens only after it has sent its whole body: if bytes were
/// left unread, its connection would be reset, and it would see a network error, which it does not
/// retry as it does a 503.
pub(crate) async fn discard<B>(body: B, max_bytes: usize)
where
    B: Body<Data = Bytes>,
{
    let discarded = tokio::time::timeout(DISCARD_TIMEOUT, async {
        let (mut body, mut left) = (pin!(body), max_bytes as u64);
        while let Some(Ok(frame)) = body.frame().await
            && let Some(rest) =
                left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64))
        {
            left = rest;
        }
    });
    // A client that goes on sending does not see the answer.
    drop(discarded.await);
}

async fn within(
    timeout: Duration,
    read: impl Future<Output = Result<Bytes, Refusal>>,
) -> Result<Bytes, Refusal> {
    tokio::time::timeout(timeout, read).await.unwrap_or(Err(Refusal::BodyTimeout { timeout }))
}

async fn read<B>(
    body: B,
    mut take: impl FnMut(u64) -> Result<(), Refusal>,
    max_bytes: usize,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let max = max_bytes as u64;
    let declared = body.size_hint().lower();
    if declared > max.saturating_add(MAX_DISCARDED_BYTES) {
        return Err(Refusal::BodyTooLarge { max_bytes });
    }
    let mut total = 0u64;
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyUnreadable)?.into_data() else { continue };
        total = total.saturating_add(data.len() as u64);
        if total > max {
            if total > max.saturating_add(MAX_DISCARDED_BYTES) {
                break;
            }
            (first, joined) = (Bytes::new(), BytesMut::new());
            continue;
        }
        take(data.len() as u64)?;
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                let expected =
                    usize::try_from(declared).unwrap_or(usize::MAX).min(MAX_RESERVED_BYTES);
                joined.reserve(expected.max(first.len() + data.len()));
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&data);
        }
    }
    match total {
        total if total > max => Err(Refusal::BodyTooLarge { max_bytes }),
        _ if joined.is_empty() => Ok(first),
        _ => Ok(joined.freeze()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::{Context, Poll};

    use hyper::body::{Frame, SizeHint};

    use super::*;

    /// A body of given pieces, and the number of pieces taken so far.
    struct Pieces<I> {
        coming: I,
        declared: u64,
        taken: Rc<Cell<usize>>,
    }

    impl<I: Iterator<Item = Bytes> + Unpin> Body for Pieces<I> {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.coming.next();
            self.taken.set(self.taken.get() + usize::from(piece.is_some()));
            Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::default();
            hint.set_lower(self.declared);
            hint
        }
    }

    /// The result of collecting such a body, and the number of pieces taken.
    async fn collected(
        coming: impl Iterator<Item = Bytes> + Unpin,
        declared: u64,
        max_bytes: usize,
    ) -> (Result<Bytes, Refusal>, usize) {
        let taken = Rc::default();
        let pieces = Pieces { coming, declared, taken: Rc::clone(&taken) };
        let collected = collect_small(pieces, max_bytes, Duration::from_secs(60)).await;
        (collected, taken.get())
    }

    #[tokio::test]
    async fn body_at_the_limit_is_read_in_any_pieces_and_refused_with_a_byte_more() {
        let text: Vec<u8> = (0..100).collect();
        for size in [1, 30, 50, 99, 100] {
            for declared in [0, 100] {
                let pieces = || text.chunks(size).map(Bytes::copy_from_slice);
                assert_eq!(collected(pieces(), declared, 100).await.0.unwrap(), text);
                let refused = collected(pieces(), declared, 99).await.0.unwrap_err();
                assert!(matches!(refused, Refusal::BodyTooLarge { max_bytes: 99 }), "{refused}");
            }
        }
    }

    #[tokio::test]
    async fn body_over_the_limit_is_read_no_further_than_the_discard_bound() {
        const MEGABYTE: usize = 1 << 20;
        let most = MEGABYTE as u64 + MAX_DISCARDED_BYTES;
        for (declared, coming, expected) in
            [(0, 9, 9), (0, 1000, 10), (most, 9, 9), (most + 1, 10, 0)]
        {
            let pieces = std::iter::repeat_n(Bytes::from(vec![7; MEGABYTE]), coming);
            let (refused, taken) = collected(pieces, declared, MEGABYTE).await;
            assert!(matches!(refused, Err(Refusal::BodyTooLarge { .. })));
            assert_eq!(taken, expected, "{coming} pieces, {declared} bytes declared");
        }
    }
}
