//! Client histories, and the invariants that they must satisfy.
//!
//! A [`History`] holds the requests of concurrent clients of one database and their answers, with
//! real times of one recording process. [`check`] decides whether a correct store could have given
//! these answers, [`check_with`] whether a store could that lost what its failovers admit to. The
//! history of a queue is judged apart, by [`queue::check_queue`].
//!
//! | module | contents |
//! |---|---|
//! | `checker` | the entry points: a history against all invariants |
//! | `history` | operations, answers and their times; [`History::write`] and [`History::read`] |
//! | `encoding` | values as bytes, for workloads |
//! | `allowance` | what failovers may have lost: the tail of an epoch beyond the base of the next |
//! | `evidence` | a history with all that is derived from it |
//! | `writers` | which transaction may have written which value |
//! | `observations` | which transactions the reads show to have committed |
//! | `commit`, `commits` | the order of commits, and the points between them |
//! | `lost_branch` | the branches of that order that failovers ended |
//! | `timeline` | the state at every point, by replay |
//! | `placement` | the points at which reads and failed checks can lie |
//! | `invariants` | one file for each invariant, with the source of its rule |
//! | [`queue`] | histories of messages, and the rules that they must keep |
//! | `report` | violations, and statistics of the history |
//!
//! Invariants: the checker believes answers only. Nothing in it knows how the store works, so that
//! it shares no mistake with it; it depends on the words of `meridian-types` and on nothing else of
//! the workspace. Absent on purpose: a client, a network, a workload, a clock and files.
//! `meridian-drills` records histories and keeps them in files.
//!
//! A failover that loses a tail is one more event in the order of commits, between the last commit
//! of the old epoch and the first of the new one: it sets the state back to the base. So the tail
//! is a branch that ended. Reads of the tail must lie before that event in real time too, and
//! later operations may show nothing of it; all other rules hold unchanged on both sides.
//!
//! The versionstamps of the answers give the order of commits. So the check is linear, not a
//! search: the store claims an order, and every answer is held against the claim.

mod allowance;
mod checker;
mod commit;
mod commits;
mod encoding;
mod evidence;
mod history;
mod invariants;
mod lost_branch;
mod observations;
mod placement;
pub mod queue;
mod report;
mod timeline;
mod writers;

pub use allowance::{Allowance, LostWindow};
pub use checker::{check, check_with};
pub use encoding::{InvalidValue, MAX_LIST_ELEMENTS};
pub use history::{
    Check, Entry, History, HistoryError, Key, Operation, Read, ReadOutcome, Record, Txn,
    TxnOutcome, Value, Write,
};
pub use report::{Invariant, Offender, Report, Statistics, Violation};
