//! A queue's listener that sends what it gets to a webhook.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use meridian_gateway::{Heard, Listen, QueuedMessage};
use meridian_memory::Held;
use meridian_queue::{Incarnation, MessageKey};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::delivery::{Attended, Deliveries, Judged};
use super::pace::Pace;
use super::standing::{Queue, Standings};
use super::verdict::Verdict;
use crate::host::clock::{boot_time, wall_ms};
use crate::routing::router::Wish;

/// Before the queue is attended again, when it could not be.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Sender<Q> {
    deliveries: Arc<Deliveries<Q>>,
    standings: Arc<Standings>,
    queue: Queue,
    pace: Pace,
    /// No message is taken any more.
    stop: CancellationToken,
    wishes: mpsc::UnboundedSender<Wish>,
    /// Messages that it wishes to hold at present.
    credits: u32,
    /// Whether the queue's leader knows it.
    granted: Option<oneshot::Receiver<()>>,
    /// Held, and not begun on: they go back when the sender stops or the endpoint rests.
    waiting: VecDeque<QueuedMessage>,
    /// Memory for the next request, while a message waits for it.
    room: Option<Held>,
    next_room: Option<BoxFuture<'static, Held>>,
    /// Held, and under way.
    begun: HashMap<MessageKey, Begun>,
    keys: HashMap<Id, MessageKey>,
    requests: JoinSet<bool>,
    /// Given to each of them.
    judge: mpsc::UnboundedSender<Judged>,
}

/// A message that is under way.
struct Begun {
    request: AbortHandle,
    /// The request has ended, and is being reported.
    is_judged: bool,
}

impl<Q: Attended> Sender<Q> {
    /// Attends the queue until it is stopped, or cannot be attended, and then until all requests
    /// have ended and are reported. When that is dropped, messages that are not reported are like
    /// those of a listener that is lost.
    pub(super) async fn run(
        deliveries: Deliveries<Q>,
        concurrency: u32,
        (queue, standings): (Queue, Arc<Standings>),
        stop: CancellationToken,
    ) {
        let (heard, wishes) = deliveries.queue.attend(Listen {
            queue: deliveries.destination.queue.clone(),
            listener: deliveries.listener,
            credits: concurrency,
            lease: None,
            held: Vec::new(),
            incarnation: Incarnation(Uuid::now_v7().as_u128()),
        });
        let (judge, judged) = mpsc::unbounded_channel();
        let sender = Self {
            deliveries: Arc::new(deliveries),
            standings: Arc::clone(&standings),
            queue: queue.clone(),
            pace: Pace::new(concurrency),
            stop: stop.clone(),
            wishes,
            credits: concurrency,
            granted: None,
            waiting: VecDeque::new(),
            room: None,
            next_room: None,
            begun: HashMap::new(),
            keys: HashMap::new(),
            requests: JoinSet::new(),
            judge,
        };
        sender.serve(heard, judged).await;
        // Why it is not attended is said until it is again.
        if stop.is_cancelled() {
            standings.forget(&queue);
        } else {
            drop(tokio::time::timeout(AGAIN, stop.cancelled()).await);
        }
    }

    async fn serve(
        mut self,
        mut heard: BoxStream<'static, Heard>,
        mut judged: mpsc::UnboundedReceiver<Judged>,
    ) {
        let mut is_over = false;
        loop {
            let stops = self.stop.is_cancelled() || is_over;
            let now = boot_time();
            if !stops {
                self.begin(now);
            }
            self.wish(if stops { 0 } else { self.pace.credits(now) });
            // Messages that the leader has handed out, and that are on their way here, go back before.
            if stops && self.requests.is_empty() && self.granted.is_none() {
                return;
            }
            let pause = self.pace.pause_ends(now).map(|end| end.saturating_sub(now));
            tokio::select! {
                // News of the endpoint count before the next message is begun on.
                biased;
                Some(judged) = judged.recv() => self.judged(judged),
                Some(ended) = self.requests.join_next_with_id() => self.ended(ended),
                // Messages that were handed out before a wish was granted come before that.
                news = heard.next(), if !is_over => match news {
                    Some(Heard::Messages(messages)) => self.waiting.extend(messages),
                    Some(Heard::Released(keys)) => keys.iter().for_each(|key| self.released(key)),
                    Some(Heard::Ended(reason)) => {
                        let database = &self.deliveries.destination.name;
                        let queue = &self.deliveries.destination.queue.name;
                        tracing::info!(%database, %queue, reason, "a webhook's queue is not attended");
                        let now = (now, wall_ms());
                        self.standings.fails(&self.queue, database, &reason, now);
                        is_over = true;
                    }
                    None => is_over = true,
                },
                () = granted(&mut self.granted) => self.granted = None,
                room = found(&mut self.next_room), if !stops => self.room = Some(room),
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() && !stops => {}
                () = self.stop.cancelled(), if !stops => {}
            }
        }
    }

