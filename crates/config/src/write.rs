//! A configuration as the annotated file that it is read from.

use std::collections::BTreeMap;
use std::fmt::Display;

use meridian_directory::Cluster;
use meridian_gateway::{Databases, WhenFull};
use meridian_pki::JoinToken;
use meridian_types::{KeyPrefix, NodeId, Permissions};
use meridian_values::Key;
use meridian_vault::{EncryptionSettings, KeySource};

use crate::cluster::is_weak;
use crate::{
    GatewayConfig, GatewaySettings, IdentityFiles, NodeConfig, SecretSource, TokenConfig,
    TokenSecret,
};

pub(crate) fn node(config: &NodeConfig) -> String {
    let mut out = Document::default();
    node_title(&mut out, config);
    out.line("# Which of [[nodes]] this is. Everything from `regions` on is the same in every node's file.");
    out.field("node", config.node_id);
    resources(&mut out, config);
    if config.join {
        out.line("# This node joins a cluster that is there: it asks the nodes below, and founds nothing.");
        out.field("join", true);
    }
    if config.manual_failover {
        out.line("# No database fails over by itself: `meridian databases set NAME --failover auto` changes that.");
        out.field("manual_failover", true);
    }
    insecure(&mut out, config.insecure);
    out.blank();
    cluster_head(&mut out, &config.cluster);

    identity(&mut out, config.identity.as_ref());
    node_settings(&mut out, config);
    cluster_tables(&mut out, &config.cluster);
    tokens(&mut out, &config.tokens, &config.cluster);
    dial(&mut out, &config.dial);
    out.0
}

/// The file of a node that gets the cluster, and its own place in it, by a join token.
pub(crate) fn joining_node(config: &NodeConfig, token: &JoinToken) -> String {
    let mut out = Document::default();
    node_title(&mut out, config);
    out.line(
        "# It gets its certificate and the cluster by this token, which works once. The line stays.",
    );
    out.text("join", &token.to_string());
    resources(&mut out, config);

    node_settings(&mut out, config);
    tokens(&mut out, &config.tokens, &config.cluster);
    dial(&mut out, &config.dial);
    out.0
}

fn node_title(out: &mut Document, config: &NodeConfig) {
    out.line(&format!(
        "# Node {} of a Meridian cluster. docs/configuration.md explains every field.",
        config.node_id
    ));
    out.blank();
}

fn resources(out: &mut Document, config: &NodeConfig) {
    out.text("data_dir", &config.data_dir.to_string_lossy());
    max_memory(out, config.max_memory_mb);
    if let Some(threads) = config.worker_threads {
        out.line("# Threads that serve.");
        out.field("worker_threads", threads);
    }
}

fn node_settings(out: &mut Document, config: &NodeConfig) {
    out.table("[listen]", "Where this node listens: for other nodes, for clients, for Prometheus.");
    out.text("rpc", &config.listen.rpc);
    out.text("kv", &config.listen.kv);
    out.optional_text("metrics", config.listen.metrics.as_ref());

    out.table("[raft]", "Times of elections within the primary region.");
    out.field("heartbeat_ms", config.raft.heartbeat_ms);
    out.field("election_timeout_min_ms", config.raft.election_timeout_min_ms);
    out.field("election_timeout_max_ms", config.raft.election_timeout_max_ms);

    out.table(
        "[storage]",
        "In MiB: how much of each shard's log is kept for slow replicas, and for change feeds.",
    );
    out.field("log_retention_mb", config.storage.log_retention_mb);
    out.field("change_retention_mb", config.storage.change_retention_mb);

    gateway_settings(out, &config.gateway);
    if let Some(settings) = &config.encryption {
        encryption(out, settings);
    }
}

