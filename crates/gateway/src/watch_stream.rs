//! The answer to a watch: messages as there are news, and pings, at the pace of the client.
//!
//! The news come from a [`Watching`] at the moment that the connection has room for them: nothing is
//! asked for before, and nothing is kept for a client that takes nothing but the message on its way
//! and, of a watch of several keys, the values that were told last. Both count among the answers that
//! clients have not taken yet. Where there is no room for them, the news are taken back, and told as
//! they are some time later.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use meridian_types::DatabaseId;
use metrics::Gauge;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};

use crate::Catalogue;
use crate::answer::Interrupted;
use crate::database::Watching;
use crate::shares::{Holder, Share, Shares};
use crate::watched_value::{PING, WatchNews, WatchedValue, message};

/// Between two pings.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Until there may be room again for what clients have not taken.
const NO_ROOM: Duration = Duration::from_millis(250);

/// The right to a watch, looked at before each message and each ping.
pub(crate) struct Permission<C> {
    pub(crate) catalogue: Arc<C>,
    pub(crate) token: Box<str>,
    pub(crate) database: DatabaseId,
}

impl<C: Catalogue> Permission<C> {
    /// False once the token was revoked, or the database deleted. That the metadata expired which
    /// the client began with changes nothing.
    fn holds(&self) -> bool {
        let grant = self.catalogue.authorize(&self.token);
        let is_granted = grant.is_some_and(|grant| grant.allows(self.database));
        is_granted && self.catalogue.shard(self.database).is_some() || !self.catalogue.is_current()
    }
}

/// Where the bytes of messages are counted.
pub(crate) struct Counted {
    pub(crate) answers: Shares,
    pub(crate) holder: Holder,
    /// The watch is one of those that may be open, until this is dropped.
    pub(crate) _watch: Share,
}

/// The body of the answer. It ends with its permission, and with the database.
pub(crate) struct WatchStream<W, C> {
    watching: W,
    permission: Permission<C>,
    counted: Counted,
    /// Pieces of the message that is on its way.
    pieces: VecDeque<Bytes>,
    /// The values that were told last, of a watch of several keys, and their bytes: native clients take
    /// a key that a message says nothing of for an absent one, so that each message has all keys.
    told: Option<(WatchNews, Share)>,
    pings: Interval,
    pause: Duration,
    paused: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

impl<W: Watching, C: Catalogue> WatchStream<W, C> {
    pub(crate) fn new(
        watching: W,
        permission: Permission<C>,
        counted: Counted,
        open: &Gauge,
    ) -> Self {
        Self::at_pace(watching, permission, counted, open, (PING_EVERY, NO_ROOM))
    }

    fn at_pace(
        watching: W,
        permission: Permission<C>,
        counted: Counted,
        open: &Gauge,
        (ping_every, pause): (Duration, Duration),
    ) -> Self {
        let mut pings = interval_at(Instant::now() + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first ping goes at once.
        let (_open, pieces) = (Open::new(open), VecDeque::from([PING]));
        let (told, paused) = (None, None);
        Self { watching, permission, counted, pieces, told, pings, pause, paused, _open }
    }

    /// The next piece to be sent; `None` at the end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(piece));
            }
            if self.pings.poll_tick(context).is_ready() {
                return Poll::Ready(self.permission.holds().then_some(PING));
            }
            if let Some(pause) = &mut self.paused {
                ready!(pause.as_mut().poll(context));
                self.paused = None;
            }
            let news = ready!(self.watching.poll_news(context));
            let Some(news) = news.filter(|_| self.permission.holds()) else {
                return Poll::Ready(None);
            };
            let all = self.with_what_was_told(&news);
            let (pieces, bytes) = message(&all);
            let Counted { answers, holder, .. } = &self.counted;
            let kept = if all.len() > 1 { bytes as u64 } else { 0 };
            let shares = answers.take(*holder, bytes as u64);
            match shares.and_then(|share| Some((share, answers.take(*holder, kept)?))) {
                Some((share, kept)) => {
                    self.pieces = pieces.into();
                    self.told = (all.len() > 1).then_some((all, kept));
                    // Given back when the last byte has left, or the connection is gone.
                    let last = self.pieces.pop_back().unwrap_or_default();
                    self.pieces.push_back(share.held_with(last));
                }
                None => {
                    self.watching.take_back(&news);
                    self.paused = Some(Box::pin(sleep(self.pause)));
                }
            }
        }
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Waker;
    use std::time::Instant;

