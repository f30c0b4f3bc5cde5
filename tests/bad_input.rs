//! Whatever is sent to a node, it answers as `docs/kv-connect.md` says or ends that connection, and
//! serves on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use meridian_proto::directory::InspectRequest;
use meridian_proto::directory::directory_client::DirectoryClient;
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::{MutationType, ValueEncoding};
use meridian_proto::{raft, shard, shipping};
use meridian_tests::kv_connect::{
    DEFAULT_DATABASE, SECOND_DATABASE, delete, mutation, point, set, sum,
};
use meridian_tests::{Cluster, ClusterOptions, KvClient, READ_ONLY_TOKEN, TOKEN};
use meridian_types::NodeId;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

const ATOMIC_WRITE: &str = "/kv/strong/atomic_write";
const SNAPSHOT_READ: &str = "/kv/strong/snapshot_read";
/// For a connection to be answered or closed.
const DEADLINE: Duration = Duration::from_secs(40);

/// Every node answers, reads what was written before, and takes a write.
async fn all_serve(cluster: &mut Cluster) {
    cluster.assert_all_run();
    for id in cluster.node_ids() {
        for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
            let client = cluster.client(id, database);
            let value = format!("by node {id}");
            client.set(b"alive", value.as_bytes()).await.unwrap();
            assert_eq!(client.get(b"alive").await.unwrap().unwrap().value, value);
        }
    }
    cluster.assert_all_run();
}

struct Gateway {
    client: KvClient,
}

impl Gateway {
    /// Posts, and expects this status and these words in a plain text.
    async fn refuses(
        &self,
        path: &str,
        headers: &[(&str, String)],
        body: impl Into<Bytes>,
        status: u16,
        words: &str,
    ) {
        let reply = self.client.post(path, headers, body.into()).await.unwrap();
        let text = reply.text();
        assert_eq!(reply.status.as_u16(), status, "{path} {headers:?}: {text}");
        assert!(text.contains(words), "{path}: expected `{words}` in `{text}`");
        let content_type = reply.headers.get("content-type").and_then(|value| value.to_str().ok());
        assert!(
            content_type.is_some_and(|value| value.starts_with("text/plain")),
            "{path}: {content_type:?}"
        );
    }

    async fn refuses_write(&self, write: pb::AtomicWrite, words: &str) {
        self.refuses(ATOMIC_WRITE, &self.client.headers(), write.encode_to_vec(), 400, words).await;
    }

    async fn refuses_mutations(&self, mutations: Vec<pb::Mutation>, words: &str) {
        self.refuses_write(pb::AtomicWrite { mutations, ..Default::default() }, words).await;
    }

    async fn refuses_read(&self, ranges: Vec<pb::ReadRange>, words: &str) {
        let body = pb::SnapshotRead { ranges }.encode_to_vec();
        self.refuses(SNAPSHOT_READ, &self.client.headers(), body, 400, words).await;
    }

