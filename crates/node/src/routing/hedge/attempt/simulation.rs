//! Attempts at one write, from a seed: nodes answer late, never, or that another leads; tries are
//! carried out long after their attempt. The client's answer is compared with the log when all has
//! come to its end.
//!
//! The log is that of a shard: an id takes effect once; an outcome is logged if it is a commit, or
//! if the try says that an earlier one may be on its way.

use super::*;

const SEEDS: u64 = 20_000;
const NODES: u64 = 5;

/// A linear congruential generator.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// Mostly short, against the patience of an attempt, and sometimes far longer.
    fn delay(&mut self) -> Duration {
        let most = if self.one_in(4) { 1000 } else { 60 };
        Duration::from_millis(1 + self.below(most))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Committed,
    CheckFailed,
}

/// One call: what it does in the shard, and what comes back.
struct Call {
    node: NodeId,
    retry: bool,
    carried_out_at: Option<Duration>,
    ends_at: Option<Duration>,
    ends: Ends,
    /// With whether it was logged.
    outcome: Option<(Outcome, bool)>,
}

enum Ends {
    /// With the outcome, if it is carried out by then; else the caller learns nothing.
    Told,
    Failed(fn(Option<NodeId>) -> Failed),
}

struct Nodes(BTreeSet<NodeId>);

impl Patience for Nodes {
    fn patience(&self, _: NodeId) -> Duration {
        Duration::from_millis(100)
    }

    fn is_silent(&self, node: NodeId, _: Duration) -> bool {
        self.0.contains(&node)
    }
}

#[derive(Debug, Default)]
struct Seen {
    committed: u64,
    refused: u64,
    nothing: u64,
    unknown: u64,
    hedged: u64,
    not_binding: u64,
}

struct Run {
    chance: Chance,
    now: Duration,
    calls: Vec<Call>,
    logged: Option<Outcome>,
    asked: Vec<NodeId>,
    /// Takes every answer for a binding answer.
    trusts_all: bool,
}

impl Run {
    fn ask(&mut self, Try { node, overlaps, .. }: Try) {
        self.asked.push(node);
        let at = |delay| Some(self.now + delay);
        let (first, second) = (self.chance.delay(), self.chance.delay());
        let unknown = |_: Option<NodeId>| Failed::Unknown("it broke".to_owned());
        let (carried_out_at, ends_at, ends) = match self.chance.below(9) {
            0 => (None, at(first), Ends::Failed(|_| Failed::Unreachable("refused".to_owned()))),
            1 => (None, at(first), Ends::Failed(|_| Failed::NotDone("full".to_owned()))),
            2 => (None, at(first), Ends::Failed(Failed::NotLeader)),
            3 => (at(first), None, Ends::Told),
            8 => (None, at(first), Ends::Failed(|_| Failed::Busy("its share".to_owned()))),
            // Before or after it is carried out.
            4 => (at(first), at(second), Ends::Failed(unknown)),
            5 => (None, at(first), Ends::Failed(unknown)),
            _ => (at(first), at(first + second), Ends::Told),
        };
        let retry = overlaps;
        self.calls.push(Call { node, retry, carried_out_at, ends_at, ends, outcome: None });
    }

    /// Carries out all that is due.
    fn carry_out(&mut self) {
        self.calls.sort_by_key(|call| call.carried_out_at);
        for call in &mut self.calls {
            if call.carried_out_at.take_if(|at| *at <= self.now).is_none() {
                continue;
            }
            // The check is of a key that others write.
            let evaluated =
                if self.chance.one_in(2) { Outcome::Committed } else { Outcome::CheckFailed };
            let outcome = self.logged.unwrap_or(evaluated);
            if self.logged.is_none() && (outcome == Outcome::Committed || call.retry) {
                self.logged = Some(outcome);
            }
            call.outcome = Some((outcome, self.logged.is_some()));
        }
    }

    /// The next call that ends.
    fn ended(&mut self) -> Option<Call> {
        let ended =
            self.calls.iter_mut().find(|call| call.ends_at.is_some_and(|at| at <= self.now))?;
        ended.ends_at = None;
        let Call { node, retry, ref mut ends, outcome, .. } = *ended;
        let ends = std::mem::replace(ends, Ends::Told);
        Some(Call { node, retry, carried_out_at: None, ends_at: None, ends, outcome })
    }

    /// To the next moment at which something happens.
    fn wait(&mut self, wakes_at: Option<Duration>) -> bool {
        let ends = self.calls.iter().flat_map(|call| [call.carried_out_at, call.ends_at]).flatten();
        match ends.chain(wakes_at).min() {
            Some(next) => self.now = self.now.max(next),
            None => return false,
        }
        self.carry_out();
        true
    }

