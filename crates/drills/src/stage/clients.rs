//! The clients of a drill, and the gateways that they use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::NodeId;

use crate::cluster::{Cluster, ClusterError};
use crate::kv_connect::DEFAULT_DATABASE;
use crate::network::Machine;
use crate::workload::{Gateway, Manner, Pressure, Profile, Role};

/// The clients of the primary region.
const NEAR: [(Role, u64); 3] =
    [(Role::Writer, 4), (Role::StrongReader, 2), (Role::EventualReader, 2)];
/// The clients of each other region. There are enough writers that one is answered well within a
/// round trip of another: otherwise their own pauses would look like an outage.
const FAR: [(Role, u64); 3] =
    [(Role::Writer, 6), (Role::StrongReader, 3), (Role::EventualReader, 2)];
const WRITER_THINKS: Duration = Duration::from_millis(8);
const READER_THINKS: Duration = Duration::from_millis(20);

/// A gateway that clients use.
type Entry = (Machine, Arc<Gateway>);

/// The gateways of each region: the stateless one, and those of its nodes.
#[derive(Default)]
pub(super) struct Gateways {
    regions: Vec<Vec<Entry>>,
}

impl Gateways {
    /// `stateless`: the URL of the region's stateless gateway. Call it region by region.
    pub(super) fn add(
        &mut self,
        cluster: &Cluster,
        region: usize,
        stateless: String,
    ) -> Result<(), ClusterError> {
        let machine = Machine::Gateway(region);
        let mut entries =
            vec![(machine, Gateway::new(format!("gateway-{}", region + 1), stateless))];
        for id in cluster.region(region) {
            let machine = Machine::Node(id);
            entries.push((machine, Gateway::new(format!("node-{id}"), cluster.url(machine)?)));
        }
        self.regions.push(entries);
        Ok(())
    }

    pub(super) fn of(&self, machine: Machine) -> Option<&Arc<Gateway>> {
        self.regions
            .iter()
            .flatten()
            .find(|(other, _)| *other == machine)
            .map(|(_, gateway)| gateway)
    }

    /// The gateways of each region.
    pub(super) fn by_region(&self) -> Vec<Vec<Arc<Gateway>>> {
        let of_region = |entries: &Vec<Entry>| {
            entries.iter().map(|(_, gateway)| Arc::clone(gateway)).collect::<Vec<_>>()
        };
        self.regions.iter().map(of_region).collect()
    }

    /// All clients. Those of a region spread over its gateways.
    pub(super) fn profiles(
        &self,
        home: usize,
        timeout: Duration,
        think: Option<Duration>,
        seed: u64,
    ) -> Vec<Profile> {
        let mut profiles = Vec::new();
        for (region, entries) in self.regions.iter().enumerate() {
            let mut at = 0;
            for (role, count) in if region == home { NEAR } else { FAR } {
                for _ in 0..count {
                    let mut gateways: Vec<_> =
                        entries.iter().map(|(_, gateway)| Arc::clone(gateway)).collect();
                    gateways.rotate_left(at % entries.len());
                    at += 1;
                    profiles.push(Profile {
                        number: u64::try_from(profiles.len()).unwrap_or(u64::MAX).saturating_add(1),
                        region,
                        role,
                        manner: Manner::Patient,
                        gateways,
                        timeout,
                        max_think: think.unwrap_or(if role == Role::Writer {
                            WRITER_THINKS
                        } else {
                            READER_THINKS
                        }),
                        mark_all: true,
                        seed,
                    });
                }
            }
        }
        profiles
    }

    /// Writes through the leading node, as of programs beside it, probed through a node of each
    /// other region.
    pub(super) fn pressure(
        &self,
        home: usize,
        leader: NodeId,
        per_second: u32,
        origin: Instant,
    ) -> Pressure {
        let of_nodes = |entries: &[Entry]| {
            let nodes = entries.iter().filter(|(machine, _)| matches!(machine, Machine::Node(_)));
            nodes.map(|(_, gateway)| Arc::clone(gateway)).collect::<Vec<_>>()
        };
        let near: Vec<_> = self.of(Machine::Node(leader)).cloned().into_iter().collect();
        let others = self.regions.iter().enumerate().filter(|(region, _)| *region != home);
        let far = others
            .filter_map(|(region, entries)| Some((region, of_nodes(entries).into_iter().next()?)));
        Pressure::start(DEFAULT_DATABASE, &near, &far.collect::<Vec<_>>(), per_second, origin)
    }
}
