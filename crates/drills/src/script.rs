//! A fault as a script over time.
//!
//! ```text
//! title: One data center of the primary region loses its power
//! about: The purpose of the drill, in any number of such lines.
//! hold: 8s
//! clients-lost: none
//!
//! +0s   power-off leader
//! +hold heal
//! ```
//!
//! A step begins so long after the end of the step before; `hold` is the duration of a fault, which
//! a run may override. The verbs are those of [`Action`], the machines those of
//! [`Selector`], joined by `+`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::cluster::Trust;
use crate::roles::Selector;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub title: String,
    pub about: String,
    /// The default duration of the fault.
    pub hold: Duration,
    /// The regions whose clients are lost with their data centers, and not judged.
    pub clients_lost: ClientsLost,
    /// Writes per second beside the recorded clients.
    pub pressure: Option<u32>,
    /// Messages per second, with listeners in every region.
    pub messages: Option<u32>,
    /// The longest pause of clients between two operations, instead of the usual one.
    pub think: Option<Duration>,
    /// The authority of the cluster's certificates.
    pub trust: Trust,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientsLost {
    None,
    /// The clients of the primary region.
    Primary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// After the end of the step before.
    pub after: Delay,
    pub action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    Hold,
    Fixed(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Links go silent, then the processes are killed: no peer is notified.
    PowerOff(Vec<Selector>),
    /// SIGKILL: the kernel closes the connections.
    Kill(Vec<Selector>),
    /// SIGTERM, and waits for the end.
    Stop(Vec<Selector>),
    /// Starts the machines that are down.
    Start(Vec<Selector>),
    /// SIGSTOP.
    Pause(Vec<Selector>),
    /// SIGCONT.
    Resume(Vec<Selector>),
    /// Stops, starts and awaits each machine in turn.
    Roll(Vec<Selector>),
    /// `from`: both directions; `to`: only the bytes that the first machines send.
    Cut {
        parts: Vec<Selector>,
        others: Vec<Selector>,
        one_way: bool,
    },
    Throttle {
        parts: Vec<Selector>,
        others: Vec<Selector>,
        bytes_per_second: u64,
    },
    /// Starts the machines that are down, resumes the paused ones, heals all links.
    Heal,
    Switch(Target),
    /// The cluster's own authority is replaced by another one.
    RotateAuthority,
    /// Databases are created in the primary region, each in a shard of its own, until there are so
    /// many shards.
    Shards(u32),
    Await(Condition),
    /// The measured time begins here, and not earlier.
    Measure,
}

/// The target of a switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The first region that was not the primary when the drill began.
    Replica,
    /// The region that was the primary when the drill began.
    Home,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Every node's gateway answers strong reads.
    Ready,
    /// All nodes have applied the same state.
    CaughtUp,
    /// Every shard is active in another region than the first primary, in less than 10 seconds.
    Moved,
}

/// An error in a script, with its line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct InvalidScript {
    pub line: usize,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("`{0}` is no duration: `10s`, `500ms` or `hold`")]
    Duration(String),
    #[error(
        "`{0}` is no header: title, about, hold, clients-lost, pressure, messages, think, authority"
    )]
    Header(String),
    #[error("a header behind the first step")]
    LateHeader,
    #[error("`{0}` is no verb")]
    Verb(String),
    #[error("`{0}` names no machine: {list}", list = Selector::ALL.map(Selector::name).join(", "))]
    Selector(String),
    #[error("`{verb}` is written as `{usage}`")]
    Usage { verb: &'static str, usage: &'static str },
    #[error("`{value}` is not what `{header}` takes: {expected}")]
    Value { header: &'static str, value: String, expected: &'static str },
    #[error("a script has a title and a step")]
    Empty,
}

impl Script {
    /// The delay of a step.
    pub fn delay(&self, delay: Delay) -> Duration {
        match delay {
            Delay::Hold => self.hold,
            Delay::Fixed(fixed) => fixed,
        }
    }
}

impl FromStr for Script {
    type Err = InvalidScript;

