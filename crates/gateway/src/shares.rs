//! An amount that is shared among tokens, so that none of them takes it all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Who holds a share: one access token, by a hash of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Holder(pub(crate) u64);

/// An amount of something (requests, bytes) that holders take shares of and give back. Nobody waits for a share:
/// what cannot be had now is refused.
///
/// While more than a quarter is free, every holder takes what it likes. From then on a holder may have half of what
/// the others leave, and no more: however many there are, a newcomer finds something left.
#[derive(Clone)]
pub(crate) struct Shares(Arc<Inner>);

struct Inner {
    total: u64,
    state: Mutex<State>,
    returned: Notify,
}

#[derive(Default)]
struct State {
    closed: bool,
    used: u64,
    held: HashMap<Holder, u64>,
}

impl Shares {
    pub(crate) fn new(total: u64) -> Self {
        Self(Arc::new(Inner { total, state: Mutex::default(), returned: Notify::new() }))
    }

    /// `None`: too much is taken, by this holder or by all of them together.
    pub(crate) fn take(&self, holder: Holder, amount: u64) -> Option<Share> {
        let mut share = Share { inner: Arc::clone(&self.0), holder, amount: 0 };
        share.grow(amount).then_some(share)
    }

    /// Gives nothing out any more, and waits until everything is given back.
    pub(crate) async fn close(&self) {
        self.0.state().closed = true;
        loop {
            let returned = self.0.returned.notified();
            if self.0.state().used == 0 {
                return;
            }
            returned.await;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked with the lock held left whole numbers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of the amount, until it is dropped.
pub(crate) struct Share {
    inner: Arc<Inner>,
    holder: Holder,
    amount: u64,
}

impl Share {
    /// Takes more. False: nothing was taken, as [`Shares::take`] would refuse it.
    pub(crate) fn grow(&mut self, amount: u64) -> bool {
        let total = self.inner.total;
        let mut state = self.inner.state();
        let held = state.held.get(&self.holder).copied().unwrap_or_default().saturating_add(amount);
        let used = state.used.saturating_add(amount);
        let left_by_others = total.saturating_sub(used.saturating_sub(held));
        let has_room = used <= total - total / 4 || held <= left_by_others / 2;
        if state.closed || !has_room {
            return false;
        }
        state.used = used;
        state.held.insert(self.holder, held);
        self.amount += amount;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.used = state.used.saturating_sub(self.amount);
        if let Some(held) = state.held.get_mut(&self.holder) {
            *held = held.saturating_sub(self.amount);
            if *held == 0 {
                state.held.remove(&self.holder);
            }
        }
        if state.used == 0 {
            self.inner.returned.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Holder = Holder(1);
    const QUIET: Holder = Holder(2);

    #[test]
    fn one_holder_cannot_take_what_another_needs() {
        let shares = Shares::new(100);
        let greedy: Vec<_> = std::iter::from_fn(|| shares.take(GREEDY, 1)).take(1000).collect();
        assert_eq!(greedy.len(), 75);
        let quiet: Vec<_> = std::iter::from_fn(|| shares.take(QUIET, 1)).take(1000).collect();
        assert_eq!(quiet.len(), 12);
        // The greedy one gets nothing before it is back below.
        drop(quiet);
        assert!(shares.take(GREEDY, 1).is_none());
        drop(greedy);
        assert!(shares.take(GREEDY, 75).is_some());
    }

    #[test]
    fn many_holders_leave_something_for_the_next() {
        let shares = Shares::new(1000);
        let mut taken = Vec::new();
        for holder in 0..8 {
            taken.extend(std::iter::from_fn(|| shares.take(Holder(holder), 1)).take(1000));
        }
        assert!(shares.take(Holder(100), 1).is_some(), "{} of 1000 are taken", taken.len());
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let shares = Shares::new(100);
        assert!(shares.take(GREEDY, 101).is_none());
        assert!(shares.take(GREEDY, u64::MAX).is_none());
        let mut share = shares.take(GREEDY, 70).unwrap();
        assert!(!share.grow(6));
        assert!(share.grow(5));
        drop(share);
        assert!(shares.0.state().held.is_empty());
        assert_eq!(shares.0.state().used, 0);
    }

    #[tokio::test]
    async fn closing_waits_for_what_is_out_and_gives_nothing_more() {
        let shares = Shares::new(10);
        let share = shares.take(GREEDY, 1).unwrap();
        let closing = tokio::spawn({
            let shares = shares.clone();
            async move { shares.close().await }
        });
        while !shares.0.state().closed {
            tokio::task::yield_now().await;
        }
        assert!(shares.take(QUIET, 1).is_none());
        assert!(!closing.is_finished());
        drop(share);
        closing.await.unwrap();
    }
}
