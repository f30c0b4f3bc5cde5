//! Scenarios as text, which operators can review: `crates/failover/tests/scenarios/*.txt`. The
//! README there lists the words. Every file is read as a whole before it is played; a line that is
//! not understood, or an expectation that does not hold, is an error that names file and line.

use std::fmt::Write;
use std::path::Path;

use super::scenario::Scenario;
use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");

/// The step that a line of a scenario describes.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Run(Duration),
    RunUntil { phase: String, epoch: u16 },
    Down(Vec<u64>),
    Up(Vec<u64>),
    Have(Vec<u64>, Position),
    Lag(Vec<u64>, Duration),
    Leads(Option<u64>),
    Term { node: u64, term: u64 },
    Seals(Vec<u64>, bool),
    Drains(Vec<u64>, bool),
    GivesTail(Vec<u64>, bool),
    Failover { to: Option<String> },
    Switchover { to: String },
    Cancel,
    ManualDatabase,
    NewDirectoryLeader,
    Expect(Expectation),
}

#[derive(Debug, Clone, PartialEq)]
enum Expectation {
    /// The shard's epoch, phase and primary region.
    Shard {
        epoch: u16,
        phase: String,
        region: String,
    },
    /// Kinds of all changes so far, in order.
    Changes(Vec<String>),
    /// The text for operators on the event that the shard waits for.
    Waits(String),
    Base(Position),
    /// Where each epoch began, oldest first.
    Bases(Vec<Position>),
    Lost(u64),
    /// From the base to the last batch that is known to be lost.
    Window(Duration),
    Voters(Vec<u64>),
    /// The nodes that were asked to seal, in the order in which they first were.
    Seals(Vec<u64>),
    /// The nodes that were asked to pull, each with its sources.
    Pulls(Vec<(u64, u64)>),
    /// Since something was last done to the cluster.
    Took {
        at_least: Duration,
        at_most: Duration,
    },
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is not a number"))
}

fn nodes(words: &[&str]) -> Result<Vec<u64>, String> {
    let ids: Vec<u64> = words.iter().map(|word| number(word)).collect::<Result<_, _>>()?;
    match ids.iter().find(|id| !(1..=7).contains(*id)) {
        Some(id) => Err(format!("there is no node {id}")),
        None if ids.is_empty() => Err("which nodes?".to_owned()),
        None => Ok(ids),
    }
}

fn duration(word: &str) -> Result<Duration, String> {
    if let Some(ms) = word.strip_suffix("ms") {
        return Ok(Duration::from_millis(number(ms)?));
    }
    let secs = word.strip_suffix('s').ok_or_else(|| format!("`{word}` is neither s nor ms"))?;
    Ok(Duration::from_secs(number(secs)?))
}

fn position(word: &str) -> Result<Position, String> {
    let (epoch, sequence) =
        word.split_once('.').ok_or_else(|| format!("`{word}` is not EPOCH.SEQUENCE"))?;
    Ok(at(number(epoch)?, number(sequence)?))
}

fn region(word: &str) -> Result<String, String> {
    match word {
        "a" | "b" | "c" => Ok(word.to_owned()),
        _ => Err(format!("there is no region {word}")),
    }
}

fn phase(word: &str) -> Result<String, String> {
    match word {
        "active" | "sealing" | "forming" | "switching-over" => Ok(word.to_owned()),
        _ => Err(format!("there is no phase {word}")),
    }
}

fn change(word: &str) -> Result<String, String> {
    let known = ["Seal", "Promote", "Activate", "ConfirmVoters", "CancelSwitchover"];
    match known.contains(&word) {
        true => Ok(word.to_owned()),
        false => Err(format!("the controller makes no change {word}")),
    }
}

fn pull(word: &str) -> Result<(u64, u64), String> {
    let (node, source) =
        word.split_once('<').ok_or_else(|| format!("`{word}` is not NODE<SOURCE"))?;
    Ok((number(node)?, number(source)?))
}