    /// Begins on messages that wait, as many as may be.
    fn begin(&mut self, now: Duration) {
        let limit = usize::try_from(self.pace.limit(now)).unwrap_or(usize::MAX);
        while self.begun.len() < limit && !self.waiting.is_empty() {
            let Some(room) = self.room.take().or_else(|| self.deliveries.room()) else {
                self.next_room.get_or_insert_with(|| self.deliveries.next_room());
                return;
            };
            let Some(message) = self.waiting.pop_front() else { return };
            let key = message.key;
            let deliver = Arc::clone(&self.deliveries).deliver(message, room, self.judge.clone());
            let request = self.requests.spawn(deliver);
            self.keys.insert(request.id(), key);
            self.begun.insert(key, Begun { request, is_judged: false });
        }
        // Others may have it.
        (self.room, self.next_room) = (None, None);
    }

    /// Messages that wait go back when no more are wished for.
    fn wish(&mut self, credits: u32) {
        if credits == self.credits && (credits > 0 || self.waiting.is_empty()) {
            return;
        }
        let returned = match credits {
            0 => self.waiting.drain(..).map(|message| message.key).collect(),
            _ => Vec::new(),
        };
        self.credits = credits;
        self.ask(returned);
    }

    fn ask(&mut self, returned: Vec<MessageKey>) {
        let (grant, granted) = oneshot::channel();
        self.granted = Some(granted);
        // A queue that is not attended any more has it all back.
        drop(self.wishes.send(Wish { credits: self.credits, returned, granted: grant }));
    }

    /// The message is not this listener's any more: its request ends, unless it has ended, which is
    /// mostly what the message was released for.
    fn released(&mut self, key: &MessageKey) {
        self.waiting.retain(|message| message.key != *key);
        if let Some(Begun { request, is_judged: false }) = self.begun.remove(key) {
            request.abort();
        }
    }

    fn judged(&mut self, Judged { key, begun, verdict }: Judged) {
        if let Some(begun) = self.begun.get_mut(&key) {
            begun.is_judged = true;
        }
        let now = boot_time();
        match verdict {
            Verdict::Acknowledged => {
                self.pace.well(begun);
                self.standings.note_well(&self.queue);
            }
            Verdict::Failed { reason, retry_after, is_of_endpoint, .. } => {
                let name = &self.deliveries.destination.name;
                self.standings.fails(&self.queue, name, &reason, (now, wall_ms()));
                if is_of_endpoint {
                    self.pace.in_trouble(now, begun, retry_after);
                } else {
                    self.pace.well(begun);
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, bool), JoinError>) {
        let (id, is_reported) = ended.unwrap_or_else(|error| (error.id(), false));
        let Some(key) = self.keys.remove(&id) else { return };
        if self.begun.get(&key).is_some_and(|begun| begun.request.id() == id) {
            self.begun.remove(&key);
            if !is_reported {
                self.ask(vec![key]);
            }
        }
    }
}

/// As [`granted`], for memory.
async fn found(waits: &mut Option<BoxFuture<'static, Held>>) -> Held {
    match waits {
        Some(room) => {
            let held = room.await;
            *waits = None;
            held
        }
        None => std::future::pending().await,
    }
}

/// Waits for good if there is nothing to wait for. May be dropped at any await.
async fn granted(waits: &mut Option<oneshot::Receiver<()>>) {
    match waits {
        // There is no more to wait for where the queue is not attended any more.
        Some(granted) => drop(granted.await),
        None => std::future::pending().await,
    }
}
