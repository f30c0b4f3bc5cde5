//! The way of handouts from the task to a session, which is over when the task drops its end.

use std::collections::VecDeque;

use meridian_queue::{MAX_CREDITS, Refused};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Handout;

/// The keys that a session's stream has not taken, at most: all that a listener may hold, and those
/// that were released. A stream that is further behind is ended.
const ROOM: usize = 4 * MAX_CREDITS as usize;

/// The task's end. It is dropped with the dispatcher that decides what is told.
pub(super) struct Outbox {
    handouts: mpsc::Sender<Handout>,
    // Dropped behind the sender: nothing is told to a session that is over.
    _over: DropGuard,
}

impl Outbox {
    /// False where the session has left, or is too far behind.
    pub(super) fn tell(&self, handout: Handout) -> bool {
        self.handouts.try_send(handout).is_ok()
    }
}

/// The session's end.
pub(super) struct Inbox {
    handouts: mpsc::Receiver<Handout>,
    /// Taken, and not dealt with.
    waiting: VecDeque<Handout>,
    over: CancellationToken,
}

pub(super) fn handouts() -> (Outbox, Inbox) {
    let (sender, handouts) = mpsc::channel(ROOM);
    let over = CancellationToken::new();
    let outbox = Outbox { handouts: sender, _over: over.clone().drop_guard() };
    (outbox, Inbox { handouts, waiting: VecDeque::new(), over })
}

impl Inbox {
    /// The next handout, unless the session is over: its dispatcher's leases are gone then, and what
    /// waits may be handed to others.
    pub(super) async fn next(&mut self) -> Option<Handout> {
        if self.is_over() {
            return None;
        }
        match self.waiting.pop_front() {
            Some(next) => Some(next),
            None => self.handouts.recv().await,
        }
    }

    /// The next handout, if one is there.
    pub(super) fn next_now(&mut self) -> Option<Handout> {
        self.waiting.pop_front().or_else(|| self.handouts.try_recv().ok())
    }

    /// It comes next again.
    pub(super) fn put_back(&mut self, handout: Handout) {
        self.waiting.push_front(handout);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Of a session that is over: why, where the dispatcher said so.
    pub(super) fn reason(&mut self) -> Option<Refused> {
        std::iter::from_fn(|| self.next_now()).find_map(|handout| match handout {
            Handout::End(refused) => Some(refused),
            Handout::Deliver { .. } | Handout::Release(_) => None,
        })
    }
}
