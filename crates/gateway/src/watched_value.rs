//! The value of a watched key as a client is told of it, encoded once for all watches of the key; and
//! the messages that such values are put together to.

use bytes::{BufMut, Bytes, BytesMut};
use meridian_proto::kv_connect as pb;
use meridian_types::{Entry, Versionstamp};
use prost::Message;
use prost::encoding::{decode_key, decode_varint};

/// The news of each key of a [`Watch`](crate::Watch), in their order, all of one state. `None`: the
/// key is as it was told last.
pub type WatchNews = Vec<Option<WatchedValue>>;

/// The bytes that news take until their client takes them.
#[must_use]
pub fn size_of_news(news: &WatchNews) -> u64 {
    let values = news.iter().flatten().map(WatchedValue::size).sum::<usize>();
    (values + std::mem::size_of_val(news.as_slice())) as u64
}

/// A message without a body: its length, 0.
pub(crate) const PING: Bytes = Bytes::from_static(&[0; 4]);
/// Field 1, the status of a [`pb::WatchOutput`]: `SR_SUCCESS`.
const STATUS: [u8; 2] = [0x08, 0x01];
/// Field 2 of it, of a key that has not changed: an empty [`pb::WatchKeyOutput`].
const UNCHANGED: [u8; 2] = [0x12, 0x00];
/// The same of a key that is absent: `changed`, without an entry.
const ABSENT: &[u8] = &[0x12, 0x02, 0x08, 0x01];
/// The number of that field.
const KEYS: u32 = 2;
/// The size from which a value is not copied into a message, but sent as a piece of its own.
const COPIED_BYTES: usize = 4096;

/// A key's value, or that there is none, as clients are told of it. Cheap to clone; clones share the
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedValue {
    versionstamp: Option<Versionstamp>,
    /// Field 2 of a [`pb::WatchOutput`].
    encoded: Bytes,
}

impl WatchedValue {
    pub fn present(entry: Entry) -> Self {
        let versionstamp = Some(entry.versionstamp);
        let entry = pb::KvEntry {
            key: entry.key,
            value: entry.value.data,
            encoding: i32::from(entry.value.encoding.number()),
            versionstamp: Bytes::copy_from_slice(&entry.versionstamp.0),
        };
        Self::new(versionstamp, pb::WatchKeyOutput { changed: true, entry_if_changed: Some(entry) })
    }

    pub fn absent() -> Self {
        Self { versionstamp: None, encoded: Bytes::from_static(ABSENT) }
    }

    fn new(versionstamp: Option<Versionstamp>, output: pb::WatchKeyOutput) -> Self {
        let mut encoded = BytesMut::with_capacity(output.encoded_len() + 6);
        prost::encoding::message::encode(KEYS, &output, &mut encoded);
        Self { versionstamp, encoded: encoded.freeze() }
    }

    /// `None`: the key is absent.
    pub fn versionstamp(&self) -> Option<Versionstamp> {
        self.versionstamp
    }

    /// The bytes that it takes.
    pub fn size(&self) -> usize {
        self.encoded.len()
    }

    /// As it travels between nodes.
    pub fn to_wire(news: Option<&Self>) -> pb::WatchKeyOutput {
        let message = news.and_then(|value| {
            let mut encoded = value.encoded.clone();
            decode_key(&mut encoded).ok()?;
            decode_varint(&mut encoded).ok()?;
            pb::WatchKeyOutput::decode(encoded).ok()
        });
        message.unwrap_or_default()
    }

    /// The value as another node sent it; `None`: the key has not changed.
    ///
    /// # Errors
    /// The name of the field that is out of its range.
    pub fn from_wire(output: pb::WatchKeyOutput) -> Result<Option<Self>, &'static str> {
        let versionstamp = match &output.entry_if_changed {
            _ if !output.changed => return Ok(None),
            None => None,
            Some(entry) => {
                Some(Versionstamp::from_slice(&entry.versionstamp).ok_or("versionstamp")?)
            }
        };
        Ok(Some(Self::new(versionstamp, output)))
    }
}

/// The bytes of a message, with its length before it.
pub(crate) fn size_of_message(news: &WatchNews) -> usize {
    let keys = news.iter().map(|value| value.as_ref().map_or(UNCHANGED.len(), WatchedValue::size));
    PING.len() + STATUS.len() + keys.sum::<usize>()
}

/// A message with its length before it, in the pieces that it is sent in.
pub(crate) fn message(news: &WatchNews) -> Vec<Bytes> {
    let length = size_of_message(news) - PING.len();
    let mut pieces = Vec::with_capacity(1);
    let mut piece = BytesMut::new();
    // Ten values are far smaller.
    piece.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    piece.put_slice(&STATUS);
    for value in news {
        match value {
            None => piece.put_slice(&UNCHANGED),
            Some(value) if value.size() <= COPIED_BYTES => piece.put_slice(&value.encoded),
            Some(value) => pieces.extend([piece.split().freeze(), value.encoded.clone()]),
        }
    }
    pieces.push(piece.freeze());
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use meridian_types::{Value, ValueEncoding};

    use super::*;

    fn entry(data: Bytes) -> Entry {
        let value = Value { encoding: ValueEncoding::Bytes, data };
        Entry { key: Bytes::from_static(b"a"), value, versionstamp: Versionstamp([7; 10]) }
    }

    fn joined(news: &WatchNews) -> Vec<u8> {
        let pieces = message(news);
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), size_of_message(news));
        pieces.concat()
    }

    #[test]
    fn watch_messages_are_golden() {
        assert_eq!(joined(&vec![]), b"\x02\0\0\0\x08\x01");
        let present = WatchedValue::present(entry(Bytes::from_static(b"xy")));
        let news = vec![Some(present), None, Some(WatchedValue::absent())];
        let golden = b"\x23\0\0\0\x08\x01\
            \x12\x19\x08\x01\x12\x15\x0a\x01a\x12\x02xy\x18\x03\x22\x0a\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
            \x12\0\
            \x12\x02\x08\x01";
        assert_eq!(joined(&news), golden);
    }

    #[test]
    fn large_value_is_sent_as_it_was_encoded_and_is_the_same_message() {
        let large = WatchedValue::present(entry(vec![9; COPIED_BYTES].into()));
        let news = vec![None, Some(large.clone()), None, Some(large.clone())];
        let pieces = message(&news);
        let shares = |piece: &Bytes| piece.as_ptr() == large.encoded.as_ptr();
        assert_eq!(pieces.iter().filter(|piece| shares(piece)).count(), 2);
        let output = pb::WatchOutput::decode(&joined(&news)[4..]).unwrap();
        let changed: Vec<_> = output.keys.iter().map(|key| key.changed).collect();
        assert_eq!((output.status, changed), (1, vec![false, true, false, true]));
    }

    #[test]
    fn what_travels_between_nodes_arrives_as_it_was() {
        let present = WatchedValue::present(entry(Bytes::from_static(b"xy")));
        for value in [None, Some(WatchedValue::absent()), Some(present)] {
            let wire = WatchedValue::to_wire(value.as_ref());
            assert_eq!(WatchedValue::from_wire(wire), Ok(value));
        }
        let mut damaged = WatchedValue::to_wire(Some(&WatchedValue::present(entry(Bytes::new()))));
        damaged.entry_if_changed.as_mut().unwrap().versionstamp = Bytes::from_static(b"short");
        assert_eq!(WatchedValue::from_wire(damaged), Err("versionstamp"));
    }
}
