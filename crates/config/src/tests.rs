mod audit;
mod encryption;
mod https;
mod tokens;
mod written;

use std::path::Path;

use meridian_gateway::{Databases, TrustedProxies};

use super::*;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
const SECRET: &str = "a-long-enough-secret";

/// A whole file, of which tests replace parts.
const NODE: &str = r#"node = 2
data_dir = "data"
regions = ["east", "west"]
default_database = "main"
[listen]
[raft]
[storage]
[gateway]
[[nodes]]
id = 1
name = "east-a"
region = "east"
data_center = "a"
rpc_address = "127.0.0.1:4601"
[[nodes]]
id = 2
name = "east-b"
region = "east"
data_center = "b"
rpc_address = "127.0.0.1:4602"
kv_address = "127.0.0.1:4513"
[[nodes]]
id = 3
name = "east-c"
region = "east"
data_center = "c"
rpc_address = "127.0.0.1:4603"
[[shards]]
id = 1
primary_region = "east"
[[databases]]
id = "00000000-0000-4000-8000-000000000001"
name = "main"
shard = 1
[[tokens]]
secret = "a-long-enough-secret"
databases = ["*"]
access = "read-write"
"#;

#[track_caller]
fn with(from: &str, to: &str) -> String {
    assert_eq!(NODE.matches(from).count(), 1, "{from}");
    NODE.replace(from, to)
}

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(text, Path::new("/etc/meridian/node.toml"))
}

/// The error for the file with `from` replaced, without the path.
#[track_caller]
fn refused(from: &str, to: &str) -> String {
    refused_text(&with(from, to))
}

#[track_caller]
fn refused_text(text: &str) -> String {
    let error = parse(text).unwrap_err().to_string();
    assert!(!error.contains(SECRET), "{error}");
    let rest = error.strip_prefix("/etc/meridian/node.toml").expect("the path comes first");
    rest.trim_start_matches([',', ':', ' ']).to_owned()
}

#[test]
fn defaults_fill_what_is_left_out() {
    let config = parse(NODE).unwrap();
    assert_eq!((config.node_id.0, config.node.name.as_str()), (2, "east-b"));
    assert_eq!(config.data_dir, Path::new("/etc/meridian/data"));
    let listen = NodeListen {
        rpc: "127.0.0.1:4602".to_owned(),
        kv: "127.0.0.1:4513".to_owned(),
        metrics: None,
    };
    assert_eq!(config.listen, listen);
    assert_eq!(
        config.raft,
        RaftConfig { heartbeat_ms: 50, election_timeout_min_ms: 300, election_timeout_max_ms: 450 }
    );
    assert_eq!(config.storage, StorageConfig { log_retention_mb: 1024, change_retention_mb: 64 });
    assert_eq!(
        config.gateway,
        GatewaySettings {
            public_url: None,
            certificates: Vec::new(),
            insecure: false,
            trusted_proxies: TrustedProxies::default(),
            max_connections: 8192,
            max_watches: 20_000,
            max_change_feeds: 1000,
            request_deadline_ms: 10_000,
            audit: None
        }
    );
    assert_eq!(config.tokens.len(), 1);
    // Whole tables may be left out as well.
    parse(&with("[listen]\n[raft]\n[storage]\n[gateway]\n", "")).unwrap();
}

#[test]
fn fields_replace_defaults() {
    let config = parse(&with("\"data\"", "\"/srv/meridian\"")).unwrap();
    assert_eq!(config.data_dir, Path::new("/srv/meridian"));
    let config = parse(&with(
        "[listen]",
        "[listen]\nrpc = \"0.0.0.0:1\"\nkv = \"[::]:0\"\nmetrics = \"h:2\"",
    ))
    .unwrap();
    let listen = NodeListen {
        rpc: "0.0.0.0:1".to_owned(),
        kv: "[::]:0".to_owned(),
        metrics: Some("h:2".to_owned()),
    };
    assert_eq!(config.listen, listen);
    let config = parse(&with(
        "[gateway]",
        "[gateway]\npublic_url = \"https://kv.example.com/\"\nmax_connections = 5\nmax_watches = 7",
    ));
    let gateway = config.unwrap().gateway;
    assert_eq!(gateway.public_url.unwrap().as_str(), "https://kv.example.com");
    let numbers = (gateway.max_connections, gateway.max_watches, gateway.request_deadline_ms);
    assert_eq!(numbers, (5, 7, 10_000));
}

