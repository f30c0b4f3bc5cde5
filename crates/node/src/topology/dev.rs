use meridian_types::{DatabaseId, NodeId, ShardId};

use super::{DatabaseInfo, InvalidTopology, NodeInfo, ShardSpec, Topology, TopologySpec};

/// `default`, in shard 1: `00000000-0000-4000-8000-000000000001`.
pub const DEV_DEFAULT_DATABASE: DatabaseId = dev_database(1);
/// `second`, in shard 2: `00000000-0000-4000-8000-000000000002`.
pub const DEV_SECOND_DATABASE: DatabaseId = dev_database(2);

const fn dev_database(number: u8) -> DatabaseId {
    DatabaseId([0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
}

/// How many data centers each region has, the primary first. Made from anything that is a slice of
/// counts; that way a weak quorum is not meant.
#[derive(Debug, Clone, Copy)]
pub struct DevLayout<'a> {
    pub counts: &'a [usize],
    pub allow_weak_quorum: bool,
}

impl<'a, T: AsRef<[usize]> + ?Sized> From<&'a T> for DevLayout<'a> {
    fn from(counts: &'a T) -> Self {
        Self { counts: counts.as_ref(), allow_weak_quorum: false }
    }
}

impl Topology {
    /// The topology of `meridian dev` and `scripts/cluster`: regions `region-1`, `region-2` …; one node
    /// in each of their data centers `a`, `b` …, named `region-1-a` and numbered from 1 through all
    /// regions; shards 1 and 2, both with their primary in the first region, led by nodes 1 and 2; and
    /// in them the databases `default` ([`DEV_DEFAULT_DATABASE`]) and `second` ([`DEV_SECOND_DATABASE`]).
    pub fn dev<'a>(
        layout: impl Into<DevLayout<'a>>,
        rpc_address: impl Fn(NodeId) -> String,
        kv_address: impl Fn(NodeId) -> Option<String>,
    ) -> Result<Self, InvalidTopology> {
        let DevLayout { counts, allow_weak_quorum } = layout.into();
        let mut spec = TopologySpec { default_database: Some("default".to_owned()), ..TopologySpec::default() };
        let mut ids = 1..;
        for (number, &count) in (1..).zip(counts) {
            let region = format!("region-{number}");
            let data_centers = 'a'..='z';
            if count > data_centers.clone().count() {
                return Err(InvalidTopology::TooManyDataCenters { region, count });
            }
            // `ids` second: `zip` must not take an id that finds no data center.
            for (data_center, id) in data_centers.take(count).zip(ids.by_ref()) {
                spec.nodes.push(NodeInfo {
                    id,
                    name: format!("{region}-{data_center}"),
                    region: region.clone(),
                    data_center: data_center.to_string(),
                    rpc_address: rpc_address(id),
                    kv_address: kv_address(id),
                });
            }
            spec.regions.push(region);
        }
        let Some(primary_region) = spec.regions.first().cloned() else { return Err(InvalidTopology::NoRegions) };
        let primary_nodes = NodeId::try_from(*counts.first().unwrap_or(&0)).unwrap_or(NodeId::MAX);
        for (number, leader, id, name) in
            [(1, 1, DEV_DEFAULT_DATABASE, "default"), (2, 2, DEV_SECOND_DATABASE, "second")]
        {
            spec.shards.push(ShardSpec {
                id: ShardId(number),
                primary_region: primary_region.clone(),
                voters: None,
                // With one node there, it leads both.
                preferred_leader: Some(primary_nodes.min(leader)),
                allow_weak_quorum,
            });
            spec.databases.push(DatabaseInfo { id, name: name.to_owned(), shard: ShardId(number) });
        }
        Self::new(spec)
    }
}
