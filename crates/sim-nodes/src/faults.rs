//! The faults of a run, and when they come.

use std::time::Duration;

use meridian_sim_kernel::{self as kernel, Chance, Crash, MachineId};
use meridian_types::NodeId;

use crate::cluster::Cluster;
use crate::story::Story;

const CALM_MS: std::ops::Range<u64> = 200..1_500;
const DOWN_MS: std::ops::Range<u64> = 0..3_000;
/// Beyond elections, leases and single tries inside the cluster, and below.
const PAUSE_MS: std::ops::Range<u64> = 300..4_500;
const CUT_MS: std::ops::Range<u64> = 300..8_000;
/// A region that is away for so long is failed over.
const REGION_AWAY_MS: std::ops::Range<u64> = 3_000..25_000;
const SLOW_DISK_MS: std::ops::Range<u64> = 20..300;
const SLOW_LINK_MS: std::ops::Range<u64> = 20..400;
const SLOW_FOR_MS: std::ops::Range<u64> = 500..5_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A node loses what is not synced, and starts again.
    Crash,
    /// Several nodes at once.
    CrashMany,
    /// All nodes at once.
    CrashAll,
    /// A node is stopped as an operator does it, and starts again.
    Stop,
    Pause,
    /// A node hears nothing, is not heard, or both.
    Cut,
    /// The connections between two nodes break.
    Sever,
    SlowDisk,
    SlowLink,
    /// All nodes of a region lose power.
    LoseRegion,
    /// A region is cut from the others.
    CutRegion,
}

const OF_NODES: &[Fault] = &[
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashMany,
    Fault::CrashAll,
    Fault::Stop,
    Fault::Pause,
    Fault::Pause,
    Fault::Cut,
    Fault::Cut,
    Fault::Sever,
    Fault::SlowDisk,
    Fault::SlowLink,
];
const OF_REGIONS: &[Fault] = &[Fault::LoseRegion, Fault::CutRegion];

/// Brings a cluster into trouble, and out of it.
pub(crate) struct Faults<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) chance: Chance,
    pub(crate) story: &'a mut Story,
    pub(crate) regions: usize,
}

