//! When a connection may be closed: idle, too slow to take its answers, asked to close and done, or
//! with more requests than a stranger may have.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::shares::Share;

/// Over HTTP/1.1 answers below this size fit into the buffers of the socket: they count as sent once
/// they are handed over. Over HTTP/2 the client says when each may be sent.
const LARGE_ANSWER_BYTES: usize = 64 * 1024;
/// The pace at which a client must take a large answer, on top of the idle timeout.
const SLOWEST_BYTES_PER_SECOND: usize = 256 * 1024;

/// After a connection was asked to close, the time for requests that were already on their way, and
/// for their answers.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// The activity of a connection, kept with a few relaxed atomics for each request, and one timer
/// for each connection.
pub(super) struct Activity {
    opened: Instant,
    /// Requests in progress.
    busy: AtomicUsize,
    /// Those of them whose answers stream.
    streaming: AtomicUsize,
    /// The token that it carried first, as a hash; 0: none yet that is known.
    holder: AtomicU64,
    /// Milliseconds from `opened` to the last beginning or end of a request; 0: no request came.
    last_ms: AtomicU64,
    /// Milliseconds from `opened` to the moment when the connection was asked to close; 0: it was
    /// not.
    closing_ms: AtomicU64,
    authorized: AtomicBool,
    unsent: Mutex<Unsent>,
    /// Cancelled when streaming answers are to end.
    streams_end: CancellationToken,
    /// Cancelled when the connection has more requests than it may.
    overrun: CancellationToken,
}

/// Why a request does not begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotBegun {
    /// Its client was told long ago that the connection closes, and new requests do not keep it open.
    Closing,
    /// The connection has not carried a valid token, and has more requests than it may: it ends.
    Overrun,
    /// The client does not take its answers. The others go on.
    Untaken,
}

/// Answers that the client has not taken yet: by number, the time until which each is kept.
#[derive(Default)]
struct Unsent {
    next: u64,
    until: BTreeMap<u64, Instant>,
    /// How many of them are whole answers, and not frames of streams.
    whole: usize,
}

impl Activity {
    pub(super) fn new(opened: Instant) -> Self {
        let [last_ms, closing_ms, holder] = [0; 3].map(AtomicU64::new);
        let [busy, streaming] = [0; 2].map(AtomicUsize::new);
        let (authorized, unsent) = (AtomicBool::new(false), Mutex::default());
        let [streams_end, overrun] = [(); 2].map(|()| CancellationToken::new());
        Self {
            opened,
            busy,
            streaming,
            holder,
            last_ms,
            closing_ms,
            authorized,
            unsent,
            streams_end,
            overrun,
        }
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>, now: Instant) -> Result<Busy, NotBegun> {
        match self.moment(&self.closing_ms) {
            _ if self.overrun.is_cancelled() => Err(NotBegun::Overrun),
            Some(closing) if now > closing + CLOSE_GRACE => Err(NotBegun::Closing),
            _ => Ok(Busy::new(self)),
        }
    }

    /// The requests in progress, and those with answers that the client has not taken: each of them
    /// is memory.
    pub(super) fn requests(&self) -> usize {
        self.busy.load(Ordering::Relaxed) + self.unsent().until.len()
    }

    /// The connection ends.
    pub(super) fn end_overrun(&self) -> NotBegun {
        self.overrun.cancel();
        NotBegun::Overrun
    }

    /// Ready when the connection ends for [`NotBegun::Overrun`].
    pub(super) async fn overrun(&self) {
        self.overrun.cancelled().await;
    }

    /// When a request last began or ended.
    pub(super) fn last_used(&self) -> Option<Instant> {
        self.moment(&self.last_ms)
    }

    /// Notes that the client is told now that the connection closes.
    pub(super) fn closes(&self, now: Instant) {
        self.closing_ms.store(self.millis(now), Ordering::Relaxed);
        self.end_streams();
    }

    /// Ready when a closing connection may be cut: `grace` is over since its client was told, and
    /// no request is lost that was on its way then. A write whose connection is cut goes on, so
    /// that a client that sends it again has it applied twice.
    pub(super) async fn may_be_cut(&self, grace: Duration) {
        loop {
            let now = Instant::now();
            let cut_at = self.cut_at(now, grace);
            if cut_at <= now {
                return;
            }
            sleep_until(cut_at).await;
        }
    }

    fn cut_at(&self, now: Instant, grace: Duration) -> Instant {
        let closing = self.moment(&self.closing_ms).unwrap_or(now);
        let unsent = self.unsent().until.values().min().copied();
        let cut_at = match (unsent, self.last_used()) {
            // A stranger's answers are worth no wait, and streams are opened again.
            (Some(_), _) if !self.is_authorized() => closing,
            (Some(_), _) if self.has_streams_alone() => closing + CLOSE_GRACE,
            // A client that takes no answers is cut, whatever else is in progress.
            (Some(until), _) => until.min(now + grace),
            (None, _) if self.busy.load(Ordering::Relaxed) > 0 => now + grace,
            // The last answer is still on its way.
            (None, Some(last)) if last >= closing && self.is_authorized() => last + CLOSE_GRACE,
            (None, _) => closing,
        };
        cut_at.max(closing + grace)
    }

    /// A request on this connection carried a valid token.
    pub(super) fn authorized(&self) {
        self.authorized.store(true, Ordering::Relaxed);
    }

    /// ... which is this one.
    pub(super) fn carried(&self, holder: u64) {
        self.authorized();
        self.holder.store(holder, Ordering::Relaxed);
    }

