//! A queue in memory with listeners whose streams break, a leader that changes, and answers that
//! are lost; with one bug, if so wanted.

use std::collections::BTreeMap;

use meridian_checker::queue::{
    DeadRead, Enqueue, EnqueueOutcome, Handed, QueueEvent, QueueHistory, QueueRule, Report,
    ReportAnswer, Verdict,
};
use meridian_types::{Epoch, Position, Versionstamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    EnqueueLost,
    EnqueueTwice,
    RefusedIsEnqueued,
    LeasesForgottenWithTheLeader,
    AckForgotten,
    AttemptForAChangeOfLeader,
    OneAttemptTooMany,
    DelayIgnored,
    DeathInParts,
    DeathAnAttemptEarly,
    DeathWithoutKeys,
    DeadIsHandedOut,
    DoneAndDead,
    BrokenStreamForgotten,
}

impl Bug {
    pub(crate) const ALL: [(Self, QueueRule); 14] = [
        (Self::EnqueueLost, QueueRule::AtLeastOnce),
        (Self::EnqueueTwice, QueueRule::Enqueued),
        (Self::RefusedIsEnqueued, QueueRule::Enqueued),
        (Self::LeasesForgottenWithTheLeader, QueueRule::OneListener),
        (Self::AckForgotten, QueueRule::Acknowledged),
        (Self::AttemptForAChangeOfLeader, QueueRule::Attempts),
        (Self::OneAttemptTooMany, QueueRule::Attempts),
        (Self::DelayIgnored, QueueRule::Attempts),
        (Self::DeathInParts, QueueRule::DeadLetters),
        (Self::DeathAnAttemptEarly, QueueRule::DeadLetters),
        (Self::DeathWithoutKeys, QueueRule::AtLeastOnce),
        (Self::DeadIsHandedOut, QueueRule::DeadLetters),
        (Self::DoneAndDead, QueueRule::DeadLetters),
        (Self::BrokenStreamForgotten, QueueRule::AtLeastOnce),
    ];
}

const MS: u64 = 1_000_000;
const LISTENERS: u32 = 4;
const MESSAGES: u64 = 30;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(bound)).unwrap()
    }

    fn one_in(&mut self, bound: u32) -> bool {
        self.below(bound) == 0
    }
}

struct Row {
    message: u64,
    due_ns: u64,
    attempt: u32,
    attempts: u32,
    dead_keys: u32,
    holder: Option<u32>,
}

struct World {
    now_ns: u64,
    rng: Rng,
    bug: Option<Bug>,
    /// By id.
    rows: BTreeMap<u64, Row>,
    next_id: u64,
    dead: BTreeMap<u64, u32>,
    /// The work of each listener: id, message, attempt.
    work: BTreeMap<u32, Vec<(u64, u64, u32)>>,
    events: Vec<QueueEvent>,
}

/// A history from a seed, drained.
pub(crate) fn play(seed: u64, bug: Option<Bug>) -> QueueHistory {
    let mut world = World {
        now_ns: 1,
        rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        bug,
        rows: BTreeMap::new(),
        next_id: 1,
        dead: BTreeMap::new(),
        work: BTreeMap::new(),
        events: Vec::new(),
    };
    for message in 1..=MESSAGES {
        world.enqueue(message);
        for _ in 0..world.rng.below(12) {
            world.step();
        }
    }
    for _ in 0..10_000 {
        let rests = world.work.values().all(Vec::is_empty);
        if rests && world.rows.values().all(|row| row.holder.is_some()) {
            break;
        }
        world.step();
    }
    world.read_the_dead();
    QueueHistory { events: world.events, is_drained: true }
}

impl World {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn pass(&mut self) -> u64 {
        self.now_ns += 1 + u64::from(self.rng.below(30)) * MS;
        self.now_ns
    }

    fn enqueue(&mut self, message: u64) {
        let (attempts, dead_keys) = (1 + self.rng.below(3), 2 * self.rng.below(2));
        let delay_ns = u64::from(self.rng.below(3)) * 100 * MS;
        let invoked_ns = self.now_ns;
        let due_ns = invoked_ns + if self.has(Bug::DelayIgnored) { 0 } else { delay_ns };
        let id = self.next_id;
        let versionstamp = Versionstamp::new(Position::new(Epoch(1), id), 0);
        let outcome = match self.rng.below(10) {
            0 => EnqueueOutcome::NotEnqueued,
            1 | 2 => EnqueueOutcome::Unknown,
            _ => EnqueueOutcome::Enqueued { id: format!("id-{id}"), versionstamp },
        };
        let takes_effect = match outcome {
            EnqueueOutcome::NotEnqueued => self.has(Bug::RefusedIsEnqueued),
            EnqueueOutcome::Unknown => self.rng.one_in(2),
            EnqueueOutcome::Enqueued { .. } => !(self.has(Bug::EnqueueLost) && self.rng.one_in(5)),
        };
        let copies = if self.has(Bug::EnqueueTwice) { 2 } else { 1 };
        for _ in 0..if takes_effect { copies } else { 0 } {
            let row = Row { message, due_ns, attempt: 1, attempts, dead_keys, holder: None };
            self.rows.insert(self.next_id, row);
            self.next_id += 1;
        }
        self.next_id = self.next_id.max(id + 1);
        let completed_ns = Some(self.pass());
        self.events.push(QueueEvent::Enqueue(Enqueue {
            message,
            invoked_ns,
            completed_ns,
            outcome,
            delay_ns,
            attempts,
            dead_keys,
        }));
    }

