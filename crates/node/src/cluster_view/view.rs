//! The present cluster, as this process knows it: followed from the directory group, and answered
//! from memory.
//!
//! The view may be old, and does not say so. Answers that must not rest on an old view are guarded
//! by a lease: [`EpochLease`].

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian_config::TokenSecret;
use meridian_directory::{Cluster, PreviousSecret, Rpo, Shard, Token, TokenScope};
use meridian_failover::{Lease, LeaseHolder, ProgressHint, ProgressHints};
use meridian_gateway::{
    Access, Catalogue, Databases, Denial, Expiring, Grant, LastUsed, TokenName, digest,
};
use meridian_storage::GroupId;
use meridian_types::{CommitProgress, DatabaseId, Epoch, NodeId, Quotas, ShardId, V8Format};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::cluster_view::directory_shard::{DIRECTORY_DATABASE, DIRECTORY_GROUP};
use crate::cluster_view::token_uses::{EndedSecrets, TokenUses};
use crate::host::clock::{boot_time, wall_ms};

/// Between two looks whether this process has heard from the cluster, at its start.
const CURRENT_PAUSE: Duration = Duration::from_millis(20);

/// One version of the cluster, and what is made of it.
pub(crate) struct Known {
    pub(crate) cluster: Cluster,
    access: Access,
}

impl Known {
    fn new(cluster: Cluster, uses: &TokenUses) -> Self {
        let uses = uses.of(cluster.tokens.keys().copied());
        let tokens = cluster.tokens.iter();
        // Two tokens of the same secret are refused when they are made.
        let access =
            Access::from_expiring(tokens.flat_map(|(id, token)| secrets(*id, token, uses.get(id))));
        Self { cluster, access }
    }

    /// Where the nodes of the cluster are called.
    pub(crate) fn rpc_addresses(self: &Arc<Self>) -> HashSet<String> {
        self.cluster.present_nodes().map(|(_, node)| node.rpc_address.clone()).collect()
    }
}

/// The digests of a token's secrets, the grant of each, and when it ends.
fn secrets(
    id: u64,
    token: &Token,
    used: Option<&Arc<LastUsed>>,
) -> impl Iterator<Item = ([u8; 32], Expiring)> {
    let databases = match &token.scope {
        TokenScope::All => Databases::All,
        TokenScope::Databases(ids) => Databases::Only(ids.iter().copied().collect()),
    };
    let grant = Grant::new(databases, token.permissions).within(token.prefixes.iter().cloned());
    let grant = grant.of_token(id, token.quotas);
    let of_previous = |previous: &PreviousSecret| {
        let until = token.expires_at_ms.map_or(previous.until_ms, |end| end.min(previous.until_ms));
        (previous.sha256.clone(), Some(until))
    };
    let present = (token.sha256.clone(), token.expires_at_ms);
    let all = [Some(present), token.previous.as_ref().map(of_previous)];
    let (used, name) = (used.cloned(), Arc::new(TokenName { id, label: token.label.clone() }));
    all.into_iter().flatten().filter_map(move |(sha256, expires_at_ms)| {
        let (grant, used, name) = (grant.clone(), used.clone(), Some(Arc::clone(&name)));
        let expiring = Expiring { grant, expires_at_ms, used, name };
        Some((TokenSecret::digest(&sha256).ok()?.sha256(), expiring))
    })
}

/// A message is about a cluster that this process does not belong to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this process is of cluster {}, what was said is of cluster {}", shown(.own), shown(.other))]
pub(crate) struct ForeignCluster {
    pub(crate) own: Option<String>,
    pub(crate) other: Option<String>,
}

fn shown(id: &Option<String>) -> &str {
    id.as_deref().unwrap_or("(not named yet)")
}

