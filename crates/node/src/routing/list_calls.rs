//! Pages of queues, on the wire.

use bytes::Bytes;
use meridian_gateway::{
    ListFrom, ListedLetter, ListedMessage, ListedQueue, ListedTotals, QueueList, QueuePage,
};
use meridian_proto::queue::{self as wire, list_request::Range, list_response};
use meridian_proto::{node_id, shard as shard_wire};
use meridian_queue::MAX_CREDITS;
use meridian_types::MessageId;

use crate::network::call_failure::Failed;
use crate::routing::queue_calls::{key, key_to_wire, queue, queue_to_wire};

/// Messages or dead letters that may be asked for.
const MAX_LISTED: u32 = MAX_CREDITS;

pub(crate) fn list_to_wire(group: shard_wire::ShardEpoch, list: &QueueList) -> wire::ListRequest {
    let range = match &list.from {
        ListFrom::Messages { after: None } => Range::AllMessages(wire::All {}),
        ListFrom::Messages { after: Some(key) } => Range::Behind(key_to_wire(key)),
        ListFrom::DeadLetters { first } => Range::DeadFrom(*first),
    };
    let (database, named) = queue_to_wire(&list.queue);
    wire::ListRequest {
        group: Some(group),
        database,
        named,
        range: Some(range),
        limit: list.limit,
        whole: list.whole,
    }
}

/// The field that is missing or out of its range, else.
pub(crate) fn list(request: wire::ListRequest) -> Result<QueueList, &'static str> {
    let queue = queue(&request.database, request.named)?;
    let from = match request.range.ok_or("range")? {
        Range::AllMessages(_) => ListFrom::Messages { after: None },
        Range::Behind(behind) => ListFrom::Messages { after: Some(key(&behind).ok_or("behind")?) },
        Range::DeadFrom(first) => ListFrom::DeadLetters { first },
    };
    if request.limit > MAX_LISTED {
        return Err("limit");
    }
    let (limit, whole) = (request.limit, request.whole);
    Ok(QueueList { queue, from, limit, whole })
}

pub(crate) fn page_to_wire(page: QueuePage) -> wire::Page {
    let QueuePage { messages, dead_letters, totals, queues, is_paused } = page;
    let named = |queue: ListedQueue| wire::NamedCount {
        name: queue.name.to_string(),
        undelivered: queue.undelivered,
        leased: queue.leased,
    };
    let ListedTotals { undelivered, leased, dead } = totals;
    wire::Page {
        messages: messages.into_iter().map(message_to_wire).collect(),
        dead_letters: dead_letters.into_iter().map(letter_to_wire).collect(),
        undelivered,
        leased,
        dead,
        paused: is_paused,
        queues: queues.into_iter().map(named).collect(),
    }
}

fn message_to_wire(message: ListedMessage) -> wire::ListedMessage {
    let ListedMessage { key, failed, enqueued_ms, payload_bytes, keys, leased, whole } = message;
    let whole =
        whole.map(|(payload, keys_if_undelivered)| wire::Whole { payload, keys_if_undelivered });
    let key = Some(key_to_wire(&key));
    wire::ListedMessage { key, failed, enqueued_ms, payload_bytes, keys, leased, whole }
}

fn letter_to_wire(letter: ListedLetter) -> wire::ListedLetter {
    let ListedLetter { number, queue, id, failed, .. } = letter;
    let ListedLetter { enqueued_ms, died_ms, payload_bytes, payload, .. } = letter;
    let (queue, id) = (queue.to_string(), Bytes::copy_from_slice(&id.to_bytes()));
    wire::ListedLetter { number, id, failed, enqueued_ms, died_ms, payload_bytes, payload, queue }
}

/// The answer of another process, if it is well formed.
pub(crate) fn page(response: wire::ListResponse) -> Result<QueuePage, Failed> {
    match response.result {
        Some(list_response::Result::Page(page)) => {
            page_from_wire(page).ok_or_else(|| Failed::Unknown("a malformed page".to_owned()))
        }
        Some(list_response::Result::NotLeader(hint)) => {
            Err(Failed::NotLeader(node_id(hint.leader)))
        }
        Some(list_response::Result::Unavailable(reason)) => Err(Failed::NotDone(reason)),
        None => Err(Failed::Unknown("an empty answer".to_owned())),
    }
}

fn page_from_wire(page: wire::Page) -> Option<QueuePage> {
    let wire::Page { messages, dead_letters, undelivered, leased, dead, paused, queues } = page;
    let named = |wire::NamedCount { name, undelivered, leased }| {
        Some(ListedQueue { name: name.parse().ok()?, undelivered, leased })
    };
    Some(QueuePage {
        messages: messages.into_iter().map(message_from_wire).collect::<Option<_>>()?,
        dead_letters: dead_letters.into_iter().map(letter_from_wire).collect::<Option<_>>()?,
        totals: ListedTotals { undelivered, leased, dead },
        queues: queues.into_iter().map(named).collect::<Option<_>>()?,
        is_paused: paused,
    })
}

