//! The directory leader's controller and seven nodes in steps of time, for tests.

use super::*;

/// A node that behaves: it renews, seals, drains and forms as told, if it is up and reachable.
pub(super) struct Actor {
    pub(super) up: bool,
    pub(super) position: Position,
    pub(super) leads: bool,
    /// The group's voters are those that the cluster names.
    pub(super) is_settled: bool,
    pub(super) lag_ms: u64,
    pub(super) term: u64,
    /// Whether a leader that is sealed as planned gets an answer from its followers.
    pub(super) drains: bool,
    /// Whether it answers a seal.
    pub(super) seals: bool,
    /// It was not seeded just now: others may pull from it.
    pub(super) has_tail: bool,
    pub(super) lease: LeaseHolder,
    pub(super) hints: ProgressHints,
    pub(super) sealed: Option<Epoch>,
}

impl Actor {
    pub(super) fn new(leads: bool) -> Self {
        Self {
            up: true,
            position: at(1, 100),
            leads,
            is_settled: true,
            lag_ms: 0,
            term: 7,
            drains: true,
            seals: true,
            has_tail: true,
            lease: LeaseHolder::default(),
            hints: ProgressHints::default(),
            sealed: None,
        }
    }
}

/// The directory leader's controller and seven nodes, step by step of 50 ms. Calls take one step.
pub(super) struct Scenario {
    pub(super) now: Duration,
    pub(super) cluster: Cluster,
    pub(super) controller: Controller,
    pub(super) actors: BTreeMap<NodeId, Actor>,
    pub(super) changes: Vec<Change>,
    /// Lists of changes that were committed, each as one.
    pub(super) commits: usize,
    /// The leaders of the shards besides [`SHARD`], whose leader is an actor's to say.
    pub(super) leaders: BTreeMap<ShardId, NodeId>,
    /// Milliseconds between two renewals of a node.
    pub(super) renews_every: u32,
    pub(super) actions: Vec<Action>,
    /// Whether groups of new epochs elect their first leader.
    pub(super) forms: bool,
    /// Changes are on their way, and do not arrive yet.
    pub(super) holds_back: bool,
    mail: Vec<Event>,
}

impl Scenario {
    /// Node 1 leads, all have 1.100, and have said so for two seconds.
    pub(super) fn new() -> Self {
        let mut scenario = Self {
            now: Duration::from_secs(100),
            cluster: cluster(),
            controller: Controller::new(ControllerConfig::default(), Duration::from_secs(100)),
            actors: (1..=7).map(|id| (NodeId(id), Actor::new(id == 1))).collect(),
            changes: Vec::new(),
            commits: 0,
            leaders: BTreeMap::new(),
            renews_every: 500,
            actions: Vec::new(),
            forms: true,
            holds_back: false,
            mail: Vec::new(),
        };
        scenario.run(5000);
        assert_eq!(scenario.changes, []);
        scenario
    }

    /// So many shards more, all like [`SHARD`], each with a database of its own; the voters share
    /// leading them.
    pub(super) fn add_shards(&mut self, count: u32) {
        for number in 2..count + 2 {
            let (shard, leader) = (ShardId(number), NodeId(u64::from(number % 3 + 1)));
            let like = Shard { preferred_leader: Some(leader), ..self.shard().clone() };
            self.cluster.shards.insert(shard, like);
            self.leaders.insert(shard, leader);
            self.cluster.last_shard_id = number;
        }
    }

    /// A replica more, which has what the others have.
    pub(super) fn add_node(&mut self, region: &str, data_center: &str) -> u64 {
        let id = self.cluster.last_node_id.0 + 1;
        self.order(Change::AddNode { node: node(id, region, data_center) });
        self.actors.insert(NodeId(id), Actor::new(false));
        id
    }

    pub(super) fn shard(&self) -> &Shard {
        &self.cluster.shards[&SHARD]
    }

    pub(super) fn actor(&mut self, id: u64) -> &mut Actor {
        self.actors.get_mut(&NodeId(id)).unwrap()
    }

    pub(super) fn down(&mut self, ids: &[u64]) {
        for id in ids {
            let actor = self.actor(*id);
            (actor.up, actor.leads) = (false, false);
        }
    }