/// The cluster as this process knows it, and its lease on it.
pub(crate) struct Directory {
    known: watch::Sender<Arc<Known>>,
    lease: Mutex<LeaseHolder>,
    /// When the newest question was asked that its leader has answered with a lease.
    asked_at: Mutex<Option<Duration>>,
    /// How far the shards came, as its leaders said.
    hints: Mutex<ProgressHints>,
    /// Tokens of the configuration, beside the directory's.
    configured: Access,
    uses: TokenUses,
    /// Of the directory's tokens.
    ended: EndedSecrets,
    /// The id and the name of this node, if its configuration names the nodes that it founds a
    /// cluster with: it is no part of a cluster that does not have it. A node that joins takes the
    /// cluster that it is sent to.
    founder: Option<(NodeId, String)>,
    /// Whether another node, or the directory's leader, said since this process started that there
    /// is nothing newer.
    has_heard: AtomicBool,
    /// Changes with every grant.
    granted: watch::Sender<u64>,
    /// Wakes the renewal: the node has news for the directory, or wants to have some.
    renew_now: Notify,
}

impl Directory {
    pub(crate) fn new(
        cluster: Cluster,
        configured: Access,
        founder: Option<(NodeId, String)>,
    ) -> Self {
        let uses = TokenUses::new(Uuid::new_v4().as_u64_pair().0);
        Self {
            known: watch::Sender::new(Arc::new(Known::new(cluster, &uses))),
            uses,
            ended: EndedSecrets::default(),
            lease: Mutex::default(),
            asked_at: Mutex::default(),
            hints: Mutex::default(),
            configured,
            founder,
            has_heard: AtomicBool::new(false),
            granted: watch::Sender::new(0),
            renew_now: Notify::new(),
        }
    }

    /// Remembers the secrets that the cluster has no more.
    fn end_secrets(&self, former: &Cluster, present: &Cluster) {
        let kept: HashSet<&str> = present.tokens.values().flat_map(Token::hashes).collect();
        let ended = former.tokens.values().flat_map(Token::hashes);
        for hash in ended.filter(|hash| !kept.contains(hash)) {
            if let Ok(digest) = TokenSecret::digest(hash) {
                self.ended.add(digest.sha256());
            }
        }
    }

    /// The times at which tokens of the directory were used here.
    pub(crate) fn token_uses(&self) -> &TokenUses {
        &self.uses
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Known>> {
        self.known.subscribe()
    }

    /// How many follow the cluster from here at present.
    #[cfg(test)]
    pub(crate) fn watchers(&self) -> usize {
        self.known.receiver_count()
    }

    /// Adopts a received cluster, if it is newer.
    ///
    /// # Errors
    /// [`ForeignCluster`]: it is said of another cluster. Nothing changes.
    pub(crate) fn learn(&self, cluster: Cluster) -> Result<(), ForeignCluster> {
        if !self.is_news(&self.known().cluster, &cluster)? {
            return Ok(());
        }
        let known = Arc::new(Known::new(cluster, &self.uses));
        self.known.send_if_modified(|present| {
            // A cluster that was learnt meanwhile may be newer.
            let is_news = self.is_news(&present.cluster, &known.cluster) == Ok(true);
            if is_news {
                self.end_secrets(&present.cluster, &known.cluster);
                *present = known;
            }
            is_news
        });
        Ok(())
    }

    fn is_news(&self, present: &Cluster, said: &Cluster) -> Result<bool, ForeignCluster> {
        self.is_own(present, said)?;
        Ok(said.version > present.version)
    }

    fn is_own(&self, present: &Cluster, said: &Cluster) -> Result<(), ForeignCluster> {
        let foreign = || ForeignCluster { own: present.id.clone(), other: said.id.clone() };
        match (&present.id, &said.id) {
            (Some(own), Some(other)) if own == other => Ok(()),
            // From before it was named: no news, from any source.
            (Some(_), None) if said.version <= present.version => Ok(()),
            (Some(_), _) => Err(foreign()),
            (None, None) => Ok(()),
            // A cluster that was founded while this process was not there.
            (None, Some(_)) => match &self.founder {
                None => Ok(()),
                Some((id, name)) => {
                    let known = said.nodes.get(id).is_some_and(|node| node.name == *name);
                    if known { Ok(()) } else { Err(foreign()) }
                }
            },
        }
    }

    /// The directory's own group is a shard like others, of one epoch, and in no directory.
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        if shard == DIRECTORY_GROUP.shard {
            return Some(DIRECTORY_GROUP.epoch);
        }
        self.known.borrow().cluster.shards.get(&shard).map(|shard| shard.epoch)
    }

