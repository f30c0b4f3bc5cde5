//! One process and its disk: the parts that are simulated here drive the real receivers, senders,
//! elections of relays, lease holders and controllers, and the machines that give a node its role.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Cluster, Shard};
use meridian_failover::{LeaseHolder, ProgressHints};
use meridian_placement::{Kept, RoleAction, RoleChange, Seal};
use meridian_shipping::Sender;
use meridian_types::{Epoch, NodeId, Position};

use crate::bugs::Bug;
use crate::clock::{Clock, Instant, MS};
use crate::invariants::Observer;
use crate::message::{Batch, History, Link, Message, Wakeup, end_of};
use crate::node::catch_up::{Pulling, Whole};
use crate::node::directory::Member;
use crate::node::orders::{Order, SealAsk};
use crate::node::part::Part;
use crate::node::renewal::Renewals;
use crate::raft::RaftDisk;
use crate::rng::Rng;
use crate::topology::SHARD;

mod catch_up;
mod directory;
mod divergence;
mod members;
mod orders;
mod part;
mod queues;
mod renewal;
mod replica;
mod role;
mod sealing;
mod source;
mod voter;

/// Between two ticks of a process.
pub(crate) const TICK: Instant = 50 * MS;

/// The effect of a node on the world.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are messages")]
pub(crate) enum Effect {
    Send {
        to: NodeId,
        message: Message,
    },
    /// Comes back to this process, if it lives.
    Wake {
        after: Instant,
        wakeup: Wakeup,
    },
}

/// The surroundings of a node while it takes a step.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) rng: &'a mut Rng,
    pub(crate) observer: &'a mut Observer,
    pub(crate) effects: &'a mut Vec<Effect>,
    pub(crate) bug: Option<Bug>,
    pub(crate) verbose: bool,
}

impl Context<'_> {
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.effects.push(Effect::Send { to, message });
    }

    pub(crate) fn wake(&mut self, after: Instant, wakeup: Wakeup) {
        self.effects.push(Effect::Wake { after, wakeup });
    }

    /// How long the disk takes now: mostly a little.
    pub(crate) fn disk_delay(&mut self) -> Instant {
        if self.rng.chance(20) {
            self.rng.between(20, 300) * MS
        } else {
            self.rng.between(1, 8) * MS
        }
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9.3} {}", self.now as f64 / 1e6, text());
        }
    }
}

/// The state of a node that survives a crash. State that is not durable is in the process.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) cluster: Arc<Cluster>,
    /// Committed, applied and durable.
    pub(crate) history: History,
    /// So many batches are no longer in the log that others are served from.
    pub(crate) purged: usize,
    /// Of the epoch in which this node votes.
    pub(crate) group: Option<(Epoch, RaftDisk<Batch>)>,
    pub(crate) sealed: Option<Seal>,
    /// The epoch up to whose base the logs were looked through, and what was kept beyond each.
    pub(crate) examined: Epoch,
    pub(crate) kept: BTreeMap<Epoch, Vec<Kept>>,
    pub(crate) directory: RaftDisk<Arc<Cluster>>,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) up: bool,
    pub(crate) disk: Disk,
    clock: Clock,
    part: Part,
    change: RoleChange,
    /// The remaining steps of the change of role at hand.
    steps: VecDeque<RoleAction>,
    pulling: Option<Pulling>,
    whole: Option<Whole>,
    /// The newest order, until it is carried out.
    order: Option<Order>,
    directory: Option<Member>,
    lease: LeaseHolder,
    hints: ProgressHints,
    /// Numbers the whole states that are fetched in place of a tail.
    fetches: u64,
    renewals: Renewals,
    senders: BTreeMap<Link, Sender>,
    /// Where each request is in the history.
    requests: BTreeMap<u64, Position>,
    next_status: Duration,
    /// Settlements that it has asked its group to log, in this life.
    settlements: u64,
}

impl Node {
    pub(crate) fn new(id: NodeId, genesis: &Arc<Cluster>, rng: &mut Rng) -> Self {
        let disk = Disk {
            cluster: Arc::clone(genesis),
            history: History::new(),
            purged: 0,
            group: None,
            sealed: None,
            examined: Epoch::FIRST,
            kept: BTreeMap::new(),
            directory: RaftDisk::default(),
        };
        Self {
            id,
            incarnation: 0,
            up: false,
            disk,
            clock: Clock::at_boot(0, rng),
            part: Part::None,
            change: RoleChange::new(id),
            steps: VecDeque::new(),
            pulling: None,
            whole: None,
            order: None,
            directory: None,
            lease: LeaseHolder::default(),
            hints: ProgressHints::default(),
            fetches: 0,
            renewals: Renewals::default(),
            senders: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_status: Duration::ZERO,
            settlements: 0,
        }
    }

    pub(crate) fn start(&mut self, context: &mut Context<'_>) {
        self.up = true;
        self.incarnation += 1;
        self.clock = Clock::at_boot(context.now, context.rng);
        self.lease = LeaseHolder::default();
        self.hints = ProgressHints::default();
        self.renewals = Renewals::default();
        self.next_status = Duration::ZERO;
        self.requests =
            self.disk.history.iter().map(|batch| (batch.request, batch.position)).collect();
        self.start_directory(context);
        self.reconcile(context);
        let first = context.rng.below(TICK);
        context.wake(first, Wakeup::Tick);
    }

