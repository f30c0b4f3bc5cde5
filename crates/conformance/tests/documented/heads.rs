//! Answers to the head of a request, and to metadata requests.

use meridian_conformance::{
    Catalogue, OTHERS_TOKEN, PREFIX_TOKEN, READER_TOKEN, UNKNOWN_DATABASE, WRITER_TOKEN,
};
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::messages::range;
use crate::server::{Answered, READ, Server, WRITE};

const VERSIONS: &str = r#"{"supportedVersions":[1,2,3]}"#;

fn bearer(token: &str) -> Vec<(&'static str, String)> {
    vec![("authorization", format!("Bearer {token}"))]
}

pub(crate) async fn answers() -> Vec<Answered> {
    let server = Server::start().await;
    let mut answers = tokens(&server).await;
    answers.extend(paths(&server).await);
    answers.extend(metadata(&server).await);
    answers.extend(data_path(&server).await);
    answers
}

async fn tokens(server: &Server) -> Vec<Answered> {
    let mut answers = Vec::new();
    for path in ["/", "/db/main", READ, WRITE] {
        let data = server.client.headers();
        let with = |value: Option<&str>| {
            let mut headers = data.clone();
            headers.retain(|(name, _)| *name != "authorization");
            headers.extend(value.map(|value| ("authorization", value.to_owned())));
            headers
        };
        for value in [None, Some(""), Some("Bearer"), Some("Bearer "), Some("Basic eDp5")] {
            let reply = server.post(path, &with(value), VERSIONS).await;
            answers.push(Answered::new("authorization missing or malformed", &reply));
        }
        for value in ["Bearer unknown".to_owned(), format!("Bearer {OTHERS_TOKEN}")] {
            let reply = server.post(path, &with(Some(&value)), VERSIONS).await;
            let case = "token unknown, expired, or not for this database";
            answers.push(Answered::new(case, &reply));
        }
    }
    let reader = server.client.clone().with_token(READER_TOKEN);
    let mut headers = reader.headers();
    for path in [WRITE, "/kv/eventual/atomic_write"] {
        let reply = server.post(path, &headers, "").await;
        answers.push(Answered::new("a token without a permission that the request needs", &reply));
    }
    headers.retain(|(name, _)| *name == "authorization");
    assert_eq!(server.post("/", &headers, VERSIONS).await.status, 200);
    let headers = server.client.clone().with_token(PREFIX_TOKEN).headers();
    let ranges = vec![range(0, 9, 1)];
    let reply = server.post(READ, &headers, pb::SnapshotRead { ranges }.encode_to_vec()).await;
    answers.push(Answered::new("a token for some keys alone, and another key or range", &reply));
    let reply = server.post("/kv/queue/list", &headers, "{}").await;
    let case = "a token for some keys alone, and a list or an order of a queue";
    answers.push(Answered::new(case, &reply));
    answers
}

async fn paths(server: &Server) -> Vec<Answered> {
    let mut answers = Vec::new();
    let case = "an unknown path, a method other than POST";
    for path in ["/kv/strong", "/kv/strong/", "/db/", "/databases/x/connect"] {
        let reply = server.post(path, &server.client.headers(), "").await;
        answers.push(Answered::new(case, &reply));
    }
    for (method, path) in [("GET", "/"), ("PUT", READ), ("OPTIONS", WRITE)] {
        answers.push(Answered::new(case, &server.send(method, path).await));
    }
    answers
}

