//! Voters that are not there, beside a clock that stands still until all tasks wait for it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures::channel::mpsc;
use futures::executor::LocalPool;
use futures::future::{BoxFuture, RemoteHandle};
use futures::task::LocalSpawnExt;
use futures::{FutureExt, StreamExt};
use meridian_config::DevLayout;
use meridian_gateway::{Access, QueueList, QueuePage, Room, size_of_news};
use meridian_memory::Held;
use meridian_types::{Entry, NodeId, Position, Versionstamp};
use tokio::sync::watch;

use super::super::*;
use super::changes::Changing;
use crate::changes::NotGiven;
use crate::queues::Listener;
use crate::routing::nodes::{
    Answering, BrokenOff, Feeding, LocalVoter, ToldStream, Wanted, WriteTry, Written,
};
use crate::routing::queue_calls::{Over, Told};
use crate::watches::News;

pub(super) use super::time::Time;

pub(super) const ROUND_TRIP: Duration = Duration::from_millis(2);
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a voter's queue, or a voter that waits for a leader, holds a write.
const PATIENCE: Duration = Duration::from_millis(700);

/// How this gateway reaches one voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Up,
    /// Requests are lost.
    Silent,
    Refused,
    /// No connection comes about, and none is refused.
    Hangs,
}

/// The ranges of an answer that arrives in its own time.
type Transfer = BoxFuture<'static, Result<Vec<Vec<Entry>>, BrokenOff>>;

/// Nodes 1 to 3 vote.
pub(super) struct Voters {
    time: Time,
    /// Of the gateway's own process.
    local: Option<NodeId>,
    pub(super) links: Mutex<BTreeMap<NodeId, Link>>,
    /// Nodes that refuse all reads, at once.
    pub(super) refusing: Mutex<BTreeSet<NodeId>>,
    pub(super) leader: watch::Sender<Option<NodeId>>,
    /// Of each write at the leader.
    service_time: Duration,
    busy_until: Mutex<Duration>,
    pub(super) calls: Mutex<Vec<(NodeId, Option<WriteTry>)>>,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) most_in_flight: AtomicUsize,
    pub(super) committed: AtomicU64,
    /// How tries end before they are looked at; the last one first.
    pub(super) scripted: Mutex<Vec<Failed>>,
    /// How the first try that comes to a leader then ends, and how long that takes.
    pub(super) slow: Mutex<Option<(Duration, WriteOutcome)>>,
    /// Whether a read is at work for three seconds.
    pub(super) working: AtomicBool,
    pub(super) transfer: Mutex<Option<Transfer>>,
    /// Reads that came with room for their answer.
    pub(super) with_room: AtomicUsize,
    /// The watches that were begun, at which node each, and the other end of its news.
    pub(super) watches: Mutex<Vec<(NodeId, Wanted, mpsc::UnboundedSender<Fed>)>>,
    /// Nodes that are in this epoch yet, whichever they are asked for.
    pub(super) epochs: Mutex<BTreeMap<NodeId, Epoch>>,
    pub(super) changing: Changing,
    /// The first news of each node.
    pub(super) first_news: Mutex<News>,
    /// The voters that got reports.
    pub(super) reports: Mutex<Vec<NodeId>>,
    /// The nodes that were asked for a listener's session.
    pub(super) asked_for_sessions: Mutex<Vec<(NodeId, Epoch)>>,
    /// The sessions of listeners that were begun, and the other end of what they are told.
    pub(super) sessions: Mutex<Vec<(Listener, mpsc::UnboundedSender<ToldOne>)>>,
}

