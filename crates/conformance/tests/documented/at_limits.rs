//! Each limit of the documentation is the code's, and what is at a limit is done.

use bytes::Bytes;
use meridian_conformance::document;
use meridian_proto::kv_connect as pb;
use meridian_types::limits;

use crate::DOCUMENT;
use crate::arithmetic::bigint_of;
use crate::messages::{check, key, of_total, range, sized, suffixed, wall_clock_ms};
use crate::server::Server;

/// As documents write a number.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

#[test]
fn the_limits_of_the_documentation_are_those_of_the_code() {
    let (written, read) =
        (grouped(limits::MAX_WRITE_KEY_BYTES), grouped(limits::MAX_READ_KEY_BYTES));
    let (ranges, entries) = (grouped(limits::MAX_READ_RANGES), grouped(limits::MAX_READ_ENTRIES));
    let expected = [
        ["key, written / read".to_owned(), format!("{written} / {read} bytes")],
        [
            "value; payload of a message".to_owned(),
            format!("{} bytes", grouped(limits::MAX_VALUE_BYTES)),
        ],
        ["ranges of a read, entries of a read".to_owned(), format!("{ranges}, {entries} in all")],
        ["checks of an atomic write".to_owned(), grouped(limits::MAX_CHECKS)],
        ["mutations and enqueues of an atomic write".to_owned(), grouped(limits::MAX_MUTATIONS)],
        [
            "an atomic write in all".to_owned(),
            format!("{} bytes", grouped(limits::MAX_TRANSACTION_BYTES)),
        ],
        ["keys of a watch".to_owned(), grouped(limits::MAX_WATCHED_KEYS)],
        ["delay of a message".to_owned(), "30 days, and ten minutes for clocks".to_owned()],
        [
            "backoff schedule of a message".to_owned(),
            format!("{} intervals of at most an hour", grouped(limits::MAX_BACKOFF_INTERVALS)),
        ],
        [
            "keys if undelivered of a message".to_owned(),
            format!("{}, of {written} bytes each", grouped(limits::MAX_UNDELIVERED_KEYS)),
        ],
        [
            "undelivered messages of a database".to_owned(),
            grouped(usize::try_from(limits::MAX_UNDELIVERED_MESSAGES).unwrap()),
        ],
        [
            "named queues of a database with undelivered messages".to_owned(),
            grouped(limits::MAX_QUEUE_NAMES),
        ],
        [
            "name of a queue".to_owned(),
            format!("{} bytes, without control characters", limits::MAX_QUEUE_NAME_BYTES),
        ],
        ["acknowledgements of an atomic write".to_owned(), grouped(limits::MAX_ACKNOWLEDGEMENTS)],
    ];
    assert_eq!(document::table(DOCUMENT, "## Limits"), expected);
}

#[tokio::test]
async fn a_read_at_each_limit_is_answered() {
    let server = Server::start().await;
    let stored = server.write(vec![], vec![sized(1, 1), sized(2048, 1)]).await;
    assert_eq!(stored.status, 200, "{}", stored.text());
    for (ranges, found) in [
        (vec![range(1, 2, 1); 10], 10),
        (vec![range(0, 2049, 1000)], 2),
        (vec![range(0, 2049, 100); 10], 20),
        (vec![range(2048, 2049, 1)], 1),
        (vec![range(2049, 2049, 1)], 0),
    ] {
        let entries = server.client.read(meridian_types::Consistency::Strong, ranges).await;
        let entries = entries.unwrap().ranges.into_iter().map(|range| range.values.len());
        assert_eq!(entries.sum::<usize>(), found);
    }
}

/// By a reserved key, of a message that was the enqueue of this index.
pub(crate) fn acknowledgement(enqueued: &[u8], index: u16, due_ms: u64) -> pb::Mutation {
    let stamp: String = enqueued.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("\x02acknowledge\0\x02{stamp}{index:04x}\0\x02{due_ms}\0");
    let key = [&b"\x01\xfdmeridian\xfd\x00"[..], text.as_bytes()].concat();
    pb::Mutation { key: key.into(), ..sized(1, 1) }
}

