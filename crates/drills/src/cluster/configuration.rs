//! From a topology to folders with configurations, written by the program itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use meridian_config::{Context, equip_other};
use meridian_net::grpc::Access;
use meridian_pki::Holder;
use meridian_types::NodeId;
use tempfile::TempDir;

use super::ports::{NODES, PortBlock, REGIONS};
use super::{Cluster, ClusterError, ClusterOptions, Node, Trust};
use crate::kv_connect::{READ_ONLY_TOKEN, TOKEN};
use crate::network::{Machine, Network, Site};
use crate::operator::Operator;

/// The context of the cluster's operator, in its folder.
pub(super) const CONTEXT: &str = "identities/operator.toml";
/// The parts of a node's file that a gateway's file does not have.
const OF_THE_NODE: [&str; 7] =
    ["node", "data_dir", "listen", "raft", "storage", "encryption", "dial"];

/// The parts of a file that a process gets when it joins.
const GOT_WITH_THE_CLUSTER: [&str; 7] =
    ["node", "regions", "nodes", "shards", "databases", "default_database", "identity"];

impl Cluster {
    pub(super) async fn configure(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let topology = &options.topology;
        if topology.len() > REGIONS || topology.iter().sum::<usize>() > NODES {
            let reason = format!("at most {REGIONS} regions, and {NODES} nodes in all");
            return Err(ClusterError::Topology(reason));
        }
        let folder = TempDir::with_prefix("meridian-cluster-");
        let folder = folder.map_err(|source| ClusterError::io("a temporary folder", source))?;
        let ports = PortBlock::take().ok_or(ClusterError::NoPorts)?;
        write_configurations(options, folder.path(), &ports)?;

        let mut nodes = BTreeMap::new();
        let mut ids = (1..).map(NodeId);
        for (region, count) in topology.iter().enumerate() {
            for (data_center, id) in ('a'..='z').take(*count).zip(ids.by_ref()) {
                nodes.insert(
                    id,
                    read_node(
                        folder.path(),
                        format!("region-{}-{data_center}", region + 1),
                        region,
                    )?,
                );
            }
        }
        let network = match &options.wan {
            None => None,
            Some(plan) => {
                let sites = nodes.iter().map(|(id, node)| Ok((*id, site(node)?)));
                let sites: BTreeMap<NodeId, Site> = sites.collect::<Result<_, ClusterError>>()?;
                let network = Network::start(&sites, 0..topology.len(), plan).await;
                Some(network.map_err(|source| ClusterError::io("an emulated link", source))?)
            }
        };
        for (id, node) in &nodes {
            let dial = network.as_ref().map(|network| dial_table(network, Machine::Node(*id)));
            let memory = options
                .max_memory_mb
                .map(|mb| format!("max_memory_mb = {mb}\n"))
                .unwrap_or_default();
            complete(&node.config, &memory, &(read_only_token() + &dial.unwrap_or_default()))?;
        }
        let addresses = nodes.iter().map(|(id, node)| (*id, node.rpc.clone())).collect();
        let context = folder.path().join(CONTEXT);
        let access = match options.trust {
            Trust::Open => Access::open(),
            Trust::Files | Trust::Founded => Context::load(&context)?.access(&context)?,
        };
        Ok(Self {
            program: options.program.clone(),
            topology: topology.clone(),
            trust: options.trust,
            operator: Operator::new(&addresses, &access)?,
            nodes,
            gateways: BTreeMap::new(),
            network,
            ports,
            folder,
        })
    }

    /// Like `deploy/gateway.toml`: the topology and tokens of a node's file, and the gateway's own
    /// address.
    pub(super) async fn configure_gateway(
        &self,
        region: usize,
        port: u16,
    ) -> Result<Node, ClusterError> {
        let name = format!("gateway-{}", region + 1);
        let node = self.nodes.values().next().ok_or(ClusterError::NoPorts)?;
        let mut table = read_table(&node.config)?;
        for of_the_node in OF_THE_NODE {
            table.remove(of_the_node);
        }
        table.insert("region".to_owned(), format!("region-{}", region + 1).into());
        let kv = format!("127.0.0.1:{port}");
        table.insert(
            "listen".to_owned(),
            toml::Table::from_iter([("kv".to_owned(), kv.clone().into())]).into(),
        );
        match self.trust {
            Trust::Founded => {
                join(&mut table, self.join_token(&["gateways", "add", &name]).await?);
                table.insert("state_dir".to_owned(), name.clone().into());
            }
            Trust::Files | Trust::Open => {
                table.insert(
                    "identity".to_owned(),
                    identity_of_gateway(self.folder(), &name)?.into(),
                );
            }
        }
        let machine = Machine::Gateway(region);
        let dial =
            self.network.as_ref().map(|network| dial_table(network, machine)).unwrap_or_default();
        let config = self.folder().join(format!("{name}.toml"));
        let written = fs::write(&config, format!("{table}{dial}"));
        written.map_err(|source| ClusterError::io("a gateway's configuration", source))?;
        let log = self.folder().join(format!("{name}.log"));
        let (rpc, metrics) = (String::new(), String::new());
        Ok(Node { name, region, kv, rpc, metrics, command: "gateway", config, log, process: None })
    }
}

