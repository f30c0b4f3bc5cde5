//! Input of clients: metadata, heads, limits, mutations, and bytes that are no HTTP.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::{MutationType, ValueEncoding};
use meridian_tests::kv_connect::{delete, mutation, point, set, sum};
use meridian_tests::{KvClient, READ_ONLY_TOKEN, TOKEN};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::converse;

const ATOMIC_WRITE: &str = "/kv/strong/atomic_write";
const SNAPSHOT_READ: &str = "/kv/strong/snapshot_read";

/// A gateway under test.
pub(crate) struct Gateway {
    pub(crate) client: KvClient,
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

    pub(crate) async fn metadata(&self) {
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

    pub(crate) async fn heads(&self) {
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
        self.refuses(ATOMIC_WRITE, &reader.headers(), write, 403, "permission `write`").await;
        reader.get(b"k").await.unwrap();
    }

    pub(crate) async fn limits(&self) {
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

    pub(crate) async fn mutations(&self) {
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
    }

    /// Type errors of sum, min and max: 400, and the whole write is undone.
    pub(crate) async fn type_errors(&self) {
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

    /// Bytes that no HTTP client would send. Each connection is answered or closed.
    pub(crate) async fn sockets(&self) {
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
        // A client that stops in the middle of a body, and one without a byte: both are dropped
        // here.
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
