//! The task that drives the dispatcher of a shard, for as long as this node leads in a term.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use meridian_queue::{Action, Dispatcher, Event, Lane, MessageKey, Moment, SessionId};
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{DatabaseId, NodeId, QueueId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::feed::{Feed, Overrun};
use super::inbox::Outbox;
use super::reports::Reports;
use super::settling::settle;
use super::{Command, Figures, Handout, Looked, NotListening, Notice, QueueParts, place};
use crate::cluster_view::view::Known;
use crate::write::leader_term::{self, LeaderTask, Led, TermSession};

impl QueueParts {
    /// The shard's time: what is due by it is handed out.
    pub(super) fn time_ms(&self) -> u64 {
        self.shown.state.time_ms().max(self.proposer.time_ms(self.shown.time.now()))
    }

    /// The databases whose queues hand out nothing.
    fn paused(&self) -> BTreeSet<DatabaseId> {
        self.directory.paused_queues(self.shown.group.id().shard)
    }

    fn moment(&self) -> Moment {
        Moment { now: self.shown.time.now(), time_ms: self.time_ms() }
    }
}

pub(super) struct Leader {
    parts: Arc<QueueParts>,
    commands: mpsc::Receiver<Command>,
    notices: mpsc::UnboundedReceiver<Notice>,
}

impl Leader {
    pub(super) fn new(
        parts: Arc<QueueParts>,
        commands: mpsc::Receiver<Command>,
        notices: mpsc::UnboundedReceiver<Notice>,
    ) -> Self {
        Self { parts, commands, notices }
    }

    pub(super) async fn run(mut self) {
        while self.lead_or_wait().await.is_some() {}
    }

    /// `None`: the shard is no more this node's to vote in.
    async fn lead_or_wait(&mut self) -> Option<()> {
        let group = self.parts.shown.group.clone();
        match group.leadership() {
            Ok(leadership) => {
                let led = leader_term::lead(&group, leadership.term, self).await;
                (led != Led::Closed).then_some(())
            }
            Err(not_leading) => {
                tokio::select! {
                    biased;
                    () = group.leadership_changed(None) => Some(()),
                    declined = self.decline_one(not_leading.leader) => declined,
                }
            }
        }
    }

    /// `None`: no handle is left to send commands. May be dropped at any await.
    async fn decline_one(&mut self, leader: Option<NodeId>) -> Option<()> {
        tokio::select! {
            command = self.commands.recv() => decline(command?, leader),
            // Of a session that ended with its term.
            Some(_) = self.notices.recv() => {}
        }
        Some(())
    }
}

fn decline(command: Command, leader: Option<NodeId>) {
    let not_leader = NotListening::NotLeader(leader);
    // A caller that has left wants no answer.
    match command {
        Command::Open { begun, .. } => drop(begun.send(Err(not_leader))),
        Command::Report { answers, .. } => drop(answers.send(Err(not_leader))),
        Command::Look { looked, .. } => drop(looked.send(Err(not_leader))),
        Command::Measure(measured) => drop(measured.send(Err(not_leader))),
    }
}

impl LeaderTask for Leader {
    type End = ();
    type Session<'a> = Term<'a>;

    async fn before_first_entry(&mut self) -> Option<()> {
        self.decline_one(None).await
    }

    fn begin(&mut self, term: u64) -> Term<'_> {
        let feed = Feed::subscribe(&self.parts.shown.state);
        // Changes that are applied between are told, too: a message that is taken for an old one
        // waits a little longer.
        let began = self.parts.shown.state.position();
        let mut term = Term {
            term,
            dispatcher: Dispatcher::new(self.parts.moment(), began),
            feed,
            outboxes: HashMap::new(),
            reports: Reports::default(),
            jobs: JoinSet::new(),
            // News from now on are told as such.
            known: self.parts.directory.watch(),
            leader: self,
        };
        let paused = term.leader.parts.paused();
        term.step(Event::Paused(paused));
        term
    }
}

