//! The answer to a request for changes: whole transactions as they are committed, at the pace of
//! the client.
//!
//! A task asks the [`Database`] for what lies behind the versionstamp that it has come to, once the
//! client has taken what came before. It keeps nothing else of the feed: whatever node answers, the
//! next question begins where the last answer ended. A small answer is counted among those that
//! clients have not taken yet once it is there; for a large one room is taken before it is asked
//! for.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use meridian_types::{DatabaseId, Versionstamp};
use metrics::Gauge;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::Catalogue;
use crate::answer::Interrupted;
use crate::change_lines::Form;
use crate::changes::{Changed, ChangesWanted};
use crate::database::{Database, NoChanges};
use crate::permission::Permission;
use crate::shares::{Holder, Share, Shares};

/// Between two bookmarks, which say that the feed is alive.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);
/// How long the database waits for a change before it says that there is none.
const CHANGE_WAIT: Duration = Duration::from_secs(2);
/// Between two questions, unless changes came and there are more: a feed costs no more where its
/// shard commits hundreds of batches a second.
const PACE: Duration = Duration::from_millis(20);
/// Until what cannot be had now is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Until there may be room again for what clients have not taken.
const NO_ROOM: Duration = Duration::from_millis(250);
/// The bytes that are asked for without room for them.
const SMALL_BYTES: usize = 16 << 10;
/// The bytes that are asked for where more are there.
const LARGE_BYTES: usize = 256 << 10;
/// Of a transaction's size: its text, and itself until that is written.
const ROOM_FACTOR: u64 = 3;

/// A feed of one client.
pub(crate) struct ChangeFeed<D, C> {
    pub(crate) database: Arc<D>,
    pub(crate) permission: Permission<C>,
    pub(crate) prefix: Bytes,
    pub(crate) form: Form,
    /// Where it ends, if it does.
    pub(crate) through: Option<Versionstamp>,
    pub(crate) answers: Shares,
    pub(crate) holder: Holder,
    /// The feed is one of those that may be open, until this is dropped.
    pub(crate) _open: (Share, Open),
}

/// A feed counts as open until this is dropped.
pub(crate) struct Open(Gauge);

impl Open {
    pub(crate) fn new(open: &Gauge) -> Self {
        open.increment(1.0);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Why a feed ends, for its client: a code and a text.
type End = (&'static str, String);

/// The first question, before the answer begins, so that a refusal is an answer.
pub(crate) fn first(
    database: DatabaseId,
    prefix: &Bytes,
    after: Option<Versionstamp>,
) -> ChangesWanted {
    let prefix = prefix.clone();
    ChangesWanted { database, prefix, after, max_bytes: SMALL_BYTES, wait: Duration::ZERO }
}

impl<D: Database, C: Catalogue> ChangeFeed<D, C> {
    /// The body of the answer, which begins with the changes that were asked for first. Within a
    /// runtime.
    pub(crate) fn start(self, first: Changed) -> ChangeBody {
        self.at_pace(first, BOOKMARK_EVERY)
    }

    fn at_pace(self, first: Changed, bookmark_every: Duration) -> ChangeBody {
        let (out, pieces) = mpsc::channel(1);
        let mut bookmarks = interval_at(Instant::now() + bookmark_every, bookmark_every);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::spawn(async move {
            let (code, message) = tokio::select! {
                () = out.closed() => return,
                end = self.run(first, &mut bookmarks, &out) => end,
            };
            drop(out.send(self.form.end(code, &message).into()).await);
        });
        ChangeBody(pieces)
    }

    /// Until the feed has come to its end, or cannot go on.
    async fn run(&self, first: Changed, bookmarks: &mut Interval, out: &Sender<Bytes>) -> End {
        let (mut changed, mut room, mut is_first) = (first, None, true);
        loop {
            let Changed { transactions, reached, next_bytes } = changed;
            let next_at = Instant::now() + PACE;
            let is_at_work = next_bytes > 0 && !transactions.is_empty();
            if !transactions.is_empty() {
                let text = self.form.transactions(&transactions);
                drop(transactions);
                let room = match room.take() {
                    Some(room) => room,
                    None => self.room(text.capacity() as u64).await,
                };
                // Given back when the last byte has left, or the connection is gone.
                if !self.send(room.held_with(text.into()), out).await {
                    return no_permission();
                }
            }
            let is_over = self.through.is_some_and(|through| has_come_to(reached, through));
            let says_so = is_over || std::mem::take(&mut is_first);
            if says_so && !self.send(self.form.bookmark(reached).into(), out).await {
                return no_permission();
            }
            if is_over {
                let message = "All that was committed when the feed was asked for is told.";
                return ("told", message.into());
            }
            let mut asking = pin!(async {
                // The client has taken the piece that was sent; or the feed is dropped with its body.
                drop(out.reserve().await);
                if !is_at_work {
                    sleep_until(next_at).await;
                }
                self.ask(reached, next_bytes).await
            });
            let answer = loop {
                tokio::select! {
                    answer = &mut asking => break answer,
                    _ = bookmarks.tick() => {
                        if !self.permission.holds() {
                            return no_permission();
                        }
                        // A client that has not taken what came before needs none.
                        out.try_send(self.form.bookmark(reached).into()).ok();
                    }
                }
            };
            match answer {
                Ok((next, taken)) => (changed, room) = (next, taken),
                Err(why) => return (why.code(), why.to_string()),
            }
        }
    }

    /// The next changes, and the room that was taken for them. Changes that cannot be had now are
    /// asked for again.
    async fn ask(
        &self,
        after: Versionstamp,
        next_bytes: usize,
    ) -> Result<(Changed, Option<Share>), NoChanges> {
        let large = (next_bytes > 0).then(|| next_bytes.max(LARGE_BYTES));
        let room = match large {
            Some(bytes) => Some(self.room(bytes as u64 * ROOM_FACTOR).await),
            None => None,
        };
        loop {
            let wanted = ChangesWanted {
                database: self.permission.database,
                prefix: self.prefix.clone(),
                after: Some(after),
                max_bytes: large.unwrap_or(SMALL_BYTES),
                wait: CHANGE_WAIT,
            };
            match self.database.changes(wanted).await {
                Ok(changed) => return Ok((changed, room)),
                Err(NoChanges::Unavailable(_)) => sleep(ASK_AGAIN).await,
                Err(why) => return Err(why),
            }
        }
    }

    /// Waits until these bytes may be kept until the client has taken them.
    async fn room(&self, bytes: u64) -> Share {
        // The largest transaction fits into the smallest process by itself.
        let bytes = bytes.min(self.answers.total() / 2);
        loop {
            match self.answers.take(self.holder, bytes) {
                Some(share) => return share,
                None => sleep(NO_ROOM).await,
            }
        }
    }

    /// `false`: the client may have it no longer.
    async fn send(&self, piece: Bytes, out: &Sender<Bytes>) -> bool {
        // Without a body this is dropped.
        let Ok(place) = out.reserve().await else { return true };
        let holds = self.permission.holds();
        if holds {
            place.send(piece);
        }
        holds
    }
}

/// Sequences go on from one epoch to the next.
fn has_come_to(reached: Versionstamp, through: Versionstamp) -> bool {
    let place = |stamp: Versionstamp| (stamp.position().sequence, stamp.order());
    place(reached) >= place(through)
}

fn no_permission() -> End {
    (
        "no_access",
        "The access token is no longer valid for this database, or it was deleted.".into(),
    )
}

/// Pieces of whole lines, as they come.
pub(crate) struct ChangeBody(Receiver<Bytes>);

impl Body for ChangeBody {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
