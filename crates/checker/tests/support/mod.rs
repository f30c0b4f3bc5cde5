//! A serial store with a clock of its own, whose clients see it with random real-time intervals:
//! its histories are correct by construction.

use std::collections::BTreeMap;

use meridian_checker::{
    Allowance, Check, Entry, History, LostWindow, Operation, Read, ReadOutcome, Record, Txn,
    TxnOutcome, Value, Write,
};
use meridian_types::{Consistency, Epoch, Position, Versionstamp};

pub(crate) fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(1), sequence), 0)
}

pub(crate) fn entry(value: Value, versionstamp: Versionstamp) -> Option<Entry> {
    Some(Entry { value, versionstamp })
}

type State = BTreeMap<String, Entry>;

/// A step of a simulated history. Its numbers are taken modulo the number of choices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) kind: u8,
    pub(crate) key: u8,
    pub(crate) other_key: u8,
    /// How long before its execution an operation was invoked, and how long after it the answer
    /// arrived, in steps of the clock.
    pub(crate) before: u8,
    pub(crate) after: u8,
    /// Decides the fate of the answer, and how far behind a replica is.
    pub(crate) luck: u8,
}

pub(crate) struct Simulation {
    epoch: Epoch,
    /// The state after each commit that was not lost.
    states: Vec<State>,
    /// The record of each commit.
    commits: Vec<usize>,
    allowance: Allowance,
    now: u64,
    next_id: u64,
    records: Vec<Record>,
    /// The number of commits that each gateway's replica has applied.
    replicas: [usize; 2],
    /// The lists that clients have read and not appended to yet.
    pending: Vec<(String, Option<Versionstamp>)>,
    markers: Vec<String>,
}

const TICK: u64 = 10;
const LISTS: u8 = 3;

impl Simulation {
    pub(crate) fn run(steps: impl IntoIterator<Item = Step>) -> History {
        Self::run_with_failovers(steps, &[]).0
    }

    /// `failovers`: the steps before which a failover happens, and the number of commits that each
    /// loses.
    pub(crate) fn run_with_failovers(
        steps: impl IntoIterator<Item = Step>,
        failovers: &[(usize, usize)],
    ) -> (History, Allowance) {
        let mut simulation = Self {
            epoch: Epoch(1),
            states: vec![State::new()],
            commits: vec![usize::MAX],
            allowance: Allowance::default(),
            now: 10_000,
            next_id: 1,
            records: Vec::new(),
            replicas: [0; 2],
            pending: Vec::new(),
            markers: Vec::new(),
        };
        for (index, step) in steps.into_iter().enumerate() {
            for (_, lost) in failovers.iter().filter(|(at, _)| *at == index) {
                simulation.fail_over(*lost, step);
            }
            simulation.step(step);
        }
        let allowance = simulation.allowance.clone();
        (simulation.finish(), allowance)
    }

    /// Loses the last commits. Some of the unanswered transactions among them are retried.
    fn fail_over(&mut self, lost: usize, step: Step) {
        self.now += TICK;
        let base = self.states.len() - 1 - lost.min(self.states.len() - 1);
        self.states.truncate(base + 1);
        let lost = self.commits.split_off(base + 1);
        self.replicas = self.replicas.map(|replica| replica.min(base));
        self.epoch.0 += 1;
        self.allowance
            .lost
            .push(LostWindow { epoch: self.epoch, base_sequence: u64::try_from(base).unwrap() });
        for record in lost {
            let Operation::Txn(txn) = self.records[record].operation.clone() else { continue };
            if txn.outcome != TxnOutcome::Unknown
                || (txn.id + u64::from(step.luck)).is_multiple_of(3)
            {
                continue;
            }
            self.now += TICK;
            let again = self.evaluate(&txn.checks, &txn.writes, record);
            if (txn.id + u64::from(step.luck)) % 3 == 1 {
                self.records[record].completed_ns = Some(self.now + u64::from(step.after));
                let Operation::Txn(txn) = &mut self.records[record].operation else { continue };
                txn.outcome = again;
            }
        }
    }

    /// Applies the transaction to the state, unless its checks fail.
    fn evaluate(&mut self, checks: &[Check], writes: &[Write], record: usize) -> TxnOutcome {
        let failed: Vec<u32> = (0..)
            .zip(checks)
            .filter(|(_, check)| {
                self.state().get(&check.key).map(|entry| entry.versionstamp) != check.versionstamp
            })
            .map(|(index, _)| index)
            .collect();
        if !failed.is_empty() {
            return TxnOutcome::CheckFailed { failed };
        }
        let position = Position::new(self.epoch, u64::try_from(self.states.len()).unwrap());
        let versionstamp = Versionstamp::new(position, 0);
        let mut state = self.state().clone();
        for write in writes {
            apply(&mut state, write, versionstamp);
        }
        self.states.push(state);
        self.commits.push(record);
        TxnOutcome::Committed { versionstamp }
    }