fn step(line: &str) -> Result<Step, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["run", "until", which, "in", "epoch", epoch] => {
            Step::RunUntil { phase: phase(which)?, epoch: number(epoch)? }
        }
        ["run", time] => Step::Run(duration(time)?),
        ["down", ids @ ..] => Step::Down(nodes(ids)?),
        ["up", ids @ ..] => Step::Up(nodes(ids)?),
        ["have", where_to, ids @ ..] => Step::Have(nodes(ids)?, position(where_to)?),
        ["lag", time, ids @ ..] => Step::Lag(nodes(ids)?, duration(time)?),
        ["leader", "none"] => Step::Leads(None),
        ["leader", id] => Step::Leads(nodes(&[id])?.pop()),
        ["term", term, id] => Step::Term { node: number(id)?, term: number(term)? },
        ["seals", answer @ ("yes" | "no"), ids @ ..] => Step::Seals(nodes(ids)?, *answer == "yes"),
        ["drains", answer @ ("yes" | "no"), ids @ ..] => {
            Step::Drains(nodes(ids)?, *answer == "yes")
        }
        ["gives-tail", answer @ ("yes" | "no"), ids @ ..] => {
            Step::GivesTail(nodes(ids)?, *answer == "yes")
        }
        ["order", "failover"] => Step::Failover { to: None },
        ["order", "failover", "to", to] => Step::Failover { to: Some(region(to)?) },
        ["order", "switchover", "to", to] => Step::Switchover { to: region(to)? },
        ["order", "cancel"] => Step::Cancel,
        ["manual-database"] => Step::ManualDatabase,
        ["new-directory-leader"] => Step::NewDirectoryLeader,
        ["expect", rest @ ..] => Step::Expect(expectation(line, rest)?),
        _ => return Err(format!("`{line}` is not understood")),
    })
}

fn expectation(line: &str, words: &[&str]) -> Result<Expectation, String> {
    Ok(match words {
        ["epoch", epoch, which, "in", place] => Expectation::Shard {
            epoch: number(epoch)?,
            phase: phase(which)?,
            region: region(place)?,
        },
        ["changes", "none"] => Expectation::Changes(Vec::new()),
        ["changes", kinds @ ..] => {
            Expectation::Changes(kinds.iter().map(|kind| change(kind)).collect::<Result<_, _>>()?)
        }
        ["waits", "nothing"] => Expectation::Waits(String::new()),
        ["waits", ..] => {
            let text = line.split_once("waits").map_or("", |(_, text)| text.trim());
            Expectation::Waits(text.to_owned())
        }
        ["base", base] => Expectation::Base(position(base)?),
        ["bases", bases @ ..] => {
            Expectation::Bases(bases.iter().map(|word| position(word)).collect::<Result<_, _>>()?)
        }
        ["window", window] => Expectation::Window(duration(window)?),
        ["seals", ids @ ..] => Expectation::Seals(nodes(ids)?),
        ["lost", transactions] => Expectation::Lost(number(transactions)?),
        ["voters", ids @ ..] => Expectation::Voters(nodes(ids)?),
        ["pulls", "none"] => Expectation::Pulls(Vec::new()),
        ["pulls", pulls @ ..] => {
            Expectation::Pulls(pulls.iter().map(|word| pull(word)).collect::<Result<_, _>>()?)
        }
        ["took", "at-most", most] => {
            Expectation::Took { at_least: Duration::ZERO, at_most: duration(most)? }
        }
        ["took", least, "to", most] => {
            Expectation::Took { at_least: duration(least)?, at_most: duration(most)? }
        }
        _ => return Err(format!("`{line}` is not understood")),
    })
}

fn name_of(phase: &Phase) -> &'static str {
    match phase {
        Phase::Forming => "forming",
        Phase::Active => "active",
        Phase::SwitchingOver { .. } => "switching-over",
        Phase::Sealing(_) => "sealing",
    }
}

fn ensure_equal<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{found:?} was found, and {expected:?} expected"))
}

/// A file that is being played.
struct Play {
    scenario: Scenario,
    /// When something was last done to the cluster, from which `took` counts.
    done_at: Duration,
}

impl Play {
    fn new() -> Self {
        let scenario = Scenario::new();
        Self { done_at: scenario.now, scenario }
    }

    fn each(&mut self, ids: &[u64], change: impl Fn(&mut super::scenario::Actor)) {
        ids.iter().for_each(|id| change(self.scenario.actor(*id)));
    }