    pub(crate) fn shard(&self, shard: ShardId) -> Option<Shard> {
        self.known.borrow().cluster.shards.get(&shard).cloned()
    }

    /// The bound on replication lag that the database's writes are under.
    pub(crate) fn rpo(&self, database: DatabaseId) -> Rpo {
        self.known
            .borrow()
            .cluster
            .databases
            .get(&database)
            .map(|database| database.rpo)
            .unwrap_or_default()
    }

    /// Whether the database is in the shard, as far as this process knows.
    pub(crate) fn holds(&self, shard: ShardId, database: DatabaseId) -> bool {
        if shard == DIRECTORY_GROUP.shard {
            return database == DIRECTORY_DATABASE;
        }
        self.known
            .borrow()
            .cluster
            .databases
            .get(&database)
            .is_some_and(|known| known.shard == shard)
    }

    /// The databases of the shard whose queues hand out nothing.
    pub(crate) fn paused_queues(&self, shard: ShardId) -> BTreeSet<DatabaseId> {
        let known = self.known.borrow();
        let databases = known.cluster.databases.iter();
        let paused = databases.filter(|(_, known)| known.shard == shard && known.queue_paused);
        paused.map(|(id, _)| *id).collect()
    }

    /// The databases with quotas on what they store, with their shards and quotas.
    pub(crate) fn with_stored_quotas(&self) -> Vec<(ShardId, DatabaseId, Quotas)> {
        let known = self.known.borrow();
        let has_one = |quotas: &Quotas| quotas.iter().any(|(quota, _)| quota.is_stored());
        let databases = known.cluster.databases.iter();
        let found = databases.filter(|(_, known)| has_one(&known.quotas));
        found.map(|(id, known)| (known.shard, *id, known.quotas)).collect()
    }

    /// The databases of the shard that are being deleted.
    pub(crate) fn deleting(&self, shard: ShardId) -> Vec<DatabaseId> {
        let known = self.known.borrow();
        let deleting =
            known.cluster.deleting.iter().filter(|(_, deletion)| deletion.shard == shard);
        deleting.map(|(id, _)| *id).collect()
    }

    /// Whether the node votes in the group, or may still or soon, as far as this process knows.
    pub(crate) fn may_vote_in(&self, group: GroupId, node: NodeId) -> bool {
        let known = self.known.borrow();
        if group == DIRECTORY_GROUP {
            return known.cluster.may_vote_in_directory(node);
        }
        let shard = known.cluster.shards.get(&group.shard);
        shard.is_some_and(|shard| shard.epoch == group.epoch && shard.may_vote(node))
    }

    /// Whether this node may serve strong operations of the shard in this epoch right now. Not
    /// where a later epoch is known, whatever is left of the lease: its time may have stood still,
    /// with the whole machine's.
    pub(super) fn holds_lease(&self, shard: ShardId, epoch: Epoch) -> bool {
        let is_over = || self.epoch(shard).is_some_and(|known| known > epoch);
        // The directory is what leases come from: its own leader asks a majority instead.
        shard == DIRECTORY_GROUP.shard
            || (self.lease.lock().holds(self.now(), shard, epoch) && !is_over())
    }

    /// For how long that is so yet.
    pub(crate) fn lease_remaining(&self, shard: ShardId) -> Option<(Epoch, Duration)> {
        self.lease.lock().remaining(self.now(), shard)
    }

    /// As leases are counted: monotonic, and going on while the machine is suspended, where there
    /// is such a clock.
    pub(crate) fn now(&self) -> Duration {
        boot_time()
    }

    /// A node that was told which version is known here has answered with anything newer.
    pub(crate) fn note_up_to_date(&self) {
        self.has_heard.store(true, Ordering::Relaxed);
    }

    /// Waits until this process has heard from the cluster.
    pub(crate) async fn current(&self) {
        while !self.is_current() {
            tokio::time::sleep(CURRENT_PAUSE).await;
        }
    }

    pub(crate) fn renewed(&self, sent_at: Duration, lease: &Lease) {
        self.lease.lock().renewed(sent_at, lease);
        let mut asked_at = self.asked_at.lock();
        *asked_at = (*asked_at).max(Some(sent_at));
        self.note_up_to_date();
        drop(asked_at);
        self.granted.send_modify(|grants| *grants = grants.wrapping_add(1));
    }

