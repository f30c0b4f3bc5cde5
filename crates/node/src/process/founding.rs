//! The first node of a cluster: it makes the cluster's authority, its own certificate, and the
//! token of the first operator.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use meridian_config::{Context, IdentityFolder, NodeConfig};
use meridian_directory::{self as directory, AuthorityKey, Cluster, Operator, Transport};
use meridian_net::Stream;
use meridian_pki::{Authority, CERTIFICATE_LIFETIME, Holder, KeyAndRequest, Secret, Subject};
use meridian_types::Level;
use meridian_vault::{AUTHORITY_KEY, Folder};
use uuid::Uuid;

use crate::host::clock::wall_ms;
use crate::process::start_error::StartError;

const AUTHORITY: &str = "authority.pem";
const OPERATOR: &str = "operator.toml";
/// For an answer of each other node.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(1);
/// The name of the operator whose token the first node keeps.
const FIRST_OPERATOR: &str = "founder";

/// Gives the node its identity: that of its folder, or, for the first node of a new cluster, a new
/// one. A node of an open cluster stays without.
///
/// # Errors
/// [`StartError::Identity`]: the folder cannot be used, or the node is to join and was not told how.
pub(crate) async fn identify(config: &mut NodeConfig, data_dir: &Folder) -> Result<(), StartError> {
    if config.identity.is_some() {
        return Ok(());
    }
    let folder = IdentityFolder::of(&config.data_dir);
    if !folder.is_complete() {
        let is_open = config.insecure || config.join || config.data_dir.join("db").exists();
        if is_open {
            return Ok(());
        }
        nothing_is_there(config).await?;
        found(config, &folder, data_dir)
            .map_err(|error| StartError::Identity(error.to_string()))?;
    }
    config.identity = Some(folder.files());
    config.own_identity = true;
    Ok(())
}

/// A disk that was emptied is no new cluster: before a cluster is founded none of its other nodes
/// runs, since each needs a token from the first.
async fn nothing_is_there(config: &NodeConfig) -> Result<(), StartError> {
    for (id, node) in config.cluster.nodes.iter().filter(|(id, _)| **id != config.node_id) {
        let Some((host, port)) = node.rpc_address.rsplit_once(':') else { continue };
        let (host, port) = (host.trim_matches(['[', ']']), port.parse().unwrap_or(0));
        if Stream::dial(host, port, LOOK_FOR_OTHERS).await.is_ok() {
            return Err(StartError::Identity(format!(
                "this node has neither a certificate nor data, and node {id} ({}) runs at {}: the cluster was founded \
                 before. Replace this node, or stop what listens there",
                node.name, node.rpc_address
            )));
        }
    }
    Ok(())
}

fn found(config: &NodeConfig, folder: &IdentityFolder, data_dir: &Folder) -> std::io::Result<()> {
    let first = config.cluster.nodes.keys().next().copied().unwrap_or(config.node_id);
    if config.node_id != first {
        let (id, name) = (config.node_id, &config.node.name);
        return Err(std::io::Error::other(format!(
            "node {id} ({name}) has no certificate. Node {first} founds the cluster: when it runs, \
             `meridian nodes join-token {name}` there prints a line for this node's file, `join = \"…\"`. Or give \
             [identity] for certificates of your own authority, or `insecure = true`"
        )));
    }
    let now = Duration::from_millis(wall_ms());
    let cluster = Uuid::new_v4().simple().to_string();
    let authority = Authority::new(&cluster, now).map_err(std::io::Error::other)?;
    let asked = KeyAndRequest::new().map_err(std::io::Error::other)?;
    let holder = Holder::Node(config.node_id);
    let subject = Subject { cluster: cluster.clone(), holder };
    let issued = authority.issue(&asked.request, &subject, now, CERTIFICATE_LIFETIME);
    let issued = issued.map_err(std::io::Error::other)?;
    let context = Context {
        cluster,
        nodes: vec![config.node.rpc_address.clone()],
        authorities: authority.certificate_pem().to_owned(),
        identity: None,
        token: Some(Secret::random().expose().to_owned()),
    };
    folder.write(AUTHORITY, authority.certificate_pem().as_bytes())?;
    // No command reads it: so it is encrypted where the node's files are. Cut short by a crash, it is
    // written anew, since the identity is not complete.
    let mut key = data_dir.create(&data_dir.join(AUTHORITY_KEY))?;
    key.write_all(authority.key_pem().as_bytes())?;
    key.finish()?;
    context.save(&folder.file(OPERATOR)).map_err(std::io::Error::other)?;
    // Last: with it the identity is complete.
    folder.keep(&(issued.chain_pem + &asked.key_pem), authority.certificate_pem())?;
    tracing::info!(%subject, "this node has founded a cluster, with an authority of its own");
    Ok(())
}

/// Puts the authority and the first operator into a cluster that is about to be founded, and this
/// node as the only voter of its directory, until the others have joined.
///
/// # Errors
/// [`StartError::Identity`]: the folder cannot be read.
pub(crate) fn with_authority(
    config: &NodeConfig,
    data_dir: &Folder,
    mut cluster: Cluster,
) -> Result<Cluster, StartError> {
    let folder = IdentityFolder::of(&config.data_dir);
    if !config.own_identity || config.join || !data_dir.join(AUTHORITY_KEY).exists() {
        return Ok(cluster);
    }
    let failed = |error: &dyn std::fmt::Display| StartError::Identity(error.to_string());
    let read = |path: PathBuf| {
        let mut text = String::new();
        let read = data_dir.read(&path).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|error| failed(&format!("{}: {error}", path.display())))?;
        Ok::<_, StartError>(text)
    };
    let context = Context::load(&folder.file(OPERATOR)).map_err(|error| failed(&error))?;
    let trust = &mut cluster.trust;
    trust.transport = Transport::Require;
    trust.authorities = vec![directory::Authority {
        certificate_pem: read(folder.file(AUTHORITY))?,
        key: Some(AuthorityKey::new(read(data_dir.join(AUTHORITY_KEY))?)),
        issues: true,
    }];
    if let Some(token) = &context.token {
        let operator = Operator {
            name: FIRST_OPERATOR.to_owned(),
            sha256: Secret::digest(token),
            level: Level::Admin,
            expires_at_ms: None,
            created_at_ms: wall_ms(),
        };
        trust.last_operator_id = 1;
        trust.operators.insert(1, operator);
    }
    cluster.id = Some(context.cluster);
    let voters = std::mem::replace(&mut cluster.directory_voters, [config.node_id].into());
    if voters.len() > 1 {
        cluster.trust.founders = voters;
    }
    Ok(cluster)
}

/// Removes the authority's key from the folder of a node whose cluster has it.
pub(crate) fn forget_authority(config: &NodeConfig, remembered: Option<&Cluster>) {
    if remembered.is_some_and(|cluster| !cluster.trust.authorities.is_empty()) {
        // Where it fails, the next start tries again.
        drop(std::fs::remove_file(config.data_dir.join(AUTHORITY_KEY)));
    }
}
