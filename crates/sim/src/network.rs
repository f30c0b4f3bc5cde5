//! A network that loses, delays, doubles and reorders.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::NodeId;

use crate::clock::{Instant, MS, SECOND};
use crate::rng::Rng;

/// A fault of the links from some nodes to others.
#[derive(Debug, Clone)]
struct Trouble {
    from: BTreeSet<NodeId>,
    to: BTreeSet<NodeId>,
    until: Instant,
    /// `None`: nothing gets through.
    extra: Option<Instant>,
}

/// Links that lose, delay, double and reorder; and those that are cut.
#[derive(Debug, Default)]
pub(crate) struct Network {
    troubles: Vec<Trouble>,
    /// When the last message on each way arrives: connections keep the order.
    last: BTreeMap<(NodeId, NodeId), Instant>,
    /// Chances, in a thousand, while the weather is bad.
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) delay: u64,
}

impl Network {
    pub(crate) fn cut(&mut self, from: BTreeSet<NodeId>, to: BTreeSet<NodeId>, until: Instant) {
        self.troubles.push(Trouble { from, to, until, extra: None });
    }

    /// Everything takes `extra` longer, and arrives even if the link is cut meanwhile.
    pub(crate) fn slow(
        &mut self,
        from: BTreeSet<NodeId>,
        to: BTreeSet<NodeId>,
        until: Instant,
        extra: Instant,
    ) {
        self.troubles.push(Trouble { from, to, until, extra: Some(extra) });
    }

    pub(crate) fn calm(&mut self) {
        *self = Self { last: std::mem::take(&mut self.last), ..Self::default() };
    }

    /// When the copies of a message arrive.
    pub(crate) fn arrivals(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        from: NodeId,
        to: NodeId,
        is_wan: bool,
    ) -> Vec<Instant> {
        if from == to {
            return vec![now + 10];
        }
        self.troubles.retain(|trouble| trouble.until > now);
        let mut due = now + if is_wan { 35 * MS + rng.below(10 * MS) } else { 500 + rng.below(MS) };
        for trouble in self
            .troubles
            .iter()
            .filter(|trouble| trouble.from.contains(&from) && trouble.to.contains(&to))
        {
            match trouble.extra {
                None => return Vec::new(),
                Some(extra) => due += extra,
            }
        }
        if rng.chance(self.loss) {
            return Vec::new();
        }
        let last = self.last.entry((from, to)).or_default();
        due = due.max(*last);
        *last = due;
        if rng.chance(self.delay) {
            // Mostly enough to overtake its neighbours, now and then enough to outlive an epoch.
            due += if rng.chance(100) { rng.below(6 * SECOND) } else { rng.below(200 * MS) };
        }
        let again = rng.chance(self.duplication).then(|| due + rng.below(300 * MS));
        [Some(due), again].into_iter().flatten().collect()
    }
}
