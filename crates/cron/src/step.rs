//! The questions of a ticker, and the answers that it gets.

use std::time::Duration;

use bytes::Bytes;

use crate::row::Row;

/// The versionstamp of a row.
pub type Version = Bytes;

#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall_ms: u64,
    /// Of a clock that is never set, from any begin.
    pub monotonic: Duration,
}

#[derive(Debug, Clone)]
pub enum Event {
    /// The time has passed that the last step was to wait for, or the handler was called.
    Woken,
    Read(Sight),
    Written(Version),
    /// The checks of a write did not hold.
    Conflict,
    /// There was no answer to a read or a write; or that it was not done.
    NoAnswer,
    /// The handler has ended.
    Ended {
        success: bool,
    },
    /// The program is gone.
    Left,
}

/// A reason why ticks do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    #[error(
        "this machine's clock is ahead of the cluster's time by more than a minute: ticks run when \
         the cluster's time has reached them"
    )]
    ClockAhead,
    #[error(
        "the row of the cron says that a tick has run which is more than an hour ahead of this \
         machine's clock: no tick runs before it. If the clock is right, delete the row"
    )]
    TickAhead,
}

/// A row as it was read.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pub row: Option<(Row, Version)>,
    /// The tick [`Row::next`] has come by the cluster's time.
    pub is_due: bool,
}

/// The next thing to do. It has one event as its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Read,
    Write(Write),
    /// Call the handler. Its end is an event of its own.
    Invoke,
    /// Wait for this long, or for the end of the handler, or of the program.
    Wait(Duration),
    /// There is nothing more to do.
    End,
}

/// An atomic write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The row has this version. `None`: there is no row.
    pub check: Option<Version>,
    /// [`Row::next`] has come, by the cluster's time, as it was before this write.
    pub check_due: bool,
    pub row: Row,
    /// Sets the key that says when [`Row::next`] of the new row is due.
    pub sets_due: bool,
}
