//! The way of news to a listener's client: a place for one piece, from which is taken back what the
//! client does not take. In a channel it would have memory for as long as the client likes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use meridian_gateway::Heard;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
struct Place {
    news: Option<Heard>,
    /// The client has looked here in vain since there were news.
    wants: bool,
    client: Option<Waker>,
    teller_is_gone: bool,
    client_is_gone: bool,
}

#[derive(Default)]
struct Shared {
    place: Mutex<Place>,
    /// The client wants news, or is gone. One task waits for it.
    wanted: Notify,
}

/// The end of the task that follows the listener's leaders.
pub(super) struct Teller(Arc<Shared>);

/// The client's end.
pub(super) struct Hearing(Arc<Shared>);

pub(super) fn hearing() -> (Teller, Hearing) {
    let shared = Arc::<Shared>::default();
    (Teller(Arc::clone(&shared)), Hearing(shared))
}

impl Teller {
    /// Waits until the client wants news, or is gone. May be dropped at any await.
    pub(super) async fn wanted(&self) {
        loop {
            let wanted = self.0.wanted.notified();
            {
                let place = self.0.place.lock();
                if place.wants || place.client_is_gone {
                    return;
                }
            }
            wanted.await;
        }
    }

    /// In place of news that the client has not taken.
    pub(super) fn tell(&self, news: Heard) {
        let mut place = self.0.place.lock();
        if place.client_is_gone {
            return;
        }
        place.wants = false;
        let before = place.news.replace(news);
        let client = place.client.take();
        drop(place);
        drop(before);
        client.into_iter().for_each(Waker::wake);
    }

    /// News that the client has not taken: it never had them.
    pub(super) fn take_back(&self) -> Option<Heard> {
        self.0.place.lock().news.take()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.place.lock().client_is_gone
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut place = self.0.place.lock();
        place.teller_is_gone = true;
        let client = place.client.take();
        drop(place);
        client.into_iter().for_each(Waker::wake);
    }
}

impl Stream for Hearing {
    type Item = Heard;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Heard>> {
        let mut place = self.0.place.lock();
        if let Some(news) = place.news.take() {
            return Poll::Ready(Some(news));
        }
        if place.teller_is_gone {
            return Poll::Ready(None);
        }
        place.wants = true;
        place.client = Some(context.waker().clone());
        drop(place);
        self.0.wanted.notify_one();
        Poll::Pending
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let mut place = self.0.place.lock();
        place.client_is_gone = true;
        let unheard = place.news.take();
        drop(place);
        drop(unheard);
        self.0.wanted.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn news(number: u8) -> Heard {
        Heard::Ended(number.to_string())
    }

    #[test]
    fn news_are_wanted_by_a_client_that_looked_in_vain_and_taken_back_until_it_looks_again() {
        let (teller, mut hearing) = hearing();
        assert_eq!(teller.wanted().now_or_never(), None, "the client has not looked yet");
        assert_eq!(hearing.next().now_or_never(), None);
        assert_eq!(teller.wanted().now_or_never(), Some(()));
        teller.tell(news(1));
        assert_eq!(teller.wanted().now_or_never(), None, "the first news lie there still");
        assert_eq!(teller.take_back(), Some(news(1)));
        assert_eq!(teller.wanted().now_or_never(), None, "it has not looked since");
        assert_eq!(hearing.next().now_or_never(), None);
        teller.tell(news(2));
        assert_eq!(hearing.next().now_or_never(), Some(Some(news(2))));
        assert_eq!(teller.take_back(), None);
        teller.tell(news(3));
        drop(teller);
        assert_eq!(hearing.next().now_or_never(), Some(Some(news(3))), "the last word is heard");
        assert_eq!(hearing.next().now_or_never(), Some(None));
    }

    #[tokio::test]
    async fn each_end_wakes_the_other() {
        let (teller, mut hearing) = hearing();
        let telling = tokio::spawn(async move {
            for number in 0..3 {
                teller.wanted().await;
                teller.tell(news(number));
            }
            teller.wanted().await;
            assert!(!teller.is_closed());
            teller
        });
        for number in 0..3 {
            assert_eq!(hearing.next().await, Some(news(number)));
        }
        assert_eq!(hearing.next().now_or_never(), None);
        let teller = telling.await.unwrap();
        drop(hearing);
        teller.wanted().await;
        assert!(teller.is_closed());
        teller.tell(news(9));
        assert_eq!(teller.take_back(), None, "nothing is kept for a client that is gone");
    }
}
