//! A watch: its messages as they come, pings among them.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use prost::Message;

use crate::client::{CallError, KvClient, Sender};

/// A gateway's message on a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchMessage {
    Ping,
    News(pb::WatchOutput),
}

/// A watch under way. To drop it ends it.
#[derive(Debug)]
pub struct Watching {
    body: Incoming,
    received: Received,
    /// Of the connection that the body comes over, if it has one of its own.
    _sender: Option<Sender>,
}

impl KvClient {
    /// Watches keys, once the gateway has begun to answer.
    pub async fn watch(
        &self,
        consistency: Consistency,
        keys: &[&[u8]],
    ) -> Result<Watching, CallError> {
        let path = match consistency {
            Consistency::Strong => "/kv/strong/watch",
            Consistency::Eventual => "/kv/eventual/watch",
        };
        let key = |key: &&[u8]| pb::WatchKey { key: Bytes::copy_from_slice(key) };
        let watch = pb::Watch { keys: keys.iter().map(key).collect() };
        let request = self.request(path, &self.headers(), watch.encode_to_vec().into())?;
        let (body, sender) = self.begin(request).await?;
        Ok(Watching { _sender: Some(sender), ..Watching::over(body) })
    }
}

impl Watching {
    /// The body of an answer to a watch.
    pub fn over(body: Incoming) -> Self {
        Self { body, received: Received::default(), _sender: None }
    }

    /// The next message; `None` once the gateway has ended the watch.
    ///
    /// # Errors
    /// When the connection broke, or what came is no message. May be dropped at any await: nothing
    /// is lost.
    pub async fn next(&mut self) -> Result<Option<WatchMessage>, CallError> {
        let failed = |error: &dyn std::error::Error| CallError::NoAnswer(error.to_string());
        loop {
            if let Some(message) = self.received.message() {
                let output = pb::WatchOutput::decode(message.clone());
                return Ok(Some(match message.is_empty() {
                    true => WatchMessage::Ping,
                    false => WatchMessage::News(output.map_err(|error| failed(&error))?),
                }));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| failed(&error))?;
            self.received.0.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        }
    }

    /// The next message that is no ping.
    ///
    /// # Errors
    /// As [`Watching::next`], and when the gateway has ended the watch.
    pub async fn news(&mut self) -> Result<pb::WatchOutput, CallError> {
        loop {
            match self.next().await? {
                Some(WatchMessage::News(output)) => return Ok(output),
                Some(WatchMessage::Ping) => {}
                None => return Err(CallError::NoAnswer("the gateway ended the watch".to_owned())),
            }
        }
    }
}

/// Received bytes that were not taken yet.
#[derive(Debug, Default)]
struct Received(BytesMut);

impl Received {
    /// A whole message, once it has come; a ping as an empty one.
    fn message(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(*self.0.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        if self.0.len() < length.checked_add(4)? {
            return None;
        }
        self.0.advance(4);
        Some(self.0.split_to(length).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_wherever_the_pieces_end_that_they_come_in() {
        let sent = b"\0\0\0\0\x03\0\0\0abc\0\0\0\0\x01\0\0\0d";
        for size in 1..=sent.len() {
            let (mut received, mut messages) = (Received::default(), Vec::new());
            for piece in sent.chunks(size) {
                received.0.extend_from_slice(piece);
                messages.extend(std::iter::from_fn(|| received.message()));
            }
            assert_eq!(messages, ["", "abc", "", "d"], "in pieces of {size}");
        }
    }
}
