//! Which listener gets which message when: pure.
//!
//! [`Dispatcher`] does so for the leader of one shard, in one term. Messages are rows of the shard's
//! state; the dispatcher knows a bounded number of their keys, and leases them to listeners. The
//! node drives it: it tells what was applied, read, opened and reported, and carries out what the
//! dispatcher asks for.
//!
//! | module | contents |
//! |---|---|
//! | `event` | what the dispatcher is told and asks for |
//! | `dispatcher` | all queues of a shard |
//! | `queue` | one queue |
//! | `reported` | the reports of its listeners, and what is logged of them |
//! | `claims` | messages that listeners say they hold, until their rows are found |
//! | `window` | the keys that are known of a queue's messages |
//! | `leases` | which listener holds which message, and until when |
//! | `moved` | where messages are by now that have moved |
//! | `listeners` | the listeners of a queue, and their turns |
//!
//! Invariants:
//! - A message has one lease at most, and is handed out under it alone.
//! - A lease is of a row that was there. A listener that claims a row that is gone holds nothing, and
//!   keeps nothing from others.
//! - Messages of a queue are handed out by due time, then in the order of commits.
//! - A message whose delivery was settled is not handed out again in the same term.
//! - An attempt is counted where a listener says that it failed, or where its lease ran out; never
//!   because another node leads.
//! - A queue holds up no other of its database: it leaves each of them [`MIN_LEASES`].
//! - Memory is bounded whatever is stored and named: [`WINDOW`] keys a queue, [`MAX_LEASES`] leases a
//!   database and [`MIN_LEASES`] for each of its queues, [`MAX_LEASES_IN_ALL`] leases and [`MAX_IDLE`] idle named
//!   queues a shard.
//!
//! Absent on purpose: tokio, storage, the wire format, clocks and payloads. A lease lives in memory
//! alone: a leader that is lost takes its leases along, and listeners tell the next one what they
//! hold.

mod claims;
mod dispatcher;
mod event;
mod leases;
mod listeners;
mod moved;
mod queue;
mod reported;
mod window;

pub use claims::MAX_CHECKED;
pub use dispatcher::{Dispatcher, MAX_IDLE, MAX_LEASES_IN_ALL, MAX_LISTENERS_IN_ALL};
pub use event::{
    Action, Answer, Event, Incarnation, Lane, ListenerId, MessageKey, Moment, Opening, Outcome,
    Refused, Report, RowChange, SessionId, Ticket,
};
pub use leases::{GRACE, MAX_LEASES, MIN_LEASES};
pub use listeners::{MAX_CREDITS, MAX_LISTENERS};
pub use queue::HOLD;
pub use reported::MAX_SETTLEMENTS;
pub use window::WINDOW;
