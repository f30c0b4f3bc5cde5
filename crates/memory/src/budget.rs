//! A budget of bytes, with bounded waiting in the order of asking.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that may be held at a time for one purpose. Cheap to clone; clones share the bytes.
#[derive(Clone)]
pub struct ByteBudget {
    inner: Arc<Inner>,
}

struct Inner {
    purpose: &'static str,
    /// At most [`ByteBudget::MAX_BYTES`].
    total: u32,
    semaphore: Arc<Semaphore>,
    budget_bytes: Gauge,
    used_bytes: Gauge,
    refused: Counter,
}

/// The bytes could not be had in time. Nothing is held, and nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process is short of memory for {purpose}: {wanted} bytes were asked for, of {total} {free} are free"
)]
pub struct Exhausted {
    pub purpose: &'static str,
    pub wanted: usize,
    pub free: usize,
    pub total: usize,
}

impl ByteBudget {
    /// The largest budget: a semaphore counts its bytes in 32 bits.
    pub const MAX_BYTES: usize = u32::MAX as usize;

    /// `purpose` is a word or two for errors, and the label `kind` of the metrics
    /// `meridian_memory_budget_bytes`, `meridian_memory_used_bytes` and
    /// `meridian_memory_refused_total`.
    pub fn new(purpose: &'static str, total_bytes: usize) -> Self {
        let total = u32::try_from(total_bytes).unwrap_or(u32::MAX);
        let budget_bytes = metrics::gauge!("meridian_memory_budget_bytes", "kind" => purpose);
        let used_bytes = metrics::gauge!("meridian_memory_used_bytes", "kind" => purpose);
        let refused = metrics::counter!("meridian_memory_refused_total", "kind" => purpose);
        // Added, not set: the nodes of one process share a gauge.
        budget_bytes.increment(f64::from(total));
        used_bytes.increment(0.0);
        refused.increment(0);
        let semaphore = Arc::new(Semaphore::new(total as usize));
        Self {
            inner: Arc::new(Inner { purpose, total, semaphore, budget_bytes, used_bytes, refused }),
        }
    }

    pub fn total_bytes(&self) -> usize {
        self.inner.total as usize
    }

    pub fn used_bytes(&self) -> usize {
        self.total_bytes() - self.free_bytes()
    }

    fn free_bytes(&self) -> usize {
        self.inner.semaphore.available_permits()
    }

    /// Takes `bytes` now, or fails; also fails if the bytes are free but earlier requests wait for
    /// them.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing is held then.
    pub fn try_take(&self, bytes: usize) -> Result<Held, Exhausted> {
        let permit = self.count(bytes).and_then(|count| {
            let semaphore = Arc::clone(&self.inner.semaphore);
            semaphore.try_acquire_many_owned(count).ok()
        });
        self.held(permit, bytes)
    }

    /// Takes `bytes`, and waits for them up to `within`, in the order of asking. May be dropped at
    /// any await: nothing is held then. The caller must hold nothing of this budget, or two callers
    /// could wait for each other.
    ///
    /// # Errors
    /// [`Exhausted`] after `within`, and at once if the whole budget is smaller.
    pub async fn take(&self, bytes: usize, within: Duration) -> Result<Held, Exhausted> {
        let Some(count) = self.count(bytes) else { return self.held(None, bytes) };
        let semaphore = Arc::clone(&self.inner.semaphore);
        // Without a timer if there is no need to wait.
        if let Ok(permit) = Arc::clone(&semaphore).try_acquire_many_owned(count) {
            return self.held(Some(permit), bytes);
        }
        let waited = tokio::time::timeout(within, semaphore.acquire_many_owned(count)).await;
        self.held(waited.ok().and_then(Result::ok), bytes)
    }

    fn count(&self, bytes: usize) -> Option<u32> {
        u32::try_from(bytes).ok().filter(|count| *count <= self.inner.total)
    }

    fn held(&self, permit: Option<OwnedSemaphorePermit>, bytes: usize) -> Result<Held, Exhausted> {
        match permit {
            Some(permit) => {
                self.inner.used_bytes.increment(gauge(permit.num_permits()));
                Ok(Held { inner: Arc::clone(&self.inner), permit })
            }
            None => {
                self.inner.refused.increment(1);
                let (free, total) = (self.free_bytes(), self.total_bytes());
                Err(Exhausted { purpose: self.inner.purpose, wanted: bytes, free, total })
            }
        }
    }
}

impl fmt::Debug for ByteBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes for {}",
            self.used_bytes(),
            self.total_bytes(),
            self.inner.purpose
        )
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.budget_bytes.decrement(f64::from(self.total));
    }
}

