//! The body of an answer on its way to its client, under the rules for slow clients.
//!
//! Whole answers are as hyper takes them, without a box. A streaming answer keeps its
//! connection busy, so that a quiet stream is not idle; but each frame must be taken in time. A frame
//! counts as taken when the connection asks for the next one, which it does when its buffers have room
//! again. When the connection closes, its streams end between two frames, and their clients open them
//! again elsewhere.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::activity::{Activity, Busy, StreamRoom, Untaken};
use crate::answer::{AnswerBody, Interrupted};
use crate::usage::Metered;

pub(super) enum Sending {
    Whole(Full<Bytes>),
    Frames(Box<Stream>),
}

pub(super) struct Stream {
    frames: UnsyncBoxBody<Bytes, Interrupted>,
    activity: Arc<Activity>,
    idle: Duration,
    /// Ready when the connection closes.
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The frame that was handed over last, until the connection asks for the next.
    untaken: Option<Untaken>,
    /// The request is in progress until its last frame.
    _busy: Option<Busy>,
    /// The accounts that its bytes count for.
    metered: Option<Metered>,
    /// Until a quota on their bytes allows more.
    turn: Option<Pin<Box<Sleep>>>,
}

impl Sending {
    /// `busy`: the request of a streaming answer; a whole answer needs none. `stream`: over HTTP/2.
    pub(super) fn new(
        body: AnswerBody,
        busy: Option<Busy>,
        activity: &Arc<Activity>,
        idle: Duration,
        stream: Option<StreamRoom>,
    ) -> Self {
        match body {
            AnswerBody::Whole(bytes) => {
                Self::Whole(Full::new(activity.sending(bytes, idle, stream)))
            }
            AnswerBody::Frames(frames) => Self::Frames(Box::new(Stream {
                frames,
                activity: Arc::clone(activity),
                idle,
                end: Box::pin(activity.streams_end()),
                // Until the first frame is asked for, the head is.
                untaken: Some(activity.untaken(0, idle)),
                _busy: busy.map(Busy::streams),
                metered: None,
                turn: None,
            })),
        }
    }

    /// The same, whose bytes are counted: of a whole answer now, of a stream as they are sent.
    pub(super) fn metered(mut self, metered: Option<Metered>) -> Self {
        match &mut self {
            Self::Whole(whole) => {
                let bytes = whole.size_hint().exact().unwrap_or(0);
                metered.inspect(|metered| metered.answered(bytes, Instant::now()));
            }
            Self::Frames(stream) => stream.metered = metered,
        }
        self
    }
}

impl Stream {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        self.untaken = None;
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(context));
            self.turn = None;
        }
        let frame = ready!(Pin::new(&mut self.frames).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.untaken = Some(self.activity.untaken(length, self.idle));
            if let Some(metered) = &self.metered {
                let now = Instant::now();
                metered.answered(length as u64, now);
                let turn = metered.stream_turn().filter(|turn| *turn > now);
                self.turn = turn.map(|turn| Box::pin(sleep_until(turn)));
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Frames(stream) => stream.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Frames(stream) => stream.frames.is_end_stream(),
        }
    }

    /// Of frames nothing: they may end early.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Frames(_) => SizeHint::default(),
        }
    }
}
