//! One run of a drill, from the start of its cluster to its report.

mod clients;
mod judge;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_checker::History;
use meridian_checker::queue::QueueHistory;
use meridian_wan::WanPlan;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, ClusterError, ClusterOptions};
use crate::drill::Drill;
use crate::gap::ms;
use crate::kv_connect::DEFAULT_DATABASE;
use crate::loss::reported_at_most;
use crate::network::Machine;
use crate::operator::{Inspection, OperatorError};
use crate::ping::Pings;
use crate::poll::{self, Timeout};
use crate::queue::QueueClients;
use crate::report::{Mark, MarkKind, RunReport};
use crate::roles::{NoSuchRole, Roles};
use crate::script::Condition;
use crate::watch::{Watch, leading_since_ms};
use crate::workload::{Pressure, Workload};

use clients::Gateways;
use judge::Evidence;

/// A cluster that has just started answers unusually slowly.
const WARM_UP: Duration = Duration::from_secs(2);
/// The time for measuring the usual latencies.
const BASELINE: Duration = Duration::from_secs(4);
/// A cluster that has just started may transfer its leadership to the preferred node.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(40);
/// The time that is measured after the last step.
const TAIL: Duration = Duration::from_secs(3);
/// A client waits for an answer no longer than this, and so ends by then.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);
const QUIET_DEADLINE: Duration = Duration::from_secs(60);
/// Longer than an attempt inside the cluster.
const QUIESCENT: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(2);
/// Old voters need a moment to report their batches.
const CLAIMS_DEADLINE: Duration = Duration::from_secs(20);

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// The `meridian` program.
    pub program: PathBuf,
    pub topology: Vec<usize>,
    pub wan: WanPlan,
    /// Duration of a fault, instead of the script's.
    pub hold: Option<Duration>,
    /// Keep the cluster's folder.
    pub keep: bool,
    pub seed: u64,
}

/// The reason why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Selector(#[from] NoSuchRole),
    #[error(transparent)]
    Timeout(#[from] Timeout),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("the network cannot be measured")]
    Ping(#[source] std::io::Error),
    #[error("there is no region to switch to")]
    NoTarget,
    #[error("{step}")]
    Step { step: String, source: Box<StageError> },
    /// Adds the folder of the logs.
    #[error("the drill did not come to its end; the logs and data of its cluster are in {}", folder.display())]
    Kept { source: Box<StageError>, folder: PathBuf },
}

/// A cluster with its clients, in the middle of a drill.
pub struct Stage<'a> {
    drill: &'a Drill,
    options: &'a StageOptions,
    say: &'a (dyn Fn(&str) + Sync),
    cluster: Cluster,
    gateways: Gateways,
    workload: Arc<Workload>,
    roles: Roles,
    marks: Vec<Mark>,
    /// The beginning of the measured time.
    fault_at: Duration,
    /// Machines that were started, and that clients do not use yet.
    returning: Vec<Machine>,
}