/// A write with all of them, and another one after it, whose message is gone.
#[tokio::test]
async fn acknowledgements_at_their_limit_commit_with_their_write_and_once() {
    let server = Server::start().await;
    let due_ms = wall_clock_ms() + 3_600_000;
    let deadline_ms = i64::try_from(due_ms).unwrap();
    let count = u16::try_from(limits::MAX_ACKNOWLEDGEMENTS).unwrap();
    let enqueues = vec![pb::Enqueue { deadline_ms, ..Default::default() }; usize::from(count)];
    let enqueued = server.client.write(pb::AtomicWrite { enqueues, ..Default::default() }).await;
    let stamp = enqueued.unwrap().versionstamp;
    let write = |from: u16, effect: usize| {
        let acks = (from..count).map(|index| acknowledgement(&stamp, index, due_ms));
        let mutations = acks.chain([sized(effect, 1)]).collect();
        server.client.write(pb::AtomicWrite {
            checks: vec![check(9, 0)],
            mutations,
            ..Default::default()
        })
    };
    let done = write(0, 1).await.unwrap();
    assert_eq!(done.failed_checks, [0; 0], "{done:?}");
    assert!(server.client.get(&key(1)).await.unwrap().is_some());
    let again = write(count - 1, 2).await.unwrap();
    assert_eq!(again.failed_checks, [1], "behind the write's own check: {again:?}");
    assert!(server.client.get(&key(2)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_write_at_each_limit_is_done() {
    let server = Server::start().await;
    let bound = Bytes::from(bigint_of(65_536));
    let sum = pb::Mutation {
        value: Some(pb::KvValue { data: bigint_of(65_536).into(), encoding: 1 }),
        mutation_type: pb::MutationType::MSum.into(),
        sum_min: bound.clone(),
        sum_max: bound,
        ..sized(3, 0)
    };
    let valued = |key, encoding, length: usize| pb::Mutation {
        value: Some(pb::KvValue { data: vec![0; length].into(), encoding }),
        ..sized(key, 0)
    };
    let message = pb::Enqueue {
        payload: vec![0; 65_536].into(),
        deadline_ms: i64::try_from(wall_clock_ms() + limits::MAX_ENQUEUE_DELAY_MS).unwrap(),
        keys_if_undelivered: vec![key(2048); 10],
        backoff_schedule: vec![3_600_000; 10],
    };
    for enqueues in [vec![message], vec![pb::Enqueue::default(); 1000]] {
        let done = server.client.write(pb::AtomicWrite { enqueues, ..Default::default() }).await;
        assert!(done.is_ok(), "{done:?}");
    }
    for (checks, mutations) in [
        (vec![check(2049, 0)], vec![sized(2048, 65_536)]),
        (vec![], vec![suffixed(2026)]),
        (vec![], vec![sum]),
        (vec![check(9, 0); 100], vec![]),
        (vec![], vec![sized(1, 1); 1000]),
        of_total(819_200),
        (vec![], vec![pb::Mutation { expire_at_ms: -1, ..sized(1, 1) }]),
        (vec![], vec![pb::Mutation { expire_at_ms: 0, ..sized(1, 1) }]),
        (vec![], vec![valued(5, 1, 0), valued(6, 2, 8), valued(7, 3, 0)]),
    ] {
        let reply = server.write(checks, mutations).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    // A versionstamp has 10 bytes, or none. These are all zero, which no entry has.
    let checked = server.client.write(pb::AtomicWrite {
        checks: vec![check(9, 0), check(9, 10), check(1, 0)],
        ..Default::default()
    });
    assert_eq!(checked.await.unwrap().failed_checks, [1, 2]);
    assert!(server.client.get(&key(2048)).await.unwrap().is_some());
}
