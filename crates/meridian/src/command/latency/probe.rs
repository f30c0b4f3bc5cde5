//! Warm connections to one gateway.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use meridian_kv_client::answer::{read, read_if_there, written};
use meridian_kv_client::{ClientError, Endpoint, HttpVersion, Link, Metadata, Target};

use super::report::Operation;
use super::site::Site;

/// The protocol of native Deno: HTTP/2 with prior knowledge.
const HTTP: HttpVersion = HttpVersion::H2;
/// Longer than a gateway's own deadline, so that the gateway can report the reason.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A path that no gateway serves: answered with 404 before anything is looked up.
const NOTHING: &str = "latency";

/// Two connections to one gateway, one for each of its endpoints.
pub(super) struct Probe {
    pub(super) region: String,
    pub(super) database_id: String,
    strong: Link,
    eventual: Link,
    strong_read: Target,
    eventual_read: Target,
    write: Target,
    nothing: Target,
}

impl Probe {
    /// Errors name the region, here and below.
    pub(super) async fn open(site: &Site, access_token: &str) -> Result<Self> {
        // A `ClientError` displays its causes itself: as the source of another error they would
        // appear twice.
        Self::open_unnamed(site, access_token)
            .await
            .map_err(|error| anyhow!("{}: {error}{}", site.region, site.advice(&error)))
    }

    async fn open_unnamed(site: &Site, access_token: &str) -> Result<Self, ClientError> {
        let no = |kind| ClientError::Unsuccessful(format!("{} names no {kind} endpoint", site.url));
        let metadata = Metadata::exchange(&site.url, access_token, HTTP, TIMEOUT).await?;
        let strong = metadata.strong.ok_or_else(|| no("strong"))?;
        let eventual = metadata.eventual.ok_or_else(|| no("eventual"))?;
        let target = |endpoint: &Endpoint, method| {
            Target::new(&endpoint.method(method), HTTP, &metadata.headers)
        };
        Ok(Self {
            region: site.region.clone(),
            database_id: metadata.database_id,
            strong_read: target(&strong, "snapshot_read")?,
            eventual_read: target(&eventual, "snapshot_read")?,
            write: target(&strong, "atomic_write")?,
            nothing: target(&eventual, NOTHING)?,
            strong: Link::open(&Arc::new(strong), HTTP, TIMEOUT).await?,
            eventual: Link::open(&Arc::new(eventual), HTTP, TIMEOUT).await?,
        })
    }

    /// Sends a request; returns the answer's versionstamp, empty for a round trip.
    pub(super) async fn call(&mut self, operation: Operation, body: Bytes) -> Result<Bytes> {
        let answer = match operation {
            Operation::RoundTrip => self.round_trip().await,
            Operation::EventualRead => {
                let answer = self.eventual.call(self.eventual_read.request(body)).await;
                answer.and_then(|answer| read(answer, false))
            }
            Operation::StrongRead => {
                let answer = self.strong.call(self.strong_read.request(body)).await;
                answer.and_then(|answer| read(answer, true))
            }
            Operation::Write => self.strong.call(self.write.request(body)).await.and_then(written),
        };
        answer.map_err(|error| anyhow!("{}: {} failed: {error}", self.region, operation.name()))
    }

    /// The versionstamp that an eventual read shows. `None`: the key is absent.
    pub(super) async fn look(&mut self, body: Bytes) -> Result<Option<Bytes>> {
        let answer = self.eventual.call(self.eventual_read.request(body)).await;
        let seen = answer.and_then(|answer| read_if_there(answer, false));
        seen.map_err(|error| {
            anyhow!("{}: {} failed: {error}", self.region, Operation::EventualRead.name())
        })
    }

    /// A round trip with as little work at the gateway as possible.
    async fn round_trip(&mut self) -> Result<Bytes, ClientError> {
        match self.eventual.call(self.nothing.request(Bytes::new())).await {
            Err(ClientError::Status { status, .. }) if status.is_client_error() => Ok(Bytes::new()),
            other => other.map(|_| Bytes::new()),
        }
    }
}
