//! The states of a ticker.

use std::time::Duration;

use crate::row::Row;
use crate::step::Version;

/// A tick that this program runs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The row as it was written last. `None`: another program may have the tick by now.
    pub(crate) claim: Option<(Row, Version)>,
    pub(crate) handler: Handler,
    /// The row is written anew then.
    pub(crate) renew: Duration,
    pub(crate) asked: Asked,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Handler {
    RunsSince(Duration),
    /// It has failed, and is called again then.
    CalledAgain(Duration),
}

/// The question to the database that is open in the middle of a run.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Nothing,
    Row,
    Write(Row),
}

/// A run of another program, as an observer has it.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) version: Version,
    /// It may be taken over then, if the row has not changed.
    pub(crate) until: Duration,
    /// The row is looked at then.
    pub(crate) look: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Until the next tick, or the lease of another program has run out.
    Idle,
    /// The row is read.
    Looking,
    /// The row is written, such that another tick comes next. Then it is read again.
    Aiming,
    /// The row is written, such that the handler may be called.
    Claiming(Row),
    Running(Run),
    /// The outcome of the tick is written.
    Settling,
}
