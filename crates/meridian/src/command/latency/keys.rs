//! The keys of a run: `["_meridian_latency_<random>", number]`. No other run uses the same keys, so
//! they can be removed blindly.

use anyhow::Result;
use bytes::Bytes;
use meridian_bench::bodies::{LoadBodies, ReadBodies, WriteBodies, remove_body};
use meridian_bench::key_space::KeySpace;
use meridian_bench::random::Random;
use meridian_bench::value::ValueKind;
use uuid::Uuid;

use super::probe::Probe;
use super::report::Operation;
use super::site::Cluster;

/// Few enough to be written, or removed, by one atomic write.
const KEYS: u32 = 64;
pub(super) const VALUE_BYTES: usize = 128;

pub(super) struct Keys {
    space: KeySpace,
    reads: ReadBodies,
    writes: WriteBodies,
    random: Random,
}

impl Keys {
    pub(super) fn new() -> Self {
        let space = KeySpace::new(&format!("_meridian_latency_{}", Uuid::new_v4().simple()), KEYS);
        let reads = ReadBodies::new(&space);
        let writes = WriteBodies::new(&space, VALUE_BYTES, ValueKind::Random);
        Self { space, reads, writes, random: Random::new(1, 1) }
    }

    /// The body of a request for one of the keys, chosen at random.
    pub(super) fn body(&mut self, operation: Operation) -> Bytes {
        match operation {
            Operation::RoundTrip => Bytes::new(),
            Operation::EventualRead | Operation::StrongRead => self.reads.next(&mut self.random),
            Operation::Write => self.writes.next(&mut self.random),
        }
    }

    /// Sets all keys; returns the versionstamp of the last write.
    pub(super) async fn write_all(&self, probe: &mut Probe) -> Result<Bytes> {
        let mut versionstamp = Bytes::new();
        let bodies = LoadBodies::new(&self.space, VALUE_BYTES, ValueKind::Random);
        let mut random = self.random.clone();
        for number in 0..bodies.count() {
            versionstamp = probe.call(Operation::Write, bodies.body(number, &mut random)).await?;
        }
        Ok(versionstamp)
    }

    /// Removes all keys, through the first gateway that can.
    pub(super) async fn remove(&self, cluster: &Cluster) -> Result<()> {
        let mut result = Ok(());
        for site in &cluster.sites {
            let removed = async {
                let mut probe = Probe::open(site, &cluster.access_token).await?;
                probe.call(Operation::Write, remove_body(&self.space)).await.map(drop)
            };
            result = removed.await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The common beginning of the keys, for an operator to remove them by hand.
    pub(super) fn prefix(&self) -> &str {
        self.space.prefix()
    }

    /// A set of the first key only, with which replication is measured.
    pub(super) fn first_only(&self) -> Self {
        let space = KeySpace::new(self.space.prefix(), 1);
        let reads = ReadBodies::new(&space);
        let writes = WriteBodies::new(&space, VALUE_BYTES, ValueKind::Random);
        Self { space, reads, writes, random: Random::new(1, 2) }
    }
}
