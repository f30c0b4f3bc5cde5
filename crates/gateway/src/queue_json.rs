//! Requests and answers about queues: JSON, with times in milliseconds and bytes in base64.

mod operator;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use meridian_proto::kv_connect as pb;
use meridian_queue::{Answer, Incarnation, ListenerId, MAX_CREDITS, MessageKey, Report};
use meridian_types::{
    InvalidQueueName, MessageId, QueueName, Transaction, V8Format, Versionstamp, limits,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::database::{Heard, QueuedMessage};
use crate::validation::{self, Invalid};

pub(crate) use operator::{MAX_PAGE_BYTES, change, changed, list, page};

/// The largest body of a request about queues: a thousand reports, or a message of the largest size
/// with all its keys.
pub(crate) const MAX_BODY_BYTES: usize = 256 * 1024;
/// Messages that a poll may ask for, and reports of one request.
const MAX_MESSAGES: u32 = MAX_CREDITS;
const DEFAULT_CREDITS: u32 = 100;
const MAX_WAIT_MS: u64 = 60_000;
const DEFAULT_WAIT_MS: u64 = 20_000;
/// The leader is asked and answers within this.
const MIN_WAIT_MS: u64 = 1000;
const MAX_LEASE_MS: u64 = 60 * 60 * 1000;
const DEFAULT_LEASE_MS: u64 = 30_000;
const MAX_ID_BYTES: usize = 256;
/// V8's serializer begins with this.
const V8_HEADER: u8 = 0xff;
/// A line of a stream without its payload, at most.
const LINE_BYTES: usize = 256;

/// Why a request about queues is refused. The text is for the client, and says nothing that the
/// client sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidQueueRequest {
    /// `wants`: what would have been right there.
    #[error(
        "The request body is not the JSON that is expected here (line {line}, column {column}{wants})."
    )]
    Json { line: usize, column: usize, wants: String },
    #[error("The field `payload` is not what V8's serializer makes of a value.")]
    NotV8,
    #[error("The field `{0}` is missing or out of its range.")]
    Field(&'static str),
    #[error("The field `{field}` is at most {limit}.")]
    Limit { field: &'static str, limit: u64 },
    #[error(transparent)]
    QueueName(#[from] InvalidQueueName),
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<u64, InvalidQueueRequest> {
    if value > limit {
        return Err(InvalidQueueRequest::Limit { field, limit });
    }
    Ok(value)
}

/// An empty body is an empty object.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, InvalidQueueRequest> {
    let body = if body.is_empty() { b"{}" } else { body };
    // Fields are taken by their names alone, and not by their places in an array.
    if body.trim_ascii_start().first() != Some(&b'{') {
        let wants = ": expected an object".to_owned();
        return Err(InvalidQueueRequest::Json { line: 1, column: 1, wants });
    }
    serde_json::from_slice(body).map_err(|error| {
        let (line, column, wants) = (error.line(), error.column(), wanted(&error.to_string()));
        InvalidQueueRequest::Json { line, column, wants }
    })
}

/// The part of a text of serde's that is not the client's: the fields and types that are known here.
fn wanted(text: &str) -> String {
    let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
    let is_known = text.starts_with("missing field") || text.starts_with("duplicate field");
    let wanted = text.rsplit_once(", expected ").map(|(_, wanted)| format!(": expected {wanted}"));
    wanted.unwrap_or_else(|| if is_known { format!(": {text}") } else { String::new() })
}

#[derive(Debug, Serialize, Deserialize)]
struct Key {
    id: String,
    due: u64,
}

impl Key {
    fn new(key: &MessageKey) -> Self {
        Self { id: key.id.to_string(), due: key.due_ms }
    }

    fn parse(&self) -> Result<MessageKey, InvalidQueueRequest> {
        let id = self.id.parse().map_err(|_| InvalidQueueRequest::Field("id"))?;
        Ok(MessageKey { due_ms: self.due, id })
    }
}

fn listener(text: &str) -> Result<ListenerId, InvalidQueueRequest> {
    let id = Uuid::parse_str(text).map_err(|_| InvalidQueueRequest::Field("listener"))?;
    Ok(ListenerId(id.into_bytes()))
}

pub(crate) fn new_listener() -> ListenerId {
    ListenerId(Uuid::new_v4().into_bytes())
}

/// For a client that comes now. It begins with the time.
pub(crate) fn new_incarnation() -> Incarnation {
    Incarnation(Uuid::now_v7().as_u128())
}

fn listener_text(listener: ListenerId) -> String {
    Uuid::from_bytes(listener.0).to_string()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListenBody {
    listener: Option<String>,
    credits: Option<u32>,
    #[serde(default)]
    held: Vec<Key>,
    /// Empty, as in all other requests: the unnamed queue.
    #[serde(default)]
    queue: String,
}

/// A listener that streams.
pub(crate) struct ListenRequest {
    pub(crate) queue: QueueName,
    pub(crate) listener: ListenerId,
    pub(crate) credits: u32,
    pub(crate) held: Vec<MessageKey>,
}

pub(crate) fn listen(body: &[u8]) -> Result<ListenRequest, InvalidQueueRequest> {
    let ListenBody { queue, listener: named, credits, held } = parse(body)?;
    let credits = credits.unwrap_or(DEFAULT_CREDITS);
    at_most("credits", credits.into(), MAX_CREDITS.into())?;
    if credits == 0 {
        return Err(InvalidQueueRequest::Field("credits"));
    }
    at_most("held", held.len() as u64, MAX_CREDITS.into())?;
    Ok(ListenRequest {
        queue: queue.parse()?,
        listener: named.as_deref().map_or_else(|| Ok(new_listener()), listener)?,
        credits,
        held: held.iter().map(Key::parse).collect::<Result<_, _>>()?,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PollBody {
    max: Option<u32>,
    wait_ms: Option<u64>,
    lease_ms: Option<u64>,
    #[serde(default)]
    queue: String,
}

/// A listener that polls.
pub(crate) struct PollRequest {
    pub(crate) queue: QueueName,
    pub(crate) max: u32,
    pub(crate) wait: Duration,
    pub(crate) lease: Duration,
}

pub(crate) fn poll(body: &[u8]) -> Result<PollRequest, InvalidQueueRequest> {
    let PollBody { queue, max, wait_ms, lease_ms } = parse(body)?;
    let max = max.unwrap_or(1);
    at_most("max", max.into(), MAX_MESSAGES.into())?;
    let lease_ms = at_most("leaseMs", lease_ms.unwrap_or(DEFAULT_LEASE_MS), MAX_LEASE_MS)?;
    if max == 0 {
        return Err(InvalidQueueRequest::Field("max"));
    }
    if lease_ms == 0 {
        return Err(InvalidQueueRequest::Field("leaseMs"));
    }
    let wait_ms = at_most("waitMs", wait_ms.unwrap_or(DEFAULT_WAIT_MS), MAX_WAIT_MS)?;
    let wait_ms = wait_ms.max(MIN_WAIT_MS);
    let (wait, lease) = (Duration::from_millis(wait_ms), Duration::from_millis(lease_ms));
    Ok(PollRequest { queue: queue.parse()?, max, wait, lease })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ReportBody {
    listener: String,
    reports: Vec<ReportItem>,
    #[serde(default)]
    queue: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ReportItem {
    id: String,
    due: u64,
    verdict: VerdictText,
    delay_ms: Option<u64>,
    extend_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum VerdictText {
    Ack,
    Nack,
    Extend,
}

/// The reports of a listener.
pub(crate) struct ReportRequest {
    pub(crate) queue: QueueName,
    pub(crate) listener: ListenerId,
    pub(crate) reports: Vec<(MessageKey, Report)>,
}

pub(crate) fn reports(body: &[u8]) -> Result<ReportRequest, InvalidQueueRequest> {
    let ReportBody { queue, listener: named, reports } = parse(body)?;
    at_most("reports", reports.len() as u64, MAX_MESSAGES.into())?;
    let report = |item: ReportItem| {
        let key = Key { id: item.id, due: item.due }.parse()?;
        match (&item.verdict, item.delay_ms, item.extend_ms) {
            (VerdictText::Ack | VerdictText::Extend, Some(_), _) => {
                return Err(InvalidQueueRequest::Field("delayMs"));
            }
            (VerdictText::Ack | VerdictText::Nack, _, Some(_)) => {
                return Err(InvalidQueueRequest::Field("extendMs"));
            }
            _ => {}
        }
        let report = match item.verdict {
            VerdictText::Ack => Report::Done,
            VerdictText::Nack => {
                let delay_ms = item.delay_ms;
                at_most("delayMs", delay_ms.unwrap_or(0), limits::MAX_ENQUEUE_DELAY_MS)?;
                Report::Failed { retry_after: delay_ms.map(Duration::from_millis) }
            }
            VerdictText::Extend => {
                let by_ms = item.extend_ms.unwrap_or(DEFAULT_LEASE_MS);
                at_most("extendMs", by_ms, MAX_LEASE_MS)?;
                Report::Extended { by: Duration::from_millis(by_ms) }
            }
        };
        Ok((key, report))
    };
    let reports = reports.into_iter().map(report).collect::<Result<_, _>>()?;
    Ok(ReportRequest { queue: queue.parse()?, listener: listener(&named)?, reports })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnqueueBody {
    payload: String,
    delay_ms: Option<u64>,
    backoff_ms: Option<Vec<u32>>,
    #[serde(default)]
    keys_if_undelivered: Vec<String>,
    id: Option<String>,
    #[serde(default)]
    queue: String,
}

/// A message to be enqueued, and what tells it from others when it comes again.
pub(crate) struct EnqueueRequest {
    pub(crate) transaction: Transaction,
    /// The same for each try of one message.
    pub(crate) id: Option<[u8; 32]>,
}

pub(crate) fn enqueue(
    body: &[u8],
    format: V8Format,
    now_ms: u64,
) -> Result<Result<EnqueueRequest, Invalid>, InvalidQueueRequest> {
    let EnqueueBody { queue, payload, delay_ms, backoff_ms, keys_if_undelivered, id } =
        parse(body)?;
    let queue: QueueName = queue.parse()?;
    let bytes = |field, text: &str| {
        STANDARD.decode(text).map(Bytes::from).map_err(|_| InvalidQueueRequest::Field(field))
    };
    let keys = keys_if_undelivered.iter().map(|key| bytes("keysIfUndelivered", key));
    let delay_ms = at_most("delayMs", delay_ms.unwrap_or(0), limits::MAX_ENQUEUE_DELAY_MS)?;
    at_most("id", id.as_ref().map_or(0, String::len) as u64, MAX_ID_BYTES as u64)?;
    // Without a delay by no clock.
    let deadline_ms = if delay_ms == 0 { 0 } else { now_ms.saturating_add(delay_ms) };
    let never_again = backoff_ms.as_ref().is_some_and(Vec::is_empty);
    let payload = bytes("payload", &payload)?;
    if payload.first() != Some(&V8_HEADER) {
        return Err(InvalidQueueRequest::NotV8);
    }
    if id.as_deref() == Some("") {
        return Err(InvalidQueueRequest::Field("id"));
    }
    let enqueue = pb::Enqueue {
        payload,
        deadline_ms: i64::try_from(deadline_ms).unwrap_or(i64::MAX),
        keys_if_undelivered: keys.collect::<Result<_, _>>()?,
        backoff_schedule: backoff_ms.unwrap_or_default(),
    };
    let message = pb::AtomicWrite { enqueues: vec![enqueue], ..pb::AtomicWrite::default() };
    // Ids of a named queue are its own. A name has no control character.
    let id = id.map(|id| match queue.as_str() {
        "" => Sha256::digest(id.as_bytes()).into(),
        name => Sha256::digest([name.as_bytes(), b"\0", id.as_bytes()].concat()).into(),
    });
    Ok(validation::write(message, format, now_ms).map(|(mut transaction, _)| {
        if let Some(enqueue) = transaction.enqueues.first_mut() {
            enqueue.queue = queue;
            // On KV Connect's wire an empty schedule is none at all, and stands for the default.
            if never_again {
                enqueue.backoff_ms = Some(Vec::new());
            }
        }
        EnqueueRequest { transaction, id }
    }))
}

pub(crate) fn enqueued(versionstamp: Versionstamp) -> Vec<u8> {
    #[derive(Serialize)]
    struct Enqueued {
        id: String,
        versionstamp: String,
    }
    let id = MessageId { enqueued: versionstamp, index: 0 }.to_string();
    json(&Enqueued { id, versionstamp: versionstamp.to_hex() })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageBody {
    #[serde(flatten)]
    key: Key,
    attempt: u32,
    payload: String,
    /// Of the payload.
    encoding: &'static str,
    enqueued: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
}

impl MessageBody {
    fn new(message: &QueuedMessage) -> Self {
        Self {
            key: Key::new(&message.key),
            attempt: message.attempt,
            payload: STANDARD.encode(&message.payload),
            encoding: "v8",
            enqueued: message.enqueued_ms,
            lease_ms: message
                .lease
                .map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

pub(crate) fn polled(listener: ListenerId, messages: &[QueuedMessage]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Polled {
        listener: String,
        messages: Vec<MessageBody>,
    }
    let messages = messages.iter().map(MessageBody::new).collect();
    json(&Polled { listener: listener_text(listener), messages })
}

pub(crate) fn answers(answers: &[Answer]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answers {
        results: Vec<&'static str>,
    }
    let text = |answer: &Answer| match answer {
        Answer::Done => "done",
        Answer::Late => "late",
    };
    json(&Answers { results: answers.iter().map(text).collect() })
}

/// One line of a stream.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Line<'a> {
    Open { listener: String },
    Message(MessageBody),
    Release(Key),
    Ping,
    End { reason: &'a str },
}

fn line(line: &Line<'_>) -> Vec<u8> {
    let mut text = json(line);
    text.push(b'\n');
    text
}

pub(crate) fn open_line(listener: ListenerId) -> Bytes {
    line(&Line::Open { listener: listener_text(listener) }).into()
}

/// The lines of messages and releases; of an end none.
pub(crate) fn lines(heard: &Heard) -> Vec<u8> {
    let mut lines = Vec::with_capacity(max_line_bytes(heard));
    match heard {
        Heard::Messages(messages) => {
            for message in messages {
                lines.extend(line(&Line::Message(MessageBody::new(message))));
            }
        }
        Heard::Released(keys) => {
            for key in keys {
                lines.extend(line(&Line::Release(Key::new(key))));
            }
        }
        Heard::Ended(_) => {}
    }
    lines
}

/// The bytes that [`lines`] takes of what is heard at once, at most: a leader sends messages of up to
/// 128 KiB, and one more, and releases of up to a thousand.
pub(crate) const MAX_LINES_BYTES: u64 = 320 << 10;

/// The bytes that [`lines`] takes, at most.
pub(crate) fn max_line_bytes(heard: &Heard) -> usize {
    match heard {
        Heard::Messages(messages) => {
            let payload = |message: &QueuedMessage| message.payload.len().div_ceil(3) * 4;
            messages.iter().map(|message| LINE_BYTES + payload(message)).sum()
        }
        Heard::Released(keys) => LINE_BYTES * keys.len(),
        Heard::Ended(_) => 0,
    }
}

pub(crate) fn ping_line() -> Bytes {
    line(&Line::Ping).into()
}

pub(crate) fn end_line(reason: &str) -> Bytes {
    line(&Line::End { reason }).into()
}

/// Strings, numbers and lists of them: nothing that JSON does not have.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