    pub(super) fn up(&mut self, ids: &[u64]) {
        ids.iter().for_each(|id| self.actor(*id).up = true);
    }

    pub(super) fn order(&mut self, change: Change) {
        self.cluster = self.cluster.after(&change).unwrap();
    }

    /// Another node leads the directory.
    pub(super) fn new_controller(&mut self) {
        self.controller = Controller::new(ControllerConfig::default(), self.now);
        self.mail.clear();
    }

    /// The nodes that were asked to pull, each with its source.
    pub(super) fn pulls(&self) -> BTreeSet<(NodeId, NodeId)> {
        let asked = self.actions.iter().filter_map(|action| match action {
            Action::Drain { node, source, .. } => Some((*node, *source)),
            _ => None,
        });
        asked.collect()
    }

    pub(super) fn asked_to_pull(&self) -> BTreeSet<NodeId> {
        self.pulls().into_iter().map(|(node, _)| node).collect()
    }

    pub(super) fn text(&self) -> String {
        let progress = self.controller.progress(self.now, &self.cluster);
        progress.into_iter().next().map(|progress| progress.text).unwrap_or_default()
    }

    pub(super) fn run(&mut self, ms: u32) {
        let end = self.now + MS * ms;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until the shard is active in an epoch, and says how long that took.
    pub(super) fn run_until_active(&mut self, epoch: u16) -> Duration {
        let began = self.now;
        let is_active = |shard: &Shard| shard.epoch == Epoch(epoch) && shard.phase == Phase::Active;
        while !self.cluster.shards.values().all(is_active) {
            self.step();
            assert!(
                self.now < began + Duration::from_secs(90),
                "{:?}: {}",
                self.shard(),
                self.text()
            );
        }
        self.now - began
    }

    pub(super) fn step(&mut self) {
        self.now += MS * 50;
        let mut actions = Vec::new();
        let mail = std::mem::take(&mut self.mail);
        for event in mail.into_iter().chain([Event::Tick]) {
            actions.extend(self.controller.step(self.now, &self.cluster, self.now_ms(), event));
        }
        if self.now.as_millis().is_multiple_of(self.renews_every.into()) {
            for id in self.actors.keys().copied().collect::<Vec<_>>() {
                actions.extend(self.renew(id));
            }
        }
        actions.into_iter().for_each(|action| self.act(action));
        self.form();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.now.as_millis()).unwrap()
    }

