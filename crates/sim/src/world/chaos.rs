//! Faults, and what operators do meanwhile.

use std::collections::BTreeSet;

use meridian_directory::{Change, Phase};
use meridian_types::NodeId;

use super::{Event, World};
use crate::client::FIRST_CLIENT;
use crate::clock::{Instant, MS, SECOND, wall_ms};
use crate::listeners::gateways;
use crate::message::{Message, len_at};
use crate::topology::{REGIONS, SHARD};

impl World {
    /// Faults begin.
    pub(crate) fn break_things(&mut self) {
        let severity = self.rng.below(4);
        self.network.loss = severity * self.rng.below(8);
        self.network.duplication = self.rng.below(15);
        self.network.delay = self.rng.below(20);
        self.faults = Some(self.rng.between(600, 4000) * MS);
        if let Some(listeners) = &mut self.listeners {
            listeners.set_calm(false);
        }
        self.schedule(0, Event::Chaos);
    }

    /// Faults are over: everything runs, and all links are well.
    pub(crate) fn heal(&mut self) {
        self.say("heals");
        self.faults = None;
        self.network.calm();
        if let Some(listeners) = &mut self.listeners {
            listeners.set_calm(true);
        }
        for id in self.ids.clone() {
            self.resume(id);
            self.start(id);
        }
    }

    /// An operator does what a shard in manual mode waits for.
    pub(crate) fn force_failover(&mut self) {
        let Some(shard) = self.shard() else { return };
        let cause = "an operator's word".to_owned();
        let since_ms = wall_ms(self.now);
        self.order(Change::ForceFailover {
            shard: SHARD,
            epoch: shard.epoch,
            to: None,
            since_ms,
            cause,
        });
    }

    pub(super) fn chaos(&mut self) {
        let Some(average) = self.faults else { return };
        self.one_fault();
        self.operate();
        self.starve();
        self.trouble_gateways();
        let next = self.rng.between(average / 4, average * 2);
        self.schedule(next, Event::Chaos);
    }

    fn one_fault(&mut self) {
        let primary = self.shard().map(|shard| shard.primary_region).unwrap_or_default();
        let anywhere =
            self.rng.pick(&REGIONS).map(|region| (*region).to_owned()).unwrap_or_default();
        // Faults that matter happen where the primary is.
        let region = if self.rng.chance(500) { primary } else { anywhere };
        let here = self.nodes_in(&region);
        let Some(&victim) = self.rng.pick(&here) else { return };
        match self.rng.below(100) {
            0..14 => self.crash_for(victim),
            14..24 => here.iter().for_each(|id| self.crash_for(*id)),
            24..34 => {
                let spared = self.rng.pick(&here).copied();
                here.iter().filter(|id| Some(**id) != spared).for_each(|id| self.crash_for(*id));
            }
            34..44 => self.pause_for(victim),
            44..48 => here.iter().for_each(|id| self.pause_for(*id)),
            48..58 => self.isolate(&BTreeSet::from([victim])),
            58..72 => self.isolate(&self.with_clients(&region)),
            72..76 => {
                let directory = self.directory();
                self.cut_off(&self.with_clients(&region), &directory);
            }
            76..80 => self.slow_down(&self.with_clients(&region)),
            80..94 => self.switch_over(),
            94..97 => self.purge(),
            _ => {
                let Some(shard) = self.shard().filter(|_| self.rng.chance(300)) else { return };
                let to = self.rng.chance(500).then(|| region.clone());
                let (epoch, cause) = (shard.epoch, "an operator's word".to_owned());
                let since_ms = wall_ms(self.now);
                self.order(Change::ForceFailover { shard: SHARD, epoch, to, since_ms, cause });
            }
        }
    }

    pub(super) fn nodes_in(&self, region: &str) -> Vec<NodeId> {
        let cluster = self.cluster();
        cluster
            .map(|cluster| cluster.nodes_of(region).map(|(id, _)| id).collect())
            .unwrap_or_default()
    }

    pub(super) fn with_clients(&self, region: &str) -> BTreeSet<NodeId> {
        let clients =
            self.clients.iter().filter(|client| client.region == region).map(|client| client.id);
        let gateways = self.listeners.iter().flat_map(|_| gateways(region));
        self.nodes_in(region).into_iter().chain(clients).chain(gateways).collect()
    }