/// The result of work by another thread or task.
pub(super) enum Done {
    Read { queue: QueueId, rows: Vec<MessageKey>, next: Option<MessageKey> },
    Checked { queue: QueueId, gone: Vec<MessageKey> },
    Settled { queue: QueueId, lane: Lane },
}

pub(super) enum Input {
    Applied(Result<Vec<meridian_queue::RowChange>, Overrun>),
    Command(Command),
    Notice(Notice),
    Done(Done),
    Paused(BTreeSet<DatabaseId>),
    Woken,
}

/// A leader's knowledge of its queues in one term. When it is dropped, its sessions end.
pub(super) struct Term<'a> {
    leader: &'a mut Leader,
    term: u64,
    dispatcher: Dispatcher,
    feed: Feed,
    outboxes: HashMap<SessionId, Outbox>,
    reports: Reports,
    jobs: JoinSet<Done>,
    known: watch::Receiver<Arc<Known>>,
}

impl TermSession for Term<'_> {
    type Event = Input;
    type End = ();

    async fn next(&mut self) -> Option<Input> {
        let Self { leader, dispatcher, feed, jobs, known, .. } = self;
        let Leader { parts, commands, notices } = &mut **leader;
        let wakes = dispatcher.wake_at().map(|at| at.saturating_sub(parts.shown.time.now()));
        Some(tokio::select! {
            changes = feed.next() => Input::Applied(changes),
            command = commands.recv() => Input::Command(command?),
            Some(notice) = notices.recv() => Input::Notice(notice),
            // A job that panicked has ended the process; a job that is cut off ends with the node.
            Some(Ok(done)) = jobs.join_next(), if !jobs.is_empty() => Input::Done(done),
            // The directory is among the parts, and lives as long as they do.
            Ok(()) = known.changed() => Input::Paused(parts.paused()),
            () = tokio::time::sleep(wakes.unwrap_or_default()), if wakes.is_some() => Input::Woken,
        })
    }

    async fn handle(&mut self, input: Input) -> ControlFlow<()> {
        match self.take(input) {
            Ok(()) => ControlFlow::Continue(()),
            // As a new leader would: listeners say what they hold.
            Err(Overrun) => {
                tracing::warn!(
                    group = %self.leader.parts.shown.group.id(),
                    "the queues did not keep up with what is applied, and begin anew"
                );
                ControlFlow::Break(())
            }
        }
    }

    fn leave(&mut self) {}
}

