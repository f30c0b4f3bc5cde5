//! How messages travel between processes: as gRPC has it, with a checksum of every message behind
//! it.
//!
//! TCP's own checksum is weak and ends at whatever proxy, card or kernel made it anew; without TLS
//! nothing else would notice a vote, a log id or an answer that changed on the way. Batches have a
//! checksum of their own besides, which the leader made and disks keep: this one is each hop's.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes};
use meridian_types::LineLimit;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The key of field 2047 of wire type 5, which no message has, so that what is sent is still
/// protobuf. Four bytes in little-endian order follow, the last of a message: the crc32c of all
/// before the key.
const CHECKSUM_KEY: [u8; 2] = [0xfd, 0x7f];

/// Of damaged messages: any program that reaches a port can send them without end.
static LINES: Mutex<LineLimit<Instant>> = Mutex::new(LineLimit::new(1));

/// Protobuf with a checksum. A message that does not match its own is an error of the call, or of
/// the stream, as a broken connection is.
#[derive(Debug)]
pub(crate) struct ChecksumCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ChecksumCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ChecksumCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ChecksumEncoder<T>;
    type Decoder = ChecksumDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ChecksumEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ChecksumDecoder(PhantomData)
    }
}

#[derive(Debug)]
pub(crate) struct ChecksumEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for ChecksumEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let message = item.encode_to_vec();
        to.reserve(message.len() + CHECKSUM_KEY.len() + 4);
        to.put_slice(&message);
        to.put_slice(&CHECKSUM_KEY);
        to.put_u32_le(crc32c::crc32c(&message));
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct ChecksumDecoder<T>(PhantomData<T>);

impl<T: Message + Default> Decoder for ChecksumDecoder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        let message = verified(message).ok_or_else(|| {
            let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
            damaged(kind, &LINES, Instant::now())
        })?;
        T::decode(message).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Counts a damaged message, and logs a line if one is left.
fn damaged(kind: &str, lines: &Mutex<LineLimit<Instant>>, now: Instant) -> Status {
    metrics::counter!("meridian_damaged_messages_total").increment(1);
    let line = lines.lock().unwrap_or_else(PoisonError::into_inner).take(now);
    if let Some(left_out) = line {
        tracing::warn!(
            kind,
            left_out,
            "a message from another process was damaged on the way; its sender tries again"
        );
    }
    Status::data_loss(format!("a {kind} was damaged on the way: its checksum does not match"))
}

/// The message without its checksum, if they match.
fn verified(bytes: Bytes) -> Option<Bytes> {
    let (rest, checksum) = bytes.split_last_chunk::<4>()?;
    let (message, key) = rest.split_last_chunk::<2>()?;
    let matches = *key == CHECKSUM_KEY && crc32c::crc32c(message) == u32::from_le_bytes(*checksum);
    matches.then(|| bytes.slice(..message.len()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tracing::span;

    use super::*;

    /// Counts the lines that are logged on this thread.
    #[derive(Clone, Default)]
    struct Logged(Arc<AtomicUsize>);

    impl tracing::Subscriber for Logged {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn flood_of_damaged_messages_is_refused_one_by_one_and_logged_once_a_minute() {
        let (lines, logged, now) =
            (Mutex::new(LineLimit::new(1)), Logged::default(), Instant::now());
        let lines_after = |after| {
            let damaged = || damaged("Batches", &lines, now + Duration::from_secs(after));
            let status = tracing::subscriber::with_default(logged.clone(), damaged);
            assert_eq!(status.code(), tonic::Code::DataLoss);
            logged.0.load(Ordering::Relaxed)
        };
        assert!((0..60).all(|second| lines_after(second) == 1));
        assert!((60..120).all(|second| lines_after(second) == 2));
    }

    #[test]
    fn a_damaged_message_is_refused() {
        let mut bytes = b"123456789".to_vec();
        // The check value of crc32c.
        bytes.extend(b"\xfd\x7f\x83\x92\x06\xe3");
        assert_eq!(verified(bytes.clone().into()).unwrap(), b"123456789".as_slice());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verified(damaged.into()), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(verified(Bytes::copy_from_slice(&bytes[..len])), None, "{len} bytes");
        }
    }
}
