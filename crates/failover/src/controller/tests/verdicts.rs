//! Verdicts on one shard at one moment. A bound has been reached at the very moment that it names.

use super::*;

const NOW: Duration = Duration::from_secs(100);

/// The knowledge of a controller at [`NOW`]. It has run for long.
struct Moment {
    config: ControllerConfig,
    cluster: Cluster,
    contacts: Contacts,
    grants: Grants,
    disturbed_at: Duration,
}

impl Moment {
    /// All regions but the primary's are heard.
    fn new() -> Self {
        let config = ControllerConfig::default();
        let mut moment = Self {
            cluster: cluster(),
            contacts: Contacts::new(config.reachable_within),
            grants: Grants::new(config.lease_ttl, Duration::ZERO),
            disturbed_at: Duration::ZERO,
            config,
        };
        (4..=7).for_each(|id| moment.hear(id, false));
        moment
    }

    fn hear(&mut self, node: u64, leads: bool) {
        self.contacts.heard(NOW, NodeId(node), vec![report(1, leads)]);
    }

    fn seal(&mut self, to: Option<&str>, planned: bool) {
        let plan = Plan { to: to.map(str::to_owned), planned, since_ms: 1, cause: String::new() };
        self.cluster.shards.get_mut(&SHARD).unwrap().phase = Phase::Sealing(plan);
    }

    fn shard(&self) -> &Shard {
        &self.cluster.shards[&SHARD]
    }

    fn view(&self) -> View<'_> {
        View {
            now: NOW,
            now_ms: 1,
            config: &self.config,
            cluster: &self.cluster,
            contacts: &self.contacts,
            grants: &self.grants,
            disturbed_at: self.disturbed_at,
            id: SHARD,
            shard: self.shard(),
        }
    }

    /// Without a leader for so many milliseconds.
    fn watch(&self, without_ms: u32) -> Watch {
        Watch::new(NOW - MS * without_ms, self.shard())
    }

    fn judge(&self, without_ms: u32) -> String {
        said(failover::judge(&self.view(), &self.watch(without_ms)))
    }

    fn prepare(&self, without_ms: u32) -> String {
        said(switchover::prepare(&self.view(), &self.watch(without_ms), "b"))
    }
}

fn report(epoch: u16, leads: bool) -> ShardReport {
    let progress = CommitProgress::new(200, 1);
    ShardReport { leads, ..ShardReport::new(SHARD, Epoch(epoch), at(1, 100), progress) }
}

fn said(verdict: Verdict) -> String {
    match verdict {
        Verdict::Wait(text) => text,
        Verdict::Commit(Change::Seal { planned: true, .. }) => "seals".to_owned(),
        Verdict::Commit(Change::Seal { planned: false, .. }) => "fails over".to_owned(),
        Verdict::Commit(Change::Promote { report, .. }) => {
            format!("{} goes on from {}", report.to_region, report.base)
        }
        Verdict::Commit(change) => panic!("{change:?}"),
    }
}

#[test]
fn a_region_has_failed_once_its_silence_has_lasted_as_long_as_it_has_to() {
    let moment = Moment::new();
    assert_eq!(moment.judge(1499), "");
    assert_eq!(moment.judge(1500), "no leader in a was heard for 1.5 s; it fails over after 4.0 s");
    assert_eq!(moment.judge(3999), "no leader in a was heard for 4.0 s; it fails over after 4.0 s");
    assert_eq!(moment.judge(4000), "fails over");
}

#[test]
fn silence_counts_once_the_controller_has_listened_undisturbed_for_as_long() {
    let mut moment = Moment::new();
    moment.disturbed_at = NOW - MS * 3999;
    assert!(moment.judge(10_000).contains("was starved itself"));
    moment.disturbed_at = NOW - MS * 4000;
    assert_eq!(moment.judge(10_000), "fails over");
}

#[test]
fn voters_that_answer_have_their_time_to_elect_a_leader_and_no_more() {
    let mut moment = Moment::new();
    (1..=3).for_each(|id| moment.hear(id, false));
    assert!(moment.judge(29_999).contains("but n1, n2, n3 answer: starved rather than lost"));
    assert_eq!(moment.judge(30_000), "fails over");
}

#[test]
fn a_switchover_seals_only_while_a_leader_that_has_its_lease_is_heard() {
    let mut moment = Moment::new();
    let waits = "switchover to b: waits for a leader in a";
    // The leader that was heard has just said that it leads no more.
    moment.hear(1, false);
    assert_eq!(moment.prepare(500), waits);
    moment.hear(1, true);
    assert_eq!(moment.prepare(1499), "seals");
    // A leader that has had no lease for so long.
    assert_eq!(moment.prepare(1500), waits);
}

