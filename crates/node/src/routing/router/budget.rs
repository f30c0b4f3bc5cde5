//! The budget of a gateway for tries at a shard beyond the first ones.

use std::time::Duration;

use parking_lot::Mutex;

/// Of a further try, for each first one: so many further tries come with ten first ones.
const PER_FIRST_TRY: f64 = 0.1;
/// Regardless of the number of first tries: a leader that was lost is looked for at once.
const PER_SECOND: f64 = 20.0;
/// The most that is saved up.
const CAPACITY: f64 = 100.0;
/// A further try is paid for by the bytes that it sends, too.
const BYTES_FOR_ONE: f64 = (64 << 10) as f64;

/// Pays for hedges and retries of one shard: a part of the first tries, and a few each second.
///
/// Without it an outage feeds itself: whatever is slow is asked several times over, and stays slow
/// for that.
pub(super) struct Budget {
    account: Mutex<Account>,
}

struct Account {
    /// Below zero after a large try: nothing is paid for until that is made up for.
    balance: f64,
    /// When it was last looked at.
    at: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { account: Mutex::new(Account { balance: CAPACITY, at: Duration::ZERO }) }
    }
}

impl Account {
    fn earn(&mut self, now: Duration, earned: f64) {
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.balance = (self.balance + earned + since * PER_SECOND).min(CAPACITY);
    }
}

impl Budget {
    /// A request is tried for the first time, which costs nothing.
    pub(super) fn first_try(&self, now: Duration) {
        self.account.lock().earn(now, PER_FIRST_TRY);
    }

    /// A further try was answered, and so pays for another one: operations that wait are served as
    /// fast as they can be.
    pub(super) fn answered(&self, now: Duration) {
        self.account.lock().earn(now, 1.0);
    }

    /// Whether a try of so many bytes is paid for.
    pub(super) fn pays(&self, now: Duration, bytes: usize) -> bool {
        let mut account = self.account.lock();
        account.earn(now, 0.0);
        if account.balance < 1.0 {
            return false;
        }
        account.balance -= 1.0 + bytes as f64 / BYTES_FOR_ONE;
        true
    }
}

/// How long to wait before the round after so many that failed: longer each time, and never all at
/// once.
pub(super) fn pause(rounds: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(15);
    const LONGEST: Duration = Duration::from_secs(2);
    let pause = FIRST.saturating_mul(1 << rounds.min(8)).min(LONGEST);
    pause.mul_f64(rand::random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid(budget: &Budget, now_ms: u64, bytes: usize) -> usize {
        (0..1000).take_while(|_| budget.pays(Duration::from_millis(now_ms), bytes)).count()
    }

    #[test]
    fn further_tries_are_a_part_of_the_first_ones_and_a_few_each_second() {
        let budget = Budget::default();
        assert_eq!(paid(&budget, 0, 0), 100);
        assert_eq!(paid(&budget, 0, 0), 0);
        (0..205).for_each(|_| budget.first_try(Duration::ZERO));
        assert_eq!(paid(&budget, 0, 0), 20);
        assert_eq!(paid(&budget, 1010, 0), 20);
        budget.answered(Duration::from_millis(1010));
        assert_eq!(paid(&budget, 1010, 0), 1);
        assert_eq!(paid(&budget, 3_600_000, 0), 100, "no more is saved up");
    }

    #[test]
    fn large_tries_cost_by_their_bytes() {
        let budget = Budget::default();
        let of_800_kib = paid(&budget, 0, 800 << 10);
        assert!((7..=8).contains(&of_800_kib), "{of_800_kib}");
        // Then about one and a half a second: 1.2 MB.
        let later: usize = (1..=100).map(|tenth| paid(&budget, tenth * 100, 800 << 10)).sum();
        assert!((10..=16).contains(&later), "{later}");
    }

    #[test]
    fn pauses_grow_and_are_never_all_the_same() {
        for rounds in 0..40 {
            let pauses: Vec<Duration> = (0..20).map(|_| pause(rounds)).collect();
            let most = Duration::from_millis(15)
                .saturating_mul(1 << rounds.min(8))
                .min(Duration::from_secs(2));
            assert!(
                pauses.iter().all(|pause| *pause >= most / 2 && *pause <= most * 3 / 2),
                "{rounds}: {pauses:?}"
            );
            assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        }
    }
}
