//! Whether a cluster that was written down can work.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use meridian_directory::{Cluster, Founding, Node, Shard};
use meridian_types::{DatabaseId, NodeId, ShardId};

use super::invalid::{AddressField, InvalidCluster};
use super::{Address, ClusterSpec, DatabaseSpec, NodeSpec, ShardSpec, is_weak};

type Nodes = BTreeMap<NodeId, NodeSpec>;
type Shards = BTreeMap<ShardId, Shard>;

impl ClusterSpec {
    /// Refuses what cannot work. Reports one fault at a time, the first in the order of regions,
    /// nodes, shards and databases.
    pub fn found(self) -> Result<Cluster, InvalidCluster> {
        let regions = check_regions(self.regions)?;
        let nodes = check_nodes(&regions, self.nodes)?;
        let shards = check_shards(&regions, &nodes, self.shards)?;
        let databases = check_databases(&shards, self.databases)?;
        let default_database = match self.default_database {
            None => None,
            Some(name) => match databases.values().find(|database| database.name == name) {
                Some(database) => Some(database.id),
                None => return Err(InvalidCluster::UnknownDefault(name)),
            },
        };
        let databases = databases.into_iter();
        Ok(Cluster::found(Founding {
            regions,
            nodes: nodes.into_iter().map(|(id, spec)| (id, node(spec))).collect(),
            shards,
            databases: databases.map(|(id, spec)| (id, (spec.name, spec.shard))).collect(),
            default_database,
        }))
    }
}

fn node(spec: NodeSpec) -> Node {
    Node {
        name: spec.name,
        region: spec.region,
        data_center: spec.data_center,
        rpc_address: spec.rpc_address,
        kv_address: spec.kv_address,
        incarnation: None,
        removed: false,
    }
}

fn check_regions(regions: Vec<String>) -> Result<Vec<String>, InvalidCluster> {
    if regions.is_empty() {
        return Err(InvalidCluster::NoRegions);
    }
    let mut seen = HashSet::new();
    for (index, region) in regions.iter().enumerate() {
        check_name(region, || format!("region number {} of `regions`", index + 1))?;
        if !seen.insert(region) {
            return Err(InvalidCluster::DuplicateRegion(region.clone()));
        }
    }
    Ok(regions)
}

fn check_nodes(regions: &[String], nodes: Vec<NodeSpec>) -> Result<Nodes, InvalidCluster> {
    let mut by_id = Nodes::new();
    let mut names = HashMap::new();
    let mut addresses = BTreeMap::new();
    for node in nodes {
        let id = node.id;
        if id == NodeId(0) {
            return Err(InvalidCluster::NodeZero { name: node.name });
        }
        check_name(&node.name, || format!("node {id}"))?;
        if let Some(first) = by_id.get(&id) {
            return Err(InvalidCluster::DuplicateNode {
                id,
                first: first.name.clone(),
                second: node.name,
            });
        }
        if let Some(first) = names.insert(node.name.clone(), id) {
            return Err(InvalidCluster::DuplicateNodeName { name: node.name, first, second: id });
        }
        if !regions.contains(&node.region) {
            return Err(InvalidCluster::NodeRegion {
                node: id,
                region: node.region,
                regions: quoted_list(regions),
            });
        }
        check_name(&node.data_center, || format!("the data center of node {id}"))?;
        check_addresses(&node, &mut addresses)?;
        by_id.insert(id, node);
    }
    if by_id.is_empty() { Err(InvalidCluster::NoNodes) } else { Ok(by_id) }
}

fn check_addresses(
    node: &NodeSpec,
    taken: &mut BTreeMap<Address, (NodeId, AddressField)>,
) -> Result<(), InvalidCluster> {
    let kv = node.kv_address.as_ref().map(|address| (address, AddressField::Kv));
    for (text, field) in [(&node.rpc_address, AddressField::Rpc)].into_iter().chain(kv) {
        let address = Address::parse_dialable(text).map_err(|cause| InvalidCluster::Address {
            node: node.id,
            field,
            cause,
        })?;
        if let Some((first, first_field)) = taken.insert(address, (node.id, field)) {
            return Err(InvalidCluster::DuplicateAddress {
                address: text.clone(),
                first,
                first_field,
                second: node.id,
                second_field: field,
            });
        }
    }
    Ok(())
}

fn check_shards(
    regions: &[String],
    nodes: &Nodes,
    shards: Vec<ShardSpec>,
) -> Result<Shards, InvalidCluster> {
    let mut by_id = Shards::new();
    for spec in shards {
        let id = spec.id;
        let shard = check_shard(regions, nodes, spec)?;
        if by_id.insert(id, shard).is_some() {
            return Err(InvalidCluster::DuplicateShard(id));
        }
    }
    if by_id.is_empty() { Err(InvalidCluster::NoShards) } else { Ok(by_id) }
}

