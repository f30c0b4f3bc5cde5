//! An answer that streams: its end has a line, too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};

use super::entry::Entry;
use crate::answer::{AnswerBody, Interrupted};

type Frames = UnsyncBoxBody<Bytes, Interrupted>;

pub(super) struct AuditedStream {
    frames: Frames,
    bytes: u64,
    /// The gateway has ended it, and not the client or its connection.
    has_ended: bool,
    entry: Arc<Entry>,
}

impl AuditedStream {
    pub(super) fn over(frames: Frames, entry: Arc<Entry>) -> AnswerBody {
        let stream = Self { frames, bytes: 0, has_ended: false, entry };
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
        self.entry.note(|line| {
            line.happens();
            line.set("outcome", if self.has_ended { "ended" } else { "closed" });
            line.set("bytes_out", self.bytes);
        });
    }
}