    async fn metadata(&self) {
        let token = |token: &str| vec![("authorization", format!("Bearer {token}"))];
        let versions = br#"{"supportedVersions":[1,2,3]}"#.as_slice();
        for path in [
            "/",
            "/db/default",
            "/db/second",
            "/databases/00000000-0000-4000-8000-000000000002/connect",
        ] {
            let reply = self.client.post(path, &token(TOKEN), versions.into()).await.unwrap();
            assert_eq!(reply.status.as_u16(), 200, "{path}: {}", reply.text());
            assert_eq!(reply.headers["content-type"], "application/json");
            for body in ["{}", "nonsense", r#"{"supportedVersions":"3"}"#, "\u{0}"] {
                self.refuses(path, &token(TOKEN), body, 400, "1, 2 and 3").await;
            }
            self.refuses(path, &token(TOKEN), r#"{"supportedVersions":[4]}"#, 400, "1, 2 and 3")
                .await;
            self.refuses(path, &[], versions, 401, "Malformed authorization header.").await;
            let basic = [("authorization", "Basic abc".to_owned())];
            self.refuses(path, &basic, versions, 401, "Malformed authorization header.").await;
            self.refuses(path, &token("unknown"), versions, 401, "Invalid access token.").await;
        }
        for path in [
            "/db/none",
            "/databases/00000000-0000-4000-8000-000000000009/connect",
            "/nowhere",
            "/kv/strong",
        ] {
            self.refuses(path, &token(TOKEN), versions, 404, "").await;
        }
        let get = Request::get(format!("{}/", self.base())).body(Full::default()).unwrap();
        assert_eq!(self.client.send(get).await.unwrap().status.as_u16(), 404);
    }

    async fn heads(&self) {
        let read = pb::SnapshotRead { ranges: vec![point(b"k")] }.encode_to_vec();
        let write = pb::AtomicWrite { mutations: vec![set(b"k", b"v")], ..Default::default() }
            .encode_to_vec();
        for (path, body) in [(SNAPSHOT_READ, &read), (ATOMIC_WRITE, &write)] {
            let with = |name: &str, value: Option<&str>| {
                let mut headers = self.client.headers();
                headers.retain(|(header, _)| *header != name);
                headers.extend(value.map(|value| {
                    (
                        HEADERS.iter().copied().find(|known| *known == name).unwrap(),
                        value.to_owned(),
                    )
                }));
                headers
            };
            for value in [None, Some("Bearer"), Some("Bearer "), Some("nonsense")] {
                let headers = with("authorization", value);
                self.refuses(path, &headers, body.clone(), 401, "Malformed authorization header.")
                    .await;
            }
            let headers = with("authorization", Some("Bearer unknown"));
            self.refuses(path, &headers, body.clone(), 401, "Invalid access token.").await;
            for version in ["0", "4", "three", ""] {
                let headers = with("x-denokv-version", Some(version));
                self.refuses(path, &headers, body.clone(), 400, "Expected protocol version").await;
            }
            for id in
                [None, Some("nonsense"), Some(""), Some("00000000-0000-4000-8000-000000000009")]
            {
                let headers = with("x-denokv-database-id", id);
                self.refuses(path, &headers, body.clone(), 400, "Invalid database id.").await;
            }
            for garbage in [&b"\xff\xff\xff\xff"[..], b"\x0a\xff\xff\xff\xff\x0f", b"plain text"] {
                self.refuses(
                    path,
                    &self.client.headers(),
                    garbage,
                    400,
                    "Request protobuf is invalid: ",
                )
                .await;
            }
            let huge = vec![0u8; 4 << 20];
            self.refuses(path, &self.client.headers(), huge, 400, "limit").await;
        }
        let reader = self.client.clone().with_token(READ_ONLY_TOKEN);
        self.refuses(ATOMIC_WRITE, &reader.headers(), write, 403, "read").await;
        reader.get(b"k").await.unwrap();
    }

    async fn limits(&self) {
        let many =
            |count: usize| (0..count).map(|at| at.to_string().into_bytes()).collect::<Vec<_>>();
        self.refuses_read(many(11).iter().map(|key| point(key)).collect(), "10").await;
        self.refuses_read(vec![pb::ReadRange { limit: 1001, ..point(b"k") }], "1000").await;
        self.refuses_read(vec![pb::ReadRange { limit: 600, ..point(b"k") }; 2], "1000").await;
        self.refuses_read(vec![pb::ReadRange { limit: 0, ..point(b"k") }], "limit").await;
        self.refuses_read(vec![pb::ReadRange { limit: -1, ..point(b"k") }], "limit").await;
        self.refuses_read(
            vec![pb::ReadRange { start: vec![1; 2050].into(), ..point(b"k") }],
            "2049",
        )
        .await;

        let check = |key: Vec<u8>, stamp: &[u8]| pb::Check {
            key: key.into(),
            versionstamp: Bytes::copy_from_slice(stamp),
        };
        let checks = |checks: Vec<pb::Check>| pb::AtomicWrite { checks, ..Default::default() };
        self.refuses_write(
            checks(many(101).into_iter().map(|key| check(key, b"")).collect()),
            "100",
        )
        .await;
        self.refuses_write(checks(vec![check(vec![1; 2050], b"")]), "2049").await;
        for stamp in [&b"1"[..], b"123456789", b"12345678901"] {
            self.refuses_write(checks(vec![check(vec![1], stamp)]), "versionstamp").await;
        }
        self.refuses_mutations(many(1001).iter().map(|key| set(key, b"")).collect(), "1000").await;
        self.refuses_mutations(vec![set(&[1; 2049], b"")], "2048").await;
        self.refuses_mutations(vec![set(b"k", &[0; 65537])], "65536").await;
        self.refuses_mutations(
            many(13).iter().map(|key| set(key, &[0; 65000])).collect(),
            "819200",
        )
        .await;
    }

    async fn mutations(&self) {
        let unknown = |kind: i32| pb::Mutation { mutation_type: kind, ..set(b"k", b"v") };
        for kind in [0, 4711, -1] {
            self.refuses_mutations(vec![unknown(kind)], "mutation kind").await;
        }
        self.refuses_mutations(
            vec![pb::Mutation { value: None, ..set(b"k", b"v") }],
            "mutation kind",
        )
        .await;
        self.refuses_mutations(
            vec![pb::Mutation { expire_at_ms: -2, ..set(b"k", b"v") }],
            "expire",
        )
        .await;
        let encoded = |encoding: i32, data: &'static [u8]| pb::Mutation {
            value: Some(pb::KvValue { data: Bytes::from_static(data), encoding }),
            ..set(b"k", b"v")
        };
        self.refuses_mutations(vec![encoded(0, b"v")], "encoding").await;
        self.refuses_mutations(vec![encoded(9, b"v")], "encoding").await;
        for data in [&b""[..], b"1234567", b"123456789"] {
            self.refuses_mutations(vec![encoded(2, data)], "u64").await;
        }

        // Type errors of sum, min and max: 400, and the whole write is undone.
        let one = 1u64.to_le_bytes();
        // `7` and `7n`, serialized by V8.
        let (number, bigint) = (&b"\xff\x0fI\x0e"[..], &b"\xff\x0fZ\x10\x07\0\0\0\0\0\0\0"[..]);
        let (bytes, u64s) = (ValueEncoding::VeBytes, ValueEncoding::VeLe64);
        let text = b"\xff\x0f\"\x04text";
        let stored = [
            set(b"bytes", b"v"),
            mutation(MutationType::MSet, b"u64", u64s, &one),
            mutation(MutationType::MSet, b"number", ValueEncoding::VeV8, number),
        ];
        self.client
            .write(pb::AtomicWrite { mutations: stored.to_vec(), ..Default::default() })
            .await
            .unwrap();
        let fails = async |failing: pb::Mutation, words: &str| {
            self.refuses_mutations(
                vec![set(b"undone", b"v"), delete(b"bytes"), set(b"bytes", b"w"), failing],
                words,
            )
            .await;
            assert_eq!(self.client.get(b"undone").await.unwrap(), None, "{words}");
            assert_eq!(
                self.client.get(b"bytes").await.unwrap().unwrap().value,
                &b"v"[..],
                "{words}"
            );
        };
        let v8 = |kind, key: &[u8], data: &[u8]| mutation(kind, key, ValueEncoding::VeV8, data);
        fails(
            sum(b"bytes", 1),
            "Failed to perform 'sum' mutation on a non-U64 value in the database",
        )
        .await;
        for (kind, word) in [(MutationType::MMin, "min"), (MutationType::MMax, "max")] {
            let words =
                format!("Failed to perform '{word}' mutation on a non-U64 value in the database");
            fails(mutation(kind, b"bytes", u64s, &one), &words).await;
            let words = format!("Failed to perform '{word}' mutation on a non-U64 operand");
            fails(v8(kind, b"u64", number), &words).await;
        }
        fails(v8(MutationType::MSum, b"u64", number), "Cannot sum KvU64 with Number").await;
        fails(mutation(MutationType::MSum, b"absent", bytes, b"v"), "").await;
        fails(v8(MutationType::MSum, b"bytes", number), "unsupported value type").await;
        fails(
            v8(MutationType::MSum, b"number", text),
            "Some of the parameters are not valid V8 values",
        )
        .await;
        let bounded = |min: &'static [u8], max: &'static [u8]| pb::Mutation {
            sum_min: Bytes::from_static(min),
            sum_max: Bytes::from_static(max),
            ..v8(MutationType::MSum, b"number", number)
        };
        fails(bounded(bigint, b""), "Min/max parameters have different types than the operand")
            .await;
        fails(bounded(b"", number), "The result of a Sum operation would exceed its range limit")
            .await;
        fails(bounded(b"nonsense", b""), "Some of the parameters are not valid V8 values").await;
    }

