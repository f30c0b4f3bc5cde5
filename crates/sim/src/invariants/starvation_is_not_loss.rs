//! No shard fails over by itself while a majority of its voters say something, however late, unless
//! they have had no leader for far longer than a lost region is given.
//!
//! A message counts once it has come to the machine of the directory's leader, whether or not that
//! found the time to look at it.

use std::collections::BTreeMap;

use meridian_directory::{Change, Phase, Shard};
use meridian_types::{Epoch, NodeId};

use super::Observer;
use crate::clock::{Instant, MS, SECOND};

const NAME: &str = "starvation_is_not_loss";

/// The leader's patience with a silent node, less the time that its clock may be fast.
const SILENCE: Instant = 3900 * MS;
/// A renewal that came just now may not have been granted yet; and a leader that cannot grant, for
/// it hears of no majority, has no longer than this to find that it hears itself no more either.
const UNHEARD: Instant = 1600 * MS;
const PATIENCE: Instant = 29 * SECOND;

/// The arrivals at one machine.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    renewed: BTreeMap<(NodeId, NodeId), Vec<Instant>>,
    /// The nodes that said that they lead in an epoch.
    led: BTreeMap<(NodeId, Epoch), BTreeMap<NodeId, Instant>>,
}

impl Arrivals {
    pub(crate) fn renewal(&mut self, now: Instant, at: NodeId, from: NodeId, leads: Option<Epoch>) {
        let renewed = self.renewed.entry((at, from)).or_default();
        renewed.retain(|earlier| now - earlier < SILENCE);
        renewed.push(now);
        if let Some(epoch) = leads {
            self.led.entry((at, epoch)).or_default().insert(from, now);
        }
    }
}

/// The directory's leader on `node`, which leads since `began`, decides this of a shard that is in
/// `shard`.
pub(super) fn decided(
    observer: &mut Observer,
    now: Instant,
    (node, began): (NodeId, Instant),
    shard: &Shard,
    change: &Change,
) {
    let Change::Seal { planned: false, cause, .. } = change else { return };
    if shard.phase != Phase::Active {
        return;
    }
    let arrivals = &observer.arrivals;
    let is_live = |voter: &NodeId| {
        let mut heard = arrivals.renewed.get(&(node, *voter)).into_iter().flatten();
        heard.any(|heard| *heard >= began && (UNHEARD..SILENCE).contains(&(now - heard)))
    };
    let live = shard.voters.iter().filter(|voter| is_live(voter)).count();
    let led = arrivals.led.get(&(node, shard.epoch)).into_iter().flatten();
    let led = led
        .filter(|(leader, _)| shard.may_vote(**leader))
        .map(|(_, at)| *at)
        .max()
        .unwrap_or(0)
        .max(began);
    if live > shard.voters.len() / 2 && now - led < PATIENCE {
        let (all, ms) = (shard.voters.len(), (now - led) / MS);
        let what = format!(
            "{live} of {all} voters answer, the last leader did {ms} ms ago, and n{node} says: {cause}"
        );
        observer.violated(NAME, what);
    }
}
