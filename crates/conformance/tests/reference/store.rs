//! The interface of all stores, and how their answers are compared.

use std::collections::HashMap;

use bytes::Bytes;
use meridian_proto::kv_connect as pb;

use crate::messages::Stamps;

/// A refusal, and how another store's is to be compared with it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// With this text, to the letter.
    Text(String),
    /// With a text that has this part: the reference's server has words of its own.
    About(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Written {
    Committed(Bytes),
    /// With the checks that failed.
    CheckFailed(Vec<u32>),
    Refused(Refusal),
}

pub(crate) type Read = Result<Vec<Vec<pb::KvEntry>>, Refusal>;

/// The entries of watched keys, in the order in which a watch names them.
pub(crate) type Watched = Vec<Option<pb::KvEntry>>;

/// A message that is not delivered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Queued<K> {
    pub(crate) due_ms: u64,
    pub(crate) payload: Bytes,
    pub(crate) backoff_ms: Vec<u32>,
    pub(crate) keys_if_undelivered: Vec<K>,
}

/// The part of a database that no answer tells.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// The keys that expire, and when, in the order of their bytes.
    pub(crate) expiries: Vec<(Bytes, u64)>,
    /// In any order.
    pub(crate) messages: Vec<Queued<Bytes>>,
}

/// A database of one of the two sides, and the versionstamps of its writes so far.
pub(crate) trait Store {
    fn stamps(&self) -> &Stamps;

    /// Its next write has this versionstamp.
    fn committed(&mut self, stamp: Bytes);

    async fn write(&mut self, message: pb::AtomicWrite) -> Written;

    async fn read(&mut self, message: pb::SnapshotRead) -> Read;

    /// Begins to watch keys, for the first message.
    async fn watch(&mut self, message: pb::Watch) -> Result<Watched, Refusal>;

    async fn hidden(&mut self) -> Hidden;
}

/// An entry without what both sides choose for themselves: a versionstamp is the number of the write
/// that it is of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    key: SeenKey,
    encoding: i32,
    value: Bytes,
    write: Option<usize>,
}

/// A key, and the write whose versionstamp stands behind it.
pub(crate) type SeenKey = (Vec<u8>, Option<usize>);

/// Looks at answers of one side.
pub(crate) struct Eyes(HashMap<Vec<u8>, usize>);

impl Eyes {
    pub(crate) fn new(stamps: &Stamps) -> Self {
        Self(stamps.iter().zip(0..).map(|(stamp, write)| (stamp.to_vec(), write)).collect())
    }

    pub(crate) fn entry(&self, entry: &pb::KvEntry) -> Seen {
        Seen {
            key: self.key(&entry.key),
            encoding: entry.encoding,
            value: entry.value.clone(),
            write: self.0.get(entry.versionstamp.as_ref()).copied(),
        }
    }

    pub(crate) fn entries(&self, entries: &[pb::KvEntry]) -> Vec<Seen> {
        entries.iter().map(|entry| self.entry(entry)).collect()
    }

    pub(crate) fn watched(&self, watched: &Watched) -> Vec<Option<Seen>> {
        watched.iter().map(|entry| entry.as_ref().map(|entry| self.entry(entry))).collect()
    }

    pub(crate) fn hidden(&self, hidden: Hidden) -> (Vec<(SeenKey, u64)>, Vec<Queued<SeenKey>>) {
        let expiries = hidden.expiries.iter().map(|(key, at)| (self.key(key), *at)).collect();
        let message = |message: Queued<Bytes>| Queued {
            due_ms: message.due_ms,
            payload: message.payload,
            backoff_ms: message.backoff_ms,
            keys_if_undelivered: message.keys_if_undelivered.iter().map(|k| self.key(k)).collect(),
        };
        let mut messages: Vec<_> = hidden.messages.into_iter().map(message).collect();
        messages.sort();
        (expiries, messages)
    }

    fn key(&self, key: &[u8]) -> SeenKey {
        let stamped = || {
            let (base, behind) = key.split_at_checked(key.len().checked_sub(22)?)?;
            let digits = behind.strip_prefix(b"\x02")?.strip_suffix(b"\0")?;
            let digits = std::str::from_utf8(digits).ok()?;
            let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
            let stamp = (0..20).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?;
            Some((base.to_vec(), Some(*self.0.get(&stamp)?)))
        };
        stamped().unwrap_or_else(|| (key.to_vec(), None))
    }
}
