//! Rows in a database, over KV Connect.

use bytes::Bytes;
use meridian_kv_client::message::{mutation, point};
use meridian_kv_client::{CallError, ClientError, Endpoint, HttpVersion, KvClient, Metadata};
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};

use crate::row::{Keys, Row};
use crate::step::{Event, Sight, Version, Write};
use crate::ticker::TIMEOUT;

/// Requests of all crons of a process at once, over a connection each.
const MAX_REQUESTS: usize = 32;

/// `true` in V8's serialization, as the value of the key that expires.
const TRUE: &[u8] = b"\xff\x0fT";

/// `["meridian", "cron"]`, which is no cron's key.
const PROBE: &[u8] = b"\x02meridian\0\x02cron\0";

/// The rows of one database, through one gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rows {
    url: Arc<str>,
    token: Arc<str>,
    /// `None`: the gateway has not told the database yet.
    client: Arc<Mutex<Option<KvClient>>>,
    room: Arc<Semaphore>,
}

/// Why rows are not read or written.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error(transparent)]
    Open(#[from] ClientError),
    #[error("{url}: the gateway named the database `{id}`, which is no database of Meridian")]
    Database { url: String, id: String },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the gateway answered the write with {0}")]
    Refused(&'static str),
    #[error(
        "the value at the key of its row is none of this version: if it is of no other, delete it"
    )]
    NoRow,
}

impl Rows {
    /// The URL of a database as clients open it.
    pub(crate) fn new(url: String, token: String) -> Self {
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        Self { url: url.into(), token: token.into(), client: Arc::default(), room }
    }

    /// Asks the gateway for the database, unless it has told.
    pub(crate) async fn client(&self) -> Result<KvClient, RowsError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let metadata = Metadata::exchange(&self.url, &self.token, HttpVersion::H1, TIMEOUT).await?;
        let unknown =
            || RowsError::Database { url: self.url.to_string(), id: metadata.database_id.clone() };
        let database = metadata.database_id.parse().map_err(|_| unknown())?;
        // The way that the metadata was asked on, not a public one.
        let base = Endpoint::parse(&self.url)?.origin();
        let opened = KvClient::new(base, &*self.token, database).with_timeout(TIMEOUT);
        Ok(client.insert(opened).clone())
    }

    pub(crate) async fn read(&self, keys: &Keys) -> Result<Sight, RowsError> {
        let ranges = vec![point(&keys.row), point(&keys.due)];
        let _room = self.room.acquire().await;
        let read = self.client().await?.read(Consistency::Strong, ranges).await;
        let output = self.known(read).await?;
        let mut entries = output.ranges.into_iter().map(|range| range.values.into_iter().next());
        let row = match entries.next().flatten() {
            Some(entry) => {
                let row = Row::decode(&entry.value).ok_or(RowsError::NoRow)?;
                Some((row, entry.versionstamp))
            }
            None => None,
        };
        Ok(Sight { row, is_due: entries.next().flatten().is_none() })
    }

    pub(crate) async fn write(&self, keys: &Keys, write: &Write) -> Result<Event, RowsError> {
        let check = |key: &Bytes, version: &Version| pb::Check {
            key: key.clone(),
            versionstamp: version.clone(),
        };
        let mut checks = vec![check(&keys.row, write.check.as_ref().unwrap_or(&Version::new()))];
        if write.check_due {
            checks.push(check(&keys.due, &Version::new()));
        }
        let set = |key: &[u8], value: &[u8]| {
            mutation(pb::MutationType::MSet, key, pb::ValueEncoding::VeV8, value)
        };
        let mut mutations = vec![set(&keys.row, &write.row.encode())];
        if write.sets_due {
            let expire_at_ms = i64::try_from(write.row.next).unwrap_or(i64::MAX);
            mutations.push(pb::Mutation { expire_at_ms, ..set(&keys.due, TRUE) });
        }
        let write = pb::AtomicWrite { checks, mutations, ..Default::default() };
        let output = self.send(write).await?;
        match output.status() {
            pb::AtomicWriteStatus::AwSuccess => Ok(Event::Written(output.versionstamp)),
            pb::AtomicWriteStatus::AwCheckFailure => Ok(Event::Conflict),
            other => Err(RowsError::Refused(other.as_str_name())),
        }
    }

    async fn send(&self, write: pb::AtomicWrite) -> Result<pb::AtomicWriteOutput, RowsError> {
        let _room = self.room.acquire().await;
        let written = self.client().await?.write(write).await;
        self.known(written).await
    }

    /// A gateway that refuses the database is asked for it again: one of its name may have been made
    /// anew.
    async fn known<T>(&self, answer: Result<T, CallError>) -> Result<T, RowsError> {
        if matches!(&answer, Err(CallError::Refused { status, .. }) if is_refusal(status.as_u16()))
        {
            *self.client.lock().await = None;
        }
        Ok(answer?)
    }

    /// Asks for the database and for a write that changes nothing: no key has this version.
    pub(crate) async fn may_write(&self) -> Result<(), RowsError> {
        let key = Bytes::from_static(PROBE);
        let check = pb::Check { key, versionstamp: Bytes::from_static(&[0xff; 10]) };
        self.send(pb::AtomicWrite { checks: vec![check], ..Default::default() }).await.map(drop)
    }
}

/// Whether a status says that this token does not have this database.
pub(crate) fn is_refusal(status: u16) -> bool {
    matches!(status, 401 | 403 | 404)
}
