//! Requests to one database, and what is sent again.
//!
//! A read is sent again until it was answered, and so is a change of the queue, which does nothing
//! when it comes again. A write is sent again only after an answer which says that it was not done;
//! where no answer came, its outcome is unknown, and the command says so.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use meridian_kv_client::{
    ClientError, Endpoint, HttpVersion, KvClient, Link, Metadata, Target, Watching, answer,
};
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use prost::Message;
use tokio::time::Instant;

/// For one request. A gateway holds a request for as long as ten seconds by itself.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request is sent again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
/// The status of an answer which says that the request was not carried out, and may be soon.
const SERVICE_UNAVAILABLE: u16 = 503;

pub(in crate::command) struct Session {
    url: String,
    token: String,
    consistency: Consistency,
    path: Option<Path>,
}

/// The way to the database.
struct Path {
    link: Link,
    read: Target,
    write: Target,
    watch: Target,
    queue_list: Target,
    queue_change: Target,
}

impl Session {
    /// A gateway that cannot be reached at first is an error at once: its URL may be wrong.
    pub(in crate::command) async fn open(
        url: String,
        token: String,
        consistency: Consistency,
    ) -> Result<Self> {
        let mut session = Self { url, token, consistency, path: None };
        session.path().await?;
        Ok(session)
    }

    /// The way to the database; after a failure, another one.
    async fn path(&mut self) -> Result<&mut Path, ClientError> {
        let path = match self.path.take() {
            Some(path) => path,
            None => self.find_path().await?,
        };
        Ok(self.path.insert(path))
    }

    async fn find_path(&self) -> Result<Path, ClientError> {
        let http = HttpVersion::H1;
        let metadata = Metadata::exchange(&self.url, &self.token, http, TIMEOUT).await?;
        let (endpoint, name) = match self.consistency {
            Consistency::Strong => (metadata.strong, "strong"),
            Consistency::Eventual => (metadata.eventual, "eventual"),
        };
        let endpoint: Endpoint = endpoint.ok_or_else(|| {
            ClientError::Unsuccessful(format!("{} has no {name} endpoint", self.url))
        })?;
        let queue = |operation: &str| {
            let url = endpoint.resolve(&format!("queue/{operation}"))?;
            Target::new(&url, http, &metadata.headers)
        };
        Ok(Path {
            link: Link::open(&Arc::new(endpoint.clone()), http, TIMEOUT).await?,
            read: Target::new(&endpoint.method("snapshot_read"), http, &metadata.headers)?,
            write: Target::new(&endpoint.method("atomic_write"), http, &metadata.headers)?,
            watch: Target::new(&endpoint.method("watch"), http, &metadata.headers)?,
            // Beside the endpoint.
            queue_list: queue("list")?,
            queue_change: queue("change")?,
        })
    }

    /// For streams, over connections of their own.
    pub(super) async fn client(&self) -> Result<KvClient> {
        let metadata = Metadata::exchange(&self.url, &self.token, HttpVersion::H1, TIMEOUT).await?;
        let strong = metadata.strong.map(|endpoint| endpoint.to_string()).unwrap_or_default();
        let Some(base) = strong.strip_suffix("/kv/strong") else {
            bail!("{} is no gateway of Meridian: its endpoint is {strong}", self.url);
        };
        let database = metadata.database_id.parse()?;
        Ok(KvClient::new(base, self.token.clone(), database))
    }

    /// The entries of a range.
    pub(in crate::command) async fn read(
        &mut self,
        range: pb::ReadRange,
    ) -> Result<Vec<pb::KvEntry>, ClientError> {
        let body = pb::SnapshotRead { ranges: vec![range] }.encode_to_vec().into();
        let answer = self.ask(|path| &path.read, body).await?;
        answer::entries(answer, self.consistency == Consistency::Strong)
    }

    /// The answer to a JSON request for a part of the queue.
    pub(in crate::command) async fn list_queue(
        &mut self,
        body: String,
    ) -> Result<Bytes, ClientError> {
        self.ask(|path| &path.queue_list, body.into()).await
    }

    /// The answer to a JSON request to change the queue.
    pub(in crate::command) async fn change_queue(
        &mut self,
        body: String,
    ) -> Result<Bytes, ClientError> {
        self.ask(|path| &path.queue_change, body.into()).await
    }

    /// Sends a request until it was answered.
    async fn ask(
        &mut self,
        target: fn(&Path) -> &Target,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answered = match self.path().await {
                Ok(path) => {
                    let request = target(path).request(body.clone());
                    path.link.call(request).await
                }
                Err(error) => Err(error),
            };
            match answered {
                Ok(answer) => return Ok(answer),
                Err(error) => self.pause(error, deadline, is_lost_or_refused).await?,
            }
        }
    }

    pub(in crate::command) async fn write(
        &mut self,
        write: pb::AtomicWrite,
    ) -> Result<pb::AtomicWriteOutput> {
        let body: Bytes = write.encode_to_vec().into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = match self.path().await {
                Ok(path) => path,
                // Nothing was sent.
                Err(error) => {
                    self.pause(error, deadline, is_lost_or_refused).await?;
                    continue;
                }
            };
            match path.link.call(path.write.request(body.clone())).await {
                Ok(answer) => {
                    let output = pb::AtomicWriteOutput::decode(answer)?;
                    match output.status() {
                        pb::AtomicWriteStatus::AwSuccess
                        | pb::AtomicWriteStatus::AwCheckFailure => return Ok(output),
                        other => bail!("the write was answered with {}", other.as_str_name()),
                    }
                }
                Err(error @ ClientError::Status { .. }) => {
                    self.pause(error, deadline, is_refused_for_now).await?;
                }
                Err(error) => bail!("whether the write was done is unknown: {error}"),
            }
        }
    }

    /// Begins a watch, which has the connection for itself.
    pub(super) async fn watch(&mut self, keys: &[Bytes]) -> Result<Watching, ClientError> {
        let keys = keys.iter().map(|key| pb::WatchKey { key: key.clone() }).collect();
        let body: Bytes = pb::Watch { keys }.encode_to_vec().into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let begun = match self.path().await {
                Ok(path) => path.link.begin(path.watch.request(body.clone())).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok(body) => return Ok(Watching::over(body)),
                Err(error) => self.pause(error, deadline, is_lost_or_refused).await?,
            }
        }
    }

    /// The next request goes over another connection, after a moment.
    pub(super) async fn leave(&mut self) {
        self.path = None;
        tokio::time::sleep(PAUSE).await;
    }

    /// Waits before a request is sent again over another connection, unless the error stands.
    async fn pause(
        &mut self,
        error: ClientError,
        deadline: Instant,
        passes: fn(&ClientError) -> bool,
    ) -> Result<(), ClientError> {
        self.path = None;
        if !passes(&error) || Instant::now() + PAUSE > deadline {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

fn is_refused_for_now(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, .. } if status.as_u16() == SERVICE_UNAVAILABLE)
}

fn is_lost_or_refused(error: &ClientError) -> bool {
    let cause = match error {
        ClientError::Metadata { source, .. } => source.as_ref(),
        other => other,
    };
    match cause {
        ClientError::Connect { .. } | ClientError::Transport(_) | ClientError::Timeout(_) => true,
        other => is_refused_for_now(other),
    }
}
