//! Reads and writes, as clients see them, and every row of "Answers to bad input".

use std::time::Duration;

use crate::support::{MAIN_TEXT, OTHERS, Plan, READER, Server, WRITER, all, set};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use prost::Message;

const STRONG_READ: &str = "/kv/strong/snapshot_read";
const STRONG_WRITE: &str = "/kv/strong/atomic_write";

#[tokio::test]
async fn a_write_is_read_on_both_paths_over_both_protocols() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        let written: pb::AtomicWriteOutput =
            client.write(&set("key", "value")).await.unwrap().message();
        assert_eq!(written.status(), pb::AtomicWriteStatus::AwSuccess);
        assert_eq!(written.versionstamp.len(), 10);
        for (path, strong) in [(STRONG_READ, true), ("/kv/eventual/snapshot_read", false)] {
            let read: pb::SnapshotReadOutput =
                client.data(path, READER, &all()).await.unwrap().message();
            assert_eq!(read.read_is_strongly_consistent, strong);
            assert_eq!(read.status(), pb::SnapshotReadStatus::SrSuccess);
            assert!(!read.read_disabled);
            let entry = &read.ranges[0].values[0];
            assert_eq!((&entry.key[..], &entry.value[..]), (&b"key"[..], &b"value"[..]));
            assert_eq!(entry.encoding(), pb::ValueEncoding::VeBytes);
            assert_eq!(entry.versionstamp, written.versionstamp);
        }
    }
    let reads = server.memory.reads.lock().unwrap().clone();
    assert_eq!(reads, [Consistency::Strong, Consistency::Eventual].repeat(2));
}

#[tokio::test]
async fn a_write_to_the_eventual_path_is_a_write() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let reply =
        client.data("/kv/eventual/atomic_write", WRITER, &set("key", "value")).await.unwrap();
    assert_eq!(reply.message::<pb::AtomicWriteOutput>().status(), pb::AtomicWriteStatus::AwSuccess);
    assert_eq!(server.memory.committed(), 1);
}

#[tokio::test]
async fn all_failed_checks_are_named() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    client.write(&set("a", "1")).await.unwrap();
    let check = |key: &'static str| pb::Check { key: key.into(), versionstamp: Bytes::new() };
    let checks = vec![check("a"), check("b"), check("a")];
    let output: pb::AtomicWriteOutput =
        client.write(&pb::AtomicWrite { checks, ..set("a", "2") }).await.unwrap().message();
    assert_eq!(output.status(), pb::AtomicWriteStatus::AwCheckFailure);
    assert_eq!(output.failed_checks, [0, 2]);
    assert!(output.versionstamp.is_empty());
}

#[tokio::test]
async fn every_write_has_its_own_request_id() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    for _ in 0..3 {
        client.write(&set("a", "1")).await.unwrap();
    }
    let mut ids = server.memory.request_ids.lock().unwrap().clone();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn write_with_an_id_of_its_client_has_one_request_id_however_often_it_comes() {
    let server = Server::start().await;
    let named = |id: &str, value: &'static str| {
        let mut write = set("a", value);
        let key = [b"\x01\xfdmeridian\xfd\x00\x02request\x00\x02", id.as_bytes(), b"\x00"].concat();
        write.mutations.push(pb::Mutation { key: key.into(), ..write.mutations[0].clone() });
        write
    };
    for (client, write) in [
        (server.http1().await, named("one", "1")),
        (server.http2().await, named("one", "1")),
        (server.http2().await, named("two", "1")),
        (server.http2().await, named("two", "2")),
    ] {
        let mut client = client;
        client.write(&write).await.unwrap();
    }
    let ids = server.memory.request_ids.lock().unwrap().clone();
    assert_eq!(ids[0], ids[1]);
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), distinct.len()), (4, 3));
}

#[tokio::test]
async fn files_for_programs_are_served_without_a_token() {
    let server = Server::start().await;
    let get = |path: &str| {
        let uri = format!("http://kv.test:4512{path}");
        Request::get(uri).body(Full::new(Bytes::new())).unwrap()
    };
    let mut client = server.http2().await;
    let module = client.send(get("/.meridian/v1/deno.js")).await.unwrap();
    assert_eq!(module.status, 200);
    assert_eq!(module.content_type, "application/javascript; charset=utf-8");
    assert!(module.text().contains("Deno.openKv"));
    let reply = client.send(get("/.meridian/v1/server")).await.unwrap();
    assert_eq!(reply.json(), serde_json::json!({"server": "meridian"}));
    for path in ["/.meridian/v1/", "/.meridian/v1/other", "/.meridian/v2/deno.js", "/kv/strong"] {
        client.send(get(path)).await.unwrap().refuses(404, "Nothing is served here.");
    }
    client.post("/.meridian/v1/server", &[], "").await.unwrap().refuses(404, "Nothing");
}

