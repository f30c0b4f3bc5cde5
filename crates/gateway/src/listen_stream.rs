//! The answer to a listener: lines of JSON as there are messages, and pings, at the pace of the
//! client.
//!
//! Lines that the client has not taken count among the answers that clients have not taken yet.
//! Where there is no room for it the answer ends: the listener comes back, and its messages wait
//! for it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use meridian_queue::ListenerId;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::Catalogue;
use crate::answer::Interrupted;
use crate::database::{Heard, Listened};
use crate::permission::Permission;
use crate::queue_json;
use crate::shares::{Holder, Share, Shares};

/// Between two pings.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The body of the answer. It ends with its permission.
pub(crate) struct ListenStream<C> {
    listened: Listened,
    permission: Permission<C>,
    answers: Shares,
    holder: Holder,
    /// The listener is one of those that may be open, until this is dropped.
    _listener: Share,
    lines: VecDeque<Bytes>,
    pings: Interval,
    is_over: bool,
}

impl<C: Catalogue> ListenStream<C> {
    pub(crate) fn new(
        (listener, listened): (ListenerId, Listened),
        permission: Permission<C>,
        (answers, holder): (Shares, Holder),
        share: Share,
    ) -> Self {
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first ping goes at once.
        let lines = VecDeque::from([queue_json::open_line(listener), queue_json::ping_line()]);
        let _listener = share;
        Self { listened, permission, answers, holder, _listener, lines, pings, is_over: false }
    }

    /// The next line, or several; `None` at the end.
    fn poll_lines(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Interrupted>>> {
        if let Some(line) = self.lines.pop_front() {
            return Poll::Ready(Some(Ok(line)));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.pings.poll_tick(context).is_ready() {
            if self.permission.holds() {
                return Poll::Ready(Some(Ok(queue_json::ping_line())));
            }
            return Poll::Ready(None);
        }
        let heard = ready!(self.listened.heard.poll_recv(context));
        let lines = match heard.filter(|_| self.permission.holds()) {
            None => return Poll::Ready(None),
            Some(Heard::Ended(reason)) => {
                self.is_over = true;
                return Poll::Ready(Some(Ok(queue_json::end_line(&reason))));
            }
            Some(Heard::Messages(messages)) => {
                messages.iter().flat_map(queue_json::message_line).collect::<Vec<u8>>()
            }
            Some(Heard::Released(keys)) => keys.iter().flat_map(queue_json::release_line).collect(),
        };
        let share = self.answers.take(self.holder, lines.len() as u64);
        let unread = || Interrupted("too many bytes of answers are unread".to_owned());
        Poll::Ready(Some(share.ok_or_else(unread).map(|share| share.held_with(lines.into()))))
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
        Poll::Ready(lines.map(|lines| lines.map(Frame::data)))
    }
}
