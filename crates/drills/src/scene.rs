//! Who plays which part at present.

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
/// Where `default` is in a cluster that has no directory.
const FIRST_SHARD: ShardId = ShardId(1);

/// A part in a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
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
    /// The node of that region that follows for the others.
    Relay,
    DirectoryLeader,
    /// All nodes.
    Nodes,
    /// All machines that were not named before.
    Rest,
}

impl Part {
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

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parts of one shard, as they were when a drill began. They stay who they are while the drill
/// goes on.
#[derive(Debug, Clone)]
pub struct Scene {
    pub shard: ShardId,
    pub epoch: Epoch,
    /// The primary region, counted from 0.
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

/// A part that nobody plays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nobody plays the part `{0}` in this cluster")]
pub struct NobodyPlays(pub Part);

impl Scene {
    /// Asks all nodes, until there are a leader and whoever else there should be.
    ///
    /// # Errors
    /// When there is no leader for long.
    pub async fn of(cluster: &Cluster, database: DatabaseId) -> Result<Self, ClusterError> {
        let found = poll::until("a leader of the shard", DEADLINE, async || {
            let inspection = cluster.operator().inspect(PATIENCE).await.ok();
            Self::look(cluster, database, inspection.as_ref()).await
        });
        Ok(found.await?)
    }

    async fn look(
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

    /// Who plays the parts; `named` are those that were named before, for [`Part::Rest`].
    ///
    /// # Errors
    /// When nobody plays one of them.
    pub fn cast(&self, parts: &[Part], named: &[Machine]) -> Result<Vec<Machine>, NobodyPlays> {
        let mut machines = Vec::new();
        for part in parts {
            let players: Vec<Machine> = match part {
                Part::Leader => vec![Machine::Node(self.leader)],
                Part::Follower => {
                    self.followers.first().map(|id| Machine::Node(*id)).into_iter().collect()
                }
                Part::Primary => self.region(Some(self.home)),
                Part::PrimaryGateway => self.gateway(Some(self.home)),
                Part::Replica => self.region(self.replica),
                Part::ReplicaGateway => self.gateway(self.replica),
                Part::Relay => self.relay.map(Machine::Node).into_iter().collect(),
                Part::DirectoryLeader => {
                    self.directory_leader.map(Machine::Node).into_iter().collect()
                }
                Part::Nodes => self.nodes.keys().map(|id| Machine::Node(*id)).collect(),
                Part::Rest => self
                    .machines
                    .iter()
                    .copied()
                    .filter(|machine| !named.contains(machine))
                    .collect(),
            };
            if players.is_empty() {
                return Err(NobodyPlays(*part));
            }
            machines.extend(players);
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

    fn scene() -> Scene {
        Scene {
            shard: ShardId(1),
            epoch: Epoch(1),
            home: 0,
            replica: Some(1),
            leader: 2,
            followers: vec![1, 3],
            relay: None,
            directory_leader: Some(4),
            nodes: BTreeMap::from([(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)]),
            machines: (1..=5).map(Machine::Node).chain((0..3).map(Machine::Gateway)).collect(),
        }
    }

    #[test]
    fn parts_are_cast() {
        let cast = |parts: &[Part], named: &[Machine]| scene().cast(parts, named).unwrap();
        assert_eq!(
            cast(&[Part::Leader, Part::Follower], &[]),
            [Machine::Node(1), Machine::Node(2)]
        );
        let primary = cast(&[Part::Primary, Part::PrimaryGateway], &[]);
        assert_eq!(
            primary,
            [1, 2, 3]
                .map(Machine::Node)
                .into_iter()
                .chain([Machine::Gateway(0)])
                .collect::<Vec<_>>()
        );
        let rest = [Machine::Node(4), Machine::Node(5), Machine::Gateway(1), Machine::Gateway(2)];
        assert_eq!(cast(&[Part::Rest], &primary), rest);
        assert_eq!(cast(&[Part::Leader, Part::Primary], &[]).len(), 3);
        assert_eq!(cast(&[Part::DirectoryLeader], &[]), [Machine::Node(4)]);
    }

    #[test]
    fn a_part_that_nobody_plays_is_named() {
        assert_eq!(scene().cast(&[Part::Leader, Part::Relay], &[]), Err(NobodyPlays(Part::Relay)));
    }
}