    /// What no HTTP client would send. Each connection is answered or closed.
    async fn sockets(&self) {
        let address = self.base().trim_start_matches("http://").to_owned();
        let long = format!("POST / HTTP/1.1\r\nHost: k\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        // A frame of 16 MiB, of the type DATA, on stream 1.
        let oversized =
            [&preface[..], b"\0\0\0\x04\0\0\0\0\0", b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 4096]]
                .concat();
        let noise: Vec<u8> =
            (0..65_536u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for (name, bytes) in [
            ("noise", &noise[..]),
            ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
            ("no HTTP", b"hello\r\n\r\n"),
            ("a bad length", b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: -1\r\n\r\n"),
            (
                "two lengths",
                b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            ),
            (
                "bad chunks",
                b"POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ),
            ("long headers", long.as_bytes()),
            ("bad HTTP/2", &[&preface[..], &noise[..1024]].concat()),
            ("an oversized frame", &oversized),
        ] {
            converse(name, &address, bytes).await;
        }
        // One that stops in the middle of a body, and one that says nothing: both are dropped here.
        for bytes in [&b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 100\r\n\r\nab"[..], b""] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
        }
    }

    fn base(&self) -> String {
        self.client.base().to_owned()
    }
}

const HEADERS: [&str; 3] = ["authorization", "x-denokv-version", "x-denokv-database-id"];

/// Sends `bytes`, then reads until the server closes; what it says does not matter.
async fn converse(name: &str, address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read all.
    drop(stream.write_all(bytes).await);
    drop(stream.shutdown().await);
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "{name}: the connection stays open");
}

#[tokio::test]
async fn every_bad_request_is_answered_as_documented() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    // A voter, and one that forwards.
    for id in [1, 6] {
        let gateway = Gateway { client: cluster.client(id, DEFAULT_DATABASE) };
        gateway.metadata().await;
        gateway.heads().await;
        gateway.limits().await;
        gateway.mutations().await;
        gateway.sockets().await;
        cluster.assert_all_run();
    }
    all_serve(&mut cluster).await;
}

fn endpoint(cluster: &Cluster, id: NodeId) -> Endpoint {
    Endpoint::from_shared(format!("http://{}", cluster.rpc_address(id))).unwrap()
}

/// As a node of the cluster calls another.
async fn peer_endpoint(cluster: &Cluster, id: NodeId) -> Endpoint {
    let mut directory = DirectoryClient::new(endpoint(cluster, id).connect().await.unwrap());
    let inspected = directory.inspect(InspectRequest::default()).await.unwrap().into_inner();
    let known: serde_json::Value =
        serde_json::from_slice(&inspected.cluster.unwrap().json).unwrap();
    let name = known["id"].as_str().expect("the cluster has an id").to_owned();
    endpoint(cluster, id).origin(format!("http://{name}.meridian").parse().unwrap())
}

/// A node serves no other cluster, and nobody who does not name its own.
async fn calls_of_another_cluster(cluster: &Cluster, id: NodeId) {
    let other = "http://00112233445566778899aabbccddeeff.meridian".parse().unwrap();
    for endpoint in [endpoint(cluster, id), endpoint(cluster, id).origin(other)] {
        let channel = endpoint.connect().await.unwrap();
        let group = Some(raft::Group { shard: 1, epoch: 1, target: id });
        let vote = meridian_proto::log::Vote { term: 1_000_000, node_id: 1, committed: true };
        let append = raft::AppendRequest { group, vote: Some(vote), ..Default::default() };
        let refused =
            raft::raft_client::RaftClient::new(channel.clone()).append(append).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("this node is of cluster"), "{refused}");
        let fetch = shipping::FetchStateRequest { shard: 1, epoch: 1, ..Default::default() };
        let mut shipping = shipping::shipping_client::ShippingClient::new(channel.clone());
        assert_eq!(
            shipping.fetch_state(fetch).await.unwrap_err().code(),
            tonic::Code::FailedPrecondition
        );
        let renewal = meridian_proto::directory::RenewRequest { node_id: id, ..Default::default() };
        let renewed = DirectoryClient::new(channel).renew(renewal).await;
        assert_eq!(renewed.unwrap_err().code(), tonic::Code::FailedPrecondition);
    }
}

