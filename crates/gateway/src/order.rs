//! The order of the writes that come over one connection.
//!
//! Over HTTP/2 each request has a task of its own, and tasks overtake one another. Writes are
//! handed to the database in the order in which their bodies were complete: of two writes that a
//! client sends one after the other, without waiting for the first answer, the first takes effect
//! first. A write whose body is slow delays no other write.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::oneshot;

/// The writes of one connection that were not handed over yet.
#[derive(Default)]
pub(crate) struct Arrivals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Default)]
struct Open {
    body: Body,
    /// Later writes that are complete and wait for this one. Dropping a sender lets its write pass.
    waiting: Vec<oneshot::Sender<()>>,
}

/// The state of a write's body.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Bytes have come that the write's task has not looked at: the body may be complete.
    #[default]
    Unseen,
    /// The write's task looks at the body, or has found it complete.
    Seen,
    /// The task has looked at all bytes that came, and the body is incomplete.
    Missing,
}

impl Arrivals {
    /// Registers a write. Call it in the order of the requests' heads.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, Open::default());
        Place { arrivals: Arc::clone(self), number }
    }

    fn see(&self, number: u64, body: Body) {
        if let Some(open) = self.state().open.get_mut(&number) {
            open.body = body;
        }
    }

    /// Notes that the body of write `number` was incomplete when its task looked. Unless bytes have
    /// come meanwhile, it was also incomplete when the writes that wait for it asked: they are
    /// returned and may pass.
    fn misses(&self, number: u64) -> Vec<oneshot::Sender<()>> {
        match self.state().open.get_mut(&number) {
            Some(open) if open.body == Body::Seen => {
                open.body = Body::Missing;
                std::mem::take(&mut open.waiting)
            }
            _ => Vec::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the task that reads a body, and notes first that bytes of it have come. The task that
/// reads the connection calls this before it goes on to later bytes.
struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
    task: Waker,
}

impl Wake for Arrival {
    fn wake(self: Arc<Self>) {
        self.arrivals.see(self.number, Body::Unseen);
        self.task.wake_by_ref();
    }
}

/// The place of a write in the order. Dropping it lets later writes pass.
pub(crate) struct Place {
    arrivals: Arc<Arrivals>,
    number: u64,
}

impl Place {
    /// Reads the `body`, then waits until all writes that were complete before it have left their
    /// places.
    ///
    /// Whether an earlier write's body was complete is known only to its own task, if bytes have
    /// come that the task has not looked at. That task lets this write pass if its body is
    /// incomplete. Bodies without new bytes are not asked, however many are open.
    pub(crate) async fn complete<T>(&self, body: impl Future<Output = T>) -> T {
        let mut body = pin!(body);
        let complete = poll_fn(|context| {
            self.arrivals.see(self.number, Body::Seen);
            let arrival = Arrival {
                arrivals: Arc::clone(&self.arrivals),
                number: self.number,
                task: context.waker().clone(),
            };
            let polled =
                body.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(arrival))));
            if polled.is_pending() {
                drop(self.arrivals.misses(self.number));
            }
            polled
        })
        .await;
        let mut before = Vec::new();
        for (_, earlier) in self.arrivals.state().open.range_mut(..self.number) {
            if earlier.body != Body::Missing {
                let (goes, gone) = oneshot::channel();
                earlier.waiting.push(goes);
                before.push(gone);
            }
        }
        for gone in before {
            // The sender is always dropped, never used: an error means that the earlier write has
            // left.
            drop(gone.await);
        }
        complete
    }

    pub(crate) fn leave(&self) {
        let left = self.arrivals.state().open.remove(&self.number);
        drop(left);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Polls once: the part of `future` before its first wait is done when this returns.
pub(crate) async fn begin<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *future).poll(context))).await
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;

    /// A write whose body is complete when the returned sender is used; it reports when it is
    /// handed over.
    fn write(
        arrivals: &Arc<Arrivals>,
        number: u32,
        handed: &mpsc::UnboundedSender<u32>,
    ) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (place, handed) = (arrivals.enter(), handed.clone());
        let (complete, body) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            drop(place.complete(body).await);
            handed.send(number).unwrap();
            place.leave();
        });
        (complete, task)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn writes_are_handed_over_in_the_order_in_which_they_were_complete() {
        for _ in 0..200 {
            let (arrivals, (handed, mut order)) =
                (Arc::new(Arrivals::default()), mpsc::unbounded_channel());
            let (mut bodies, mut tasks) = (Vec::new(), Vec::new());
            for number in 0..20 {
                let (body, task) = write(&arrivals, number, &handed);
                bodies.push(body);
                tasks.push(task);
            }
            // The connection's task wakes the bodies one after the other, whichever task reads
            // each.
            bodies.into_iter().for_each(|body| body.send(()).unwrap());
            for task in tasks {
                task.await.unwrap();
            }
            drop(handed);
            let mut numbers = Vec::new();
            while let Some(number) = order.recv().await {
                numbers.push(number);
            }
            assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn later_writes_wait_for_a_body_that_receives_bytes_while_it_is_looked_at() {
        let arrivals = Arc::new(Arrivals::default());
        let (first, second) = (arrivals.enter(), arrivals.enter());
        let mut looks = 0;
        let mut body = pin!(first.complete(poll_fn(|context| {
            looks += 1;
            if looks == 2 {
                return Poll::Ready(());
            }
            // The rest of the body comes after the task has found it incomplete.
            context.waker().wake_by_ref();
            Poll::Pending
        })));
        assert_eq!(body.as_mut().now_or_never(), None);
        let mut later = pin!(second.complete(ready(())));
        assert_eq!(later.as_mut().now_or_never(), None, "the first may be complete");
        assert_eq!(body.now_or_never(), Some(()));
        assert_eq!(
            later.as_mut().now_or_never(),
            None,
            "the first is complete, and not handed over"
        );
        first.leave();
        assert_eq!(later.now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn bodies_without_new_bytes_are_not_looked_at_for_every_complete_one() {
        let arrivals = Arc::new(Arrivals::default());
        let looks = Arc::new(AtomicUsize::new(0));
        let slow: Vec<_> = (0..100)
            .map(|_| {
                let (place, looks) = (arrivals.enter(), Arc::clone(&looks));
                let (complete, mut body) = oneshot::channel::<()>();
                let task = tokio::spawn(async move {
                    let body = poll_fn(|context| {
                        looks.fetch_add(1, Ordering::Relaxed);
                        Pin::new(&mut body).poll(context)
                    });
                    drop(place.complete(body).await);
                });
                (complete, task)
            })
            .collect();
        let (handed, mut order) = mpsc::unbounded_channel();
        for number in 0..100 {
            let (complete, _task) = write(&arrivals, number, &handed);
            complete.send(()).unwrap();
            assert_eq!(order.recv().await, Some(number));
        }
        assert_eq!(
            looks.load(Ordering::Relaxed),
            slow.len(),
            "each was looked at once, when it came"
        );
        for (complete, task) in slow {
            complete.send(()).unwrap();
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn slow_or_missing_body_delays_no_other_write() {
        let (arrivals, (handed, mut order)) =
            (Arc::new(Arrivals::default()), mpsc::unbounded_channel());
        let (slow, slow_task) = write(&arrivals, 0, &handed);
        let (never, gone) = write(&arrivals, 1, &handed);
        let (quick, _quick_task) = write(&arrivals, 2, &handed);
        quick.send(()).unwrap();
        assert_eq!(order.recv().await, Some(2));
        gone.abort();
        drop(never);
        slow.send(()).unwrap();
        assert_eq!(order.recv().await, Some(0));
        slow_task.await.unwrap();
        assert!(arrivals.state().open.is_empty() || gone.await.is_err());
    }
}
