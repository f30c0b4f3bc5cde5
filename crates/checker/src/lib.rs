//! Client histories, and what they must satisfy.
//!
//! A [`History`] is what concurrent clients of one database asked and were answered, with real
//! times of one recording process. [`check`] says whether some correct store could have given these
//! answers, [`check_with`] whether one could that lost what its failovers admit to.
//!
//! - [`Recorder`] makes a history while clients run; [`History::save`] and [`History::load`] keep
//!   it.
//! - [`Allowance`] is what failovers may have lost: the tail of an epoch beyond the base of the
//!   next.
//! - `writers`, `sightings` and `commits` find out what committed, and in which order; `timeline`
//!   replays it; `placement` asks where in that order a read can lie.
//! - `invariants/` holds one file for each thing that must hold, with where the rule comes from.
//!
//! What always holds here: the checker believes answers only. Nothing in it knows how the store
//! works, so that it shares no mistake with it; it depends on the words of `meridian-types` and on
//! nothing else of the workspace. What is absent on purpose: a client, a network, a workload.
//!
//! A failover that loses a tail is one more event in the order of commits, between the last commit
//! of the old epoch and the first of the new one: it puts the state back to what it was at the
//! base. So the tail is a branch that ended. What was read of it must lie before that event in real
//! time too, and nothing of it may be seen behind it; all other rules hold unchanged on both sides.
//!
//! The versionstamps of the answers give the order of commits. So the check is linear, not a
//! search: the order is claimed by the store, and every answer is held against the claim.

mod allowance;
mod checker;
mod commits;
mod encoding;
mod history;
mod invariants;
mod placement;
mod recorder;
mod report;
mod sightings;
mod stretch;
mod timeline;
mod writers;

pub use allowance::{Allowance, LostWindow};
pub use checker::{check, check_with};
pub use encoding::{InvalidValue, MAX_LIST_ELEMENTS};
pub use history::{
    Check, Entry, History, HistoryError, Key, Operation, Read, ReadOutcome, Record, Txn,
    TxnOutcome, Value, Write,
};
pub use recorder::{ReadToken, Recorder, TxnToken};
pub use report::{Invariant, Offender, Report, Statistics, Violation};