    fn from_str(text: &str) -> Result<Self, InvalidScript> {
        let mut script = Self {
            title: String::new(),
            about: String::new(),
            hold: Duration::from_secs(8),
            clients_lost: ClientsLost::None,
            pressure: None,
            messages: None,
            think: None,
            trust: Trust::Files,
            steps: Vec::new(),
        };
        let mut lines = 0;
        for (number, line) in (1..).zip(text.lines()) {
            lines = number;
            let line = line.split('#').next().unwrap_or_default().trim();
            let read = match line.strip_prefix('+') {
                _ if line.is_empty() => Ok(()),
                Some(step) => read_step(step).map(|step| script.steps.push(step)),
                None if script.steps.is_empty() => script.read_header(line),
                None => Err(Fault::LateHeader),
            };
            read.map_err(|fault| InvalidScript { line: number, fault })?;
        }
        if script.title.is_empty() || script.steps.is_empty() {
            return Err(InvalidScript { line: lines, fault: Fault::Empty });
        }
        Ok(script)
    }
}

impl Script {
    fn read_header(&mut self, line: &str) -> Result<(), Fault> {
        let (header, value) = line.split_once(':').ok_or_else(|| Fault::Header(line.to_owned()))?;
        let value = value.trim();
        match header.trim() {
            "title" => value.clone_into(&mut self.title),
            "about" => {
                let space = if self.about.is_empty() { "" } else { " " };
                self.about.push_str(&format!("{space}{value}"));
            }
            "hold" => self.hold = duration(value)?,
            "think" => self.think = Some(duration(value)?),
            "clients-lost" => {
                self.clients_lost = match value {
                    "none" => ClientsLost::None,
                    "primary" => ClientsLost::Primary,
                    _ => {
                        let value = value.to_owned();
                        return Err(Fault::Value {
                            header: "clients-lost",
                            value,
                            expected: "none or primary",
                        });
                    }
                }
            }
            "authority" => {
                self.trust = match value {
                    "own" => Trust::Founded,
                    "throw-away" => Trust::Files,
                    _ => {
                        let value = value.to_owned();
                        let expected = "own or throw-away";
                        return Err(Fault::Value { header: "authority", value, expected });
                    }
                }
            }
            "pressure" => self.pressure = Some(rate("pressure", value, "writes per second")?),
            "messages" => self.messages = Some(rate("messages", value, "messages per second")?),
            other => return Err(Fault::Header(other.to_owned())),
        }
        Ok(())
    }
}

fn rate(header: &'static str, value: &str, expected: &'static str) -> Result<u32, Fault> {
    value.parse().map_err(|_| Fault::Value { header, value: value.to_owned(), expected })
}

/// `10s`, `500ms`.
fn duration(text: &str) -> Result<Duration, Fault> {
    let not = || Fault::Duration(text.to_owned());
    let (number, unit_ms) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').ok_or_else(not)?, 1000),
    };
    let number: u32 = number.parse().map_err(|_| not())?;
    Ok(Duration::from_millis(u64::from(number) * unit_ms))
}

fn read_step(step: &str) -> Result<Step, Fault> {
    let (after, rest) = step.split_once(char::is_whitespace).unwrap_or((step, ""));
    let after = if after == "hold" { Delay::Hold } else { Delay::Fixed(duration(after)?) };
    let (verb, rest) = rest.trim().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
    Ok(Step { after, action: action(verb, rest.trim())? })
}