    fn take(&mut self, step: &Step) -> Result<(), String> {
        let scenario = &mut self.scenario;
        match step {
            Step::Run(time) => {
                scenario.run(u32::try_from(time.as_millis()).unwrap());
                return Ok(());
            }
            Step::RunUntil { phase, epoch } => return self.run_until(phase, Epoch(*epoch)),
            Step::Expect(expectation) => return self.check(expectation),
            Step::Down(ids) => scenario.down(ids),
            Step::Up(ids) => scenario.up(ids),
            Step::Have(ids, position) => self.each(ids, |actor| actor.position = *position),
            Step::Lag(ids, lag) => {
                let lag_ms = u64::try_from(lag.as_millis()).unwrap();
                self.each(ids, |actor| actor.lag_ms = lag_ms);
            }
            Step::Leads(leader) => {
                scenario
                    .actors
                    .iter_mut()
                    .for_each(|(id, actor)| actor.leads = *leader == Some(id.0));
            }
            Step::Term { node, term } => scenario.actor(*node).term = *term,
            Step::Seals(ids, seals) => self.each(ids, |actor| actor.seals = *seals),
            Step::Drains(ids, drains) => self.each(ids, |actor| actor.drains = *drains),
            Step::GivesTail(ids, gives) => self.each(ids, |actor| actor.has_tail = *gives),
            Step::Failover { to } => {
                let (to, cause) = (to.clone(), "by hand".to_owned());
                let epoch = scenario.shard().epoch;
                let since_ms = 1;
                scenario.order(Change::ForceFailover { shard: SHARD, epoch, to, since_ms, cause });
            }
            Step::Switchover { to } => {
                scenario.order(Change::BeginSwitchover { shard: SHARD, to: to.clone() });
            }
            Step::Cancel => scenario.order(Change::CancelSwitchover { shard: SHARD }),
            Step::ManualDatabase => {
                let failover = FailoverMode::Manual;
                let manual = meridian_directory::Database { failover, ..database("slow", "a") };
                scenario.cluster.databases.insert(DatabaseId([2; 16]), manual);
            }
            Step::NewDirectoryLeader => scenario.new_controller(),
        }
        self.done_at = self.scenario.now;
        Ok(())
    }

    fn run_until(&mut self, phase: &str, epoch: Epoch) -> Result<(), String> {
        let until = self.scenario.now + Duration::from_secs(90);
        loop {
            let shard = self.scenario.shard();
            if (name_of(&shard.phase), shard.epoch) == (phase, epoch) {
                return Ok(());
            }
            if self.scenario.now >= until {
                let (now, text) = (name_of(&shard.phase), self.scenario.text());
                return Err(format!("after 90 s it is {now} in epoch {}: {text}", shard.epoch));
            }
            self.scenario.step();
        }
    }

    fn asked_to_seal(&self) -> Vec<u64> {
        let mut asked = Vec::new();
        for action in &self.scenario.actions {
            if let Action::Seal { node, .. } = action
                && !asked.contains(&node.0)
            {
                asked.push(node.0);
            }
        }
        asked
    }

    fn check(&self, expectation: &Expectation) -> Result<(), String> {
        let scenario = &self.scenario;
        let shard = scenario.shard();
        let report = || shard.reports.last().ok_or("no epoch has ended yet".to_owned());
        match expectation {
            Expectation::Shard { epoch, phase, region } => ensure_equal(
                (shard.epoch.0, name_of(&shard.phase), shard.primary_region.as_str()),
                (*epoch, phase.as_str(), region.as_str()),
            ),
            Expectation::Changes(expected) => {
                let kind = |change: &Change| {
                    let text = format!("{change:?}");
                    text.split_whitespace().next().unwrap_or_default().to_owned()
                };
                ensure_equal(&scenario.changes.iter().map(kind).collect(), expected)
            }
            Expectation::Waits(expected) => ensure_equal(scenario.text().as_str(), expected),
            Expectation::Base(expected) => ensure_equal(report()?.base, *expected),
            Expectation::Lost(expected) => ensure_equal(report()?.loss.transactions, *expected),
            Expectation::Bases(expected) => {
                ensure_equal(&shard.bases.iter().map(|(_, base)| *base).collect(), expected)
            }
            Expectation::Window(expected) => {
                ensure_equal(Duration::from_millis(report()?.loss.window_ms), *expected)
            }
            Expectation::Seals(expected) => ensure_equal(&self.asked_to_seal(), expected),
            Expectation::Voters(expected) => {
                ensure_equal(&shard.voters, &expected.iter().copied().map(NodeId).collect())
            }
            Expectation::Pulls(expected) => {
                let pair = |(node, source): &(u64, u64)| (NodeId(*node), NodeId(*source));
                ensure_equal(scenario.pulls(), expected.iter().map(pair).collect())
            }
            Expectation::Took { at_least, at_most } => {
                let took = scenario.now - self.done_at;
                match (*at_least..=*at_most).contains(&took) {
                    true => Ok(()),
                    false => Err(format!("it took {took:?}")),
                }
            }
        }
    }
}