    pub(super) fn all(&self) -> BTreeSet<NodeId> {
        let clients = self.clients.iter().map(|client| client.id);
        let regions = self.listeners.iter().flat_map(|_| REGIONS);
        self.ids.iter().copied().chain(clients).chain(regions.flat_map(gateways)).collect()
    }

    pub(super) fn directory(&self) -> BTreeSet<NodeId> {
        self.cluster().map(|cluster| cluster.directory_voters.clone()).unwrap_or_default()
    }

    /// Mostly short, at times longer than it takes to fail over.
    pub(super) fn some_time(&mut self) -> Instant {
        if self.rng.chance(500) {
            self.rng.between(200, 3000) * MS
        } else {
            self.rng.between(3, 15) * SECOND
        }
    }

    fn crash_for(&mut self, id: NodeId) {
        let time = self.some_time();
        self.crash(id);
        self.schedule(time, Event::Start(id));
    }

    fn pause_for(&mut self, id: NodeId) {
        let time = self.some_time();
        self.pause(id);
        self.schedule(time, Event::Resume(id));
    }

    /// From the rest, one way or both.
    fn isolate(&mut self, inside: &BTreeSet<NodeId>) {
        let outside = self.all().difference(inside).copied().collect();
        self.cut_off(inside, &outside);
    }

    fn cut_off(&mut self, inside: &BTreeSet<NodeId>, outside: &BTreeSet<NodeId>) {
        let until = self.now + self.some_time();
        let way = self.rng.below(5);
        let outside: BTreeSet<_> = outside.difference(inside).copied().collect();
        self.say(&format!("cut: {inside:?} from {outside:?}, way {way}"));
        if way != 0 {
            self.network.cut(inside.clone(), outside.clone(), until);
        }
        if way != 1 {
            self.network.cut(outside, inside.clone(), until);
        }
    }

    /// Delays all messages to a region; then may cut the region off.
    fn slow_down(&mut self, inside: &BTreeSet<NodeId>) {
        let outside: BTreeSet<_> = self.all().difference(inside).copied().collect();
        let (extra, lasts) = (self.rng.between(500, 4000) * MS, self.rng.between(500, 3000) * MS);
        self.say(&format!("slow: to {inside:?}, by {extra}"));
        self.network.slow(outside.clone(), inside.clone(), self.now + lasts, extra);
        if self.rng.chance(600) {
            let until = self.now + lasts + self.some_time();
            self.network.cut(inside.clone(), outside, until);
        }
    }

    fn switch_over(&mut self) {
        let phase = self.shard().map(|shard| shard.phase);
        let change = match phase {
            Some(Phase::SwitchingOver { .. } | Phase::Sealing(_)) if self.rng.chance(400) => {
                Change::CancelSwitchover { shard: SHARD }
            }
            _ => {
                let Some(to) = self.rng.pick(&REGIONS) else { return };
                Change::BeginSwitchover { shard: SHARD, to: (*to).to_owned() }
            }
        };
        let also_cancel = self.rng.chance(200);
        self.order(change);
        if also_cancel {
            self.order(Change::CancelSwitchover { shard: SHARD });
        }
        if self.rng.chance(250) {
            self.hit_voters();
        }
    }

    /// While a switchover is under way: one voter is cut off from the directory, the others
    /// restart.
    fn hit_voters(&mut self) {
        let mut voters: Vec<_> =
            self.shard().map(|shard| shard.voters.into_iter().collect()).unwrap_or_default();
        let Some(&spared) = self.rng.pick(&voters) else { return };
        let until = self.now + self.some_time();
        let (inside, directory) = (BTreeSet::from([spared]), self.directory());
        self.network.cut(inside.clone(), directory.clone(), until);
        self.network.cut(directory, inside, until);
        voters.retain(|voter| *voter != spared);
        self.say(&format!("cut n{spared} from the directory; {voters:?} will restart"));
        for voter in voters {
            let at = self.rng.between(100, 1200) * MS;
            let lasts = self.rng.between(20, 200) * MS;
            self.schedule(at, Event::Crash(voter));
            self.schedule(at + lasts, Event::Start(voter));
        }
    }

    /// To every voter of the directory: its leader takes it.
    pub(super) fn order(&mut self, change: Change) {
        for id in self.directory() {
            self.send(FIRST_CLIENT, id, Message::Order(change.clone()));
        }
    }

    fn purge(&mut self) {
        let Some(&id) = self.rng.pick(&self.ids) else { return };
        let keep = len_at(self.rng.below(100));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk.purged = node.disk.purged.max(node.disk.history.len().saturating_sub(keep));
        }
    }
}
