//! The clients, on a machine of their own: its clock gives their history its times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use meridian_checker::History;
use meridian_directory::FailoverReport;
use meridian_drills::Operator;
use meridian_drills::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE};
use meridian_drills::workload::{Gateway, Manner, Profile, Role, Workload};
use meridian_net::grpc::Access;
use meridian_sim_kernel as kernel;
use meridian_types::NodeId;
use tokio::sync::oneshot;

use crate::cluster::Cluster;

/// With all kinds of operations, for each database.
const MIXED: u64 = 4;
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_THINK: Duration = Duration::from_millis(150);
/// Operators ask again for as long.
const ASKED_FOR: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);

/// The answers to clients, and the cluster's reports of its failovers.
pub(crate) struct Records {
    /// For each database its history, and the failovers of its shard.
    pub(crate) databases: Vec<(History, Vec<FailoverReport>)>,
    pub(crate) oddities: Vec<String>,
}

/// The clients at work.
pub(crate) struct Clients {
    stop: oneshot::Sender<()>,
    finish: oneshot::Sender<()>,
    stopped: Receiver<()>,
    records: Receiver<anyhow::Result<Records>>,
}

/// The orders to the clients' machine.
struct Orders {
    stop: oneshot::Receiver<()>,
    finish: oneshot::Receiver<()>,
    stopped: Sender<()>,
    records: Sender<anyhow::Result<Records>>,
}

/// The cluster as its clients know it.
struct Known {
    gateways: Vec<Arc<Gateway>>,
    rpc_addresses: BTreeMap<NodeId, String>,
    seed: u64,
}

impl Clients {
    /// Starts them.
    pub(crate) fn start(cluster: &Cluster, seed: u64) -> Self {
        let (stop, stops) = oneshot::channel();
        let (finish, finishes) = oneshot::channel();
        let (stopped, has_stopped) = channel();
        let (records, recorded) = channel();
        let orders = Orders { stop: stops, finish: finishes, stopped, records };
        let hosts = &cluster.hosts;
        let known = Known {
            gateways: hosts.values().map(|host| Arc::clone(&host.gateway)).collect(),
            rpc_addresses: hosts
                .iter()
                .map(|(node, host)| (*node, host.rpc_address.clone()))
                .collect(),
            seed,
        };
        kernel::start(cluster.clients, "clients", move || work(known, orders));
        Self { stop, finish, stopped: has_stopped, records: recorded }
    }

    /// Has them stop, and waits until none of their requests is in flight any more.
    pub(crate) fn stop(self) -> anyhow::Result<Finishing> {
        self.stop.send(()).unwrap_or_default();
        self.stopped.recv().context("the clients are gone")?;
        Ok(Finishing { finish: self.finish, records: self.records })
    }
}

/// Clients that have stopped.
pub(crate) struct Finishing {
    finish: oneshot::Sender<()>,
    records: Receiver<anyhow::Result<Records>>,
}

impl Finishing {
    /// Reads everything once more, and asks what failovers there were.
    pub(crate) fn finish(self) -> anyhow::Result<Records> {
        self.finish.send(()).unwrap_or_default();
        self.records.recv().context("the clients are gone")?
    }
}

fn work(known: Known, orders: Orders) {
    let Orders { stop, finish, stopped, records } = orders;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let Ok(runtime) = builder.enable_all().build() else {
        return drop(records.send(Err(anyhow::anyhow!("clients have no runtime"))));
    };
    runtime.block_on(async move {
        let workloads = [DEFAULT_DATABASE, SECOND_DATABASE].map(Workload::new);
        let mut clients = Vec::new();
        for profile in profiles(&known) {
            for (workload, database) in workloads.iter().zip(0..) {
                let number = 2 * profile.number + database;
                let profile = Profile { number, ..profile.clone() };
                clients.push(tokio::spawn(Arc::clone(workload).run_client(profile)));
            }
        }
        drop(stop.await);
        workloads.iter().for_each(|workload| workload.stop());
        for client in clients {
            drop(client.await);
        }
        stopped.send(()).unwrap_or_default();
        drop(finish.await);
        drop(records.send(recorded(&known, &workloads).await));
    });
}

/// Clients of all kinds at changing gateways, and one at each gateway that reads strongly there.
fn profiles(known: &Known) -> Vec<Profile> {
    let profile = |number: u64, role, gateways| Profile {
        number,
        region: 0,
        role,
        manner: Manner::Impatient,
        gateways,
        timeout: TIMEOUT,
        max_think: MAX_THINK,
        mark_all: false,
        seed: known.seed,
    };
    let mixed = (1..=MIXED).map(|number| {
        let mut gateways = known.gateways.clone();
        let first = usize::try_from(number).unwrap_or(0) % gateways.len().max(1);
        gateways.rotate_left(first);
        profile(number, Role::Mixed, gateways)
    });
    let readers =
        known.gateways.iter().zip(MIXED + 1..).map(|(gateway, number)| {
            profile(number, Role::StrongReader, vec![Arc::clone(gateway)])
        });
    mixed.chain(readers).collect()
}

async fn recorded(known: &Known, workloads: &[Arc<Workload>]) -> anyhow::Result<Records> {
    let Some(gateway) = known.gateways.last() else { bail!("there is no gateway") };
    let (mut histories, mut oddities) = (Vec::new(), Vec::new());
    for workload in workloads {
        oddities.extend(workload.oddities());
        histories.push(workload.finish(gateway).await.context("the cluster does not heal")?);
    }
    let operator = Operator::new(&known.rpc_addresses, &Access::open())?;
    let latest = kernel::now() + ASKED_FOR;
    loop {
        match operator.inspect(PAUSE * 8).await {
            Ok(known) if known.leader.is_some() => {
                // Each database has a shard of its own, in their order.
                let shards = known.cluster.shards.into_values();
                let reports = shards.map(|shard| shard.reports.into_iter().collect());
                let databases = histories.into_iter().zip(reports).collect();
                return Ok(Records { databases, oddities });
            }
            _ if kernel::now() > latest => bail!("the directory does not heal"),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
