//! An answer that streams: its end has a line, too.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};

use crate::answer::{AnswerBody, Interrupted};

type Frames = UnsyncBoxBody<Bytes, Interrupted>;

/// Told whether the gateway has ended the stream, and its bytes.
type Done = Box<dyn FnOnce(bool, u64) + Send>;

pub(super) struct AuditedStream {
    frames: Frames,
    bytes: u64,
    /// The gateway has ended it, and not the client or its connection.
    has_ended: bool,
    done: Option<Done>,
}

impl AuditedStream {
    pub(super) fn over(
        frames: Frames,
        done: impl FnOnce(bool, u64) + Send + 'static,
    ) -> AnswerBody {
        let stream = Self { frames, bytes: 0, has_ended: false, done: Some(Box::new(done)) };
        AnswerBody::Frames(stream.boxed_unsync())
    }
}

impl Body for AuditedStream {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let frame = ready!(Pin::new(&mut self.frames).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => self.has_ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.frames.size_hint()
    }
}

impl Drop for AuditedStream {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(self.has_ended, self.bytes);
        }
    }
}
