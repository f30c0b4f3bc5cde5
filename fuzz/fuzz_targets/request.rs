//! Heads, bodies and queries of requests to the gateway: without the token nothing is asked for; what
//! reaches the database is what the request says, within the limits; every other one has an answer
//! that is no failure of the gateway; and a request that is written anew from what was understood is
//! understood as the same.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::told::{Asked, TOKEN, Told, from_a_stranger, get, post};
use meridian_fuzz::{times, within, written};
use meridian_gateway::{ListFrom, Listen, QueueList, Reports};
use meridian_proto::kv_connect as pb;
use meridian_queue::{MessageKey, Report};
use meridian_types::{Transaction, Verdict};
use meridian_values::json::base64url;
use prost::Message;
use serde_json::{Value, json};

/// Memory of a request whatever its body is: a write of a thousand mutations, the lines of an answer.
const REQUEST_BYTES: usize = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let parsers =
        [read, watch, write, enqueue, listen, poll, report, changes, list, change, stranger];
    let body = Bytes::copy_from_slice(body);
    parsers[usize::from(*first) % parsers.len()](&body);
});

/// Asks, and looks at what holds for every answer.
fn ask(path: &str, body: &Bytes) -> Told {
    let told = within(REQUEST_BYTES + times(64, body.len()), || post(path, body.clone()));
    let status = told.status;
    assert!(status == StatusCode::OK || status.is_client_error(), "{status}");
    assert!(status == StatusCode::OK || told.asked.is_empty(), "it was refused, and asked for");
    told
}

fn read(body: &Bytes) {
    let told = ask("/kv/strong/snapshot_read", body);
    let [Asked::Read(read)] = &told.asked[..] else { return };
    let said = pb::SnapshotRead::decode(body.clone()).expect("it was read").ranges;
    assert_eq!(read.ranges.len(), said.len());
    for (range, said) in read.ranges.iter().zip(said) {
        let end = said.end.max(said.start.clone());
        let limit = i32::try_from(range.limit).expect("a small number");
        let asked = (&range.start, &range.end, limit, range.reverse);
        assert_eq!(asked, (&said.start, &end, said.limit, said.reverse));
    }
    let answer = pb::SnapshotReadOutput::decode(told.body).expect("an answer");
    assert!(answer.read_is_strongly_consistent && answer.ranges.len() == read.ranges.len());
}

fn watch(body: &Bytes) {
    let told = ask("/kv/strong/watch", body);
    if told.status != StatusCode::OK {
        return;
    }
    let said = pb::Watch::decode(body.clone()).expect("it was read").keys;
    let said: Vec<_> = said.into_iter().map(|key| key.key).collect();
    if let [Asked::Watch(watch)] = &told.asked[..] {
        assert_eq!(watch.keys, said);
    }
    // Messages with their lengths before them; a ping has none.
    let (mut rest, mut news) = (told.body, 0);
    while !rest.is_empty() {
        let length = rest.split_to(4);
        let length = u32::from_le_bytes(length.as_ref().try_into().expect("four bytes"));
        let message = rest.split_to(length as usize);
        if !message.is_empty() {
            let output = pb::WatchOutput::decode(message).expect("a message");
            assert_eq!(output.keys.len(), said.len());
            news += 1;
        }
    }
    assert_eq!(news, 1);
}

fn write(body: &Bytes) {
    let told = ask("/kv/strong/atomic_write", body);
    let Some(write) = told.write() else { return };
    let message = pb::AtomicWrite::decode(body.clone()).expect("it was read");
    written::says(&message, write);
    let again = ask("/kv/eventual/atomic_write", body);
    let again = again.write().expect("it was taken before");
    is_the_same(&write.transaction, &again.transaction);
    // It is known again by an id of its client, and by nothing else.
    assert_eq!(write.request_id == again.request_id, write.may_come_again);
}

