//! Every method of every service of a node, called with every role and with none.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use meridian_config::{Context, equip_other};
use meridian_net::grpc::{self, Access, OperatorChannel, Timeouts};
use meridian_net::tls::PemFile;
use meridian_pki::Holder;
use meridian_tests::attack::outsider;
use meridian_tests::{Cluster, ClusterOptions};
use meridian_types::{Level, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::client::GrpcService as _;
use tonic::codegen::http::{Request, header};

use crate::DEADLINE;

const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(20), call: Some(Duration::from_secs(20)) };

/// All methods, as the definitions have them: service and method.
fn methods() -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");
    let mut methods = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (mut package, mut service) = (String::new(), String::new());
        for line in text.lines().map(str::trim_start) {
            let word = |prefix: &str, end: char| {
                line.strip_prefix(prefix)?.split(end).next().map(|word| word.trim().to_owned())
            };
            package = word("package ", ';').unwrap_or(package);
            service = word("service ", '{').unwrap_or(service);
            if let Some(method) = word("rpc ", '(') {
                methods.push((format!("{package}.{service}"), method));
            }
        }
    }
    methods
}

/// The roles that a method is for, in the order of [`roles`].
fn expected(service: &str, method: &str) -> [bool; 7] {
    let name = service.rsplit('.').next().unwrap();
    match (name, method) {
        ("Membership", "Join") => [true; 7],
        ("Raft" | "Shipping" | "Failover", _)
        | ("Directory", "Renew" | "AddAdmin")
        | ("Shard", "ReadPosition") => [false, true, false, false, false, false, false],
        ("Shard" | "Changes" | "Queue", _)
        | ("Directory", "Follow" | "TellTokenUses")
        | ("Membership", "Certify") => [false, true, true, false, false, false, false],
        ("Admin", "Status") => [false, true, false, true, true, true, true],
        ("Directory", "Inspect") | ("Admin", "ListOrphans" | "Usage") => {
            [false, false, false, false, true, true, true]
        }
        ("Directory", "Execute") | ("Admin", "TransferLeadership") => {
            [false, false, false, false, false, true, true]
        }
        ("Admin", "ReadOrphans" | "RotateKeys") => [false, false, false, false, false, false, true],
        other => panic!("nothing is said of {other:?}"),
    }
}

fn file(path: &Path) -> PemFile {
    PemFile::new(path.to_owned(), std::fs::read(path).unwrap())
}

/// None, a node, a gateway, an observer, and operators of each level.
fn roles(cluster: &Cluster) -> Vec<(String, Access)> {
    let operator = |level| Holder::Operator { level, name: "ana".to_owned() };
    let holders = [
        None,
        Some(Holder::Node(NodeId(1))),
        Some(Holder::Gateway("edge".to_owned())),
        Some(Holder::Observer("prometheus".to_owned())),
        Some(operator(Level::View)),
        Some(operator(Level::Operate)),
        Some(operator(Level::Admin)),
    ];
    let id = Context::load(&cluster.context()).unwrap().cluster;
    let access = |holder: Option<Holder>| {
        let name = holder.as_ref().map_or("a stranger".to_owned(), ToString::to_string);
        let authorities = file(&cluster.folder().join("identities/authority.pem"));
        let identity = holder.map(|holder| {
            let name = format!("test-{}", name.replace('/', "-"));
            file(&equip_other(cluster.folder(), &name, holder).unwrap().certificate)
        });
        (name, Access::secure(id.clone(), &authorities, identity.as_ref()).unwrap())
    };
    holders.map(access).into()
}

/// The gRPC status of a call with an empty message, as far as it is in the head of the answer; and
/// the text.
async fn call(channel: &OperatorChannel, cluster: &str, path: &str) -> (Option<i32>, String) {
    // A frame of an empty message.
    let body = Body::new(Full::new(Bytes::from_static(&[0; 5])));
    let request = Request::post(format!("http://{cluster}.meridian{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(body)
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let Ok(answer) = tokio::time::timeout(DEADLINE, channel.call(request)).await else {
        return (None, "it does not answer".to_owned());
    };
    let answer = answer.unwrap();
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let status = text("grpc-status").and_then(|status| status.parse().ok());
    (status, text("grpc-message").unwrap_or_default().to_owned())
}

#[tokio::test]
async fn connection_of_a_stranger_ends_behind_some_refused_calls() {
    let cluster =
        Cluster::start(ClusterOptions { topology: &[3], ..ClusterOptions::default() }).await;
    let calls = outsider::calls(b"", 2000, "/meridian.raft.v1.Raft/Vote", None);
    let mut stream = TcpStream::connect(cluster.rpc_address(1)).await.unwrap();
    // It may end while they are being sent.
    drop(stream.write_all(&calls).await);
    let mut answers = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answers)).await;
    assert!(ended.is_ok(), "{} bytes of answers, and it goes on", answers.len());
    let client = cluster.client(1, meridian_tests::kv_connect::DEFAULT_DATABASE);
    client.set(b"after", b"all").await.unwrap();
}

const DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

#[tokio::test]
async fn every_method_takes_its_roles_and_refuses_all_others() {
    let cluster =
        Cluster::start(ClusterOptions { topology: &[3], ..ClusterOptions::default() }).await;
    let id = Context::load(&cluster.context()).unwrap().cluster;
    let address = cluster.rpc_address(1).to_owned();
    let methods = methods();
    assert!(methods.len() > 25, "{methods:?}");
    // A connection ends behind some refused calls: each call has its own.
    let connect = async |access: Access| grpc::connect(&address, &access, TIMEOUTS).await.unwrap();
    for (at, (role, access)) in roles(&cluster).into_iter().enumerate() {
        for (service, method) in &methods {
            let channel = connect(access.clone()).await;
            let (status, text) = call(&channel, &id, &format!("/{service}/{method}")).await;
            let is_refused = matches!(status, Some(DENIED | UNAUTHENTICATED));
            let is_expected = expected(service, method)[at];
            assert_eq!(!is_refused, is_expected, "{role} {service}/{method}: {status:?} {text}");
            if is_refused {
                let wanted = if role == "a stranger" { UNAUTHENTICATED } else { DENIED };
                assert_eq!(status, Some(wanted), "{role} {service}/{method}: {text}");
            }
        }
    }
    // In the clear, knowing all: nothing but the call that brings its own proof.
    for (service, method) in &methods {
        let plain = connect(Access::open()).await;
        let (status, text) = call(&plain, &id, &format!("/{service}/{method}")).await;
        if method != "Join" {
            assert_eq!(status, Some(UNAUTHENTICATED), "{service}/{method}: {text}");
            assert!(text.contains("clear"), "{text}");
        }
    }
    let client = cluster.client(1, meridian_tests::kv_connect::DEFAULT_DATABASE);
    client.set(b"after", b"all").await.unwrap();
}
