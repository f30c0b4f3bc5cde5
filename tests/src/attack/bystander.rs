//! A harmless client, with a database and a token of its own: whether it is answered, and how soon.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_types::DatabaseId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kv_connect::CallError;

/// The pause between the requests of one of its tasks: its load is small.
const PAUSE: Duration = Duration::from_millis(100);
/// The time-out of `@deno/kv`, which is longer than a gateway tries.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Requests over one connection: the client has to connect anew, too.
const REQUESTS_OF_A_CONNECTION: u64 = 25;
/// Failures kept, in the order of their requests.
const FAILURES_KEPT: usize = 5;

/// The latencies of the answered requests, and the errors of the others.
#[derive(Debug, Default)]
pub struct Seen {
    pub reads: Latencies,
    pub writes: Latencies,
    pub failures: Vec<String>,
    pub failed: u64,
}

#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency that so many of each thousand do not exceed. Zero if there were none.
    pub fn quantile(&self, per_mille: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
        sorted.get(at).copied().unwrap_or_default()
    }

    pub fn longest(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }
}

impl Seen {
    fn failed(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(what);
        }
    }
}

/// A client that sends requests through every gateway until it is stopped.
pub struct Bystander {
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Bystander {
    pub fn start(gateways: &[String], database: DatabaseId, token: &str) -> Self {
        let (seen, stop, mut tasks) =
            (Arc::<Mutex<Seen>>::default(), CancellationToken::new(), JoinSet::new());
        for at in 0..gateways.len() {
            // Reads through the next gateway the key that it wrote through this one.
            let base = |at: usize| format!("http://{}", gateways[at % gateways.len()]);
            let task = Task {
                bases: [base(at), base(at + 1)],
                database,
                token: token.to_owned(),
                key: format!("bystander {at}"),
                seen: Arc::clone(&seen),
            };
            let stop = stop.clone();
            tasks.spawn(async move { task.run(stop).await });
        }
        Self { seen, stop, tasks }
    }

    /// Stops the client, after the requests in progress, and returns its results.
    pub async fn stop(mut self) -> Seen {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Connects anew if there was no connection within two seconds, as every client does. The time
/// counts.
async fn connected<T, F>(request: impl Fn() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let began = Instant::now();
    loop {
        match request().await {
            Err(CallError::NotSent) if began.elapsed() < TIMEOUT => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

struct Task {
    bases: [String; 2],
    database: DatabaseId,
    token: String,
    key: String,
    seen: Arc<Mutex<Seen>>,
}

impl Task {
    async fn run(self, stop: CancellationToken) {
        let client = |base: &String| {
            crate::kv_connect::client(base.clone(), self.database)
                .with_token(&*self.token)
                .with_timeout(TIMEOUT)
        };
        let [mut writer, mut reader] = self.bases.each_ref().map(client);
        for number in 1.. {
            if stop.is_cancelled() {
                return;
            }
            if number % REQUESTS_OF_A_CONNECTION == 0 {
                [writer, reader] = self.bases.each_ref().map(client);
            }
            let value = format!("{number}");
            let began = Instant::now();
            let wrote = connected(|| writer.set(self.key.as_bytes(), value.as_bytes())).await;
            self.note(|seen| match &wrote {
                Ok(_) => seen.writes.0.push(began.elapsed()),
                Err(error) => seen.failed(format!("a write through {}: {error}", writer.base())),
            });
            tokio::time::sleep(PAUSE).await;
            let began = Instant::now();
            let read = connected(|| reader.get(self.key.as_bytes())).await;
            self.note(|seen| match &read {
                Ok(Some(entry)) if entry.value == value || wrote.is_err() => {
                    seen.reads.0.push(began.elapsed())
                }
                Ok(other) => {
                    seen.failed(format!("a read found {other:?} where {value} was acknowledged"))
                }
                Err(error) => seen.failed(format!("a read through {}: {error}", reader.base())),
            });
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
