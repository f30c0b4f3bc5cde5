//! Nodes, shards, databases and regions by the names that operators use.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use meridian_directory::{Cluster, Node, Shard};
use meridian_types::{DatabaseId, NodeId, ShardId};

use super::format::count;

/// Finds a node by id or name. A removed node is found by its id only.
pub(crate) fn node<'a>(cluster: &'a Cluster, text: &str) -> Result<(NodeId, &'a Node)> {
    let by_id =
        text.parse().ok().and_then(|id: NodeId| cluster.nodes.get(&id).map(|node| (id, node)));
    let mut live = cluster.nodes.iter().filter(|(_, node)| !node.removed);
    let by_name = live.find(|(_, node)| node.name == text).map(|(id, node)| (*id, node));
    match (by_id, by_name) {
        (Some(found), Some(other)) if found.0 != other.0 => {
            bail!("`{text}` is the id of node {} and the name of node {}", found.0, other.0)
        }
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) => {
            let names = cluster.nodes.iter().filter(|(_, node)| !node.removed);
            let names: Vec<String> =
                names.map(|(id, node)| format!("{id} ({})", node.name)).collect();
            bail!("there is no node `{text}`; there are {}", names.join(", "))
        }
    }
}

/// Finds several nodes by id or name; each may be named once.
pub(crate) fn nodes(cluster: &Cluster, texts: &[String]) -> Result<BTreeSet<NodeId>> {
    let mut ids = BTreeSet::new();
    for text in texts {
        let (id, node) = node(cluster, text)?;
        if !ids.insert(id) {
            bail!("node {id} ({}) is named twice", node.name);
        }
    }
    Ok(ids)
}

/// Finds a shard by its number.
pub(crate) fn shard<'a>(cluster: &'a Cluster, text: &str) -> Result<(ShardId, &'a Shard)> {
    let found = text.parse().ok().and_then(|id| cluster.shards.get_key_value(&ShardId(id)));
    let numbers: Vec<String> = cluster.shards.keys().map(ShardId::to_string).collect();
    found.map(|(id, shard)| (*id, shard)).ok_or_else(|| {
        anyhow!(
            "there is no shard `{text}`; there are {}",
            if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") }
        )
    })
}

/// Finds a database by name or id.
pub(crate) fn database(cluster: &Cluster, text: &str) -> Result<DatabaseId> {
    let named =
        cluster.databases.iter().find(|(_, database)| database.name == text).map(|(id, _)| *id);
    let by_id = || text.parse().ok().filter(|id| cluster.databases.contains_key(id));
    named.or_else(by_id).ok_or_else(|| {
        let names: Vec<&str> =
            cluster.databases.values().map(|database| database.name.as_str()).collect();
        anyhow!(
            "there is no database `{text}`; there are {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        )
    })
}

/// Finds a shard by its number, or by a database that lives in it.
pub(crate) fn shard_of<'a>(cluster: &'a Cluster, text: &str) -> Result<(ShardId, &'a Shard)> {
    if let Some(number) = text.strip_prefix("shard:") {
        return shard(cluster, number);
    }
    if let Some(name) = text.strip_prefix("database:") {
        return home(cluster, database(cluster, name)?);
    }
    match (shard(cluster, text), database(cluster, text)) {
        (Ok(_), Ok(_)) => {
            bail!("`{text}` is a shard and a database: write shard:{text} or database:{text}")
        }
        (Ok(found), Err(_)) => Ok(found),
        (Err(_), Ok(id)) => home(cluster, id),
        (Err(_), Err(_)) => {
            bail!("`{text}` is neither the number of a shard nor a database's name or id")
        }
    }
}

fn home(cluster: &Cluster, id: DatabaseId) -> Result<(ShardId, &Shard)> {
    let found = cluster
        .databases
        .get(&id)
        .and_then(|database| cluster.shards.get_key_value(&database.shard));
    found.map(|(id, shard)| (*id, shard)).ok_or_else(|| anyhow!("database {id} is in no shard"))
}