/// Plays the file called `name`; an error has the number of its line.
fn play(name: &str, text: &str) -> Result<(), String> {
    let lines = text.lines().zip(1..).map(|(line, number)| (number, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let at = |number: usize| move |error: String| format!("{name}:{number}: {error}");
    let steps = lines.map(|(number, line)| Ok((number, step(line).map_err(at(number))?)));
    let steps: Vec<(usize, Step)> = steps.collect::<Result<_, String>>()?;
    if !steps.iter().any(|(_, step)| matches!(step, Step::Expect(_))) {
        return Err(format!("{name}: nothing is expected"));
    }
    let mut play = Play::new();
    steps.iter().try_for_each(|(number, step)| play.take(step).map_err(at(*number)))
}

#[test]
fn every_scenario_file_goes_as_it_says() {
    let files = std::fs::read_dir(Path::new(FOLDER)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(paths.len() >= 10, "only {paths:?}");
    let mut errors = String::new();
    for path in &paths {
        let name = path.file_name().unwrap().to_string_lossy();
        if let Err(error) = play(&name, &std::fs::read_to_string(path).unwrap()) {
            writeln!(errors, "{error}").unwrap();
        }
    }
    assert!(errors.is_empty(), "\n{errors}");
}

#[test]
fn a_typo_in_a_scenario_is_an_error_with_file_and_line() {
    for (text, error) in [
        (
            "# A title.\n\ndwon 1 2 3\nexpect changes none",
            "x.txt:3: `dwon 1 2 3` is not understood",
        ),
        ("down 1 2 8\nexpect changes none", "x.txt:1: there is no node 8"),
        ("down\nexpect changes none", "x.txt:1: which nodes?"),
        ("run 6\nexpect changes none", "x.txt:1: `6` is neither s nor ms"),
        ("run 1s\nexpect changes Seel", "x.txt:2: the controller makes no change Seel"),
        ("run 1s\nexpect base 12", "x.txt:2: `12` is not EPOCH.SEQUENCE"),
        ("expect epoch 1 actve in a", "x.txt:1: there is no phase actve"),
        ("expect epoch 1 active in d", "x.txt:1: there is no region d"),
        ("run 1s", "x.txt: nothing is expected"),
    ] {
        assert_eq!(play("x.txt", text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn a_wrong_expectation_fails_with_file_and_line() {
    let lost = "down 1 2 3\nrun until active in epoch 2\n";
    for (expected, error) in [
        (
            "expect epoch 2 active in c",
            r#"(2, "active", "b") was found, and (2, "active", "c") expected"#,
        ),
        (
            "expect changes Seal Promote",
            r#"["Seal", "Promote", "Activate"] was found, and ["Seal", "Promote"] expected"#,
        ),
        ("expect lost 1", "0 was found, and 1 expected"),
        ("expect voters 4", "{4, 5} was found, and {4} expected"),
        ("expect pulls 7<6", "{} was found, and {(7, 6)} expected"),
        ("expect seals 1", "[1, 2, 3, 4, 5, 6, 7] was found, and [1] expected"),
        ("expect took at-most 1s", "it took 4.5s"),
    ] {
        let found = play("x.txt", &format!("{lost}{expected}")).unwrap_err();
        assert_eq!(found, format!("x.txt:3: {error}"));
    }
    let never = play("x.txt", "run until sealing in epoch 1\nexpect changes none").unwrap_err();
    assert_eq!(never, "x.txt:1: after 90 s it is active in epoch 1: ");
}
