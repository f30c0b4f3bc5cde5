//! One connected program: its lines, and a task for each of its crons.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{SinkExt, StreamExt};
use meridian_net::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::lines::{FromProgram, MAX_BYTES, Registration, ToProgram};
use crate::row::Keys;
use crate::rows::Rows;
use crate::schedule::Schedule;
use crate::step::{Event, Now, Step};
use crate::ticker::Ticker;

/// As in Deno without a socket.
const MAX_CRONS: usize = 100;
const DEFAULT_BACKOFF_MS: [u32; 5] = [100, 1000, 5000, 30_000, 60_000];
const MAX_BACKOFFS: usize = 10;
const MAX_BACKOFF_MS: u32 = 3_600_000;
/// Lines that a program has not taken yet. Each cron has one at most.
const MAX_LINES: usize = 2 * MAX_CRONS;
/// How long it is tried to say that a program is gone. Then the lease of its claim says so.
const LEAVING: Duration = Duration::from_secs(5);

/// The ends of a cron's handler.
type Ended = mpsc::Sender<bool>;

/// The crons of one connection.
struct Program {
    rows: Rows,
    lines: mpsc::Sender<String>,
    crons: HashMap<String, Ended>,
    tasks: JoinSet<()>,
    begins: Instant,
}

/// Serves a program until it or this process ends.
pub(crate) async fn serve(stream: Stream, rows: Rows, stop: CancellationToken) {
    let codec = LinesCodec::new_with_max_length(MAX_BYTES);
    let (mut to, mut from) = Framed::new(stream, codec).split();
    let (lines, mut taken) = mpsc::channel::<String>(MAX_LINES);
    let mut program = Program {
        rows,
        lines,
        crons: HashMap::new(),
        tasks: JoinSet::new(),
        begins: Instant::now(),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            line = from.next() => match line {
                Some(Ok(line)) => if let Err(error) = program.take(&line) {
                    // A browser of this machine could send JSON behind the head of a request.
                    tracing::warn!(%error, "a connection that speaks no crons is closed");
                    break;
                },
                Some(Err(error)) => {
                    tracing::warn!(%error, "the connection of a program with crons is broken");
                    break;
                }
                None => break,
            },
            Some(line) = taken.recv() => if to.send(line).await.is_err() { break },
            Some(_) = program.tasks.join_next() => {}
        }
    }
    // Each task hears that its program is gone.
    drop(taken);
    program.crons.clear();
    while program.tasks.join_next().await.is_some() {}
}

impl Program {
    fn take(&mut self, line: &str) -> Result<(), serde_json::Error> {
        match serde_json::from_str(line)? {
            FromProgram::Register { crons } => {
                for registration in crons {
                    let name = registration.name.clone();
                    if let Err(reason) = self.register(registration) {
                        let reason = format!("cron `{}`: {reason}", name.escape_debug());
                        tracing::warn!(reason, "a cron is refused");
                        let line = ToProgram::RejectNewCrons { reason: &reason }.line();
                        drop(self.lines.try_send(line));
                    }
                }
            }
            FromProgram::Result { name, success } => {
                // A cron runs once at a time, so there is room.
                if self.crons.get(&name).is_some_and(|ended| ended.try_send(success).is_err()) {
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
            .map_err(|cause| format!("schedule `{}`: {cause}", schedule.escape_debug()))?;
        let backoff = backoff_schedule.unwrap_or_else(|| DEFAULT_BACKOFF_MS.to_vec());
        if backoff.len() > MAX_BACKOFFS || backoff.iter().any(|ms| *ms > MAX_BACKOFF_MS) {
            return Err("a backoff schedule has at most ten pauses of at most an hour".to_owned());
        }
        if self.crons.len() >= MAX_CRONS && !self.crons.contains_key(&name) {
            return Err(format!("a program has at most {MAX_CRONS} crons"));
        }
        tracing::info!(cron = name, schedule, "a program has a cron");
        let backoff = backoff.into_iter().map(|ms| Duration::from_millis(ms.into())).collect();
        let (ended, ends) = mpsc::channel(1);
        let cron = Cron {
            name: name.as_str().into(),
            keys,
            rows: self.rows.clone(),
            lines: self.lines.clone(),
            ends,
            begins: self.begins,
        };
        self.tasks.spawn(cron.run(Ticker::new(parsed, backoff, Uuid::new_v4().to_string())));
        // A cron of this name that the program had before ends.
        self.crons.insert(name, ended);
        Ok(())
    }
}

/// A cron of a program, with what its ticker acts on.
struct Cron {
    name: Arc<str>,
    keys: Keys,
    rows: Rows,
    lines: mpsc::Sender<String>,
    ends: mpsc::Receiver<bool>,
    begins: Instant,
}

impl Cron {
    async fn run(mut self, mut ticker: Ticker) {
        let mut event = Event::Woken;
        let mut has_left = None;
        loop {
            if has_left.is_some_and(|since: Instant| since.elapsed() > LEAVING) {
                return;
            }
            event = match ticker.step(self.now(), event) {
                Step::Read => self.read().await,
                Step::Write(write) => {
                    let written = self.rows.write(&self.keys, &write).await;
                    written.unwrap_or_else(|error| self.no_answer(&error))
                }
                Step::Invoke => {
                    tracing::debug!(cron = &*self.name, "a tick of a cron runs here");
                    let line = ToProgram::Invoke { name: &self.name }.line();
                    // A program that is gone is told of by the next wait.
                    drop(self.lines.send(line).await);
                    Event::Woken
                }
                Step::Wait(wait) if has_left.is_some() => {
                    tokio::time::sleep(wait).await;
                    Event::Woken
                }
                Step::Wait(wait) => match tokio::time::timeout(wait, self.ends.recv()).await {
                    Err(_) => Event::Woken,
                    Ok(Some(success)) => Event::Ended { success },
                    Ok(None) => {
                        has_left = Some(Instant::now());
                        Event::Left
                    }
                },
                Step::End => return,
            };
        }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Now { wall_ms, monotonic: self.begins.elapsed() }
    }

    async fn read(&self) -> Event {
        match self.rows.read(&self.keys).await {
            Ok(sight) => Event::Read(sight),
            Err(error) => self.no_answer(&error),
        }
    }

    fn no_answer(&self, error: &crate::rows::RowsError) -> Event {
        tracing::warn!(cron = &*self.name, %error, "the row of a cron cannot be had, trying again");
        Event::NoAnswer
    }
}
