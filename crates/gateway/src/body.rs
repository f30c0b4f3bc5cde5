use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;

use crate::refusal::{Overload, Refusal};
use crate::shares::Share;

/// How much of a body over the limit is read and thrown away, so that its sender is still listening when
/// the refusal comes.
const MAX_DISCARDED_BYTES: u64 = 8 * 1024 * 1024;
/// How long the rest of a body is read and thrown away that belongs to a refused request.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// What a declared length may make this process reserve before the bytes are there.
const MAX_RESERVED_BYTES: usize = 64 * 1024;

/// The whole body of a request, and the share of bytes that was taken for it as it came. Small ones, which come in
/// one piece, are not copied.
pub(crate) async fn collect<B>(
    body: B,
    mut share: Share,
    max_bytes: usize,
    timeout: Duration,
) -> Result<(Bytes, Share), Refusal>
where
    B: Body<Data = Bytes>,
{
    let bytes = within(timeout, read(body, |bytes| share.grow(bytes), max_bytes)).await?;
    Ok((bytes, share))
}

/// The whole body of a request that is so small that nobody counts its bytes.
pub(crate) async fn collect_small<B>(body: B, max_bytes: usize, timeout: Duration) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    within(timeout, read(body, |_| true, max_bytes)).await
}

/// Reads and throws away what is left of the body of a request that was refused, as long as that is little and comes
/// soon. Over HTTP/1.1 its sender listens only then: the connection of one whose bytes are left unread is reset, and
/// that is an error of the network to it, which it does not try again as it does a 503.
pub(crate) async fn discard<B>(body: B, max_bytes: usize)
where
    B: Body<Data = Bytes>,
{
    let discarded = tokio::time::timeout(DISCARD_TIMEOUT, async {
        let (mut body, mut left) = (pin!(body), max_bytes as u64);
        while let Some(Ok(frame)) = body.frame().await
            && let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64))
        {
            left = rest;
        }
    });
    // Whoever goes on sending hears no answer.
    drop(discarded.await);
}

async fn within(timeout: Duration, read: impl Future<Output = Result<Bytes, Refusal>>) -> Result<Bytes, Refusal> {
    tokio::time::timeout(timeout, read).await.unwrap_or(Err(Refusal::BodyTimeout { timeout }))
}

async fn read<B>(body: B, mut take: impl FnMut(u64) -> bool, max_bytes: usize) -> Result<Bytes, Refusal>
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
        } else if !take(data.len() as u64) {
            return Err(Refusal::Overloaded(Overload::Bodies));
        } else if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                let expected = usize::try_from(declared).unwrap_or(usize::MAX).min(MAX_RESERVED_BYTES);
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
