//! An amount that is shared among tokens and shards, so that none of them takes it all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_types::ShardId;
use tokio::sync::Notify;

use crate::usage::OpenCounts;

/// The holder of a share: an access token, by its hash, and the shard that the share is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) token: u64,
    /// The shard whose operations wait together when it is not served. `None`: the share is for no
    /// shard in particular.
    pub(crate) shard: Option<ShardId>,
}

/// An amount of something (requests, bytes) that holders take shares of and give back. There is no
/// waiting for a share: a request beyond the bounds is refused.
///
/// While more than a quarter is free, every token takes what it asks for. From then on a token may
/// have half of the amount that the others leave: however many tokens there are, a new one finds
/// something left. A token's amount is divided among its shards in the same way: while a shard is
/// not served, the others go on.
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
    by_token: BTreeMap<u64, u64>,
    by_holder: BTreeMap<Holder, u64>,
}

/// The number of holders without shares that are remembered: the next request is likely one of
/// theirs.
const KEPT: usize = 64;

/// Whether a holder may have `held` of `total`, while all holders together have `used`.
fn fits(total: u64, used: u64, held: u64) -> bool {
    used <= total - total / 4 || held <= total.saturating_sub(used.saturating_sub(held)) / 2
}

impl Shares {
    pub(crate) fn new(total: u64) -> Self {
        Self(Arc::new(Inner { total, state: Mutex::default(), returned: Notify::new() }))
    }

    /// `None`: too much is taken, by this holder or by all of them together.
    pub(crate) fn take(&self, holder: Holder, amount: u64) -> Option<Share> {
        let mut share = Share { inner: Arc::clone(&self.0), holder, amount: 0, _open: None };
        share.grow(amount).then_some(share)
    }

    /// The total of all holders together.
    pub(crate) fn total(&self) -> u64 {
        self.0.total
    }

    /// The amount that all holders together have.
    pub(crate) fn used(&self) -> u64 {
        self.0.state().used
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.state().closed
    }

    /// Gives out no more shares, and waits until all are given back.
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
        // A panic with the lock held leaves whole numbers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of the amount, until it is dropped.
pub(crate) struct Share {
    inner: Arc<Inner>,
    holder: Holder,
    amount: u64,
    /// Beside the share, quotas count something as open for as long.
    _open: Option<OpenCounts>,
}

impl Share {
    /// The same, for something that quotas count as open.
    pub(crate) fn of_open(mut self, open: OpenCounts) -> Self {
        self._open = Some(open);
        self
    }

    /// The bytes that the share was taken for; it is given back with the last of them.
    pub(crate) fn held_with(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: self })
    }

    /// The total of all holders together.
    pub(crate) fn total(&self) -> u64 {
        self.inner.total
    }

    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }

    /// Takes more, or gives back what is too much. `false`: the share is as it was.
    pub(crate) fn resize(&mut self, amount: u64) -> bool {
        match amount.checked_sub(self.amount) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.amount - amount);
                true
            }
        }
    }

    fn shrink(&mut self, amount: u64) {
        if amount == 0 {
            return;
        }
        self.amount -= amount;
        let mut state = self.inner.state();
        state.used = state.used.saturating_sub(amount);
        let State { by_token, by_holder, .. } = &mut *state;
        give_back(by_token, self.holder.token, amount);
        give_back(by_holder, self.holder, amount);
        if state.closed && state.used == 0 {
            self.inner.returned.notify_waiters();
        }
    }

    /// Takes more. `false`: nothing was taken, as [`Shares::take`] would refuse it.
    pub(crate) fn grow(&mut self, amount: u64) -> bool {
        let total = self.inner.total;
        let mut state = self.inner.state();
        let Holder { token, .. } = self.holder;
        let of_token =
            state.by_token.get(&token).copied().unwrap_or_default().saturating_add(amount);
        let of_holder =
            state.by_holder.get(&self.holder).copied().unwrap_or_default().saturating_add(amount);
        let used = state.used.saturating_add(amount);
        let of_others = used.saturating_sub(of_token);
        let may_have =
            (total - total / 4).saturating_sub(of_others).max(total.saturating_sub(of_others) / 2);
        let has_room = fits(total, used, of_token)
            && (self.holder.shard.is_none() || fits(may_have, of_token, of_holder));
        if state.closed || !has_room {
            return false;
        }
        if amount == 0 {
            return true;
        }
        state.used = used;
        state.by_token.insert(token, of_token);
        state.by_holder.insert(self.holder, of_holder);
        self.amount += amount;
        true
    }
}

