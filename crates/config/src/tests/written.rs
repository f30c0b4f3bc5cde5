//! Written files read back as the same configuration: of nodes, gateways and development clusters.

use meridian_gateway::{Sample, WhenFull};
use meridian_pki::{JoinToken, Secret};
use meridian_types::{KeyPrefix, Permission, Permissions};

use super::*;
use crate::SecretSource;
use crate::cluster::{DEV_SECOND_DATABASE, DevLayout};

fn same(a: &NodeConfig, b: &NodeConfig) {
    // Debug shows all but secrets.
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
    assert_eq!(a.tokens, b.tokens);
}

#[test]
fn what_is_written_is_read_again() {
    let mut config = parse(NODE).unwrap();
    same(&parse(&config.to_toml()).unwrap(), &config);

    config.data_dir = "/srv/\"quoted\\ \n path'''".into();
    config.listen.metrics = Some("127.0.0.1:9000".to_owned());
    config.raft.heartbeat_ms = 20;
    config.storage.log_retention_mb = 1;
    config.storage.change_retention_mb = 2;
    config.max_memory_mb = Some(400);
    config.identity = Some(IdentityFiles {
        certificate: "/etc/meridian/node.pem".into(),
        key: "/etc/meridian/key.pem".into(),
        authorities: "/etc/meridian/ca.pem".into(),
        operator: Some("/etc/meridian/operator.toml".into()),
    });
    config.worker_threads = Some(3);
    config.gateway.public_url = Some("https://kv.example.com".parse().unwrap());
    config.gateway.insecure = true;
    let proxies = ["10.0.0.0/8".to_owned(), "::1".to_owned()];
    config.gateway.trusted_proxies = TrustedProxies::parse(&proxies).unwrap();
    same(&parse(&config.to_toml()).unwrap(), &config);
    config.gateway.insecure = false;
    for name in ["a", "b"] {
        config.gateway.certificates.push(CertificateFiles {
            certificate: format!("/srv/{name}.crt").into(),
            key: format!("/srv/{name}.key").into(),
        });
    }
    config.gateway.audit = Some(AuditSettings {
        file: "/var/log/meridian/audit.jsonl".into(),
        sample: Sample::new(0.25).unwrap(),
        keys: true,
        values: true,
        when_full: WhenFull::Refuse,
    });
    config.cluster.shards.values_mut().for_each(|shard| {
        shard.voters.pop_last();
        shard.preferred_leader = Some(NodeId(2));
    });
    config.cluster.default_database = None;
    let only = Databases::Only(config.cluster.databases.keys().copied().collect());
    let (secret, permissions) = (TokenSecret::Sha256([0xab; 32]), Permissions::READ_ONLY);
    config.tokens.push(TokenConfig::new(secret, only, permissions));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a-secret-of-a-file\n").unwrap();
    let secret = TokenSecret::read(SecretSource::File(file.path().to_owned())).unwrap();
    let permissions = [Permission::Write, Permission::Enqueue].into_iter().collect();
    config.tokens.push(TokenConfig {
        prefixes: vec![KeyPrefix::new(&b"\x02it's \"a\"\x00\x15\x07"[..]).unwrap()],
        ..TokenConfig::new(secret, Databases::All, permissions)
    });
    assert!(!config.to_toml().contains("a-secret-of-a-file"));
    same(&parse(&config.to_toml()).unwrap(), &config);

    let gateway = GatewayConfig {
        region: "west".to_owned(),
        max_memory_mb: config.max_memory_mb,
        listen: GatewayListen { kv: "127.0.0.1:0".to_owned(), metrics: None },
        gateway: config.gateway,
        cluster: config.cluster,
        tokens: config.tokens,
        dial: BTreeMap::new(),
        identity: config.identity,
        own_identity: false,
        state_dir: Some("/var/lib/meridian".into()),
        insecure: false,
    };
    let read = GatewayConfig::parse(&gateway.to_toml(), Path::new("gateway.toml")).unwrap();
    assert_eq!(format!("{read:?}"), format!("{gateway:?}"));
    assert_eq!(read.tokens, gateway.tokens);
}

#[test]
fn file_with_a_join_token_has_the_settings_and_nothing_that_comes_with_the_cluster() {
    let mut config = parse(NODE).unwrap();
    config.max_memory_mb = Some(400);
    config.worker_threads = Some(3);
    config.insecure = true;
    config.raft.heartbeat_ms = 20;
    let token = JoinToken {
        cluster: "00ff00ff00ff00ff".to_owned(),
        authority: "ab".repeat(32),
        addresses: vec!["127.0.0.1:4601".to_owned()],
        secret: Secret::random(),
        expires_at_ms: 1_800_000_000_000,
    };
    let folder = tempfile::tempdir().unwrap();
    config.data_dir = folder.path().join("data");
    let path = folder.path().join("node.toml");
    std::fs::write(&path, config.to_joining_toml(&token)).unwrap();
    let Loaded::Joining(joining) = NodeConfig::open(&path).unwrap() else { panic!("no token") };
    assert_eq!(joining.token, token);
    let joined = Joined {
        subject: "meridian://00ff00ff00ff00ff/node/2".to_owned(),
        token: Secret::digest(token.secret.expose()),
        cluster: config.cluster.clone(),
    };
    joining.folder.remember(&joined).unwrap();
    let expected = NodeConfig {
        join: true,
        own_identity: true,
        identity: Some(joining.folder.files()),
        insecure: false,
        ..config
    };
    same(&NodeConfig::load(&path).unwrap(), &expected);
}

