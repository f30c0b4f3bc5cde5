//! One cell: an operation, an HTTP version, a number of connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_kv_client::Endpoint;
use meridian_kv_client::Link;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::cpu::used_between;
use crate::error::BenchError;
use crate::options::{HttpVersion, Operation, Options};
use crate::random::Random;
use crate::report::CellReport;
use crate::schedule::{OpenLoop, Schedule};
use crate::session::Destination;
use crate::tally::Tally;
use crate::work::Work;
use crate::worker::{Window, Worker};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub operation: Operation,
    pub http: HttpVersion,
    pub connections: u16,
}

impl Cell {
    /// All cells of a run, in the order in which they are measured.
    pub fn all(options: &Options) -> Vec<Self> {
        let mut cells = Vec::new();
        for http in options.http_versions() {
            for &operation in &options.operations {
                for &connections in &options.connections {
                    cells.push(Self { operation, http, connections });
                }
            }
        }
        cells
    }

    /// The number of TCP connections for the cell's requests.
    fn tcp_connections(self, options: &Options) -> u16 {
        match self.http {
            HttpVersion::H1 => self.connections,
            HttpVersion::H2 => self.connections.min(options.h2_connections),
        }
    }

    /// Takes the warm-up, the duration, and at most the time-out of the requests then in flight.
    /// `None` if stopped before the measured time began.
    pub async fn measure(
        self,
        options: &Options,
        destination: &Destination,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Option<CellReport>, BenchError> {
        let work = Work::new(self.operation, options, destination, self.http)?;
        let links = self.open_links(options, &destination.endpoint).await?;
        let mut total = Tally::new()?;

        let start = Instant::now();
        let begin = start + options.warmup;
        let window = Window { begin, end: begin + options.duration };
        let processes = options.cpu_of.clone();
        let cpu = (!processes.is_empty()).then(|| {
            tokio::spawn(async move { used_between(&processes, window.begin, window.end).await })
        });
        let open = options
            .rate
            .map(|rate| OpenLoop::start(Schedule { start, rate }, window.end))
            .transpose()?;
        let mut workers = JoinSet::new();
        let mut cancels = Vec::with_capacity(links.len());
        for (lane, link) in (0..).zip(links) {
            let (cancel, cancelled) = oneshot::channel();
            cancels.push(cancel);
            let random = Random::new(options.seed, lane);
            let worker = Worker { link, work: work.clone(), random, window, open: open.clone() };
            workers.spawn(worker.run(Tally::new()?, cancelled));
        }

        let mut ended = window.end;
        loop {
            tokio::select! {
                joined = workers.join_next() => match joined {
                    Some(Ok(tally)) => total.merge(tally)?,
                    Some(Err(error)) => return Err(BenchError::Unsuccessful(format!("a worker failed: {error}"))),
                    None => break,
                },
                _ = stopped.wait_for(|stopped| *stopped), if !cancels.is_empty() => {
                    ended = ended.min(Instant::now());
                    cancels.clear();
                }
            }
        }
        if let Some(open) = open {
            for due in open.close(ended).filter(|due| *due >= window.begin) {
                total.unsent(ended - due);
            }
        }
        let cpu_ns = match cpu {
            Some(cpu) if ended < window.end => {
                cpu.abort();
                None
            }
            Some(cpu) => {
                Some(cpu.await.map_err(|error| BenchError::Unsuccessful(error.to_string()))??)
            }
            None => None,
        };
        let measured = ended.saturating_duration_since(window.begin);
        Ok((!measured.is_zero()).then(|| self.report(options, &total, measured, cpu_ns)))
    }

    /// All links, opened at the same time: connecting across a WAN takes a while.
    async fn open_links(
        self,
        options: &Options,
        endpoint: &Endpoint,
    ) -> Result<Vec<Link>, BenchError> {
        let endpoint = Arc::new(endpoint.clone());
        let groups = self.tcp_connections(options);
        let mut opening = JoinSet::new();
        for group in 0..groups {
            let extra = u16::from(group < self.connections % groups);
            let count = usize::from(self.connections / groups + extra);
            let (endpoint, http, timeout) = (Arc::clone(&endpoint), self.http, options.timeout);
            opening.spawn(async move { Link::open_shared(&endpoint, http, count, timeout).await });
        }
        let mut links = Vec::with_capacity(usize::from(self.connections));
        while let Some(opened) = opening.join_next().await {
            let opened = opened
                .map_err(|error| BenchError::Unsuccessful(format!("connecting failed: {error}")))?;
            links.extend(opened?);
        }
        Ok(links)
    }

    fn report(
        self,
        options: &Options,
        total: &Tally,
        measured: Duration,
        cpu_ns: Option<u64>,
    ) -> CellReport {
        let throughput = total.operations as f64 / measured.as_secs_f64();
        CellReport {
            operation: self.operation,
            http: self.http,
            connections: self.connections,
            tcp_connections: self.tcp_connections(options),
            measured_s: measured.as_secs_f64(),
            operations: total.operations,
            throughput_ops_per_s: (throughput * 10.0).round() / 10.0,
            errors: total.errors,
            first_error: total.first_error.clone(),
            p50_ms: total.quantile_ms(0.5),
            p99_ms: total.quantile_ms(0.99),
            max_ms: total.max_ms(),
            conflicts: total.conflicts,
            unsent: total.unsent,
            cpu_us_per_operation: cpu_ns
                .filter(|_| total.operations > 0)
                .map(|ns| (ns as f64 / 100.0 / total.operations as f64).round() / 10.0),
        }
    }
}
