//! A clock that stands still until all tasks wait for it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::super::*;

#[derive(Default)]
struct Timers {
    now: Duration,
    next: u64,
    sleeping: BTreeMap<(Duration, u64), Waker>,
}

/// Time goes on when no task runs.
#[derive(Clone, Default)]
pub(super) struct Time(Arc<Mutex<Timers>>);

struct Sleep {
    time: Time,
    at: Duration,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut timers = time.0.lock();
        if timers.now >= self.at {
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert_with(|| {
            timers.next += 1;
            timers.next
        });
        timers.sleeping.insert((self.at, id), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.time.0.lock().sleeping.remove(&(self.at, id));
        }
    }
}

impl Clock for Time {
    fn now(&self) -> Duration {
        self.0.lock().now
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        Sleep { time: self.clone(), at, id: None }
    }
}

impl Time {
    pub(super) async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// The machine was suspended for so long: all timers are late.
    pub(super) fn jump(&self, by: Duration) {
        self.0.lock().now += by;
    }

    pub(super) fn advance(&self) {
        let mut timers = self.0.lock();
        let ((at, _), waker) =
            timers.sleeping.pop_first().expect("a task waits for something that never comes");
        timers.now = timers.now.max(at);
        drop(timers);
        waker.wake();
    }
}
