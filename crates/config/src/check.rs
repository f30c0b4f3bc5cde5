//! From a file as it is written to a configuration that can work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meridian_gateway::{AuditSettings, Sample, TrustedProxies, WhenFull};
use meridian_pki::Holder;
use meridian_types::limits::REQUEST_ID_RETENTION_MS;
use meridian_types::{NodeId, ShardId};

use crate::cluster::{Address, ClusterSpec, DatabaseSpec, NodeSpec, ShardSpec};
use crate::file::{
    AuditTable, DatabaseTable, GatewayFile, GatewayTable, NodeFile, NodeTable, ShardTable,
    WhenFullWord,
};
use crate::joining::{IdentityFolder, Joined, Joining};
use crate::{
    CertificateFiles, GatewayConfig, GatewayListen, GatewaySettings, InvalidConfig, NodeConfig,
    NodeListen, RaftConfig, StorageConfig, encryption, identity, tokens,
};

/// The join token of a node's file, with the folder of the node's identity.
pub(crate) fn node_joining(file: &NodeFile, path: &Path) -> Result<Option<Joining>, InvalidConfig> {
    let Some(token) = file.join.token()? else { return Ok(None) };
    says_nothing_more(&[
        (file.node.is_some(), "node"),
        (!file.regions.is_empty(), "regions"),
        (!file.nodes.is_empty(), "[[nodes]]"),
        (!file.shards.is_empty(), "[[shards]]"),
        (!file.databases.is_empty(), "[[databases]]"),
        (file.identity.is_some(), "[identity]"),
        (file.insecure, "insecure"),
    ])?;
    let folder = IdentityFolder::of(&data_dir(&file.data_dir, path)?);
    let worker_threads = worker_threads(file.worker_threads)?;
    Ok(Some(Joining { token, folder, worker_threads }))
}

/// As [`node_joining`].
pub(crate) fn gateway_joining(
    file: &GatewayFile,
    path: &Path,
) -> Result<Option<Joining>, InvalidConfig> {
    let Some(token) = file.join.token()? else { return Ok(None) };
    says_nothing_more(&[
        (!file.regions.is_empty(), "regions"),
        (!file.nodes.is_empty(), "[[nodes]]"),
        (!file.shards.is_empty(), "[[shards]]"),
        (!file.databases.is_empty(), "[[databases]]"),
        (file.identity.is_some(), "[identity]"),
        (file.insecure, "insecure"),
    ])?;
    let state_dir = file.state_dir.as_ref().ok_or(InvalidConfig::NoStateDir)?;
    let folder = IdentityFolder::of(&data_dir(state_dir, path)?);
    Ok(Some(Joining { token, folder, worker_threads: None }))
}

