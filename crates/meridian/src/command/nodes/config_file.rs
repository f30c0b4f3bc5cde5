//! The configuration of a new node, made from the one of an existing node.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use meridian_config::{
    ConfigError, IdentityFiles, InvalidConfig, NodeConfig, equip_other, is_development,
};
use meridian_directory::Cluster;
use meridian_pki::{Holder, JoinToken};
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
    /// Tokens, sizes and times are the template's; all else is the cluster as it is now, or comes
    /// with the join token. A port that the cluster does not know is the template's, too.
    pub(super) fn text(&self, token: Option<&JoinToken>) -> Result<String> {
        let config = self.config()?;
        Ok(token.map_or_else(|| config.to_toml(), |token| config.to_joining_toml(token)))
    }

    fn config(&self) -> Result<NodeConfig> {
        let mut config = load(self.template)?;
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
        let gets_certificate = !self.cluster.trust.authorities.is_empty();
        config.identity = config.identity.filter(|_| !gets_certificate).map(|identity| {
            let path = certificate(&identity, &node.name);
            IdentityFiles { certificate: path.clone(), key: path, ..identity }
        });
        (config.node_id, config.node) = (self.id, node);
        match NodeConfig::parse(&config.to_toml(), Path::new("the new node's configuration")) {
            // A node that joins by a token has those of the cluster.
            Err(ConfigError::Invalid { cause: InvalidConfig::NoTokens, .. })
                if gets_certificate => {}
            checked => {
                checked.context("the cluster as it is makes no configuration")?;
            }
        }
        Ok(config)
    }
}

/// Its paths are absolute: the new file may lie in any folder.
fn load(template: &Path) -> Result<NodeConfig> {
    Ok(NodeConfig::load(&std::path::absolute(template)?)?)
}

/// The file of a new node's certificate and key: beside the template's.
fn certificate(template: &IdentityFiles, name: &str) -> PathBuf {
    template.certificate.with_file_name(format!("{name}.pem"))
}

/// The file that a new node's certificate and key have to be put into. `None`: the node needs none,
/// or it is of a development cluster, whose authority lies beside the identities and issues it here.
pub(super) fn wanted_certificate(
    template: &Path,
    name: &str,
    id: NodeId,
) -> Result<Option<PathBuf>> {
    let Some(identity) = load(template)?.identity else { return Ok(None) };
    let folder = identity.certificate.parent().and_then(Path::parent);
    let Some(folder) = folder.filter(|folder| is_development(folder)) else {
        return Ok(Some(certificate(&identity, name)));
    };
    equip_other(folder, name, Holder::Node(id))?;
    Ok(None)
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

    use meridian_config::{IdentityFolder, Joined, Loaded, dev_cluster};
    use meridian_directory::{Authority, Change, Node};
    use meridian_pki::Secret;

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
            .text(None)
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
            .text(None)
            .unwrap_err();
        assert!(format!("{error:#}").contains("0.0.0.0:4601"), "{error:#}");
    }

    #[test]
    fn new_node_of_a_cluster_with_an_authority_joins_by_the_token_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            dev_cluster(&[3, 2, 1], folder.path(), 4612, 4512, "a-token-of-the-cluster").unwrap();
        let template = folder.path().join("node.toml");
        std::fs::write(&template, &files[0].1).unwrap();
        let mut cluster = samples::cluster().after(&Change::AddNode { node: new_node() }).unwrap();
        let certificate_pem = "a certificate".to_owned();
        cluster.trust.authorities = vec![Authority { certificate_pem, key: None, issues: true }];
        let token = || JoinToken {
            cluster: "00ff00ff00ff00ff".to_owned(),
            authority: "ab".repeat(32),
            addresses: vec!["127.0.0.1:4612".to_owned()],
            secret: Secret::random(),
            expires_at_ms: 1_800_000_000_000,
        };
        let made = |template: &Path, id, token: &JoinToken| {
            let data_dir = Path::new("data");
            NewFile { template, cluster: &cluster, id: NodeId(id), data_dir }.text(Some(token))
        };
        let given = token();
        let text = made(&template, 7, &given).unwrap();
        // Without tokens of its own, as a node's file is that joined.
        let text = text.split("[[tokens]]").next().unwrap();
        let path = folder.path().join("new/node.toml");
        write(&path, text).unwrap();
        let Loaded::Joining(joining) = NodeConfig::open(&path).unwrap() else { panic!("{text}") };
        assert_eq!(joining.token, given);
        assert!(text.contains("rpc = \"10.0.0.9:4601\""), "{text}");

        // Its file is a template, too, once it has joined.
        let data_dir = folder.path().join("new/data");
        let joined = Joined {
            subject: "meridian://00ff00ff00ff00ff/node/7".to_owned(),
            token: Secret::digest(given.secret.expose()),
            cluster: cluster.clone(),
        };
        IdentityFolder::of(&data_dir).remember(&joined).unwrap();
        let next = token();
        assert!(made(&path, 6, &next).unwrap().contains(&next.to_string()));
    }

    #[test]
    fn certificate_of_a_new_node_has_one_place_wherever_its_file_lies() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            dev_cluster(&[3, 2, 1], folder.path(), 4612, 4512, "a-token-of-the-cluster").unwrap();
        let (head, tables) = files[0].1.split_once("[listen]").unwrap();
        let head = head.replace("insecure = true\n", "");
        let identity = "[identity]\ncertificate = \"../n1.pem\"\nkey = \"../n1.pem\"\nauthorities = \"../ca.pem\"\n";
        let template = folder.path().join("1/node.toml");
        std::fs::create_dir(folder.path().join("1")).unwrap();
        std::fs::write(&template, format!("{head}{identity}[listen]{tables}")).unwrap();
        // Named from the present folder, as operators do.
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let template = up.join(template.strip_prefix("/").unwrap());
        let cluster = samples::cluster().after(&Change::AddNode { node: new_node() }).unwrap();
        let data_dir = Path::new("data");
        let text = NewFile { template: &template, cluster: &cluster, id: NodeId(7), data_dir }
            .text(None)
            .unwrap();
        let there = NodeConfig::parse(&text, Path::new("elsewhere/node.toml")).unwrap();
        let named = there.identity.unwrap();
        assert!(named.certificate.is_absolute() && named.authorities.is_absolute(), "{named:?}");
        assert!(named.certificate.ends_with("1/../region-2-c.pem"), "{named:?}");
        let wanted = wanted_certificate(&template, "region-2-c", NodeId(7)).unwrap();
        assert_eq!(wanted, Some(named.certificate));
    }
}
