//! The answer to a listener: lines of JSON as there are messages, and pings, at the pace of the
//! client.
//!
//! Lines that the client has not taken count among the answers that clients have not taken yet.
//! Where there is no room for them the stream goes on with pings, and sends them once there is: to end
//! it would cost each message that the listener holds an attempt. The wait is bounded, since answers
//! that are not taken in time end with their connections.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hyper::body::{Body, Frame};
use meridian_queue::ListenerId;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};

use crate::Catalogue;
use crate::answer::Interrupted;
use crate::database::{Heard, Listened};
use crate::queue_json;
use crate::shares::{Holder, Share, Shares};
use crate::stream_access::StreamAccess;

/// Between two pings.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Until there may be room again for lines that clients have not taken.
const NO_ROOM: Duration = Duration::from_millis(250);

const REVOKED: &str = "the token may not listen any more";

/// The body of the answer. It ends with its permission.
pub(crate) struct ListenStream<C> {
    listened: Listened,
    access: StreamAccess<C>,
    answers: Shares,
    holder: Holder,
    /// The listener is one of those that may be open, and what its client says it holds is in memory,
    /// until these are dropped.
    _shares: [Share; 2],
    lines: VecDeque<Bytes>,
    /// For room. Meanwhile nothing is heard, so that messages that lie ready go to other listeners.
    waits: Option<Pin<Box<Sleep>>>,
    pause: Duration,
    pings: Interval,
    is_over: bool,
}

impl<C: Catalogue> ListenStream<C> {
    pub(crate) fn new(
        listened: (ListenerId, Listened),
        access: StreamAccess<C>,
        counted: (Shares, Holder),
        shares: [Share; 2],
    ) -> Self {
        Self::at_pace(listened, access, counted, shares, (PING_EVERY, NO_ROOM))
    }

    fn at_pace(
        (listener, listened): (ListenerId, Listened),
        access: StreamAccess<C>,
        (answers, holder): (Shares, Holder),
        _shares: [Share; 2],
        (ping_every, pause): (Duration, Duration),
    ) -> Self {
        let mut pings = interval_at(Instant::now() + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first ping goes at once.
        let lines = VecDeque::from([queue_json::open_line(listener), queue_json::ping_line()]);
        let (waits, is_over) = (None, false);
        Self { listened, access, answers, holder, _shares, lines, waits, pause, pings, is_over }
    }

    /// The last line.
    fn end(&mut self, reason: &str) -> Bytes {
        self.is_over = true;
        queue_json::end_line(reason)
    }

    /// The next line, or several; `None` at the end.
    fn poll_lines(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Poll::Ready(Some(line));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            if self.pings.poll_tick(context).is_ready() {
                if self.access.holds() {
                    return Poll::Ready(Some(queue_json::ping_line()));
                }
                return Poll::Ready(Some(self.end(REVOKED)));
            }
            if let Some(pause) = &mut self.waits {
                ready!(pause.as_mut().poll(context));
            }
            // Taken before anything is heard: what was heard and cannot be sent is no listener's.
            let share = self.answers.take(self.holder, queue_json::MAX_LINES_BYTES);
            self.waits = share.is_none().then(|| Box::pin(sleep(self.pause)));
            let Some(mut share) = share else { continue };
            let heard = ready!(self.listened.heard.poll_next_unpin(context));
            let Some(heard) = heard else { return Poll::Ready(None) };
            if !self.access.holds() {
                return Poll::Ready(Some(self.end(REVOKED)));
            }
            if let Heard::Ended(reason) = &heard {
                return Poll::Ready(Some(self.end(reason)));
            }
            let lines = queue_json::lines(&heard);
            // Given back when the last byte has left, or the connection is gone.
            share.resize(lines.len() as u64);
            return Poll::Ready(Some(share.held_with(lines.into())));
        }
    }
}