    /// Loses everything that is not durable.
    pub(crate) fn crash(&mut self, bug: Option<Bug>) {
        self.up = false;
        if bug == Some(Bug::LoseTheSealInACrash) {
            self.disk.sealed = None;
        }
        self.part.lose(&mut self.disk);
        self.change = RoleChange::new(self.id);
        self.steps.clear();
        (self.pulling, self.whole, self.order) = (None, None, None);
        if let Some(member) = self.directory.take() {
            self.disk.directory = member.into_disk();
        }
        self.senders.clear();
    }

    fn at(&self, context: &Context<'_>) -> Duration {
        self.clock.read(context.now)
    }

    fn shard(&self) -> Option<&Shard> {
        self.disk.cluster.shards.get(&SHARD)
    }

    /// Where the committed history of this node ends.
    pub(crate) fn end(&self) -> Position {
        end_of(&self.disk.history)
    }

    fn push(&mut self, batch: Batch) {
        assert_eq!(
            self.end().sequence + 1,
            batch.position.sequence,
            "a gap in the history of node {}",
            self.id
        );
        self.requests.insert(batch.request, batch.position);
        self.disk.history.push(batch);
    }

    fn replace_history(&mut self, history: History) {
        self.requests = history.iter().map(|batch| (batch.request, batch.position)).collect();
        self.disk.purged = history.len();
        self.disk.history = history;
    }

    /// The cluster has changed, as this node hears.
    pub(crate) fn adopt(&mut self, context: &mut Context<'_>, cluster: Arc<Cluster>) {
        if cluster.version > self.disk.cluster.version {
            self.disk.cluster = cluster;
            self.reconcile(context);
        }
    }

    pub(crate) fn wakeup(&mut self, context: &mut Context<'_>, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Tick => {
                self.tick(context);
                context.wake(TICK, Wakeup::Tick);
            }
            Wakeup::ShardSynced(epoch, sync) => self.shard_synced(context, epoch, sync),
            Wakeup::DirectorySynced(sync) => self.directory_synced(context, sync),
            Wakeup::Persisted => self.persisted(context),
            Wakeup::Pulled => self.pulled(context),
            Wakeup::StatePulled { fetch, history } => self.state_pulled(context, fetch, history),
            Wakeup::Installed { fetch } => self.installed(context, fetch),
            Wakeup::Looked { term, number } => self.looked(context, term, number),
        }
        self.tend_queues(context);
    }

    fn tick(&mut self, context: &mut Context<'_>) {
        self.tick_directory(context);
        self.tick_voter(context);
        self.tick_replica(context);
        self.tick_pulling(context);
        self.reconcile(context);
        self.tick_orders(context);
        self.tick_senders(context);
        self.tick_renewal(context);
    }

    pub(crate) fn receive(&mut self, context: &mut Context<'_>, from: NodeId, message: Message) {
        self.take(context, from, message);
        self.tend_queues(context);
    }

    fn take(&mut self, context: &mut Context<'_>, from: NodeId, message: Message) {
        match message {
            Message::Shard { epoch, raft } => self.shard_message(context, from, epoch, raft),
            Message::NeedSeed { epoch } => self.give_seed(context, from, epoch),
            Message::Seed { epoch, history, founders, log } => {
                self.take_seed(context, epoch, &history, founders, log);
            }
            Message::Directory(raft) => self.directory_message(context, from, raft),
            Message::Renew { question, report, lost } => {
                let asked = directory::Asked { from, question, report, lost };
                self.asked_to_renew(context, asked);
            }
            Message::Lease { question, lease, cluster, hints } => {
                if self.granted(context, question, &lease, hints) {
                    self.adopt(context, cluster);
                }
            }
            Message::NotLeader { question, leader } => {
                self.not_leader(context, question, leader);
            }
            Message::Cluster(cluster) => self.adopt(context, cluster),
            Message::Order(change) => self.ordered(context, change),
            Message::Seal { term, epoch, planned } => {
                self.seal(context, SealAsk { from, term, epoch, planned });
            }
            Message::Sealed { term, answer } => self.sealed(context, from, term, answer),
            Message::Drain { term, epoch, source, through } => {
                let asked_at = self.at(context);
                self.order(context, Order { from, term, epoch, source, through, asked_at });
            }
            Message::Drained { term, epoch, position } => {
                self.drained(context, from, term, epoch, position)
            }
            Message::ReadLog { after, through } => self.read_log(context, from, after, through),
            Message::LogRead { after, tail } => self.log_read(context, from, after, tail),
            Message::ReadState { incarnation, fetch } => {
                self.read_state(context, from, incarnation, fetch)
            }
            Message::StateRead { incarnation, fetch, history } => {
                if incarnation == self.incarnation {
                    self.state_read(context, fetch, history);
                }
            }
            Message::Subscribe { link, from: position } => self.subscribed(context, link, position),
            Message::Unsubscribe { link } => drop(self.senders.remove(&link)),
            Message::Ack { link, durable, .. } => self.acked(context, link, durable),
            Message::ToReceiver { link, event, .. } => self.shipped(context, link, event),
            Message::Status(status) => self.heard(context, status),
            Message::FetchSnapshot { incarnation, fetch, epoch } => {
                self.give_snapshot(context, from, incarnation, fetch, epoch);
            }
            Message::Snapshot { incarnation, fetch, history } => {
                if incarnation == self.incarnation {
                    self.fetched(context, fetch, history);
                }
            }
            Message::Request { call, operation, floor } => {
                self.request(context, from, call, operation, floor)
            }
            Message::OfListener(word) => self.of_listener(context, from, word),
            Message::Answer { .. }
            | Message::NotHere { .. }
            | Message::Told(_)
            | Message::Reported { .. } => {}
        }
    }
}