impl Stage<'_> {
    /// Runs a drill once, and removes its cluster. Progress goes to `say`.
    ///
    /// # Errors
    /// When the run did not come to its end: it then says nothing about the promises, and the
    /// cluster's folder stays.
    pub async fn run(
        drill: &Drill,
        run: usize,
        options: &StageOptions,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<RunReport, StageError> {
        let began = Instant::now();
        let mut cluster = Cluster::start(ClusterOptions {
            program: options.program.clone(),
            topology: options.topology.clone(),
            log_retention_mb: None,
            max_memory_mb: None,
            wan: Some(options.wan.clone()),
            trust: drill.script.trust,
        })
        .await?;
        if options.keep {
            say(&format!("the cluster is in {}", cluster.keep_folder().display()));
        }
        let prepared = async {
            let mut gateways = Gateways::default();
            for region in 0..cluster.regions() {
                let stateless = cluster.start_gateway(region).await?;
                gateways.add(&cluster, region, stateless)?;
            }
            Ok::<_, ClusterError>((gateways, Roles::of(&cluster, DEFAULT_DATABASE).await?))
        };
        let (gateways, roles) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => return Err(kept(&mut cluster, error.into())),
        };
        say(&format!(
            "{} nodes and {} gateways are ready after {:.1} s; node {} leads",
            cluster.node_ids().len(),
            cluster.regions(),
            began.elapsed().as_secs_f64(),
            roles.leader
        ));
        let workload = Workload::new(DEFAULT_DATABASE);
        let mut stage = Stage {
            drill,
            options,
            say,
            cluster,
            gateways,
            workload,
            roles,
            marks: Vec::new(),
            fault_at: Duration::ZERO,
            returning: Vec::new(),
        };
        match stage.play(run).await {
            Ok(report) => Ok(report),
            Err(error) => Err(kept(&mut stage.cluster, error)),
        }
    }

    async fn play(&mut self, run: usize) -> Result<RunReport, StageError> {
        let origin = self.workload.origin();
        let watch = Watch::start(self.cluster.operator().clone(), self.roles.shard, origin);
        let far = |region| {
            (region, self.options.wan.profile(self.roles.home, region).unwrap_or_default())
        };
        let pings =
            Pings::start((0..self.cluster.regions()).map(far)).await.map_err(StageError::Ping)?;
        let mut clients = JoinSet::new();
        let think = self.drill.script.think;
        for profile in
            self.gateways.profiles(self.roles.home, CLIENT_TIMEOUT, think, self.options.seed)
        {
            clients.spawn(Arc::clone(&self.workload).run_client(profile));
        }
        let press = |per_second| {
            self.gateways.pressure(self.roles.home, self.roles.leader, per_second, origin)
        };
        let pressure = self.drill.script.pressure.map(press);
        let queue = self.drill.script.messages.map(|per_second| {
            let (regions, seed) = (self.gateways.by_region(), self.options.seed);
            QueueClients::start(DEFAULT_DATABASE, &regions, per_second, origin, seed)
        });
        let warm_at = self.warm_up(&watch).await?;
        // The leader may have changed since.
        self.roles = Roles::of(&self.cluster, DEFAULT_DATABASE).await?;
        self.fault_at = origin.elapsed();
        let written_before = pressure.as_ref().map(Pressure::written);
        self.carry_out().await?;
        tokio::time::sleep(TAIL).await;
        let end = origin.elapsed();
        let pressure = pressure.map(|pressure| {
            let written = pressure.written() - written_before.unwrap_or(0);
            (written as f64 / end.saturating_sub(self.fault_at).as_secs_f64(), pressure.probes())
        });
        self.workload.stop();
        while clients.join_next().await.is_some() {}
        let (history, queue) = self.last_reads(queue).await?;
        let inspection = self.claims().await;
        let evidence = Evidence {
            warm_at,
            end,
            history,
            queue,
            inspection,
            converged: self.converged().await,
            snapshots: watch.snapshots(),
            round_trips: (0..self.cluster.regions()).map(|region| pings.median(region)).collect(),
            pressure,
        };
        Ok(self.judge(run, evidence))
    }

    /// Waits until the usual latencies were measured under one leader, for a while only under the
    /// preferred one; returns the time from which they count.
    async fn warm_up(&self, watch: &Watch) -> Result<Duration, Timeout> {
        tokio::time::sleep(WARM_UP + BASELINE).await;
        let inspection = self.cluster.operator().inspect(PATIENCE).await.ok();
        let shard =
            inspection.as_ref().and_then(|known| known.cluster.shards.get(&self.roles.shard));
        let preferred = shard.and_then(|shard| shard.preferred_leader);
        let begun = Instant::now();
        poll::until("one leader for a while", WARM_UP_DEADLINE, async || {
            let (leader, since_ms) =
                leading_since_ms(&watch.snapshots()).ok_or("no node leads".to_owned())?;
            let since = Duration::from_secs_f64(since_ms / 1000.0);
            let settled = self.workload.origin().elapsed().saturating_sub(since) >= BASELINE;
            let late = begun.elapsed() > WARM_UP_DEADLINE / 2;
            if settled && (late || preferred.is_none_or(|preferred| preferred == leader)) {
                Ok(since.max(WARM_UP))
            } else {
                Err(format!("node {leader} leads since {since_ms:.0} ms, and {preferred:?} should"))
            }
        })
        .await
    }

    /// Heals the remaining faults, waits until nothing is handed out any more and commits end, and
    /// reads everything back.
    async fn last_reads(
        &mut self,
        queue: Option<QueueClients>,
    ) -> Result<(History, Option<QueueHistory>), StageError> {
        if let Some(ended) = self.cluster.ended() {
            return Err(ClusterError::Ended(ended).into());
        }
        self.heal()?;
        self.wait_for(Condition::Ready).await?;
        let home = Machine::Gateway(self.roles.home);
        let gateway = Arc::clone(self.gateways.of(home).ok_or(StageError::NoTarget)?);
        let queue = match queue {
            Some(queue) => Some(queue.finish(&gateway).await?),
            None => None,
        };
        self.quiesce().await?;
        (self.say)("all is healed and quiet; reading everything back");
        Ok((self.workload.finish(&gateway).await?, queue))
    }

    /// Waits for writes whose clients have left: their gateways carry them out.
    async fn quiesce(&self) -> Result<(), Timeout> {
        let mut last = (Vec::new(), Instant::now());
        poll::until("nothing commits any more", QUIET_DEADLINE, async || {
            let applied = self.applied().await;
            if applied != last.0 {
                last = (applied, Instant::now());
            }
            if last.1.elapsed() >= QUIESCENT {
                Ok(())
            } else {
                Err(format!("applied {:?}", last.0))
            }
        })
        .await
    }

    /// The positions that the answering nodes have applied of the shard.
    async fn applied(&self) -> Vec<u64> {
        let statuses = self.cluster.operator().statuses(PATIENCE).await;
        let shards = statuses.values().flat_map(|status| &status.shards);
        shards
            .filter(|status| status.shard == self.roles.shard.0)
            .map(|status| status.applied_sequence)
            .collect()
    }

    /// The number of nodes that have applied as much as the most advanced.
    async fn converged(&self) -> usize {
        let applied = self.applied().await;
        applied.iter().filter(|sequence| applied.iter().max() == Some(sequence)).count()
    }

    /// The directory once the old voters have reported their batches, or after the deadline.
    async fn claims(&self) -> Option<Inspection> {
        let told = poll::until("reports that are complete", CLAIMS_DEADLINE, async || {
            let inspection = self
                .cluster
                .operator()
                .inspect(PATIENCE)
                .await
                .map_err(|error| error.to_string())?;
            let reports = self.roles.reports(&inspection);
            let complete = reports.iter().all(|report| reported_at_most(report).is_some());
            if complete { Ok(inspection) } else { Err(format!("{reports:?}")) }
        });
        match told.await {
            Ok(inspection) => Some(inspection),
            Err(_) => self.cluster.operator().inspect(PATIENCE).await.ok(),
        }
    }

    async fn wait_for(&mut self, condition: Condition) -> Result<(), StageError> {
        match condition {
            Condition::Ready => {
                self.cluster.ready().await?;
                self.readmit().await
            }
            Condition::Moved => self.moved().await,
            Condition::CaughtUp => {
                let nodes = self.cluster.node_ids().len();
                let met =
                    poll::until("all nodes have nearly the same", QUIET_DEADLINE, async || {
                        let applied = self.applied().await;
                        let (least, most) = (applied.iter().min(), applied.iter().max());
                        // Clients go on writing meanwhile.
                        let near = least.zip(most).is_some_and(|(least, most)| most - least < 1000);
                        if near && applied.len() == nodes {
                            Ok(())
                        } else {
                            Err(format!("applied {applied:?}"))
                        }
                    });
                Ok(met.await?)
            }
        }
    }

    fn mark(&mut self, kind: MarkKind, text: String) {
        let at = self.workload.origin().elapsed();
        let since = at.as_secs_f64() - self.fault_at.as_secs_f64();
        (self.say)(&format!("{since:+8.3} s  {text}"));
        self.marks.push(Mark { at_ms: ms(at), text, kind });
    }
}

fn kept(cluster: &mut Cluster, error: StageError) -> StageError {
    let ended = cluster.ended().map(ClusterError::Ended);
    let source = Box::new(ended.map_or(error, StageError::Cluster));
    StageError::Kept { source, folder: cluster.keep_folder() }
}
