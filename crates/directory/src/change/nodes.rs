//! Regions, nodes, and the voters of the directory.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::NodeId;

use crate::change::names::{check_address, check_name};
use crate::change::{Refused, ensure};
use crate::cluster::{Cluster, Node};
use crate::shard::{Phase, Shard};
use crate::trust::Member;

impl Cluster {
    pub(super) fn live_node(&self, id: NodeId) -> Result<&Node, Refused> {
        let node = self.nodes.get(&id).ok_or_else(|| Refused(format!("there is no node {id}")))?;
        ensure(!node.removed, || format!("node {id} ({}) was removed", node.name))?;
        Ok(node)
    }

    pub(super) fn check_region(&self, name: &str) -> Result<(), Refused> {
        ensure(self.regions.iter().any(|region| region == name), || {
            format!("there is no region {name}")
        })
    }

    /// A region that can hold a primary.
    pub(super) fn check_region_with_nodes(&self, name: &str) -> Result<(), Refused> {
        self.check_region(name)?;
        ensure(self.nodes_of(name).next().is_some(), || format!("region {name} has no nodes"))
    }

    pub(super) fn name_cluster(&mut self, id: &str) -> Result<(), Refused> {
        let sound =
            (16..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure(sound, || {
            format!("`{id}` is not the id of a cluster: 16 to 64 hexadecimal digits")
        })?;
        ensure(self.id.is_none(), || "the cluster has an id already, and keeps it".to_owned())?;
        self.id = Some(id.to_owned());
        Ok(())
    }

    pub(super) fn record_incarnation(
        &mut self,
        id: NodeId,
        incarnation: &str,
    ) -> Result<(), Refused> {
        let known = self.live_node(id)?;
        ensure(!incarnation.is_empty(), || "an incarnation may not be empty".to_owned())?;
        if let Some(first) = known.incarnation.as_deref().filter(|first| *first != incarnation) {
            return Err(Refused(format!(
                "node {id} ({}) first spoke from another data folder ({first}): it may have voted, so an empty or \
                 foreign folder cannot take its place; replace the node instead",
                known.name
            )));
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.incarnation = Some(incarnation.to_owned());
        }
        Ok(())
    }

    pub(super) fn add_region(&mut self, name: &str) -> Result<(), Refused> {
        check_name("region", name, &[])?;
        ensure(self.check_region(name).is_err(), || format!("region {name} exists already"))?;
        self.regions.push(name.to_owned());
        Ok(())
    }

    pub(super) fn remove_region(&mut self, name: &str) -> Result<(), Refused> {
        self.check_region(name)?;
        if let Some((_, node)) = self.nodes_of(name).next() {
            return Err(Refused(format!(
                "{} is in region {name}: remove its nodes first",
                node.name
            )));
        }
        for (id, shard) in &self.shards {
            ensure(shard.primary_region != name, || {
                format!("shard {id} has its primary in region {name}")
            })?;
            let target = match &shard.phase {
                Phase::SwitchingOver { to } => Some(to),
                Phase::Sealing(plan) => plan.to.as_ref(),
                Phase::Forming | Phase::Active => None,
            };
            ensure(target.is_none_or(|to| to != name), || {
                format!("shard {id} is on its way to region {name}")
            })?;
        }
        let belongs = self.databases.values().find(|database| database.primary_region == name);
        ensure(belongs.is_none(), || {
            let database = belongs.map(|database| database.name.as_str()).unwrap_or_default();
            format!(
                "database {database} belongs to region {name}: set another primary region first"
            )
        })?;
        self.regions.retain(|region| region != name);
        Ok(())
    }

    /// Gives the node its id, which is returned.
    pub(super) fn add_node(&mut self, node: &Node) -> Result<NodeId, Refused> {
        check_name("node", &node.name, &[])?;
        check_name("data center", &node.data_center, &[])?;
        self.check_region(&node.region)?;
        check_address("node's rpc", &node.rpc_address)?;
        if let Some(address) = &node.kv_address {
            check_address("node's kv", address)?;
        }
        let addresses: Vec<_> =
            [Some(&node.rpc_address), node.kv_address.as_ref()].into_iter().flatten().collect();
        ensure(addresses.first() != addresses.get(1), || {
            format!("{} cannot have {} for both of its addresses", node.name, node.rpc_address)
        })?;
        for (id, other) in self.nodes.iter().filter(|(_, other)| !other.removed) {
            ensure(other.name != node.name, || {
                format!("node {id} is called {} already", node.name)
            })?;
            let taken = |address: &&&String| {
                other.rpc_address == ***address || other.kv_address.as_ref() == Some(**address)
            };
            if let Some(address) = addresses.iter().find(taken) {
                return Err(Refused(format!(
                    "{address} is the address of node {id} ({}) already",
                    other.name
                )));
            }
        }
        let id = self
            .last_node_id
            .0
            .checked_add(1)
            .map(NodeId)
            .ok_or_else(|| Refused("all node ids were used".to_owned()))?;
        self.last_node_id = id;
        self.nodes.insert(id, Node { incarnation: None, removed: false, ..node.clone() });
        Ok(id)
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<(), Refused> {
        let name = self.live_node(id)?.name.clone();
        if let Some((shard, _)) = self.shards.iter().find(|(_, shard)| shard.voters.contains(&id)) {
            return Err(Refused(format!(
                "{name} votes in shard {shard}: set other voters, or replace the node"
            )));
        }
        self.check_decides_no_more(id)?;
        ensure(!self.directory_voters.contains(&id), || {
            format!(
                "{name} votes in the directory: set other directory voters, or replace the node"
            )
        })?;
        self.mark_removed(id);
        self.trust.founders.remove(&id);
        Ok(())
    }

    /// A former voter may still vote in its group, where no replacement takes its place.
    fn check_decides_no_more(&self, id: NodeId) -> Result<(), Refused> {
        let former = |shard: &Shard| !shard.voters.contains(&id) && shard.may_vote(id);
        let found = self.shards.iter().find(|(_, shard)| former(shard));
        ensure(found.is_none(), || {
            let shard = found.map(|(shard, _)| shard.to_string()).unwrap_or_default();
            format!(
                "{} still votes in shard {shard}: wait until its voters have changed",
                self.name_of(id)
            )
        })
    }

    pub(super) fn replace_node(&mut self, old: NodeId, new: &Node) -> Result<(), Refused> {
        let known = self.live_node(old)?.clone();
        ensure(known.region == new.region, || {
            format!(
                "{} is in region {}: its replacement has to be there, too",
                known.name, known.region
            )
        })?;
        self.check_decides_no_more(old)?;
        for (id, shard) in self.shards.iter().filter(|(_, shard)| shard.voters.contains(&old)) {
            // The end of an epoch is judged by its voters.
            ensure(shard.phase == Phase::Active, || {
                format!("{} votes in shard {id}, which is not active: wait until it is", known.name)
            })?;
        }
        // Before the new one is added, so that it may take over the name and the addresses.
        self.mark_removed(old);
        let id = self.add_node(new)?;
        let version = self.version + 1;
        for shard in self.shards.values_mut() {
            let mut voters = shard.voters.clone();
            if voters.remove(&old) {
                voters.insert(id);
            }
            shard.change_voters(voters, version);
            shard.preferred_leader =
                shard.preferred_leader.map(|leader| if leader == old { id } else { leader });
        }
        if self.trust.founders.remove(&old) {
            self.trust.founders.insert(id);
        }
        if self.directory_voters.remove(&old) {
            self.directory_voters.insert(id);
            self.check_directory_voters()?;
        }
        Ok(())
    }

    pub(super) fn set_directory_voters(
        &mut self,
        voters: &BTreeSet<NodeId>,
    ) -> Result<(), Refused> {
        let before = std::mem::replace(&mut self.directory_voters, voters.clone());
        self.former_directory_voters.extend(before);
        self.former_directory_voters.retain(|former| !voters.contains(former));
        self.trust.founders.clear();
        self.check_directory_voters()
    }

    fn check_directory_voters(&self) -> Result<(), Refused> {
        ensure(!self.directory_voters.is_empty(), || {
            "the directory would have no voters".to_owned()
        })?;
        let mut taken = BTreeMap::new();
        for voter in &self.directory_voters {
            let node = self.live_node(*voter)?;
            if let Some(other) = taken.insert((&node.region, &node.data_center), &node.name) {
                let (name, place) = (&node.name, &node.data_center);
                return Err(Refused(format!(
                    "{other} and {name} are both in data center {place}: only one may vote"
                )));
            }
        }
        Ok(())
    }

    fn mark_removed(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.removed = true;
        }
        self.former_directory_voters.remove(&id);
        self.trust.forget_invitations_of(&Member::Node(id));
    }
}
