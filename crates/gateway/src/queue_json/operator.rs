//! Requests and answers of operators: what is in a queue, and changes of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meridian_queue::MessageKey;
use meridian_types::{
    DatabaseId, MessageId, QueueId, QueueName, Settlement, Transaction, Verdict, Versionstamp,
};
use serde::{Deserialize, Serialize};

use super::{InvalidQueueRequest, Key, at_most, json, parse};
use crate::database::{ListFrom, ListedLetter, ListedMessage, ListedQueue, QueueList, QueuePage};

/// The answer to a request for a page, at most.
pub(crate) const MAX_PAGE_BYTES: usize = 1 << 20;
/// Messages or dead letters of one page.
const MAX_LISTED: u32 = 1000;
const DEFAULT_LISTED: u32 = 100;
/// Messages and dead letters that one request may change.
const MAX_CHANGED: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListBody {
    #[serde(default)]
    dead: bool,
    after: Option<After>,
    limit: Option<u32>,
    #[serde(default)]
    payload: bool,
    #[serde(default)]
    queue: String,
}

/// The last of the page before: a message, or the number of a dead letter.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum After {
    Message(Key),
    Number(u64),
}

pub(crate) fn list(database: DatabaseId, body: &[u8]) -> Result<QueueList, InvalidQueueRequest> {
    let ListBody { queue, dead, after, limit, payload: whole } = parse(body)?;
    let queue = QueueId { database, name: queue.parse()? };
    let limit = limit.unwrap_or(DEFAULT_LISTED);
    at_most("limit", limit.into(), MAX_LISTED.into())?;
    if limit == 0 {
        return Err(InvalidQueueRequest::Field("limit"));
    }
    let from = match (dead, after) {
        (false, None) => ListFrom::Messages { after: None },
        (false, Some(After::Message(key))) => ListFrom::Messages { after: Some(key.parse()?) },
        (true, None) => ListFrom::DeadLetters { first: 0 },
        (true, Some(After::Number(number))) => {
            let first = number.checked_add(1).ok_or(InvalidQueueRequest::Field("after"))?;
            ListFrom::DeadLetters { first }
        }
        (false, Some(After::Number(_))) | (true, Some(After::Message(_))) => {
            return Err(InvalidQueueRequest::Field("after"));
        }
    };
    Ok(QueueList { queue, from, limit, whole })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageItem {
    #[serde(flatten)]
    key: Key,
    /// The next one.
    attempt: u32,
    enqueued: u64,
    /// Of the payload.
    bytes: u32,
    /// How many there are.
    keys: u32,
    leased: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_if_undelivered: Option<Vec<String>>,
}

impl MessageItem {
    fn new(message: &ListedMessage) -> Self {
        let ListedMessage { key, failed, enqueued_ms, payload_bytes, keys, leased, whole } =
            message;
        let encoded = |keys: &Vec<_>| keys.iter().map(|key| STANDARD.encode(key)).collect();
        Self {
            key: Key::new(key),
            attempt: failed.saturating_add(1),
            enqueued: *enqueued_ms,
            bytes: *payload_bytes,
            keys: *keys,
            leased: *leased,
            payload: whole.as_ref().map(|(payload, _)| STANDARD.encode(payload)),
            keys_if_undelivered: whole.as_ref().map(|(_, keys)| encoded(keys)),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LetterItem {
    number: u64,
    /// Empty of the unnamed queue.
    #[serde(skip_serializing_if = "str::is_empty")]
    queue: String,
    id: String,
    attempts: u32,
    enqueued: u64,
    died: u64,
    bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl LetterItem {
    fn new(letter: &ListedLetter) -> Self {
        let ListedLetter { number, queue, id, failed, .. } = letter;
        let ListedLetter { enqueued_ms, died_ms, payload_bytes, payload, .. } = letter;
        Self {
            number: *number,
            queue: queue.to_string(),
            id: id.to_string(),
            attempts: *failed,
            enqueued: *enqueued_ms,
            died: *died_ms,
            bytes: *payload_bytes,
            payload: payload.as_ref().map(|payload| STANDARD.encode(payload)),
        }
    }
}

#[derive(Serialize)]
struct Totals {
    undelivered: u64,
    leased: u64,
    dead: u64,
}

#[derive(Serialize)]
struct QueueItem {
    queue: String,
    undelivered: u64,
    leased: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PageBody {
    messages: Vec<MessageItem>,
    dead_letters: Vec<LetterItem>,
    totals: Totals,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queues: Vec<QueueItem>,
    paused: bool,
    /// The last of the page, behind which the next one begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<After>,
}

pub(crate) fn page(page: &QueuePage) -> Vec<u8> {
    let QueuePage { messages, dead_letters, totals, queues, is_paused } = page;
    let queue = |queue: &ListedQueue| QueueItem {
        queue: queue.name.to_string(),
        undelivered: queue.undelivered,
        leased: queue.leased,
    };
    let message = messages.last().map(|message| After::Message(Key::new(&message.key)));
    let number = dead_letters.last().map(|letter| After::Number(letter.number));
    json(&PageBody {
        messages: messages.iter().map(MessageItem::new).collect(),
        dead_letters: dead_letters.iter().map(LetterItem::new).collect(),
        totals: Totals {
            undelivered: totals.undelivered,
            leased: totals.leased,
            dead: totals.dead,
        },
        queues: queues.iter().map(queue).collect(),
        paused: *is_paused,
        after: message.or(number),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeBody {
    #[serde(default)]
    cancel: Vec<Key>,
    #[serde(default)]
    run_now: Vec<Key>,
    #[serde(default)]
    redrive: Vec<Letter>,
    #[serde(default)]
    discard: Vec<Letter>,
    /// Of the messages: dead letters are those of all queues.
    #[serde(default)]
    queue: String,
}

/// Numbers are given anew where a failover has taken them back: the id tells the letters apart.
#[derive(Deserialize)]
struct Letter {
    number: u64,
    id: String,
}

impl Letter {
    fn id(&self) -> Result<MessageId, InvalidQueueRequest> {
        self.id.parse().map_err(|_| InvalidQueueRequest::Field("id"))
    }
}

pub(crate) fn change(body: &[u8]) -> Result<Transaction, InvalidQueueRequest> {
    let ChangeBody { queue, cancel, run_now, redrive, discard } = parse(body)?;
    let queue: QueueName = queue.parse()?;
    let of_each = [
        ("cancel", cancel.len()),
        ("runNow", run_now.len()),
        ("redrive", redrive.len()),
        ("discard", discard.len()),
    ];
    let mut all = 0;
    for (field, count) in of_each {
        all += count;
        at_most(field, all as u64, MAX_CHANGED as u64)?;
    }
    let message = |key: &Key, verdict| {
        let MessageKey { due_ms, id } = key.parse()?;
        Ok(Settlement { queue: queue.clone(), id, due_ms, verdict })
    };
    let letter = |letter: &Letter, verdict| {
        let queue = QueueName::UNNAMED;
        letter.id().map(|id| Settlement { queue, id, due_ms: 0, verdict })
    };
    // It is due with the batch that it is moved by.
    let now = Verdict::Rescheduled { due_ms: 0 };
    let redriven = |of: &Letter| letter(of, Verdict::Redriven { number: of.number });
    let discarded = |of: &Letter| letter(of, Verdict::Discarded { number: of.number });
    let settlements = (cancel.iter().map(|key| message(key, Verdict::Cancelled)))
        .chain(run_now.iter().map(|key| message(key, now)))
        .chain(redrive.iter().map(redriven))
        .chain(discard.iter().map(discarded));
    let settlements = settlements.collect::<Result<_, _>>()?;
    Ok(Transaction { settlements, ..Transaction::default() })
}

pub(crate) fn changed(versionstamp: Versionstamp) -> Vec<u8> {
    #[derive(Serialize)]
    struct Changed {
        versionstamp: String,
    }
    json(&Changed { versionstamp: versionstamp.to_hex() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_types::limits;

    use super::*;
    use crate::database::ListedTotals;

    const ID: &str = "0102030405060708090a0b0c";
    const DATABASE: DatabaseId = DatabaseId([7; 16]);

    fn key() -> MessageKey {
        MessageKey { due_ms: 7, id: ID.parse().unwrap() }
    }

    fn limit(field: &'static str, limit: u64) -> InvalidQueueRequest {
        InvalidQueueRequest::Limit { field, limit }
    }

    fn from(body: &str) -> Result<ListFrom, InvalidQueueRequest> {
        list(DATABASE, body.as_bytes()).map(|list| list.from)
    }

    fn message() -> ListedMessage {
        ListedMessage {
            key: key(),
            failed: 1,
            enqueued_ms: 5,
            payload_bytes: 3,
            keys: 1,
            leased: true,
            whole: Some((Bytes::from_static(b"\xff\x0fo"), vec![Bytes::from_static(b"\x02a\0")])),
        }
    }

    fn letter() -> ListedLetter {
        ListedLetter {
            number: 4,
            queue: QueueName::default(),
            id: key().id,
            failed: 6,
            enqueued_ms: 5,
            died_ms: 9,
            payload_bytes: 3,
            payload: Some(Bytes::from_static(b"\xff\x0fo")),
        }
    }

    #[test]
    fn pages_of_queues_are_golden() {
        let totals = ListedTotals { undelivered: 8, leased: 2, dead: 1 };
        let text = |messages, dead_letters| {
            let (queues, is_paused) = (Vec::new(), true);
            let page = page(&QueuePage { messages, dead_letters, totals, queues, is_paused });
            String::from_utf8(page).unwrap()
        };
        let totals = r#""totals":{"undelivered":8,"leased":2,"dead":1},"paused":true"#;
        assert_eq!(
            text(vec![], vec![]),
            format!("{{\"messages\":[],\"deadLetters\":[],{totals}}}")
        );
        let listed = format!(
            "{{\"id\":\"{ID}\",\"due\":7,\"attempt\":2,\"enqueued\":5,\"bytes\":3,\"keys\":1,\
             \"leased\":true"
        );
        let after = format!("\"after\":{{\"id\":\"{ID}\",\"due\":7}}");
        assert_eq!(
            text(vec![ListedMessage { whole: None, ..message() }, message()], vec![]),
            format!(
                "{{\"messages\":[{listed}}},{listed},\"payload\":\"/w9v\",\
                 \"keysIfUndelivered\":[\"AmEA\"]}}],\"deadLetters\":[],{totals},{after}}}"
            )
        );
        let listed = format!(
            "{{\"number\":4,\"id\":\"{ID}\",\"attempts\":6,\"enqueued\":5,\"died\":9,\"bytes\":3"
        );
        assert_eq!(
            text(vec![], vec![ListedLetter { payload: None, ..letter() }, letter()]),
            format!(
                "{{\"messages\":[],\"deadLetters\":[{listed}}},{listed},\"payload\":\"/w9v\"}}],\
                 {totals},\"after\":4}}"
            )
        );
        let queue: QueueName = "emails".parse().unwrap();
        let letters = vec![ListedLetter { queue: queue.clone(), payload: None, ..letter() }];
        let queues = vec![ListedQueue { name: queue, undelivered: 5, leased: 3 }];
        let named = page(&QueuePage { dead_letters: letters, queues, ..QueuePage::default() });
        assert_eq!(
            String::from_utf8(named).unwrap(),
            format!(
                "{{\"messages\":[],\"deadLetters\":[{}}}],\
                 \"totals\":{{\"undelivered\":0,\"leased\":0,\"dead\":0}},\
                 \"queues\":[{{\"queue\":\"emails\",\"undelivered\":5,\"leased\":3}}],\
                 \"paused\":false,\"after\":4}}",
                listed.replacen("4,", "4,\"queue\":\"emails\",", 1)
            )
        );
        let changed = changed(Versionstamp([1; 10]));
        assert_eq!(changed, b"{\"versionstamp\":\"01010101010101010101\"}");
    }

    /// Of the pages that nodes answer with: [`crate::Database`] bounds what is in them.
    #[test]
    fn largest_page_takes_no_more_than_was_counted_for_it() {
        let keys = vec![vec![7; limits::MAX_WRITE_KEY_BYTES].into(); limits::MAX_UNDELIVERED_KEYS];
        let largest = MessageKey {
            due_ms: u64::MAX,
            id: MessageId { enqueued: Versionstamp([255; 10]), index: u16::MAX },
        };
        let most = u32::MAX;
        let with = |bytes: usize, keys: Vec<Bytes>| ListedMessage {
            key: largest,
            failed: most,
            enqueued_ms: u64::MAX,
            payload_bytes: most,
            keys: most,
            leased: false,
            whole: Some((vec![7; bytes].into(), keys)),
        };
        // As many as there may be, with all the bytes that a page has, and one beyond these.
        let mut messages = vec![with(262, vec![]); MAX_LISTED as usize - 1];
        messages.push(with(limits::MAX_VALUE_BYTES, keys));
        // Of a name each character of which takes two.
        let name: QueueName = "\"".repeat(limits::MAX_QUEUE_NAME_BYTES).parse().unwrap();
        let of = |name| ListedQueue { name, undelivered: u64::MAX, leased: u64::MAX };
        let queues = vec![of(name); limits::MAX_QUEUE_NAMES];
        let size = page(&QueuePage { messages, queues, ..QueuePage::default() }).len();
        assert!((MAX_PAGE_BYTES / 2..MAX_PAGE_BYTES).contains(&size), "{size} bytes");
    }

    #[test]
    fn page_begins_behind_the_one_before() {
        let after = format!("{{\"after\":{{\"id\":\"{ID}\",\"due\":7}}}}");
        assert_eq!(from(""), Ok(ListFrom::Messages { after: None }));
        assert_eq!(from(&after), Ok(ListFrom::Messages { after: Some(key()) }));
        assert_eq!(from("{\"dead\":true}"), Ok(ListFrom::DeadLetters { first: 0 }));
        let behind = from("{\"dead\":true,\"after\":4}");
        assert_eq!(behind, Ok(ListFrom::DeadLetters { first: 5 }));
        let wrong = Err(InvalidQueueRequest::Field("after"));
        assert_eq!(from("{\"after\":4}"), wrong);
        assert_eq!(from(&after.replacen('{', "{\"dead\":true,", 1)), wrong);
        assert_eq!(from(&format!("{{\"dead\":true,\"after\":{}}}", u64::MAX)), wrong);
        let id = after.replace(ID, "x");
        assert_eq!(from(&id), Err(InvalidQueueRequest::Field("id")));
        assert!(matches!(from("{\"after\":true}"), Err(InvalidQueueRequest::Json { .. })));
    }

    #[test]
    fn pages_are_bounded() {
        let of = |number| list(DATABASE, format!("{{\"limit\":{number}}}").as_bytes());
        assert_eq!(of(1000).unwrap().limit, 1000);
        assert_eq!(of(1001).err(), Some(limit("limit", 1000)));
        assert_eq!(of(0).err(), Some(InvalidQueueRequest::Field("limit")));
        let QueueList { queue, limit, whole, .. } = list(DATABASE, b"{}").unwrap();
        assert_eq!((queue, limit, whole), (DATABASE.into(), DEFAULT_LISTED, false));
        assert!(list(DATABASE, b"{\"payload\":true}").unwrap().whole);
        let named = list(DATABASE, b"{\"queue\":\"emails\"}").unwrap().queue;
        assert_eq!((named.database, named.name.as_str()), (DATABASE, "emails"));
    }

    #[test]
    fn each_change_is_a_settlement() {
        let message = format!("[{{\"id\":\"{ID}\",\"due\":7}}]");
        let letter = format!("[{{\"id\":\"{ID}\",\"number\":4}}]");
        let body = format!(
            "{{\"discard\":{letter},\"redrive\":{letter},\"runNow\":{message},\"cancel\":{message}}}"
        );
        let id = key().id;
        let of = |due_ms, verdict| {
            let queue = QueueName::default();
            Settlement { queue, id, due_ms, verdict }
        };
        let mut expected = [
            of(7, Verdict::Cancelled),
            of(7, Verdict::Rescheduled { due_ms: 0 }),
            of(0, Verdict::Redriven { number: 4 }),
            of(0, Verdict::Discarded { number: 4 }),
        ];
        let Transaction { settlements, checks, mutations, enqueues } =
            change(body.as_bytes()).unwrap();
        assert_eq!(settlements, expected);
        assert!(checks.is_empty() && mutations.is_empty() && enqueues.is_empty());
        let named = body.replacen('{', "{\"queue\":\"emails\",", 1);
        // Letters know their queues.
        expected[..2].iter_mut().for_each(|of| of.queue = "emails".parse().unwrap());
        assert_eq!(change(named.as_bytes()).unwrap().settlements, expected);
        for field in ["cancel", "runNow", "redrive", "discard"] {
            let body = format!("{{\"{field}\":[{{\"id\":\"x\",\"due\":7,\"number\":1}}]}}");
            assert_eq!(change(body.as_bytes()), Err(InvalidQueueRequest::Field("id")), "{field}");
        }
    }

    #[test]
    fn changes_of_one_request_are_bounded() {
        let of = |fields: &[(&'static str, usize)]| {
            let item = format!("{{\"id\":\"{ID}\",\"due\":7,\"number\":1}}");
            let fields = fields.iter().map(|(field, count)| {
                format!("\"{field}\":[{}]", vec![item.as_str(); *count].join(","))
            });
            let body = format!("{{{}}}", fields.collect::<Vec<_>>().join(","));
            assert!(body.len() < super::super::MAX_BODY_BYTES, "it can be sent");
            change(body.as_bytes()).map(|transaction| transaction.settlements.len())
        };
        for field in ["cancel", "runNow", "redrive", "discard"] {
            assert_eq!(of(&[(field, 1000)]), Ok(1000));
            assert_eq!(of(&[(field, 1001)]), Err(limit(field, 1000)));
        }
        assert_eq!(of(&[("cancel", 500), ("redrive", 500)]), Ok(1000));
        let refused = of(&[("cancel", 500), ("redrive", 501)]);
        assert_eq!(refused, Err(limit("redrive", 1000)), "all together");
    }
}
