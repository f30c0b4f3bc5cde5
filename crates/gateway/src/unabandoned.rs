//! Writes that run to their end, whether or not their client waits.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;

/// A future that continues in a task of its own when it is dropped before its end, except by a
/// panic. Until then it is polled where it is awaited, which saves each request a task and a
/// switch.
pub(crate) struct Unabandoned<F: Future<Output: Send> + Send + 'static> {
    /// `None` after the end.
    running: Option<Pin<Box<F>>>,
}

impl<F: Future<Output: Send> + Send + 'static> Unabandoned<F> {
    pub(crate) fn new(running: Pin<Box<F>>) -> Self {
        Self { running: Some(running) }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Unabandoned<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        let output = ready!(running.as_mut().poll(context));
        self.running = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Unabandoned<F> {
    fn drop(&mut self) {
        // Not during a panic, since the future itself may have panicked; nor without a runtime,
        // where no task would poll it.
        if !std::thread::panicking()
            && let (Some(running), Ok(runtime)) = (self.running.take(), Handle::try_current())
        {
            drop(runtime.spawn(running));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn dropped_future_continues_and_a_finished_one_does_not_begin_again() {
        let polls = Arc::new(AtomicU32::new(0));
        // The future ends with its third poll.
        let counts = || {
            let polls = Arc::clone(&polls);
            Unabandoned::new(Box::pin(poll_fn(move |context| {
                context.waker().wake_by_ref();
                if polls.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })))
        };
        let mut dropped = counts();
        assert!(futures::poll!(&mut dropped).is_pending());
        drop(dropped);
        while polls.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        counts().await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(Ordering::SeqCst), 6);
    }
}
