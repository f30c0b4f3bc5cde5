//! Messages that come back from their own encoding as they were.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;

use crate::{times, within};

/// The message of these bytes, if they are one. It holds no more than a multiple of them, and is
/// encoded in no more bytes, which are decoded as the same.
///
/// # Panics
/// When it is not so.
pub fn stable<T: Message + Default + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let bytes = Bytes::copy_from_slice(data);
    let message = within(times(2048, data.len()), || T::decode(bytes)).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let again = T::decode(Bytes::from(encoded.clone())).expect("what was encoded is decoded");
    assert_eq!(again, message);
    assert_eq!(again.encode_to_vec(), encoded, "one message has one encoding");
    Some(message)
}
