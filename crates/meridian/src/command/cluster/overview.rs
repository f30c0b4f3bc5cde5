//! The state of the cluster: the content of `meridian cluster status`, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meridian_directory::{Node, Phase, Plan, Shard};
use meridian_types::{NodeId, ShardId};
use serde::Serialize;

use super::{lags_text, warnings};
use crate::command::operator::{Table, View, format, is_fresh, resolve};

/// The shard id under which the directory reports its own progress.
const DIRECTORY: ShardId = ShardId(0);

/// The content of `meridian cluster status`, as text and as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    pub(crate) directory: DirectoryOverview,
    pub(crate) version: u64,
    pub(crate) regions: Vec<RegionOverview>,
    pub(crate) shards: Vec<ShardOverview>,
    pub(crate) nodes: Vec<NodeOverview>,
    pub(crate) databases: usize,
    pub(crate) tokens: usize,
    /// Warnings for operators, the worst first.
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DirectoryOverview {
    pub(crate) leader: Option<NodeId>,
    pub(crate) leader_name: Option<String>,
    /// `false`: the overview is another node's, without lags and contacts.
    pub(crate) leader_answers: bool,
    pub(crate) term: u64,
    pub(crate) voters: BTreeSet<NodeId>,
    /// Set while the members of its group differ from these voters.
    pub(crate) progress: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RegionOverview {
    pub(crate) name: String,
    pub(crate) nodes: usize,
    pub(crate) data_centers: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct ShardOverview {
    pub(crate) shard: ShardId,
    pub(crate) epoch: u16,
    /// `forming`, `active`, `switching-over` or `sealing`.
    pub(crate) phase: &'static str,
    /// The target of a switchover or failover.
    pub(crate) to: Option<String>,
    pub(crate) primary_region: String,
    pub(crate) leader: Option<NodeId>,
    pub(crate) leader_name: Option<String>,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) voter_names: String,
    /// The newest commit of the reachable nodes of this epoch.
    pub(crate) position: Option<String>,
    /// The lag of each replica region, by its best node.
    pub(crate) lag_ms: BTreeMap<String, u64>,
    pub(crate) databases: Vec<String>,
    /// The directory's present work on the shard.
    pub(crate) progress: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct NodeOverview {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) data_center: String,
    pub(crate) rpc_address: String,
    pub(crate) kv_address: Option<String>,
    pub(crate) removed: bool,
    /// `joining` before its first contact, `up`, `away`, `revoked` until it joins anew, `removed`, or
    /// `unknown` if the leader does not answer.
    pub(crate) state: &'static str,
    pub(crate) contact_age_ms: Option<u64>,
    pub(crate) votes_in_shards: Vec<ShardId>,
    pub(crate) votes_in_directory: bool,
}

impl Overview {
    pub(crate) fn of(view: &View, now_ms: u64) -> Self {
        let cluster = &view.cluster;
        let region = |name: &String| {
            let data_centers: BTreeSet<&str> =
                cluster.nodes_of(name).map(|(_, node)| node.data_center.as_str()).collect();
            RegionOverview {
                name: name.clone(),
                nodes: cluster.nodes_of(name).count(),
                data_centers: data_centers.len(),
            }
        };
        Self {
            directory: DirectoryOverview {
                leader: view.leader,
                leader_name: view.leader.map(|leader| resolve::node_name(cluster, leader)),
                leader_answers: view.leader_address.is_some(),
                term: view.term,
                voters: cluster.directory_voters.clone(),
                progress: view.progress.get(&DIRECTORY).cloned(),
            },
            version: cluster.version,
            regions: cluster.regions.iter().map(region).collect(),
            shards: cluster
                .shards
                .iter()
                .map(|(id, shard)| ShardOverview::of(view, *id, shard))
                .collect(),
            nodes: cluster
                .nodes
                .iter()
                .map(|(id, node)| NodeOverview::of(view, *id, node, now_ms))
                .collect(),
            databases: cluster.databases.len(),
            tokens: cluster.tokens.len(),
            warnings: warnings::of(view, now_ms),
        }
    }
}

impl ShardOverview {
    pub(crate) fn of(view: &View, id: ShardId, shard: &Shard) -> Self {
        let leader = view.leader_of(id, shard);
        let present = view.fresh_reports(id).filter(|(_, report)| report.epoch == shard.epoch);
        let lags = view.lags(id, shard).into_iter().map(|(region, lag)| (region.to_owned(), lag));
        let databases = resolve::databases_in(&view.cluster, id);
        Self {
            shard: id,
            epoch: shard.epoch.0,
            phase: phase(&shard.phase),
            to: target(&shard.phase).cloned(),
            primary_region: shard.primary_region.clone(),
            leader,
            leader_name: leader.map(|leader| resolve::node_name(&view.cluster, leader)),
            voters: shard.voters.clone(),
            voter_names: resolve::node_names(&view.cluster, &shard.voters),
            position: present
                .map(|(_, report)| report.position)
                .max()
                .map(|position| position.to_string()),
            lag_ms: lags.collect(),
            databases: databases.into_iter().map(str::to_owned).collect(),
            progress: view.progress.get(&id).cloned(),
        }
    }

    /// A table of any number of shards.
    pub(crate) fn table<'a>(shards: impl IntoIterator<Item = &'a Self>) -> Table {
        let mut table = Table::new(&[
            ">SHARD",
            ">EPOCH",
            "PHASE",
            "PRIMARY",
            "LEADER",
            "VOTERS",
            "LAG",
            "DATABASES",
        ]);
        for shard in shards {
            let phase = match &shard.to {
                Some(to) => format!("{} to {to}", shard.phase),
                None => shard.phase.to_owned(),
            };
            table.row([
                shard.shard.to_string(),
                shard.epoch.to_string(),
                phase,
                shard.primary_region.clone(),
                shard.leader_name.clone().unwrap_or_else(|| "-".to_owned()),
                shard.voter_names.clone(),
                lags_text(&shard.lag_ms),
                shard.databases.join(", "),
            ]);
        }
        table
    }
}

