//! How much each database and each access token asks of a gateway, and the quotas on that.
//!
//! Quotas of requests and bytes are kept by pace: a request begins once those before it are paid
//! for, at so much a second; it waits for that up to [`MAX_WAIT`], and is refused beyond. What a
//! quota allows in [`BURST`] may come at once. What is known only afterwards, as the bytes of an
//! answer, is charged then, and the next request waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use meridian_types::{DatabaseId, Quota, Quotas};
use tokio::time::Instant;

/// How long a request waits for its turn at most.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(1);
/// What may come at once: as much as in this time.
const BURST: Duration = Duration::from_secs(1);
/// Accounts that were not used for so long may be forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Accounts are forgotten once there are more.
const KEPT: usize = 1024;

/// A database or a token, as what it uses is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    Database(DatabaseId),
    /// Of the cluster, by its id.
    Token(u64),
    /// All tokens of configuration files together.
    ConfiguredTokens,
}

/// Something that is open until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    Connection,
    /// Or a change feed.
    Watch,
    Listener,
}

impl Opened {
    fn quota(self) -> Quota {
        match self {
            Self::Connection => Quota::Connections,
            Self::Watch => Quota::Watches,
            Self::Listener => Quota::Listeners,
        }
    }
}

/// What one account has used since this process started, and has open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests that were not refused by a quota.
    pub requests: u64,
    /// Of requests.
    pub bytes_in: u64,
    /// Of answers.
    pub bytes_out: u64,
    /// Requests that waited for their turn.
    pub slowed: u64,
    /// Requests refused by a quota.
    pub refused: u64,
    pub connections: u64,
    pub watches: u64,
    pub listeners: u64,
}

/// Everything that is used of one gateway, or of the gateways of one process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Usage(Arc<RwLock<HashMap<Account, Arc<Meter>>>>);

impl Usage {
    /// What each account has used, those that were never used left out.
    pub fn used(&self) -> Vec<(Account, Used)> {
        let meters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        meters.iter().map(|(account, meter)| (*account, meter.used())).collect()
    }

    fn meter(&self, account: Account) -> Arc<Meter> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&account).cloned();
        known.unwrap_or_else(|| self.new_meter(account, Instant::now()))
    }

    fn new_meter(&self, account: Account, now: Instant) -> Arc<Meter> {
        let mut meters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // A look at all of them for each time that their number has doubled.
        if meters.len() >= KEPT && meters.len().is_power_of_two() {
            meters.retain(|_, meter| Arc::strong_count(meter) > 1 || meter.is_in_use(now));
        }
        match meters.entry(account) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(Arc::new(Meter::new(now)))),
        }
    }
}

/// The counts of one account.
#[derive(Debug)]
struct Meter {
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    slowed: AtomicU64,
    refused: AtomicU64,
    connections: AtomicU64,
    watches: AtomicU64,
    listeners: AtomicU64,
    paces: Mutex<Paces>,
}

/// Until when what came so far is paid for, at the pace of each quota.
#[derive(Debug, Clone, Copy)]
struct Paces {
    requests: Instant,
    bytes: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        let [requests, bytes_in, bytes_out, slowed, refused] = [0; 5].map(AtomicU64::new);
        let [connections, watches, listeners] = [0; 3].map(AtomicU64::new);
        let paces = Mutex::new(Paces { requests: now, bytes: now });
        Self {
            requests,
            bytes_in,
            bytes_out,
            slowed,
            refused,
            connections,
            watches,
            listeners,
            paces,
        }
    }

    fn open(&self, what: Opened) -> &AtomicU64 {
        match what {
            Opened::Connection => &self.connections,
            Opened::Watch => &self.watches,
            Opened::Listener => &self.listeners,
        }
    }

    fn used(&self) -> Used {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Used {
            requests: of(&self.requests),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            slowed: of(&self.slowed),
            refused: of(&self.refused),
            connections: of(&self.connections),
            watches: of(&self.watches),
            listeners: of(&self.listeners),
        }
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        // A panic with the lock held leaves times.
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_in_use(&self, now: Instant) -> bool {
        let Paces { requests, bytes } = *self.paces();
        requests.max(bytes) + FORGET_AFTER > now
    }
}

/// When what came is paid for, with so much more.
fn paid(before: Instant, amount: u64, per_second: Option<NonZeroU64>, now: Instant) -> Instant {
    // Where there is no quota, the time of the last use.
    let Some(per_second) = per_second else { return now };
    let takes = Duration::try_from_secs_f64(amount as f64 / per_second.get() as f64);
    let takes = takes.unwrap_or(Duration::MAX);
    before.max(now.checked_sub(BURST).unwrap_or(before)).checked_add(takes).unwrap_or(before)
}

