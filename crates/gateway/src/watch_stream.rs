//! The answer to a watch: messages as there are news, and pings, at the pace of the client.
//!
//! The news come from a [`Watching`] at the moment that the connection has room for them: nothing is
//! asked for before, and nothing is kept for a client that takes nothing but the message on its way
//! and, of a watch of several keys, the values that were told last. Both count among the answers that
//! clients have not taken yet. Where there is no room for them, the news are taken back, and asked
//! for again once there may be room: told is what there is by then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use metrics::Gauge;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};

use crate::Catalogue;
use crate::answer::Interrupted;
use crate::database::Watching;
use crate::room::{Kept, NoRoom, Room};
use crate::shares::Share;
use crate::stream_access::StreamAccess;
use crate::watched_value::{PING, WatchNews, WatchedValue, message, size_of_message};

/// Between two pings.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Until it is looked whether there is room for what had none: at first, and twice as long each
/// time up to the time between pings.
const NO_ROOM: Duration = Duration::from_millis(250);

/// Where the bytes of messages are counted.
pub(crate) struct Counted {
    pub(crate) room: Room,
    /// The keys, which are kept for as long as the watch.
    pub(crate) _of_keys: Kept,
    /// The watch is one of those that may be open, until this is dropped.
    pub(crate) _open: Share,
}

/// How long a watch waits for room: at first, and the next time.
struct Pauses {
    first: Duration,
    next: Duration,
}

/// For room of so many bytes.
struct Waiting {
    bytes: u64,
    pause: Pin<Box<Sleep>>,
}

/// The body of the answer. It ends with its access, and with the database.
pub(crate) struct WatchStream<W, C> {
    watching: W,
    access: StreamAccess<C>,
    counted: Counted,
    /// Pieces of the message that is on its way.
    pieces: VecDeque<Bytes>,
    /// The values that were told last, of a watch of several keys, and their bytes: native clients take
    /// a key that a message says nothing of for an absent one, so that each message has all keys.
    told: Option<(WatchNews, Kept)>,
    pings: Interval,
    pauses: Pauses,
    waiting: Option<Box<Waiting>>,
    _open: Open,
}

impl<W: Watching, C: Catalogue> WatchStream<W, C> {
    pub(crate) fn new(
        watching: W,
        access: StreamAccess<C>,
        counted: Counted,
        open: &Gauge,
    ) -> Self {
        Self::at_pace(watching, access, counted, open, (PING_EVERY, NO_ROOM))
    }

    fn at_pace(
        watching: W,
        access: StreamAccess<C>,
        counted: Counted,
        open: &Gauge,
        (ping_every, pause): (Duration, Duration),
    ) -> Self {
        let mut pings = interval_at(Instant::now() + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first ping goes at once.
        let (_open, pieces) = (Open::new(open), VecDeque::from([PING]));
        let (told, waiting) = (None, None);
        let pauses = Pauses { first: pause, next: pause };
        Self { watching, access, counted, pieces, told, pings, pauses, waiting, _open }
    }

    /// The next piece to be sent; `None` at the end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(piece));
            }
            if self.pings.poll_tick(context).is_ready() {
                return Poll::Ready(self.access.holds().then_some(PING));
            }
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.pause.as_mut().poll(context));
                if let Err(none) = self.counted.room.take(waiting.bytes) {
                    self.wait_for(none);
                    continue;
                }
                // Held by none while the news are fetched: those that hold some would wait for each
                // other.
                self.waiting = None;
            }
            let news = ready!(self.watching.poll_news(context));
            let Some(news) = news.filter(|_| self.access.holds()) else {
                return Poll::Ready(None);
            };
            let kept = news
                .and_then(|news| self.keep(&news).inspect_err(|_| self.watching.take_back(&news)));
            match kept {
                Ok(()) => self.pauses.next = self.pauses.first,
                Err(none) => self.wait_for(none),
            }
        }
    }

    /// Has the message of these news sent, if there is room for it.
    fn keep(&mut self, news: &WatchNews) -> Result<(), NoRoom> {
        let all = self.with_what_was_told(news);
        let bytes = size_of_message(&all) as u64;
        let of_told = if all.len() > 1 { bytes } else { 0 };
        let take = |part| self.counted.room.take(part).map_err(|_| NoRoom(bytes + of_told));
        let (kept, of_told) = (take(bytes)?, take(of_told)?);
        self.pieces = message(&all).into();
        // Given back when the last byte has left, or the connection is gone.
        let last = self.pieces.pop_back().unwrap_or_default();
        self.pieces.push_back(kept.held_with(last));
        self.told = (all.len() > 1).then_some((all, of_told));
        Ok(())
    }

    fn wait_for(&mut self, NoRoom(bytes): NoRoom) {
        let pause = Box::pin(sleep(self.pauses.next));
        self.pauses.next = (2 * self.pauses.next).min(PING_EVERY);
        self.waiting = Some(Box::new(Waiting { bytes, pause }));
    }
}

impl<W, C> WatchStream<W, C> {
    fn with_what_was_told(&self, news: &WatchNews) -> WatchNews {
        let told = self.told.as_ref().map_or(&[][..], |(told, _)| told);
        let value = |(at, value): (usize, &Option<WatchedValue>)| {
            value.clone().or_else(|| told.get(at).cloned().flatten())
        };
        news.iter().enumerate().map(value).collect()
    }
}

