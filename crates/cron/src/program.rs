//! One connected program: its lines, and a task for each of its crons.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{Sink, SinkExt, Stream as Lines, StreamExt};
use meridian_net::Stream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::boot_clock::boot_time;
use crate::lines::{FromProgram, MAX_BYTES, Registration, ToProgram};
use crate::row::Keys;
use crate::rows::{Rows, RowsError};
use crate::schedule::Schedule;
use crate::step::{Event, Now, Step, Warning};
use crate::ticker::Ticker;

/// As in Deno without a socket.
const MAX_CRONS: usize = 100;
const DEFAULT_BACKOFF_MS: [u32; 5] = [100, 1000, 5000, 30_000, 60_000];
const MAX_BACKOFFS: usize = 10;
const MAX_BACKOFF_MS: u32 = 3_600_000;
/// Lines that a program has not taken yet. Each cron has one at most.
const MAX_LINES: usize = 2 * MAX_CRONS;
/// A program that registers more crons than this in vain is let go: each may cost a search through
/// fifty years.
const MAX_REFUSED: usize = MAX_CRONS;
/// Of a text of a program, in a line to it.
const MAX_ECHO: usize = 100;
/// A program that does not take a line for so long is taken to read nothing.
const TAKES: Duration = Duration::from_secs(5);
/// How long it is tried to say that a program is gone. Then the lease of its claim says so.
const LEAVING: Duration = Duration::from_secs(5);

/// The end of a connection on the program's side. Its handlers have ended, too.
struct Gone;