fn encryption(out: &mut Document, settings: &EncryptionSettings) {
    out.table("[encryption]", "Where the key is that the files of the data folder are under.");
    out.text("mode", if settings.seals { "on" } else { "off" });
    for (prefix, source) in [("", Some(&settings.key)), ("previous_", settings.previous.as_ref())] {
        match source {
            None => {}
            Some(KeySource::File(path)) => {
                out.text(&format!("{prefix}key_file"), &path.to_string_lossy());
            }
            Some(KeySource::Credential(name)) => {
                out.text(&format!("{prefix}key_credential"), name);
            }
            Some(KeySource::Command(words)) => {
                let words = words.iter().map(|word| quoted(word));
                out.list(&format!("{prefix}key_command"), words);
            }
        }
    }
}

pub(crate) fn gateway(config: &GatewayConfig) -> String {
    let mut out = Document::default();
    out.line(
        "# A stateless gateway of a Meridian cluster. docs/configuration.md explains every field.",
    );
    out.blank();
    out.line(
        "# Where this gateway is. Everything from `regions` on is the same as in the nodes' files.",
    );
    out.text("region", &config.region);
    max_memory(&mut out, config.max_memory_mb);
    insecure(&mut out, config.insecure);
    let state_dir = config.state_dir.as_ref().map(|path| path.to_string_lossy().into_owned());
    out.optional_text("state_dir", state_dir.as_ref());
    out.blank();
    cluster_head(&mut out, &config.cluster);

    identity(&mut out, config.identity.as_ref());
    out.table("[listen]", "Where this gateway listens: for clients, for Prometheus.");
    out.text("kv", &config.listen.kv);
    out.optional_text("metrics", config.listen.metrics.as_ref());

    gateway_settings(&mut out, &config.gateway);
    cluster_tables(&mut out, &config.cluster);
    tokens(&mut out, &config.tokens, &config.cluster);
    dial(&mut out, &config.dial);
    out.0
}

fn max_memory(out: &mut Document, mb: Option<u64>) {
    if let Some(mb) = mb {
        out.line("# In MiB: what this process may take in memory.");
        out.field("max_memory_mb", mb);
    }
}

fn insecure(out: &mut Document, insecure: bool) {
    if insecure {
        out.line("# In the clear, and every caller is believed.");
        out.field("insecure", true);
    }
}

fn identity(out: &mut Document, identity: Option<&IdentityFiles>) {
    let Some(identity) = identity else { return };
    out.table("[identity]", "This process's certificate, and the authorities that it believes.");
    out.text("certificate", &identity.certificate.to_string_lossy());
    out.text("key", &identity.key.to_string_lossy());
    out.text("authorities", &identity.authorities.to_string_lossy());
    let operator = identity.operator.as_ref().map(|path| path.to_string_lossy().into_owned());
    out.optional_text("operator", operator.as_ref());
}

fn gateway_settings(out: &mut Document, gateway: &GatewaySettings) {
    out.table(
        "[gateway]",
        "KV Connect. Without public_url, clients stay with the URL they came by.",
    );
    out.optional_text("public_url", gateway.public_url.as_ref().map(ToString::to_string).as_ref());
    if gateway.insecure {
        out.field("insecure", true);
    }
    let proxies = gateway.trusted_proxies.networks();
    if !proxies.is_empty() {
        out.list("trusted_proxies", proxies.iter().map(|network| quoted(&network.to_string())));
    }
    out.field("max_connections", gateway.max_connections);
    out.field("max_watches", gateway.max_watches);
    out.field("max_change_feeds", gateway.max_change_feeds);
    out.field("request_deadline_ms", gateway.request_deadline_ms);
    for files in &gateway.certificates {
        out.table("[[gateway.certificates]]", "For HTTPS.");
        out.text("certificate", &files.certificate.to_string_lossy());
        out.text("key", &files.key.to_string_lossy());
    }
    if let Some(audit) = &gateway.audit {
        out.table(
            "[gateway.audit]",
            "A line of JSON for each request. docs/audit.md has its fields.",
        );
        out.text("file", &audit.file.to_string_lossy());
        out.field("sample", audit.sample.part());
        out.field("keys", audit.keys);
        out.field("values", audit.values);
        out.text(
            "when_full",
            match audit.when_full {
                WhenFull::Drop => "drop",
                WhenFull::Refuse => "refuse",
            },
        );
    }
}

