//! Requests in progress, without sockets: how much of the log's room and of memory they hold, and
//! their lines when their clients leave.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use meridian_gateway::{AccessToken, Databases, Gateway, Grant, Heard};
use meridian_types::Permissions;

use super::*;
use crate::support::{Memory, TwoDatabases};

/// A gateway without sockets, and its database. `tokens`: beside the usual ones, for all.
fn gateway(
    options: Options,
    tokens: impl IntoIterator<Item = String>,
) -> (Gateway<Memory, TwoDatabases>, Arc<Memory>) {
    let token =
        |secret| AccessToken { secret, grant: Grant::new(Databases::All, Permissions::ALL) };
    let tokens = tokens.into_iter().map(token).collect();
    let (memory, catalogue) = (Arc::new(Memory::new()), TwoDatabases::with_tokens(true, tokens));
    (Gateway::new(Arc::clone(&memory), Arc::new(catalogue), options), memory)
}

fn request<B>(token: &str, path: &str, body: B) -> hyper::Request<B> {
    let headers = [("x-denokv-version", "3"), ("x-denokv-database-id", MAIN_TEXT)];
    let authorization = format!("Bearer {token}");
    let request = hyper::Request::post(path).header("authorization", authorization);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body).unwrap()
}

/// More than there are places for lines; of ten tokens, since none has all listeners.
#[tokio::test]
async fn polls_that_wait_leave_the_places_of_their_lines_to_others_and_take_them_again() {
    const POLLS: usize = 8300;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let settings = AuditSettings { file: file.clone(), when_full: WhenFull::Refuse, ..plain() };
    let audit = Some(Audit::open(settings, "amsterdam-a").unwrap());
    let token = |number: usize| format!("a-token-that-polls-{}", number % 10);
    let options = Options { audit, ..Options::default() };
    let (gateway, memory) = gateway(options, (0..10).map(token));
    let mut polls = std::collections::VecDeque::new();
    for number in 0..POLLS {
        let body = Full::new(Bytes::from_static(b"{}"));
        let mut poll = Box::pin(gateway.handle(request(&token(number), "/kv/queue/poll", body)));
        while memory.queues.listeners() == number {
            let answer = futures::poll!(poll.as_mut()).map(|answer| answer.map(|it| it.status()));
            assert!(answer.is_pending(), "{number} polls wait: {answer:?}");
            tokio::task::yield_now().await;
        }
        polls.push_back(poll);
    }
    let body = Full::new(all().encode_to_vec().into());
    let read = gateway.handle(request(READER, "/kv/strong/snapshot_read", body)).await;
    assert_eq!(read.unwrap().status(), 200);
    memory.queues.deliver().await;
    assert_eq!(polls.pop_front().unwrap().await.unwrap().status(), 200);
    drop(polls);
    drop(gateway);
    until(|| file_lines(&file) == 1 + POLLS + 1).await;
    let lines = lines(&std::fs::read_to_string(&file).unwrap());
    one_has(&lines, &json!({ "operation": "poll", "outcome": "ok", "messages": 1 }));
    one_has(&lines, &json!({ "operation": "snapshot_read", "outcome": "ok" }));
}

