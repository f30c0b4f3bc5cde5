//! Identities of a development cluster: a throw-away authority, with a certificate for each node
//! and for an operator. Nothing is developed or tested in the open.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meridian_pki::{Authority, AuthorityError, Holder, KeyAndRequest, Subject};
use meridian_types::Level;
use rand::RngCore as _;

use crate::{Context, ContextError, IdentityFiles, NodeConfig, private_file};

/// In the folder of the cluster.
const FOLDER: &str = "identities";
const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority-key.pem";
const CLUSTER: &str = "cluster-id";
const OPERATOR: &str = "operator.toml";
/// They are issued anew with each start.
const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why a development cluster got no identities.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentities {
    #[error("cannot keep identities in {}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// Gives each configuration of a cluster in `folder` an identity, and returns the context of its
/// operator. `None`: the cluster has data from before it had identities, and stays open.
///
/// # Errors
/// [`NoIdentities`].
pub fn equip(configs: &mut [NodeConfig], folder: &Path) -> Result<Option<PathBuf>, NoIdentities> {
    let folder = folder_of(folder);
    let has_data = |config: &NodeConfig| config.data_dir.join("db").exists();
    if !folder.exists() && configs.iter().any(has_data) {
        return Ok(None);
    }
    let issuing = Issuing::open(folder)?;
    let operator = issuing.folder.join(OPERATOR);
    for config in configs.iter_mut() {
        let files = issuing.files(&config.node.name, Holder::Node(config.node_id))?;
        config.insecure = false;
        config.identity = Some(IdentityFiles { operator: Some(operator.clone()), ..files });
    }
    let holder = Holder::Operator { level: Level::Admin, name: "developer".to_owned() };
    let context = Context {
        nodes: configs.iter().map(|config| config.node.rpc_address.clone()).collect(),
        authorities: issuing.authority.certificate_pem().to_owned(),
        identity: Some(issuing.identity(holder)?),
        token: None,
        cluster: issuing.cluster,
    };
    context.save(&operator)?;
    Ok(Some(operator))
}

/// Whether the folder is of a cluster with a throw-away authority.
#[must_use]
pub fn is_development(folder: &Path) -> bool {
    folder_of(folder).join(AUTHORITY_KEY).exists()
}

/// A certificate for a process of the development cluster in `folder` that is no node of it, such
/// as a gateway: its identity, in a file of its name.
///
/// # Errors
/// [`NoIdentities`].
pub fn equip_other(
    folder: &Path,
    name: &str,
    holder: Holder,
) -> Result<IdentityFiles, NoIdentities> {
    Issuing::open(folder_of(folder))?.files(name, holder)
}

/// The authority of a folder, at a moment.
struct Issuing {
    folder: PathBuf,
    cluster: String,
    authority: Authority,
    now: Duration,
}

impl Issuing {
    fn open(folder: PathBuf) -> Result<Self, NoIdentities> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (cluster, authority) = authority(&folder, now)?;
        Ok(Self { folder, cluster, authority, now })
    }

    /// A certificate, its authority's, and the key, as PEM.
    fn identity(&self, holder: Holder) -> Result<String, NoIdentities> {
        let asked = KeyAndRequest::new()?;
        let subject = Subject { cluster: self.cluster.clone(), holder };
        let issued = self.authority.issue(&asked.request, &subject, self.now, VALID_FOR)?;
        Ok(issued.chain_pem + &asked.key_pem)
    }

    /// The same in a file of this name.
    fn files(&self, name: &str, holder: Holder) -> Result<IdentityFiles, NoIdentities> {
        let path = self.folder.join(format!("{name}.pem"));
        write(&path, &self.identity(holder)?)?;
        Ok(IdentityFiles {
            certificate: path.clone(),
            key: path,
            authorities: self.folder.join(AUTHORITY),
            operator: None,
        })
    }
}

/// Absolute: files of nodes in other folders name it.
fn folder_of(cluster: &Path) -> PathBuf {
    std::path::absolute(cluster).unwrap_or_else(|_| cluster.to_owned()).join(FOLDER)
}

/// The authority of the folder, made the first time, with the id of the cluster.
fn authority(folder: &Path, now: Duration) -> Result<(String, Authority), NoIdentities> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(|cause| NoIdentities::File { path, cause })
    };
    // The id is written last.
    if folder.join(CLUSTER).exists() {
        let authority = Authority::from_pem(&read(AUTHORITY)?, &read(AUTHORITY_KEY)?)?;
        return Ok((read(CLUSTER)?.trim().to_owned(), authority));
    }
    let made = std::fs::create_dir_all(folder);
    made.map_err(|cause| NoIdentities::File { path: folder.to_owned(), cause })?;
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let cluster: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let authority = Authority::new(&cluster, now)?;
    write(&folder.join(AUTHORITY_KEY), authority.key_pem())?;
    write(&folder.join(AUTHORITY), authority.certificate_pem())?;
    write(&folder.join(CLUSTER), &cluster)?;
    Ok((cluster, authority))
}

fn write(path: &Path, text: &str) -> Result<(), NoIdentities> {
    let written = private_file::write(path, text.as_bytes());
    written.map_err(|cause| NoIdentities::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DevLayout, dev_cluster_configs};

    #[test]
    fn cluster_that_starts_again_keeps_its_authority_and_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let configs = || {
            let layout = DevLayout::new(&[3]);
            dev_cluster_configs(layout, folder.path(), 4600, 4500, &"t".repeat(16)).unwrap()
        };
        let mut first = configs();
        let context = Context::load(&equip(&mut first, folder.path()).unwrap().unwrap()).unwrap();
        assert_eq!(context.nodes.len(), 3);
        let mut again = configs();
        let second = Context::load(&equip(&mut again, folder.path()).unwrap().unwrap()).unwrap();
        assert_eq!(
            (&context.cluster, &context.authorities),
            (&second.cluster, &second.authorities)
        );
        assert_eq!(first[0].identity, again[0].identity);
        let gateway =
            equip_other(folder.path(), "edge", Holder::Gateway("edge".to_owned())).unwrap();
        assert!(gateway.certificate.ends_with("identities/edge.pem"));
    }

    #[test]
    fn cluster_with_data_from_before_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let layout = DevLayout::new(&[3]);
        let mut configs =
            dev_cluster_configs(layout, folder.path(), 4600, 4500, &"t".repeat(16)).unwrap();
        std::fs::create_dir_all(configs[0].data_dir.join("db")).unwrap();
        assert!(equip(&mut configs, folder.path()).unwrap().is_none());
        assert!(configs.iter().all(|config| config.insecure && config.identity.is_none()));
        assert!(!folder.path().join("identities").exists());
    }
}
