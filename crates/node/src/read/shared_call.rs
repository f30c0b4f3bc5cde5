//! One call that serves all the waiting callers, and none that came after it began.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

/// Shares one call among all that want its answer.
///
/// A caller joins the **next** call, never the one in flight: that one may have been answered
/// before the caller began, and a read must see all that was acknowledged until then.
pub(crate) struct SharedCall<T> {
    waiting: mpsc::UnboundedSender<oneshot::Sender<T>>,
}

impl<T: Clone + Send + 'static> SharedCall<T> {
    /// `call` is made once for all that wait. The task ends when this is dropped.
    pub(crate) fn start<F>(call: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = T> + Send,
    {
        let (waiting, mut queue) = mpsc::unbounded_channel::<oneshot::Sender<T>>();
        tokio::spawn(async move {
            while let Some(first) = queue.recv().await {
                let mut waiters = vec![first];
                while let Ok(next) = queue.try_recv() {
                    waiters.push(next);
                }
                let answer = call().await;
                for waiter in waiters {
                    // A caller that is gone wants no answer.
                    waiter.send(answer.clone()).unwrap_or_default();
                }
            }
        });
        Self { waiting }
    }

    /// `None` when the node is stopping.
    pub(crate) async fn join(&self) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.waiting.send(answer).ok()?;
        answered.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn caller_that_comes_during_a_call_joins_the_next_one() {
        let (asked, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (counter, open) = (Arc::clone(&asked), Arc::clone(&gate));
        let calls = Arc::new(SharedCall::start(move || {
            let (counter, open) = (Arc::clone(&counter), Arc::clone(&open));
            async move {
                let round = counter.fetch_add(1, Ordering::SeqCst) + 1;
                open.acquire().await.unwrap().forget();
                round
            }
        }));
        let join = |calls: &Arc<SharedCall<u64>>| {
            let calls = Arc::clone(calls);
            tokio::spawn(async move { calls.join().await })
        };
        let first = join(&calls);
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let (second, third) = (join(&calls), join(&calls));
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Some(1));
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (Some(2), Some(2)));
    }
}