impl<W: Watching, C: Catalogue> Body for WatchStream<W, C> {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let piece = ready!(self.get_mut().poll_piece(context));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A watch counts as open until this is dropped.
struct Open(Gauge);

impl Open {
    fn new(open: &Gauge) -> Self {
        open.increment(1.0);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use meridian_types::{DatabaseId, Permission};

    use super::*;
    use crate::shares::{Holder, Shares};
    use crate::stream_access::revocable::Revocable;

    const DATABASE: DatabaseId = DatabaseId([1; 16]);
    const ABSENT: &[u8] = b"\x06\0\0\0\x08\x01\x12\x02\x08\x01";

    /// Has news once, and again when they are taken back.
    struct Once {
        news: Option<WatchNews>,
        fetched: usize,
        /// There is no room for them where they are fetched.
        is_full: bool,
    }

    impl Watching for Once {
        fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
            self.fetched += 1;
            if self.is_full {
                return Poll::Ready(Some(Err(NoRoom(10))));
            }
            self.news.take().map_or(Poll::Pending, |news| Poll::Ready(Some(Ok(news))))
        }

        fn take_back(&mut self, news: &WatchNews) {
            self.news = Some(news.clone());
        }
    }

    struct Watched {
        catalogue: Arc<Revocable>,
        answers: Shares,
        stream: WatchStream<Once, Revocable>,
    }

    const HOLDER: Holder = Holder { token: 1, shard: None };
    const BETWEEN_PINGS: Duration = Duration::from_millis(40);

    impl Watched {
        fn start(answers_bytes: u64) -> Self {
            let (catalogue, answers) = (Revocable::new(DATABASE), Shares::new(answers_bytes));
            let access = StreamAccess {
                grant: catalogue.grant(),
                catalogue: Arc::clone(&catalogue),
                token: "token".into(),
                database: DATABASE,
                needs: Permission::Watch,
            };
            let watch = Shares::new(9).take(HOLDER, 1).unwrap();
            let room = Room::new(answers.clone(), HOLDER);
            let counted = Counted { _of_keys: room.take(0).unwrap(), room, _open: watch };
            let news = Some(vec![Some(WatchedValue::absent())]);
            let once = Once { news, fetched: 0, is_full: false };
            let pace = (BETWEEN_PINGS, Duration::from_millis(1));
            let stream = WatchStream::at_pace(once, access, counted, &Gauge::noop(), pace);
            Self { catalogue, answers, stream }
        }

        async fn next(&mut self) -> Option<Bytes> {
            poll_fn(|context| self.stream.poll_piece(context)).await
        }

        async fn next_but_pings(&mut self) -> Bytes {
            loop {
                let piece = self.next().await.unwrap();
                if piece != PING {
                    return piece;
                }
            }
        }
    }

    #[tokio::test]
    async fn ping_is_sent_at_once_and_then_regularly() {
        let began = Instant::now();
        let mut watched = Watched::start(1 << 20);
        assert_eq!(watched.next().await, Some(PING));
        assert_eq!(watched.next_but_pings().await, ABSENT);
        for number in 1..=3 {
            assert_eq!(watched.next().await, Some(PING));
            assert!(began.elapsed() >= BETWEEN_PINGS * number);
        }
    }

    #[tokio::test]
    async fn quiet_stream_ends_with_a_ping_once_its_token_or_database_is_gone() {
        let gone: [fn(&Revocable) -> &AtomicBool; 2] =
            [|catalogue| &catalogue.is_revoked, |catalogue| &catalogue.is_deleted];
        for gone in gone {
            let mut watched = Watched::start(1 << 20);
            assert_eq!(watched.next().await, Some(PING));
            assert_eq!(watched.next_but_pings().await, ABSENT);
            gone(&watched.catalogue).store(true, Ordering::SeqCst);
            assert_eq!(watched.next().await, None);
        }
    }

    #[tokio::test]
    async fn news_without_room_are_taken_back_and_not_fetched_until_there_is_room() {
        let mut watched = Watched::start(100);
        let taken = watched.answers.take(Holder { token: 2, shard: None }, 74).unwrap();
        let more = watched.answers.take(Holder { token: 3, shard: None }, 12).unwrap();
        for _ in 0..4 {
            assert_eq!(watched.next().await, Some(PING));
        }
        assert_eq!(watched.stream.watching.fetched, 1);
        drop((taken, more));
        assert_eq!(watched.next_but_pings().await, ABSENT);
        assert_eq!(watched.stream.watching.fetched, 2);
    }

    #[tokio::test]
    async fn news_that_the_database_had_no_room_for_are_asked_for_once_there_may_be_room() {
        let mut watched = Watched::start(100);
        watched.stream.watching.is_full = true;
        let taken = watched.answers.take(HOLDER, 74).unwrap();
        for _ in 0..4 {
            assert_eq!(watched.next().await, Some(PING));
        }
        assert_eq!(watched.stream.watching.fetched, 1);
        watched.stream.watching.is_full = false;
        drop(taken);
        assert_eq!(watched.next_but_pings().await, ABSENT);
    }
}
