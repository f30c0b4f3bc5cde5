//! A listener's stream of a queue: its lines as they come, pings among them.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::client::{CallError, KvClient, Sender};

/// A stream under way. To drop it ends it.
#[derive(Debug)]
pub struct Listening {
    body: Incoming,
    received: BytesMut,
    /// Of the connection that the body comes over.
    _sender: Sender,
}

impl KvClient {
    /// Listens to the queue, as `body` asks for it, once the gateway has begun to answer.
    pub async fn listen(&self, body: Bytes) -> Result<Listening, CallError> {
        let (body, sender) = self.begin("/kv/queue/listen", body).await?;
        Ok(Listening { body, received: BytesMut::new(), _sender: sender })
    }
}

impl Listening {
    /// The next line, without its end; `None` once the gateway has ended the stream.
    ///
    /// # Errors
    /// When the connection broke. May be dropped at any await: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line = self.received.split_to(end + 1).freeze();
                return Ok(Some(line.slice(..end)));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| CallError::NoAnswer(error.to_string()))?;
            self.received.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        }
    }
}