fn dial(out: &mut Document, dial: &BTreeMap<NodeId, String>) {
    if !dial.is_empty() {
        out.table("[dial]", "Where to dial nodes, if not at the address that the cluster gives.");
        dial.iter().for_each(|(node, address)| out.text(&node.to_string(), address));
    }
}

/// The lines of the cluster that TOML wants before the first table.
fn cluster_head(out: &mut Document, cluster: &Cluster) {
    out.list("regions", cluster.regions.iter().map(|region| quoted(region)));
    let default = cluster.default_database.and_then(|id| cluster.databases.get(&id));
    out.optional_text("default_database", default.map(|database| &database.name));
}

fn cluster_tables(out: &mut Document, cluster: &Cluster) {
    for (id, node) in cluster.present_nodes() {
        out.table("[[nodes]]", "");
        out.field("id", id);
        out.text("name", &node.name);
        out.text("region", &node.region);
        out.text("data_center", &node.data_center);
        out.text("rpc_address", &node.rpc_address);
        out.optional_text("kv_address", node.kv_address.as_ref());
    }
    for (id, shard) in &cluster.shards {
        out.table(
            "[[shards]]",
            "The voters lie in distinct data centers of the primary region; the rest follow.",
        );
        out.field("id", id);
        out.text("primary_region", &shard.primary_region);
        out.list("voters", shard.voters.iter().map(NodeId::to_string));
        if let Some(leader) = shard.preferred_leader {
            out.field("preferred_leader", leader);
        }
        if is_weak(shard.voters.len()) {
            out.field("allow_weak_quorum", true);
        }
    }
    for (id, database) in &cluster.databases {
        out.table("[[databases]]", "");
        out.text("id", &id.to_string());
        out.text("name", &database.name);
        out.field("shard", database.shard);
    }
}

fn tokens(out: &mut Document, tokens: &[TokenConfig], cluster: &Cluster) {
    for token in tokens {
        out.table(
            "[[tokens]]",
            "Which token may open which databases. Keep this file to yourself.",
        );
        match &token.secret {
            TokenSecret::Plain(secret) => out.text("secret", secret),
            TokenSecret::Read { source, .. } => match source {
                SecretSource::File(path) => out.text("secret_file", &path.to_string_lossy()),
                SecretSource::Environment(name) => out.text("secret_env", name),
                SecretSource::Credential(name) => out.text("secret_credential", name),
            },
            TokenSecret::Sha256(digest) => {
                out.text(
                    "secret_sha256",
                    &digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                );
            }
        }
        match &token.databases {
            Databases::All => out.list("databases", ["\"*\"".to_owned()].into_iter()),
            Databases::Only(ids) => {
                let names = ids.iter().filter_map(|id| cluster.databases.get(id));
                out.list("databases", names.map(|database| quoted(&database.name)));
            }
        }
        let known = |key: &KeyPrefix| Key::decode(key.key()).ok();
        if !token.prefixes.is_empty() {
            let prefixes = token.prefixes.iter().filter_map(known);
            out.list("prefixes", prefixes.map(|key| quoted(&key.to_string())));
        }
        match token.permissions {
            Permissions::ALL => out.text("access", "read-write"),
            Permissions::READ_ONLY => out.text("access", "read"),
            permissions => {
                out.list("permissions", permissions.iter().map(|one| quoted(one.name())));
            }
        }
    }
}

#[derive(Default)]
struct Document(String);

impl Document {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn blank(&mut self) {
        self.line("");
    }

    fn table(&mut self, header: &str, comment: &str) {
        self.blank();
        if !comment.is_empty() {
            self.line(&format!("# {comment}"));
        }
        self.line(header);
    }

    fn field(&mut self, name: &str, value: impl Display) {
        self.line(&format!("{name} = {value}"));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.field(name, quoted(value));
    }

    fn optional_text(&mut self, name: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn list(&mut self, name: &str, items: impl Iterator<Item = String>) {
        self.field(name, format_args!("[{}]", items.collect::<Vec<_>>().join(", ")));
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
