//! The order of the writes that come over one connection.
//!
//! Over HTTP/2 each request has a task of its own, and tasks overtake one another. Writes are handed to the database in
//! the order in which they were complete: two that a client sends one after the other, without waiting for the first,
//! take effect in that order. A body that is slow holds up nobody.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

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
    /// Of the task that reads its body, once that began.
    waker: Option<Waker>,
    /// Later ones that are complete. To drop one lets it by.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Arrivals {
    /// To be called in the order of the requests' heads.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, Open::default());
        Place { arrivals: Arc::clone(self), number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write's. Whoever is behind it waits no longer when it is left.
pub(crate) struct Place {
    arrivals: Arc<Arrivals>,
    number: u64,
}

impl Place {
    /// Reads the `body`, and then waits until those that were complete before it have left their places.
    ///
    /// Whether an earlier one was complete can only its own task tell: it is asked to look again at what has come,
    /// and lets this one by if something is missing.
    pub(crate) async fn complete<T>(&self, body: impl Future<Output = T>) -> T {
        let mut body = pin!(body);
        let complete = poll_fn(|context| {
            let asked_before = match self.arrivals.state().open.get_mut(&self.number) {
                Some(open) => {
                    open.waker = Some(context.waker().clone());
                    std::mem::take(&mut open.waiting)
                }
                None => Vec::new(),
            };
            let polled = body.as_mut().poll(context);
            if polled.is_ready()
                && let Some(open) = self.arrivals.state().open.get_mut(&self.number)
            {
                open.waiting.extend(asked_before);
            }
            polled
        })
        .await;
        let (mut before, mut wakers) = (Vec::new(), Vec::new());
        for (_, earlier) in self.arrivals.state().open.range_mut(..self.number) {
            let (goes, gone) = oneshot::channel();
            earlier.waiting.push(goes);
            before.push(gone);
            wakers.extend(earlier.waker.clone());
        }
        wakers.into_iter().for_each(Waker::wake);
        for gone in before {
            // An error says that it was dropped, as it always is.
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

/// Polls once: what `future` does before it first waits is done when this returns.
pub(crate) async fn begin<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *future).poll(context))).await
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;

    /// A write whose body is complete when the sender is used; it says when it is handed over.
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
    async fn writes_are_handed_over_as_they_were_complete() {
        for _ in 0..200 {
            let (arrivals, (handed, mut order)) = (Arc::new(Arrivals::default()), mpsc::unbounded_channel());
            let (mut bodies, mut tasks) = (Vec::new(), Vec::new());
            for number in 0..20 {
                let (body, task) = write(&arrivals, number, &handed);
                bodies.push(body);
                tasks.push(task);
            }
            // As the connection's task does: one after the other, whoever reads them.
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

    #[tokio::test]
    async fn a_slow_body_or_one_that_never_comes_holds_up_nobody() {
        let (arrivals, (handed, mut order)) = (Arc::new(Arrivals::default()), mpsc::unbounded_channel());
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
