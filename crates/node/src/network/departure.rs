//! Whether a message has left this process: what waits for a connection can be taken back for
//! certain.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::http::Request;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Channel;

use crate::network::call_failure::Failed;

const HERE: u8 = 0;
const LEFT: u8 = 1;
const TAKEN_BACK: u8 = 2;

/// Of one message: it leaves, or it is taken back, and never both.
#[derive(Debug, Default)]
pub(crate) struct Departure(AtomicU8);

impl Departure {
    /// Lets the message go, unless it was taken back.
    pub(crate) fn leave(&self) -> bool {
        self.turn_from_here(LEFT) != TAKEN_BACK
    }

    /// It is here again: nothing came of its leaving.
    pub(crate) fn come_back(&self) {
        // A message that was taken back stays so.
        self.0.compare_exchange(LEFT, HERE, Ordering::SeqCst, Ordering::SeqCst).ok();
    }

    /// True: nothing of the message was sent, and nothing will be.
    pub(crate) fn take_back(&self) -> bool {
        self.turn_from_here(TAKEN_BACK) != LEFT
    }

    /// Why a try gave nothing of which no answer is waited for any more: what had not left did
    /// nothing, and takes no part any more.
    pub(crate) fn not_answered(&self, reason: String) -> Failed {
        match self.take_back() {
            true => Failed::Unreachable(format!("{reason}, and no connection")),
            false => Failed::Unknown(reason),
        }
    }

    /// Changes the state if the message is still here. Returns the state before.
    fn turn_from_here(&self, to: u8) -> u8 {
        self.0
            .compare_exchange(HERE, to, Ordering::SeqCst, Ordering::SeqCst)
            .unwrap_or_else(|was| was)
    }
}

/// A channel for one message. A channel hands the body of a request to a connection, and to nothing
/// before there is one: when it is first asked for, the message leaves.
#[derive(Clone)]
pub(crate) struct Departing {
    pub(crate) channel: Channel,
    pub(crate) departure: Arc<Departure>,
}

impl Service<Request<Body>> for Departing {
    type Response = <Channel as Service<Request<Body>>>::Response;
    type Error = <Channel as Service<Request<Body>>>::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<Body>>::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let departure = Arc::clone(&self.departure);
        self.channel.call(request.map(|body| Body::new(Message { body, departure })))
    }
}

struct Message {
    body: Body,
    departure: Arc<Departure>,
}

impl hyper::body::Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.departure.leave() {
            // The other side gets a stream without a message, which it does nothing about.
            return Poll::Ready(Some(Err(Status::cancelled("taken back before it was sent"))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_that_left_is_not_taken_back_and_the_other_way_round() {
        let left = Departure::default();
        assert!(left.leave() && left.leave() && !left.take_back());
        let kept = Departure::default();
        kept.come_back();
        assert!(kept.take_back() && kept.take_back() && !kept.leave());
        kept.come_back();
        assert!(!kept.leave());
        left.come_back();
        assert!(left.take_back());
    }
}