/// A sample, with a secret of the operator's own.
fn sample(name: &str) -> String {
    let text = std::fs::read_to_string(Path::new(DEPLOY).join(name)).unwrap();
    assert!(text.contains(TokenSecret::PLACEHOLDER), "{name}");
    text.replace(TokenSecret::PLACEHOLDER, "a-secret-of-ones-own")
}

#[test]
fn the_secret_of_the_samples_is_refused() {
    let node = NodeConfig::load(&Path::new(DEPLOY).join("node.toml")).unwrap_err().to_string();
    assert!(node.contains("still that of the sample"), "{node}");
    let gateway =
        GatewayConfig::load(&Path::new(DEPLOY).join("gateway.toml")).unwrap_err().to_string();
    assert!(gateway.contains("still that of the sample"), "{gateway}");
}

#[test]
fn the_samples_load() {
    let node = NodeConfig::parse(&sample("node.toml"), Path::new("node.toml")).unwrap();
    assert_eq!(node.cluster.nodes.len(), 6);
    assert_eq!(node.raft, RaftConfig::default());
    let gateway = GatewayConfig::parse(&sample("gateway.toml"), Path::new("gateway.toml")).unwrap();
    assert_eq!(gateway.region, "ashburn");
    assert_eq!(gateway.cluster, node.cluster);
    assert_eq!(gateway.tokens, node.tokens);
}

#[test]
fn commented_fields_of_the_samples_are_the_defaults() {
    let sample = sample("node.toml");
    let uncommented: String = sample
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|line| line.contains(" = ") || line.starts_with("[["))
                .filter(|line| !line.contains('*'))
                .unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(sample, uncommented);
    let (sample, uncommented) = (parse(&sample).unwrap(), parse(&uncommented).unwrap());
    assert_eq!(sample.raft, uncommented.raft);
    assert_eq!(sample.storage, uncommented.storage);
    assert_eq!(sample.cluster, uncommented.cluster);
    assert_eq!(uncommented.gateway.public_url.unwrap().as_str(), "https://kv.example.com");
    assert_eq!(uncommented.gateway.certificates.len(), 1);
    assert_eq!(sample.gateway.insecure, uncommented.gateway.insecure);
    assert_eq!(sample.gateway.max_connections, uncommented.gateway.max_connections);
    assert_eq!(sample.gateway.request_deadline_ms, uncommented.gateway.request_deadline_ms);
}

#[test]
fn unknown_fields_are_named_with_their_line() {
    assert_eq!(
        refused("[raft]", "[raft]\nheartbeat = 5"),
        "line 7: unknown field `heartbeat`, expected one of `heartbeat_ms`, `election_timeout_min_ms`, \
         `election_timeout_max_ms`"
    );
    assert!(
        refused("node = 2", "node = 2\nnodes_dir = 3")
            .starts_with("line 2: unknown field `nodes_dir`, expected")
    );
    for (table, line) in [
        ("[listen]\n", 6),
        ("[storage]\n", 8),
        ("[gateway]\n", 9),
        ("[[shards]]\n", 29),
        ("[[databases]]\n", 32),
        ("[[tokens]]\n", 36),
    ] {
        let said = refused(table, &format!("{table}colour = 1\n"));
        assert!(
            said.starts_with(&format!("line {line}: unknown field `colour`, expected")),
            "{said}"
        );
    }
    let said = refused("name = \"east-c\"", "name = \"east-c\"\nrack = 1");
    assert!(said.starts_with("line 25: unknown field `rack`, expected"), "{said}");
}

