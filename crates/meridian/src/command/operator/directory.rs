//! The directory from outside: finding its leader, asking it, and making changes exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use futures::stream::{FuturesUnordered, StreamExt};
use meridian_config::Context;
use meridian_directory::{Change, Cluster};
use meridian_net::MAX_MESSAGE_BYTES;
use meridian_net::grpc::{self, Access, OperatorChannel, Timeouts};
use meridian_proto::admin::admin_client::AdminClient;
use meridian_proto::directory::{
    self as wire, directory_client::DirectoryClient, execute_response,
};
use meridian_proto::node_id;
use meridian_types::NodeId;
use tokio::time::Instant;
use tonic::Code;

use super::connect::Reached;
use super::{Target, View};

const CONNECT: Duration = Duration::from_secs(2);
/// For a question. A directory that has just lost its leader takes a while to elect another.
const ASK: Duration = Duration::from_secs(4);
/// For a change: it is committed in several regions.
const EXECUTE: Duration = Duration::from_secs(15);
/// How long to look for a leader.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);
/// Words of rustls of a certificate from an authority that is not believed: of the name of a
/// believed authority, and of another name.
const STRANGE_AUTHORITY: [&str; 2] = ["BadSignature", "UnknownIssuer"];
/// Nodes that a token or a context names.
const MAX_SEEDS: usize = 8;
/// The number of recorded changes searched for a change of unknown outcome.
const SEARCHED_CHANGES: u32 = 200;

/// The directory as seen by an operator's command: any node leads to its leader.
pub(crate) struct Directory {
    seeds: Vec<String>,
    access: Access,
    context: Option<(PathBuf, Context)>,
    /// The newest cluster received so far.
    known: Option<Cluster>,
    /// The address at which the leader answered last.
    leader_address: Option<String>,
}

/// The outcome of one attempt to make a change.
enum Tried {
    Done(Box<Cluster>),
    Refused(String),
    /// Certainly not made: nothing was sent, or the node does not lead.
    Not {
        leader: Option<NodeId>,
        why: String,
    },
    /// Possibly made.
    Unknown(String),
}

impl Directory {
    /// # Errors
    /// When the configuration cannot be read that holds the addresses of nodes.
    pub(crate) fn new(target: &Target) -> Result<Self> {
        let Reached { seeds, access, context } = target.reach()?;
        Ok(Self { context, ..Self::with(seeds, access) })
    }

    /// By way of these nodes.
    pub(crate) fn with(seeds: Vec<String>, access: Access) -> Self {
        Self { seeds, access, context: None, known: None, leader_address: None }
    }

    /// The way to the nodes of the cluster.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The view of the directory's leader, or the newest view of another node while no leader
    /// answers.
    ///
    /// # Errors
    /// When no node answers.
    pub(crate) async fn inspect(&mut self, changes: u32) -> Result<View> {
        if let Some(address) = self.leader_address.take()
            && let Ok(response) = ask(&address, &self.access, changes).await
        {
            let view = self.read(&address, response)?;
            if view.leader_address.is_some() {
                return Ok(view);
            }
        }
        let mut search = Search::new(self.access.clone(), changes);
        let known = self.known.iter().flat_map(|cluster| addresses(cluster, cluster.nodes.keys()));
        search.ask(self.seeds.iter().cloned().chain(known));
        let mut best: Option<View> = None;
        let mut way_on = None;
        while let Some((address, answer)) = search.asked.next().await {
            let view = match answer {
                Ok(response) => self.read(&address, response),
                Err(status) => {
                    way_on = way_on.or_else(|| advice(&status));
                    Err(anyhow!("{}", status.message()))
                }
            };
            match view {
                Ok(view) if view.leader_address.is_some() => return Ok(view),
                Ok(view) => {
                    // Only voters of the directory know its leader.
                    let next: Vec<String> = addresses(
                        &view.cluster,
                        view.leader.iter().chain(&view.cluster.directory_voters),
                    )
                    .collect();
                    search.ask(next);
                    if best.as_ref().is_none_or(|best| best.cluster.version < view.cluster.version)
                    {
                        best = Some(view);
                    }
                }
                Err(error) => {
                    search.failures.insert(address, format!("{error:#}"));
                }
            }
        }
        best.ok_or_else(|| {
            let failures =
                search.failures.iter().map(|(address, error)| format!("\n  {address}: {error}"));
            let way_on = way_on.map(|advice| format!("\n{advice}")).unwrap_or_default();
            anyhow!("no node of the cluster answers{}{way_on}", failures.collect::<String>())
        })
    }

