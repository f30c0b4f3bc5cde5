//! Clusters to develop and test against.

use meridian_directory::Cluster;
use meridian_types::{DatabaseId, NodeId, ShardId};

use super::{ClusterSpec, DatabaseSpec, InvalidCluster, NodeSpec, ShardSpec};

/// `default`, in shard 1: `00000000-0000-4000-8000-000000000001`.
pub const DEV_DEFAULT_DATABASE: DatabaseId = dev_database(1);
/// `second`, in shard 2: `00000000-0000-4000-8000-000000000002`.
pub const DEV_SECOND_DATABASE: DatabaseId = dev_database(2);

const fn dev_database(number: u32) -> DatabaseId {
    let [a, b, c, d] = number.to_be_bytes();
    DatabaseId([0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, a, b, c, d])
}

/// The shape of a development cluster.
#[derive(Debug, Clone, Copy)]
pub struct DevLayout<'a> {
    /// How many data centers each region has, the primary first.
    pub counts: &'a [usize],
    pub allow_weak_quorum: bool,
    pub shards: u32,
    pub databases: u32,
}

impl<'a> DevLayout<'a> {
    /// Two shards, and a database in each. A weak quorum is not meant.
    pub fn new(counts: &'a [usize]) -> Self {
        Self { counts, allow_weak_quorum: false, shards: 2, databases: 2 }
    }

    /// The cluster of `meridian dev` and `scripts/cluster`: regions `region-1`, `region-2` …; one
    /// node in each of their data centers `a`, `b` …, named `region-1-a` and numbered from 1
    /// through all regions; shards from 1, all with their primary in the first region, led by nodes
    /// 1, 2 … in turn; and in them, in turn, the databases `default` ([`DEV_DEFAULT_DATABASE`]),
    /// `second` ([`DEV_SECOND_DATABASE`]), `database-3` and so on.
    ///
    /// # Errors
    /// [`InvalidCluster`], the first fault.
    pub fn found(
        self,
        rpc_address: impl Fn(NodeId) -> String,
        kv_address: impl Fn(NodeId) -> Option<String>,
    ) -> Result<Cluster, InvalidCluster> {
        let DevLayout { counts, allow_weak_quorum, shards, databases } = self;
        let mut spec =
            ClusterSpec { default_database: Some("default".to_owned()), ..ClusterSpec::default() };
        let mut ids = (1..).map(NodeId);
        for (number, &count) in (1..).zip(counts) {
            let region = format!("region-{number}");
            let data_centers = 'a'..='z';
            if count > data_centers.clone().count() {
                return Err(InvalidCluster::TooManyDataCenters { region, count });
            }
            // `ids` second: `zip` must not take an id that finds no data center.
            for (data_center, id) in data_centers.take(count).zip(ids.by_ref()) {
                spec.nodes.push(NodeSpec {
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
        let Some(primary_region) = spec.regions.first().cloned() else {
            return Err(InvalidCluster::NoRegions);
        };
        let primary_nodes = u64::try_from(*counts.first().unwrap_or(&0)).unwrap_or(u64::MAX);
        for number in 1..=shards {
            let leader = NodeId(1 + u64::from(number - 1) % primary_nodes.max(1));
            spec.shards.push(ShardSpec {
                id: ShardId(number),
                primary_region: primary_region.clone(),
                voters: None,
                preferred_leader: Some(leader),
                allow_weak_quorum,
            });
        }
        for number in 1..=databases {
            let name = match number {
                1 => "default".to_owned(),
                2 => "second".to_owned(),
                more => format!("database-{more}"),
            };
            let shard = ShardId(1 + (number - 1) % shards.max(1));
            spec.databases.push(DatabaseSpec { id: dev_database(number), name, shard });
        }
        spec.found()
    }
}

impl<'a, T: AsRef<[usize]> + ?Sized> From<&'a T> for DevLayout<'a> {
    fn from(counts: &'a T) -> Self {
        Self::new(counts.as_ref())
    }
}
