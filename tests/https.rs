//! HTTPS at a gateway, by real clients and while its certificates change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use meridian_config::{CertificateFiles, GatewayConfig, GatewayListen, NodeConfig, equip_other};
use meridian_kv_client::{HttpVersion, Metadata, WatchMessage};
use meridian_net::Stream;
use meridian_net::tls::{self, PemFile, Versions};
use meridian_pki::Holder;
use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, KvClient, TOKEN, clients, poll};
use meridian_types::{Consistency, NodeId};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const LONG: Duration = Duration::from_secs(30);

/// The authority that all tests of this process believe.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn get() -> &'static Self {
        static AUTHORITY: OnceLock<Authority> = OnceLock::new();
        AUTHORITY.get_or_init(|| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let authority = Self { certificate, issuer: Issuer::new(params, key), folder };
            std::fs::write(authority.file(), authority.certificate.pem()).unwrap();
            meridian_kv_client::trust(&authority.file()).unwrap();
            authority
        })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A certificate for this machine, and its key. `ended`: it was valid once.
    fn certificate(&self, ended: bool) -> (String, String) {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        if ended {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A stateless gateway with HTTPS, beside a cluster.
struct Gateway {
    _process: Child,
    port: u16,
    certificate: PathBuf,
    key: PathBuf,
    /// Its log so far.
    said: Arc<Mutex<String>>,
}

impl Gateway {
    async fn start(cluster: &Cluster) -> Self {
        let folder = cluster.folder().join("https");
        std::fs::create_dir(&folder).unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.join(name));
        let (text, secret) = Authority::get().certificate(false);
        std::fs::write(&certificate, text).unwrap();
        std::fs::write(&key, secret).unwrap();
        set_mode(&key, 0o644);
        let node = NodeConfig::load(&cluster.folder().join("region-1-a/node.toml")).unwrap();
        let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
        let mut config = GatewayConfig {
            region: node.node.region,
            max_memory_mb: None,
            listen: GatewayListen { kv: "127.0.0.1:0".to_owned(), metrics: None },
            gateway: node.gateway,
            cluster: node.cluster,
            tokens: node.tokens,
            dial: node.dial,
            identity: Some(
                equip_other(cluster.folder(), "https", Holder::Gateway("https".to_owned()))
                    .unwrap(),
            ),
            own_identity: false,
            state_dir: None,
            insecure: false,
        };
        config.gateway.certificates = vec![files];
        set_mode(&cluster.folder().join("identities/https.pem"), 0o644);
        let path = folder.join("gateway.toml");
        std::fs::write(&path, config.to_toml()).unwrap();
        let mut command = Command::new(binary());
        command.arg("gateway").arg("--config").arg(&path).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = tokio::time::timeout(LONG, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("a gateway that serves");
                if let Some((_, address)) = line.split_once("KV Connect at https://127.0.0.1:") {
                    return address.parse().unwrap();
                }
            }
        });
        let port = port.await.expect("the gateway serves");
        let said = Arc::<Mutex<String>>::default();
        let so_far = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                *so_far.lock().unwrap() += &(line + "\n");
            }
        });
        Self { _process: process, port, certificate, key, said }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn client(&self) -> KvClient {
        KvClient::new(self.url(), TOKEN, DEFAULT_DATABASE)
    }

    /// A connection, by these versions of TLS.
    async fn connect(&self, versions: Versions, alpn: &[&[u8]]) -> std::io::Result<Stream> {
        let authority = PemFile::read(&Authority::get().file(), PemFile::MAX_BYTES).unwrap();
        let config = tls::public_client(Some(&authority), versions, alpn).unwrap();
        let stream = Stream::dial("127.0.0.1", self.port, LONG).await?;
        let name = "localhost".to_owned().try_into().unwrap();
        tls::Client::new(config).connect(stream, name, LONG).await
    }

    /// The certificate that a new connection is shown.
    async fn shown(&self) -> Result<Vec<u8>, String> {
        let connected = self.connect(Versions::Tls13, &[]).await;
        let connected = connected.map_err(|error| error.to_string())?;
        Ok(connected.peer_certificates()[0].to_vec())
    }

    /// Waits until it has refused changed files for this.
    async fn refuses(&self, why: &str) {
        poll::until(why, LONG, async || {
            let said = self.said.lock().unwrap().clone();
            let mut lines = said.lines();
            let is_said = |line: &str| line.contains("cannot be used") && line.contains(why);
            if lines.any(is_said) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    fn write(&self, (certificate, key): &(String, String)) {
        std::fs::write(&self.certificate, certificate).unwrap();
        std::fs::write(&self.key, key).unwrap();
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

async fn cluster() -> Cluster {
    Authority::get();
    Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await
}

#[tokio::test]
async fn deno_and_commands_reach_a_gateway_over_https_by_its_authority_alone() {
    let cluster = cluster().await;
    let gateway = Gateway::start(&cluster).await;
    let (url, authority) = (gateway.url(), Authority::get().file());
    let mut command = clients::deno();
    command.env("DENO_CERT", &authority).arg(clients::program("deno.ts")).args([&url, &url]);
    clients::run(command).await;
    let mut command = clients::deno();
    command.arg("-").arg(&url).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut stranger = command.kill_on_drop(true).spawn().unwrap();
    let source = "await fetch(Deno.args[0]);";
    stranger.stdin.take().unwrap().write_all(source.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(LONG, stranger.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("certificate"), "{text}");
    // Commands of this project.
    let kv = async |authority: Option<&Path>, arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("kv").args(arguments).args(["--url", &url]).env_remove("SSL_CERT_FILE");
        command.env("DENO_KV_ACCESS_TOKEN", TOKEN).kill_on_drop(true);
        if let Some(authority) = authority {
            command.env("MERIDIAN_CACERT", authority);
        }
        let output = command.output().await.unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (is_done, text) = kv(Some(&authority), &["set", r#"["https"]"#, "1"]).await;
    assert!(is_done, "{text}");
    let (is_done, text) = kv(None, &["get", r#"["https"]"#]).await;
    assert!(!is_done && text.contains("MERIDIAN_CACERT"), "{text}");
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_plain_requests_are_told_of_https() {
    let cluster = cluster().await;
    let gateway = Gateway::start(&cluster).await;
    for http in [HttpVersion::H1, HttpVersion::H2] {
        let opened = Metadata::exchange(&gateway.url(), TOKEN, http, LONG).await.unwrap();
        assert_eq!(opened.database_id, DEFAULT_DATABASE.to_string(), "{http:?}");
        assert!(opened.strong.unwrap().is_https());
    }
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let stream = gateway.connect(Versions::Tls12AndLater, &[alpn]).await.unwrap();
        assert_eq!(stream.alpn(), Some(alpn));
    }
    let mut plain = TcpStream::connect(("127.0.0.1", gateway.port)).await.unwrap();
    plain.write_all(b"POST / HTTP/1.1\r\nhost: kv\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LONG, plain.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("Client sent an HTTP request to an HTTPS server."), "{answer}");
}

#[tokio::test]
async fn certificates_change_while_requests_and_a_watch_go_on_and_a_bad_pair_changes_nothing() {
    let cluster = cluster().await;
    let gateway = Gateway::start(&cluster).await;
    let first = gateway.shown().await.unwrap();
    let kept = gateway.client();
    let mut watch = kept.watch(Consistency::Strong, &[b"key"]).await.unwrap();
    let stop = AtomicBool::new(false);
    // Over a kept connection, and over a new one each time.
    let requests = async {
        let mut count = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            kept.set(b"key", &count.to_be_bytes()).await.unwrap();
            let read = gateway.client().get(b"key").await.unwrap().unwrap();
            assert_eq!(read.value[..], count.to_be_bytes());
        }
        count
    };
    let changes = async {
        let authority = Authority::get();
        let second = authority.certificate(false);
        // It is written in steps, with long pauses.
        std::fs::write(&gateway.certificate, &second.0[..second.0.len() / 2]).unwrap();
        gateway.refuses("tls.crt: it is no whole PEM").await;
        assert_eq!(gateway.shown().await.as_ref(), Ok(&first));
        std::fs::write(&gateway.certificate, &second.0).unwrap();
        gateway.refuses("tls.key: its private key is not that of the first certificate").await;
        assert_eq!(gateway.shown().await.as_ref(), Ok(&first));
        gateway.write(&second);
        let changed = poll::until("the certificate is another", LONG, async || {
            let shown = gateway.shown().await?;
            if shown == first { Err("the former one".to_owned()) } else { Ok(shown) }
        });
        changed.await;
        stop.store(true, Ordering::Relaxed);
    };
    let (count, ()) = tokio::join!(requests, changes);
    assert!(count > 10, "{count} requests");
    let last = tokio::time::timeout(LONG, async {
        loop {
            let Some(WatchMessage::News(news)) = watch.next().await.expect("it goes on") else {
                continue;
            };
            let value = news.keys.first().and_then(|key| key.entry_if_changed.clone());
            if value.is_some_and(|entry| entry.value[..] == count.to_be_bytes()) {
                return;
            }
        }
    });
    last.await.expect("the watch tells of the last write");
    // An ended certificate is shown, and clients that look at it refuse: the gateway is not dark.
    gateway.write(&Authority::get().certificate(true));
    poll::until("the certificate has ended", LONG, async || match gateway.shown().await {
        Err(text) if text.contains("expired") => Ok(()),
        other => Err(other.map(|shown| shown.len())),
    })
    .await;
    assert!(kept.get(b"key").await.unwrap().is_some(), "a kept connection goes on");
    gateway.write(&Authority::get().certificate(false));
    poll::until("a valid certificate is shown", LONG, async || gateway.shown().await).await;
}

#[tokio::test]
async fn plain_port_beyond_loopback_is_in_each_status() {
    let mut cluster = cluster().await;
    let path = cluster.folder().join("region-1-a/node.toml");
    let port = NodeConfig::load(&path).unwrap().listen.kv;
    let port = port.strip_prefix("127.0.0.1:").unwrap();
    let said = "region-1-a: clients reach the gateway at 0.0.0.0";
    assert!(!cluster.order(NodeId(1), &["cluster", "status"]).await.contains(said));
    assert!(cluster.stop(NodeId(1)).success());
    let text = std::fs::read_to_string(&path).unwrap();
    let (plain, open) =
        (format!("\nkv = \"127.0.0.1:{port}\""), format!("\nkv = \"0.0.0.0:{port}\""));
    assert!(text.contains(&plain), "{text}");
    std::fs::write(&path, text.replace(&plain, &open)).unwrap();
    cluster.restart(NodeId(1));
    cluster.node_ready(NodeId(1)).await;
    // Both show what the nodes say that answer soon.
    poll::until("each status says so", LONG, async || {
        let status = cluster.status_text();
        let of_cluster = cluster.order(NodeId(1), &["cluster", "status"]).await;
        let is_said = status.contains(said) && of_cluster.contains(said);
        let advises = of_cluster.contains("[[gateway.certificates]]");
        if is_said && advises { Ok(()) } else { Err(status + &of_cluster) }
    })
    .await;
}

#[tokio::test]
async fn private_keys_that_others_can_read_are_in_the_log_at_the_start_and_in_the_status() {
    let cluster = cluster().await;
    let key = cluster.folder().join("identities/region-1-a.pem");
    let warns = |text: &str, file: &str| {
        let warning = "others than its owner can read the private key";
        text.lines().any(|line| line.contains(warning) && line.contains(file))
    };
    for (mode, is_warned_of) in [(0o600, false), (0o644, true), (0o600, false)] {
        set_mode(&key, mode);
        poll::until("the status is as the mode", LONG, async || {
            let status = cluster.order(NodeId(1), &["cluster", "status"]).await;
            let warned = warns(&status, "region-1-a.pem");
            if warned == is_warned_of { Ok(()) } else { Err(status) }
        })
        .await;
    }
    let gateway = Gateway::start(&cluster).await;
    poll::until("the gateway says so", LONG, async || {
        let said = gateway.said.lock().unwrap().clone();
        let is_said = |file| warns(&said, file);
        let all = ["https/tls.key", "identities/https.pem"].into_iter().all(is_said);
        if all { Ok(()) } else { Err(said) }
    })
    .await;
}