    use meridian_types::{ShardId, V8Format};

    use super::*;
    use crate::{Databases, Grant};

    const DATABASE: DatabaseId = DatabaseId([1; 16]);
    const ABSENT: &[u8] = b"\x06\0\0\0\x08\x01\x12\x02\x08\x01";

    /// Has news once, and again when they are taken back.
    struct Once(Option<WatchNews>);

    impl Watching for Once {
        fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<WatchNews>> {
            self.0.take().map_or(Poll::Pending, |news| Poll::Ready(Some(news)))
        }

        fn take_back(&mut self, news: &WatchNews) {
            self.0 = Some(news.clone());
        }
    }

    #[derive(Default)]
    struct Revocable {
        is_revoked: AtomicBool,
        is_deleted: AtomicBool,
    }

    impl Catalogue for Revocable {
        fn default_database(&self) -> Option<DatabaseId> {
            None
        }

        fn by_name(&self, _: &str) -> Option<DatabaseId> {
            None
        }

        fn shard(&self, _: DatabaseId) -> Option<ShardId> {
            (!self.is_deleted.load(Ordering::SeqCst)).then_some(ShardId(1))
        }

        fn authorize(&self, _: &str) -> Option<Grant> {
            let is_valid = !self.is_revoked.load(Ordering::SeqCst);
            is_valid.then(|| Grant::new(Databases::Only(vec![DATABASE]), false))
        }

        fn v8_format(&self, _: DatabaseId) -> V8Format {
            V8Format::default()
        }

        fn is_current(&self) -> bool {
            true
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
            let (catalogue, answers) = (Arc::<Revocable>::default(), Shares::new(answers_bytes));
            let permission = Permission {
                catalogue: Arc::clone(&catalogue),
                token: "token".into(),
                database: DATABASE,
            };
            let watch = Shares::new(9).take(HOLDER, 1).unwrap();
            let counted = Counted { answers: answers.clone(), holder: HOLDER, _watch: watch };
            let once = Once(Some(vec![Some(WatchedValue::absent())]));
            let pace = (BETWEEN_PINGS, Duration::from_millis(1));
            let stream = WatchStream::at_pace(once, permission, counted, &Gauge::noop(), pace);
            Self { catalogue, answers, stream }
        }

        async fn next(&mut self) -> Option<Bytes> {
            poll_fn(|context| self.stream.poll_piece(context)).await
        }

        /// Whether nothing is there to be sent now.
        fn is_quiet(&mut self) -> bool {
            self.stream.poll_piece(&mut Context::from_waker(Waker::noop())).is_pending()
        }
    }

    #[tokio::test]
    async fn ping_is_sent_at_once_and_then_regularly() {
        let began = Instant::now();
        let mut watched = Watched::start(1 << 20);
        assert_eq!(watched.next().await, Some(PING));
        assert_eq!(watched.next().await.as_deref(), Some(ABSENT));
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
            assert_eq!(watched.next().await.as_deref(), Some(ABSENT));
            gone(&watched.catalogue).store(true, Ordering::SeqCst);
            assert_eq!(watched.next().await, None);
        }
    }

    #[tokio::test]
    async fn news_without_room_are_taken_back_and_told_once_there_is_room() {
        let mut watched = Watched::start(100);
        let taken = watched.answers.take(Holder { token: 2, shard: None }, 74).unwrap();
        let more = watched.answers.take(Holder { token: 3, shard: None }, 12).unwrap();
        assert_eq!(watched.next().await, Some(PING));
        assert!(watched.is_quiet());
        drop((taken, more));
        let piece = loop {
            let piece = watched.next().await.unwrap();
            if piece != PING {
                break piece;
            }
        };
        assert_eq!(piece, ABSENT);
    }
}
