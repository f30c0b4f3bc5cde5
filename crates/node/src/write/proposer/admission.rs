//! Whether a write may be proposed now: the epoch lease, room on disks, and the recovery point of
//! its database.
//!
//! A decision is a value, [`Admission`]. Its grounds are read once for each batch, into
//! [`Conditions`]; the session carries the decision out.

use std::time::Duration;

use meridian_directory::{Rpo, RpoMode};
use meridian_types::DatabaseId;

use super::recent::Asks;
use super::refusal::WriteRefusal;

/// How long the next writes of a database are held back at most, when replication lags by as much as
/// may be lost.
const MAX_SLOWING: Duration = Duration::from_millis(100);
/// The last part of what may be lost, behind the soft bound, is for databases that ask for no more
/// than their share.
const KEPT_PART: u64 = 4;

/// A leader's decision on a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    Now,
    /// It goes into this batch, and its database has no part in another for so long: replication
    /// lags.
    After(Duration),
    Refuse(WriteRefusal),
}

/// The conditions on which a leader admits writes, beside its epoch lease.
pub(crate) trait AdmissionPolicy: Send + Sync {
    /// Why writes are refused, if they are: all, or all but mere deletes.
    fn refusal(&self, only_deletes: bool) -> Option<WriteRefusal>;

    /// Rejects a write of a database that may store no more, and counts it; with the answer to the
    /// client, for good.
    fn reject(&self, _database: DatabaseId) -> Option<String> {
        None
    }

    /// How far the best replica region is behind, in milliseconds; `None` where there is no other
    /// region.
    fn replication_lag_ms(&self) -> Option<u64>;

    /// The batch of this sequence is proposed now.
    fn proposed(&self, _sequence: u64) {}
}

/// The policy of the directory's own group: changes of the cluster are few, and the nodes whose
/// disks or links hold them up are reported elsewhere.
pub(crate) struct AdmitAll;

impl AdmissionPolicy for AdmitAll {
    fn refusal(&self, _: bool) -> Option<WriteRefusal> {
        None
    }

    fn replication_lag_ms(&self) -> Option<u64> {
        None
    }
}

/// The conditions on which one batch admits writes.
pub(super) struct Conditions {
    /// Of writes that do not only delete.
    pub(super) refusal: Option<WriteRefusal>,
    pub(super) refusal_of_deletes: Option<WriteRefusal>,
    pub(super) lag_ms: Option<u64>,
}

impl Conditions {
    /// `rpo`: the recovery point of the write's database. `asks`: how much that writes, of all.
    pub(super) fn admit(
        &self,
        only_deletes: bool,
        rpo: impl FnOnce() -> Rpo,
        asks: impl FnOnce() -> Asks,
    ) -> Admission {
        let refusal = if only_deletes { &self.refusal_of_deletes } else { &self.refusal };
        match (refusal, self.lag_ms) {
            (Some(refusal), _) => Admission::Refuse(refusal.clone()),
            (None, Some(lag_ms)) => admit_by_lag(lag_ms, rpo(), asks),
            (None, None) => Admission::Now,
        }
    }
}

/// Keeps the recovery point: nothing is committed while more would be lost than may be. Before it
/// comes to that, the databases that write most are slowed, the more the nearer the bound is; and
/// those that write more than their share are refused a little before it, so that the others need
/// not be.
fn admit_by_lag(lag_ms: u64, rpo: Rpo, asks: impl FnOnce() -> Asks) -> Admission {
    let Rpo { mode, soft_ms, max_ms } = rpo;
    if mode != RpoMode::Enforce || lag_ms <= soft_ms {
        return Admission::Now;
    }
    if lag_ms > max_ms {
        return Admission::Refuse(WriteRefusal::ReplicationLags { lag_ms, max_ms });
    }
    let between_ms = max_ms - soft_ms;
    match asks() {
        Asks::Less => Admission::Now,
        Asks::TooMuch if lag_ms > max_ms - between_ms / KEPT_PART => {
            Admission::Refuse(WriteRefusal::ReplicationLagsByThis { lag_ms, max_ms })
        }
        Asks::ItsShare | Asks::TooMuch => {
            let part = (lag_ms - soft_ms) as f64 / between_ms.max(1) as f64;
            Admission::After(MAX_SLOWING.mul_f64(part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_slows_from_the_soft_bound_on_and_refuses_beyond_the_hard_one() {
        let rpo = |mode| Rpo { mode, soft_ms: 500, max_ms: 1000 };
        let lags = WriteRefusal::ReplicationLags { lag_ms: 1001, max_ms: 1000 };
        for (lag_ms, admission) in [
            (0, Admission::Now),
            (500, Admission::Now),
            (750, Admission::After(MAX_SLOWING / 2)),
            (1000, Admission::After(MAX_SLOWING)),
            (1001, Admission::Refuse(lags)),
        ] {
            let asks = || Asks::ItsShare;
            assert_eq!(admit_by_lag(lag_ms, rpo(RpoMode::Enforce), asks), admission);
            assert_eq!(admit_by_lag(lag_ms, rpo(RpoMode::Warn), asks), Admission::Now);
        }
    }

    #[test]
    fn lag_slows_and_refuses_the_database_that_asks_too_much_before_its_neighbours() {
        let rpo = Rpo { mode: RpoMode::Enforce, soft_ms: 500, max_ms: 1000 };
        let too_much = |lag_ms| admit_by_lag(lag_ms, rpo, || Asks::TooMuch);
        let less = |lag_ms| admit_by_lag(lag_ms, rpo, || Asks::Less);
        assert_eq!((too_much(750), less(750)), (Admission::After(MAX_SLOWING / 2), Admission::Now));
        assert!(matches!(too_much(875), Admission::After(_)));
        let refused = WriteRefusal::ReplicationLagsByThis { lag_ms: 876, max_ms: 1000 };
        assert_eq!((too_much(876), less(876)), (Admission::Refuse(refused), Admission::Now));
        assert_eq!(less(1000), Admission::Now);
        // Of whichever database the lag is: more may not be lost.
        let lags = WriteRefusal::ReplicationLags { lag_ms: 1001, max_ms: 1000 };
        assert_eq!(less(1001), Admission::Refuse(lags));
    }

    #[test]
    fn low_disk_refuses_puts_and_not_deletes_and_goes_before_lag() {
        let low = WriteRefusal::LeaderDiskLow { min_free_bytes: 256 << 20 };
        let conditions =
            Conditions { refusal: Some(low.clone()), refusal_of_deletes: None, lag_ms: Some(2000) };
        let rpo = || Rpo { mode: RpoMode::Enforce, soft_ms: 500, max_ms: 1000 };
        let asks = || Asks::ItsShare;
        assert_eq!(conditions.admit(false, rpo, asks), Admission::Refuse(low));
        let lags = WriteRefusal::ReplicationLags { lag_ms: 2000, max_ms: 1000 };
        assert_eq!(conditions.admit(true, rpo, asks), Admission::Refuse(lags));
        let without_regions = Conditions { lag_ms: None, ..conditions };
        assert_eq!(without_regions.admit(true, rpo, asks), Admission::Now);
    }
}
