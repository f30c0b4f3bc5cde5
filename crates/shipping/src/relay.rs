//! Which node of a region is its relay for a shard, decided by each node by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::NodeId;

use crate::Status;

#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// A region-mate not heard for this long is dead.
    pub relay_timeout: Duration,
    /// Without a relay, the node that has `n` live mates before it waits `n` times this long before
    /// it goes to the primary region itself. Long enough for the first to connect and say so.
    pub takeover_delay: Duration,
    /// A source that failed is avoided for this long, if there is another.
    pub avoid_for: Duration,
    /// A primary follower that has not heard of its leader for this long is second choice.
    pub stale_after: Duration,
    /// A relay steps down for a lower-numbered one only if that is at most this many batches behind
    /// it.
    pub max_behind_batches: u64,
}

impl RelayConfig {
    pub const DEFAULT: Self = Self {
        relay_timeout: Duration::from_millis(800),
        takeover_delay: Duration::from_millis(800),
        avoid_for: Duration::from_secs(5),
        stale_after: Duration::from_secs(3),
        max_behind_batches: 1000,
    };
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Which node to subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub node: NodeId,
    /// A member of the primary region: this node is, or tries to be, its region's relay.
    pub direct: bool,
}

#[derive(Debug, Default)]
struct Peer {
    heard: Option<(Duration, Status)>,
    failures: u32,
    failed_at: Option<Duration>,
}

/// Decides, on each node by itself, whether the node is its region's relay for a shard.
///
/// There is no vote. A relay is simply a node that follows a primary member, and says so (`hops`
/// 1):
/// - A node follows a region-mate only while that mate says, itself and lately, that it is a relay.
///   A mate that follows anything but a primary member says 2, or nothing, so two nodes that follow
///   one another by a race see it in the first heartbeat and part.
/// - Where there is no relay, the lowest-numbered live node goes to the primary region at once, the
///   others one `takeover_delay` after another. So the lowest takes over as a rule, and a node that
///   is alive but cannot reach the primary delays no other.
/// - A relay stays one while it works: a lower-numbered node that comes back follows it. Of two
///   relays the higher-numbered steps down, unless the other is far behind.
///
/// Several relays at a time cost WAN traffic and nothing else: positions and epochs keep the log
/// right.
#[derive(Debug)]
pub struct RelayElection {
    config: RelayConfig,
    me: NodeId,
    /// Those to be preferred first.
    primary: Vec<NodeId>,
    mates: Vec<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    current: Option<Source>,
    /// A mate not heard since this time is given `relay_timeout` to speak up.
    members_since: Duration,
    relayless_since: Option<Duration>,
}

impl RelayElection {
    /// Failures in a row after which a relay that says it is well is not believed.
    const MATE_FAILURES: u32 = 3;

    pub fn new(config: RelayConfig, me: NodeId, now: Duration) -> Self {
        Self {
            config,
            me,
            primary: Vec::new(),
            mates: Vec::new(),
            peers: BTreeMap::new(),
            current: None,
            members_since: now,
            relayless_since: None,
        }
    }

    /// The directory says which nodes vote for the shard in its primary region, and which nodes of
    /// this region follow it. This node may be among the mates or not.
    ///
    /// The first of `primary` are preferred. The relays of different regions are to be given
    /// different ones: so no member serves all, and the loss of one does not hold all regions up.
    /// And the leader last: it has enough to do.
    pub fn set_members(&mut self, now: Duration, primary: &[NodeId], mates: &[NodeId]) {
        let primary: Vec<_> = primary.iter().copied().filter(|&node| node != self.me).collect();
        let mut mates: Vec<_> = mates
            .iter()
            .copied()
            .filter(|node| *node != self.me && !primary.contains(node))
            .collect();
        mates.sort_unstable();
        if (&primary, &mates) == (&self.primary, &self.mates) {
            return;
        }
        (self.primary, self.mates) = (primary, mates);
        self.members_since = now;
        let (primary, mates) = (&self.primary, &self.mates);
        self.peers.retain(|node, _| primary.contains(node) || mates.contains(node));
        self.current = self.current.filter(|source| {
            if source.direct {
                primary.contains(&source.node)
            } else {
                mates.contains(&source.node)
            }
        });
    }

    /// A heartbeat or a status from the node itself.
    pub fn on_status(&mut self, now: Duration, status: Status) {
        if self.primary.contains(&status.node) || self.mates.contains(&status.node) {
            self.peers.entry(status.node).or_default().heard = Some((now, status));
        }
    }

