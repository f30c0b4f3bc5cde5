//! The options of every operator's command: the nodes to ask, and the form of the answer.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use meridian_config::Context;
use meridian_net::grpc::Access;
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
    /// of the configuration, else the one of the latest login.
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
}

#[derive(Deserialize)]
struct ConfiguredIdentity {
    operator: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ConfiguredNode {
    rpc_address: String,
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
        let configuration = self.configuration();
        let context = self.context_file(configuration.as_ref().ok());
        let context = context.map(|path| Context::load(&path).map(|context| (path, context)));
        let context = context.transpose()?;
        let access = match &context {
            Some((path, context)) => context.access(path)?,
            None => Access::open(),
        };
        let seeds = match &context {
            _ if !self.nodes.is_empty() => self.nodes.clone(),
            Some((_, context)) if self.context.is_some() || configuration.is_err() => {
                context.nodes.clone()
            }
            _ => configuration?.nodes.into_iter().map(|node| node.rpc_address).collect(),
        };
        if seeds.is_empty() {
            bail!("{} has no [[nodes]] to ask", self.config.display());
        }
        Ok(Reached { seeds, access, context })
    }

    /// The context that was named, or that of the configuration, or of the latest login.
    fn context_file(&self, configuration: Option<&Configuration>) -> Option<PathBuf> {
        if let Some(named) = &self.context {
            return Some(contexts::file(named));
        }
        let operator = configuration
            .and_then(|configuration| configuration.identity.as_ref())
            .and_then(|identity| identity.operator.as_ref());
        match operator {
            Some(path) => Some(self.config.parent().unwrap_or(Path::new("")).join(path)),
            // A configuration without a context is of a cluster that asks for none.
            None if configuration.is_some() => None,
            None => contexts::latest(),
        }
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
    use super::*;

    fn connect(config: PathBuf, nodes: &[&str]) -> Target {
        Target {
            config,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            context: None,
        }
    }

    #[test]
    fn seeds_come_from_the_command_line_or_else_from_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        assert_eq!(connect(path.clone(), &["a:1", "b:2"]).reach().unwrap().seeds, ["a:1", "b:2"]);
        let error = connect(path.clone(), &[]).reach().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("node.toml") && error.contains("--node"), "{error}");
        std::fs::write(
            &path,
            "node = 1\n[[nodes]]\nid = 1\nrpc_address = \"a:1\"\n[[tokens]]\nsecret = \"s\"\n",
        )
        .unwrap();
        assert_eq!(connect(path.clone(), &[]).reach().unwrap().seeds, ["a:1"]);
        std::fs::write(&path, "node = 1\n").unwrap();
        assert!(
            connect(path.clone(), &[])
                .reach()
                .map(|_| ())
                .unwrap_err()
                .to_string()
                .contains("no [[nodes]]")
        );
        std::fs::write(&path, "[[nodes]]\nsecret = \"hush\n").unwrap();
        let error = format!("{:#}", connect(path, &[]).reach().map(|_| ()).unwrap_err());
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(parse_address("[::1]:4601").unwrap(), "[::1]:4601");
        for text in ["4601", ":4601", "host", "host:", "host:99999"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
