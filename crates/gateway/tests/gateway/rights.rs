//! The rights of tokens: each route with each permission, with prefixes, and for other databases.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use meridian_gateway::{AccessToken, Databases, Grant, Options};
use meridian_proto::kv_connect as pb;
use meridian_types::{KeyPrefix, Permission, Permissions};
use prost::Message;
use serde_json::{Value, json};

use crate::support::{Client, MAIN_TEXT, OTHERS, Server, all, set};

/// Of `["a"]`, and keys below it and beside it.
const A: &[u8] = b"\x02a\x00";
const BELOW_A: &[u8] = b"\x02a\x00\x27";
const AB: &[u8] = b"\x02ab\x00";
/// Of `["a\0"]`, whose bytes begin as those of `["a"]`.
const A_ZERO: &[u8] = b"\x02a\x00\xff\x00";

struct Asked {
    name: &'static str,
    method: Method,
    path: &'static str,
    body: Vec<u8>,
}

fn post(name: &'static str, path: &'static str, body: impl Into<Vec<u8>>) -> Asked {
    Asked { name, method: Method::POST, path, body: body.into() }
}

fn queue(name: &'static str, path: &'static str, body: &Value) -> Asked {
    post(name, path, body.to_string())
}

fn read(start: &'static [u8], end: &'static [u8]) -> Asked {
    let range =
        pb::ReadRange { start: start.into(), end: end.into(), limit: 1, ..Default::default() };
    let message = pb::SnapshotRead { ranges: vec![range] };
    post("a read", "/kv/strong/snapshot_read", message.encode_to_vec())
}