fn message_from_wire(message: wire::ListedMessage) -> Option<ListedMessage> {
    let wire::ListedMessage { key: row, failed, enqueued_ms, payload_bytes, keys, leased, whole } =
        message;
    let key = key(row.as_ref()?)?;
    let whole = whole.map(|whole| (whole.payload, whole.keys_if_undelivered));
    Some(ListedMessage { key, failed, enqueued_ms, payload_bytes, keys, leased, whole })
}

fn letter_from_wire(letter: wire::ListedLetter) -> Option<ListedLetter> {
    Some(ListedLetter {
        number: letter.number,
        queue: letter.queue.parse().ok()?,
        id: MessageId::from_slice(&letter.id)?,
        failed: letter.failed,
        enqueued_ms: letter.enqueued_ms,
        died_ms: letter.died_ms,
        payload_bytes: letter.payload_bytes,
        payload: letter.payload,
    })
}

#[cfg(test)]
mod tests {
    use meridian_queue::MessageKey;
    use meridian_types::{DatabaseId, QueueId, QueueName, Versionstamp};

    use super::*;

    const ID: MessageId = MessageId { enqueued: Versionstamp([5; 10]), index: 6 };
    const KEY: MessageKey = MessageKey { due_ms: 7, id: ID };

    fn wire_of(from: ListFrom) -> wire::ListRequest {
        wire_of_queue(from, DatabaseId([1; 16]).into())
    }

    fn wire_of_queue(from: ListFrom, queue: QueueId) -> wire::ListRequest {
        let list = QueueList { queue, from, limit: 1000, whole: true };
        list_to_wire(shard_wire::ShardEpoch::default(), &list)
    }

    #[test]
    fn requests_for_pages_arrive_as_they_were_sent() {
        for from in [
            ListFrom::Messages { after: None },
            ListFrom::Messages { after: Some(KEY) },
            ListFrom::DeadLetters { first: 0 },
            ListFrom::DeadLetters { first: 9 },
        ] {
            let (database, name) = (DatabaseId([1; 16]), "emails".parse().unwrap());
            for sent in [database.into(), QueueId { database, name }] {
                let arrived = list(wire_of_queue(from, sent.clone())).unwrap();
                let QueueList { queue, from: arrived, limit, whole } = arrived;
                assert_eq!((queue, arrived), (sent, from));
                assert_eq!((limit, whole), (1000, true));
            }
        }
    }

    #[test]
    fn what_is_wrong_in_a_request_for_a_page_is_named() {
        let wire = || wire_of(ListFrom::Messages { after: None });
        let wrong = |request| list(request).unwrap_err();
        assert_eq!(wrong(wire::ListRequest { limit: 1001, ..wire() }), "limit");
        assert_eq!(wrong(wire::ListRequest { range: None, ..wire() }), "range");
        assert_eq!(wrong(wire::ListRequest { database: Bytes::new(), ..wire() }), "database");
        let behind = Some(Range::Behind(wire::MessageKey::default()));
        assert_eq!(wrong(wire::ListRequest { range: behind, ..wire() }), "behind");
    }

    #[test]
    fn pages_arrive_as_they_were_sent_and_malformed_ones_are_no_pages() {
        let message = ListedMessage {
            key: KEY,
            failed: 1,
            enqueued_ms: 2,
            payload_bytes: 3,
            keys: 4,
            leased: true,
            whole: Some((Bytes::from_static(b"p"), vec![Bytes::from_static(b"k")])),
        };
        let letter = ListedLetter {
            number: 8,
            queue: "emails".parse().unwrap(),
            id: ID,
            failed: 1,
            enqueued_ms: 2,
            died_ms: 3,
            payload_bytes: 4,
            payload: Some(Bytes::new()),
        };
        let sent = QueuePage {
            messages: vec![ListedMessage { whole: None, ..message.clone() }, message],
            dead_letters: vec![
                ListedLetter { queue: QueueName::UNNAMED, payload: None, ..letter.clone() },
                letter,
            ],
            totals: ListedTotals { undelivered: 1, leased: 2, dead: 3 },
            queues: vec![ListedQueue {
                name: "emails".parse().unwrap(),
                undelivered: 4,
                leased: 5,
            }],
            is_paused: true,
        };
        let answered = |page| {
            let result = Some(list_response::Result::Page(page));
            super::page(wire::ListResponse { result })
        };
        let wire = page_to_wire(sent.clone());
        assert_eq!(answered(wire.clone()).unwrap(), sent);
        let mut malformed = wire.clone();
        malformed.messages[0].key = None;
        assert!(answered(malformed).is_err());
        let mut malformed = wire.clone();
        malformed.queues[0].name = "n".repeat(65);
        assert!(answered(malformed).is_err());
        let mut malformed = wire;
        malformed.dead_letters[0].id = Bytes::from_static(b"short");
        assert!(answered(malformed).is_err());
        assert!(super::page(wire::ListResponse { result: None }).is_err());
    }
}
