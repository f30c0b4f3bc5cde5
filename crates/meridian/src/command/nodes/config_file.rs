//! The configuration of a new node, made from the one of an existing node.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use meridian_config::{NodeConfig, equip_other, is_development};
use meridian_directory::Cluster;
use meridian_pki::Holder;
use meridian_types::NodeId;

pub(super) struct NewFile<'a> {
    /// The configuration of an existing node.
    pub(super) template: &'a Path,
    /// The cluster, with the new node.
    pub(super) cluster: &'a Cluster,
    pub(super) id: NodeId,
    pub(super) data_dir: &'a Path,
}

impl NewFile<'_> {
    /// Tokens, sizes and times are the template's; all else is the cluster as it is now. A port
    /// that the cluster does not know is the template's, too.
    pub(super) fn text(&self) -> Result<String> {
        let mut config = NodeConfig::load(self.template)?;
        let Some(node) = self.cluster.present_node(self.id).cloned() else {
            bail!("there is no node {}", self.id)
        };
        let own_host = host(&node.rpc_address).to_owned();
        let same_machine = own_host == host(&config.node.rpc_address);
        config.listen.kv = match &node.kv_address {
            Some(address) => address.clone(),
            None => format!("{own_host}:{}", port(&config.listen.kv)),
        };
        config.listen.rpc.clone_from(&node.rpc_address);
        // On the same machine, the template's node has taken the port.
        config.listen.metrics = config
            .listen
            .metrics
            .filter(|_| !same_machine)
            .map(|address| format!("{own_host}:{}", port(&address)));
        config.join = true;
        config.dial.clear();
        self.data_dir.clone_into(&mut config.data_dir);
        config.cluster = self.cluster.clone();
        if let Some(identity) = &mut config.identity {
            // Beside the template's: its operator puts the certificate there.
            let path = identity.certificate.with_file_name(format!("{}.pem", node.name));
            (identity.certificate, identity.key) = (path.clone(), path);
        }
        (config.node_id, config.node) = (self.id, node);
        let text = config.to_toml();
        NodeConfig::parse(&text, Path::new("the new node's configuration"))
            .context("the cluster as it is makes no configuration")?;
        Ok(text)
    }
}

/// Issues the identity of a new node of a development cluster, whose authority lies beside the
/// identities. `None`: the certificate comes from elsewhere.
pub(super) fn identify(template: &Path, name: &str, id: NodeId) -> Result<Option<PathBuf>> {
    let Some(identity) = NodeConfig::load(template)?.identity else { return Ok(None) };
    let folder = identity.certificate.parent().and_then(Path::parent);
    let Some(folder) = folder.filter(|folder| is_development(folder)) else { return Ok(None) };
    Ok(Some(equip_other(folder, name, Holder::Node(id))?.certificate))
}

/// Creates a file that only its owner can read: it holds access tokens.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let unusable = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(unusable)?;
    }
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(unusable)
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("0", |(_, port)| port)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use meridian_config::dev_cluster;
    use meridian_directory::{Change, Node};

    use super::*;
    use crate::command::operator::samples;

    fn new_node() -> Node {
        Node {
            name: "region-2-c".to_owned(),
            region: "region-2".to_owned(),
            data_center: "c".to_owned(),
            rpc_address: "10.0.0.9:4601".to_owned(),
            kv_address: None,
            incarnation: None,
            removed: false,
        }
    }

    #[test]
    fn a_new_node_joins_the_cluster_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            dev_cluster(&[3, 2, 1], folder.path(), 4612, 4512, "a-token-of-the-cluster").unwrap();
        let template = folder.path().join("node.toml");
        std::fs::write(&template, &files[0].1).unwrap();
        let cluster = samples::cluster()
            .after(&Change::ReplaceNode { old: NodeId(5), new: new_node() })
            .unwrap();
        let data_dir = Path::new("data");
        let text = NewFile { template: &template, cluster: &cluster, id: NodeId(7), data_dir }
            .text()
            .unwrap();

        let path = folder.path().join("new/node.toml");
        write(&path, &text).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(&path, &text).is_err(), "it is there already");
        let config = NodeConfig::load(&path).unwrap();
        assert!(config.join);
        assert_eq!((config.node_id, config.node.name.as_str()), (NodeId(7), "region-2-c"));
        assert_eq!(config.data_dir, folder.path().join("new/data"));
        assert_eq!(
            (config.listen.rpc.as_str(), config.listen.kv.as_str()),
            ("10.0.0.9:4601", "10.0.0.9:4512")
        );
        assert_eq!(
            config.cluster.nodes.keys().copied().collect::<Vec<_>>(),
            [1, 2, 3, 4, 6, 7].map(NodeId)
        );
        assert_eq!(config.tokens.len(), 1);
    }

    #[test]
    fn unusable_configuration_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            dev_cluster(&[3, 2, 1], folder.path(), 4612, 4512, "a-token-of-the-cluster").unwrap();
        let template = folder.path().join("node.toml");
        std::fs::write(&template, &files[0].1).unwrap();
        let mut node = new_node();
        node.rpc_address = "0.0.0.0:4601".to_owned();
        let cluster = samples::cluster().after(&Change::AddNode { node }).unwrap();
        let data_dir = Path::new("data");
        let error = NewFile { template: &template, cluster: &cluster, id: NodeId(7), data_dir }
            .text()
            .unwrap_err();
        assert!(format!("{error:#}").contains("0.0.0.0:4601"), "{error:#}");
    }
}