impl Faults<'_> {
    /// Lets one thing after the other go wrong, and come right again, for so long. All nodes crash
    /// at least once, and one of several regions is lost.
    pub(crate) fn run(&mut self, lasts: Duration) -> anyhow::Result<()> {
        let until = kernel::now() + lasts;
        let (mut region, mut all) = (self.regions > 1, true);
        while kernel::now() < until {
            self.wait(CALM_MS);
            let of_regions = region && self.chance.below(3) == 0;
            let kinds = if of_regions { OF_REGIONS } else { OF_NODES };
            let Some(fault) = self.chance.pick(kinds).copied() else { continue };
            region &= !of_regions;
            all &= fault != Fault::CrashAll;
            self.strike(fault)?;
        }
        if region && let Some(fault) = self.chance.pick(OF_REGIONS).copied() {
            self.strike(fault)?;
            self.wait(CALM_MS);
        }
        if all { self.strike(Fault::CrashAll) } else { Ok(()) }
    }

    fn strike(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Crash => self.crash(1),
            Fault::CrashMany => {
                let most = self.cluster.hosts.len() as u64;
                let count = self.chance.within(2..most.max(3));
                self.crash(usize::try_from(count).unwrap_or(2))
            }
            Fault::CrashAll => self.crash(self.cluster.hosts.len()),
            Fault::Stop => self.stop(),
            Fault::Pause => self.pause(),
            Fault::Cut => self.cut_node(),
            Fault::Sever => self.sever(),
            Fault::SlowDisk => self.slow_disk(),
            Fault::SlowLink => self.slow_link(),
            Fault::LoseRegion => self.lose_region(),
            Fault::CutRegion => self.cut_region(),
        }
    }

    fn wait(&mut self, range_ms: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.chance.within(range_ms)));
    }

    /// One node; often of the first region, where most decisions fall.
    fn any_node(&mut self) -> NodeId {
        let of_first = self.cluster.region(0);
        let nodes = if self.chance.below(2) == 0 { of_first } else { self.cluster.nodes() };
        self.chance.pick(&nodes).copied().unwrap_or(NodeId(1))
    }

    fn some_nodes(&mut self, count: usize) -> Vec<NodeId> {
        let mut from = self.cluster.nodes();
        let mut chosen = Vec::new();
        while chosen.len() < count
            && let Some(node) = self.chance.pick(&from).copied()
        {
            from.retain(|other| *other != node);
            chosen.push(node);
        }
        chosen
    }

    fn lose(&mut self, nodes: &[NodeId], away_ms: std::ops::Range<u64>) -> anyhow::Result<()> {
        let how = if self.chance.below(2) == 0 { Crash::Power } else { Crash::Processes };
        self.story.say(&format!("nodes {nodes:?} crash ({how:?})"));
        for node in nodes {
            self.cluster.crash(*node, how)?;
        }
        self.wait(away_ms);
        for node in nodes {
            self.story.say(&format!("node {node} starts"));
            self.cluster.start(*node)?;
            self.wait(0..300);
        }
        Ok(())
    }

    fn crash(&mut self, count: usize) -> anyhow::Result<()> {
        let nodes = if count == 1 { vec![self.any_node()] } else { self.some_nodes(count) };
        self.lose(&nodes, DOWN_MS)
    }

    fn lose_region(&mut self) -> anyhow::Result<()> {
        let region = self.any_region();
        let nodes = self.cluster.region(region);
        self.lose(&nodes, REGION_AWAY_MS)
    }

    fn any_region(&mut self) -> usize {
        // Two of three times the region that is primary at first.
        match self.chance.below(3) {
            0 => usize::try_from(self.chance.below(self.regions as u64)).unwrap_or(0),
            _ => 0,
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let node = self.any_node();
        self.story.say(&format!("node {node} is told to stop"));
        self.cluster.stop(node)?;
        self.wait(DOWN_MS);
        self.story.say(&format!("node {node} starts"));
        self.cluster.start(node)
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        let node = self.any_node();
        let machine = self.cluster.host(node)?.machine;
        self.story.say(&format!("node {node} stands still"));
        kernel::pause(machine);
        self.wait(PAUSE_MS);
        self.story.say(&format!("node {node} goes on"));
        kernel::resume(machine);
        Ok(())
    }

    /// The machines of some nodes, and all others of the cluster.
    fn divide(&self, nodes: &[NodeId]) -> (Vec<MachineId>, Vec<MachineId>) {
        let hosts = self.cluster.hosts.iter();
        let (these, others): (Vec<_>, Vec<_>) = hosts.partition(|(node, _)| nodes.contains(node));
        let machines = |hosts: Vec<(&NodeId, &crate::cluster::Host)>| {
            hosts.into_iter().map(|(_, host)| host.machine).collect()
        };
        (machines(these), machines(others))
    }

    /// Cuts some nodes from the others in one direction or both. Clients reach all.
    fn cut(&mut self, nodes: &[NodeId], for_ms: std::ops::Range<u64>) {
        let (these, others) = self.divide(nodes);
        let (hear, are_heard) = match self.chance.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (false, false),
        };
        self.story.say(&format!(
            "nodes {nodes:?} are cut from the others (hear: {hear}, are heard: {are_heard})"
        ));
        let pairs = these.iter().flat_map(|this| others.iter().map(move |other| (*this, *other)));
        let pairs: Vec<_> = pairs.collect();
        for (this, other) in &pairs {
            if !are_heard {
                kernel::cut(*this, *other);
            }
            if !hear {
                kernel::cut(*other, *this);
            }
        }
        self.wait(for_ms);
        self.story.say(&format!("nodes {nodes:?} are no longer cut"));
        for (this, other) in pairs {
            kernel::heal(this, other);
            kernel::heal(other, this);
        }
    }

    fn cut_node(&mut self) -> anyhow::Result<()> {
        let node = self.any_node();
        self.cut(&[node], CUT_MS);
        Ok(())
    }

    fn cut_region(&mut self) -> anyhow::Result<()> {
        let region = self.any_region();
        let nodes = self.cluster.region(region);
        self.cut(&nodes, REGION_AWAY_MS);
        Ok(())
    }

    fn sever(&mut self) -> anyhow::Result<()> {
        let pair = self.some_nodes(2);
        let [one, other] = pair.as_slice() else { return Ok(()) };
        self.story.say(&format!("connections between nodes {one} and {other} break"));
        kernel::sever(self.cluster.host(*one)?.machine, self.cluster.host(*other)?.machine);
        Ok(())
    }

    fn slow_disk(&mut self) -> anyhow::Result<()> {
        let node = self.any_node();
        let by = Duration::from_millis(self.chance.within(SLOW_DISK_MS));
        self.story.say(&format!("the disk of node {node} takes {} ms more", by.as_millis()));
        self.cluster.slow_disk(node, by)?;
        self.wait(SLOW_FOR_MS);
        self.story.say(&format!("the disk of node {node} is as before"));
        self.cluster.slow_disk(node, Duration::ZERO)
    }

    fn slow_link(&mut self) -> anyhow::Result<()> {
        let pair = self.some_nodes(2);
        let [one, other] = pair.as_slice() else { return Ok(()) };
        let (from, to) = (self.cluster.host(*one)?.machine, self.cluster.host(*other)?.machine);
        let by = Duration::from_millis(self.chance.within(SLOW_LINK_MS));
        self.story.say(&format!("from node {one} to {other} it takes {} ms more", by.as_millis()));
        self.cluster.slow_link(from, to, by);
        self.wait(SLOW_FOR_MS);
        self.story.say(&format!("from node {one} to {other} it takes as long as before"));
        self.cluster.slow_link(from, to, Duration::ZERO);
        Ok(())
    }
}
