//! The node as it finds itself at its start: its disk, its certificate, and the cluster that it knew or is to
//! found.

use std::sync::Arc;

use meridian_config::NodeConfig;
use meridian_directory::Cluster;
use meridian_memory::Shares;
use meridian_net::Mutual;
use meridian_pki::Holder;
use meridian_storage::Engine;
use meridian_vault::Folder;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::store::load_cluster;
use crate::process::credentials;
use crate::process::data_folder::{open_engine, open_folder, take_engine, unusable};
use crate::process::founding::{forget_authority, identify, with_authority};
use crate::process::settings::first_cluster;
use crate::process::start_error::StartError;

/// The data folder with its keys, the node's identity, and its database, if that is not given.
///
/// # Errors
/// [`StartError`], naming the folder.
pub(super) async fn open_disk(
    config: &mut NodeConfig,
    shares: &Shares,
    engine: Option<Arc<dyn Engine>>,
) -> Result<(Folder, Arc<dyn Engine>), StartError> {
    let Some(engine) = engine else {
        // The keys come first: where they are wrong, nothing is begun.
        let data_dir = open_folder(config).await?;
        identify(config, &data_dir).await?;
        let engine = open_engine(config, &data_dir, shares).await?;
        return Ok((data_dir, engine));
    };
    let data_dir = Folder::from(config.data_dir.as_path());
    identify(config, &data_dir).await?;
    Ok((data_dir, take_engine(config, engine)?))
}

/// The node's certificate, the cluster that it would found, and the cluster that it knew.
pub(super) fn acquaintance(
    config: &NodeConfig,
    data_dir: &Folder,
    engine: &Arc<dyn Engine>,
    stop: &CancellationToken,
) -> Result<(Arc<Mutual>, Cluster, Option<Cluster>), StartError> {
    let follow_until = (!config.own_identity).then_some(stop);
    let mutual = credentials::read(config.identity.as_ref(), follow_until)?;
    let founded = with_authority(config, data_dir, config.founded_cluster())?;
    let first = first_cluster(founded, &mutual);
    let remembered = remembered(config, engine, &mutual)?;
    forget_authority(config, remembered.as_ref());
    Ok((mutual, first, remembered))
}

/// The cluster as the node knew it. `None`: it never took part in one.
///
/// # Errors
/// The folder cannot be read, or the certificate is not this very node's, or of another cluster.
fn remembered(
    config: &NodeConfig,
    engine: &Arc<dyn Engine>,
    mutual: &Mutual,
) -> Result<Option<Cluster>, StartError> {
    let cluster = load_cluster(engine).map_err(|error| unusable(config, &error))?;
    let Some(own) = mutual.own() else { return Ok(cluster) };
    if own.subject.holder != Holder::Node(config.node_id) {
        return Err(StartError::Identity(format!(
            "the certificate is of {}, and this is node {}",
            own.subject.holder, config.node_id
        )));
    }
    let id = cluster.as_ref().and_then(|cluster| cluster.id.as_ref());
    match id.filter(|id| **id != own.subject.cluster) {
        Some(id) => Err(StartError::Identity(format!(
            "the certificate is of cluster {}, and this node is of cluster {id}",
            own.subject.cluster
        ))),
        None => Ok(cluster),
    }
}
