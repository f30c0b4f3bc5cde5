use bytes::Bytes;
use meridian_proto::{directory, shipping};

use crate::fields::{Fields, L, assert_golden, field_bytes, field_message, field_varint};
use crate::shipping::position;

fn shard_report(n: u32) -> (directory::ShardReport, Fields) {
    let (position, position_fields) = position(n);
    let message = directory::ShardReport {
        shard: n,
        epoch: n + 1,
        position: Some(position),
        transactions: L + 4,
        time_ms: L + 5,
        leads: true,
        settled_at: L + 9,
        lag_ms: L + 8,
        heard_transactions: L + 10,
        heard_time_ms: L + 11,
        dropped: vec![Bytes::from_static(&[12; 16])],
        divergences: vec![directory::Divergence { node_id: L + 1, position: Some(position) }],
        refuses: "damaged".to_owned(),
    };
    let fields = vec![
        field_varint(1, n.into()),
        field_varint(2, (n + 1).into()),
        field_message(3, &position_fields),
        field_varint(4, L + 4),
        field_varint(5, L + 5),
        field_varint(6, 1),
        field_varint(8, L + 8),
        field_varint(9, L + 9),
        field_varint(10, L + 10),
        field_varint(11, L + 11),
        field_bytes(12, &[12; 16]),
        field_message(14, &[field_varint(1, L + 1), field_message(2, &position_fields)]),
        field_bytes(15, b"damaged"),
    ];
    (message, fields)
}

fn cluster_state() -> (directory::ClusterState, Fields) {
    (directory::ClusterState { json: Bytes::from("{}") }, vec![field_bytes(1, b"{}")])
}