fn action(verb: &str, rest: &str) -> Result<Action, Fault> {
    let nothing = |action, verb, usage| {
        if rest.is_empty() { Ok(action) } else { Err(Fault::Usage { verb, usage }) }
    };
    match verb {
        "nothing" => nothing(Action::Nothing, "nothing", "nothing"),
        "heal" => nothing(Action::Heal, "heal", "heal"),
        "measure" => nothing(Action::Measure, "measure", "measure"),
        "rotate-authority" => {
            nothing(Action::RotateAuthority, "rotate-authority", "rotate-authority")
        }
        "power-off" => Ok(Action::PowerOff(parts(rest)?)),
        "kill" => Ok(Action::Kill(parts(rest)?)),
        "stop" => Ok(Action::Stop(parts(rest)?)),
        "start" => Ok(Action::Start(parts(rest)?)),
        "pause" => Ok(Action::Pause(parts(rest)?)),
        "resume" => Ok(Action::Resume(parts(rest)?)),
        "roll" => Ok(Action::Roll(parts(rest)?)),
        "cut" => cut(rest),
        "throttle" => throttle(rest),
        "switch" => match rest {
            "to replica" => Ok(Action::Switch(Target::Replica)),
            "to home" => Ok(Action::Switch(Target::Home)),
            _ => {
                Err(Fault::Usage { verb: "switch", usage: "switch to replica, or switch to home" })
            }
        },
        "await" => match rest {
            "ready" => Ok(Action::Await(Condition::Ready)),
            "caught-up" => Ok(Action::Await(Condition::CaughtUp)),
            "moved" => Ok(Action::Await(Condition::Moved)),
            _ => Err(Fault::Usage {
                verb: "await",
                usage: "await ready, await caught-up, or await moved",
            }),
        },
        "shards" => match rest.parse() {
            Ok(count) => Ok(Action::Shards(count)),
            Err(_) => Err(Fault::Usage { verb: "shards", usage: "shards NUMBER" }),
        },
        other => Err(Fault::Verb(other.to_owned())),
    }
}

fn cut(rest: &str) -> Result<Action, Fault> {
    let (one_way, split) = match rest.split_once(" from ") {
        Some(split) => (false, Some(split)),
        None => (true, rest.split_once(" to ")),
    };
    let usage = "cut PARTS from PARTS, or cut PARTS to PARTS";
    let (from, to) = split.ok_or(Fault::Usage { verb: "cut", usage })?;
    Ok(Action::Cut { parts: parts(from)?, others: parts(to)?, one_way })
}

fn throttle(rest: &str) -> Result<Action, Fault> {
    let usage =
        Fault::Usage { verb: "throttle", usage: "throttle PARTS from PARTS at BYTES_PER_SECOND" };
    let split =
        rest.split_once(" from ").and_then(|(parts, rest)| Some((parts, rest.split_once(" at ")?)));
    let Some((throttled, (others, rate))) = split else { return Err(usage) };
    let bytes_per_second = rate.trim().parse().map_err(|_| usage)?;
    Ok(Action::Throttle { parts: parts(throttled)?, others: parts(others)?, bytes_per_second })
}

fn parts(text: &str) -> Result<Vec<Selector>, Fault> {
    let part = |name: &str| {
        let found = Selector::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| Fault::Selector(name.to_owned()))
    };
    text.split('+').map(str::trim).map(part).collect()
}

struct Joined<'a>(&'a [Selector]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(|part| part.name()).collect::<Vec<_>>().join(" + "))
    }
}

impl fmt::Display for Action {
    /// In the notation of scripts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::RotateAuthority => f.write_str("rotate-authority"),
            Self::PowerOff(parts) => write!(f, "power-off {}", Joined(parts)),
            Self::Kill(parts) => write!(f, "kill {}", Joined(parts)),
            Self::Stop(parts) => write!(f, "stop {}", Joined(parts)),
            Self::Start(parts) => write!(f, "start {}", Joined(parts)),
            Self::Pause(parts) => write!(f, "pause {}", Joined(parts)),
            Self::Resume(parts) => write!(f, "resume {}", Joined(parts)),
            Self::Roll(parts) => write!(f, "roll {}", Joined(parts)),
            Self::Cut { parts, others, one_way } => {
                let word = if *one_way { "to" } else { "from" };
                write!(f, "cut {} {word} {}", Joined(parts), Joined(others))
            }
            Self::Throttle { parts, others, bytes_per_second } => {
                write!(
                    f,
                    "throttle {} from {} at {bytes_per_second}",
                    Joined(parts),
                    Joined(others)
                )
            }
            Self::Heal => f.write_str("heal"),
            Self::Switch(Target::Replica) => f.write_str("switch to replica"),
            Self::Switch(Target::Home) => f.write_str("switch to home"),
            Self::Await(Condition::Ready) => f.write_str("await ready"),
            Self::Await(Condition::CaughtUp) => f.write_str("await caught-up"),
            Self::Await(Condition::Moved) => f.write_str("await moved"),
            Self::Shards(count) => write!(f, "shards {count}"),
            Self::Measure => f.write_str("measure"),
        }
    }
}

#[cfg(test)]
mod tests;