#[test]
fn a_switchover_that_gets_no_further_fails_over_once_no_leader_was_there_for_long_enough() {
    let mut moment = Moment::new();
    moment.seal(Some("b"), true);
    let advance = |stuck_ms, without_ms| {
        let mut watch = moment.watch(without_ms);
        watch.follow(NOW - MS * stuck_ms, moment.shard());
        let mut sealing = watch.sealing.take().unwrap();
        said(switchover::advance(&moment.view(), &watch, &mut sealing, &mut Vec::new()))
    };
    let waits = "switchover to b: the leader finishes what it began";
    assert_eq!((advance(3999, 4000), advance(4000, 3999)), (waits.to_owned(), waits.to_owned()));
    assert_eq!(advance(4000, 4000), "fails over");
}

#[test]
fn tail_of_a_lost_node_is_given_up_once_no_node_comes_nearer_to_it() {
    let mut moment = Moment::new();
    moment.seal(None, false);
    let advance = |stuck_ms| {
        let (stuck_at, mut watch) = (NOW - MS * stuck_ms, moment.watch(10_000));
        watch.follow(stuck_at, moment.shard());
        let mut sealing = watch.sealing.take().unwrap();
        // Node 3 answered, and was not heard since.
        for (node, sequence) in [(3, 150), (4, 100), (5, 100), (6, 100), (7, 100)] {
            let answer = SealAnswer {
                shard: SHARD,
                epoch: Epoch(1),
                planned: false,
                position: at(1, sequence),
                transactions: sequence * 2,
                time_ms: 1,
                term: (node == 3).then_some(7),
                drained_leader: false,
            };
            sealing.answered(stuck_at, NodeId(node), answer);
        }
        said(failover::advance(&moment.view(), &watch, &mut sealing, &mut Vec::new()))
    };
    assert_eq!(advance(3999), "sealed at 1.150: 0 of the 2 voters of b have it; n4, n5 pulling it");
    assert_eq!(advance(4000), "b goes on from 1.100");
}

#[test]
fn a_region_can_take_over_with_two_data_centers_that_are_a_majority_of_its_voters() {
    let mut moment = Moment::new();
    let places = [("d", "d1"), ("e", "e1"), ("e", "e2"), ("e", "e3"), ("e", "e4"), ("e", "e5")];
    for (id, (region, data_center)) in (8..).zip(places) {
        moment.cluster.nodes.insert(NodeId(id), node(id, region, data_center));
    }
    let can = |region, usable: &[u64]| {
        moment.view().can_take_over(region, |node| usable.contains(&node.0))
    };
    assert!(can("b", &[4, 5]) && can("e", &[9, 10, 11]) && can("a", &[1, 3]));
    assert!(!can("b", &[4]) && !can("b", &[4, 6]), "a commit has to lie in two data centers");
    assert!(!can("d", &[8]), "also where one is all that there are");
    assert!(!can("e", &[9, 10]), "they are no majority of five");
}

#[test]
fn what_a_node_lacks_it_pulls_from_those_in_reach_first_and_from_near_ones_before_others() {
    let mut moment = Moment::new();
    let sources = |moment: &Moment| moment.view().by_nearness(NodeId(6), (1..=7).rev().map(NodeId));
    assert_eq!(sources(&moment), [7, 4, 5, 1, 2, 3].map(NodeId));
    moment.contacts = Contacts::new(moment.config.reachable_within);
    [1, 4].into_iter().for_each(|id| moment.hear(id, false));
    assert_eq!(sources(&moment), [1, 4, 7, 2, 3, 5].map(NodeId));
}

#[test]
fn what_a_node_said_counts_while_it_is_in_reach_and_of_the_epoch_of_which_it_was_said() {
    let mut contacts = Contacts::new(MS * 1500);
    contacts.heard(NOW, NodeId(2), vec![report(3, false)]);
    let counts =
        |ms, epoch| contacts.report(NOW + MS * ms, NodeId(2), SHARD, Epoch(epoch)).is_some();
    assert!(counts(0, 3) && counts(1500, 3) && !counts(1501, 3));
    assert!(!counts(0, 2) && !counts(0, 4) && !counts(1501, 4));
    assert!(
        contacts.report(NOW, NodeId(2), ShardId(9), Epoch(3)).is_none()
            && contacts.report(NOW, NodeId(3), SHARD, Epoch(3)).is_none()
    );
}
