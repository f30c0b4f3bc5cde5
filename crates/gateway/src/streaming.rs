//! Answers in frames: a door, which no route uses yet.
//!
//! The frames of an answer come from a [`Body`], at the pace of its client: nothing is asked for
//! before the connection has room for it. What bounds whole answers bounds frames, too: a stream is a
//! request in progress, its unread bytes are counted among all answers, and `server::sending` cuts a
//! connection whose client does not take a frame.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use crate::answer::Interrupted;
use crate::shares::{Holder, Share, Shares};

/// Frames whose bytes are counted until they have left. A frame beyond the bounds ends the answer: a
/// client that reads slowly must not hold the others' memory.
pub(crate) struct Metered<B> {
    frames: Pin<Box<B>>,
    answers: Shares,
    holder: Holder,
    /// The answer is a request in progress until it is dropped.
    _request: Share,
}

impl<B> Metered<B> {
    pub(crate) fn new(frames: B, answers: Shares, holder: Holder, request: Share) -> Self {
        Self { frames: Box::pin(frames), answers, holder, _request: request }
    }
}

impl<B: Body<Data = Bytes, Error = Interrupted>> Body for Metered<B> {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let this = self.get_mut();
        let Some(frame) = ready!(this.frames.as_mut().poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let Ok(bytes) = frame?.into_data() else {
            return Poll::Ready(Some(Err(Interrupted("a frame holds no data".to_owned()))));
        };
        let share = this.answers.take(this.holder, bytes.len() as u64);
        Poll::Ready(Some(match share {
            Some(share) => Ok(Frame::data(share.held_with(bytes))),
            None => Err(Interrupted("too many bytes of answers are unread".to_owned())),
        }))
    }
}