/// But for the time that has passed.
fn is_the_same(transaction: &Transaction, again: &Transaction) {
    let Transaction { checks, mutations, enqueues, settlements } = transaction;
    assert_eq!((checks, mutations), (&again.checks, &again.mutations));
    assert_eq!((enqueues.len(), settlements), (again.enqueues.len(), &again.settlements));
    for (one, other) in enqueues.iter().zip(&again.enqueues) {
        assert!(one.due_ms.abs_diff(other.due_ms) < 60_000);
        let said = |it: &meridian_types::Enqueue| {
            let queue = it.queue.clone();
            (queue, it.payload.clone(), it.keys_if_undelivered.clone(), it.backoff_ms.clone())
        };
        assert_eq!(said(one), said(other));
    }
}

/// The answer, which is JSON; `None`: the request was refused.
fn ask_json(path: &str, body: &Bytes) -> Option<(Told, Value)> {
    let told = ask(path, body);
    (told.status == StatusCode::OK).then(|| {
        let answer = serde_json::from_slice(&told.body).expect("an answer in JSON");
        (told, answer)
    })
}

fn bytes_of(value: &Value) -> Bytes {
    value.to_string().into()
}

fn enqueue(body: &Bytes) {
    let path = "/kv/queue/enqueue";
    let Some((told, answer)) = ask_json(path, body) else { return };
    assert!(answer["id"].is_string() && answer["versionstamp"].is_string());
    let write = told.write().expect("it was taken");
    let [message] = &write.transaction.enqueues[..] else { panic!("one message") };
    assert!(write.transaction.checks.is_empty() && write.transaction.mutations.is_empty());
    assert!(message.payload.starts_with(b"\xff"));
    let said: Value = serde_json::from_slice(body).expect("it was read");
    let keys = message.keys_if_undelivered.iter().map(|key| STANDARD.encode(key));
    let anew = json!({
        "payload": STANDARD.encode(&message.payload),
        "delayMs": said["delayMs"],
        "backoffMs": message.backoff_ms,
        "keysIfUndelivered": keys.collect::<Vec<_>>(),
        "queue": message.queue.as_str(),
        "id": said["id"],
    });
    let (again, _) = ask_json(path, &bytes_of(&anew)).expect("it was taken before");
    let again = again.write().expect("it was taken");
    is_the_same(&write.transaction, &again.transaction);
    assert_eq!(write.may_come_again, said["id"].is_string());
    assert_eq!(write.request_id == again.request_id, write.may_come_again);
}

fn key(key: &MessageKey) -> Value {
    json!({ "id": key.id.to_string(), "due": key.due_ms })
}

fn uuid(bytes: [u8; 16]) -> String {
    meridian_types::DatabaseId(bytes).to_string()
}

fn asked_to_listen(told: &Told) -> &Listen {
    let [Asked::Listen(listen)] = &told.asked[..] else { panic!("it was not asked for") };
    listen
}

fn listen(body: &Bytes) {
    let path = "/kv/queue/listen";
    let told = ask(path, body);
    if told.status != StatusCode::OK {
        return;
    }
    let listen = asked_to_listen(&told);
    assert!(listen.lease.is_none());
    let held: Vec<_> = listen.held.iter().map(key).collect();
    let anew = json!({
        "listener": uuid(listen.listener.0),
        "credits": listen.credits,
        "held": held,
        "queue": listen.queue.name.as_str(),
    });
    let again = ask(path, &bytes_of(&anew));
    let again = asked_to_listen(&again);
    let said = |it: &Listen| (it.queue.clone(), it.listener, it.credits, it.held.clone());
    assert_eq!(said(listen), said(again));
    assert_ne!(listen.incarnation, again.incarnation);
    // Whole lines: an opening, a ping, each message and each release, an end.
    assert!(told.body.ends_with(b"\n"));
    let lines = told.body.strip_suffix(b"\n").unwrap_or_default().split(|byte| *byte == b'\n');
    let lines = lines.map(|line| serde_json::from_slice(line).expect("a line of JSON"));
    let lines: Vec<Value> = lines.collect();
    assert_eq!(lines.len(), 2 + 2 * held.len() + 1);
    let of = |kind: &str| {
        let lines = lines.iter().filter(|line| line["type"] == kind);
        lines.map(|line| json!({ "id": line["id"], "due": line["due"] })).collect::<Vec<_>>()
    };
    assert_eq!((of("message"), of("release")), (held.clone(), held));
}

