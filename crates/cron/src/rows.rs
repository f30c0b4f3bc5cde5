//! Rows in a database, over KV Connect.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_kv_client::message::{mutation, point};
use meridian_kv_client::{CallError, ClientError, Endpoint, HttpVersion, KvClient, Metadata};
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use tokio::sync::Mutex;

use crate::row::{Keys, Row};
use crate::step::{Event, Sight, Version, Write};

/// For one request. A gateway holds a request for as long as ten seconds by itself.
const TIMEOUT: Duration = Duration::from_secs(12);

/// `true` in V8's serialization, as the value of the key that expires.
const TRUE: &[u8] = b"\xff\x0fT";

/// The rows of one database, through one gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rows {
    url: Arc<str>,
    token: Arc<str>,
    /// `None`: the gateway has not told the database yet.
    client: Arc<Mutex<Option<KvClient>>>,
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
}

impl Rows {
    /// The URL of a database as clients open it.
    pub(crate) fn new(url: String, token: String) -> Self {
        Self { url: url.into(), token: token.into(), client: Arc::default() }
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
        let base = format!("http://{}", Endpoint::parse(&self.url)?.authority());
        let opened = KvClient::new(base, &*self.token, database).with_timeout(TIMEOUT);
        Ok(client.insert(opened).clone())
    }

    pub(crate) async fn read(&self, keys: &Keys) -> Result<Sight, RowsError> {
        let ranges = vec![point(&keys.row), point(&keys.due)];
        let output = self.client().await?.read(Consistency::Strong, ranges).await?;
        let mut entries = output.ranges.into_iter().map(|range| range.values.into_iter().next());
        let row = entries.next().flatten().map(|entry| {
            let row = Row::decode(&entry.value).unwrap_or_default();
            (row, entry.versionstamp)
        });
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
        let output = self.client().await?.write(write).await?;
        match output.status() {
            pb::AtomicWriteStatus::AwSuccess => Ok(Event::Written(output.versionstamp)),
            pb::AtomicWriteStatus::AwCheckFailure => Ok(Event::Conflict),
            other => Err(RowsError::Refused(other.as_str_name())),
        }
    }
}
