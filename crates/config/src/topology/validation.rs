use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use meridian_types::{DatabaseId, Epoch, NodeId, ShardId};

use super::invalid::{AddressField, InvalidTopology};
use super::{
    Address, DatabaseInfo, NodeInfo, ShardInfo, ShardSpec, Topology, TopologySpec, is_weak,
};

type Nodes = BTreeMap<NodeId, NodeInfo>;
type Shards = BTreeMap<ShardId, ShardInfo>;

impl Topology {
    /// Refuses what cannot work. Reports one fault at a time, the first in the order of regions,
    /// nodes, shards and databases.
    pub fn new(spec: TopologySpec) -> Result<Self, InvalidTopology> {
        let regions = check_regions(spec.regions)?;
        let nodes = check_nodes(&regions, spec.nodes)?;
        let shards = check_shards(&regions, &nodes, spec.shards)?;
        let databases = check_databases(&shards, spec.databases)?;
        let default_database = match spec.default_database {
            None => None,
            Some(name) => match databases.values().find(|database| database.name == name) {
                Some(database) => Some(database.id),
                None => return Err(InvalidTopology::UnknownDefault(name)),
            },
        };
        Ok(Self { cluster: None, regions, nodes, shards, databases, default_database })
    }
}

fn check_regions(regions: Vec<String>) -> Result<Vec<String>, InvalidTopology> {
    if regions.is_empty() {
        return Err(InvalidTopology::NoRegions);
    }
    let mut seen = HashSet::new();
    for (index, region) in regions.iter().enumerate() {
        check_name(region, || format!("region number {} of `regions`", index + 1))?;
        if !seen.insert(region) {
            return Err(InvalidTopology::DuplicateRegion(region.clone()));
        }
    }
    Ok(regions)
}

fn check_nodes(regions: &[String], nodes: Vec<NodeInfo>) -> Result<Nodes, InvalidTopology> {
    let mut by_id = Nodes::new();
    let mut names = HashMap::new();
    let mut addresses = BTreeMap::new();
    for node in nodes {
        let id = node.id;
        if id == 0 {
            return Err(InvalidTopology::NodeZero { name: node.name });
        }
        check_name(&node.name, || format!("node {id}"))?;
        if let Some(first) = by_id.get(&id) {
            return Err(InvalidTopology::DuplicateNode {
                id,
                first: first.name.clone(),
                second: node.name,
            });
        }
        if let Some(first) = names.insert(node.name.clone(), id) {
            return Err(InvalidTopology::DuplicateNodeName { name: node.name, first, second: id });
        }
        if !regions.contains(&node.region) {
            return Err(InvalidTopology::NodeRegion {
                node: id,
                region: node.region,
                regions: quoted_list(regions),
            });
        }
        check_name(&node.data_center, || format!("the data center of node {id}"))?;
        check_addresses(&node, &mut addresses)?;
        by_id.insert(id, node);
    }
    if by_id.is_empty() { Err(InvalidTopology::NoNodes) } else { Ok(by_id) }
}