/// Groups, epochs, targets and fields that are wrong are refused; nothing is done.
async fn malformed_calls(cluster: &Cluster, id: NodeId) {
    let channel = peer_endpoint(cluster, id).await.connect().await.unwrap();
    let mut shards = shard::shard_client::ShardClient::new(channel.clone())
        .max_encoding_message_size(256 << 20)
        .max_decoding_message_size(256 << 20);
    let group = |shard, epoch| Some(shard::ShardEpoch { shard, epoch });
    let write = |group| shard::WriteRequest {
        group,
        database: Bytes::copy_from_slice(&DEFAULT_DATABASE.0),
        request_id: Bytes::from_static(&[7; 16]),
        write: Some(pb::AtomicWrite {
            mutations: vec![set(b"by rpc", b"v")],
            ..Default::default()
        }),
        retry: false,
        late_leader: 0,
        pass_on: false,
        valid_until: None,
        turn: None,
    };
    let good = group(1, 1);
    let bad = [
        write(None),
        write(group(9, 1)),
        write(group(1, 0)),
        write(group(1, 2)),
        write(group(1, u32::MAX)),
        shard::WriteRequest { database: Bytes::from_static(b"short"), ..write(good) },
        shard::WriteRequest { request_id: Bytes::new(), ..write(good) },
        shard::WriteRequest { write: None, ..write(good) },
    ];
    for request in bad {
        let shown = format!("{request:?}");
        match shards.write(request).await.map(|response| response.into_inner().result) {
            // A replica looks no further than that it does not lead, a voter than that the call
            // knows no clock of its.
            Err(_)
            | Ok(Some(
                shard::write_response::Result::NotLeader(_)
                | shard::write_response::Result::ClockUnknown(_),
            )) => {}
            other => panic!("node {id}: {shown}: {other:?}"),
        }
    }
    let read = |ranges| shard::ReadRequest {
        group: good,
        database: Bytes::copy_from_slice(&DEFAULT_DATABASE.0),
        strong: false,
        ranges,
        min_sequence: 0,
    };
    shards.read(read(vec![pb::ReadRange { limit: -5, ..point(b"k") }])).await.unwrap_err();
    // Beyond what a node takes in one message.
    let oversized = shard::ReadRequest { database: vec![0; 100 << 20].into(), ..read(vec![]) };
    shards.read(oversized).await.unwrap_err();

    let mut rafts = raft::raft_client::RaftClient::new(channel.clone());
    let target = |shard, epoch, target| Some(raft::Group { shard, epoch, target });
    let vote = meridian_proto::log::Vote { term: 1_000_000, node_id: 1, committed: false };
    for group in [None, target(9, 1, id), target(1, 2, id), target(1, 1, id + 1), target(1, 1, 0)] {
        let request = raft::VoteRequest { group, vote: Some(vote), ..Default::default() };
        rafts.vote(request).await.unwrap_err();
        rafts.pre_vote(request).await.unwrap_err();
        rafts
            .append(raft::AppendRequest { group, vote: Some(vote), ..Default::default() })
            .await
            .unwrap_err();
    }
    rafts
        .vote(raft::VoteRequest { group: target(1, 1, id), ..Default::default() })
        .await
        .unwrap_err();

    let mut shipping = shipping::shipping_client::ShippingClient::new(channel);
    let fetch = |shard, epoch| shipping::FetchStateRequest { shard, epoch, ..Default::default() };
    for request in [
        fetch(9, 1),
        fetch(1, 7),
        shipping::FetchStateRequest { snapshot_id: "none".to_owned(), ..fetch(1, 1) },
    ] {
        if let Ok(stream) = shipping.fetch_state(request).await {
            stream.into_inner().message().await.unwrap_err();
        }
    }
    let start = |start| shipping::SubscribeRequest {
        message: Some(shipping::subscribe_request::Message::Start(start)),
    };
    let known =
        shipping::Start { shard: 1, epoch: 1, node_id: 4, durable: None, keeps_window: true };
    let ahead = shipping::Position { epoch: 1, sequence: u64::MAX };
    for requests in [
        vec![],
        vec![shipping::SubscribeRequest { message: None }],
        vec![start(shipping::Start { shard: 9, ..known })],
        vec![start(shipping::Start { epoch: u32::MAX, ..known })],
        vec![start(shipping::Start { node_id: 99, ..known })],
        vec![start(shipping::Start { durable: Some(ahead), ..known })],
    ] {
        let Ok(stream) = shipping.subscribe(tokio_stream::iter(requests)).await else { continue };
        // The requests end, and so the answers do.
        let mut stream = stream.into_inner();
        let ended = async { while let Ok(Some(_)) = stream.message().await {} };
        tokio::time::timeout(DEADLINE, ended).await.expect("the stream ends");
    }
    let status = shipping::Status { shard: 9, node_id: 99, epoch: u32::MAX, ..Default::default() };
    // Refused or ignored.
    let said = shipping::AnnounceRequest { statuses: vec![status], ..Default::default() };
    drop(shipping.announce(tokio_stream::once(said)).await);
}