#[tokio::test]
async fn an_npm_style_read_of_one_key() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    client.write(&set("key", "value")).await.unwrap();
    let end = Bytes::from_static(b"key\xff");
    let range = pb::ReadRange { start: "key".into(), end, limit: 1, reverse: false };
    let output: pb::SnapshotReadOutput =
        client.read(&pb::SnapshotRead { ranges: vec![range] }).await.unwrap().message();
    assert_eq!(output.ranges[0].values.len(), 1);
}

#[tokio::test]
async fn version_1_and_2_headers() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let authorization = format!("Bearer {WRITER}");
    let authorization = ("authorization", authorization.as_str());
    for headers in [
        &[authorization, ("x-transaction-domain-id", MAIN_TEXT)][..],
        &[
            authorization,
            ("x-denokv-version", "2"),
            ("x-denokv-database-id", &MAIN_TEXT.to_uppercase()),
        ],
    ] {
        let reply = client.post(STRONG_READ, headers, all().encode_to_vec()).await.unwrap();
        assert_eq!(reply.message::<pb::SnapshotReadOutput>().ranges.len(), 1);
    }
}

#[tokio::test]
async fn bad_heads() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let writer = &*format!("Bearer {WRITER}");
    let others = &*format!("Bearer {OTHERS}");
    let (auth, version, id) = ("authorization", "x-denokv-version", "x-denokv-database-id");
    let expected = "Expected protocol version 1, 2 or 3.";
    for path in
        [STRONG_READ, STRONG_WRITE, "/kv/eventual/snapshot_read", "/kv/eventual/atomic_write"]
    {
        for (headers, status, part) in [
            (&[(version, "3"), (id, MAIN_TEXT)][..], 401, "Malformed authorization header."),
            (
                &[(auth, "Bearer"), (version, "3"), (id, MAIN_TEXT)],
                401,
                "Malformed authorization header.",
            ),
            (
                &[(auth, "Bearer unknown"), (version, "3"), (id, MAIN_TEXT)],
                401,
                "Invalid access token.",
            ),
            (&[(auth, others), (version, "3"), (id, MAIN_TEXT)], 401, "Invalid access token."),
            (&[(auth, writer), (id, MAIN_TEXT)], 400, expected),
            (&[(auth, writer), (version, "4"), (id, MAIN_TEXT)], 400, expected),
            (&[(auth, writer), (version, "three"), (id, MAIN_TEXT)], 400, expected),
            (&[(auth, writer), (version, "3")], 400, "Invalid database id."),
            (&[(auth, writer), (version, "3"), (id, "main")], 400, "Invalid database id."),
            (&[(auth, writer), (version, "3"), (id, &"0".repeat(32))], 400, "Invalid database id."),
        ] {
            client.post(path, headers, "").await.unwrap().refuses(status, part);
        }
    }
}

#[tokio::test]
async fn a_token_that_may_only_read() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    for path in [STRONG_WRITE, "/kv/eventual/atomic_write"] {
        let refused = client.data(path, READER, &set("a", "1")).await.unwrap();
        refused.refuses(403, "does not have the permission `write`");
    }
    assert_eq!(server.memory.committed(), 0);
    assert_eq!(client.data(STRONG_READ, READER, &all()).await.unwrap().status, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        for path in ["/kv/strong", "/kv/strong/", "/healthz", "/v2/snapshot_read"] {
            client
                .data(path, WRITER, &all())
                .await
                .unwrap()
                .refuses(404, "Nothing is served here.");
        }
        for method in ["GET", "PUT", "OPTIONS", "DELETE"] {
            for path in ["/", STRONG_READ] {
                let uri = format!("http://kv.test{path}");
                let request = Request::builder().method(method).uri(uri).header("host", "kv.test");
                let reply = client.send(request.body(Full::default()).unwrap()).await.unwrap();
                reply.refuses(404, "Nothing is served here.");
            }
        }
    }
}