fn check_addresses(
    node: &NodeInfo,
    taken: &mut BTreeMap<Address, (NodeId, AddressField)>,
) -> Result<(), InvalidTopology> {
    let kv = node.kv_address.as_ref().map(|address| (address, AddressField::Kv));
    for (text, field) in [(&node.rpc_address, AddressField::Rpc)].into_iter().chain(kv) {
        let address = Address::parse_dialable(text).map_err(|cause| InvalidTopology::Address {
            node: node.id,
            field,
            cause,
        })?;
        if let Some((first, first_field)) = taken.insert(address, (node.id, field)) {
            return Err(InvalidTopology::DuplicateAddress {
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
) -> Result<Shards, InvalidTopology> {
    let mut by_id = Shards::new();
    for spec in shards {
        let shard = check_shard(regions, nodes, spec)?;
        if let Some(first) = by_id.insert(shard.id, shard) {
            return Err(InvalidTopology::DuplicateShard(first.id));
        }
    }
    if by_id.is_empty() { Err(InvalidTopology::NoShards) } else { Ok(by_id) }
}

fn check_shard(
    regions: &[String],
    nodes: &Nodes,
    spec: ShardSpec,
) -> Result<ShardInfo, InvalidTopology> {
    let ShardSpec { id: shard, primary_region, voters, preferred_leader, allow_weak_quorum } = spec;
    if shard.0 == 0 {
        return Err(InvalidTopology::ShardZero);
    }
    if !regions.contains(&primary_region) {
        return Err(InvalidTopology::ShardRegion {
            shard,
            region: primary_region,
            regions: quoted_list(regions),
        });
    }
    let listed = voters.unwrap_or_else(|| {
        nodes.values().filter(|node| node.region == primary_region).map(|node| node.id).collect()
    });
    let mut voters: BTreeMap<NodeId, &NodeInfo> = BTreeMap::new();
    for id in listed {
        let node = nodes.get(&id).ok_or(InvalidTopology::UnknownVoter { shard, node: id })?;
        if node.region != primary_region {
            let region = node.region.clone();
            return Err(InvalidTopology::ForeignVoter { shard, node: id, region, primary_region });
        }
        if voters.insert(id, node).is_some() {
            return Err(InvalidTopology::DuplicateVoter { shard, node: id });
        }
    }
    if voters.is_empty() {
        return Err(InvalidTopology::NoVoters { shard, region: primary_region });
    }
    check_distinct_data_centers(shard, &voters)?;
    if is_weak(voters.len()) && !allow_weak_quorum {
        return Err(InvalidTopology::WeakQuorum { shard, voters: voters.len() });
    }
    if let Some(node) = preferred_leader.filter(|leader| !voters.contains_key(leader)) {
        let voters: Vec<String> = voters.keys().map(NodeId::to_string).collect();
        return Err(InvalidTopology::PreferredLeader { shard, node, voters: voters.join(", ") });
    }
    let voters: BTreeSet<NodeId> = voters.into_keys().collect();
    Ok(ShardInfo { id: shard, epoch: Epoch::FIRST, primary_region, voters, preferred_leader })
}

/// A commit counts as safe once two voters have it, so two voters must never fail together.
fn check_distinct_data_centers(
    shard: ShardId,
    voters: &BTreeMap<NodeId, &NodeInfo>,
) -> Result<(), InvalidTopology> {
    let mut data_centers = HashMap::new();
    let mut hosts = BTreeMap::new();
    for (&second, node) in voters {
        if let Some(first) = data_centers.insert(&node.data_center, second) {
            let (data_center, region) = (node.data_center.clone(), node.region.clone());
            return Err(InvalidTopology::SameDataCenter {
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
            return Err(InvalidTopology::SameHost { shard, first, second, host: shown });
        }
    }
    Ok(())
}

fn check_databases(
    shards: &Shards,
    databases: Vec<DatabaseInfo>,
) -> Result<BTreeMap<DatabaseId, DatabaseInfo>, InvalidTopology> {
    let mut by_id: BTreeMap<DatabaseId, DatabaseInfo> = BTreeMap::new();
    let mut names = HashSet::new();
    for database in databases {
        let DatabaseInfo { id, shard, .. } = database;
        let name = database.name.clone();
        if name.is_empty() {
            return Err(InvalidTopology::EmptyDatabaseName { id });
        }
        if !name.bytes().all(|byte| is_plain(byte) || byte == b'~') {
            return Err(InvalidTopology::DatabaseName(name));
        }
        if !names.insert(name.clone()) {
            return Err(InvalidTopology::DuplicateDatabaseName(name));
        }
        if !shards.contains_key(&shard) {
            return Err(InvalidTopology::DatabaseShard { database: name, shard });
        }
        if let Some(first) = by_id.insert(id, database) {
            return Err(InvalidTopology::DuplicateDatabase { id, first: first.name, second: name });
        }
    }
    if by_id.is_empty() { Err(InvalidTopology::NoDatabases) } else { Ok(by_id) }
}

fn check_name(name: &str, of: impl FnOnce() -> String) -> Result<(), InvalidTopology> {
    if name.is_empty() {
        return Err(InvalidTopology::EmptyName { of: of() });
    }
    // `.` and `..` would be folders when a node's name becomes a path.
    if !name.bytes().all(is_plain) || name.bytes().all(|byte| byte == b'.') {
        return Err(InvalidTopology::MalformedName { of: of(), name: name.to_owned() });
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

pub(super) fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