fn poll(body: &Bytes) {
    let path = "/kv/queue/poll";
    // The queue has nothing, and the database says so at once.
    let told = post(path, body.clone());
    if told.status == StatusCode::BAD_REQUEST {
        assert!(told.asked.is_empty());
        return;
    }
    let listen = asked_to_listen(&told);
    let lease = listen.lease.expect("it is leased for a time");
    let queue = listen.queue.name.as_str();
    let anew =
        json!({ "max": listen.credits, "leaseMs": lease.as_millis() as u64, "queue": queue });
    let again = post(path, bytes_of(&anew));
    let again = asked_to_listen(&again);
    assert_eq!((listen.credits, listen.lease), (again.credits, again.lease));
    assert_eq!(listen.queue, again.queue);
    assert!(listen.held.is_empty() && listen.listener != again.listener);
}

fn asked_to_report(told: &Told) -> &Reports {
    let [Asked::Report(reports)] = &told.asked[..] else { panic!("it was not asked for") };
    reports
}

fn report(body: &Bytes) {
    let path = "/kv/queue/report";
    let Some((told, answer)) = ask_json(path, body) else { return };
    let reports = asked_to_report(&told);
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), reports.reports.len());
    let item = |(of, report): &(MessageKey, Report)| {
        let mut item = key(of);
        let (verdict, field, time) = match report {
            Report::Done => ("ack", "delayMs", None),
            Report::Failed { retry_after } => ("nack", "delayMs", *retry_after),
            Report::Extended { by } => ("extend", "extendMs", Some(*by)),
        };
        item["verdict"] = verdict.into();
        item[field] = time.map(|time| time.as_millis() as u64).into();
        item
    };
    let items: Vec<_> = reports.reports.iter().map(item).collect();
    let queue = reports.queue.name.as_str();
    let anew = json!({ "listener": uuid(reports.listener.0), "reports": items, "queue": queue });
    let (again, _) = ask_json(path, &bytes_of(&anew)).expect("it was taken before");
    let again = asked_to_report(&again);
    assert_eq!((reports.listener, &reports.reports), (again.listener, &again.reports));
    assert_eq!(reports.queue, again.queue);
}

fn asked_to_list(told: &Told) -> &QueueList {
    let [Asked::List(list)] = &told.asked[..] else { panic!("it was not asked for") };
    list
}

fn list(body: &Bytes) {
    let path = "/kv/queue/list";
    let Some((told, page)) = ask_json(path, body) else { return };
    let list = asked_to_list(&told);
    let queue = list.queue.name.as_str();
    let mut anew = json!({ "limit": list.limit, "payload": list.whole, "queue": queue });
    let listed = match list.from {
        ListFrom::Messages { after } => {
            anew["after"] = after.as_ref().map(key).into();
            &page["messages"]
        }
        ListFrom::DeadLetters { first } => {
            anew["dead"] = true.into();
            anew["after"] = first.checked_sub(1).into();
            &page["deadLetters"]
        }
    };
    let [listed] = &listed.as_array().expect("a list")[..] else { panic!("one is listed") };
    assert_eq!(listed["payload"].is_string(), list.whole);
    assert!(!page["after"].is_null(), "the next page has a place to begin");
    let (again, _) = ask_json(path, &bytes_of(&anew)).expect("it was taken before");
    let again = asked_to_list(&again);
    assert_eq!((list.from, list.limit, list.whole), (again.from, again.limit, again.whole));
    assert_eq!(list.queue, again.queue);
}