#[test]
fn renewals_of_leases_are_golden() {
    let (one, one_fields) = shard_report(10);
    let (two, two_fields) = shard_report(20);
    let orphans = directory::Orphans {
        shard: 1,
        epoch: 2,
        transactions: L + 3,
        at_most: L + 5,
        last_time_ms: L + 4,
    };
    let mut orphans_fields = vec![field_varint(1, 1), field_varint(2, 2)];
    orphans_fields.extend((3..=5).map(|n| field_varint(n, L + n)));
    let token_use =
        directory::TokenUse { token_id: L + 1, time_ms: L + 2, gateway: 0x0807_0605_0403_0201 };
    let mut fixed = field_varint(3, 0);
    (fixed[0], fixed[1]) = (3 << 3 | 1, 1);
    fixed.extend(2..=8);
    let token_use_fields = [field_varint(1, L + 1), field_varint(2, L + 2), fixed];
    let request = directory::RenewRequest {
        node_id: L + 1,
        incarnation: Bytes::from("the incarnation!"),
        reports: vec![one, two],
        orphans: vec![orphans, orphans],
        known_version: L + 5,
        token_uses: vec![token_use, token_use],
    };
    let golden = [
        field_varint(1, L + 1),
        field_bytes(2, b"the incarnation!"),
        field_message(3, &one_fields),
        field_message(3, &two_fields),
        field_message(4, &orphans_fields),
        field_message(4, &orphans_fields),
        field_varint(5, L + 5),
        field_message(6, &token_use_fields),
        field_message(6, &token_use_fields),
    ];
    assert_golden(&request, &golden);
    assert_golden(&directory::TokenUsesTold {}, &[]);
    let told = directory::TokenUses { uses: vec![token_use] };
    assert_golden(&told, &[field_message(1, &token_use_fields)]);

    let (cluster, cluster_fields) = cluster_state();
    let leased = |n| directory::LeasedShard { shard: n, epoch: n + 1 };
    let furthest = directory::Furthest { shard: 1, epoch: 2, transactions: L + 3, time_ms: L + 4 };
    let furthest_fields =
        [field_varint(1, 1), field_varint(2, 2), field_varint(3, L + 3), field_varint(4, L + 4)];
    let lease = directory::Lease {
        ttl_ms: L + 1,
        shards: vec![leased(7), leased(8)],
        cluster: Some(cluster),
        furthest: vec![furthest, furthest],
    };
    let lease_fields = [
        field_varint(1, L + 1),
        field_message(2, &[field_varint(1, 7), field_varint(2, 8)]),
        field_message(2, &[field_varint(1, 8), field_varint(2, 9)]),
        field_message(3, &cluster_fields),
        field_message(4, &furthest_fields),
        field_message(4, &furthest_fields),
    ];
    let results = [
        (directory::renew_response::Result::Lease(lease), field_message(1, &lease_fields)),
        (directory::renew_response::Result::NotLeader(L + 2), field_varint(2, L + 2)),
        // Not known: the arm is there.
        (directory::renew_response::Result::NotLeader(0), field_varint(2, 0)),
        (directory::renew_response::Result::Refused("why".to_owned()), field_bytes(3, b"why")),
    ];
    for (result, golden) in results {
        assert_golden(&directory::RenewResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn following_the_cluster_is_golden() {
    assert_golden(&directory::FollowRequest { known_version: L + 1 }, &[field_varint(1, L + 1)]);
    let (state, golden) = cluster_state();
    assert_golden(&state, &golden);
}

#[test]
fn changes_of_the_cluster_are_golden() {
    let request =
        directory::ExecuteRequest { change_json: Bytes::from("{}"), actor: "actor".to_owned() };
    assert_golden(&request, &[field_bytes(1, b"{}"), field_bytes(2, b"actor")]);
    let [name, sha256, actor] = ["name", "hash", "actor"].map(str::to_owned);
    let request = directory::AddAdminRequest { name, sha256, actor };
    let fields = [field_bytes(1, b"name"), field_bytes(2, b"hash"), field_bytes(3, b"actor")];
    assert_golden(&request, &fields);

    let (state, state_fields) = cluster_state();
    let results = [
        (directory::execute_response::Result::Done(state), field_message(1, &state_fields)),
        (directory::execute_response::Result::Refused("why".to_owned()), field_bytes(2, b"why")),
        (directory::execute_response::Result::NotLeader(L + 3), field_varint(3, L + 3)),
        (directory::execute_response::Result::NotLeader(0), field_varint(3, 0)),
    ];
    for (result, golden) in results {
        assert_golden(&directory::ExecuteResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn what_operators_see_is_golden() {
    assert_golden(&directory::InspectRequest { changes: 300 }, &[field_varint(1, 300)]);

    let (cluster, cluster_fields) = cluster_state();
    let change = directory::ChangeRecord {
        version: L + 1,
        time_ms: L + 2,
        actor: "actor".to_owned(),
        change_json: Bytes::from("{}"),
    };
    let change_fields = [
        field_varint(1, L + 1),
        field_varint(2, L + 2),
        field_bytes(3, b"actor"),
        field_bytes(4, b"{}"),
    ];
    let progress = directory::ShardProgress { shard: 1, text: "text".to_owned() };
    let progress_fields = [field_varint(1, 1), field_bytes(2, b"text")];
    let (report, report_fields) = shard_report(30);
    let contact = directory::NodeContact {
        node_id: L + 1,
        age_ms: L + 2,
        reports: vec![report.clone(), report],
    };
    let contact_fields = [
        field_varint(1, L + 1),
        field_varint(2, L + 2),
        field_message(3, &report_fields),
        field_message(3, &report_fields),
    ];
    let response = directory::InspectResponse {
        leader: L + 1,
        term: L + 2,
        cluster: Some(cluster),
        changes: vec![change.clone(), change],
        progress: vec![progress.clone(), progress],
        contacts: vec![contact.clone(), contact],
        token_uses: vec![directory::TokenLastUse { token_id: L + 1, time_ms: L + 2, gateways: 3 }],
    };
    let golden = [
        field_varint(1, L + 1),
        field_varint(2, L + 2),
        field_message(3, &cluster_fields),
        field_message(4, &change_fields),
        field_message(4, &change_fields),
        field_message(5, &progress_fields),
        field_message(5, &progress_fields),
        field_message(6, &contact_fields),
        field_message(6, &contact_fields),
        field_message(7, &[field_varint(1, L + 1), field_varint(2, L + 2), field_varint(3, 3)]),
    ];
    assert_golden(&response, &golden);
}

#[test]
fn sealing_is_golden() {
    let request = directory::SealRequest { shard: 1, epoch: 2, planned: true };
    assert_golden(&request, &[field_varint(1, 1), field_varint(2, 2), field_varint(3, 1)]);

    let (position, position_fields) = position(1);
    let sealed = |term| directory::SealResponse {
        position: Some(position),
        transactions: L + 2,
        time_ms: L + 3,
        term,
        drained_leader: true,
    };
    let golden = |term: Vec<u8>| {
        [
            field_message(1, &position_fields),
            field_varint(2, L + 2),
            field_varint(3, L + 3),
            term,
            field_varint(5, 1),
        ]
    };
    // A voter in term 0 is not the same as a replica, which has none.
    assert_golden(&sealed(Some(L + 4)), &golden(field_varint(4, L + 4)));
    assert_golden(&sealed(Some(0)), &golden(field_varint(4, 0)));
    assert_golden(&sealed(None), &golden(Vec::new()));
}

#[test]
fn draining_is_golden() {
    let (through, through_fields) = position(4);
    let request =
        directory::DrainRequest { shard: 1, epoch: 2, source: L + 3, through: Some(through) };
    let golden = [
        field_varint(1, 1),
        field_varint(2, 2),
        field_varint(3, L + 3),
        field_message(4, &through_fields),
    ];
    assert_golden(&request, &golden);
    assert_golden(
        &directory::DrainResponse { position: Some(through) },
        &[field_message(1, &through_fields)],
    );
}

#[test]
fn reading_a_log_is_golden() {
    let (after, after_fields) = position(2);
    let (through, through_fields) = position(3);
    let request =
        directory::ReadLogRequest { shard: 1, after: Some(after), through: Some(through) };
    let golden =
        [field_varint(1, 1), field_message(2, &after_fields), field_message(3, &through_fields)];
    assert_golden(&request, &golden);

    let zstd = Bytes::from("zstd");
    let batches = shipping::Batches { previous: Some(after), zstd, part: 0, stored_bytes: 4 };
    let batches_fields =
        [field_message(1, &after_fields), field_bytes(2, b"zstd"), field_varint(4, 4)];
    assert_golden(
        &directory::ReadLogResponse { batches: Some(batches) },
        &[field_message(1, &batches_fields)],
    );
    assert_golden(&directory::ReadLogResponse { batches: None }, &[]);
    assert_golden(&directory::ReadStateRequest { shard: 1 }, &[field_varint(1, 1)]);
}

#[test]
fn certificates_are_golden() {
    let request = Bytes::from("request");
    let join = directory::JoinRequest { secret: "secret".to_owned(), request: request.clone() };
    assert_golden(&join, &[field_bytes(1, b"secret"), field_bytes(2, b"request")]);
    let incarnation = Bytes::from("incarnation");
    let certify = directory::CertifyRequest { request, node_id: L + 2, incarnation };
    let golden =
        [field_bytes(1, b"request"), field_varint(2, L + 2), field_bytes(3, b"incarnation")];
    assert_golden(&certify, &golden);
    let (state, state_fields) = cluster_state();
    let certified = directory::Certified {
        chain_pem: "chain".to_owned(),
        authorities_pem: "authorities".to_owned(),
        subject: "subject".to_owned(),
        cluster: Some(state),
    };
    let certified_fields = vec![
        field_bytes(1, b"chain"),
        field_bytes(2, b"authorities"),
        field_bytes(3, b"subject"),
        field_message(4, &state_fields),
    ];
    use directory::certify_response::Result;
    let ask = directory::Ask { addresses: vec!["a".to_owned(), "b".to_owned()] };
    let ask_fields = vec![field_bytes(1, b"a"), field_bytes(1, b"b")];
    for (result, golden) in [
        (Result::Certified(certified), field_message(1, &certified_fields)),
        (Result::Refused("why".to_owned()), field_bytes(2, b"why")),
        (Result::Ask(ask), field_message(3, &ask_fields)),
    ] {
        assert_golden(&directory::CertifyResponse { result: Some(result) }, &[golden]);
    }
}