/// Bytes of a budget, given back when this is dropped. Keep it beside the bytes until they leave
/// the process's memory.
#[must_use = "the bytes are given back at once"]
pub struct Held {
    inner: Arc<Inner>,
    permit: OwnedSemaphorePermit,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Gives back the bytes held beyond `bytes`, once the true size is known.
    pub fn shrink_to(&mut self, bytes: usize) {
        drop(self.split(self.bytes().saturating_sub(bytes)));
    }

    /// Takes `bytes` more now, or fails and keeps the bytes held so far.
    ///
    /// # Errors
    /// [`Exhausted`]. A caller that then waits gives back everything first, see
    /// [`ByteBudget::take`].
    pub fn try_grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let more = ByteBudget { inner: Arc::clone(&self.inner) }.try_take(bytes)?;
        self.merge(more);
        Ok(())
    }

    /// Splits off `bytes`, or all that is held if that is less.
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        let permit = self.permit.split(bytes.min(self.bytes()))?;
        Some(Self { inner: Arc::clone(&self.inner), permit })
    }

    /// Adds the bytes of `other`, if it is of the same budget; bytes of another budget are given
    /// back.
    pub fn merge(&mut self, mut other: Self) {
        if Arc::ptr_eq(&self.inner, &other.inner)
            && let Some(all) = other.permit.split(other.permit.num_permits())
        {
            self.permit.merge(all);
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes for {}", self.bytes(), self.inner.purpose)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.inner.used_bytes.decrement(gauge(self.permit.num_permits()));
    }
}

fn gauge(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Poll;

    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn poll_once<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
        future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn requests_are_served_in_order_and_a_large_one_is_not_overtaken() {
        let budget = ByteBudget::new("tests", 100);
        let mut first = budget.take(60, LONG).await.unwrap();
        let mut large = Box::pin(budget.take(90, LONG));
        assert!(poll_once(&mut large).is_pending());
        let mut small = Box::pin(budget.take(10, LONG));
        assert!(poll_once(&mut small).is_pending(), "a small one waits behind the large one");
        assert!(budget.try_take(1).is_err(), "also a request that would not wait");
        first.shrink_to(10);
        let Poll::Ready(Ok(large)) = poll_once(&mut large) else {
            panic!("the large one is the next")
        };
        assert!(poll_once(&mut small).is_pending());
        drop(first);
        let Poll::Ready(Ok(small)) = poll_once(&mut small) else { panic!("then the small one") };
        assert_eq!((large.bytes(), small.bytes(), budget.used_bytes()), (90, 10, 100));
        drop((large, small));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn waiting_is_bounded_and_leaves_nothing_held() {
        let budget = ByteBudget::new("tests", 100);
        let held = budget.try_take(80).unwrap();
        let refused = budget.take(30, Duration::from_millis(5)).await.unwrap_err();
        assert_eq!((refused.wanted, refused.free, refused.total), (30, 20, 100));
        assert!(refused.to_string().contains("short of memory for tests"), "{refused}");
        assert!(budget.take(101, LONG).await.is_err(), "more than there is is refused at once");
        // A future that is dropped while it waits gives back the bytes it was promised.
        let mut waiting = Box::pin(budget.take(30, LONG));
        assert!(poll_once(&mut waiting).is_pending());
        drop(waiting);
        assert_eq!(budget.used_bytes(), 80);
        drop(held);
        assert!(budget.try_take(100).is_ok());
    }

    proptest! {
        #[test]
        fn held_bytes_add_up(steps in prop::collection::vec((0..6_u8, 0..70_usize), 1..200)) {
            let budget = ByteBudget::new("tests", 200);
            let mut all: Vec<Held> = Vec::new();
            for (step, bytes) in steps {
                let last = all.pop();
                match (step, last) {
                    (0 | 1, last) => {
                        all.extend(last);
                        all.extend(budget.try_take(bytes));
                    }
                    (2, Some(mut last)) => {
                        last.shrink_to(bytes);
                        prop_assert!(last.bytes() <= bytes);
                        all.push(last);
                    }
                    (3, Some(mut last)) => {
                        let before = last.bytes();
                        let grown = last.try_grow(bytes).is_ok();
                        prop_assert_eq!(last.bytes(), if grown { before + bytes } else { before });
                        all.push(last);
                    }
                    (4, Some(mut last)) => {
                        all.extend(last.split(bytes));
                        if let Some(part) = all.pop() {
                            last.merge(part);
                        }
                        all.push(last);
                    }
                    _ => {}
                }
                let held: usize = all.iter().map(Held::bytes).sum();
                prop_assert_eq!(budget.used_bytes(), held);
                prop_assert!(held <= 200);
            }
            all.clear();
            prop_assert_eq!(budget.used_bytes(), 0);
        }
    }
}