/// Neither does it keep the room of others for as long as its client likes.
#[tokio::test]
async fn line_of_a_refused_request_waits_for_none_of_its_body() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let settings = AuditSettings { file: file.clone(), ..plain() };
    let audit = Some(Audit::open(settings, "amsterdam-a").unwrap());
    let (gateway, _) = gateway(Options { audit, ..Options::default() }, []);
    let never = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    // Its token may not write.
    let mut refused =
        std::pin::pin!(gateway.handle(request(READER, "/kv/strong/atomic_write", never)));
    assert!(futures::poll!(refused.as_mut()).is_pending(), "its body is read to the end");
    until(|| file_lines(&file) == 2).await;
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A hundred bytes whose text are 220 KiB: arrays that have the next one twice.
#[tokio::test]
async fn writes_in_progress_hold_no_more_of_their_values_than_their_lines_have() {
    const LEVELS: u8 = 12;
    let mut data = b"\xff\x0f".to_vec();
    data.extend(b"A\x02".repeat(LEVELS.into()));
    data.extend(b"A\x00$\x00\x00");
    data.extend((0..LEVELS).rev().flat_map(|level| [b'^', level + 1, b'$', 0, 2]));
    let mut write = set("k", "");
    let value = write.mutations[0].value.as_mut().unwrap();
    (value.data, value.encoding) = (data.into(), pb::ValueEncoding::VeV8.into());
    let write = Bytes::from(write.encode_to_vec());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let settings = AuditSettings { file: file.clone(), keys: true, values: true, ..plain() };
    let audit = Some(Audit::open(settings, "amsterdam-a").unwrap());
    let (gateway, memory) = gateway(Options { audit, ..Options::default() }, []);
    memory.plan(Plan::Hold);
    let before = resident_bytes();
    let mut writing: Vec<_> = (0..40)
        .map(|_| {
            let body = Full::new(write.clone());
            Box::pin(gateway.handle(request(WRITER, "/kv/strong/atomic_write", body)))
        })
        .collect();
    for write in &mut writing {
        assert!(futures::poll!(write.as_mut()).is_pending());
    }
    let held = resident_bytes().saturating_sub(before);
    assert_eq!(memory.writes_begun.load(std::sync::atomic::Ordering::SeqCst), 40);
    assert!(held < 64 << 20, "{} MiB", held >> 20);
    memory.plan(Plan::Work);
    for write in writing {
        memory.release.notify_one();
        assert_eq!(write.await.unwrap().status(), 200);
    }
    until(|| file_lines(&file) == 41).await;
    let lines = lines(&std::fs::read_to_string(&file).unwrap());
    let whole = |line: &&Value| line["parts"][0]["value"].to_string().len() > 200 << 10;
    assert_eq!(lines.iter().filter(whole).count(), 40);
}

/// The gateway of a test, whose log has none of the requests that may be left out.
fn unsampled(folder: &TempDir) -> (Gateway<Memory, TwoDatabases>, Arc<Memory>) {
    let (file, sample) = (folder.path().join("audit.jsonl"), Sample::new(0.0).unwrap());
    let audit =
        Some(Audit::open(AuditSettings { file, sample, ..plain() }, "amsterdam-a").unwrap());
    gateway(Options { audit, ..Options::default() }, [])
}

#[tokio::test]
async fn unsampled_write_whose_client_has_left_has_a_line_if_its_outcome_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, memory) = unsampled(&folder);
    for plan in [Plan::Hold, Plan::HoldUnknown] {
        memory.plan(plan);
        for (path, body) in [
            ("/kv/strong/atomic_write", Bytes::from(set("k", "v").encode_to_vec())),
            ("/kv/queue/enqueue", Bytes::from_static(br#"{"payload":"/w8w"}"#)),
        ] {
            let mut writing = Box::pin(gateway.handle(request(WRITER, path, Full::new(body))));
            assert!(futures::poll!(writing.as_mut()).is_pending());
            drop(writing);
            memory.release.notify_one();
        }
    }
    let file = folder.path().join("audit.jsonl");
    until(|| file_lines(&file) == 3).await;
    drop(gateway);
    let lines = lines(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for (operation, count) in [("atomic_write", "mutations"), ("enqueue", "enqueues")] {
        let unknown = json!({
            "operation": operation, "outcome": "unknown", "answered": false, count: 1,
            "token": fingerprint(WRITER),
        });
        one_has(&lines, &unknown);
    }
}

#[tokio::test]
async fn late_line_has_the_time_of_the_head_of_its_request() {
    let now = || Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let folder = tempfile::tempdir().unwrap();
    let (gateway, memory) = unsampled(&folder);
    let body = Full::new(Bytes::from_static(b"{}"));
    let mut poll = Box::pin(gateway.handle(request(WRITER, "/kv/queue/poll", body)));
    assert!(futures::poll!(poll.as_mut()).is_pending());
    let asked = now();
    until(|| now() > asked).await;
    memory.queues.tell(Heard::Ended("no leader".to_owned())).await;
    assert_eq!(poll.await.unwrap().status(), 503);
    let file = folder.path().join("audit.jsonl");
    until(|| file_lines(&file) == 2).await;
    let lines = lines(&std::fs::read_to_string(&file).unwrap());
    let refused = one_has(&lines, &json!({ "operation": "poll", "reason": "unavailable" }));
    assert!(refused["time"].as_str().unwrap() <= asked.as_str(), "{refused} after {asked}");
}
