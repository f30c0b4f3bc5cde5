use bytes::Bytes;
use meridian_proto::admin;
use meridian_proto::admin::account_usage::Account;

use crate::fields::{Fields, L, assert_golden, field_bytes, field_message, field_varint};

#[test]
fn admin_statuses_are_golden() {
    assert_golden(&admin::StatusRequest {}, &[]);

    let lag = admin::ReplicaLag {
        node_id: L + 1,
        durable_sequence: L + 2,
        lag_batches: L + 3,
        lag_bytes: L + 4,
        lag_ms: L + 5,
        connected: true,
    };
    let mut lag_fields: Fields = (1..=5).map(|n| field_varint(n, L + n)).collect();
    lag_fields.push(field_varint(6, 1));
    let shard = admin::ShardStatus {
        shard: 1,
        epoch: 2,
        role: "leader".to_owned(),
        term: L + 4,
        leader: L + 5,
        committed_sequence: L + 6,
        applied_sequence: L + 7,
        first_sequence: L + 8,
        subscribers: vec![lag, lag],
        source: L + 10,
        lag_batches: L + 11,
        lag_bytes: L + 12,
        lag_ms: L + 13,
    };
    let mut shard_fields = vec![field_varint(1, 1), field_varint(2, 2), field_bytes(3, b"leader")];
    shard_fields.extend((4..=8).map(|n| field_varint(n, L + n)));
    shard_fields.extend([field_message(9, &lag_fields), field_message(9, &lag_fields)]);
    shard_fields.extend((10..=13).map(|n| field_varint(n, L + n)));
    let response = admin::StatusResponse {
        node_id: L + 1,
        node_name: "name".to_owned(),
        region: "region".to_owned(),
        data_center: "data center".to_owned(),
        shards: vec![shard.clone(), shard],
        version: "version".to_owned(),
        uptime_ms: L + 7,
        warnings: vec!["warning".to_owned()],
        cluster_version: L + 10,
        certificate: Some(admin::Certificate {
            subject: "subject".to_owned(),
            not_after_ms: L + 2,
            issuer: "issuer".to_owned(),
        }),
        plain_call_age_ms: Some(0),
        encryption: Some(encryption()),
    };
    let certificate =
        vec![field_bytes(1, b"subject"), field_varint(2, L + 2), field_bytes(3, b"issuer")];
    let golden = [
        field_varint(1, L + 1),
        field_bytes(2, b"name"),
        field_bytes(3, b"region"),
        field_bytes(4, b"data center"),
        field_message(5, &shard_fields),
        field_message(5, &shard_fields),
        field_bytes(6, b"version"),
        field_varint(7, L + 7),
        field_bytes(9, b"warning"),
        field_varint(10, L + 10),
        field_message(11, &certificate),
        field_varint(12, 0),
        field_message(13, &encryption_fields()),
    ];
    assert_golden(&response, &golden);
}

fn encryption() -> admin::EncryptionStatus {
    admin::EncryptionStatus {
        state: "on".to_owned(),
        percent: 2,
        master_key: "0123".to_owned(),
        data_key: 4,
        data_key_ms: L + 5,
        older_data_keys: 6,
        files_until_restart: L + 7,
    }
}

fn encryption_fields() -> Fields {
    vec![
        field_bytes(1, b"on"),
        field_varint(2, 2),
        field_bytes(3, b"0123"),
        field_varint(4, 4),
        field_varint(5, L + 5),
        field_varint(6, 6),
        field_varint(7, L + 7),
    ]
}

#[test]
fn admin_rotations_of_keys_are_golden() {
    assert_golden(&admin::RotateKeysRequest { new_data_key: true }, &[field_varint(1, 1)]);
    let response =
        admin::RotateKeysResponse { encryption: Some(encryption()), master_key_changed: true };
    let golden = [field_message(1, &encryption_fields()), field_varint(2, 1)];
    assert_golden(&response, &golden);
}

#[test]
fn usage_is_golden() {
    assert_golden(&admin::UsageRequest {}, &[]);
    let account = |account| admin::AccountUsage { account: Some(account), ..Default::default() };
    let database = admin::AccountUsage {
        requests: L + 4,
        bytes_in: L + 5,
        bytes_out: L + 6,
        slowed: L + 7,
        refused: L + 8,
        connections: L + 9,
        watches: L + 10,
        listeners: L + 11,
        ..account(Account::Database(b"id".as_slice().into()))
    };
    let fields: Vec<_> = [field_bytes(1, b"id")]
        .into_iter()
        .chain((4..=11).map(|n| field_varint(n, L + n)))
        .collect();
    assert_golden(&database, &fields);
    assert_golden(&account(Account::TokenId(L + 2)), &[field_varint(2, L + 2)]);
    assert_golden(&account(Account::ConfiguredTokens(true)), &[field_varint(3, 1)]);
    let stored = admin::StoredSize {
        database: b"id".as_slice().into(),
        keys: L + 2,
        bytes: L + 3,
        refused: L + 4,
    };
    let stored_fields: Vec<_> = [field_bytes(1, b"id")]
        .into_iter()
        .chain((2..=4).map(|n| field_varint(n, L + n)))
        .collect();
    assert_golden(&stored, &stored_fields);
    let response =
        admin::UsageResponse { accounts: vec![database], stored: vec![stored], left_out: L + 3 };
    let golden =
        [field_message(1, &fields), field_message(2, &stored_fields), field_varint(3, L + 3)];
    assert_golden(&response, &golden);
}

#[test]
fn admin_transfers_are_golden() {
    let request = admin::TransferLeadershipRequest { shard: 1, to: L + 2 };
    assert_golden(&request, &[field_varint(1, 1), field_varint(2, L + 2)]);
    assert_golden(&admin::TransferLeadershipResponse {}, &[]);
}

#[test]
fn orphans_are_golden() {
    assert_golden(&admin::ListOrphansRequest {}, &[]);
    let file = admin::OrphanFile {
        name: "name".to_owned(),
        shard: 2,
        epoch: 3,
        base_sequence: L + 4,
        batches: L + 5,
        transactions: L + 6,
        first_time_ms: L + 7,
        last_time_ms: L + 8,
        bytes: L + 9,
        missing_from: L + 10,
        missing_through: L + 11,
    };
    let mut file_fields = vec![field_bytes(1, b"name"), field_varint(2, 2), field_varint(3, 3)];
    file_fields.extend((4..=11).map(|n| field_varint(n, L + n)));
    let response = admin::ListOrphansResponse { files: vec![file.clone(), file] };
    assert_golden(&response, &[field_message(1, &file_fields), field_message(1, &file_fields)]);

    assert_golden(
        &admin::ReadOrphansRequest { name: "name".to_owned() },
        &[field_bytes(1, b"name")],
    );
    let batch = admin::OrphanBatch { batch: Bytes::from("batch"), committed: true };
    assert_golden(&batch, &[field_bytes(1, b"batch"), field_varint(2, 1)]);
}
