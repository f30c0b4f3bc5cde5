//! The answer to a request for changes: whole transactions as they are committed, at the pace of
//! the client.
//!
//! A task asks the [`Database`] for what lies behind the versionstamp that it has come to, once the
//! client has taken what came before. It keeps nothing else of the feed: whatever node answers, the
//! next question begins where the last answer ended. An answer is counted among those that clients
//! have not taken yet once it is here; for a large one room beside them is taken before it is asked
//! for.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use meridian_types::{DatabaseId, Versionstamp};
use metrics::Gauge;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::answer::Interrupted;
use crate::change_lines::Form;
use crate::changes::{Change, Changed, ChangedTransaction, ChangesWanted};
use crate::database::{Database, NoChanges};
use crate::shares::{Holder, Share, Shares};
use crate::stream_access::StreamAccess;
use crate::{Catalogue, Grant};

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
pub(crate) struct ChangeFeed<D> {
    pub(crate) database: Arc<D>,
    pub(crate) id: DatabaseId,
    pub(crate) prefix: Bytes,
    pub(crate) form: Form,
    /// Where it begins; `None`: where the database stands.
    pub(crate) after: Option<Versionstamp>,
    /// Where it ends, if it does.
    pub(crate) through: Option<Versionstamp>,
    pub(crate) rooms: Rooms,
    /// Of its client: for these keys.
    pub(crate) grant: Grant,
    /// The feed is one of those that may be open, until this is dropped.
    pub(crate) _open: (Share, Open),
}

/// Room for what the client has not taken yet.
pub(crate) struct Rooms {
    /// For what is here.
    pub(crate) answers: Shares,
    /// For what is asked for, until it is here: feeds hold it while they wait for nodes, which keeps
    /// nothing from reads.
    pub(crate) asked: Shares,
    pub(crate) holder: Holder,
}

impl Rooms {
    /// Waits until these bytes may be kept until the client has taken them.
    async fn take(&self, of: &Shares, bytes: u64) -> Share {
        // The largest transaction fits into the smallest process by itself.
        let bytes = bytes.min(of.total() / 2);
        loop {
            match of.take(self.holder, bytes) {
                Some(share) => return share,
                None => sleep(NO_ROOM).await,
            }
        }
    }
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

impl<D: Database> ChangeFeed<D> {
    /// The body of the answer, which begins with the changes that were asked for first. Within a
    /// runtime.
    pub(crate) fn start<C: Catalogue>(
        self,
        first: Changed,
        access: StreamAccess<C>,
    ) -> ChangeBody<C> {
        self.at_pace(first, access, BOOKMARK_EVERY)
    }

    fn at_pace<C: Catalogue>(
        self,
        first: Changed,
        access: StreamAccess<C>,
        bookmark_every: Duration,
    ) -> ChangeBody<C> {
        let (out, pieces) = mpsc::channel(1);
        let mut bookmarks = interval_at(Instant::now() + bookmark_every, bookmark_every);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let form = self.form;
        tokio::spawn(async move {
            let (code, message) = tokio::select! {
                () = out.closed() => return,
                end = self.run(first, &mut bookmarks, &out) => end,
            };
            drop(out.send(self.form.end(code, &message).into()).await);
        });
        ChangeBody { pieces, access, form, is_over: false }
    }

