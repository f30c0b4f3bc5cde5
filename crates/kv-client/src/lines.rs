//! Answers that are lines and go on: a listener's stream of its queue, a feed of changes.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::client::{CallError, KvClient, Sender};

/// The lines of an answer, as they come. To drop it ends it.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    received: Received,
    /// Of the connection that the body comes over, if it has one of its own.
    _sender: Option<Sender>,
}

impl KvClient {
    /// Listens to the queue, as `body` asks for it, once the gateway has begun to answer.
    pub async fn listen(&self, body: Bytes) -> Result<Lines, CallError> {
        let request = self.request("/kv/queue/listen", &self.headers(), body)?;
        Ok(Lines::of(self.begin(request).await?))
    }
}

impl Lines {
    /// The body of an answer.
    pub fn over(body: Incoming) -> Self {
        Self { body, received: Received::default(), _sender: None }
    }

    pub(crate) fn of((body, sender): (Incoming, Sender)) -> Self {
        Self { _sender: Some(sender), ..Self::over(body) }
    }

    /// The next line, without its end; `None` once the gateway has ended the answer.
    ///
    /// # Errors
    /// When the connection broke. May be dropped at any await: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(line) = self.received.line() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| CallError::NoAnswer(error.to_string()))?;
            let data = frame.data_ref().map_or(&[][..], |data| data.as_ref());
            self.received.bytes.extend_from_slice(data);
        }
    }
}

/// Received bytes that were not taken yet.
#[derive(Debug, Default)]
struct Received {
    bytes: BytesMut,
    /// So many of them are no end of a line.
    searched: usize,
}

impl Received {
    /// A whole line, once it has come.
    fn line(&mut self) -> Option<Bytes> {
        let fresh = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(at) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let end = std::mem::take(&mut self.searched) + at;
        let mut line = self.bytes.split_to(end + 1);
        line.truncate(end);
        Some(line.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_wherever_the_pieces_end_that_they_come_in() {
        let sent = b"one\n\nthree\nfo";
        for size in 1..=sent.len() {
            let (mut received, mut lines) = (Received::default(), Vec::new());
            for piece in sent.chunks(size) {
                received.bytes.extend_from_slice(piece);
                lines.extend(std::iter::from_fn(|| received.line()));
            }
            assert_eq!(lines, ["one", "", "three"], "in pieces of {size}");
        }
    }
}