/// The address is the same all the time, and the answers to its valid token do not wait.
#[tokio::test]
async fn unknown_paths_and_files_are_answered_slowly_once_an_address_asks_for_many() {
    let server = Server::start().await;
    for (path, answered_at_once) in [("/nowhere", 100), ("/.meridian/v1/server", 3000)] {
        let get = || {
            let request = Request::get(path).header("host", "kv.test");
            request.body(Full::<Bytes>::default()).unwrap()
        };
        let mut client = server.http1().await;
        for _ in 0..answered_at_once {
            client.send(get()).await.unwrap();
        }
        // The next one is held back for half a second.
        let early = tokio::time::timeout(Duration::from_millis(100), client.send(get())).await;
        assert!(early.is_err(), "{path} is not slowed");
        let mut client = server.http1().await;
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn bodies_that_are_not_the_message() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let authorization = format!("Bearer {WRITER}");
    let headers = [
        ("authorization", &*authorization),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    for path in [STRONG_READ, STRONG_WRITE] {
        for body in [
            &b"\xff"[..],
            b"not protobuf",
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\x0a\x05\x0a",
            b"\x08\x01",
        ] {
            let reply = client.post(path, &headers, Bytes::from_static(body)).await.unwrap();
            reply.refuses(400, "Request protobuf is invalid: ");
        }
        assert_eq!(client.post(path, &headers, "").await.unwrap().status, 200);
    }
}

/// One message for each rule of `validation`, whose own tests go to the edges.
#[tokio::test]
async fn messages_against_the_rules() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let range = |key: usize, limit| pb::ReadRange {
        start: vec![b'k'; key].into(),
        end: "l".into(),
        limit,
        reverse: false,
    };
    for (ranges, part) in [
        (vec![range(1, 1); 11], "limit of 10"),
        (vec![range(1, 500), range(1, 501)], "limit of 1000"),
        (vec![range(2050, 1)], "limit of 2049 bytes"),
        (vec![range(1, 0)], "limit of read range 0"),
    ] {
        client.read(&pb::SnapshotRead { ranges }).await.unwrap().refuses(400, part);
    }
    let check = |length: usize| pb::Check { key: "k".into(), versionstamp: vec![1; length].into() };
    let set = |value: usize| set("k", vec![0; value]).mutations.remove(0);
    let value =
        |encoding, length: usize| Some(pb::KvValue { data: vec![0; length].into(), encoding });
    let long_key = Bytes::from(vec![b'k'; 2049]);
    for (checks, mutations, part) in [
        (vec![check(0); 101], vec![], "limit of 100."),
        (vec![], vec![set(0); 1001], "limit of 1000."),
        (vec![], vec![pb::Mutation { key: long_key, ..set(0) }], "limit of 2048 bytes"),
        (vec![], vec![set(65537)], "limit of 65536 bytes"),
        (vec![], vec![set(65536); 13], "limit of 819200 bytes"),
        (vec![check(9)], vec![], "Invalid versionstamp"),
        (vec![], vec![pb::Mutation { mutation_type: 0, ..set(0) }], "Invalid mutation kind"),
        (vec![], vec![pb::Mutation { mutation_type: 7, ..set(0) }], "Invalid mutation kind"),
        (vec![], vec![pb::Mutation { value: None, ..set(0) }], "Invalid mutation kind"),
        (vec![], vec![pb::Mutation { expire_at_ms: -2, ..set(0) }], "Invalid mutation expire at"),
        (vec![], vec![pb::Mutation { value: value(4, 1), ..set(0) }], "unknown value encoding 4"),
        (vec![], vec![pb::Mutation { value: value(2, 7), ..set(0) }], "u64 of 7 bytes"),
    ] {
        let message = pb::AtomicWrite { checks, mutations, enqueues: vec![] };
        client.write(&message).await.unwrap().refuses(400, part);
    }
    let enqueue = pb::Enqueue { backoff_schedule: vec![1; 11], ..Default::default() };
    let message = pb::AtomicWrite { enqueues: vec![enqueue], ..Default::default() };
    client.write(&message).await.unwrap().refuses(400, "limit of 10.");
    assert_eq!(server.memory.committed(), 0);
}

#[tokio::test]
async fn rejected_and_unavailable_operations() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        let text = "Failed to perform 'sum' mutation on a non-U64 value in the database";
        server.memory.plan(Plan::Reject(text));
        client.write(&set("a", "1")).await.unwrap().refuses(400, text);
        server.memory.plan(Plan::Unavailable);
        client.write(&set("a", "1")).await.unwrap().refuses(503, "no leader");
        client.read(&all()).await.unwrap().refuses(503, "no leader");
    }
}