impl<C: Catalogue> Body for ListenStream<C> {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let lines = ready!(self.get_mut().poll_lines(context));
        Poll::Ready(lines.map(|lines| Ok(Frame::data(lines))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use meridian_queue::MessageKey;
    use meridian_types::{DatabaseId, MessageId, Permission, Versionstamp};
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::database::QueuedMessage;
    use crate::stream_access::revocable;

    const HOLDER: Holder = Holder { token: 1, shard: None };
    const OTHER: Holder = Holder { token: 2, shard: None };

    fn key(due_ms: u64) -> MessageKey {
        MessageKey { due_ms, id: MessageId { enqueued: Versionstamp([5; 10]), index: 0 } }
    }

    type Stage =
        (ListenStream<revocable::Revocable>, Arc<revocable::Revocable>, mpsc::Sender<Heard>);

    /// A stream that pings and looks for room often, and whose leader is the test.
    fn stage(answers: &Shares) -> Stage {
        let ((tell, mut heard), (enough, _)) = (mpsc::channel(8), oneshot::channel());
        let heard = futures::stream::poll_fn(move |context| heard.poll_recv(context)).boxed();
        let database = DatabaseId([1; 16]);
        let catalogue = revocable::Revocable::new(database);
        let (token, needs, grant) = ("token".into(), Permission::Listen, catalogue.grant());
        let access =
            StreamAccess { catalogue: Arc::clone(&catalogue), token, database, needs, grant };
        let stream = ListenStream::at_pace(
            (ListenerId([7; 16]), Listened { heard, enough }),
            access,
            (answers.clone(), HOLDER),
            [1, 1].map(|one| Shares::new(9).take(HOLDER, one).unwrap()),
            (Duration::from_millis(5), Duration::from_millis(1)),
        );
        (stream, catalogue, tell)
    }

    #[tokio::test]
    async fn stream_of_a_revoked_token_says_so_and_ends() {
        for hears in [false, true] {
            let (mut stream, catalogue, tell) =
                stage(&Shares::new(queue_json::MAX_LINES_BYTES * 2));
            catalogue.is_revoked.store(true, Ordering::Relaxed);
            if hears {
                tell.send(Heard::Released(vec![key(8)])).await.unwrap();
            }
            let mut lines = Vec::new();
            while let Some(line) = poll_fn(|context| stream.poll_lines(context)).await {
                lines.push(line);
            }
            assert_eq!(lines.last(), Some(&queue_json::end_line(REVOKED)));
        }
    }

    #[tokio::test]
    async fn lines_without_room_are_sent_in_order_once_there_is_room_and_pings_meanwhile() {
        let answers = Shares::new(4 * queue_json::MAX_LINES_BYTES);
        let (mut stream, _, tell) = stage(&answers);
        let mut next = async || poll_fn(|context| stream.poll_lines(context)).await;
        let taken = [(HOLDER, 2), (OTHER, 1)].map(|(holder, times)| {
            answers.take(holder, times * queue_json::MAX_LINES_BYTES).unwrap()
        });
        let payload = Bytes::from_static(b"\xff\x0f0");
        let message =
            QueuedMessage { key: key(8), attempt: 1, payload, enqueued_ms: 3, lease: None };
        tell.send(Heard::Messages(vec![message.clone()])).await.unwrap();
        tell.send(Heard::Released(vec![key(8)])).await.unwrap();
        assert_eq!(next().await, Some(queue_json::open_line(ListenerId([7; 16]))));
        for _ in 0..5 {
            assert_eq!(next().await, Some(queue_json::ping_line()));
        }
        drop(taken);
        let mut lines = Vec::new();
        while lines.len() < 2 {
            let line = next().await.expect("the stream goes on");
            lines.extend((line != queue_json::ping_line()).then_some(line));
        }
        assert_eq!(
            lines,
            [Heard::Messages(vec![message]), Heard::Released(vec![key(8)])]
                .map(|heard| Bytes::from(queue_json::lines(&heard)))
        );
    }
}
