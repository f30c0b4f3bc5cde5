//! `meridian operators recover`: another admin where no operator is left, added with the certificate
//! of a node that votes in the directory. Such a node holds the key of the cluster's authority as it
//! is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use meridian_config::NodeConfig;
use meridian_directory::Cluster;
use meridian_net::grpc::{self, Access, OperatorChannel, Timeouts};
use meridian_net::tls::PemFile;
use meridian_net::{Credentials, MAX_MESSAGE_BYTES, Mutual};
use meridian_proto::directory::directory_client::DirectoryClient;
use meridian_proto::directory::{self as wire, execute_response};

use crate::command::operator::actor;

const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(3), call: Some(Duration::from_secs(15)) };
/// For a stream to begin, which the timeout of a call does not bound.
const FIRST_NEWS: Duration = Duration::from_secs(5);

/// Adds an operator of level `admin`, whose token has this hash, from the machine of a node: `config`
/// is the node's. The cluster, and whether it was done.
///
/// # Errors
/// Nothing was asked for: the node has no certificate of the cluster's authority, or does not vote in
/// the directory, or the cluster is not known.
pub(super) async fn add_admin(
    config: &Path,
    name: &str,
    sha256: String,
) -> Result<(Cluster, Result<()>)> {
    let config = NodeConfig::load(config)?;
    if !config.own_identity {
        bail!(
            "certificates come from an authority of yours: make one of an operator of level `admin` \
             with it"
        );
    }
    let files = config.identity.as_ref().context("the node has no certificate yet")?;
    let (identity, authorities) = (pem(&files.certificate)?, pem(&files.authorities)?);
    let credentials =
        Credentials { certificate: &identity, key: &identity, authorities: &authorities };
    let own = Mutual::new(credentials)?.own().context("the node has no certificate yet")?;
    let access = Access::secure(own.subject.cluster.clone(), &authorities, Some(&identity))?;
    let cluster = present(&config, &access).await?;
    if !cluster.may_vote_in_directory(config.node_id) {
        let voters: Vec<_> =
            cluster.directory_voters.iter().map(|voter| cluster.name_of(*voter)).collect();
        bail!(
            "{} does not vote in the directory: {} do, on whose machines this works",
            config.node.name,
            voters.join(", ")
        );
    }
    let request = wire::AddAdminRequest { name: name.to_owned(), sha256, actor: actor() };
    let added = ask_voters(&cluster, &access, &request).await;
    Ok((cluster, added))
}

/// # Errors
/// The directory has no leader, or refuses, or it is unknown what became of it.
async fn ask_voters(
    cluster: &Cluster,
    access: &Access,
    request: &wire::AddAdminRequest,
) -> Result<()> {
    let mut why = "the directory has no voters".to_owned();
    for voter in &cluster.directory_voters {
        let Some(node) = cluster.present_node(*voter) else { continue };
        let added =
            async { client(&node.rpc_address, access).await?.add_admin(request.clone()).await };
        why = match added.await.map(|answer| answer.into_inner().result) {
            Ok(Some(execute_response::Result::Done(_))) => return Ok(()),
            Ok(Some(execute_response::Result::Refused(reason))) => bail!("refused: {reason}"),
            Ok(_) => format!("{} does not lead the directory", node.name),
            Err(status) => format!("{}: {}", node.name, status.message()),
        };
    }
    bail!("no operator was added: {why}")
}

fn pem(path: &PathBuf) -> Result<PemFile> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(PemFile::new(path.clone(), bytes))
}

async fn client(
    address: &str,
    access: &Access,
) -> Result<DirectoryClient<OperatorChannel>, tonic::Status> {
    let channel = grpc::connect(address, access, TIMEOUTS).await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    Ok(DirectoryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// The cluster as it is now, from this node or from another of its file.
async fn present(config: &NodeConfig, access: &Access) -> Result<Cluster> {
    let others = config.cluster.present_nodes().map(|(_, node)| &node.rpc_address);
    let mut why = String::new();
    for address in std::iter::once(&config.node.rpc_address).chain(others) {
        let news = async {
            let mut client = client(address, access).await?;
            let request = wire::FollowRequest { known_version: 0 };
            client.follow(request).await?.into_inner().message().await
        };
        why = match tokio::time::timeout(FIRST_NEWS, news).await {
            Ok(Ok(Some(state))) if !state.json.is_empty() => {
                return serde_json::from_slice(&state.json).context("the answer cannot be read");
            }
            Ok(Err(status)) => format!("{address}: {}", status.message()),
            _ => format!("{address} does not answer"),
        };
    }
    bail!("the cluster is not known: {why}")
}