/// The names of the databases that live in a shard.
pub(crate) fn databases_in(cluster: &Cluster, shard: ShardId) -> Vec<&str> {
    let databases = cluster.databases.values().filter(|database| database.shard == shard);
    databases.map(|database| database.name.as_str()).collect()
}

/// Finds a region.
pub(crate) fn region<'a>(cluster: &'a Cluster, text: &str) -> Result<&'a str> {
    let found = cluster.regions.iter().find(|region| *region == text);
    found.map(String::as_str).ok_or_else(|| {
        anyhow!("there is no region `{text}`; there are {}", cluster.regions.join(", "))
    })
}

/// A node's name, for people.
pub(crate) fn node_name(cluster: &Cluster, id: NodeId) -> String {
    cluster.nodes.get(&id).map_or_else(|| format!("node {id}"), |node| node.name.clone())
}

/// Names of nodes in order of id, for people.
pub(crate) fn node_names<'a>(
    cluster: &Cluster,
    ids: impl IntoIterator<Item = &'a NodeId>,
) -> String {
    let names: Vec<String> = ids.into_iter().map(|id| node_name(cluster, *id)).collect();
    names.join(", ")
}

/// Fewer than three voters, or an even number; the check of configurations calls this weak too.
pub(crate) fn is_weak(voters: usize) -> bool {
    voters < 3 || voters.is_multiple_of(2)
}

/// Refuses a weak quorum unless it was explicitly allowed.
pub(crate) fn check_quorum(voters: &BTreeSet<NodeId>, allow_weak_quorum: bool) -> Result<()> {
    if allow_weak_quorum || !is_weak(voters.len()) {
        return Ok(());
    }
    bail!(
        "{}: with one voter there is a single copy; with two, the loss of either stops all; an even number survives no more \
         losses than one fewer. Add --allow-weak-quorum to accept it",
        count(voters.len() as u64, "voter")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::cluster;

    #[test]
    fn things_are_found_by_number_and_name() {
        let cluster = cluster();
        assert_eq!(node(&cluster, "2").unwrap().0, NodeId(2));
        assert_eq!(node(&cluster, "region-2-a").unwrap().0, NodeId(4));
        assert!(node(&cluster, "x").unwrap_err().to_string().contains("4 (region-2-a)"));
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            nodes(&cluster, &texts(&["1", "region-1-b"])).unwrap(),
            BTreeSet::from([1, 2].map(NodeId))
        );
        assert!(
            nodes(&cluster, &texts(&["1", "region-1-a"]))
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert_eq!(shard_of(&cluster, "2").unwrap().0, ShardId(2));
        assert_eq!(shard_of(&cluster, "default").unwrap().0, ShardId(1));
        assert_eq!(
            shard_of(&cluster, "00000000-0000-4000-8000-000000000002").unwrap().0,
            ShardId(2)
        );
        assert!(shard_of(&cluster, "x").is_err());
        assert!(
            region(&cluster, "region-9").unwrap_err().to_string().contains("region-1, region-2")
        );
        assert_eq!(databases_in(&cluster, ShardId(2)), ["second"]);
    }

    #[test]
    fn weak_quorum_needs_the_flag() {
        check_quorum(&[1, 2, 3].map(NodeId).into(), false).unwrap();
        for voters in [1, 2, 4] {
            let voters = (1..=voters).map(NodeId).collect();
            assert!(
                check_quorum(&voters, false)
                    .unwrap_err()
                    .to_string()
                    .contains("--allow-weak-quorum")
            );
            check_quorum(&voters, true).unwrap();
        }
    }

    #[test]
    fn ambiguous_name_is_refused() {
        let mut cluster = cluster();
        for database in cluster.databases.values_mut() {
            if database.name == "second" {
                database.name = "1".to_owned();
            }
        }
        assert!(shard_of(&cluster, "1").unwrap_err().to_string().contains("shard:1 or database:1"));
        assert_eq!(shard_of(&cluster, "shard:1").unwrap().0, ShardId(1));
        assert_eq!(shard_of(&cluster, "database:1").unwrap().0, ShardId(2));
    }
}