/// Bytes with the share that was taken for them.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

fn give_back<K: Ord>(held: &mut BTreeMap<K, u64>, holder: K, amount: u64) {
    let is_large = held.len() > KEPT;
    if let Entry::Occupied(mut held) = held.entry(holder) {
        *held.get_mut() = held.get().saturating_sub(amount);
        if is_large && *held.get() == 0 {
            held.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Holder = holder(1, 1);
    const QUIET: Holder = holder(2, 1);

    const fn holder(token: u64, shard: u32) -> Holder {
        Holder { token, shard: Some(ShardId(shard)) }
    }

    /// Takes a share for each of the token's `shards` in turn, until none is left for it.
    fn all_of(shares: &Shares, token: u64, shards: u32) -> Vec<Share> {
        let each =
            |shard| std::iter::from_fn(move || shares.take(holder(token, shard), 1)).take(10_000);
        (1..=shards).flat_map(each).collect()
    }

    #[test]
    fn one_holder_cannot_take_what_another_needs() {
        let shares = Shares::new(100);
        // However many shards the token uses.
        let greedy = all_of(&shares, 1, 64);
        assert!(greedy.len() <= 75, "{}", greedy.len());
        let quiet = all_of(&shares, 2, 1);
        assert!(quiet.len() >= 10, "{}", quiet.len());
        // The greedy token gets nothing until it is back below its bound.
        drop(quiet);
        assert!(shares.take(GREEDY, 1).is_none());
        drop(greedy);
        assert!(shares.take(GREEDY, 56).is_some());
    }

    #[test]
    fn unserved_shard_leaves_its_token_a_share_for_another_shard() {
        let shares = Shares::new(8192);
        let stuck = all_of(&shares, 1, 1);
        assert_eq!(stuck.len(), 6144 / 4 * 3);
        assert_eq!(all_of(&shares, 1, 2).len(), 768, "of the second shard");
        // The same holds while other tokens have most of the amount.
        let _others: Vec<_> = (2..8).flat_map(|token| all_of(&shares, token, 1)).collect();
        drop(stuck);
        let stuck = all_of(&shares, 1, 1);
        assert!(!stuck.is_empty() && shares.take(holder(1, 2), 1).is_some(), "{}", stuck.len());
    }

    #[test]
    fn many_holders_leave_a_share_for_the_next() {
        let shares = Shares::new(1000);
        let mut taken = Vec::new();
        for token in 0..8 {
            taken.extend(all_of(&shares, token, 1));
        }
        assert!(shares.take(holder(100, 1), 1).is_some(), "{} of 1000 are taken", taken.len());
    }

    #[test]
    fn refused_share_takes_nothing() {
        let shares = Shares::new(100);
        assert!(shares.take(GREEDY, 101).is_none());
        assert!(shares.take(GREEDY, u64::MAX).is_none());
        let mut share = shares.take(GREEDY, 50).unwrap();
        assert!(!share.grow(8));
        assert!(share.grow(7));
        assert!(share.resize(20) && !share.resize(58) && share.resize(57));
        assert_eq!((share.amount(), shares.0.state().used), (57, 57));
        drop(share);
        assert_eq!(shares.0.state().used, 0);
    }

    #[test]
    fn few_empty_holders_are_remembered_and_no_holder_with_a_share_is_forgotten() {
        let shares = Shares::new(1_000_000);
        // Holders that come one after the other, and holders that come all at once.
        (0..10_000).for_each(|token| drop(shares.take(holder(token, 1), 1)));
        let known = || {
            let state = shares.0.state();
            (state.by_token.len(), state.by_holder.len())
        };
        assert_eq!(known(), (KEPT, KEPT));
        let taken: Vec<_> =
            (0..1000).map(|token| shares.take(holder(token, 1), 1).unwrap()).collect();
        let (more, rest) =
            (shares.take(holder(7, 1), 5).unwrap(), shares.take(holder(7, 1), 3).unwrap());
        drop((taken, more));
        assert_eq!(known(), (KEPT, KEPT));
        {
            let state = shares.0.state();
            assert_eq!(
                (state.by_token.get(&7), state.by_holder.get(&holder(7, 1))),
                (Some(&3), Some(&3))
            );
        }
        drop(rest);
        let state = shares.0.state();
        assert!(state.by_token.values().chain(state.by_holder.values()).all(|held| *held == 0));
    }

    #[tokio::test]
    async fn closing_waits_for_all_shares_and_gives_out_no_more() {
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
