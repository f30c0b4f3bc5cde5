//! Writing the key space before it is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_kv_client::Endpoint;
use meridian_kv_client::Link;
use meridian_kv_client::Target;
use meridian_kv_client::answer::{read, written};
use prost::Message;
use tokio::task::JoinSet;

use crate::bodies::{LoadBodies, read_body};
use crate::error::BenchError;
use crate::etcd;
use crate::key_space::KeySpace;
use crate::options::{HttpVersion, Options};
use crate::random::Random;
use crate::session::Destination;

/// The longest lag of a replica behind the load.
const MAX_REPLICATION_WAIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The longest time for a write of the load, and the pause between two attempts.
const MAX_LOAD_WAIT: Duration = Duration::from_secs(60);
const LOAD_PAUSE: Duration = Duration::from_millis(100);
/// The interval of progress messages.
const PROGRESS: Duration = Duration::from_secs(5);
/// A lane that no worker has: workers count up from 0.
const LOAD_LANE: u64 = u64::MAX;

/// Writes all keys of each database, and returns the newest versionstamp of each: that of its last
/// keys, which are written after all others.
pub async fn write_keys(
    options: &Options,
    space: &KeySpace,
    strong: &Destination,
    http: HttpVersion,
) -> Result<Vec<Bytes>, BenchError> {
    let work = async {
        let target = Target::new(&strong.endpoint.method("atomic_write"), http, &strong.headers)?
            .spread(&strong.more);
        let (databases, bodies) =
            (target.databases(), LoadBodies::new(space, options.value_bytes, options.value_kind));
        let (batches, last) = (bodies.count(), bodies.count().saturating_sub(1));
        let load = Load {
            endpoint: Arc::new(strong.endpoint.clone()),
            target,
            http,
            timeout: options.timeout,
            bodies,
            progress: Mutex::new(Progress::new(u64::from(space.count()) * databases as u64)),
        };
        let load = Arc::new(load);
        let lanes = (0..u64::from(options.load_connections))
            .map(|lane| Random::new(options.seed, LOAD_LANE - lane));
        let lanes: Vec<Random> = lanes.collect();
        let others =
            (0..databases).flat_map(move |database| (0..last).map(move |batch| (database, batch)));
        Arc::clone(&load).write(others, &lanes).await?;
        let lasts = (0..databases)
            .flat_map(move |database| (last..batches).map(move |batch| (database, batch)));
        let mut written = load.write(lasts, &lanes).await?;
        written.sort_unstable();
        Ok(written.into_iter().map(|(_, versionstamp)| versionstamp).collect())
    };
    work.await.map_err(|error| BenchError::Load(Box::new(error)))
}

struct Load {
    endpoint: Arc<Endpoint>,
    target: Target,
    http: HttpVersion,
    timeout: Duration,
    bodies: LoadBodies,
    progress: Mutex<Progress>,
}

impl Load {
    /// Writes these batches, each to its database, over a connection for each of `lanes`; returns
    /// the versionstamp of each.
    async fn write(
        self: Arc<Self>,
        batches: impl Iterator<Item = (usize, u32)> + Send + 'static,
        lanes: &[Random],
    ) -> Result<Vec<(usize, Bytes)>, BenchError> {
        let batches = Arc::new(Mutex::new(batches));
        let mut lanes: JoinSet<Result<Vec<_>, BenchError>> = lanes
            .iter()
            .cloned()
            .map(|mut random| {
                let (load, batches) = (Arc::clone(&self), Arc::clone(&batches));
                async move {
                    let mut link = Link::open(&load.endpoint, load.http, load.timeout).await?;
                    let mut all = Vec::new();
                    loop {
                        // Not held for longer than this statement.
                        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((database, batch)) = next else { return Ok(all) };
                        let body = load.bodies.body(batch, &mut random);
                        all.push((database, load.write_one(&mut link, database, body).await?));
                        let keys = load.bodies.keys(batch).len() as u64;
                        load.progress.lock().unwrap_or_else(PoisonError::into_inner).add(keys);
                    }
                }
            })
            .collect();
        let mut written = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            written.extend(
                lane.map_err(|error| {
                    BenchError::Unsuccessful(format!("loading failed: {error}"))
                })??,
            );
        }
        Ok(written)
    }

    /// Repeats a write within bounds: a server refuses writes that its replicas do not keep up
    /// with, and setting the same values twice does no harm.
    async fn write_one(
        &self,
        link: &mut Link,
        database: usize,
        body: Bytes,
    ) -> Result<Bytes, BenchError> {
        let begun = Instant::now();
        loop {
            let request = self.target.request_to(database, body.clone());
            let error = match link.call(request).await.and_then(written) {
                Ok(versionstamp) => return Ok(versionstamp),
                Err(error) => error,
            };
            if begun.elapsed() > MAX_LOAD_WAIT {
                return Err(error.into());
            }
            tokio::time::sleep(LOAD_PAUSE).await;
            if error.spoils_link() {
                link.reopen().await?;
            }
        }
    }
}

/// Reports now and then how far a load has come.
struct Progress {
    total: u64,
    done: u64,
    begun: Instant,
    said: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, done: 0, begun: Instant::now(), said: Instant::now() }
    }

    fn add(&mut self, keys: u64) {
        self.done += keys;
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            let rate = self.done as f64 / self.begun.elapsed().as_secs_f64();
            eprintln!("loaded {} of {} keys, {rate:.0} a second", self.done, self.total);
        }
    }
}

/// Writes all keys to etcd, one transaction after the other.
pub async fn write_etcd_keys(
    options: &Options,
    space: &KeySpace,
    member: &Destination,
) -> Result<(), BenchError> {
    let work = async {
        let target =
            Target::new(&member.endpoint.method(etcd::TXN), HttpVersion::H2, &member.headers)?;
        let mut link =
            Link::open(&Arc::new(member.endpoint.clone()), HttpVersion::H2, options.timeout)
                .await?;
        let random = Random::new(options.seed, LOAD_LANE);
        for body in etcd::load_bodies(space, options.value_bytes, options.value_kind, random) {
            if !etcd::committed(link.call(target.request(body)).await?)? {
                return Err(BenchError::Unsuccessful(
                    "a transaction without comparisons did not succeed".into(),
                ));
            }
        }
        Ok(())
    };
    work.await.map_err(|error| BenchError::Load(Box::new(error)))
}

/// Waits until an eventual read of each database shows the last key at its versionstamp or newer;
/// all other keys were written no later.
pub async fn await_replication(
    options: &Options,
    space: &KeySpace,
    eventual: &Destination,
    http: HttpVersion,
    versionstamps: &[Bytes],
) -> Result<(), BenchError> {
    let target = Target::new(&eventual.endpoint.method("snapshot_read"), http, &eventual.headers)?;
    let target = target.spread(&eventual.more);
    let mut link = Link::open(&Arc::new(eventual.endpoint.clone()), http, options.timeout).await?;
    let body = Bytes::from(read_body(&space.key(space.count().saturating_sub(1))).encode_to_vec());
    let begun = Instant::now();
    for (database, versionstamp) in versionstamps.iter().enumerate() {
        loop {
            let request = target.request_to(database, body.clone());
            let seen = link.call(request).await.and_then(|answer| read(answer, false));
            let last = match seen {
                Ok(seen) if seen >= *versionstamp => break,
                Ok(_) => "an older version of a key".to_owned(),
                Err(error) if error.spoils_link() => return Err(error.into()),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > MAX_REPLICATION_WAIT {
                return Err(BenchError::NotReplicated { waited: MAX_REPLICATION_WAIT, last });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}