    fn step(&mut self) {
        self.pass();
        let listener = self.rng.below(LISTENERS);
        match self.rng.below(20) {
            0 => self.break_stream(listener),
            1 => self.change_leader(),
            2 if self.rng.one_in(4) => self.read_the_dead(),
            3..=11 => self.hand_out(listener),
            _ => self.end_work(listener),
        }
    }

    fn hand_out(&mut self, listener: u32) {
        let now_ns = self.now_ns;
        let mut due = self.rows.iter_mut();
        let next = due.find(|(_, row)| row.holder.is_none() && row.due_ns <= now_ns);
        let Some((id, row)) = next else { return };
        row.holder = Some(listener);
        let (id, message, attempt) = (*id, row.message, row.attempt);
        self.work.entry(listener).or_default().push((id, message, attempt));
        let id = format!("id-{id}");
        self.events.push(QueueEvent::Handed(Handed {
            at_ns: now_ns,
            listener,
            message,
            id,
            attempt,
        }));
    }

    /// The attempt has failed.
    fn fail(&mut self, id: u64) {
        let early = u32::from(self.has(Bug::DeathAnAttemptEarly));
        let more = u32::from(self.has(Bug::OneAttemptTooMany));
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.holder = None;
        if row.attempt + early < row.attempts + more {
            row.attempt += 1;
            return;
        }
        let (message, keys) = (row.message, row.dead_keys);
        if keys > 0 && !self.has(Bug::DeathWithoutKeys) {
            let set = if self.has(Bug::DeathInParts) { 1 } else { keys };
            self.dead.insert(message, set);
        }
        if self.has(Bug::DeadIsHandedOut) && self.rng.one_in(2) {
            return;
        }
        self.rows.remove(&id);
    }

    fn end_work(&mut self, listener: u32) {
        let work = self.work.entry(listener).or_default();
        if work.is_empty() {
            return;
        }
        let at = self.rng.below(u32::try_from(work.len()).unwrap()) as usize;
        let (id, message, attempt) = work.remove(at);
        let invoked_ns = self.now_ns;
        let verdict = if self.rng.one_in(3) { Verdict::Nack } else { Verdict::Ack };
        let is_own = self
            .rows
            .get(&id)
            .is_some_and(|row| row.holder == Some(listener) && row.attempt == attempt);
        let answer = match verdict {
            Verdict::Ack => {
                if self.has(Bug::AckForgotten) && self.rng.one_in(4) {
                    self.rows.get_mut(&id).into_iter().for_each(|row| row.holder = None);
                } else if let Some(row) = self.rows.remove(&id)
                    && self.has(Bug::DoneAndDead)
                    && row.dead_keys > 0
                {
                    self.dead.insert(message, row.dead_keys);
                }
                // A row that is gone may have been delivered before.
                ReportAnswer::Done
            }
            Verdict::Nack if is_own => {
                self.fail(id);
                ReportAnswer::Done
            }
            _ => ReportAnswer::Late,
        };
        let is_answered = !self.rng.one_in(5);
        let completed_ns = is_answered.then(|| self.pass());
        let answer = is_answered.then_some(answer);
        self.events.push(QueueEvent::Report(Report {
            listener,
            message,
            attempt,
            verdict,
            invoked_ns,
            completed_ns,
            answer,
        }));
    }

    /// The stream comes back in time, or the messages held over it have failed; its listener goes on.
    fn break_stream(&mut self, listener: u32) {
        self.events.push(QueueEvent::Broke { at_ns: self.now_ns, listener });
        if self.rng.one_in(3) || self.has(Bug::BrokenStreamForgotten) {
            let is_gone = self.has(Bug::BrokenStreamForgotten);
            if is_gone {
                self.work.remove(&listener);
            }
            return;
        }
        let held = |(id, row): (&u64, &Row)| (row.holder == Some(listener)).then_some(*id);
        for id in self.rows.iter().filter_map(held).collect::<Vec<_>>() {
            self.fail(id);
        }
        if self.rng.one_in(2) {
            self.work.remove(&listener);
        }
    }

    fn change_leader(&mut self) {
        let forgets = self.has(Bug::LeasesForgottenWithTheLeader);
        let counts = self.has(Bug::AttemptForAChangeOfLeader);
        for row in self.rows.values_mut() {
            if forgets {
                row.holder = None;
            }
            if counts && row.holder.is_none() && row.attempt < row.attempts {
                row.attempt += 1;
            }
        }
    }

    fn read_the_dead(&mut self) {
        for message in 1..=MESSAGES {
            let (invoked_ns, completed_ns) = (self.now_ns, self.now_ns + 1);
            let set = self.dead.get(&message).copied().unwrap_or(0);
            self.events.push(QueueEvent::DeadRead(DeadRead {
                message,
                invoked_ns,
                completed_ns,
                set,
            }));
        }
        self.now_ns += 1;
    }
}