pub(super) type Fed = Result<News, Failed>;
pub(super) type ToldOne = Result<Told, Over>;

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Voters {
    fn new(time: Time, local: Option<NodeId>, service_time: Duration) -> Arc<Self> {
        Arc::new(Self {
            time,
            local,
            links: Mutex::default(),
            refusing: Mutex::default(),
            leader: watch::Sender::new(Some(NodeId(1))),
            service_time,
            busy_until: Mutex::default(),
            calls: Mutex::default(),
            in_flight: Arc::default(),
            most_in_flight: AtomicUsize::default(),
            committed: AtomicU64::default(),
            scripted: Mutex::default(),
            slow: Mutex::default(),
            working: AtomicBool::default(),
            transfer: Mutex::default(),
            with_room: AtomicUsize::default(),
            watches: Mutex::default(),
            epochs: Mutex::default(),
            changing: Changing::default(),
            first_news: Mutex::new(News { position: Position::ZERO, values: Vec::new() }),
            reports: Mutex::default(),
            asked_for_sessions: Mutex::default(),
            sessions: Mutex::default(),
        })
    }

    pub(super) fn link(&self, node: u64, link: Link) {
        self.links.lock().insert(NodeId(node), link);
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.lock().len()
    }

    pub(super) fn asked(&self) -> Vec<u64> {
        self.calls.lock().iter().map(|(node, _)| node.0).collect()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    fn begins(&self, node: NodeId, attempt: Option<WriteTry>) -> InFlight {
        self.calls.lock().push((node, attempt));
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        InFlight(Arc::clone(&self.in_flight))
    }

    async fn travels(&self, node: NodeId, departure: &Departure) -> Result<(), Failed> {
        let link = self.links.lock().get(&node).copied().unwrap_or_default();
        if matches!(link, Link::Up | Link::Silent) {
            departure.leave();
        }
        match link {
            Link::Up if self.local == Some(node) => {}
            Link::Up => self.time.sleep(ROUND_TRIP).await,
            Link::Silent | Link::Hangs => pending().await,
            Link::Refused => return Err(Failed::Unreachable("refused".to_owned())),
        }
        Ok(())
    }

    /// The way back: a node that fell silent meanwhile answers nothing any more.
    async fn answers(&self, node: NodeId) {
        if self.links.lock().get(&node) == Some(&Link::Silent) {
            pending().await
        }
    }

    /// As a node's proposer does: in order, refused after a while in the queue, and whether or not
    /// any caller waits.
    async fn serves(&self) -> Result<WriteOutcome, Failed> {
        let now = self.time.now();
        let done = {
            let mut busy_until = self.busy_until.lock();
            let turn = (*busy_until).max(now);
            let taken = turn <= now + PATIENCE;
            if taken {
                *busy_until = turn + self.service_time;
            }
            taken.then_some(turn + self.service_time)
        };
        let Some(done) = done else {
            self.time.sleep(PATIENCE).await;
            return Err(Failed::NotDone("no quorum answers".to_owned()));
        };
        self.time.sleep_until(done).await;
        self.committed.fetch_add(1, Ordering::SeqCst);
        Ok(WriteOutcome::Committed(Versionstamp([1; 10])))
    }

    async fn waits_for_a_leader(&self, late: Option<NodeId>) -> Option<NodeId> {
        let mut leader = self.leader.subscribe();
        let until = self.time.now() + PATIENCE;
        tokio::select! {
            known = leader.wait_for(Option::is_some) => known.ok().and_then(|leader| *leader),
            () = self.time.sleep_until(until) => None,
        }
        .filter(|leader| Some(*leader) != late || self.leader.borrow().is_some())
    }
}

impl Nodes for Arc<Voters> {
    fn local_voter(&self, _: ShardId) -> Option<LocalVoter> {
        self.local.map(|_| LocalVoter { leader: *self.leader.borrow() })
    }

    fn write(
        &self,
        _: (ShardId, Epoch),
        _: &Arc<Write>,
        attempt: WriteTry,
        departure: Arc<Departure>,
    ) -> impl Future<Output = Result<Written, Failed>> + Send + 'static {
        let voters = Arc::clone(self);
        let in_flight = voters.begins(attempt.node, Some(attempt));
        async move {
            let _in_flight = in_flight;
            voters.travels(attempt.node, &departure).await?;
            let scripted = voters.scripted.lock().pop();
            if let Some(failed) = scripted {
                return Err(failed);
            }
            let slow = voters.slow.lock().take();
            if let Some((takes, outcome)) = slow {
                voters.time.sleep(takes).await;
                return Ok(Written { outcome, leader: None });
            }
            let leader = voters.waits_for_a_leader(attempt.late).await;
            let elsewhere = leader.filter(|leader| *leader != attempt.node);
            let written = match leader {
                Some(_) if elsewhere.is_none() || attempt.pass_on => {
                    voters.serves().await.map(|outcome| Written { outcome, leader: elsewhere })
                }
                _ => Err(Failed::NotLeader(leader)),
            };
            voters.answers(attempt.node).await;
            written
        }
    }

    fn changes(
        &self,
        node: NodeId,
        _: ShardId,
        _: &ChangesWanted,
        min_sequence: u64,
    ) -> BoxFuture<'static, Result<Result<Changed, NotGiven>, Failed>> {
        self.changing.asked.lock().push((node, min_sequence));
        let voters = Arc::clone(self);
        async move {
            voters.travels(node, &Departure::default()).await?;
            voters.changing.answer(node)
        }
        .boxed()
    }

    fn read(
        &self,
        node: NodeId,
        _: (ShardId, Epoch),
        _: &Arc<Read>,
        _: u64,
        working: Arc<Notify>,
        room: Option<Held>,
    ) -> BoxFuture<'static, Result<Answering, Failed>> {
        let voters = Arc::clone(self);
        let in_flight = voters.begins(node, None);
        voters.with_room.fetch_add(usize::from(room.is_some()), Ordering::SeqCst);
        let answer = async move {
            let _in_flight = in_flight;
            voters.travels(node, &Departure::default()).await?;
            if voters.refusing.lock().contains(&node) {
                return Err(Failed::NotDone("it has not caught up".to_owned()));
            }
            if voters.working.load(Ordering::SeqCst) {
                for _ in 0..12 {
                    voters.time.sleep(Duration::from_millis(250)).await;
                    working.notify_one();
                }
            }
            let transfer = voters.transfer.lock().take();
            let ranges = transfer.unwrap_or_else(|| async { Ok(vec![Vec::new()]) }.boxed());
            Ok(Answering {
                position: Position::new(Epoch(1), 1),
                leader: *voters.leader.borrow(),
                ranges,
            })
        };
        answer.boxed()
    }

    fn watch(
        &self,
        node: NodeId,
        (_, epoch): (ShardId, Epoch),
        wanted: Wanted,
        room: Room,
    ) -> BoxFuture<'static, Result<Feeding, Failed>> {
        let voters = Arc::clone(self);
        let begun = async move {
            voters.travels(node, &Departure::default()).await?;
            if voters.refusing.lock().contains(&node) {
                return Err(Failed::NotDone("it has not caught up".to_owned()));
            }
            if voters.epochs.lock().get(&node).is_some_and(|here| *here < epoch) {
                return Err(Failed::NotDone("it is in an earlier epoch".to_owned()));
            }
            let (feed, news) = mpsc::unbounded();
            voters.watches.lock().push((node, wanted, feed));
            let first = voters.first_news.lock().clone();
            Ok(room.take(size_of_news(&first.values)).map(|kept| (first, kept, news.boxed())))
        };
        begun.boxed()
    }

    fn listen(
        &self,
        node: NodeId,
        (_, epoch): (ShardId, Epoch),
        listener: Listener,
    ) -> BoxFuture<'static, Result<ToldStream, Over>> {
        self.asked_for_sessions.lock().push((node, epoch));
        if self.links.lock().get(&node) == Some(&Link::Silent) {
            return pending().boxed();
        }
        let (tell, told) = mpsc::unbounded();
        self.sessions.lock().push((listener, tell));
        async { Ok(told.boxed()) }.boxed()
    }

    fn report(
        &self,
        node: NodeId,
        _: (ShardId, Epoch),
        _: &Reports,
    ) -> BoxFuture<'static, Result<Vec<Answer>, Failed>> {
        self.reports.lock().push(node);
        let scripted = self.scripted.lock().pop();
        let failed = scripted.unwrap_or_else(|| Failed::NotDone("no queues here".to_owned()));
        async { Err(failed) }.boxed()
    }

    fn list_queue(
        &self,
        node: NodeId,
        _: (ShardId, Epoch),
        _: &QueueList,
    ) -> BoxFuture<'static, Result<QueuePage, Failed>> {
        let leader = *self.leader.borrow();
        let page = match leader == Some(node) {
            true => Ok(QueuePage::default()),
            false => Err(Failed::NotLeader(leader)),
        };
        async { page }.boxed()
    }
}