    /// The view of the leader, as soon as there is one.
    ///
    /// # Errors
    /// When no leader is found for some time.
    pub(crate) async fn inspect_leader(&mut self, changes: u32) -> Result<View> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match self.inspect(changes).await {
                Ok(view) if view.leader_address.is_some() => return Ok(view),
                Ok(view) => no_leader(&view),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                bail!("the directory's leader was not found: {why}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes a change and returns the cluster after it.
    ///
    /// # Errors
    /// When the change is refused, when no leader is found for some time, and when it stays
    /// unknown whether the change was made.
    pub(crate) async fn execute(&mut self, change: &Change) -> Result<Cluster> {
        let request = wire::ExecuteRequest {
            change_json: serde_json::to_vec(change)?.into(),
            actor: actor(),
        };
        let deadline = Instant::now() + PATIENCE;
        let mut address = self.leader_address.clone();
        loop {
            let to = match address.take() {
                Some(address) => address,
                None => self.inspect_leader(0).await?.leader_address.unwrap_or_default(),
            };
            let before = self.known.as_ref().map_or(0, |cluster| cluster.version);
            match execute(&to, &self.access, request.clone()).await {
                Tried::Done(cluster) => {
                    self.believe(&cluster)?;
                    self.known = Some((*cluster).clone());
                    return Ok(*cluster);
                }
                Tried::Refused(why) => bail!("refused: {why}"),
                Tried::Not { leader, why } => {
                    if Instant::now() > deadline {
                        bail!("the change was not made: {why}");
                    }
                    self.leader_address = None;
                    let known = self.known.as_ref();
                    address = leader
                        .and_then(|leader| addresses(known?, [&leader]).next())
                        .filter(|next| *next != to);
                    if address.is_none() {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Tried::Unknown(why) => {
                    eprintln!("meridian: {why}; checking whether the change was made");
                    self.leader_address = None;
                    return self.look_for(change, &request.actor, before).await;
                }
            }
        }
    }

    /// Looks for a change of unknown outcome in the record, after the version `behind`.
    async fn look_for(&mut self, change: &Change, actor: &str, behind: u64) -> Result<Cluster> {
        // As it is recorded and shown.
        let change = change.without_secrets().without_leaders_part();
        let is_it = |record: &wire::ChangeRecord| {
            let recorded = || serde_json::from_slice::<Change>(&record.change_json);
            record.version > behind
                // The leader puts before it what the connection proves.
                && record.actor.ends_with(actor)
                && recorded().is_ok_and(|recorded| {
                    recorded.without_secrets().without_leaders_part() == change
                })
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(view) = self.inspect_leader(SEARCHED_CHANGES).await
                && view.changes.iter().any(is_it)
            {
                return Ok(view.cluster);
            }
            tokio::time::sleep(PAUSE * 5).await;
        }
        bail!(
            "unknown whether the change was made: it is not in the record, but may still be committed. Check \
             `meridian cluster changes` before you repeat the command"
        )
    }

    /// Reads a view, and remembers the leader and the newest cluster.
    fn read(&mut self, address: &str, response: wire::InspectResponse) -> Result<View> {
        // Only the leader has contacts of nodes. It may be reached at another address than its own.
        let is_leader = !response.contacts.is_empty();
        let mut view = View::read(response, is_leader.then(|| address.to_owned()))?;
        let leader = view.leader.and_then(|leader| view.cluster.nodes.get(&leader));
        if leader.is_some_and(|leader| leader.rpc_address == address) {
            view.leader_address = Some(address.to_owned());
        }
        if view.leader_address.is_some() {
            self.leader_address.clone_from(&view.leader_address);
        }
        if self.known.as_ref().is_none_or(|known| known.version <= view.cluster.version) {
            if is_leader {
                self.believe(&view.cluster)?;
            }
            self.known = Some(view.cluster.clone());
        }
        Ok(view)
    }

    /// Believes the authorities that the cluster names, and asks its nodes of today, now and with
    /// later commands: while one authority takes the place of another, the cluster names both.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(crate) fn believe(&mut self, cluster: &Cluster) -> Result<()> {
        let Some((path, context)) = &mut self.context else { return Ok(()) };
        let authorities = cluster.trust.authorities_pem();
        // With authorities of their own, operators write the file, and change it, themselves.
        if authorities.is_empty() {
            return Ok(());
        }
        let has_others = authorities != context.authorities;
        // Addresses that the cluster does not know lead there by a way of the operator's.
        let is_own =
            |address: &&String| cluster.nodes.values().all(|node| node.rpc_address != **address);
        let own: Vec<_> = context.nodes.iter().filter(is_own).cloned().collect();
        let nodes = own.into_iter().chain(seeds(cluster)).take(MAX_SEEDS).collect();
        let today = Context { authorities, nodes, ..context.clone() };
        if today == *context {
            return Ok(());
        }
        if has_others {
            self.access = today.access(path)?;
        }
        // Another login may have taken its place.
        let is_the_same = |now: &Context| now.token == context.token;
        let may_save = Context::load(path).is_ok_and(|now| is_the_same(&now));
        *context = today;
        if !may_save {
            return Ok(());
        }
        // Nodes of before lead to those of today as well, for as long as one of them is there.
        if let Err(error) = context.save(path)
            && has_others
        {
            eprintln!("meridian: {error}; the next rotation of the authority needs a new login");
        }
        Ok(())
    }
}

/// Why a view does not come from the leader.
pub(crate) fn no_leader(view: &View) -> String {
    match view.leader.and_then(|leader| view.cluster.nodes.get(&leader)) {
        Some(leader) => {
            format!("{} at {} does not answer", leader.name, leader.rpc_address)
        }
        None => "its voters know no leader".to_owned(),
    }
}

/// A way on for an operator that a node refuses, or that does not believe the node.
fn advice(status: &tonic::Status) -> Option<&'static str> {
    let is_said = |word: &&str| status.message().contains(*word);
    if STRANGE_AUTHORITY.iter().any(is_said) {
        return Some(
            "the cluster's authority may have been replaced: ask for a new login token (`meridian operators \
             login-token NAME`)",
        );
    }
    (status.code() == Code::Unauthenticated).then_some(
        "log in (`meridian login`), or name the context of an operator (--context); `meridian operators login-token \
         NAME` prints a new token",
    )
}

type Answer = (String, Result<wire::InspectResponse, tonic::Status>);

/// Asks several nodes at a time, each of them once.
struct Search {
    access: Access,
    changes: u32,
    seen: BTreeSet<String>,
    asked: FuturesUnordered<futures::future::BoxFuture<'static, Answer>>,
    failures: BTreeMap<String, String>,
}

impl Search {
    fn new(access: Access, changes: u32) -> Self {
        Self {
            access,
            changes,
            seen: BTreeSet::new(),
            asked: FuturesUnordered::new(),
            failures: BTreeMap::new(),
        }
    }

    fn ask(&mut self, addresses: impl IntoIterator<Item = String>) {
        for address in addresses {
            if self.seen.insert(address.clone()) {
                let (access, changes) = (self.access.clone(), self.changes);
                self.asked.push(Box::pin(async move {
                    let answer = ask(&address, &access, changes).await;
                    (address, answer)
                }));
            }
        }
    }
}

/// The nodes that tokens and contexts name: voters of the directory first, since one of them leads.
pub(crate) fn seeds(cluster: &Cluster) -> Vec<String> {
    let voters = &cluster.directory_voters;
    let mut nodes: Vec<_> = cluster.present_nodes().collect();
    nodes.sort_by_key(|(id, _)| !voters.contains(id));
    nodes.into_iter().map(|(_, node)| node.rpc_address.clone()).take(MAX_SEEDS).collect()
}

/// Addresses of nodes that were not removed.
fn addresses<'a>(
    cluster: &'a Cluster,
    nodes: impl IntoIterator<Item = &'a NodeId>,
) -> impl Iterator<Item = String> {
    let nodes =
        nodes.into_iter().filter_map(|node| cluster.nodes.get(node)).filter(|node| !node.removed);
    nodes.map(|node| node.rpc_address.clone())
}

/// Connects to a node. After an error, nothing has been sent but the handshake.
async fn connect(address: &str, access: &Access) -> Result<OperatorChannel, tonic::Status> {
    let timeouts = Timeouts { connect: CONNECT, call: None };
    let connected = grpc::connect(address, access, timeouts).await;
    connected.map_err(|error| tonic::Status::unavailable(error.to_string()))
}

/// The administration of a node, whose answers may be as large as any message.
pub(crate) async fn admin(
    address: &str,
    access: &Access,
) -> Result<AdminClient<OperatorChannel>, tonic::Status> {
    let client = AdminClient::new(connect(address, access).await?);
    Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
}

async fn ask(
    address: &str,
    access: &Access,
    changes: u32,
) -> Result<wire::InspectResponse, tonic::Status> {
    let asked = async {
        let mut client = client(connect(address, access).await?);
        Ok(client.inspect(wire::InspectRequest { changes }).await?.into_inner())
    };
    let late = |_| Err(tonic::Status::deadline_exceeded("no answer"));
    tokio::time::timeout(ASK, asked).await.unwrap_or_else(late)
}

async fn execute(address: &str, access: &Access, request: wire::ExecuteRequest) -> Tried {
    let not = |leader, why: String| Tried::Not { leader, why: format!("{address}: {why}") };
    let channel = match connect(address, access).await {
        Ok(channel) => channel,
        Err(status) => return not(None, status.message().to_owned()),
    };
    let answer = match tokio::time::timeout(EXECUTE, client(channel).execute(request)).await {
        Err(_) => return Tried::Unknown(format!("{address} did not answer in time")),
        Ok(answer) => answer.map(|answer| answer.into_inner().result),
    };
    match answer {
        Ok(Some(execute_response::Result::Done(state))) => {
            match serde_json::from_slice(&state.json) {
                Ok(cluster) => Tried::Done(Box::new(cluster)),
                Err(error) => Tried::Unknown(format!(
                    "this version cannot read the answer of {address} ({error})"
                )),
            }
        }
        Ok(Some(execute_response::Result::Refused(why))) => Tried::Refused(why),
        Ok(Some(execute_response::Result::NotLeader(leader))) => match node_id(leader) {
            Some(leader) => not(Some(leader), format!("node {leader} leads")),
            None => not(None, "the directory has no leader".to_owned()),
        },
        Ok(None) => Tried::Unknown(format!("this version does not know the answer of {address}")),
        Err(status) => match status.code() {
            // The node does not vote in the directory.
            Code::FailedPrecondition => not(None, status.message().to_owned()),
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Tried::Refused(status.message().to_owned()),
            _ => Tried::Unknown(format!("{address}: {}", status.message())),
        },
    }
}

fn client(channel: OperatorChannel) -> DirectoryClient<OperatorChannel> {
    DirectoryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The author of a change, for the record: `user@host`.
pub(crate) fn actor() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let user = variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = variable("HOSTNAME").or_else(kernel).map(|host| host.trim().to_owned());
    let unknown = || "unknown".to_owned();
    format!("{}@{}", user.unwrap_or_else(unknown), host.unwrap_or_else(unknown))
}

#[cfg(test)]
mod tests;
