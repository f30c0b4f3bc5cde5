//! Reserved keys: an atomic write as the modules for Deno and Node make it, with an id and with
//! messages among its mutations. The gateway turns these back into what the program has asked for,
//! and nothing else; what the modules do not send is refused or stored nowhere.
#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use hyper::StatusCode;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::told::post;
use meridian_fuzz::{times, within, written};
use meridian_proto::kv_connect as pb;
use meridian_types::{Enqueue, QueueName, limits};
use meridian_values::{Key, KeyPart, v8};
use prost::Message;
use serde_json::json;

/// A write of a thousand mutations holds as much, however short they are.
const REQUEST_BYTES: usize = 4 << 20;
/// Bytes of an id at most.
const MAX_ID_BYTES: usize = 128;

/// A step of a program, as a module passes it on.
#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Set(&'a [u8], &'a [u8]),
    Enqueue(Sent<'a>),
    /// Every commit gives the write an id.
    Commit(&'a str),
    /// Bytes behind the mark, as no module writes them.
    Other(&'a [u8], u8),
}

#[derive(Debug, Arbitrary)]
struct Sent<'a> {
    payload: &'a [u8],
    delay_ms: Option<u32>,
    backoff_ms: Option<Vec<u32>>,
    keys_if_undelivered: Vec<&'a [u8]>,
    queue: Option<&'a str>,
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let message = message(&steps);
    let body = Bytes::from(message.encode_to_vec());
    let bound = REQUEST_BYTES + times(64, body.len());
    let told = within(bound, || post("/kv/strong/atomic_write", body.clone()));
    let has_other = steps.iter().any(is_other);
    if told.status == StatusCode::OK {
        let write = told.write().expect("it was taken");
        written::says(&message, write);
        if !has_other {
            assert!(is_allowed(&steps, &message), "it was to be refused");
            sends(&steps, &write.transaction.enqueues);
        }
        let again = post("/kv/eventual/atomic_write", body);
        let again = again.write().expect("it was taken before").request_id;
        assert_eq!(write.request_id == again, write.may_come_again);
    } else {
        assert!(told.status.is_client_error() && told.asked.is_empty(), "{}", told.status);
        assert!(has_other || !is_allowed(&steps, &message), "{:?}", told.body);
    }
});

/// Whether no module takes this step.
fn is_other(step: &Step<'_>) -> bool {
    match step {
        Step::Set(key, _) => key.starts_with(written::MARK),
        Step::Other(..) => true,
        Step::Commit(_) | Step::Enqueue(_) => false,
    }
}