#[tokio::test]
async fn malformed_rpc_takes_no_node_down() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client(1, DEFAULT_DATABASE).set(b"before", b"v").await.unwrap();
    let terms = async |cluster: &Cluster| {
        cluster.shard_status(cluster.leader(1).await, 1).await.unwrap().term
    };
    let before = terms(&cluster).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let noise: Vec<u8> =
        (0..65_536u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let oversized = [&preface[..], b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 4096]].concat();
    for id in cluster.node_ids() {
        let address = cluster.rpc_address(id).to_owned();
        for (name, bytes) in [
            ("noise", &noise[..]),
            ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: k\r\n\r\n"),
            ("bad HTTP/2", &[&preface[..], &noise[..1024]].concat()),
            ("an oversized frame", &oversized),
        ] {
            converse(name, &address, bytes).await;
        }
        malformed_calls(&cluster, id).await;
        calls_of_another_cluster(&cluster, id).await;
    }
    let client = cluster.client(6, DEFAULT_DATABASE);
    assert_eq!(client.get(b"by rpc").await.unwrap(), None);
    assert_eq!(client.get(b"before").await.unwrap().unwrap().value, &b"v"[..]);
    assert_eq!(terms(&cluster).await, before, "nobody was made to stand for election");
    all_serve(&mut cluster).await;
}