/// Orders of operators for messages and dead letters.
fn change(body: &Bytes) {
    let path = "/kv/queue/change";
    let Some((told, _)) = ask_json(path, body) else { return };
    let write = told.write().expect("it was taken");
    let Transaction { checks, mutations, enqueues, settlements } = &write.transaction;
    assert!(checks.is_empty() && mutations.is_empty() && enqueues.is_empty());
    let mut anew = json!({ "cancel": [], "runNow": [], "redrive": [], "discard": [] });
    for settlement in settlements {
        let id = settlement.id;
        let message = || key(&MessageKey { due_ms: settlement.due_ms, id });
        let letter = |number: u64| json!({ "number": number, "id": id.to_string() });
        let (field, order) = match settlement.verdict {
            Verdict::Cancelled => ("cancel", message()),
            Verdict::Rescheduled { due_ms: 0 } => ("runNow", message()),
            Verdict::Redriven { number } => ("redrive", letter(number)),
            Verdict::Discarded { number } => ("discard", letter(number)),
            other => panic!("no operator orders {other:?}"),
        };
        anew[field].as_array_mut().expect("a list").push(order);
        if !settlement.queue.is_default() {
            anew["queue"] = settlement.queue.as_str().into();
        }
    }
    let (again, _) = ask_json(path, &bytes_of(&anew)).expect("it was taken before");
    let again = again.write().expect("it was taken");
    is_the_same(&write.transaction, &again.transaction);
    assert!(!write.may_come_again && write.request_id != again.request_id);
}

/// Method and path on the first line, and a header on each behind it. Without the token nothing is
/// asked for, and the answer is a refusal.
fn stranger(body: &Bytes) {
    let mut lines = body.split(|byte| *byte == b'\n');
    let Ok(first) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let (method, path) = first.split_once(' ').unwrap_or(("POST", first));
    let mut headers = Vec::new();
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        let Ok(name) = std::str::from_utf8(name) else { return };
        headers.push((name, value.get(1..).unwrap_or_default()));
    }
    let bound = REQUEST_BYTES + times(64, body.len());
    let Some(told) = within(bound, || from_a_stranger(method, path, &headers)) else { return };
    let mut values = headers.iter().map(|(_, value)| *value);
    let has_token = |value: &[u8]| value.windows(TOKEN.len()).any(|it| it == TOKEN.as_bytes());
    if !values.any(has_token) {
        assert!(told.asked.is_empty() && told.status.is_client_error(), "{}", told.status);
    }
}

/// The query of a change feed, and up to two headers behind it, each on a line.
fn changes(body: &Bytes) {
    let mut lines = body.split(|byte| *byte == b'\n');
    let Ok(query) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let headers: Vec<_> = ["last-event-id", "accept"].into_iter().zip(lines).collect();
    let path = format!("/kv/changes?{query}");
    let bound = REQUEST_BYTES + times(64, body.len());
    let Some(told) = within(bound, || get(&path, &headers)) else { return };
    if told.status != StatusCode::OK {
        assert!(told.status.is_client_error(), "{}", told.status);
        return;
    }
    // The first question may be where the database stands; the last is where the feed is.
    let asked = |told: &Told| {
        let asked = told.asked.iter().map(|asked| match asked {
            Asked::Changes(wanted) => (wanted.prefix.clone(), wanted.after),
            _ => panic!("something else is asked for"),
        });
        asked.collect::<Vec<_>>()
    };
    let told_of = asked(&told);
    let (prefix, after) = told_of.iter().find(|(_, after)| after.is_some()).unwrap_or(&told_of[0]);
    let after = after.map_or_else(String::new, |after| after.to_hex());
    let anew = format!("/kv/changes?prefix={}&after={after}&follow=true", base64url(prefix));
    let again = get(&anew, &[]).expect("a path");
    assert_eq!(again.status, StatusCode::OK);
    assert!(
        asked(&again).contains(&(prefix.clone(), told_of.iter().find_map(|(_, after)| *after)))
    );
    let text = std::str::from_utf8(&told.body).expect("text");
    for line in text.lines() {
        let json = line.strip_prefix("data: ").or(line.starts_with('{').then_some(line));
        if let Some(json) = json {
            let read = serde_json::from_str::<meridian_kv_client::ChangeLine>(json);
            read.unwrap_or_else(|error| panic!("{json}: {error}"));
        }
    }
}