fn message(steps: &[Step<'_>]) -> pb::AtomicWrite {
    let mut mutations = Vec::new();
    let mut messages = 0;
    for step in steps {
        match step {
            Step::Set(key, value) => mutations.push(mutation(key.to_vec(), value, 1)),
            Step::Commit(id) => {
                mutations.push(mutation(reserved(&["request", id]), b"\xff\x0f0", 1))
            }
            Step::Other(rest, kind) => {
                mutations.push(mutation([written::MARK, rest].concat(), b"", *kind));
            }
            Step::Enqueue(sent) => {
                let number = messages.to_string();
                messages += 1;
                let key = reserved(&["enqueue", &number, &schedule(sent)]);
                mutations.push(mutation(key, sent.payload, 1));
                for key in &sent.keys_if_undelivered {
                    let begin = reserved(&["undelivered", &number]);
                    mutations.push(mutation([&begin, *key].concat(), b"\xff\x0f0", 1));
                }
            }
        }
    }
    pb::AtomicWrite { mutations, ..pb::AtomicWrite::default() }
}

fn mutation(key: Vec<u8>, value: &[u8], kind: u8) -> pb::Mutation {
    let value = pb::KvValue { data: Bytes::copy_from_slice(value), encoding: 1 };
    pb::Mutation {
        key: key.into(),
        value: Some(value),
        mutation_type: kind.into(),
        ..pb::Mutation::default()
    }
}

/// The key of these texts behind the mark.
fn reserved(texts: &[&str]) -> Vec<u8> {
    let mark = KeyPart::Bytes(b"\xfdmeridian\xfd".to_vec());
    let texts = texts.iter().map(|text| KeyPart::Text((*text).to_owned()));
    let key = Key([mark].into_iter().chain(texts).collect()).encode().expect("it has no bigint");
    assert!(key.starts_with(written::MARK));
    key
}

fn schedule(sent: &Sent<'_>) -> String {
    let mut schedule = json!({ "delayMs": sent.delay_ms.unwrap_or(0) });
    if let Some(backoff) = &sent.backoff_ms {
        schedule["backoffMs"] = json!(backoff);
    }
    if let Some(queue) = sent.queue {
        schedule["queue"] = json!(queue);
    }
    schedule.to_string()
}

/// Whether the gateway has to take the write, which has no other steps than modules take.
fn is_allowed(steps: &[Step<'_>], message: &pb::AtomicWrite) -> bool {
    let sizes = message.mutations.iter().map(|mutation| {
        let value = mutation.value.as_ref().map_or(0, |value| value.data.len());
        (mutation.key.len(), value)
    });
    let total: usize = sizes.clone().map(|(key, value)| key + value).sum();
    message.mutations.len() <= limits::MAX_MUTATIONS
        && total <= limits::MAX_TRANSACTION_BYTES
        && sizes.clone().all(|(key, _)| key <= limits::MAX_WRITE_KEY_BYTES)
        && sizes.clone().all(|(_, value)| value <= limits::MAX_VALUE_BYTES)
        && steps.iter().all(|step| match step {
            Step::Commit(id) => (1..=MAX_ID_BYTES).contains(&id.len()) && !id.contains('\0'),
            Step::Enqueue(sent) => is_sent(sent),
            Step::Set(..) | Step::Other(..) => true,
        })
}

fn is_sent(sent: &Sent<'_>) -> bool {
    let intervals = sent.backoff_ms.as_deref().unwrap_or_default();
    let most = limits::MAX_ENQUEUE_DELAY_MS + limits::ENQUEUE_CLOCK_SLACK_MS;
    u64::from(sent.delay_ms.unwrap_or(0)) <= most
        && sent.queue.unwrap_or_default().parse::<QueueName>().is_ok()
        && intervals.len() <= limits::MAX_BACKOFF_INTERVALS
        && intervals.iter().all(|interval| *interval <= limits::MAX_BACKOFF_INTERVAL_MS)
        && sent.keys_if_undelivered.len() <= limits::MAX_UNDELIVERED_KEYS
        && sent.keys_if_undelivered.iter().all(|key| {
            // The bytes behind a text that ends are no part of it, unless they escape its end.
            !key.is_empty() && !key.starts_with(b"\xff") && !key.starts_with(written::MARK)
        })
}

/// Each message as the program has sent it, in its order.
fn sends(steps: &[Step<'_>], enqueues: &[Enqueue]) {
    let sent = steps.iter().filter_map(|step| match step {
        Step::Enqueue(sent) => Some(sent),
        _ => None,
    });
    let sent: Vec<_> = sent.collect();
    assert_eq!(sent.len(), enqueues.len());
    for (sent, enqueue) in sent.into_iter().zip(enqueues) {
        assert_eq!(enqueue.payload, v8::portable(Bytes::copy_from_slice(sent.payload)));
        assert_eq!(enqueue.keys_if_undelivered, sent.keys_if_undelivered);
        assert_eq!(enqueue.backoff_ms, sent.backoff_ms);
        assert_eq!(enqueue.queue.as_str(), sent.queue.unwrap_or_default());
        assert_eq!(enqueue.due_ms == 0, sent.delay_ms.unwrap_or(0) == 0);
    }
}