    /// Until the feed has come to its end, or cannot go on.
    async fn run(&self, first: Changed, bookmarks: &mut Interval, out: &Sender<Bytes>) -> End {
        let (mut changed, mut asked_room, mut told) = (first, None, self.after);
        let (mut through, mut is_first) = (self.through, true);
        loop {
            let Changed { transactions, reached, next_bytes } = changed;
            let transactions = self.opened(transactions);
            let next_at = Instant::now() + PACE;
            let is_at_work = next_bytes > 0 && !transactions.is_empty();
            let stands_still = transactions.is_empty() && next_bytes == 0 && told == Some(reached);
            if !transactions.is_empty() {
                let text = self.form.transactions(&transactions);
                drop(transactions);
                let bytes = text.capacity() as u64;
                let taking = self.rooms.take(&self.rooms.answers, bytes);
                let room = self.with_bookmarks(told, bookmarks, out, taking).await;
                // Before its client takes what was asked for: it keeps no question from others.
                drop(asked_room.take());
                // Given back when the last byte has left, or the connection is gone.
                drop(out.send(room.held_with(text.into())).await);
            }
            drop(asked_room.take());
            told = Some(reached);
            if stands_still
                && let Some(end) = through
                && !has_come_to(reached, end)
            {
                through = Some(self.still_there(end).await);
            }
            let is_over = through.is_some_and(|through| has_come_to(reached, through));
            if is_over || std::mem::take(&mut is_first) {
                drop(out.send(self.form.bookmark(reached).into()).await);
            }
            if is_over {
                let message = "All that was committed when the feed was asked for is told.";
                return ("told", message.into());
            }
            let asking = async {
                // The client has taken the piece that was sent; or the feed is dropped with its body.
                drop(out.reserve().await);
                if !is_at_work {
                    sleep_until(next_at).await;
                }
                self.ask(reached, next_bytes).await
            };
            match self.with_bookmarks(told, bookmarks, out, asking).await {
                Ok((next, taken)) => (changed, asked_room) = (next, taken),
                Err(why) => return (why.code(), why.to_string()),
            }
        }
    }

    /// Of these, the changes of keys that the client may know. The bytes of a prefix are also those
    /// that some keys beside it begin with.
    fn opened(&self, mut transactions: Vec<ChangedTransaction>) -> Vec<ChangedTransaction> {
        if self.grant.is_within_prefixes() {
            for transaction in &mut transactions {
                transaction.changes.retain(|change| match change {
                    Change::Set { key, .. } | Change::Deleted { key } | Change::Expired { key } => {
                        self.grant.opens_key(key)
                    }
                    Change::DatabaseDropped => true,
                });
            }
            transactions.retain(|transaction| !transaction.changes.is_empty());
        }
        transactions
    }

    /// Waits, and sends bookmarks meanwhile: the feed is alive, whatever it waits for. `told`: up to
    /// where all is.
    async fn with_bookmarks<T>(
        &self,
        told: Option<Versionstamp>,
        bookmarks: &mut Interval,
        out: &Sender<Bytes>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = bookmarks.tick() => {
                    if let Some(told) = told {
                        // A client that has not taken what came before needs none.
                        out.try_send(self.form.bookmark(told).into()).ok();
                    }
                }
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
        loop {
            let room = match large {
                Some(bytes) => {
                    Some(self.rooms.take(&self.rooms.asked, bytes as u64 * ROOM_FACTOR).await)
                }
                None => None,
            };
            let wanted = ChangesWanted {
                database: self.id,
                prefix: self.prefix.clone(),
                after: Some(after),
                max_bytes: large.unwrap_or(SMALL_BYTES),
                wait: CHANGE_WAIT,
            };
            match self.database.changes(wanted).await {
                Ok(changed) => return Ok((changed, room)),
                Err(NoChanges::Unavailable(_)) => {
                    drop(room);
                    sleep(ASK_AGAIN).await;
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// Where the feed ends that was to end there and finds nothing more: a failover may have lost
    /// what was there, and all that is left is told then.
    async fn still_there(&self, through: Versionstamp) -> Versionstamp {
        let stands = self.database.changes(first(self.id, &self.prefix, None)).await;
        // A database that has lost nothing stands there, or later.
        stands.map_or(through, |stands| {
            if has_come_to(stands.reached, through) { through } else { stands.reached }
        })
    }
}

/// Sequences go on from one epoch to the next.
fn has_come_to(reached: Versionstamp, through: Versionstamp) -> bool {
    let place = |stamp: Versionstamp| (stamp.position().sequence, stamp.order());
    place(reached) >= place(through)
}

/// Pieces of whole lines, as they come, as long as the client may have them.
pub(crate) struct ChangeBody<C> {
    pieces: Receiver<Bytes>,
    access: StreamAccess<C>,
    form: Form,
    is_over: bool,
}

impl<C: Catalogue> Body for ChangeBody<C> {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let Some(mut piece) = ready!(self.pieces.poll_recv(context)) else {
            return Poll::Ready(None);
        };
        // When it leaves: it may have waited for the client for long.
        if !self.access.holds() {
            let message =
                "The access token is no longer valid for this database, or it was deleted.";
            piece = self.form.end("no_access", message).into();
            self.is_over = true;
            self.pieces.close();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests;