    fn renew(&mut self, id: NodeId) -> Vec<Action> {
        if !self.actors[&id].up {
            return Vec::new();
        }
        let lease = self.controller.renew(self.now, &self.cluster, id);
        let sent_at = self.now - MS * 20;
        let actor = self.actors.get_mut(&id).unwrap();
        actor.lease.renewed(sent_at, &lease);
        self.controller
            .progress_hints(&self.cluster)
            .into_iter()
            .for_each(|hint| actor.hints.observe(hint));
        let (now_at, version) = (actor.position, self.cluster.version);
        let reports = self.cluster.shards.iter().map(|(shard, of)| {
            let leads =
                if *shard == SHARD { actor.leads } else { self.leaders.get(shard) == Some(&id) };
            let progress = CommitProgress::new(now_at.sequence * 2, now_at.sequence * 10);
            ShardReport {
                leads,
                voters_confirmed_at: if leads && actor.is_settled { version } else { 0 },
                lag_ms: actor.lag_ms,
                hint: actor.hints.get(*shard, of.epoch),
                ..ShardReport::new(*shard, of.epoch, now_at, progress)
            }
        });
        let event = Event::Reported { node: id, reports: reports.collect() };
        self.controller.step(self.now, &self.cluster, self.now_ms(), event)
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action.clone());
        match action {
            Action::Commit { .. } if self.holds_back => {}
            Action::Commit { changes } => {
                self.commits += 1;
                for change in &changes {
                    self.check_base(change);
                    self.cluster.apply(change).unwrap();
                    if let Change::Promote { shard, .. } = change {
                        self.check_leases(*shard);
                        self.leaders.remove(shard);
                    }
                }
                self.changes.extend(changes);
            }
            Action::Seal { node, shard, epoch, planned } => {
                let actor = self.actors.get_mut(&node).unwrap();
                if !actor.up || !actor.seals {
                    return;
                }
                actor.lease.seal(shard, epoch);
                actor.sealed = Some(epoch);
                let is_voter = self.cluster.shards[&shard].voters.contains(&node);
                let answer = SealAnswer {
                    shard,
                    epoch,
                    planned,
                    position: actor.position,
                    transactions: actor.position.sequence * 2,
                    time_ms: actor.position.sequence * 10,
                    term: is_voter.then_some(actor.term),
                    drained_leader: planned && actor.leads && actor.drains,
                };
                self.mail.push(Event::Sealed { node, answer });
            }
            Action::Drain { node, shard, epoch, source, through } => {
                assert!(
                    self.actors[&source].position >= through,
                    "{source} does not have {through}"
                );
                let present = &self.cluster.shards[&shard];
                let is_failover = matches!(&present.phase, Phase::Sealing(plan) if !plan.planned);
                if is_failover && present.voters.contains(&node) {
                    // It has stopped with its group.
                    return;
                }
                if self.actors[&source].up && self.actors[&source].has_tail && self.actors[&node].up
                {
                    self.actor(node.0).position = through;
                    self.mail.push(Event::Drained { node, shard, epoch, position: through });
                }
            }
        }
    }

    /// No node may still serve the old epoch when the next one is decided.
    fn check_leases(&self, shard: ShardId) {
        let old = Epoch(self.cluster.shards[&shard].epoch.0 - 1);
        for (id, actor) in &self.actors {
            assert!(
                !actor.lease.holds(self.now, shard, old),
                "{id} holds a lease on {old} of {shard}"
            );
        }
    }

    /// An epoch begins with what a majority of its voters has, or pulls when it founds the group.
    /// Where no operator has said otherwise, that lies in two data centers.
    fn check_base(&self, change: &Change) {
        let Change::Promote { shard, voters, report, .. } = change else { return };
        let ended = &self.cluster.shards[shard];
        let Phase::Sealing(plan) = &ended.phase else { panic!("{ended:?}") };
        let position = |id: &NodeId| self.actors[id].position;
        let pulls =
            |id: &NodeId| !plan.planned && ended.voters.contains(id) && position(id) < report.base;
        let sound = voters.iter().filter(|id| position(id) == report.base || pulls(id)).count();
        assert!(2 * sound > voters.len(), "{sound} of {voters:?} for {}", report.base);
        let holders = self.actors.keys().filter(|id| position(id) == report.base);
        let places: BTreeSet<_> = holders.map(|id| &self.cluster.nodes[id].data_center).collect();
        assert!(
            places.len() >= if plan.to.is_some() { 1 } else { 2 },
            "{} lies in {places:?}",
            report.base
        );
    }

    /// The voters of a new epoch pull what they lack, and elect a leader as soon as two that are up
    /// have its base.
    fn form(&mut self) {
        let forming: Vec<_> = self
            .cluster
            .shards
            .iter()
            .filter(|(_, shard)| shard.phase == Phase::Forming)
            .map(|(id, _)| *id)
            .collect();
        forming.into_iter().for_each(|id| self.form_group(id));
    }

    fn form_group(&mut self, id: ShardId) {
        let shard = self.cluster.shards[&id].clone();
        if id == SHARD {
            self.actors.values_mut().for_each(|actor| actor.leads = false);
        }
        let base = shard.base();
        if self.actors.values().any(|actor| actor.up && actor.has_tail && actor.position == base) {
            let lack = |actor: &Actor| {
                actor.up && shard.in_history(actor.position) && actor.position < base
            };
            let voters = self
                .actors
                .iter_mut()
                .filter(|(id, actor)| shard.voters.contains(id) && lack(actor));
            voters.for_each(|(_, actor)| actor.position = base);
        }
        let able = |id: &&NodeId| self.actors[id].up && self.actors[id].position == shard.base();
        let able: Vec<_> = shard.voters.iter().filter(able).copied().collect();
        if self.forms && able.len() > shard.voters.len() / 2 {
            let leader =
                shard.preferred_leader.filter(|leader| able.contains(leader)).unwrap_or(able[0]);
            if id == SHARD {
                self.actor(leader.0).leads = true;
            } else {
                self.leaders.insert(id, leader);
            }
        }
    }
}
