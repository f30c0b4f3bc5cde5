//! The options of every operator's command: the nodes to ask, and the form of the answer.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use meridian_config::{Context, IdentityFolder};
use meridian_net::grpc::Access;
use meridian_pki::Claims;
use serde::Deserialize;

use super::contexts;

/// The cluster that a command is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Configuration file of a node or gateway. Any of its `[[nodes]]` leads to the directory's
    /// leader.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "meridian-data/region-1-a/node.toml"
    )]
    pub(crate) config: PathBuf,
    /// Ask the node at this gRPC address instead of those of --config. May be repeated.
    #[arg(long = "node", global = true, value_name = "HOST:PORT", value_parser = parse_address)]
    pub(crate) nodes: Vec<String>,
    /// Context of the cluster: a file, or a name that was given to `meridian login`. Default: that
    /// of the configuration, else the one of the latest login, if that is to the same cluster.
    #[arg(long, global = true, env = "MERIDIAN_CONTEXT", value_name = "NAME|FILE")]
    pub(crate) context: Option<String>,
}

/// The cluster that a command is for, and the form of its answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The part of a configuration that a command needs. The rest is checked by the process that runs
/// with it.
#[derive(Deserialize, Default)]
struct Configuration {
    #[serde(default)]
    nodes: Vec<ConfiguredNode>,
    identity: Option<ConfiguredIdentity>,
    data_dir: Option<PathBuf>,
    /// Of a gateway, in the place of `data_dir`.
    state_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ConfiguredIdentity {
    #[serde(default)]
    certificate: PathBuf,
    operator: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ConfiguredNode {
    rpc_address: String,
}

/// The identity of the process that a configuration is for, in files that may not be there.
struct OwnIdentity {
    certificate: PathBuf,
    /// The context of an operator.
    operator: Option<PathBuf>,
    /// The node has data and no certificate: its cluster was never closed.
    is_open: bool,
}

impl Configuration {
    /// `folder`: where relative paths of the file begin. `None`: the file names no place.
    fn identity(&self, folder: &Path) -> Option<OwnIdentity> {
        if let Some(identity) = &self.identity {
            let operator = identity.operator.as_ref().map(|path| folder.join(path));
            let certificate = folder.join(&identity.certificate);
            return Some(OwnIdentity { certificate, operator, is_open: false });
        }
        let own = folder.join(self.data_dir.as_ref().or(self.state_dir.as_ref())?);
        let files = IdentityFolder::of(&own).files();
        let is_open = own.join("db").exists() && !files.certificate.exists();
        Some(OwnIdentity { certificate: files.certificate, operator: files.operator, is_open })
    }
}

impl OwnIdentity {
    /// The id of the cluster. `None`: the certificate is not there, or another user's to read.
    fn cluster(&self) -> Option<String> {
        let pem = std::fs::read_to_string(&self.certificate).ok()?;
        Claims::read_pem(&pem).ok().map(|claims| claims.subject.cluster)
    }
}

/// The nodes to ask first, at least one, and the way to them.
pub(crate) struct Reached {
    pub(crate) seeds: Vec<String>,
    pub(crate) access: Access,
    /// With its file. `None`: the cluster asks for no proof.
    pub(crate) context: Option<(PathBuf, Context)>,
}

impl Target {
    /// # Errors
    /// When the context or the configuration cannot be read, or names no node.
    pub(crate) fn reach(&self) -> Result<Reached> {
        self.reach_after(contexts::latest)
    }

    /// `latest`: the context of the latest login.
    fn reach_after(&self, latest: impl Fn() -> Option<PathBuf>) -> Result<Reached> {
        let configuration = self.configuration();
        let context = self.context_file(configuration.as_ref().ok(), latest);
        let context = context.map(|path| Context::load(&path).map(|context| (path, context)));
        let context = context.transpose()?;
        let access = match &context {
            Some((path, context)) => context.access(path)?,
            None => Access::open(),
        };
        let named = self.named(configuration.as_ref().ok());
        let seeds = match &context {
            // The file of a process that joined by a token names no nodes.
            Some((_, context))
                if named.is_empty() || (self.nodes.is_empty() && self.context.is_some()) =>
            {
                context.nodes.clone()
            }
            None if named.is_empty() => {
                configuration?;
                Vec::new()
            }
            _ => named,
        };
        if seeds.is_empty() {
            bail!(
                "{} has no [[nodes]] to ask: name a context (`meridian login` makes one), or a node (--node)",
                self.config.display()
            );
        }
        Ok(Reached { seeds, access, context })
    }

    /// The nodes that the command line names, else those of the configuration.
    fn named(&self, configuration: Option<&Configuration>) -> Vec<String> {
        if !self.nodes.is_empty() {
            return self.nodes.clone();
        }
        let nodes = configuration.map(|configuration| configuration.nodes.as_slice());
        nodes.unwrap_or_default().iter().map(|node| node.rpc_address.clone()).collect()
    }

    /// The context that was named, or that of the configuration, or of the latest login.
    fn context_file(
        &self,
        configuration: Option<&Configuration>,
        latest: impl Fn() -> Option<PathBuf>,
    ) -> Option<PathBuf> {
        if let Some(named) = &self.context {
            return Some(contexts::file(named));
        }
        let Some(configuration) = configuration else { return latest() };
        let identity = configuration.identity(self.config.parent().unwrap_or(Path::new("")));
        if let Some(path) = identity.as_ref().and_then(|identity| identity.operator.clone()) {
            return Some(path);
        }
        let named = self.named(Some(configuration));
        // A login to another cluster proves nothing to this one, which may be open.
        latest().filter(|path| {
            Context::load(path).is_ok_and(|login| is_of(&login, identity.as_ref(), &named))
        })
    }

    fn configuration(&self) -> Result<Configuration> {
        let path = self.config.display();
        let text = std::fs::read_to_string(&self.config).with_context(|| {
            format!(
                "cannot read {path} (--config names a node's configuration, --node a node to ask, --context a context)"
            )
        })?;
        // The parser's own message would quote the line, which may hold a secret.
        toml::from_str(&text).map_err(|_| {
            anyhow!(
                "{path} is not the configuration of a node or a gateway: it has no [[nodes]] with rpc_address"
            )
        })
    }
}

/// Whether a login is to the cluster of a configuration: by its certificate, else by the nodes that
/// it names.
fn is_of(login: &Context, identity: Option<&OwnIdentity>, named: &[String]) -> bool {
    match identity.and_then(OwnIdentity::cluster) {
        Some(cluster) => cluster == login.cluster,
        None if identity.is_some_and(|identity| identity.is_open) => false,
        None => named.is_empty() || named.iter().any(|node| login.nodes.contains(node)),
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    let named = text
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match named {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected host:port, the gRPC address of a node".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_pki::{Authority, Holder, KeyAndRequest, Subject};
    use meridian_types::NodeId;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn connect(config: PathBuf, nodes: &[&str]) -> Target {
        Target {
            config,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            context: None,
        }
    }

    /// Of a user without a login.
    fn reached(config: &Path, nodes: &[&str]) -> Result<Vec<String>> {
        let reached = connect(config.to_owned(), nodes).reach_after(|| None);
        reached.map(|reached| reached.seeds)
    }

    #[test]
    fn seeds_come_from_the_command_line_or_else_from_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        assert_eq!(reached(&path, &["a:1", "b:2"]).unwrap(), ["a:1", "b:2"]);
        let error = reached(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("node.toml") && error.contains("--node"), "{error}");
        std::fs::write(
            &path,
            "node = 1\n[[nodes]]\nid = 1\nrpc_address = \"a:1\"\n[[tokens]]\nsecret = \"s\"\n",
        )
        .unwrap();
        assert_eq!(reached(&path, &[]).unwrap(), ["a:1"]);
        std::fs::write(&path, "node = 1\n").unwrap();
        let error = reached(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("no [[nodes]]") && error.contains("meridian login"), "{error}");
        std::fs::write(&path, "[[nodes]]\nsecret = \"hush\n").unwrap();
        let error = format!("{:#}", reached(&path, &[]).unwrap_err());
        assert!(!error.contains("hush"), "{error}");
    }

    /// A context as `meridian login` keeps it, and the authority of its cluster.
    fn login(folder: &Path, cluster: &str, node: &str) -> (PathBuf, Authority) {
        let authority = Authority::new(cluster, NOW).unwrap();
        let context = Context {
            cluster: cluster.to_owned(),
            nodes: vec![node.to_owned()],
            authorities: authority.certificate_pem().to_owned(),
            identity: None,
            token: Some("secret".to_owned()),
        };
        let path = folder.join(format!("{cluster}.toml"));
        context.save(&path).unwrap();
        (path, authority)
    }

    #[test]
    fn login_to_the_cluster_of_a_configuration_is_used_with_it_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (own, authority) = login(folder.path(), "00ff00ff00ff00ff", "a:1");
        let (other, _) = login(folder.path(), "11ee11ee11ee11ee", "b:1");
        let path = folder.path().join("node.toml");
        let used = |latest: &Path| {
            let reached = connect(path.clone(), &[]).reach_after(|| Some(latest.to_owned()));
            reached.unwrap().context.map(|(path, _)| path)
        };
        let describe = |text: &str| {
            std::fs::write(&path, format!("{text}data_dir = \"data\"\n")).unwrap();
        };
        // By the nodes that both name.
        describe("nodes = [{ rpc_address = \"a:1\" }]\n");
        assert_eq!((used(&own), used(&other)), (Some(own.clone()), None));
        // Data without a certificate is of a cluster that asks for no proof.
        std::fs::create_dir_all(folder.path().join("data/db")).unwrap();
        assert_eq!(used(&own), None);
        // By the certificate, whichever nodes both name.
        let asked = KeyAndRequest::new().unwrap();
        let cluster = "00ff00ff00ff00ff".to_owned();
        let subject = Subject { cluster, holder: Holder::Node(NodeId(1)) };
        let issued = authority.issue(&asked.request, &subject, NOW, Duration::from_secs(60));
        let identity = IdentityFolder::of(&folder.path().join("data"));
        let chain_and_key = issued.unwrap().chain_pem + &asked.key_pem;
        identity.keep(&chain_and_key, authority.certificate_pem()).unwrap();
        describe("nodes = [{ rpc_address = \"b:1\" }]\n");
        assert_eq!((used(&own), used(&other)), (Some(own.clone()), None));
        // The file of a process that joined names no nodes: those of the login are asked.
        describe("join = \"a token\"\n");
        let joined = connect(path.clone(), &[]).reach_after(|| Some(own.clone())).unwrap();
        assert_eq!(joined.seeds, ["a:1"]);
        // The operator of the node itself comes first.
        let beside = identity.file("operator.toml");
        std::fs::copy(&own, &beside).unwrap();
        assert_eq!(used(&other), Some(beside));
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(parse_address("[::1]:4601").unwrap(), "[::1]:4601");
        for text in ["4601", ":4601", "host", "host:", "host:99999"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