fn watch(keys: &[&'static [u8]]) -> Asked {
    let keys = keys.iter().map(|key| pb::WatchKey { key: Bytes::from_static(key) }).collect();
    post("a watch", "/kv/eventual/watch", pb::Watch { keys }.encode_to_vec())
}

fn feed(path: &'static str) -> Asked {
    Asked { name: "a feed", method: Method::GET, path, body: Vec::new() }
}

fn write(name: &'static str, write: &pb::AtomicWrite) -> Asked {
    post(name, "/kv/strong/atomic_write", write.encode_to_vec())
}

fn mutation(key: impl Into<Bytes>, kind: pb::MutationType) -> pb::AtomicWrite {
    let mut write = set("", "v");
    write.mutations[0].key = key.into();
    write.mutations[0].mutation_type = kind.into();
    write
}

fn check(key: &'static [u8]) -> pb::AtomicWrite {
    let check = pb::Check { key: key.into(), versionstamp: Bytes::new() };
    pb::AtomicWrite { checks: vec![check], ..Default::default() }
}

fn bounded_sum(clamp: bool) -> pb::AtomicWrite {
    let mut write = mutation(BELOW_A, pb::MutationType::MSum);
    write.mutations[0].value = Some(pb::KvValue { data: b"\xff\x0fI\x02"[..].into(), encoding: 1 });
    write.mutations[0].sum_max = b"\xff\x0fI\x08"[..].into();
    write.mutations[0].sum_clamp = clamp;
    write
}

fn message(keys: &[&'static [u8]]) -> pb::AtomicWrite {
    let keys_if_undelivered = keys.iter().map(|key| Bytes::from_static(key)).collect();
    let payload = Bytes::from_static(b"\xff\x0f0");
    let enqueue = pb::Enqueue { payload, keys_if_undelivered, ..Default::default() };
    pb::AtomicWrite { enqueues: vec![enqueue], ..Default::default() }
}

/// A mutation of a reserved key with these texts behind the mark.
fn reserved(texts: &[&str], rest: &[u8]) -> pb::Mutation {
    let mut key = b"\x01\xfdmeridian\xfd\x00".to_vec();
    for text in texts {
        key.extend([b"\x02", text.as_bytes(), b"\x00"].concat());
    }
    key.extend(rest);
    mutation(key, pb::MutationType::MSet).mutations.remove(0)
}

fn in_reserved_keys(undelivered: Option<&[u8]>) -> pb::AtomicWrite {
    let mut mutations = vec![reserved(&["enqueue", "1", "{}"], b"")];
    mutations[0].value = Some(pb::KvValue { data: b"\xff\x0f0"[..].into(), encoding: 1 });
    mutations.extend(undelivered.map(|key| reserved(&["undelivered", "1"], key)));
    pb::AtomicWrite { mutations, ..Default::default() }
}

fn acknowledgement() -> pb::AtomicWrite {
    let mutation = reserved(&["acknowledge", "0102030405060708090a0b0c", "8"], b"");
    pb::AtomicWrite { mutations: vec![mutation], ..Default::default() }
}

/// Every route, and every part of an atomic write, with the permissions that it needs.
fn needs() -> Vec<(Asked, Vec<Permission>)> {
    use Permission::{Enqueue, Listen, Manage, Read, Watch, Write};
    use pb::MutationType::{MDelete, MMax, MSet, MSetSuffixVersionstampedKey, MSum};
    let report = json!({ "listener": "00000000000000000000000000000000", "reports": [] });
    let payload = json!({ "payload": "/w8w" });
    let undelivered = json!({ "payload": "/w8w", "keysIfUndelivered": ["AmEA"] });
    let mut all = vec![
        (post("metadata", "/db/main", r#"{"supportedVersions":[3]}"#), vec![]),
        (read(A, BELOW_A), vec![Read]),
        (Asked { path: "/kv/eventual/snapshot_read", ..read(A, BELOW_A) }, vec![Read]),
        (watch(&[A]), vec![Watch]),
        (feed("/kv/changes?follow=false"), vec![Read]),
        (write("an empty write", &pb::AtomicWrite::default()), vec![Write]),
        (write("checks alone", &check(A)), vec![Read, Write]),
        (write("a clamped sum", &bounded_sum(true)), vec![Write]),
        (write("a sum with a bound", &bounded_sum(false)), vec![Read, Write]),
        (write("a message", &message(&[])), vec![Enqueue]),
        (write("a key if undelivered", &message(&[A])), vec![Enqueue, Write]),
        (write("a reserved message", &in_reserved_keys(None)), vec![Enqueue]),
        (write("its key", &in_reserved_keys(Some(A))), vec![Enqueue, Write]),
        (write("an acknowledgement", &acknowledgement()), vec![Listen]),
        (queue("a listener", "/kv/queue/listen", &json!({})), vec![Listen]),
        (queue("a poll", "/kv/queue/poll", &json!({ "waitMs": 1 })), vec![Listen]),
        (queue("a report", "/kv/queue/report", &report), vec![Listen]),
        (queue("an enqueue", "/kv/queue/enqueue", &payload), vec![Enqueue]),
        (queue("its key", "/kv/queue/enqueue", &undelivered), vec![Enqueue, Write]),
        (queue("a list", "/kv/queue/list", &json!({})), vec![Read]),
        (queue("an order", "/kv/queue/change", &json!({})), vec![Manage]),
    ];
    for kind in [MSet, MDelete, MSum, MMax, MSetSuffixVersionstampedKey] {
        all.push((write("a mutation", &mutation(BELOW_A, kind)), vec![Write]));
    }
    all
}

/// The status of the answer, whose body may stream, and its text if it is refused.
async fn ask(server: &Server, token: &str, asked: &Asked) -> (StatusCode, String) {
    let mut client = server.http1().await;
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    let mut request = client.request(asked.path, &headers, asked.body.clone().into());
    *request.method_mut() = asked.method.clone();
    let response = client.begin(request).await.unwrap();
    let status = response.status();
    if status.is_success() {
        return (status, String::new());
    }
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    (status, String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

fn named(permissions: Permissions) -> String {
    format!("token-for-{permissions}").replace(", ", "-")
}

/// With a token for each set of permissions; the empty one, too.
async fn server_with_every_set() -> Server {
    let sets = (0..1u8 << Permission::EVERY.len()).map(|bits| {
        let chosen = Permission::EVERY.into_iter().enumerate();
        chosen.filter(|(at, _)| bits >> at & 1 == 1).map(|(_, permission)| permission).collect()
    });
    let token = |permissions: Permissions| AccessToken {
        secret: named(permissions),
        grant: Grant::new(Databases::All, permissions),
    };
    Server::with_tokens(Options::default(), true, sets.map(token).collect()).await
}

#[tokio::test]
async fn each_route_wants_its_permissions_and_no_others() {
    let server = server_with_every_set().await;
    for (asked, needed) in needs() {
        let exactly: Permissions = needed.iter().copied().collect();
        let (name, path) = (asked.name, asked.path);
        let done = ask(&server, &named(exactly), &asked).await;
        assert!(done.0.is_success(), "{name} at {path}, with {exactly}: {done:?}");
        // Each alone, none, and all but one.
        let singles = Permission::EVERY.into_iter().map(|one| [one].into_iter().collect());
        let others = Permission::EVERY.into_iter().map(|one| Permissions::ALL.without(one));
        for given in singles.chain(others).chain([Permissions::NONE]) {
            let may = exactly.iter().all(|permission| given.contains(permission));
            let (status, text) = ask(&server, &named(given), &asked).await;
            if may {
                assert!(status.is_success(), "{name} at {path}, with {given}: {status} {text}");
                continue;
            }
            assert_eq!(status, StatusCode::FORBIDDEN, "{name} at {path}, with {given}: {text}");
            let lacks = |permission: Permission| text.contains(&format!("`{permission}`"));
            // An atomic write is refused before it is read where none of its permissions is there.
            let is_named = exactly.iter().any(|one| lacks(one) && !given.contains(one))
                || text.contains("which an atomic write needs");
            assert!(is_named, "{name} at {path}, with {given}: {text}");
        }
    }
}

async fn server_with_prefixes(prefixes: &[&'static [u8]]) -> Server {
    let prefixes = prefixes.iter().map(|key| KeyPrefix::new(*key).unwrap());
    // Also with a permission that the directory gives to no such token.
    let grant = Grant::new(Databases::All, Permissions::ALL).within(prefixes);
    let token = AccessToken { secret: "of-prefixes".to_owned(), grant };
    Server::with_tokens(Options::default(), true, vec![token]).await
}

/// Whether a token for the keys of `["a"]` and of `["b"]` may do it.
fn within_prefixes() -> Vec<(Asked, bool)> {
    use pb::MutationType::{MDelete, MSet, MSetSuffixVersionstampedKey, MSum};
    let mut all = vec![
        (read(A, b"\x02a\x00\xff"), true),
        (read(b"\x02a\x00\x00", b"\x02a\x00\xff"), true),
        (read(BELOW_A, b"\x02a\x00\x27\x00"), true),
        (read(b"\x02b\x00", b"\x02b\x00"), true),
        // All, beyond an end, over two prefixes, of another key, empty ones elsewhere.
        (read(b"", b"\xff"), false),
        (read(A, b"\x02a\x00\xff\x00"), false),
        (read(b"\x02a", b"\x02a\x00\xff"), false),
        (read(A, b"\x02b\x00"), false),
        (read(AB, b"\x02ab\x00\x00"), false),
        (read(A_ZERO, b"\x02a\x00\xff\x01"), false),
        (read(b"", b""), false),
        (read(AB, A), false),
        (watch(&[A, BELOW_A]), true),
        (watch(&[A, AB]), false),
        (watch(&[A_ZERO]), false),
        // Base64 of `["a"]`, of a key below it, of `["ab"]`, `["a\0"]`, and of less than `["a"]`.
        (feed("/kv/changes?follow=false&prefix=AmEA"), true),
        (feed("/kv/changes?follow=false&prefix=AmEAJw"), true),
        (feed("/kv/changes?follow=false"), false),
        (feed("/kv/changes?follow=false&prefix=AmFiAA"), false),
        (feed("/kv/changes?follow=false&prefix=AmEA_wA"), false),
        (feed("/kv/changes?follow=false&prefix=AmE"), false),
        (write("a check", &check(A)), true),
        (write("a check", &check(AB)), false),
        (write("an empty write", &pb::AtomicWrite::default()), true),
        (write("a message", &message(&[A])), true),
        (write("a message", &message(&[A, AB])), false),
        (write("a reserved message", &in_reserved_keys(Some(A))), true),
        (write("a reserved message", &in_reserved_keys(Some(AB))), false),
        (write("an acknowledgement", &acknowledgement()), true),
        (queue("a listener", "/kv/queue/listen", &json!({})), true),
        (queue("an enqueue", "/kv/queue/enqueue", &json!({ "payload": "/w8w" })), true),
        (
            queue(
                "an enqueue",
                "/kv/queue/enqueue",
                &json!({ "payload": "/w8w", "keysIfUndelivered": ["AmEA", "AmFiAA=="] }),
            ),
            false,
        ),
        (queue("a list", "/kv/queue/list", &json!({})), false),
        (queue("an order", "/kv/queue/change", &json!({})), false),
    ];
    for kind in [MSet, MDelete, MSum, MSetSuffixVersionstampedKey] {
        for (key, may) in [(A, true), (BELOW_A, true), (AB, false), (A_ZERO, false), (b"", false)] {
            all.push((write("a mutation", &mutation(key, kind)), may));
        }
        // The second of two.
        let mut two = mutation(A, kind);
        two.mutations.extend(mutation(AB, kind).mutations);
        all.push((write("two mutations", &two), false));
    }
    all
}

#[tokio::test]
async fn token_with_prefixes_reaches_no_key_beside_them_by_any_way() {
    let server = server_with_prefixes(&[A, b"\x02b\x00"]).await;
    for (asked, may) in within_prefixes() {
        let committed = server.memory.committed();
        let (status, text) = ask(&server, "of-prefixes", &asked).await;
        let Asked { name, path, body, .. } = &asked;
        if may {
            assert!(status.is_success(), "{name} at {path}, {body:?}: {status} {text}");
            continue;
        }
        assert_eq!(status, StatusCode::FORBIDDEN, "{name} at {path}, {body:?}: {text}");
        assert!(text.starts_with("This access token is for some keys alone, and "), "{text}");
        assert_eq!(server.memory.committed(), committed, "{name} at {path}: nothing is done");
    }
}

#[tokio::test]
async fn database_of_others_is_answered_like_an_absent_one() {
    let server = Server::start().await;
    let mut client: Client = server.http1().await;
    let authorization = format!("Bearer {OTHERS}");
    let absent = MAIN_TEXT.replace("ab", "ee");
    let request = |path: &str, id: &str| {
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-denokv-version", "3"),
            ("x-denokv-database-id", id),
        ];
        let body = if path.starts_with("/kv/") { "" } else { r#"{"supportedVersions":[3]}"# };
        client.request(path, &headers, body.into())
    };
    let connect = |id: &str| request(&format!("/databases/{id}/connect"), id);
    let mut requests = vec![
        [request("/db/main", MAIN_TEXT), request("/db/none", &absent)],
        [connect(MAIN_TEXT), connect(&absent)],
    ];
    for path in ["/kv/strong/snapshot_read", "/kv/strong/atomic_write", "/kv/queue/list"] {
        requests.push([MAIN_TEXT, &absent].map(|id| request(path, id)));
    }
    for [there, not_there] in requests {
        let path = there.uri().path().to_owned();
        let (one, other) =
            (client.send(there).await.unwrap(), client.send(not_there).await.unwrap());
        assert_eq!(one.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(
            (one.status, one.content_type, one.body),
            (other.status, other.content_type, other.body),
            "{path}"
        );
    }
}

/// The address is the same. A token that were slowed as well would be answered behind the other one.
#[tokio::test]
async fn valid_token_is_not_slowed_by_unknown_ones_of_its_address() {
    let server = Server::start().await;
    let unknown = async || {
        let mut client = server.http1().await;
        client.data("/kv/strong/snapshot_read", "unknown", &all()).await.unwrap()
    };
    for _ in 0..12 {
        assert_eq!(unknown().await.status, StatusCode::UNAUTHORIZED);
    }
    let mut was_first = false;
    for _ in 0..5 {
        let mut slowed = pin!(unknown());
        // Its answer is held back from here on.
        let early = tokio::time::timeout(Duration::from_millis(100), &mut slowed).await;
        assert!(early.is_err(), "it is not slowed");
        let (mut client, read) = (server.http1().await, all());
        tokio::select! {
            biased;
            _ = &mut slowed => {}
            read = client.read(&read) => {
                assert_eq!(read.unwrap().status, StatusCode::OK);
                was_first = true;
            }
        }
    }
    assert!(was_first, "the valid token is slowed");
}