    /// The directory's leader says how far shards have come.
    pub(crate) fn observe_hints(&self, hints: impl IntoIterator<Item = ProgressHint>) {
        let mut known = self.hints.lock();
        hints.into_iter().for_each(|hint| known.observe(hint));
    }

    /// The progress of this epoch by those hints: transactions, and the time of the last.
    pub(crate) fn progress_hint(&self, shard: ShardId, epoch: Epoch) -> CommitProgress {
        self.hints.lock().get(shard, epoch)
    }

    /// Whether this process knows every change of the cluster that was committed before `time`: the
    /// directory's leader has answered a question that was asked later.
    pub(crate) fn knows_all_until(&self, time: Duration) -> bool {
        self.asked_at.lock().is_some_and(|asked| asked >= time)
    }

    /// Waits until the directory has granted this process a lease on this very epoch: it knows the
    /// node's folder, and had not sealed the epoch when it was asked.
    pub(crate) async fn granted(&self, shard: ShardId, epoch: Epoch) {
        let mut granted = self.granted.subscribe();
        while !self.lease.lock().holds(self.now(), shard, epoch) {
            // The directory lives as long as this process.
            drop(granted.changed().await);
        }
    }

    /// From now on this node serves nothing of this epoch.
    pub(crate) fn seal(&self, shard: ShardId, epoch: Epoch) {
        self.lease.lock().seal(shard, epoch);
    }

    pub(crate) fn renew_now(&self) {
        self.renew_now.notify_one();
    }

    /// Waits until a renewal is wanted; a wish since the last wait counts.
    pub(crate) async fn renewal_is_wanted(&self) {
        self.renew_now.notified().await;
    }

    /// Nodes of the directory group, to be asked in this order by a process in `region`.
    pub(crate) fn voters_near(&self, region: &str) -> Vec<NodeId> {
        self.known.borrow().cluster.directory_voters_near(region)
    }
}

impl Catalogue for Directory {
    fn default_database(&self) -> Option<DatabaseId> {
        self.known.borrow().cluster.default_database
    }

    fn by_name(&self, name: &str) -> Option<DatabaseId> {
        let known = self.known.borrow();
        known
            .cluster
            .databases
            .iter()
            .find(|(_, database)| database.name == name)
            .map(|(id, _)| *id)
    }

    fn name(&self, database: DatabaseId) -> Option<String> {
        let known = self.known.borrow();
        known.cluster.databases.get(&database).map(|database| database.name.clone())
    }

    fn token_name(&self, sha256: &[u8; 32]) -> Option<Arc<TokenName>> {
        self.known.borrow().access.name(sha256)
    }

    fn shard(&self, database: DatabaseId) -> Option<ShardId> {
        self.known.borrow().cluster.databases.get(&database).map(|database| database.shard)
    }

    fn v8_format(&self, database: DatabaseId) -> V8Format {
        let known = self.known.borrow();
        known.cluster.databases.get(&database).map(|known| known.v8_format).unwrap_or_default()
    }

    fn quotas(&self, database: DatabaseId) -> Quotas {
        let known = self.known.borrow();
        known.cluster.databases.get(&database).map(|known| known.quotas).unwrap_or_default()
    }

    fn is_current(&self) -> bool {
        // The version of a configuration is zero: a process that knows no more than that has heard
        // nothing either.
        self.has_heard.load(Ordering::Relaxed) && self.known.borrow().cluster.version > 0
    }

    fn denial(&self, bearer: &str) -> Denial {
        let by_cluster = self.known.borrow().access.denial(bearer);
        match (self.configured.denial(bearer), by_cluster) {
            (Denial::Unknown, Denial::Unknown) if self.ended.contains(&digest(bearer)) => {
                Denial::Revoked
            }
            (Denial::Unknown, by_cluster) => by_cluster,
            (by_configuration, _) => by_configuration,
        }
    }

    fn authorize(&self, bearer: &str) -> Option<Grant> {
        let now_ms = wall_ms();
        self.configured
            .authorize(bearer, now_ms)
            .or_else(|| self.known.borrow().access.authorize(bearer, now_ms))
    }
}

#[cfg(test)]
mod tests;
