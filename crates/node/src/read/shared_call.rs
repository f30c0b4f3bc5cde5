//! One call for all that wait for its answer, begun after the last of them asked.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

/// Shares one question among all who want its answer.
///
/// Whoever asks joins the **next** round, never the one in flight: that one may have been answered
/// before the asker began, and a read must see all that was acknowledged until then.
pub(crate) struct Rounds<T> {
    waiting: mpsc::UnboundedSender<oneshot::Sender<T>>,
}

impl<T: Clone + Send + 'static> Rounds<T> {
    /// `ask` is called once a round. The task ends when this is dropped.
    pub(crate) fn start<F>(ask: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = T> + Send,
    {
        let (waiting, mut queue) = mpsc::unbounded_channel::<oneshot::Sender<T>>();
        tokio::spawn(async move {
            while let Some(first) = queue.recv().await {
                let mut round = vec![first];
                while let Ok(next) = queue.try_recv() {
                    round.push(next);
                }
                let answer = ask().await;
                for waiter in round {
                    // Who is gone wants no answer.
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
    async fn who_comes_during_a_round_gets_the_next_one() {
        let (asked, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (counter, open) = (Arc::clone(&asked), Arc::clone(&gate));
        let rounds = Arc::new(Rounds::start(move || {
            let (counter, open) = (Arc::clone(&counter), Arc::clone(&open));
            async move {
                let round = counter.fetch_add(1, Ordering::SeqCst) + 1;
                open.acquire().await.unwrap().forget();
                round
            }
        }));
        let join = |rounds: &Arc<Rounds<u64>>| {
            let rounds = Arc::clone(rounds);
            tokio::spawn(async move { rounds.join().await })
        };
        let first = join(&rounds);
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let (second, third) = (join(&rounds), join(&rounds));
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Some(1));
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (Some(2), Some(2)));
    }
}
