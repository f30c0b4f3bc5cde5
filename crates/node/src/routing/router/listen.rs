//! Listeners of this gateway, from one leader of their shard to the next, and their reports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use meridian_gateway::{Heard, Listen, Listened, QueuedMessage, Unavailable};
use meridian_queue::MessageKey;
use meridian_types::{DatabaseId, Epoch, NodeId, ShardId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::hearing::{Teller, hearing};
use super::{Router, unavailable};
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::queues::{Listener, TOO_MANY_LISTENERS};
use crate::routing::nodes::{Nodes, ToldStream};
use crate::routing::queue_calls::{Over, Told};
use crate::time_budget::{ATTEMPT_TIMEOUT, LISTEN_PAUSE, LISTENING_SILENT, LONG_LISTEN_PAUSE};

/// A client that takes what comes has taken a part by then.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// A listener that has polled says what its client holds for this much longer than the lease: the
/// client may have had it lengthened.
const KEPT_BEYOND_LEASE: Duration = Duration::from_secs(5 * 60);
/// A leader that logs what was reported, or reads, is waited for so long, then asked again.
const QUEUE_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Rounds of all voters before the pauses between them grow.
const PROMPT_ROUNDS: u32 = 4;

/// Another wish of a listener of this process, which goes on.
#[derive(Debug)]
pub(crate) struct Wish {
    /// How many messages it may hold at a time from now on.
    pub(crate) credits: u32,
    /// Messages that it holds and has not begun on: they go back, as if it had never had them.
    pub(crate) returned: Vec<MessageKey>,
    /// Told when a leader knows it: nothing else is on its way to the listener then.
    pub(crate) granted: oneshot::Sender<()>,
}

/// One listener of this gateway, for as long as its client is there, and for as long as a client
/// that polled holds messages.
pub(super) struct Listening<N, C> {
    router: Arc<Router<N, C>>,
    listen: Listen,
    /// Of a listener of this process.
    wishes: Option<mpsc::UnboundedReceiver<Wish>>,
    /// Of wishes that the next session begins with.
    granted: Vec<oneshot::Sender<()>>,
    /// Messages that its client may be at work on.
    held: BTreeSet<MessageKey>,
    /// Had a session before.
    resumed: bool,
    /// Its client takes nothing at present. Its sessions get no messages, and what lies in the
    /// connection between nodes, which is shared, is taken all the same.
    takes_nothing: bool,
    /// Its client is to be told, when it takes something.
    released: Vec<MessageKey>,
    client: Teller,
    /// When the client counts as taking nothing, unless it has taken the last news.
    unheard: Option<Instant>,
    /// Rounds in which no session was told anything.
    rounds: u32,
}

impl<N: Nodes, C: Clock> Listening<N, C> {
    /// It ends when what is returned is dropped, or by [`Listened::enough`].
    pub(super) fn start(
        router: &Arc<Router<N, C>>,
        listen: Listen,
        wishes: Option<mpsc::UnboundedReceiver<Wish>>,
    ) -> Listened {
        let (client, heard) = hearing();
        let (enough, is_enough) = oneshot::channel();
        let listening = Self {
            router: Arc::clone(router),
            held: listen.held.iter().copied().collect(),
            listen,
            wishes,
            granted: Vec::new(),
            resumed: false,
            takes_nothing: false,
            released: Vec::new(),
            client,
            unheard: None,
            rounds: 0,
        };
        tokio::spawn(listening.run(is_enough));
        Listened { heard: heard.boxed(), enough }
    }

    async fn run(mut self, is_enough: oneshot::Receiver<Vec<MessageKey>>) {
        let place = self.router.listeners.take(self.listen.queue.database);
        let is_refused = place.is_none();
        let ended = tokio::select! {
            biased;
            () = std::future::ready(()), if is_refused => {
                Err(TOO_MANY_LISTENERS.to_owned())
            }
            reason = self.sessions() => Err(reason),
            // A client that has left a poll got nothing.
            kept = is_enough => Ok(kept.unwrap_or_default()),
        };
        let kept = match ended {
            Ok(kept) => kept,
            Err(reason) => {
                self.client.wanted().await;
                return self.client.tell(Heard::Ended(reason));
            }
        };
        if self.listen.lease.is_none() {
            return;
        }
        // Messages that are handed out at this moment, and not kept, go back: the next session takes
        // the place of the one before, and does not name them.
        self.held = kept.into_iter().collect();
        self.listen.credits = 0;
        self.resumed = true;
        let until_released = self.listen.lease.unwrap_or_default() + KEPT_BEYOND_LEASE;
        drop(tokio::time::timeout(until_released, self.sessions()).await);
    }

    /// One session after the other. Why there is no other.
    async fn sessions(&mut self) -> String {
        let router = Arc::clone(&self.router);
        loop {
            let directory = router.directory.watch();
            let shard = match router.shard(self.listen.queue.database) {
                Ok(shard) => shard,
                Err(unavailable) => return unavailable.reason,
            };
            let moved = router.moved(self.listen.queue.database, shard, directory);
            let refused = tokio::select! {
                // First the news of a session, which the next one would have to tell again.
                biased;
                refused = self.round(shard) => refused,
                // The new leader waits for what listeners hold, and no longer than that.
                () = moved => {
                    self.rounds = 0;
                    continue;
                }
            };
            if let Some(reason) = refused {
                return reason;
            }
        }
    }

    /// Asks each voter once, and pauses. Why there is to be no other session. May be dropped at any
    /// await: what was not told the client is not among what it holds.
    async fn round(&mut self, shard: (ShardId, Epoch)) -> Option<String> {
        let mut asked = BTreeSet::new();
        while let Some(node) = self.router.next_voter(shard.0, &mut asked) {
            match self.session(node, shard).await {
                Over::Refused(reason) => return Some(reason),
                Over::Failed(failed) => self.router.record_of_queues(shard.0, node, &failed),
                Over::NotTaken => break,
            }
        }
        self.take_back_unheard();
        tokio::time::sleep(pause(self.rounds)).await;
        self.rounds = self.rounds.saturating_add(1);
        None
    }

    async fn session(&mut self, node: NodeId, shard: (ShardId, Epoch)) -> Over {
        let router = Arc::clone(&self.router);
        let begun = router.nodes.listen(node, shard, self.listener());
        let mut parts = match tokio::time::timeout(router.patience(node), begun).await {
            Ok(Ok(parts)) => parts,
            Ok(Err(over)) => return over,
            Err(_) => return silent(),
        };
        self.resumed = true;
        for granted in self.granted.drain(..) {
            // A listener that does not wait for it has sent others since.
            granted.send(()).ok();
        }
        let now = router.clock.now();
        router.record(shard.0, node, Ok(()));
        router.leaders.answered(now, shard.0, node, node);
        loop {
            if self.listen.lease.is_some() && self.listen.credits == 0 && self.held.is_empty() {
                return Over::Refused("it gets and holds nothing more".to_owned());
            }
            let waits =
                (self.takes_nothing || !self.released.is_empty()) && !self.client.is_closed();
            let unheard = self.unheard;
            let told = tokio::select! {
                biased;
                told = next(&mut parts) => told,
                () = self.client.wanted(), if waits => {
                    if !self.released.is_empty() {
                        self.tell_released();
                    } else if !self.client.is_closed() {
                        // It is to get messages again, by another session.
                        self.takes_nothing = false;
                        return Over::NotTaken;
                    }
                    continue;
                }
                () = sleep_until(unheard.unwrap_or_else(Instant::now)), if unheard.is_some() => {
                    if self.take_back_unheard() {
                        return Over::NotTaken;
                    }
                    continue;
                }
                wish = next_wish(&mut self.wishes) => {
                    self.grant(wish);
                    return Over::NotTaken;
                }
            };
            if told.is_ok() {
                self.rounds = 0;
            }
            match told {
                Ok(Told::Alive) => {}
                Ok(Told::Messages(messages)) => {
                    if !self.pass_on(messages).await {
                        return Over::NotTaken;
                    }
                }
                Ok(Told::Released(keys)) => {
                    keys.iter().for_each(|key| {
                        self.held.remove(key);
                    });
                    self.released.extend(keys);
                }
                Err(over) => return over,
            }
        }
    }

    /// In the next session.
    fn grant(&mut self, wish: Wish) {
        let Wish { credits, returned, granted } = wish;
        self.listen.credits = credits;
        for key in &returned {
            self.held.remove(key);
        }
        self.granted.push(granted);
    }

    /// False where the client takes nothing: it has these messages not, and the next session does
    /// not name them.
    async fn pass_on(&mut self, messages: Vec<QueuedMessage>) -> bool {
        let wanted = tokio::time::timeout(TAKEN_WITHIN, async {
            self.client.wanted().await;
            // A message that was released before may be among these again.
            if !self.released.is_empty() && !self.client.is_closed() {
                self.tell_released();
                self.client.wanted().await;
            }
        });
        if wanted.await.is_err() {
            self.takes_nothing = true;
            return false;
        }
        // A client that has left ends the task where it is to end.
        if self.client.is_closed() {
            return true;
        }
        self.held.extend(messages.iter().map(|message| message.key));
        if self.listen.lease.is_some() {
            // It gets so many in all, from whichever leader.
            self.listen.credits = self.listen.credits.saturating_sub(count(&messages));
        }
        self.tell(Heard::Messages(messages));
        true
    }

    fn tell_released(&mut self) {
        let released = std::mem::take(&mut self.released);
        self.tell(Heard::Released(released));
    }

    fn tell(&mut self, news: Heard) {
        self.client.tell(news);
        self.unheard = Some(Instant::now() + TAKEN_WITHIN);
    }

    /// Takes the news back that the client should have taken by now. True where it lost messages by
    /// that, which the next session does not name.
    fn take_back_unheard(&mut self) -> bool {
        if self.unheard.is_none_or(|at| Instant::now() < at) {
            return false;
        }
        self.unheard = None;
        let Some(unheard) = self.client.take_back() else { return false };
        self.takes_nothing = true;
        match unheard {
            Heard::Messages(messages) => {
                for message in &messages {
                    self.held.remove(&message.key);
                }
                if self.listen.lease.is_some() {
                    self.listen.credits = self.listen.credits.saturating_add(count(&messages));
                }
                true
            }
            Heard::Released(keys) => {
                drop(self.released.splice(..0, keys));
                false
            }
            // It is the last word, behind all sessions.
            Heard::Ended(_) => false,
        }
    }

    fn listener(&self) -> Listener {
        let Listen { ref queue, listener, lease, incarnation, .. } = self.listen;
        let queue = queue.clone();
        let credits = if self.takes_nothing { 0 } else { self.listen.credits };
        let (held, resumed) = (self.held.iter().copied().collect(), self.resumed);
        Listener { queue, listener, credits, lease, held, incarnation, resumed }
    }
}

fn count(messages: &[QueuedMessage]) -> u32 {
    u32::try_from(messages.len()).unwrap_or(u32::MAX)
}

/// Before the next round. Listeners by the thousand may wait for a leader, or for memory.
fn pause(rounds: u32) -> Duration {
    let doublings = rounds.saturating_sub(PROMPT_ROUNDS).min(16);
    let longest = LISTEN_PAUSE.saturating_mul(1 << doublings).min(LONG_LISTEN_PAUSE);
    rand::random_range(longest / 2..=longest)
}

async fn next_wish(wishes: &mut Option<mpsc::UnboundedReceiver<Wish>>) -> Wish {
    let wish = match wishes {
        Some(wishes) => wishes.recv().await,
        None => None,
    };
    match wish {
        Some(wish) => wish,
        None => std::future::pending().await,
    }
}

async fn next(parts: &mut ToldStream) -> Result<Told, Over> {
    match tokio::time::timeout(LISTENING_SILENT, parts.next()).await {
        Ok(Some(told)) => told,
        Ok(None) => Err(Over::Failed(Failed::Unknown("the stream has ended".to_owned()))),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Over {
    Over::Failed(Failed::Unknown("the leader says nothing".to_owned()))
}

impl<N: Nodes, C: Clock> Router<N, C> {
    /// As [`Database::listen`](meridian_gateway::Database::listen), for a listener of this process,
    /// which may wish for more or less meanwhile. Its wishes are bounded by what it hears.
    pub(crate) fn attend(
        self: &Arc<Self>,
        listen: Listen,
    ) -> (Listened, mpsc::UnboundedSender<Wish>) {
        let (wishes, wished) = mpsc::unbounded_channel();
        (Listening::start(self, listen, Some(wished)), wishes)
    }

    /// The next voter to ask, in their present order.
    fn next_voter(&self, shard: ShardId, asked: &mut BTreeSet<NodeId>) -> Option<NodeId> {
        self.voters(shard).into_iter().find(|node| asked.insert(*node))
    }

    /// As [`Router::record`], of calls that may be slow at a healthy leader: a leader that logs
    /// reports on a slow disk, or has too many listeners, is not silent, and leads.
    fn record_of_queues(&self, shard: ShardId, node: NodeId, failed: &Failed) {
        if matches!(failed, Failed::NotLeader(_) | Failed::Unreachable(_)) {
            self.record(shard, node, Err(failed));
        }
    }

    fn patience(&self, node: NodeId) -> Duration {
        ATTEMPT_TIMEOUT + 2 * self.health.round_trip(node)
    }

    /// Asks until a leader has an answer: to ask again does no harm. `failing`: what is so without
    /// one.
    pub(super) async fn asked<T>(
        &self,
        database: DatabaseId,
        failing: &str,
        ask: impl Fn(NodeId, (ShardId, Epoch)) -> BoxFuture<'static, Result<T, Failed>> + Send + Sync,
    ) -> Result<T, Unavailable> {
        let mut reason = "it has no leader at present".to_owned();
        let asking = async {
            loop {
                let shard = self.shard(database)?;
                let mut asked = BTreeSet::new();
                while let Some(node) = self.next_voter(shard.0, &mut asked) {
                    let within = QUEUE_CALL_TIMEOUT + 2 * self.health.round_trip(node);
                    let late = |_| Err(Failed::Unknown("no answer".to_owned()));
                    let call = tokio::time::timeout(within, ask(node, shard));
                    match call.await.unwrap_or_else(late) {
                        Ok(answer) => return Ok(answer),
                        Err(failed) => {
                            self.record_of_queues(shard.0, node, &failed);
                            match failed {
                                // Others say so of the leader, too, that has not answered.
                                Failed::NotLeader(_) => {}
                                Failed::NotDone(why)
                                | Failed::Busy(why)
                                | Failed::Unreachable(why)
                                | Failed::Unknown(why) => reason = why,
                            }
                        }
                    }
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        };
        let answered = tokio::time::timeout(self.deadline, asking).await;
        answered.unwrap_or_else(|_| Err(unavailable(format!("{failing}: {reason}"))))
    }
}