/// The end of a connection on this side. The program goes on with its handlers, so nothing is said of
/// them: their leases run out.
#[derive(Debug, thiserror::Error)]
enum Closed {
    // A browser of this machine could send JSON behind the head of a request.
    #[error("a line is none of crons: {0}")]
    Unknown(#[from] serde_json::Error),
    #[error("a line has more than {MAX_BYTES} bytes")]
    Long,
    #[error("it does not read what it is told")]
    Deaf,
    #[error("{MAX_REFUSED} of its crons were refused")]
    Refused,
}

/// The words of a program for a cron of it.
#[derive(Clone)]
struct Plan {
    schedule: Schedule,
    text: String,
    backoff: Vec<Duration>,
}

/// The way to the task of a cron.
struct Handle {
    /// The ends of its handler.
    ended: mpsc::Sender<bool>,
    plan: watch::Sender<Plan>,
}

/// The crons of one connection.
struct Program {
    rows: Rows,
    lines: mpsc::Sender<String>,
    crons: HashMap<String, Handle>,
    /// Crons that were not taken.
    refused: usize,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Serves a program until it or this process ends: then until no handler runs.
pub(crate) async fn serve(stream: Stream, rows: Rows, stop: CancellationToken) {
    let codec = LinesCodec::new_with_max_length(MAX_BYTES);
    let (mut to, mut from) = Framed::new(stream, codec).split();
    let (lines, mut taken) = mpsc::channel::<String>(MAX_LINES);
    let (crons, tasks) = (HashMap::new(), JoinSet::new());
    let mut program = Program { rows, lines, crons, refused: 0, tasks, stop };
    match program.serve(&mut to, &mut from, &mut taken).await {
        Ok(Gone) => {
            // Each task hears that its program is gone.
            drop(taken);
            program.crons.clear();
            let left = async { while program.tasks.join_next().await.is_some() {} };
            drop(tokio::time::timeout(LEAVING, left).await);
        }
        Err(reason) => tracing::warn!(
            %reason,
            "the connection of a program is closed, which has no crons any more"
        ),
    }
}

impl Program {
    async fn serve(
        &mut self,
        to: &mut (impl Sink<String> + Unpin),
        from: &mut (impl Lines<Item = Result<String, LinesCodecError>> + Unpin),
        taken: &mut mpsc::Receiver<String>,
    ) -> Result<Gone, Closed> {
        let stop = self.stop.clone();
        loop {
            if stop.is_cancelled() && self.tasks.is_empty() {
                return Ok(Gone);
            }
            tokio::select! {
                () = stop.cancelled(), if self.tasks.is_empty() => {}
                line = from.next() => match line {
                    Some(Ok(line)) => self.take(&line).await?,
                    Some(Err(LinesCodecError::MaxLineLengthExceeded)) => return Err(Closed::Long),
                    Some(Err(LinesCodecError::Io(_))) | None => return Ok(Gone),
                },
                Some(line) = taken.recv() => {
                    match tokio::time::timeout(TAKES, to.send(line)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Ok(Gone),
                        Err(_) => return Err(Closed::Deaf),
                    }
                }
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    /// Leaves turns to others between any two crons.
    async fn take(&mut self, line: &str) -> Result<(), Closed> {
        match serde_json::from_str(line)? {
            FromProgram::Register { crons } => {
                for registration in crons {
                    let name = cut(&registration.name);
                    if let Err(reason) = self.register(registration) {
                        let reason = format!("cron `{name}`: {reason}");
                        tracing::warn!(reason, "a cron is refused");
                        let line = ToProgram::RejectNewCrons { reason: &reason }.line();
                        drop(self.lines.try_send(line));
                        self.refused += 1;
                        if self.refused >= MAX_REFUSED {
                            return Err(Closed::Refused);
                        }
                    }
                    tokio::task::yield_now().await;
                }
            }
            FromProgram::Result { name, success } => {
                // A cron runs once at a time, so there is room.
                let cron = self.crons.get(&name);
                if cron.is_some_and(|cron| cron.ended.try_send(success).is_err()) {
                    tracing::debug!(cron = name, "a result that no call waits for");
                }
            }
            FromProgram::RejectAck | FromProgram::Unknown => {}
        }
        Ok(())
    }

    fn register(&mut self, registration: Registration) -> Result<(), String> {
        let Registration { name, schedule, backoff_schedule } = registration;
        let keys =
            Keys::of(&name).ok_or("a name has at most 64 letters, digits, spaces, - and _")?;
        let parsed = Schedule::parse(&schedule)
            .map_err(|cause| format!("schedule `{}`: {cause}", cut(&schedule)))?;
        let backoff = backoff_schedule.unwrap_or_else(|| DEFAULT_BACKOFF_MS.to_vec());
        if backoff.len() > MAX_BACKOFFS || backoff.iter().any(|ms| *ms > MAX_BACKOFF_MS) {
            return Err("a backoff schedule has at most ten pauses of at most an hour".to_owned());
        }
        if self.crons.len() >= MAX_CRONS && !self.crons.contains_key(&name) {
            return Err(format!("a program has at most {MAX_CRONS} crons"));
        }
        tracing::info!(cron = name, schedule, "a program has a cron");
        let backoff = backoff.into_iter().map(|ms| Duration::from_millis(ms.into())).collect();
        let plan = Plan { schedule: parsed, text: schedule, backoff };
        if let Some(cron) = self.crons.get(&name) {
            cron.plan.send_if_modified(|old| {
                let is_new = (&old.text, &old.backoff) != (&plan.text, &plan.backoff);
                if is_new {
                    *old = plan;
                }
                is_new
            });
            return Ok(());
        }
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let ticker =
            Ticker::new(plan.schedule.clone(), plan.backoff.clone(), Uuid::new_v4().to_string());
        let (ended, ends) = mpsc::channel(1);
        let (plan, changes) = watch::channel(plan);
        let cron = Cron {
            name: name.as_str().into(),
            keys,
            rows: self.rows.clone(),
            lines: self.lines.clone(),
            ends,
            changes,
            stop: self.stop.clone(),
            has_stopped: false,
            has_left: false,
            warned: None,
            is_in_trouble: false,
        };
        self.tasks.spawn(cron.run(ticker));
        self.crons.insert(name, Handle { ended, plan });
        Ok(())
    }
}

/// A text of a program as it is shown.
fn cut(text: &str) -> String {
    text.chars().take(MAX_ECHO).collect::<String>().escape_debug().to_string()
}

/// A cron of a program, with what its ticker acts on.
struct Cron {
    name: Arc<str>,
    keys: Keys,
    rows: Rows,
    lines: mpsc::Sender<String>,
    ends: mpsc::Receiver<bool>,
    changes: watch::Receiver<Plan>,
    stop: CancellationToken,
    has_stopped: bool,
    has_left: bool,
    warned: Option<Warning>,
    /// The database did not answer the last question.
    is_in_trouble: bool,
}

impl Cron {
    async fn run(mut self, mut ticker: Ticker) {
        let mut event = Event::Woken;
        loop {
            if self.stop.is_cancelled() {
                self.has_stopped = true;
                ticker.stop();
            }
            if self.changes.has_changed().unwrap_or_default() {
                let plan = self.changes.borrow_and_update().clone();
                ticker.change(plan.schedule, plan.backoff);
            }
            let step = ticker.step(now(), event);
            self.warn(ticker.warning());
            event = match step {
                Step::Read => {
                    let read = self.rows.read(&self.keys).await;
                    self.answer(read.map(Event::Read))
                }
                Step::Write(write) => {
                    let written = self.rows.write(&self.keys, &write).await;
                    self.answer(written)
                }
                Step::Invoke => {
                    tracing::debug!(cron = &*self.name, "a tick of a cron runs here");
                    // A result that is there already is that of an earlier call.
                    while self.ends.try_recv().is_ok() {}
                    let line = ToProgram::Invoke { name: &self.name }.line();
                    // A program that is gone is told of by the next wait.
                    drop(self.lines.send(line).await);
                    Event::Woken
                }
                Step::Wait(wait) => self.wait(wait).await,
                Step::End => return,
            };
        }
    }

    async fn wait(&mut self, wait: Duration) -> Event {
        tokio::select! {
            () = tokio::time::sleep(wait) => Event::Woken,
            ended = self.ends.recv(), if !self.has_left => match ended {
                Some(success) => Event::Ended { success },
                None => {
                    self.has_left = true;
                    Event::Left
                }
            },
            () = self.stop.cancelled(), if !self.has_stopped => Event::Woken,
            Ok(()) = self.changes.changed() => {
                self.changes.mark_changed();
                Event::Woken
            }
        }
    }

    fn warn(&mut self, warning: Option<Warning>) {
        if let (true, Some(warning)) = (warning != self.warned, warning) {
            tracing::warn!(cron = &*self.name, "{warning}");
        }
        self.warned = warning;
    }

    /// One warning for a time without answers.
    fn answer(&mut self, answer: Result<Event, RowsError>) -> Event {
        let was_in_trouble = std::mem::replace(&mut self.is_in_trouble, answer.is_err());
        let cron = &*self.name;
        match answer {
            Ok(event) => {
                if was_in_trouble {
                    tracing::info!(cron, "the row of a cron can be had again");
                }
                event
            }
            Err(error) => {
                if was_in_trouble {
                    tracing::debug!(cron, %error, "the row of a cron cannot be had");
                } else {
                    tracing::warn!(cron, %error, "the row of a cron cannot be had, trying again");
                }
                Event::NoAnswer
            }
        }
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX), monotonic: boot_time() }
}