/// What a quota does with a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At this time, which may be over.
    At(Instant),
    Refused(Exceeded),
}

/// A quota that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) quota: Quota,
    pub(crate) value: u64,
    pub(crate) of: Account,
    /// Until there is room, where that is known.
    pub(crate) room_in: Option<Duration>,
}

/// The accounts that one request counts for: its database and its token. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metered(Arc<[(Account, Quotas, Arc<Meter>); 2]>);

impl Metered {
    pub(crate) fn new(usage: &Usage, accounts: [(Account, Quotas); 2]) -> Self {
        Self(Arc::new(accounts.map(|(account, quotas)| (account, quotas, usage.meter(account)))))
    }

    fn accounts(&self) -> [Account; 2] {
        self.0.each_ref().map(|(account, ..)| *account)
    }

    /// A request with a body of so many bytes, as far as they are known.
    pub(crate) fn request(&self, bytes: u64, now: Instant) -> Turn {
        let mut turn = now;
        for (account, quotas, meter) in &*self.0 {
            let paces = *meter.paces();
            for (quota, paid) in
                [(Quota::RequestsPerSecond, paces.requests), (Quota::BytesPerSecond, paces.bytes)]
            {
                let Some(value) = quotas.get(quota) else { continue };
                let wait = paid.saturating_duration_since(now);
                if wait > MAX_WAIT {
                    self.refused();
                    let (value, room_in) = (value.get(), Some(wait));
                    return Turn::Refused(Exceeded { quota, value, of: *account, room_in });
                }
                turn = turn.max(paid);
            }
        }
        for (_, quotas, meter) in &*self.0 {
            let mut paces = meter.paces();
            let per_second = quotas.get(Quota::RequestsPerSecond);
            paces.requests = paid(paces.requests, 1, per_second, now);
            add(&meter.requests, 1);
            if turn > now {
                add(&meter.slowed, 1);
            }
        }
        self.charge(bytes, now, |meter| &meter.bytes_in);
        Turn::At(turn)
    }

    fn refused(&self) {
        for (.., meter) in &*self.0 {
            add(&meter.refused, 1);
        }
    }

    /// Further bytes of the request.
    pub(crate) fn received(&self, bytes: u64, now: Instant) {
        self.charge(bytes, now, |meter| &meter.bytes_in);
    }

    /// Bytes of the answer.
    pub(crate) fn answered(&self, bytes: u64, now: Instant) {
        self.charge(bytes, now, |meter| &meter.bytes_out);
    }

    fn charge(&self, bytes: u64, now: Instant, count: impl Fn(&Meter) -> &AtomicU64) {
        for (_, quotas, meter) in &*self.0 {
            add(count(meter), bytes);
            if let Some(per_second) = quotas.get(Quota::BytesPerSecond) {
                let mut paces = meter.paces();
                paces.bytes = paid(paces.bytes, bytes, Some(per_second), now);
            }
        }
    }

    /// # Errors
    /// [`Exceeded`]: a quota allows no more.
    pub(crate) fn open(&self, what: Opened) -> Result<OpenCounts, Exceeded> {
        let mut counts = OpenCounts { what, of: self.clone(), counted: 0 };
        for (account, quotas, meter) in &*self.0 {
            let before = add(meter.open(what), 1);
            counts.counted += 1;
            let quota = what.quota();
            let Some(value) = quotas.get(quota).map(NonZeroU64::get) else { continue };
            if before >= value {
                self.refused();
                return Err(Exceeded { quota, value, of: *account, room_in: None });
            }
        }
        Ok(counts)
    }
}

/// The count before.
fn add(count: &AtomicU64, amount: u64) -> u64 {
    count.fetch_add(amount, Ordering::Relaxed)
}

/// Something that is counted as open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenCounts {
    what: Opened,
    of: Metered,
    /// How many of the accounts count it.
    counted: usize,
}

impl Drop for OpenCounts {
    fn drop(&mut self) {
        for (.., meter) in self.of.0.iter().take(self.counted) {
            meter.open(self.what).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection, which counts for the database and the token of its latest request.
#[derive(Debug, Default)]
pub(crate) struct MeteredConnection(Mutex<Option<OpenCounts>>);

impl MeteredConnection {
    /// # Errors
    /// [`Exceeded`]: it counts for none.
    pub(crate) fn carries(&self, metered: &Metered) -> Result<(), Exceeded> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.as_ref().is_none_or(|counted| counted.of.accounts() != metered.accounts()) {
            // It may be the one that the token may have.
            *counted = None;
            *counted = Some(metered.open(Opened::Connection)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
