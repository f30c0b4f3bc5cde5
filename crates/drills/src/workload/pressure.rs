//! Writes at a rate beside the recorded clients, and probes of replication.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_types::{Consistency, DatabaseId};
use tokio::task::JoinSet;

use super::Gateway;
use crate::kv_connect::KvClient;

/// Writers at a time; each has one request in flight.
const WRITERS: u32 = 96;
const VALUE: [u8; 128] = [b'p'; 128];
/// Keys are written again and again, so that the state stays small. They sort after all keys of the
/// final reads.
const KEYS: u64 = 10_000;
const TIMEOUT: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// A write that is not shown for so long counts as delayed by this time.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// The delay until a write was shown by eventual reads of another region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The region of the read, which counts from 0.
    pub region: usize,
    /// The time of the acknowledgement, from the origin.
    pub at: Duration,
    /// The delay from the acknowledgement.
    pub delay: Duration,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    probes: Mutex<Vec<Probe>>,
}

/// Writes at a rate that no history records, and probes of their replication. All of it ends when
/// this is dropped.
pub struct Pressure {
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

impl Pressure {
    /// Writes at most `per_second` through the gateways `near`; probes read through the gateways
    /// `far`, each with its region.
    pub fn start(
        database: DatabaseId,
        near: &[Arc<Gateway>],
        far: &[(usize, Arc<Gateway>)],
        per_second: u32,
        origin: Instant,
    ) -> Self {
        let counts = Arc::new(Counts::default());
        let client = |gateway: &Gateway| {
            crate::kv_connect::client(gateway.url.clone(), database).with_timeout(TIMEOUT)
        };
        let mut tasks = JoinSet::new();
        let pace = Duration::from_secs(1) * WRITERS / per_second.max(1);
        for (number, gateway) in (0..WRITERS).zip(near.iter().cycle()) {
            tasks.spawn(write(client(gateway), u64::from(number), pace, Arc::clone(&counts)));
        }
        for ((region, far), near) in far.iter().zip(near.iter().cycle()) {
            tasks.spawn(probe(client(near), client(far), *region, origin, Arc::clone(&counts)));
        }
        Self { counts, _tasks: tasks }
    }

    /// Writes acknowledged so far, without those of probes.
    pub fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    pub fn probes(&self) -> Vec<Probe> {
        self.counts.probes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes one after the other, each when it is due or as soon as possible.
async fn write(client: KvClient, number: u64, pace: Duration, counts: Arc<Counts>) {
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for round in 0.. {
        ticks.tick().await;
        let key = format!("~pressure/{:05}", (round * u64::from(WRITERS) + number) % KEYS);
        if client.set(key.as_bytes(), &VALUE).await.is_ok() {
            counts.written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn probe(near: KvClient, far: KvClient, region: usize, origin: Instant, counts: Arc<Counts>) {
    let key = format!("~probe/{region}");
    for number in 0u64.. {
        tokio::time::sleep(PROBE_EVERY).await;
        let value = number.to_be_bytes();
        let Ok(_) = near.set(key.as_bytes(), &value).await else { continue };
        let acknowledged = Instant::now();
        while acknowledged.elapsed() < PROBE_DEADLINE {
            if let Ok(Some(entry)) = far.get_with(Consistency::Eventual, key.as_bytes()).await
                && entry.value == value.as_slice()
            {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let probe = Probe {
            region,
            at: acknowledged.duration_since(origin),
            delay: acknowledged.elapsed(),
        };
        counts.probes.lock().unwrap_or_else(PoisonError::into_inner).push(probe);
    }
}