    fn step(&mut self, step: Step) {
        self.now += TICK;
        let list = format!("list{}", step.key % LISTS);
        let register = format!("register{}", step.key % LISTS);
        let counter = format!("counter{}", step.other_key % 2);
        match step.kind % 10 {
            0 | 1 => {
                let version = self.state().get(&list).map(|entry| entry.versionstamp);
                self.read(step, Read::strong("g0", vec![list.clone(), register]));
                self.pending.push((list, version));
            }
            2..=4 => {
                if !self.pending.is_empty() {
                    let (key, versionstamp) =
                        self.pending.remove(usize::from(step.other_key) % self.pending.len());
                    let element = self.next_id;
                    let check = Check { key: key.clone(), versionstamp };
                    self.txn(
                        step,
                        vec![check],
                        vec![
                            Write::Append { key, element },
                            Write::Sum { key: counter, amount: element },
                        ],
                    );
                }
            }
            5 => {
                let value = self.next_id;
                let version = self.state().get(&register).map(|entry| entry.versionstamp);
                let checks = if step.luck.is_multiple_of(2) {
                    vec![Check { key: register.clone(), versionstamp: version }]
                } else {
                    vec![]
                };
                self.txn(step, checks, vec![Write::SetRegister { key: register, value }]);
            }
            6 => self.txn(
                step,
                vec![],
                vec![Write::Sum { key: counter, amount: u64::from(step.luck) + 1 }],
            ),
            7 if step.luck < 60 => self.txn(step, vec![], vec![Write::Delete { key: register }]),
            7 => self.read(step, Read::strong("g1", vec![counter, register, list])),
            _ => {
                let gateway = usize::from(step.key % 2);
                let behind = self.states.len() - 1 - self.replicas[gateway];
                self.replicas[gateway] += behind.min(usize::from(step.luck % 4));
                self.read(
                    step,
                    Read::eventual(format!("g{gateway}"), vec![list, counter, register]),
                );
            }
        }
    }

    fn state(&self) -> &State {
        self.states.last().unwrap()
    }

    fn record(&mut self, step: Step, answered: bool, operation: Operation) {
        self.records.push(Record {
            client: u64::from(step.key),
            invoked_ns: self.now - u64::from(step.before),
            completed_ns: answered.then_some(self.now + u64::from(step.after)),
            operation,
        });
    }

    fn read(&mut self, step: Step, read: Read) {
        let state = match (read.consistency, read.gateway.as_str()) {
            (Consistency::Strong, _) => self.state(),
            (Consistency::Eventual, "g0") => &self.states[self.replicas[0]],
            (Consistency::Eventual, _) => &self.states[self.replicas[1]],
        };
        let entries = read.keys.iter().map(|key| state.get(key).cloned()).collect();
        self.record(
            step,
            true,
            Operation::Read(Read { outcome: ReadOutcome::Entries(entries), ..read }),
        );
    }

    fn txn(&mut self, step: Step, checks: Vec<Check>, mut writes: Vec<Write>) {
        let id = self.next_id;
        self.next_id += 1;
        let marker = format!("marker{id}");
        self.markers.push(marker.clone());
        writes.push(Write::SetRegister { key: marker, value: id });
        let outcome = match step.luck {
            // The request was lost on its way; the client may know that, or not.
            200..220 => TxnOutcome::NotCommitted { reason: "503".into() },
            220..230 => TxnOutcome::Unknown,
            luck => match self.evaluate(&checks, &writes, self.records.len()) {
                TxnOutcome::Committed { .. } if luck >= 230 => TxnOutcome::Unknown,
                outcome => outcome,
            },
        };
        let answered = outcome != TxnOutcome::Unknown || step.luck.is_multiple_of(2);
        self.record(step, answered, Operation::Txn(Txn { id, checks, writes, outcome }));
    }

    fn finish(mut self) -> History {
        self.now += 10_000;
        let mut keys: Vec<String> = self.state().keys().cloned().collect();
        for key in (0..LISTS)
            .flat_map(|n| [format!("list{n}"), format!("register{n}"), format!("counter{n}")])
            .chain(self.markers.clone())
        {
            if !keys.contains(&key) && keys.len() < 2_000 {
                keys.push(key);
            }
        }
        let step = Step { kind: 0, key: 0, other_key: 0, before: 0, after: 1, luck: 0 };
        for keys in keys.chunks(100) {
            self.now += TICK;
            self.read(step, Read::last("g0", keys.to_vec()));
        }
        History { records: self.records }
    }
}

fn apply(state: &mut State, write: &Write, versionstamp: Versionstamp) {
    let current = state.get(write.key()).map(|entry| entry.value.clone());
    let value = match (write, current) {
        (Write::Delete { key }, _) => {
            state.remove(key);
            return;
        }
        (Write::SetRegister { value, .. }, _) => Value::Register(*value),
        (Write::Append { element, .. }, Some(Value::List(mut list))) => {
            list.push(*element);
            Value::List(list)
        }
        (Write::Append { element, .. }, _) => Value::List(vec![*element]),
        (Write::Sum { amount, .. }, Some(Value::Counter(value))) => {
            Value::Counter(value.wrapping_add(*amount))
        }
        (Write::Sum { amount, .. }, _) => Value::Counter(*amount),
    };
    state.insert(write.key().clone(), Entry { value, versionstamp });
}