async fn metadata(server: &Server) -> Vec<Answered> {
    let writer = bearer(WRITER_TOKEN);
    let mut answers = Vec::new();
    let unknown = format!("/databases/{UNKNOWN_DATABASE}/connect");
    for path in ["/db/none", &unknown] {
        let reply = server.post(path, &writer, VERSIONS).await;
        answers.push(Answered::new("metadata of an unknown database", &reply));
    }
    for body in ["{}", "[]", "{", r#"{"supportedVersions":"3"}"#] {
        let reply = server.post("/", &writer, body).await;
        answers.push(Answered::new("metadata without a valid body", &reply));
    }
    for body in [r#"{"supportedVersions":[]}"#, r#"{"supportedVersions":[0,4]}"#] {
        let reply = server.post("/", &writer, body).await;
        answers.push(Answered::new("metadata without a common version", &reply));
    }
    let reply = server.post("/?consistency=weak", &writer, VERSIONS).await;
    answers.push(Answered::new("metadata with another consistency", &reply));
    // Version 1, which a client without a body speaks.
    let mut nowhere = writer.clone();
    nowhere.push(("host", "user@nowhere".to_owned()));
    let reply = server.post("/", &nowhere, "").await;
    answers.push(Answered::new("metadata of version 1 without a host", &reply));
    let padded = |length: usize| format!("{VERSIONS:length$}");
    assert_eq!(server.post("/", &writer, padded(4096)).await.status, 200);
    let reply = server.post("/", &writer, padded(4097)).await;
    answers.push(Answered::new("metadata with a large body", &reply));

    let without = Catalogue { has_default: false, ..Catalogue::default() };
    let reply = Server::knowing(without).await.post("/", &writer, VERSIONS).await;
    let case = "metadata of a database without a name, and the cluster has no default";
    answers.push(Answered::new(case, &reply));
    let starting = Server::knowing(Catalogue { is_current: false, ..Catalogue::default() }).await;
    assert_eq!(starting.post("/db/main", &writer, VERSIONS).await.status, 200);
    let case = "an unknown token or database, before the gateway has heard from its cluster";
    for (path, token) in [("/db/main", "unknown"), ("/db/none", WRITER_TOKEN), (READ, "unknown")] {
        let reply = starting.post(path, &bearer(token), VERSIONS).await;
        answers.push(Answered::new(case, &reply));
    }
    answers
}

async fn data_path(server: &Server) -> Vec<Answered> {
    let mut answers = Vec::new();
    for path in [READ, WRITE] {
        let with = |name: &'static str, value: &str| {
            let mut headers = server.client.headers();
            headers.retain(|(header, _)| *header != name);
            headers.push((name, value.to_owned()));
            headers
        };
        for version in ["0", "4", "three", ""] {
            let reply = server.post(path, &with("x-denokv-version", version), "").await;
            answers.push(Answered::new("data path with another version", &reply));
        }
        for id in ["", "main", &UNKNOWN_DATABASE.to_string()] {
            let reply = server.post(path, &with("x-denokv-database-id", id), "").await;
            let case = "data path with a database id that is malformed, or unknown";
            answers.push(Answered::new(case, &reply));
        }
        for body in [&b"\xff"[..], b"not protobuf", b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01"] {
            let reply = server.post(path, &server.client.headers(), body).await;
            answers.push(Answered::new("a body that is not the message", &reply));
        }
    }
    for (path, limit, case) in [
        (READ, 65_536, "a read with a large body"),
        (WRITE, 1_048_576, "a write with a large body"),
    ] {
        // A field that no message has, of as many bytes as there is room for.
        let padded = |length: usize| {
            let mut body = b"\x9a\x06".to_vec();
            prost::encoding::encode_varint((length - 5) as u64, &mut body);
            body.resize(length, 0);
            body
        };
        let headers = server.client.headers();
        let reply = server.post(path, &headers, padded(limit)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        answers.push(Answered::new(case, &server.post(path, &headers, padded(limit + 1)).await));
    }
    answers.push(broken_framing(server).await);
    answers
}

/// A chunk whose length is no number.
async fn broken_framing(server: &Server) -> Answered {
    let address = server.client.base().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!("POST {WRITE} HTTP/1.1\r\nhost: kv\r\ntransfer-encoding: chunked\r\n");
    for (name, value) in server.client.headers() {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\nzz\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let text = answer.split_once("\r\n\r\n").map_or("", |(_, text)| text).to_owned();
    let case = "a body whose framing is broken";
    Answered { case, status: status.unwrap_or_default(), text }
}