/// Turns a table that describes the cluster into that of a process that joins it.
pub(super) fn join(table: &mut toml::Table, token: String) {
    for got in GOT_WITH_THE_CLUSTER {
        table.remove(got);
    }
    table.insert("join".to_owned(), token.into());
}

fn identity_of_gateway(folder: &Path, name: &str) -> Result<toml::Table, ClusterError> {
    let identity = equip_other(folder, name, Holder::Gateway(name.to_owned()))?;
    let path = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
    Ok(toml::Table::from_iter([
        ("certificate".to_owned(), path(&identity.certificate)),
        ("key".to_owned(), path(&identity.key)),
        ("authorities".to_owned(), path(&identity.authorities)),
    ]))
}

fn write_configurations(
    options: &ClusterOptions,
    folder: &Path,
    ports: &PortBlock,
) -> Result<(), ClusterError> {
    let counts: Vec<String> = options.topology.iter().map(ToString::to_string).collect();
    let mut command = Command::new(&options.program);
    command.env("DENO_KV_ACCESS_TOKEN", TOKEN).args([
        "cluster-config",
        "--topology",
        &counts.join(","),
    ]);
    command.args(["--port", &ports.kv().to_string(), "--rpc-port", &ports.rpc().to_string()]);
    command.args(["--metrics-port", &ports.metrics().to_string()]);
    command.arg("--dir").arg(folder);
    if options.trust == Trust::Open {
        command.arg("--insecure");
    }
    if let Some(retention) = options.log_retention_mb {
        command.args(["--log-retention-mb", &retention.to_string()]);
    }
    let output = command
        .output()
        .map_err(|source| ClusterError::io("meridian cluster-config runs", source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Topology(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn read_node(folder: &Path, name: String, region: usize) -> Result<Node, ClusterError> {
    let config = folder.join(&name).join("node.toml");
    let table = read_table(&config)?;
    let listen = |what: &str| {
        let address =
            table.get("listen").and_then(|listen| listen.get(what)).and_then(toml::Value::as_str);
        address
            .map(str::to_owned)
            .ok_or_else(|| ClusterError::Configuration(format!("`listen.{what}` of {name}")))
    };
    let (kv, rpc, metrics) = (listen("kv")?, listen("rpc")?, listen("metrics")?);
    let log = folder.join(format!("{name}.log"));
    Ok(Node { name, region, kv, rpc, metrics, command: "serve", config, log, process: None })
}

pub(super) fn read_table(config: &Path) -> Result<toml::Table, ClusterError> {
    let text = fs::read_to_string(config)
        .map_err(|source| ClusterError::io("the configuration of a node", source))?;
    text.parse()
        .map_err(|error: toml::de::Error| ClusterError::Configuration(error.message().to_owned()))
}

/// `first` goes before every table of the file.
fn complete(config: &Path, first: &str, last: &str) -> Result<(), ClusterError> {
    let written = fs::read_to_string(config)
        .and_then(|text| fs::write(config, format!("{first}{text}{last}")));
    written.map_err(|source| ClusterError::io("a node's configuration", source))
}

fn site(node: &Node) -> Result<Site, ClusterError> {
    let address = node
        .rpc
        .parse()
        .map_err(|_| ClusterError::Configuration(format!("`{}` is no address", node.rpc)))?;
    Ok(Site { region: node.region, address })
}

/// The table of addresses at which a machine dials the others.
fn dial_table(network: &Network, machine: Machine) -> String {
    let lines = network
        .dial(machine)
        .into_iter()
        .map(|(node, address)| format!("{node} = \"{address}\"\n"));
    "\n[dial]\n".to_owned() + &lines.collect::<String>()
}

fn read_only_token() -> String {
    format!(
        "\n[[tokens]]\nsecret = \"{READ_ONLY_TOKEN}\"\ndatabases = [\"*\"]\naccess = \"read\"\n"
    )
}
