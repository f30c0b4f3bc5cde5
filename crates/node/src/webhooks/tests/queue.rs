//! A queue that leases its messages to one listener, as its leader would.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_gateway::{Heard, Listen, QueuedMessage, Reports, Unavailable};
use meridian_queue::{Answer, MessageKey, Report};
use meridian_types::{MessageId, Versionstamp};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::routing::router::Wish;
use crate::webhooks::delivery::Attended;

#[derive(Clone)]
pub(super) struct PlayedQueue(Arc<Mutex<State>>);

struct State {
    left: VecDeque<MessageKey>,
    held: BTreeSet<MessageKey>,
    /// `None` until a listener is there.
    credits: Option<usize>,
    beyond: usize,
    refuses: bool,
    reports: Vec<(MessageKey, Report)>,
    listener: Option<mpsc::UnboundedSender<Heard>>,
}

pub(super) fn key(number: u64) -> MessageKey {
    let id = MessageId { enqueued: Versionstamp([1; 10]), index: 0 };
    MessageKey { due_ms: number, id }
}

fn message(key: MessageKey) -> QueuedMessage {
    let payload = Bytes::from_static(b"\xff\x0fI\x02");
    QueuedMessage { key, attempt: 1, payload, enqueued_ms: 5, lease: None }
}

impl State {
    fn tell(&self, news: Heard) {
        if let Some(listener) = &self.listener {
            drop(listener.send(news));
        }
    }

    fn hand_out(&mut self) {
        if self.listener.is_none() {
            return;
        }
        let room = (self.credits.unwrap_or(0) + self.beyond).saturating_sub(self.held.len());
        let keys: Vec<MessageKey> = self.left.drain(..room.min(self.left.len())).collect();
        if !keys.is_empty() {
            self.held.extend(&keys);
            let messages = keys.into_iter().map(message).collect();
            self.tell(Heard::Messages(messages));
        }
    }
}

impl PlayedQueue {
    pub(super) fn new(messages: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            left: (0..messages).map(key).collect(),
            held: BTreeSet::new(),
            credits: None,
            beyond: 0,
            refuses: false,
            reports: Vec::new(),
            listener: None,
        })))
    }

    pub(super) fn reports(&self) -> Vec<(MessageKey, Report)> {
        self.0.lock().reports.clone()
    }

    pub(super) fn credits(&self) -> Option<usize> {
        self.0.lock().credits
    }

    pub(super) fn held(&self) -> usize {
        self.0.lock().held.len()
    }

    pub(super) fn left(&self) -> usize {
        self.0.lock().left.len()
    }

    /// As where a session ends while messages are on their way, until it is told otherwise.
    pub(super) fn hand_out_beyond_credits(&self, beyond: usize) {
        let mut state = self.0.lock();
        state.beyond = beyond;
        state.hand_out();
    }

    pub(super) fn enqueue(&self, key: MessageKey) {
        let mut state = self.0.lock();
        state.left.push_back(key);
        state.hand_out();
    }

    /// An operator has cancelled it.
    pub(super) fn release(&self, key: MessageKey) {
        let mut state = self.0.lock();
        assert!(state.held.remove(&key));
        state.tell(Heard::Released(vec![key]));
        state.hand_out();
    }

    pub(super) fn refuse_reports(&self, refuses: bool) {
        self.0.lock().refuses = refuses;
    }

    async fn follow(self, mut wishes: mpsc::UnboundedReceiver<Wish>) {
        while let Some(Wish { credits, returned, granted }) = wishes.recv().await {
            let mut state = self.0.lock();
            state.credits = usize::try_from(credits).ok();
            for key in returned {
                assert!(state.held.remove(&key), "it gives back what it does not hold");
                state.left.push_front(key);
            }
            state.hand_out();
            granted.send(()).ok();
        }
        // The listener has left, and what it holds fails.
        self.0.lock().listener = None;
    }
}

impl Attended for PlayedQueue {
    fn attend(&self, listen: Listen) -> (BoxStream<'static, Heard>, mpsc::UnboundedSender<Wish>) {
        let (tell, heard) = mpsc::unbounded_channel();
        let (wishes, wished) = mpsc::unbounded_channel();
        let mut state = self.0.lock();
        state.credits = usize::try_from(listen.credits).ok();
        state.listener = Some(tell);
        state.hand_out();
        tokio::spawn(self.clone().follow(wished));
        (UnboundedReceiverStream::new(heard).boxed(), wishes)
    }

    /// The listener hears that its messages are released before it has the answer.
    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        {
            let mut state = self.0.lock();
            if state.refuses {
                return Err(Unavailable { reason: "no leader".to_owned() });
            }
            for (key, report) in reports.reports {
                assert!(state.held.remove(&key), "it reports on what it does not hold");
                state.reports.push((key, report));
                state.tell(Heard::Released(vec![key]));
            }
            state.hand_out();
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        Ok(vec![Answer::Done])
    }
}
