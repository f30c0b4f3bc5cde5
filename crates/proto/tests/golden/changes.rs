use bytes::Bytes;
use meridian_proto::changes;

use crate::fields::{L, assert_golden, field_bytes, field_message, field_varint};

#[test]
fn questions_for_changes_are_golden() {
    let request = changes::NextRequest {
        shard: 21,
        database: Bytes::from("the database's!!"),
        prefix: Bytes::from("prefix"),
        after: Bytes::from("ten bytes!"),
        max_bytes: L + 1,
        wait_ms: 300,
        min_sequence: L + 2,
    };
    let golden = [
        field_varint(1, 21),
        field_bytes(2, b"the database's!!"),
        field_bytes(3, b"prefix"),
        field_bytes(4, b"ten bytes!"),
        field_varint(5, L + 1),
        field_varint(6, 300),
        field_varint(7, L + 2),
    ];
    assert_golden(&request, &golden);
}

#[test]
fn changes_of_a_database_are_golden() {
    use changes::change::Kind;
    use changes::next_response::Result;
    let change = changes::Change {
        kind: Kind::Set.into(),
        key: Bytes::from("key"),
        encoding: 3,
        data: Bytes::from("data"),
        expire_at_ms: L + 3,
    };
    let change_fields = [
        field_varint(1, 1),
        field_bytes(2, b"key"),
        field_varint(3, 3),
        field_bytes(4, b"data"),
        field_varint(5, L + 3),
    ];
    let kinds = [Kind::Unspecified, Kind::Deleted, Kind::Expired, Kind::DatabaseDropped];
    assert_eq!(kinds.map(i32::from), [0, 2, 3, 4]);
    let transaction =
        changes::Transaction { versionstamp: Bytes::from("a version!"), changes: vec![change] };
    let transaction_fields = [field_bytes(1, b"a version!"), field_message(2, &change_fields)];
    let changed = changes::Changed {
        transactions: vec![transaction],
        reached: Bytes::from("ten more!!"),
        next_bytes: L + 4,
    };
    let changed_fields = [
        field_message(1, &transaction_fields),
        field_bytes(2, b"ten more!!"),
        field_varint(3, L + 4),
    ];
    for (result, golden) in [
        (Result::Changed(changed), field_message(1, &changed_fields)),
        (Result::Gone(Bytes::from("ten bytes!")), field_bytes(2, b"ten bytes!")),
        (Result::NotOfHistory(changes::NotOfHistory {}), field_message(3, &[])),
        (Result::Ahead(changes::Ahead {}), field_message(4, &[])),
        (Result::Unavailable("why".to_owned()), field_bytes(5, b"why")),
    ] {
        assert_golden(&changes::NextResponse { result: Some(result) }, &[golden]);
    }
}