fn check_shard(
    regions: &[String],
    nodes: &Nodes,
    spec: ShardSpec,
) -> Result<Shard, InvalidCluster> {
    let ShardSpec { id: shard, primary_region, voters, preferred_leader, allow_weak_quorum } = spec;
    if shard.0 == 0 {
        return Err(InvalidCluster::ShardZero);
    }
    if !regions.contains(&primary_region) {
        return Err(InvalidCluster::ShardRegion {
            shard,
            region: primary_region,
            regions: quoted_list(regions),
        });
    }
    let listed = voters.unwrap_or_else(|| {
        nodes.values().filter(|node| node.region == primary_region).map(|node| node.id).collect()
    });
    let mut voters: BTreeMap<NodeId, &NodeSpec> = BTreeMap::new();
    for id in listed {
        let node = nodes.get(&id).ok_or(InvalidCluster::UnknownVoter { shard, node: id })?;
        if node.region != primary_region {
            let region = node.region.clone();
            return Err(InvalidCluster::ForeignVoter { shard, node: id, region, primary_region });
        }
        if voters.insert(id, node).is_some() {
            return Err(InvalidCluster::DuplicateVoter { shard, node: id });
        }
    }
    if voters.is_empty() {
        return Err(InvalidCluster::NoVoters { shard, region: primary_region });
    }
    check_distinct_data_centers(shard, &voters)?;
    if is_weak(voters.len()) && !allow_weak_quorum {
        return Err(InvalidCluster::WeakQuorum { shard, voters: voters.len() });
    }
    if let Some(node) = preferred_leader.filter(|leader| !voters.contains_key(leader)) {
        let voters: Vec<String> = voters.keys().map(NodeId::to_string).collect();
        return Err(InvalidCluster::PreferredLeader { shard, node, voters: voters.join(", ") });
    }
    let voters: BTreeSet<NodeId> = voters.into_keys().collect();
    Ok(Shard::new(primary_region, voters, preferred_leader))
}

/// A commit counts as safe once two voters have it, so two voters must never fail together.
fn check_distinct_data_centers(
    shard: ShardId,
    voters: &BTreeMap<NodeId, &NodeSpec>,
) -> Result<(), InvalidCluster> {
    let mut data_centers = HashMap::new();
    let mut hosts = BTreeMap::new();
    for (&second, node) in voters {
        if let Some(first) = data_centers.insert(&node.data_center, second) {
            let (data_center, region) = (node.data_center.clone(), node.region.clone());
            return Err(InvalidCluster::SameDataCenter {
                shard,
                first,
                second,
                data_center,
                region,
            });
        }
        // Addresses were checked with the nodes.
        let host = Address::parse(&node.rpc_address).map(|address| address.host).ok();
        let Some(host) = host.filter(|host| !host.is_loopback()) else { continue };
        let shown = host.to_string();
        if let Some(first) = hosts.insert(host, second) {
            return Err(InvalidCluster::SameHost { shard, first, second, host: shown });
        }
    }
    Ok(())
}

fn check_databases(
    shards: &Shards,
    databases: Vec<DatabaseSpec>,
) -> Result<BTreeMap<DatabaseId, DatabaseSpec>, InvalidCluster> {
    let mut by_id: BTreeMap<DatabaseId, DatabaseSpec> = BTreeMap::new();
    let mut names = HashSet::new();
    for database in databases {
        let DatabaseSpec { id, shard, .. } = database;
        let name = database.name.clone();
        if name.is_empty() {
            return Err(InvalidCluster::EmptyDatabaseName { id });
        }
        if !name.bytes().all(|byte| is_plain(byte) || byte == b'~') {
            return Err(InvalidCluster::DatabaseName(name));
        }
        if !names.insert(name.clone()) {
            return Err(InvalidCluster::DuplicateDatabaseName(name));
        }
        if !shards.contains_key(&shard) {
            return Err(InvalidCluster::DatabaseShard { database: name, shard });
        }
        if let Some(first) = by_id.insert(id, database) {
            return Err(InvalidCluster::DuplicateDatabase { id, first: first.name, second: name });
        }
    }
    if by_id.is_empty() { Err(InvalidCluster::NoDatabases) } else { Ok(by_id) }
}

fn check_name(name: &str, of: impl FnOnce() -> String) -> Result<(), InvalidCluster> {
    if name.is_empty() {
        return Err(InvalidCluster::EmptyName { of: of() });
    }
    // `.` and `..` would be folders when a node's name becomes a path.
    if !name.bytes().all(is_plain) || name.bytes().all(|byte| byte == b'.') {
        return Err(InvalidCluster::MalformedName { of: of(), name: name.to_owned() });
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

pub(super) fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
