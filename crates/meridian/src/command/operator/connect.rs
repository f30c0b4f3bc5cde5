//! The options of every operator's command: the nodes to ask, and the form of the answer.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

/// The nodes that a command asks, and the form of its answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connect {
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
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The part of a configuration that a command needs. The rest is checked by the process that runs
/// with it.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    nodes: Vec<ConfiguredNode>,
}

#[derive(Deserialize)]
struct ConfiguredNode {
    rpc_address: String,
}

impl Connect {
    /// Addresses of nodes to ask first; at least one.
    pub(crate) fn seeds(&self) -> Result<Vec<String>> {
        if !self.nodes.is_empty() {
            return Ok(self.nodes.clone());
        }
        let path = self.config.display();
        let text = std::fs::read_to_string(&self.config).with_context(|| {
            format!(
                "cannot read {path} (--config names a node's configuration, --node a node to ask)"
            )
        })?;
        // The parser's own message would quote the line, which may hold a secret.
        let Ok(configuration) = toml::from_str::<Configuration>(&text) else {
            bail!(
                "{path} is not the configuration of a node or a gateway: it has no [[nodes]] with rpc_address"
            );
        };
        let seeds: Vec<String> =
            configuration.nodes.into_iter().map(|node| node.rpc_address).collect();
        if seeds.is_empty() {
            bail!("{path} has no [[nodes]] to ask");
        }
        Ok(seeds)
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

    fn connect(config: PathBuf, nodes: &[&str]) -> Connect {
        Connect {
            config,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            json: false,
        }
    }

    #[test]
    fn seeds_come_from_the_command_line_or_else_from_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        assert_eq!(connect(path.clone(), &["a:1", "b:2"]).seeds().unwrap(), ["a:1", "b:2"]);
        let error = connect(path.clone(), &[]).seeds().unwrap_err().to_string();
        assert!(error.contains("node.toml") && error.contains("--node"), "{error}");
        std::fs::write(
            &path,
            "node = 1\n[[nodes]]\nid = 1\nrpc_address = \"a:1\"\n[[tokens]]\nsecret = \"s\"\n",
        )
        .unwrap();
        assert_eq!(connect(path.clone(), &[]).seeds().unwrap(), ["a:1"]);
        std::fs::write(&path, "node = 1\n").unwrap();
        assert!(
            connect(path.clone(), &[]).seeds().unwrap_err().to_string().contains("no [[nodes]]")
        );
        std::fs::write(&path, "[[nodes]]\nsecret = \"hush\n").unwrap();
        let error = format!("{:#}", connect(path, &[]).seeds().unwrap_err());
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
