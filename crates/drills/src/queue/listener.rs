//! One listener: its stream, its work, and its reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_checker::queue::{Handed, QueueEvent, Report, ReportAnswer, Verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{QueueWorkload, message_of, pause};
use crate::workload::Gateway;

/// Messages that a listener works on at a time.
const CREDITS: u32 = 20;
/// The silence after which a stream counts as broken.
const SILENCE: Duration = Duration::from_secs(15);
/// The time of a handler; some take longer than a new leader waits until listeners have said what
/// they hold, so that it would hand out what they did not say.
const WORK_MS: std::ops::Range<u64> = 20..200;
const LONG_WORK_MS: u64 = 8000;
const LONG_WORK: f64 = 0.05;
/// One in so many messages refuses to be done, and mostly dies of it.
const REFUSING: u64 = 5;

/// A line of the stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Line {
    Open,
    Message { id: String, due: u64, attempt: u32, payload: String },
    Release { id: String, due: u64 },
    Ping,
    End,
}

/// A message as it was handed out: its id, and when it was due.
type Key = (String, u64);

/// The messages that a listener works on, with the number that each carries.
#[derive(Debug, Default)]
struct HeldMessages(Mutex<BTreeMap<Key, u64>>);

impl HeldMessages {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Listener {
    workload: Arc<QueueWorkload>,
    number: u32,
    id: Uuid,
    gateways: Vec<Arc<Gateway>>,
    held: Arc<HeldMessages>,
    rng: StdRng,
    work: JoinSet<()>,
}

impl Listener {
    pub(super) fn new(
        workload: Arc<QueueWorkload>,
        number: u32,
        gateways: Vec<Arc<Gateway>>,
        seed: u64,
    ) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(u64::from(number)));
        let (id, held, work) = (Uuid::new_v4(), Arc::default(), JoinSet::new());
        Self { workload, number, id, gateways, held, rng, work }
    }

    /// Listens through one gateway after the other, until this is dropped.
    pub(super) async fn run(mut self) {
        let gateways = self.gateways.clone();
        for gateway in gateways.iter().cycle() {
            if gateway.is_up() {
                self.hear(gateway).await;
            }
            pause().await;
        }
    }

    /// One stream, to its end.
    async fn hear(&mut self, gateway: &Gateway) {
        let mut heard_ns = self.workload.record.now_ns();
        let held: Vec<_> =
            self.held.lock().keys().map(|(id, due)| json!({ "id": id, "due": due })).collect();
        let body = json!({ "listener": self.id.to_string(), "credits": CREDITS, "held": held });
        let client = self.workload.client(gateway);
        let opened = tokio::select! {
            opened = client.listen(body.to_string().into()) => opened.ok(),
            () = gateway.lost() => None,
        };
        if let Some(mut lines) = opened {
            loop {
                let line = tokio::select! {
                    line = tokio::time::timeout(SILENCE, lines.next()) => line,
                    () = gateway.lost() => break,
                };
                let Ok(Ok(Some(line))) = line else { break };
                heard_ns = self.workload.record.now_ns();
                match serde_json::from_slice(&line) {
                    Ok(Line::Message { id, due, attempt, payload }) => {
                        self.handed((id, due), attempt, &payload);
                    }
                    Ok(Line::Release { id, due }) => self.released(&(id, due)),
                    Ok(Line::Open | Line::Ping) => {}
                    Ok(Line::End) | Err(_) => break,
                }
            }
        }
        let listener = self.number;
        self.workload.record.push(|_| QueueEvent::Broke { at_ns: heard_ns, listener });
    }

    fn released(&self, key: &Key) {
        if let Some(message) = self.held.lock().remove(key) {
            let listener = self.number;
            let released = |at_ns| QueueEvent::Released { at_ns, listener, message };
            self.workload.record.push(released);
        }
    }

    fn handed(&mut self, key: Key, attempt: u32, payload: &str) {
        let message = message_of(payload).unwrap_or(0);
        let (listener, id) = (self.number, key.0.clone());
        let handed = |at_ns| QueueEvent::Handed(Handed { at_ns, listener, message, id, attempt });
        self.workload.record.push(handed);
        self.held.lock().insert(key.clone(), message);
        let refuses =
            self.rng.random_bool(if message.is_multiple_of(REFUSING) { 0.8 } else { 0.05 });
        let verdict = if refuses { Verdict::Nack } else { Verdict::Ack };
        let is_long = self.rng.random_bool(LONG_WORK);
        let work_ms = if is_long { LONG_WORK_MS } else { self.rng.random_range(WORK_MS) };
        let report = Report {
            listener,
            message,
            attempt,
            verdict,
            invoked_ns: 0,
            completed_ns: None,
            answer: None,
        };
        let (workload, gateways) = (Arc::clone(&self.workload), self.gateways.clone());
        let (held, id) = (Arc::clone(&self.held), self.id);
        while self.work.try_join_next().is_some() {}
        self.work.spawn(async move {
            tokio::time::sleep(Duration::from_millis(work_ms)).await;
            workload.report(id, &key, report, &gateways).await;
            held.lock().remove(&key);
        });
    }
}

impl QueueWorkload {
    async fn report(&self, listener: Uuid, key: &Key, report: Report, gateways: &[Arc<Gateway>]) {
        #[derive(Deserialize)]
        struct Answers {
            results: Vec<ReportAnswer>,
        }
        let verdict = match report.verdict {
            Verdict::Ack => "ack",
            Verdict::Nack => "nack",
        };
        let (id, due) = key;
        let reports = json!([{ "id": id, "due": due, "verdict": verdict }]);
        let body = json!({ "listener": listener.to_string(), "reports": reports });
        let invoked = |invoked_ns| QueueEvent::Report(Report { invoked_ns, ..report });
        let place = self.record.push(invoked);
        let answered = self.post("/kv/queue/report", body, gateways).await;
        let answers = answered.ok().and_then(|body| serde_json::from_slice::<Answers>(&body).ok());
        let answer = answers.and_then(|answers| answers.results.first().copied());
        self.record.complete(place, |event, now_ns| {
            if let QueueEvent::Report(report) = event {
                report.completed_ns = answer.map(|_| now_ns);
                report.answer = answer;
            }
        });
    }
}