#[test]
fn malformed_files_are_refused_with_the_line() {
    assert_eq!(
        refused("[raft]", "[raft]\nheartbeat_ms = -1"),
        "line 7: invalid value: integer, expected u64"
    );
    assert_eq!(
        refused("[raft]", "[raft]\nheartbeat_ms = \"75\""),
        "line 7: invalid type: string, expected u64"
    );
    assert_eq!(refused("node = 2\n", ""), "`node` is missing: the id of this node");
    assert_eq!(
        refused("rpc_address = \"127.0.0.1:4603\"\n", ""),
        "line 22: missing field `rpc_address`"
    );
    assert!(refused("[raft]", "[raft").starts_with("line 6: "));
    assert_eq!(refused("shard = 1\n", "shard = 1\nshard = 1\n"), "line 35: duplicate key");
    assert_eq!(refused("00000000-0000-4000-8000-000000000001", "x"), "line 32: `x` is not a UUID");
    assert!(refused_text("").starts_with("line 1: missing field"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = NodeConfig::load(Path::new("/nonexistent/node.toml")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nonexistent/node.toml: No such file"), "{error}");
}

#[test]
fn an_unusable_port_has_a_clear_text() {
    let listen = |purpose| {
        let cause = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        ConfigError::Listen { address: "127.0.0.1:4512".to_owned(), purpose, cause }.to_string()
    };
    assert_eq!(
        listen(ListenPurpose::KvConnect),
        "cannot listen on 127.0.0.1:4512 for KV Connect: address in use"
    );
    assert!(
        listen(ListenPurpose::Rpc)
            .starts_with("cannot listen on 127.0.0.1:4512 for other nodes (gRPC): ")
    );
    assert!(
        listen(ListenPurpose::Metrics).starts_with("cannot listen on 127.0.0.1:4512 for metrics: ")
    );
}

#[test]
fn the_node_itself_is_checked() {
    assert_eq!(
        refused("node = 2", "node = 7"),
        "`node = 7`, but there is no node 7 among [[nodes]]"
    );
    assert_eq!(refused("\"data\"", "\"\""), "`data_dir` is empty");
    assert_eq!(
        refused("node = 2", "node = 1"),
        "`listen.kv` is missing, and node 1 has no `kv_address` to take its place"
    );
}

#[test]
fn topologies_are_refused_with_the_path() {
    let said = refused("data_center = \"c\"", "data_center = \"b\"");
    assert!(said.starts_with(
        "nodes 2 and 3 are both in data center `b` of region `east`, so they cannot both vote in shard 1"
    ));
    let weak = |word| {
        with(
            "primary_region = \"east\"",
            &format!("primary_region = \"east\"\nvoters = [1, 3]{word}"),
        )
    };
    assert!(refused_text(&weak("")).starts_with("shard 1 has only 2 voters"));
    assert!(
        refused_text(&weak("\nallow_weak_quorum = false")).starts_with("shard 1 has only 2 voters")
    );
    parse(&weak("\nallow_weak_quorum = true")).unwrap();
    assert_eq!(
        refused("\"127.0.0.1:4513\"", "\"4513\""),
        "kv_address of node 2: `4513` is not a host and a port, such as `10.0.0.1:4601`"
    );
    assert_eq!(
        refused("default_database = \"main\"", "default_database = \"x\""),
        "the default database `x` is not one of the databases"
    );
}

#[test]
fn listening_addresses_are_checked() {
    let listen = |fields: &str| refused("[listen]", &format!("[listen]\n{fields}"));
    assert_eq!(
        listen("kv = \":1\""),
        "listen.kv: `:1` is not a host and a port, such as `10.0.0.1:4601`"
    );
    assert_eq!(
        listen("metrics = \"h\""),
        "listen.metrics: `h` is not a host and a port, such as `10.0.0.1:4601`"
    );
    assert_eq!(
        listen("kv = \"0.0.0.0:4602\""),
        "listen.rpc and listen.kv are the same port: 0.0.0.0:4602"
    );
    assert_eq!(
        listen("metrics = \"127.0.0.1:4513\""),
        "listen.kv and listen.metrics are the same port: 127.0.0.1:4513"
    );
    assert_eq!(
        listen("rpc = \"127.0.0.1:0\""),
        "the port of listen.rpc is 0: it must lie between 1 and 65535"
    );
}

#[test]
fn times_and_sizes_are_checked() {
    let raft = |fields: &str| refused("[raft]", &format!("[raft]\n{fields}"));
    assert_eq!(raft("heartbeat_ms = 0"), "raft.heartbeat_ms is 0: it must lie between 5 and 10000");
    assert_eq!(
        raft("election_timeout_max_ms = 60001"),
        "raft.election_timeout_max_ms is 60001: it must lie between 1 and 60000"
    );
    assert_eq!(
        raft("election_timeout_min_ms = 450"),
        "raft.heartbeat_ms (50), raft.election_timeout_min_ms (450) and raft.election_timeout_max_ms (450) must each \
         be less than the next"
    );
    assert_eq!(
        raft("heartbeat_ms = 76"),
        "six times raft.heartbeat_ms (76) is more than raft.election_timeout_max_ms (450): two lost heartbeats would \
         cost the leader its lease, which is half of that"
    );
    for field in ["log_retention_mb", "change_retention_mb"] {
        for value in [0, 1_048_577] {
            assert_eq!(
                refused("[storage]", &format!("[storage]\n{field} = {value}")),
                format!("storage.{field} is {value}: it must lie between 1 and 1048576")
            );
        }
    }
    assert_eq!(
        refused("[listen]", "max_memory_mb = 319\n[listen]"),
        "max_memory_mb is 319: it must lie between 320 and 1048576"
    );
    for value in [0, 1025] {
        assert_eq!(
            refused("[listen]", &format!("worker_threads = {value}\n[listen]")),
            format!("worker_threads is {value}: it must lie between 1 and 1024")
        );
    }
    let gateway = |field: &str| refused("[gateway]", &format!("[gateway]\n{field}"));
    assert_eq!(
        gateway("max_connections = 0"),
        "gateway.max_connections is 0: it must lie between 1 and 1000000"
    );
    assert_eq!(
        gateway("max_watches = 1000001"),
        "gateway.max_watches is 1000001: it must lie between 1 and 1000000"
    );
    assert_eq!(
        gateway("max_change_feeds = 0"),
        "gateway.max_change_feeds is 0: it must lie between 1 and 10000"
    );
    assert_eq!(
        gateway("request_deadline_ms = 150001"),
        "gateway.request_deadline_ms is 150001: it must lie between 100 and 150000"
    );
    assert_eq!(
        gateway("public_url = \"kv.example.com\""),
        "gateway.public_url: `kv.example.com` is not an http or https URL without a query"
    );
}

#[test]
fn secrets_are_in_no_error_and_no_debug_output() {
    let line = "secret = \"a-long-enough-secret\"";
    for wrong in [
        "secret = a-long-enough-secret",
        "secret = \"a-long-enough-secret",
        "secret = 'a-long-enough-secret\"",
        "secret = \"\"\"a-long-enough-secret",
        "secret = \"a-long-enough-secret\\q\"",
        "secret = [\"a-long-enough-secret\"]",
        "secret = \"a-long-enough-secret\" x",
        "secrte = \"a-long-enough-secret\"",
        "secret = \"a-long-enough-secret\"\nsecret = \"a-long-enough-secret\"",
        "secret_sha256 = \"a-long-enough-secret\"",
        "secret = \"a-long-enough-secret, expected é\"",
    ] {
        refused(line, wrong); // looks for the secret itself
    }
    refused("access = \"read-write\"", "access = \"a-long-enough-secret\"");
    refused("databases = [\"*\"]", "databases = \"a-long-enough-secret\"");
    refused("[raft]", "[raft]\nheartbeat_ms = \"a-long-enough-secret\"");
    let number = refused(line, "secret = 12345678901234567");
    assert_eq!(number, "line 36: invalid type: integer, expected a string");
    refused_text("tokens = [\"a-long-enough-secret\"]");

    let config = parse(NODE).unwrap();
    assert!(!format!("{config:?} {config:#?}").contains(SECRET));
    assert!(config.to_toml().contains(SECRET));
}