impl NodeOverview {
    pub(crate) fn of(view: &View, id: NodeId, node: &Node, now_ms: u64) -> Self {
        let cluster = &view.cluster;
        let age = view.contacts.get(&id).map(|contact| contact.age_ms);
        let votes = cluster.shards.iter().filter(|(_, shard)| shard.voters.contains(&id));
        Self {
            id,
            name: node.name.clone(),
            region: node.region.clone(),
            data_center: node.data_center.clone(),
            rpc_address: node.rpc_address.clone(),
            kv_address: node.kv_address.clone(),
            removed: node.removed,
            state: match age {
                _ if node.removed => "removed",
                Some(age) if is_fresh(age) => "up",
                _ if view.leader_address.is_none() => "unknown",
                _ if view.revoked_ms(id, now_ms).is_some() => "revoked",
                _ if node.incarnation.is_none() => "joining",
                _ => "away",
            },
            contact_age_ms: age,
            votes_in_shards: votes.map(|(shard, _)| *shard).collect(),
            votes_in_directory: cluster.directory_voters.contains(&id),
        }
    }

    /// A table of any number of nodes.
    pub(crate) fn table<'a>(nodes: impl IntoIterator<Item = &'a Self>) -> Table {
        let mut table = Table::new(&[
            ">ID",
            "NAME",
            "REGION",
            "DC",
            "RPC",
            "KV CONNECT",
            "STATE",
            "LAST SEEN",
            "VOTES IN",
        ]);
        for node in nodes {
            let shards = node.votes_in_shards.iter().map(|shard| format!("shard {shard}"));
            let votes: Vec<String> = node
                .votes_in_directory
                .then(|| "directory".to_owned())
                .into_iter()
                .chain(shards)
                .collect();
            table.row([
                node.id.to_string(),
                node.name.clone(),
                node.region.clone(),
                node.data_center.clone(),
                node.rpc_address.clone(),
                node.kv_address.clone().unwrap_or_else(|| "-".to_owned()),
                node.state.to_owned(),
                node.contact_age_ms
                    .map_or_else(|| "-".to_owned(), |age| format!("{} ago", format::duration(age))),
                votes.join(", "),
            ]);
        }
        table
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Forming => "forming",
        Phase::Active => "active",
        Phase::SwitchingOver { .. } => "switching-over",
        Phase::Sealing(_) => "sealing",
    }
}

