//! The machines behind the names of a script: leader, follower, primary and so on.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use meridian_directory::FailoverReport;
use meridian_types::{DatabaseId, Epoch, NodeId, ShardId};

use crate::cluster::{Cluster, ClusterError};
use crate::network::Machine;
use crate::operator::Inspection;
use crate::poll;

const PATIENCE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(30);
/// The shard of `default` in a cluster without a directory.
const FIRST_SHARD: ShardId = ShardId(1);

/// A name in a script for one or several machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    /// The voter that leads the shard.
    Leader,
    /// One of the other voters.
    Follower,
    /// All nodes of the region that is the primary when the drill begins.
    Primary,
    PrimaryGateway,
    /// All nodes of the first other region.
    Replica,
    ReplicaGateway,
    /// The node of the replica region that pulls from the primary for the others.
    Relay,
    DirectoryLeader,
    /// All nodes.
    Nodes,
    /// All machines that were not named before.
    Rest,
}

impl Selector {
    pub const ALL: [Self; 10] = [
        Self::Leader,
        Self::Follower,
        Self::Primary,
        Self::PrimaryGateway,
        Self::Replica,
        Self::ReplicaGateway,
        Self::Relay,
        Self::DirectoryLeader,
        Self::Nodes,
        Self::Rest,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Primary => "primary",
            Self::PrimaryGateway => "primary-gateway",
            Self::Replica => "replica",
            Self::ReplicaGateway => "replica-gateway",
            Self::Relay => "relay",
            Self::DirectoryLeader => "directory-leader",
            Self::Nodes => "nodes",
            Self::Rest => "rest",
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The machines of one shard's roles when a drill began. They keep their names while the drill goes
/// on.
#[derive(Debug, Clone)]
pub struct Roles {
    pub shard: ShardId,
    pub epoch: Epoch,
    /// The primary region, which counts from 0.
    pub home: usize,
    /// The first other region that has nodes.
    pub replica: Option<usize>,
    pub leader: NodeId,
    pub followers: Vec<NodeId>,
    pub relay: Option<NodeId>,
    pub directory_leader: Option<NodeId>,
    nodes: BTreeMap<NodeId, usize>,
    machines: Vec<Machine>,
}

/// A role that no machine has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no machine of this cluster is `{0}`")]
pub struct NoSuchRole(pub Selector);

impl Roles {
    /// Asks all nodes until there is a leader, and a machine for each other role that the topology
    /// has.
    ///
    /// # Errors
    /// When there is no leader for a long time.
    pub async fn of(cluster: &Cluster, database: DatabaseId) -> Result<Self, ClusterError> {
        let found = poll::until("a leader of the shard", DEADLINE, async || {
            let inspection = cluster.operator().inspect(PATIENCE).await.ok();
            Self::snapshot(cluster, database, inspection.as_ref()).await
        });
        Ok(found.await?)
    }

    async fn snapshot(
        cluster: &Cluster,
        database: DatabaseId,
        inspection: Option<&Inspection>,
    ) -> Result<Self, &'static str> {
        let known = inspection.and_then(|known| known.cluster.databases.get(&database));
        let shard = known.map_or(FIRST_SHARD, |database| database.shard);
        let statuses = cluster.operator().statuses(PATIENCE).await;
        let of_shard = || {
            statuses.iter().filter_map(|(id, status)| {
                status
                    .shards
                    .iter()
                    .find(|status| status.shard == shard.0)
                    .map(|status| (*id, status))
            })
        };
        let leaders = of_shard().filter(|(_, status)| status.role == "leader");
        let leader = leaders.max_by_key(|(_, status)| (status.epoch, status.term));
        let (leader, led) = leader.ok_or("no node leads")?;
        let nodes: BTreeMap<NodeId, usize> = cluster
            .node_ids()
            .into_iter()
            .filter_map(|id| Some((id, cluster.region_of(id).ok()?)))
            .collect();
        let home = *nodes.get(&leader).ok_or("an unknown node leads")?;
        let replica = nodes.values().copied().filter(|region| *region != home).min();
        let voters = of_shard().filter(|(id, status)| *id != leader && status.role == "follower");
        let relays = of_shard()
            .filter(|(id, status)| status.role == "relay" && nodes.get(id).copied() == replica);
        Ok(Self {
            shard,
            epoch: Epoch(u16::try_from(led.epoch).unwrap_or(u16::MAX)),
            home,
            replica,
            leader,
            followers: voters.map(|(id, _)| id).collect(),
            relay: relays.map(|(id, _)| id).min(),
            directory_leader: inspection.and_then(|known| known.leader),
            machines: cluster.machines(),
            nodes,
        })
    }

    /// The machines of some roles; `named` are the machines named before, for [`Selector::Rest`].
    ///
    /// # Errors
    /// When no machine has one of the roles.
    pub fn resolve(
        &self,
        selectors: &[Selector],
        named: &[Machine],
    ) -> Result<Vec<Machine>, NoSuchRole> {
        let mut machines = Vec::new();
        for selector in selectors {
            let selected: Vec<Machine> = match selector {
                Selector::Leader => vec![Machine::Node(self.leader)],
                Selector::Follower => {
                    self.followers.first().map(|id| Machine::Node(*id)).into_iter().collect()
                }
                Selector::Primary => self.region(Some(self.home)),
                Selector::PrimaryGateway => self.gateway(Some(self.home)),
                Selector::Replica => self.region(self.replica),
                Selector::ReplicaGateway => self.gateway(self.replica),
                Selector::Relay => self.relay.map(Machine::Node).into_iter().collect(),
                Selector::DirectoryLeader => {
                    self.directory_leader.map(Machine::Node).into_iter().collect()
                }
                Selector::Nodes => self.nodes.keys().map(|id| Machine::Node(*id)).collect(),
                Selector::Rest => self
                    .machines
                    .iter()
                    .copied()
                    .filter(|machine| !named.contains(machine))
                    .collect(),
            };
            if selected.is_empty() {
                return Err(NoSuchRole(*selector));
            }
            machines.extend(selected);
        }
        machines.sort_unstable();
        machines.dedup();
        Ok(machines)
    }

    fn region(&self, region: Option<usize>) -> Vec<Machine> {
        let inside = self.nodes.iter().filter(|(_, at)| Some(**at) == region);
        inside.map(|(id, _)| Machine::Node(*id)).collect()
    }

    fn gateway(&self, region: Option<usize>) -> Vec<Machine> {
        let gateway =
            region.map(Machine::Gateway).filter(|gateway| self.machines.contains(gateway));
        gateway.into_iter().collect()
    }

    /// The failovers and switchovers since the drill began.
    pub fn reports(&self, inspection: &Inspection) -> Vec<FailoverReport> {
        let shard = inspection.cluster.shards.get(&self.shard);
        let reports = shard.map_or(&[][..], |shard| shard.reports.as_slice());
        reports.iter().filter(|report| report.epoch > self.epoch).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles() -> Roles {
        Roles {
            shard: ShardId(1),
            epoch: Epoch(1),
            home: 0,
            replica: Some(1),
            leader: NodeId(2),
            followers: [1, 3].map(NodeId).to_vec(),
            relay: None,
            directory_leader: Some(NodeId(4)),
            nodes: (1..).map(NodeId).zip([0, 0, 0, 1, 2]).collect(),
            machines: (1..=5)
                .map(|id| Machine::Node(NodeId(id)))
                .chain((0..3).map(Machine::Gateway))
                .collect(),
        }
    }

    #[test]
    fn roles_are_resolved_to_machines() {
        let resolve =
            |selectors: &[Selector], named: &[Machine]| roles().resolve(selectors, named).unwrap();
        assert_eq!(
            resolve(&[Selector::Leader, Selector::Follower], &[]),
            [Machine::Node(NodeId(1)), Machine::Node(NodeId(2))]
        );
        let primary = resolve(&[Selector::Primary, Selector::PrimaryGateway], &[]);
        assert_eq!(
            primary,
            [1, 2, 3]
                .map(|id| Machine::Node(NodeId(id)))
                .into_iter()
                .chain([Machine::Gateway(0)])
                .collect::<Vec<_>>()
        );
        let rest = [
            Machine::Node(NodeId(4)),
            Machine::Node(NodeId(5)),
            Machine::Gateway(1),
            Machine::Gateway(2),
        ];
        assert_eq!(resolve(&[Selector::Rest], &primary), rest);
        assert_eq!(resolve(&[Selector::Leader, Selector::Primary], &[]).len(), 3);
        assert_eq!(resolve(&[Selector::DirectoryLeader], &[]), [Machine::Node(NodeId(4))]);
    }

    #[test]
    fn role_without_a_machine_is_an_error() {
        assert_eq!(
            roles().resolve(&[Selector::Leader, Selector::Relay], &[]),
            Err(NoSuchRole(Selector::Relay))
        );
    }
}