    /// The receiver said [`SourceFailed`](crate::ReceiverAction::SourceFailed).
    pub fn failed(&mut self, now: Duration, node: NodeId) {
        if !self.primary.contains(&node) && !self.mates.contains(&node) {
            return;
        }
        let forget_after = self.config.avoid_for * 2;
        let peer = self.peers.entry(node).or_default();
        if peer.failed_at.is_none_or(|at| now.saturating_sub(at) > forget_after) {
            peer.failures = 0;
        }
        peer.failures = peer.failures.saturating_add(1);
        peer.failed_at = Some(now);
    }

    pub fn is_relay(&self) -> bool {
        self.current.is_some_and(|source| source.direct)
    }

    /// Which node to follow now; `own` is [`Receiver::status`](crate::Receiver::status). To be
    /// asked on every tick and after every `on_status`, `failed` and `set_members`; the answer goes
    /// to the receiver.
    pub fn choose(&mut self, now: Duration, own: &Status) -> Option<Source> {
        let relay = self.best_relay(now, own);
        let follow = |node| Some(Source { node, direct: false });
        self.current = match relay {
            Some(relay) if !self.is_relay() => follow(relay),
            Some(relay) if own.hops != Some(1) => follow(relay),
            Some(relay) if relay < self.me && !self.is_behind(relay, own) => follow(relay),
            None if !self.is_relay() && !self.may_take_over(now, own) => None,
            _ => self.best_primary(now, own),
        };
        if relay.is_some() || self.is_relay() {
            self.relayless_since = None;
        }
        self.current
    }

    fn best_relay(&self, now: Duration, own: &Status) -> Option<NodeId> {
        let works = |node: &NodeId| {
            self.fresh(now, *node)
                .is_some_and(|status| status.hops == Some(1) && status.epoch == own.epoch)
                && !self.is_avoided(now, *node, Self::MATE_FAILURES)
        };
        let preference = |node: &NodeId| {
            let is_current = self.current.is_some_and(|source| source.node == *node);
            (self.is_behind(*node, own), !is_current, *node)
        };
        self.mates.iter().copied().filter(works).min_by_key(preference)
    }

    fn may_take_over(&mut self, now: Duration, own: &Status) -> bool {
        let since = *self.relayless_since.get_or_insert(now);
        let goes_before = |node: &NodeId| {
            let in_grace = now.saturating_sub(self.members_since) <= self.config.relay_timeout;
            match self.fresh(now, *node) {
                // One without data would keep the others waiting: it goes last.
                Some(status) => {
                    (status.fetching_snapshot, *node) < (own.fetching_snapshot, self.me)
                }
                None => {
                    *node < self.me
                        && in_grace
                        && self.peers.get(node).is_none_or(|peer| peer.heard.is_none())
                }
            }
        };
        let rank = self.mates.iter().filter(|node| goes_before(node)).count();
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        now.saturating_sub(since) >= self.config.takeover_delay.saturating_mul(rank)
    }

    fn best_primary(&self, now: Duration, own: &Status) -> Option<Source> {
        let preference = |&(index, node): &(usize, NodeId)| {
            let failed = if self.is_avoided(now, node, 1) {
                self.peers.get(&node).and_then(|peer| peer.failed_at)
            } else {
                None
            };
            let in_touch = self.fresh(now, node).is_some_and(|status| {
                status.primary_age <= self.config.stale_after && status.epoch >= own.epoch
            });
            let is_current = self.current == Some(Source { node, direct: true });
            (failed, !in_touch, !is_current, index)
        };
        let best = self.primary.iter().copied().enumerate().min_by_key(preference);
        best.map(|(_, node)| Source { node, direct: true })
    }

    fn fresh(&self, now: Duration, node: NodeId) -> Option<Status> {
        let (at, status) = self.peers.get(&node)?.heard?;
        (now.saturating_sub(at) <= self.config.relay_timeout).then_some(status)
    }

    fn is_avoided(&self, now: Duration, node: NodeId, failures: u32) -> bool {
        self.peers.get(&node).is_some_and(|peer| {
            peer.failures >= failures
                && peer.failed_at.is_some_and(|at| now.saturating_sub(at) < self.config.avoid_for)
        })
    }

    fn is_behind(&self, node: NodeId, own: &Status) -> bool {
        self.peers.get(&node).and_then(|peer| peer.heard).is_some_and(|(_, status)| {
            status.durable.sequence.saturating_add(self.config.max_behind_batches)
                < own.durable.sequence
        })
    }
}

#[cfg(test)]
mod tests;