    /// The token that the connection carried first.
    pub(super) fn holder(&self) -> Option<u64> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|holder| *holder != 0)
    }

    pub(super) fn is_authorized(&self) -> bool {
        self.authorized.load(Ordering::Relaxed)
    }

    /// Whether a request is in progress, or an answer is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.has_requests() || !self.unsent().until.is_empty()
    }

    /// Whether a request is in progress.
    pub(super) fn has_requests(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Whether nothing but frames of streams waits to be taken, and nothing else is in progress.
    fn has_streams_alone(&self) -> bool {
        self.unsent().whole == 0 && !self.is_at_work()
    }

    /// Whether this connection will end soon, once it is asked to close.
    pub(super) fn ends_soon(&self) -> bool {
        !self.is_at_work() && (!self.is_authorized() || self.unsent().until.is_empty())
    }

    /// Whether a request is in progress whose answer does not stream: streams end between any two
    /// frames, and their clients open them again.
    pub(super) fn is_at_work(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > self.streaming.load(Ordering::Relaxed)
    }

    /// Ready when the first request did not come in time, when no request was in progress for
    /// `idle`, or when the client did not take an answer.
    pub(super) async fn idle(&self, first_request: Duration, idle: Duration) {
        loop {
            let now = Instant::now();
            let idle_at = self.idle_at(now, first_request, idle);
            if idle_at <= now {
                return;
            }
            sleep_until(idle_at).await;
        }
    }

    /// When this connection becomes idle, if nothing happens on it until then.
    fn idle_at(&self, now: Instant, first_request: Duration, idle: Duration) -> Instant {
        let unsent = self.unsent().until.values().min().copied();
        let since_last = |patience| match self.last_used() {
            None => self.opened + first_request,
            Some(_) if self.busy.load(Ordering::Relaxed) > 0 => now + patience,
            Some(last) => last + patience,
        };
        match unsent {
            // Only the earliest deadline counts; later answers are looked at when the earliest
            // should be gone.
            Some(until) if self.is_authorized() => until,
            None if self.is_authorized() => since_last(idle),
            // A connection without a valid token gets less patience.
            Some(until) => until.min(since_last(first_request)),
            None => since_last(first_request),
        }
    }

    /// The bytes of an answer, watched if they are many, or have a stream of their own, with the room
    /// for it: a client that does not take them loses its connection.
    pub(super) fn sending(
        self: &Arc<Self>,
        answer: Bytes,
        idle: Duration,
        stream: Option<StreamRoom>,
    ) -> Bytes {
        if answer.is_empty() || (answer.len() < LARGE_ANSWER_BYTES && stream.is_none()) {
            return answer;
        }
        let untaken = self.untaken(answer.len(), idle);
        self.unsent().whole += 1;
        Bytes::from_owner(Watched { answer, untaken, _stream: stream })
    }

    /// Watches `length` bytes that are handed to the connection, until the guard is dropped: a client
    /// that does not take them in time loses its connection.
    pub(super) fn untaken(self: &Arc<Self>, length: usize, idle: Duration) -> Untaken {
        let patience = idle + Duration::from_secs((length / SLOWEST_BYTES_PER_SECOND) as u64);
        let number = {
            let mut unsent = self.unsent();
            let number = unsent.next;
            unsent.next += 1;
            unsent.until.insert(number, Instant::now() + patience);
            number
        };
        Untaken { activity: Arc::clone(self), number }
    }

    /// The client is asked to reconnect: its streaming answers end, everything else goes on.
    pub(super) fn end_streams(&self) {
        self.streams_end.cancel();
    }

    /// Ready when streaming answers are to end.
    pub(super) fn streams_end(&self) -> WaitForCancellationFutureOwned {
        self.streams_end.clone().cancelled_owned()
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, now: Instant) {
        self.last_ms.store(self.millis(now), Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.opened);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn moment(&self, millis: &AtomicU64) -> Option<Instant> {
        let millis = Some(millis.load(Ordering::Relaxed)).filter(|millis| *millis > 0)?;
        Some(self.opened + Duration::from_millis(millis))
    }
}

/// The room for a stream of HTTP/2, from its request's head until its whole answer was taken, or the
/// answer turns out to stream: those are counted elsewhere.
#[derive(Default)]
pub(super) struct StreamRoom {
    pub(super) _share: Option<Share>,
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

/// An answer, until its last byte has left.
struct Watched {
    answer: Bytes,
    untaken: Untaken,
    _stream: Option<StreamRoom>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.untaken.activity.unsent().whole -= 1;
    }
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

/// Bytes that the client has not taken yet, until this is dropped.
pub(super) struct Untaken {
    activity: Arc<Activity>,
    number: u64,
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.activity.unsent().until.remove(&self.number);
        self.activity.touch(Instant::now());
    }
}

/// A request in progress, until it is dropped.
pub(super) struct Busy {
    activity: Arc<Activity>,
    streams: bool,
}

impl Busy {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.busy.fetch_add(1, Ordering::Relaxed);
        activity.touch(Instant::now());
        Self { activity: Arc::clone(activity), streams: false }
    }

    /// Its answer streams from now on.
    pub(super) fn streams(mut self) -> Self {
        self.streams = true;
        self.activity.streaming.fetch_add(1, Ordering::Relaxed);
        self
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.touch(Instant::now());
        if self.streams {
            self.activity.streaming.fetch_sub(1, Ordering::Relaxed);
        }
        self.activity.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