#[test]
fn a_gateway_is_checked() {
    let (head, tables) = NODE.split_once("[listen]\n[raft]\n[storage]\n[gateway]\n").unwrap();
    let head = head.replace("node = 2\ndata_dir = \"data\"", "region = \"west\"");
    let parse = |head: &str, listen: &str| {
        let text = format!("{head}[listen]\n{listen}\n{tables}");
        GatewayConfig::parse(&text, Path::new("gateway.toml"))
    };
    let refused = |head: &str, listen: &str| parse(head, listen).unwrap_err().to_string();
    let kv = "kv = \"127.0.0.1:4512\"";
    let config = parse(&head, kv).unwrap();
    assert_eq!((config.region.as_str(), config.listen.kv.as_str()), ("west", "127.0.0.1:4512"));
    assert_eq!(
        refused(&head.replace("\"west\"\nr", "\"north\"\nr"), kv),
        "gateway.toml: `region = \"north\"` is not one of the regions `east`, `west`"
    );
    assert_eq!(refused(&head, ""), "gateway.toml, line 4: missing field `kv`");
    assert_eq!(
        refused(&head, &format!("{kv}\nmetrics = \"127.0.0.1:4512\"")),
        "gateway.toml: listen.kv and listen.metrics are the same port: 127.0.0.1:4512"
    );
    assert!(
        refused(&head, "kv = \"x\"")
            .starts_with("gateway.toml: listen.kv: `x` is not a host and a port")
    );
    assert!(
        refused(&format!("node = 1\n{head}"), kv)
            .starts_with("gateway.toml, line 1: unknown field `node`, expected")
    );
    assert!(
        refused(&head, &format!("{kv}\nrpc = \"h:1\""))
            .starts_with("gateway.toml, line 6: unknown field `rpc`")
    );
}

#[test]
fn a_dev_cluster_is_six_files_that_load() {
    let files = dev_cluster(&[3, 2, 1], Path::new("/tmp/cluster"), 4601, 4512, SECRET).unwrap();
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["region-1-a", "region-1-b", "region-1-c", "region-2-a", "region-2-b", "region-3-a"]
    );
    let configs: Vec<_> = files.iter().map(|(_, text)| parse(text).unwrap()).collect();
    let rpc: Vec<_> =
        configs.iter().map(|config| config.listen.rpc.trim_start_matches("127.0.0.1:")).collect();
    assert_eq!(rpc, ["4601", "4602", "4603", "4604", "4605", "4606"]);
    let kv: Vec<_> =
        configs.iter().map(|config| config.listen.kv.trim_start_matches("127.0.0.1:")).collect();
    assert_eq!(kv, ["4512", "4513", "4514", "4522", "4523", "4532"]);
    for (number, config) in (1..).map(NodeId).zip(&configs) {
        assert_eq!(config.node_id, number);
        assert_eq!(config.data_dir, Path::new("/tmp/cluster").join(&config.node.name));
        assert_eq!(config.cluster, configs[0].cluster);
        assert_eq!(config.cluster.shard_of(DEV_SECOND_DATABASE).unwrap().0.0, 2);
        assert_eq!(config.tokens[0].secret, TokenSecret::Plain(SECRET.to_owned()));
    }
    let configs_again =
        dev_cluster_configs(&[3, 2, 1], Path::new("/tmp/cluster"), 4601, 4512, SECRET).unwrap();
    configs.iter().zip(&configs_again).for_each(|(read, made)| same(read, made));
}

#[test]
fn a_dev_cluster_is_checked() {
    let refused = |counts: &[usize], dir: &str, rpc, kv, token: &str| {
        dev_cluster(counts, Path::new(dir), rpc, kv, token).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&[3, 1], "/d", 65534, 4512, SECRET),
        "ports from 65534 on are too few for node 3"
    );
    assert_eq!(
        refused(&[3, 1], "/d", 4601, 65530, SECRET),
        "ports from 65530 on are too few for node 4"
    );
    assert!(
        refused(&[3, 1], "/d", 4601, 4601, SECRET)
            .starts_with("127.0.0.1:4601 is both the rpc_address of node 1")
    );
    assert!(refused(&[3, 1], "/d", 0, 4512, SECRET).contains("`127.0.0.1:0` has port 0"));
    assert_eq!(refused(&[3], "", 4601, 4512, SECRET), "`data_dir` is empty");
    assert_eq!(
        refused(&[3], "/d", 4601, 4512, "short"),
        "token number 1: its `secret` has 5 characters, fewer than 16"
    );
    assert!(refused(&[2, 2], "/d", 4601, 4512, SECRET).starts_with("shard 1 has only 2 voters"));
    assert!(refused(&[usize::MAX], "/d", 4601, 4512, SECRET).ends_with("at most 26 in each"));
    let meant = DevLayout { allow_weak_quorum: true, ..DevLayout::new(&[1, 1]) };
    for (_, text) in dev_cluster(meant, Path::new("relative"), 4601, 4512, SECRET).unwrap() {
        assert!(parse(&text).unwrap().data_dir.starts_with(std::env::current_dir().unwrap()));
    }
}

#[test]
fn a_cluster_may_be_founded_with_databases_that_do_not_fail_over() {
    let configs =
        dev_cluster_configs(&[3, 2, 1], Path::new("/tmp/cluster"), 1000, 2000, SECRET).unwrap();
    for mut config in configs {
        let modes = |config: &NodeConfig| -> Vec<_> {
            let founded = config.founded_cluster();
            founded.databases.values().map(|database| database.failover).collect()
        };
        assert_eq!(modes(&config), [FailoverMode::Auto; 2]);
        config.manual_failover = true;
        assert_eq!(modes(&config), [FailoverMode::Manual; 2]);
        // As the file says that `meridian dev` writes.
        let again = parse(&config.to_toml()).unwrap();
        assert!(again.manual_failover);
    }
}