fn target(phase: &Phase) -> Option<&String> {
    match phase {
        Phase::SwitchingOver { to } | Phase::Sealing(Plan { to: Some(to), .. }) => Some(to),
        _ => None,
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = &self.directory;
        match &directory.leader_name {
            Some(name) => writeln!(
                f,
                "directory  led by {name}, term {}, version {}",
                directory.term, self.version
            )?,
            None => writeln!(f, "directory  no leader known, version {}", self.version)?,
        }
        let region = |region: &RegionOverview| {
            let data_centers = format::count(region.data_centers as u64, "data center");
            format!("{} ({data_centers})", region.name)
        };
        let regions: Vec<String> = self.regions.iter().map(region).collect();
        writeln!(f, "regions    {}", regions.join(", "))?;
        let (databases, tokens) = (self.databases as u64, self.tokens as u64);
        writeln!(
            f,
            "holds      {}, {}",
            format::count(databases, "database"),
            format::count(tokens, "token")
        )?;
        writeln!(f)?;
        write!(f, "{}", ShardOverview::table(&self.shards))?;
        if let Some(progress) = &directory.progress {
            writeln!(f, "directory: {progress}")?;
        }
        for shard in &self.shards {
            if let Some(progress) = &shard.progress {
                writeln!(f, "shard {}: {progress}", shard.shard)?;
            }
        }
        writeln!(f)?;
        write!(f, "{}", NodeOverview::table(self.nodes.iter().filter(|node| !node.removed)))?;
        writeln!(f)?;
        if self.warnings.is_empty() {
            return writeln!(f, "no warnings");
        }
        writeln!(f, "warnings:")?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "  {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::{view, view_without};

    #[test]
    fn overview_of_a_healthy_cluster_is_golden() {
        let text = Overview::of(&view(), 0).to_string();
        let expected = "\
directory  led by region-1-a, term 3, version 7
regions    region-1 (3 data centers), region-2 (2 data centers), region-3 (1 data center)
holds      2 databases, 0 tokens

SHARD  EPOCH  PHASE   PRIMARY   LEADER      VOTERS                              LAG                             DATABASES
    1      1  active  region-1  region-1-a  region-1-a, region-1-b, region-1-c  region-2 20 ms, region-3 90 ms  default
    2      1  active  region-1  region-1-b  region-1-a, region-1-b, region-1-c  region-2 20 ms, region-3 90 ms  second

ID  NAME        REGION    DC  RPC             KV CONNECT      STATE  LAST SEEN   VOTES IN
 1  region-1-a  region-1  a   127.0.0.1:4612  127.0.0.1:4512  up     200 ms ago  directory, shard 1, shard 2
 2  region-1-b  region-1  b   127.0.0.1:4613  127.0.0.1:4513  up     200 ms ago  shard 1, shard 2
 3  region-1-c  region-1  c   127.0.0.1:4614  127.0.0.1:4514  up     200 ms ago  shard 1, shard 2
 4  region-2-a  region-2  a   127.0.0.1:4615  127.0.0.1:4515  up     200 ms ago  directory
 5  region-2-b  region-2  b   127.0.0.1:4616  127.0.0.1:4516  up     200 ms ago
 6  region-3-a  region-3  a   127.0.0.1:4617  127.0.0.1:4517  up     200 ms ago  directory

no warnings
";
        assert_eq!(text, expected);
    }

    #[test]
    fn overview_shows_progress_and_silent_nodes() {
        let mut view = view_without("region-1", 5000);
        let plan = Plan { to: None, planned: false, since_ms: 1, cause: "no quorum".to_owned() };
        view.cluster.shards.get_mut(&ShardId(1)).unwrap().phase = Phase::Sealing(plan);
        view.progress.insert(ShardId(1), "waiting for leases".to_owned());
        let overview = Overview::of(&view, 0);
        assert_eq!((overview.shards[0].phase, overview.shards[0].leader), ("sealing", None));
        assert_eq!(overview.nodes[0].state, "away");
        view.cluster.trust.revoked_before_ms.insert(NodeId(2), 1);
        assert_eq!(Overview::of(&view, 0).nodes[1].state, "revoked");
        let text = overview.to_string();
        assert!(text.contains("shard 1: waiting for leases\n"), "{text}");
        assert!(text.contains("5.0 s ago"), "{text}");
        let json = serde_json::to_value(&overview).unwrap();
        assert_eq!(json["shards"][1]["lag_ms"]["region-2"], 20);
    }
}