/// A gateway and its voters.
#[derive(Clone)]
pub(super) struct World {
    pub(super) time: Time,
    pub(super) voters: Arc<Voters>,
    pub(super) router: Arc<Router<Arc<Voters>, Time>>,
    spawner: futures::executor::LocalSpawner,
}

impl World {
    /// To drop the handle ends the task.
    pub(super) fn spawn<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> RemoteHandle<T> {
        self.spawner.spawn_local_with_handle(task).unwrap()
    }
}

/// Runs `body` to its end, and all that it has spawned meanwhile, with a gateway beside an
/// application.
pub(super) fn run<F: Future<Output = ()> + 'static>(
    service_time: Duration,
    body: impl FnOnce(World) -> F,
) {
    run_beside(None, service_time, body);
}

/// As [`run`], with a gateway in the process of that node.
pub(super) fn run_beside<F: Future<Output = ()> + 'static>(
    local: Option<u64>,
    service_time: Duration,
    body: impl FnOnce(World) -> F,
) {
    let mut pool = LocalPool::new();
    let (time, voters, router) = gateway(local, service_time);
    let world = World { time: time.clone(), voters, router, spawner: pool.spawner() };
    let ended = Rc::new(RefCell::new(false));
    let (body, end) = (body(world), Rc::clone(&ended));
    let task = async move {
        body.await;
        *end.borrow_mut() = true;
    };
    pool.spawner().spawn_local(task).unwrap();
    loop {
        pool.run_until_stalled();
        if *ended.borrow() {
            return;
        }
        time.advance();
    }
}

type Routes = Router<Arc<Voters>, Time>;

/// A gateway and its voters.
pub(super) fn gateway(
    local: Option<u64>,
    service_time: Duration,
) -> (Time, Arc<Voters>, Arc<Routes>) {
    let (time, local) = (Time::default(), local.map(NodeId));
    time.jump(Duration::from_secs(1000));
    let voters = Voters::new(time.clone(), local, service_time);
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let router = Router::new(
        Arc::clone(&voters),
        time.clone(),
        local,
        "region-1".to_owned(),
        directory,
        DEADLINE,
    );
    (time, voters, Arc::new(router))
}
