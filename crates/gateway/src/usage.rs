//! How much each database and each access token asks of a gateway, and the quotas on that.
//!
//! Quotas of requests and bytes are kept by pace: a request begins once those before it are paid
//! for, at so much a second; it waits for that up to [`MAX_WAIT`], and is refused beyond. What a
//! quota allows in [`BURST`] may come at once. What is known only afterwards, as bytes are, is charged
//! when it comes, and the next request waits for it; streams wait for their own. A quota that is
//! changed holds for what was begun before, too, from the next request on, and no debt lasts for longer
//! than [`MAX_DEBT`].

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
/// As much as in this time may come at once.
const BURST: Duration = Duration::from_secs(1);
/// The longest that a pace is ahead: a large answer holds up an account with a small quota for so long.
const MAX_DEBT: Duration = Duration::from_secs(10);
/// How far ahead a stream lets the pace be: requests wait for their turn, and are not refused.
const STREAM_AHEAD: Duration = Duration::from_millis(500);
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

/// The use of one account since this process started, and what it has open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests that had their turn.
    pub requests: u64,
    /// Of requests.
    pub bytes_in: u64,
    /// Of answers.
    pub bytes_out: u64,
    /// Requests that waited for their turn by its quotas.
    pub slowed: u64,
    /// Requests refused by its quotas.
    pub refused: u64,
    pub connections: u64,
    pub watches: u64,
    pub listeners: u64,
}

/// Everything that is used of one gateway, or of the gateways of one process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Usage(Arc<RwLock<HashMap<Account, Arc<Meter>>>>);

impl Usage {
    /// The use of each account, those that were never used left out.
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
    /// Those of the latest request.
    quotas: Quotas,
    requests: Instant,
    bytes: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        let [requests, bytes_in, bytes_out, slowed, refused] = [0; 5].map(AtomicU64::new);
        let [connections, watches, listeners] = [0; 3].map(AtomicU64::new);
        let paces = Mutex::new(Paces { quotas: Quotas::default(), requests: now, bytes: now });
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
        let Paces { requests, bytes, .. } = *self.paces();
        requests.max(bytes) + FORGET_AFTER > now
    }
}

impl Paces {
    fn charge_request(&mut self, now: Instant) {
        self.requests = paid(self.requests, 1, self.quotas.get(Quota::RequestsPerSecond), now);
    }

    fn charge_bytes(&mut self, bytes: u64, now: Instant) {
        self.bytes = paid(self.bytes, bytes, self.quotas.get(Quota::BytesPerSecond), now);
    }
}

/// When what came is paid for, with so much more.
fn paid(before: Instant, amount: u64, per_second: Option<NonZeroU64>, now: Instant) -> Instant {
    // Where there is no quota, the time of the last use.
    let Some(per_second) = per_second else { return now };
    let takes = Duration::try_from_secs_f64(amount as f64 / per_second.get() as f64);
    let takes = takes.map_or(MAX_DEBT + BURST, |takes| takes.min(MAX_DEBT + BURST));
    (before.max(now.checked_sub(BURST).unwrap_or(before)) + takes).min(now + MAX_DEBT)
}

/// A request's turn under quotas.
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
pub(crate) struct Metered(Arc<[(Account, Arc<Meter>); 2]>);

impl Metered {
    pub(crate) fn new(usage: &Usage, accounts: [(Account, Quotas); 2]) -> Self {
        Self(Arc::new(accounts.map(|(account, quotas)| {
            let meter = usage.meter(account);
            meter.paces().quotas = quotas;
            (account, meter)
        })))
    }

    fn accounts(&self) -> [Account; 2] {
        self.0.each_ref().map(|(account, ..)| *account)
    }

    /// A request that wants a turn.
    pub(crate) fn request(&self, now: Instant) -> Turn {
        let mut turn = now;
        for (account, meter) in &*self.0 {
            let Paces { quotas, requests, bytes } = *meter.paces();
            for (quota, paid) in
                [(Quota::RequestsPerSecond, requests), (Quota::BytesPerSecond, bytes)]
            {
                let Some(value) = quotas.get(quota) else { continue };
                let wait = paid.saturating_duration_since(now);
                if wait > MAX_WAIT {
                    add(&meter.refused, 1);
                    let (value, room_in) = (value.get(), Some(wait));
                    return Turn::Refused(Exceeded { quota, value, of: *account, room_in });
                }
                if paid > now {
                    add(&meter.slowed, 1);
                }
                turn = turn.max(paid);
            }
        }
        self.count_request(now);
        Turn::At(turn)
    }

    /// A request that has its turn whatever the quotas say.
    pub(crate) fn count_request(&self, now: Instant) {
        for (_, meter) in &*self.0 {
            meter.paces().charge_request(now);
            add(&meter.requests, 1);
        }
    }

    /// Bytes of the request.
    pub(crate) fn received(&self, bytes: u64, now: Instant) {
        self.charge(bytes, now, |meter| &meter.bytes_in);
    }

    /// Bytes of a request that was refused.
    pub(crate) fn thrown_away(&self, bytes: u64) {
        for (_, meter) in &*self.0 {
            add(&meter.bytes_in, bytes);
        }
    }

    /// Bytes of the answer.
    pub(crate) fn answered(&self, bytes: u64, now: Instant) {
        self.charge(bytes, now, |meter| &meter.bytes_out);
    }

    fn charge(&self, bytes: u64, now: Instant, count: impl Fn(&Meter) -> &AtomicU64) {
        for (_, meter) in &*self.0 {
            add(count(meter), bytes);
            meter.paces().charge_bytes(bytes, now);
        }
    }

    /// When a stream may send more; in the past where it may now.
    pub(crate) fn stream_turn(&self) -> Option<Instant> {
        let ahead = |(_, meter): &(Account, Arc<Meter>)| {
            let Paces { quotas, bytes, .. } = *meter.paces();
            quotas.get(Quota::BytesPerSecond).and_then(|_| bytes.checked_sub(STREAM_AHEAD))
        };
        self.0.iter().filter_map(ahead).max()
    }

    /// # Errors
    /// [`Exceeded`]: a quota allows no more.
    pub(crate) fn open(&self, what: Opened) -> Result<OpenCounts, Exceeded> {
        let mut counts = OpenCounts { what, of: self.clone(), counted: 0 };
        for (account, meter) in &*self.0 {
            let before = add(meter.open(what), 1);
            counts.counted += 1;
            let quota = what.quota();
            let value = meter.paces().quotas.get(quota);
            let Some(value) = value.map(NonZeroU64::get) else { continue };
            if before >= value {
                add(&meter.refused, 1);
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
        for (_, meter) in self.of.0.iter().take(self.counted) {
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
            // A token that may have one connection may use this one for another database.
            *counted = None;
            *counted = Some(metered.open(Opened::Connection)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
