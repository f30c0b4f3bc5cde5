//! Writing the key space before it is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use crate::bodies::{load_bodies, read_body};
use crate::error::BenchError;
use crate::etcd;
use crate::key_space::KeySpace;
use crate::link::Link;
use crate::operation::{read, written};
use crate::options::{HttpVersion, Options};
use crate::random::Random;
use crate::session::Destination;
use crate::target::Target;

/// How long a replica may lag behind the load.
const MAX_REPLICATION_WAIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// No worker has it: workers count up from 0.
const LOAD_LANE: u64 = u64::MAX;

/// Writes all keys, one atomic write after the other, and returns the last one's versionstamp.
pub async fn write_keys(
    options: &Options,
    space: &KeySpace,
    strong: &Destination,
    http: HttpVersion,
) -> Result<Bytes, BenchError> {
    let work = async {
        let target = Target::new(&strong.endpoint.method("atomic_write"), http, &strong.headers)?;
        let mut link = Link::open(&Arc::new(strong.endpoint.clone()), http, options.timeout).await?;
        let mut versionstamp = Bytes::new();
        let random = Random::new(options.seed, LOAD_LANE);
        for body in load_bodies(space, options.value_bytes, options.value_kind, random) {
            versionstamp = written(link.call(target.request(body)).await?)?;
        }
        Ok(versionstamp)
    };
    work.await.map_err(|error| BenchError::Load(Box::new(error)))
}

/// Writes all keys to etcd, one transaction after the other.
pub async fn write_etcd_keys(options: &Options, space: &KeySpace, member: &Destination) -> Result<(), BenchError> {
    let work = async {
        let target = Target::new(&member.endpoint.method(etcd::TXN), HttpVersion::H2, &member.headers)?;
        let mut link = Link::open(&Arc::new(member.endpoint.clone()), HttpVersion::H2, options.timeout).await?;
        let random = Random::new(options.seed, LOAD_LANE);
        for body in etcd::load_bodies(space, options.value_bytes, options.value_kind, random) {
            if !etcd::committed(link.call(target.request(body)).await?)? {
                return Err(BenchError::Unsuccessful("a transaction without comparisons did not succeed".into()));
            }
        }
        Ok(())
    };
    work.await.map_err(|error| BenchError::Load(Box::new(error)))
}

/// Waits until an eventual read shows the last key at `versionstamp` or newer; all other keys were
/// written no later.
pub async fn await_replication(
    options: &Options,
    space: &KeySpace,
    eventual: &Destination,
    http: HttpVersion,
    versionstamp: &Bytes,
) -> Result<(), BenchError> {
    let target = Target::new(&eventual.endpoint.method("snapshot_read"), http, &eventual.headers)?;
    let mut link = Link::open(&Arc::new(eventual.endpoint.clone()), http, options.timeout).await?;
    let body = Bytes::from(read_body(&space.key(space.count().saturating_sub(1))).encode_to_vec());
    let begun = Instant::now();
    loop {
        let seen = link.call(target.request(body.clone())).await.and_then(|answer| read(answer, false));
        let last = match seen {
            Ok(seen) if seen >= *versionstamp => return Ok(()),
            Ok(_) => "an older version of a key".to_owned(),
            Err(error) if error.spoils_link() => return Err(error),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > MAX_REPLICATION_WAIT {
            return Err(BenchError::NotReplicated { waited: MAX_REPLICATION_WAIT, last });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