impl Term<'_> {
    fn take(&mut self, input: Input) -> Result<(), Overrun> {
        match input {
            Input::Applied(changes) => self.step(Event::Applied(changes?)),
            Input::Command(command) => self.command(command),
            Input::Notice(Notice::Gone { queue, key }) => {
                self.step(Event::Gone { queue, keys: vec![key] });
            }
            Input::Notice(Notice::Closed { queue, listener, session }) => {
                self.outboxes.remove(&session);
                self.step(Event::Closed { queue, listener, session });
            }
            Input::Done(done) => self.done(done)?,
            Input::Paused(paused) => self.step(Event::Paused(paused)),
            Input::Woken => self.step(Event::Tick),
        }
        Ok(())
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Open { opening, outbox, begun } => {
                // A caller that has left has no session. A caller that leaves later says so.
                if begun.send(Ok(self.term)).is_ok() {
                    self.outboxes.insert(opening.session, outbox);
                    self.step(Event::Opened(opening));
                }
            }
            Command::Report { queue, listener, reports, answers } => {
                let reports = self.reports.begin(queue.database, reports, answers);
                if !reports.is_empty() {
                    self.step(Event::Reported { queue, listener, reports });
                }
            }
            Command::Look { queue, keys, names, looked } => {
                let is_leased = |key| self.dispatcher.is_leased(&queue, key);
                let leased = keys.iter().map(is_leased).collect();
                let in_all = self.dispatcher.leases(&queue);
                let is_paused = self.dispatcher.is_paused(queue.database);
                let named = |name| QueueId { database: queue.database, name };
                let of_name = |name| self.dispatcher.leases(&named(name));
                let of_names = names.into_iter().map(of_name).collect();
                // A caller that has left wants no answer.
                drop(looked.send(Ok(Looked { leased, in_all, of_names, is_paused })));
            }
            Command::Measure(measured) => {
                let leased = self.dispatcher.leases_in_all();
                let first_due_ms = self.dispatcher.first_due_ms();
                let due_for_ms = first_due_ms
                    .map_or(0, |due_ms| self.leader.parts.time_ms().saturating_sub(due_ms));
                let due_for = Duration::from_millis(due_for_ms);
                drop(measured.send(Ok(Figures { leased, due_for })));
            }
        }
    }

    fn done(&mut self, done: Done) -> Result<(), Overrun> {
        match done {
            Done::Read { queue, rows, next } => self.step(Event::Read { queue, rows, next }),
            Done::Checked { queue, gone } => self.step(Event::Checked { queue, gone }),
            Done::Settled { queue, lane } => {
                // Log readers are called before a proposer knows that its batch is applied.
                let changes = self.feed.present()?;
                self.step(Event::Applied(changes));
                self.step(Event::Settled { queue, lane });
            }
        }
        Ok(())
    }

    fn step(&mut self, event: Event) {
        let moment = self.leader.parts.moment();
        for action in self.dispatcher.step(moment, event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Read { queue, from, limit } => {
                self.look(move |state| read(state, queue, from, limit));
            }
            Action::Check { queue, keys } => self.look(move |state| check(state, queue, keys)),
            Action::Deliver { session, key, until } => {
                self.tell(session, Handout::Deliver { key, until });
            }
            Action::Release { session, key } => self.tell(session, Handout::Release(key)),
            Action::Refuse { session, reason } => {
                self.tell(session, Handout::End(reason));
                self.outboxes.remove(&session);
            }
            Action::Settle { queue, lane, settlements } => {
                let parts = Arc::clone(&self.leader.parts);
                self.jobs.spawn(async move {
                    settle(parts, queue.clone(), settlements).await;
                    Done::Settled { queue, lane }
                });
            }
            Action::Answer { ticket, answer } => self.reports.answered(ticket, answer),
        }
    }

    fn look(&mut self, look: impl FnOnce(&ShardState) -> Done + Send + 'static) {
        let shown = Arc::clone(&self.leader.parts.shown);
        self.jobs.spawn(async move {
            let state = Arc::clone(&shown.state);
            match shown.reads.little(None, move || look(&state)).await {
                Some(done) => done,
                // The runtime ends, and all tasks with it.
                None => std::future::pending().await,
            }
        });
    }

    /// A session that takes nothing is ended, and says that it is closed.
    fn tell(&mut self, session: SessionId, handout: Handout) {
        if self.outboxes.get(&session).is_some_and(|outbox| !outbox.tell(handout)) {
            self.outboxes.remove(&session);
        }
    }
}

/// The bytes that a read of keys may have in memory.
const READ_BYTES: usize = 1 << 20;

/// The rows of a queue from `from` on.
fn read(state: &ShardState, queue: QueueId, from: MessageKey, limit: usize) -> Done {
    let after = place::before(from).map(|key| (key.due_ms, key.id));
    let found = or_fatal(state.messages_due(&queue, after, u64::MAX, limit, READ_BYTES));
    let rows: Vec<MessageKey> =
        found.iter().map(|row| MessageKey { due_ms: row.due_ms, id: row.id }).collect();
    // It ended there, or before the end for want of room.
    let next = rows.last().copied().and_then(place::behind);
    Done::Read { queue, rows, next }
}

/// Which of these have no row.
fn check(state: &ShardState, queue: QueueId, mut keys: Vec<MessageKey>) -> Done {
    keys.retain(|key| or_fatal(state.message(&queue, key.due_ms, key.id)).is_none());
    Done::Checked { queue, gone: keys }
}