/// A file with a join token says nothing that the process gets by it: whether it says each, by name.
fn says_nothing_more(said: &[(bool, &'static str)]) -> Result<(), InvalidConfig> {
    let first = said.iter().find(|(is_said, _)| *is_said);
    first.map_or(Ok(()), |(_, name)| Err(InvalidConfig::JoinAndMore(name)))
}

fn data_dir(folder: &Path, path: &Path) -> Result<PathBuf, InvalidConfig> {
    if folder.as_os_str().is_empty() {
        return Err(InvalidConfig::EmptyDataDir);
    }
    // Joining an absolute folder gives that folder.
    Ok(path.parent().unwrap_or(Path::new("")).join(folder))
}

/// The process that has joined, if it is of the kind that is expected.
fn holder(joined: &Joined, wanted: &'static str) -> Result<Holder, InvalidConfig> {
    let holder = joined.subject().map(|subject| subject.holder);
    let is_it = match &holder {
        Some(Holder::Node(_)) => wanted == "a node",
        Some(Holder::Gateway(_)) => wanted == "a gateway",
        _ => false,
    };
    let other = || InvalidConfig::JoinedAs { met: joined.subject.clone(), wanted };
    holder.filter(|_| is_it).ok_or_else(other)
}

/// `joined`: with which identity, in which folder; in the place of what a file describes.
pub(crate) fn node(
    file: NodeFile,
    path: &Path,
    joined: Option<(Joined, IdentityFolder)>,
) -> Result<NodeConfig, InvalidConfig> {
    let has_joined = joined.is_some();
    let (cluster, id, identity) = match joined {
        None => {
            let cluster =
                spec(file.regions, file.nodes, file.shards, file.databases, file.default_database);
            let id = file.node.ok_or(InvalidConfig::NoNode)?;
            (cluster.found()?, id, identity::check(file.identity, file.insecure, path)?)
        }
        Some((joined, folder)) => {
            let Holder::Node(id) = holder(&joined, "a node")? else {
                return Err(InvalidConfig::NoNode);
            };
            (joined.cluster, id, Some(folder.files()))
        }
    };
    let node = cluster.nodes.get(&id).cloned().ok_or(InvalidConfig::UnknownNode(id))?;
    let data_dir = data_dir(&file.data_dir, path)?;
    let kv = file
        .listen
        .kv
        .or_else(|| node.kv_address.clone())
        .ok_or(InvalidConfig::NowhereToListen(id))?;
    let rpc = file.listen.rpc.unwrap_or_else(|| node.rpc_address.clone());
    let listen = NodeListen { rpc, kv, metrics: file.listen.metrics };
    node_listen(&listen)?;
    let folder = folder_of(path);
    let encryption = file.encryption.map(|table| encryption::check(table, folder)).transpose()?;
    Ok(NodeConfig {
        data_dir,
        max_memory_mb: max_memory(file.max_memory_mb)?,
        worker_threads: worker_threads(file.worker_threads)?,
        listen,
        raft: raft(file.raft)?,
        storage: storage(file.storage)?,
        gateway: gateway_settings(file.gateway, folder)?,
        tokens: tokens::check(file.tokens, &cluster, folder, has_joined)?,
        encryption,
        cluster,
        node_id: id,
        node,
        join: has_joined || file.join.is_plain(),
        manual_failover: file.manual_failover,
        identity,
        own_identity: has_joined,
        insecure: file.insecure,
        dial: dial(file.dial)?,
    })
}

/// As [`node`].
pub(crate) fn gateway(
    file: GatewayFile,
    path: &Path,
    joined: Option<(Joined, IdentityFolder)>,
) -> Result<GatewayConfig, InvalidConfig> {
    let folder = folder_of(path);
    let has_joined = joined.is_some();
    let (cluster, identity) = match joined {
        None => {
            let cluster =
                spec(file.regions, file.nodes, file.shards, file.databases, file.default_database);
            (cluster.found()?, identity::check(file.identity, file.insecure, path)?)
        }
        Some((joined, folder)) => {
            holder(&joined, "a gateway")?;
            (joined.cluster, Some(folder.files()))
        }
    };
    if !cluster.regions.contains(&file.region) {
        let regions: Vec<String> =
            cluster.regions.iter().map(|region| format!("`{region}`")).collect();
        return Err(InvalidConfig::UnknownRegion {
            region: file.region,
            regions: regions.join(", "),
        });
    }
    let listen = GatewayListen { kv: file.listen.kv, metrics: file.listen.metrics };
    distinct(&[("listen.kv", Some(&listen.kv)), ("listen.metrics", listen.metrics.as_ref())])?;
    Ok(GatewayConfig {
        region: file.region,
        max_memory_mb: max_memory(file.max_memory_mb)?,
        listen,
        gateway: gateway_settings(file.gateway, folder)?,
        tokens: tokens::check(file.tokens, &cluster, folder, has_joined)?,
        cluster,
        dial: dial(file.dial)?,
        own_identity: has_joined,
        state_dir: file.state_dir.map(|folder| data_dir(&folder, path)).transpose()?,
        identity,
        insecure: file.insecure,
    })
}

/// Where relative paths of a file begin.
fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The cluster may have got the node since: only the form is checked.
fn dial(table: BTreeMap<String, String>) -> Result<BTreeMap<NodeId, String>, InvalidConfig> {
    let entry = |(node, address): (String, String)| {
        let id = node.parse().map_err(|_| InvalidConfig::DialNode(node.clone()))?;
        Address::parse_dialable(&address)
            .map_err(|cause| InvalidConfig::DialAddress { node: id, cause })?;
        Ok((id, address))
    };
    table.into_iter().map(entry).collect()
}

fn spec(
    regions: Vec<String>,
    nodes: Vec<NodeTable>,
    shards: Vec<ShardTable>,
    databases: Vec<DatabaseTable>,
    default_database: Option<String>,
) -> ClusterSpec {
    let node = |table: NodeTable| NodeSpec {
        id: table.id,
        name: table.name,
        region: table.region,
        data_center: table.data_center,
        rpc_address: table.rpc_address,
        kv_address: table.kv_address,
    };
    let shard = |table: ShardTable| ShardSpec {
        id: ShardId(table.id),
        primary_region: table.primary_region,
        voters: table.voters,
        preferred_leader: table.preferred_leader,
        allow_weak_quorum: table.allow_weak_quorum,
    };
    let database = |table: DatabaseTable| DatabaseSpec {
        id: table.id.0,
        name: table.name,
        shard: ShardId(table.shard),
    };
    ClusterSpec {
        regions,
        nodes: nodes.into_iter().map(node).collect(),
        shards: shards.into_iter().map(shard).collect(),
        databases: databases.into_iter().map(database).collect(),
        default_database,
    }
}

fn node_listen(listen: &NodeListen) -> Result<(), InvalidConfig> {
    distinct(&[
        ("listen.rpc", Some(&listen.rpc)),
        ("listen.kv", Some(&listen.kv)),
        ("listen.metrics", listen.metrics.as_ref()),
    ])?;
    // Other nodes could not know which port it became.
    match Address::parse(&listen.rpc) {
        Ok(Address { port: 0, .. }) => Err(InvalidConfig::OutOfRange {
            field: "the port of listen.rpc",
            value: 0,
            min: 1,
            max: u16::MAX.into(),
        }),
        _ => Ok(()),
    }
}

/// Each is an address, and no two are the same port.
fn distinct(listens: &[(&'static str, Option<&String>)]) -> Result<(), InvalidConfig> {
    let mut seen: Vec<(&'static str, Address)> = Vec::new();
    for &(second, text) in listens {
        let Some(text) = text else { continue };
        let address = Address::parse(text)
            .map_err(|cause| InvalidConfig::ListenAddress { field: second, cause })?;
        if let Some(&(first, _)) = seen.iter().find(|(_, other)| other.clashes_with(&address)) {
            return Err(InvalidConfig::SameListen { first, second, address: text.clone() });
        }
        seen.push((second, address));
    }
    Ok(())
}

fn raft(raft: RaftConfig) -> Result<RaftConfig, InvalidConfig> {
    let RaftConfig {
        heartbeat_ms,
        election_timeout_min_ms: min_ms,
        election_timeout_max_ms: max_ms,
    } = raft;
    within("raft.heartbeat_ms", heartbeat_ms, 5, 10_000)?;
    within("raft.election_timeout_max_ms", max_ms, 1, 60_000)?;
    if heartbeat_ms >= min_ms || min_ms >= max_ms {
        return Err(InvalidConfig::ElectionTimes { heartbeat_ms, min_ms, max_ms });
    }
    if heartbeat_ms * 6 > max_ms {
        return Err(InvalidConfig::HeartbeatTooSlow { heartbeat_ms, max_ms });
    }
    Ok(raft)
}

/// Up to 1 TiB, so that bytes fit any counter.
const MAX_MB: u64 = 1024 * 1024;

fn max_memory(mb: Option<u64>) -> Result<Option<u64>, InvalidConfig> {
    mb.map_or(Ok(()), |mb| {
        within("max_memory_mb", mb, (meridian_memory::MIN_BYTES >> 20) as u64, MAX_MB)
    })?;
    Ok(mb)
}

fn worker_threads(threads: Option<u64>) -> Result<Option<usize>, InvalidConfig> {
    threads.map_or(Ok(()), |threads| within("worker_threads", threads, 1, 1024))?;
    Ok(threads.and_then(|threads| usize::try_from(threads).ok()))
}

fn storage(storage: StorageConfig) -> Result<StorageConfig, InvalidConfig> {
    within("storage.log_retention_mb", storage.log_retention_mb, 1, MAX_MB)?;
    within("storage.change_retention_mb", storage.change_retention_mb, 1, MAX_MB)?;
    Ok(storage)
}

fn streams(
    name: &'static str,
    value: Option<u64>,
    max: u64,
    default: u32,
) -> Result<u32, InvalidConfig> {
    let Some(value) = value else { return Ok(default) };
    within(name, value, 1, max)?;
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}

/// More are looked through for each handshake than are worth it.
const MAX_CERTIFICATES: u64 = 64;
const MAX_TRUSTED_PROXIES: u64 = 256;

fn gateway_settings(table: GatewayTable, folder: &Path) -> Result<GatewaySettings, InvalidConfig> {
    let certificates = table.certificates.into_iter().map(|files| {
        let certificate = folder.join(files.certificate);
        let key = files.key.map_or_else(|| certificate.clone(), |key| folder.join(key));
        CertificateFiles { certificate, key }
    });
    let certificates: Vec<_> = certificates.collect();
    let (count, proxies) = (certificates.len() as u64, table.trusted_proxies.len() as u64);
    within("the number of [[gateway.certificates]]", count, 0, MAX_CERTIFICATES)?;
    within("the number of gateway.trusted_proxies", proxies, 0, MAX_TRUSTED_PROXIES)?;
    if table.insecure && !certificates.is_empty() {
        return Err(InvalidConfig::InsecureWithCertificates);
    }
    let trusted_proxies =
        TrustedProxies::parse(&table.trusted_proxies).map_err(InvalidConfig::TrustedProxies)?;
    let default = GatewaySettings::default();
    let public_url =
        table.public_url.map(|url| url.parse()).transpose().map_err(InvalidConfig::PublicUrl)?;
    let max_connections = match table.max_connections {
        None => default.max_connections,
        Some(value) => {
            within("gateway.max_connections", value, 1, 1_000_000)?;
            usize::try_from(value).unwrap_or(usize::MAX)
        }
    };
    let max_watches =
        streams("gateway.max_watches", table.max_watches, 1_000_000, default.max_watches)?;
    let max_change_feeds = streams(
        "gateway.max_change_feeds",
        table.max_change_feeds,
        10_000,
        default.max_change_feeds,
    )?;
    let request_deadline_ms = table.request_deadline_ms.unwrap_or(default.request_deadline_ms);
    // Half of what is remembered: the last retry may start at the deadline and take its time.
    within("gateway.request_deadline_ms", request_deadline_ms, 100, REQUEST_ID_RETENTION_MS / 2)?;
    Ok(GatewaySettings {
        public_url,
        certificates,
        insecure: table.insecure,
        trusted_proxies,
        max_connections,
        max_watches,
        max_change_feeds,
        request_deadline_ms,
        audit: table.audit.map(|table| audit(table, folder)).transpose()?,
    })
}

fn audit(table: AuditTable, folder: &Path) -> Result<AuditSettings, InvalidConfig> {
    if table.file.as_os_str().is_empty() {
        return Err(InvalidConfig::EmptyAuditFile);
    }
    if table.values && !table.keys {
        return Err(InvalidConfig::AuditedValuesWithoutKeys);
    }
    let part = table.sample.unwrap_or(1.0);
    Ok(AuditSettings {
        file: folder.join(table.file),
        sample: Sample::new(part).ok_or_else(|| InvalidConfig::AuditSample(part.to_string()))?,
        keys: table.keys,
        values: table.values,
        when_full: match table.when_full {
            None | Some(WhenFullWord::Drop) => WhenFull::Drop,
            Some(WhenFullWord::Refuse) => WhenFull::Refuse,
        },
    })
}

fn within(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), InvalidConfig> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(InvalidConfig::OutOfRange { field, value, min, max })
    }
}
