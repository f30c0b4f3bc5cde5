//! A line for something that one caller at a time may wait for: databases are at its head in turn,
//! and the callers of one database in the order of asking.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use meridian_types::DatabaseId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Cheap to clone; clones are the same line. The callers that wait are bounded where they come from.
#[derive(Clone, Default)]
pub(super) struct Line(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// A caller is at the head.
    has_head: bool,
    /// `None`: work for no database in particular. Each has one caller at least.
    callers: BTreeMap<Option<DatabaseId>, VecDeque<oneshot::Sender<Head>>>,
    /// All of them, once each.
    order: VecDeque<Option<DatabaseId>>,
}

/// The place at the head of the line. The next caller has it when this is dropped.
pub(super) struct Head(Option<Line>);

impl Line {
    /// May be dropped at any await: its place goes to the next.
    pub(super) async fn head(&self, of: Option<DatabaseId>) -> Head {
        let called = {
            let mut waiting = self.0.lock();
            if !waiting.has_head {
                waiting.has_head = true;
                return Head(Some(self.clone()));
            }
            let (caller, called) = oneshot::channel();
            waiting.push(of, caller);
            called
        };
        match called.await {
            Ok(head) => head,
            // A line keeps its callers until it calls them.
            Err(_) => std::future::pending().await,
        }
    }

    fn call_next(&self) {
        loop {
            let Some(next) = self.0.lock().next() else { return };
            match next.send(Head(Some(self.clone()))) {
                Ok(()) => return,
                // It has left: its place was never taken.
                Err(mut head) => head.0 = None,
            }
        }
    }
}

impl Waiting {
    fn push(&mut self, of: Option<DatabaseId>, caller: oneshot::Sender<Head>) {
        let Self { callers, order, .. } = self;
        let callers = callers.entry(of).or_insert_with(|| {
            order.push_back(of);
            VecDeque::new()
        });
        // Callers that have left are forgotten, also while the head stays.
        while callers.front().is_some_and(oneshot::Sender::is_closed) {
            callers.pop_front();
        }
        callers.push_back(caller);
    }

    fn next(&mut self) -> Option<oneshot::Sender<Head>> {
        while let Some(of) = self.order.pop_front() {
            let Some(callers) = self.callers.get_mut(&of) else { continue };
            let next = callers.pop_front();
            if callers.is_empty() {
                self.callers.remove(&of);
            } else {
                self.order.push_back(of);
            }
            if next.is_some() {
                return next;
            }
        }
        self.has_head = false;
        None
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.call_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::FutureExt;

    use super::*;

    const FLOOD: Option<DatabaseId> = Some(DatabaseId([1; 16]));
    const QUIET: Option<DatabaseId> = Some(DatabaseId([2; 16]));

    type Called = Pin<Box<dyn Future<Output = Head>>>;

    fn caller(line: &Line, of: Option<DatabaseId>) -> Called {
        let line = line.clone();
        let mut called: Called = Box::pin(async move { line.head(of).await });
        assert!((&mut called).now_or_never().is_none(), "another is at the head");
        called
    }

    #[test]
    fn caller_of_a_quiet_database_is_next_but_one_however_many_call_for_another() {
        let line = Line::default();
        let first = line.head(FLOOD).now_or_never().unwrap();
        let mut flood: VecDeque<_> = (0..1000).map(|_| caller(&line, FLOOD)).collect();
        let mut quiet = caller(&line, QUIET);
        drop(first);
        let second = flood.pop_front().unwrap().now_or_never().expect("in the order of asking");
        assert!((&mut quiet).now_or_never().is_none());
        drop(second);
        let third = quiet.now_or_never().expect("in its turn");
        assert!(flood.front_mut().unwrap().now_or_never().is_none());
        drop(third);
        while let Some(next) = flood.pop_front() {
            drop(next.now_or_never().expect("then the others"));
        }
        assert!(line.head(QUIET).now_or_never().is_some() && line.0.lock().callers.is_empty());
    }

    #[test]
    fn callers_that_leave_hold_up_no_other_also_when_they_were_called() {
        let line = Line::default();
        let first = line.head(None).now_or_never().unwrap();
        let called_and_gone = caller(&line, FLOOD);
        let gone: Vec<_> = (0..100_000).map(|_| caller(&line, FLOOD)).collect();
        let stays = caller(&line, FLOOD);
        drop(gone);
        drop(first);
        drop(called_and_gone);
        drop(stays.now_or_never().expect("the others have left"));
        assert!(!line.0.lock().has_head);
        let _head = line.head(None).now_or_never().unwrap();
        (0..9).for_each(|_| drop(caller(&line, QUIET)));
        assert_eq!(line.0.lock().callers[&QUIET].len(), 1, "those that have left are forgotten");
    }
}