    fn event(&mut self, answered: &mut Option<Outcome>) -> Option<Event> {
        let Call { node, ends, outcome, .. } = self.ended()?;
        Some(match (ends, outcome) {
            (Ends::Told, Some((outcome, logged))) => {
                *answered = Some(outcome);
                let binds = outcome == Outcome::Committed || logged || self.trusts_all;
                Event::Answered { node, binds }
            }
            (Ends::Told, None) => {
                Event::Failed { node, failed: Failed::Unknown("too late".to_owned()) }
            }
            (Ends::Failed(failed), _) => {
                let named = (!self.chance.one_in(3)).then(|| NodeId(1 + self.chance.below(NODES)));
                Event::Failed { node, failed: failed(named) }
            }
        })
    }
}

/// Makes one attempt.
///
/// # Errors
/// The contradiction between the client's answer and the log.
fn attempt(seed: u64, trusts_all: bool, seen: &mut Seen) -> Result<(), String> {
    let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let nodes: Vec<_> = (1..=1 + chance.below(NODES)).map(NodeId).collect();
    let silent = nodes.iter().copied().filter(|_| chance.one_in(3)).collect();
    let bounds = Bounds { at_a_time: 2, refusal_is_free: chance.one_in(2) };
    let lost = chance.one_in(4).then_some(NodeId(1));
    let mut machine = Attempt::new(nodes, lost, bounds);
    let (now, calls, asked) = (Duration::from_secs(1), Vec::new(), Vec::new());
    let mut run = Run { chance, now, calls, logged: None, asked, trusts_all };
    let nodes = Nodes(silent);
    let (mut event, mut answered) = (Event::Begun, None);
    for _ in 0..1000 {
        match machine.step(run.now, event, &nodes) {
            Step::Ask(tried) => {
                seen.hedged += u64::from(run.calls.iter().any(|call| call.ends_at.is_some()));
                run.ask(tried);
            }
            Step::Wait => {}
            Step::Pay => {
                event = Event::Paid(!run.chance.one_in(4));
                continue;
            }
            Step::GiveUp(node) => {
                // It had left.
                run.calls
                    .iter_mut()
                    .filter(|call| call.node == node)
                    .for_each(|call| call.ends_at = None);
                event = Event::GivenUp { node, failed: Failed::Unknown("late".to_owned()) };
                continue;
            }
            Step::Accept { .. } => return run.judge(answered, false, seen),
            Step::Nothing { unknown, .. } => return run.judge(None, unknown.is_some(), seen),
        }
        event = loop {
            if let Some(event) = run.event(&mut answered) {
                break event;
            }
            if !machine.has_moved() && run.chance.one_in(40) {
                break Event::Moved;
            }
            if !machine.has_moved() && run.chance.one_in(40) {
                break Event::Found(Some(NodeId(1 + run.chance.below(NODES))));
            }
            let wakes_at = machine.wakes_at(&nodes);
            if wakes_at.is_some_and(|at| at <= run.now) {
                break Event::Woken;
            }
            if !run.wait(wakes_at) {
                // Only nodes that never answer are waited for: the caller's deadline comes.
                return run.judge(None, true, seen);
            }
        };
        if let Event::Answered { binds: false, .. } = event {
            seen.not_binding += 1;
        }
    }
    Err(format!("seed {seed}: no end after {:?}", run.asked))
}

impl Run {
    /// Once all that was sent has been carried out.
    fn judge(
        mut self,
        told: Option<Outcome>,
        unknown: bool,
        seen: &mut Seen,
    ) -> Result<(), String> {
        while self.wait(None) {
            while self.ended().is_some() {}
        }
        for node in (1..=NODES).map(NodeId) {
            let times = self.asked.iter().filter(|asked| **asked == node).count();
            if times > 2 {
                return Err(format!("node {node} was asked {times} times"));
            }
        }
        match told {
            Some(Outcome::Committed) => seen.committed += 1,
            Some(Outcome::CheckFailed) => seen.refused += 1,
            None if unknown => seen.unknown += 1,
            None => seen.nothing += 1,
        }
        let is_right = match told {
            Some(told) => {
                self.logged == Some(told) || (told == Outcome::CheckFailed && self.logged.is_none())
            }
            None => unknown || self.logged.is_none(),
        };
        if is_right {
            return Ok(());
        }
        let logged = self.logged;
        Err(format!("told {told:?} (unknown: {unknown}), but the log says {logged:?}"))
    }
}

#[test]
fn what_a_client_is_told_of_a_write_is_what_becomes_of_it_however_many_nodes_were_asked() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        if let Err(wrong) = attempt(seed, false, &mut seen) {
            panic!("seed {seed}: {wrong}");
        }
    }
    let all =
        [seen.committed, seen.refused, seen.nothing, seen.unknown, seen.hedged, seen.not_binding];
    assert!(all.iter().all(|count| *count > SEEDS / 200), "too little happened: {seen:?}");
}

/// Planted: the unlogged refusal of one node is told though another was asked after it.
#[test]
fn simulation_finds_that_answers_which_do_not_bind_are_trusted() {
    let mut seen = Seen::default();
    let found = (0..SEEDS).filter(|seed| attempt(*seed, true, &mut seen).is_err()).count();
    assert!(found > 5, "{found} of {SEEDS}");
}
