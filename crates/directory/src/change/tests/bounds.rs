//! The bounds on operators' changes, and on the size that these give the directory's log.

use super::*;

#[test]
fn names_labels_and_ids_of_clusters_have_their_bounds() {
    let add = |name: String| Change::AddRegion { name };
    assert_eq!(done(&cluster(), &add("x".repeat(100))).regions.len(), 4);
    assert_eq!(
        refused(&cluster(), &add("x".repeat(101))),
        "the name of a region has at most 100 bytes"
    );
    assert_eq!(done(&cluster(), &add("eu-west_1.b".to_owned())).regions[3], "eu-west_1.b");
    let name = |length| Change::NameCluster { id: "a".repeat(length) };
    assert!([16, 64].iter().all(|length| cluster().after(&name(*length)).is_ok()));
    assert!([15, 65].iter().all(|length| cluster().after(&name(*length)).is_err()));
}

#[test]
fn an_address_is_a_host_and_a_port() {
    let add = |rpc_address: &str| Change::AddNode {
        node: Node { rpc_address: rpc_address.to_owned(), kv_address: None, ..node(8, "b", "b3") },
    };
    for address in ["host:7100", "[::1]:7100", "10.0.0.8:65535"] {
        assert_eq!(done(&cluster(), &add(address)).nodes[&NodeId(8)].rpc_address, address);
    }
    for unfit in ["", "host", ":7100", "a host:7100", "host:", "host:65536", "host:port"] {
        assert!(refused(&cluster(), &add(unfit)).contains("host:port is wanted"), "{unfit}");
    }
    let kv = Node { kv_address: Some("nowhere".to_owned()), ..node(8, "b", "b3") };
    let message = "`nowhere` is not a node's kv address: host:port is wanted";
    assert_eq!(refused(&cluster(), &Change::AddNode { node: kv }), message);
}

#[test]
fn an_address_is_taken_whichever_of_its_two_a_node_has_it_for() {
    let add = |rpc: &str, kv: Option<&str>| Change::AddNode {
        node: Node {
            rpc_address: rpc.to_owned(),
            kv_address: kv.map(str::to_owned),
            ..node(8, "b", "b3")
        },
    };
    for (rpc, kv) in [("10.0.0.3:4512", None), ("10.0.0.8:1", Some("10.0.0.3:4512"))] {
        let message = "10.0.0.3:4512 is the address of node 3 (n3) already";
        assert_eq!(refused(&cluster(), &add(rpc, kv)), message);
    }
}

#[test]
fn so_many_databases_are_being_deleted_at_once_and_no_more() {
    let mut next = cluster();
    let deletion = |n: u16| {
        (
            DatabaseId([n.to_be_bytes(); 8].concat().try_into().unwrap()),
            Deletion { name: n.to_string(), shard: SHARD },
        )
    };
    next.deleting = (1000..1999).map(deletion).collect();
    next = done(&next, &Change::DeleteDatabase { id: DATABASE });
    assert_eq!(next.deleting.len(), 1000);
    next.databases.insert(DatabaseId([9; 16]), database("more", "a"));
    assert!(
        refused(&next, &Change::DeleteDatabase { id: DatabaseId([9; 16]) })
            .starts_with("1000 databases")
    );
}

#[test]
fn a_database_that_clients_open_by_default_is_not_forgotten_with_another() {
    let create = Change::CreateDatabase {
        id: DatabaseId([2; 16]),
        database: database("two", "a"),
        own_shard: false,
    };
    let next = done(&cluster(), &create);
    let message = "there is a database called two already";
    let again = Change::CreateDatabase {
        id: DatabaseId([3; 16]),
        database: database("two", "a"),
        own_shard: false,
    };
    assert_eq!(refused(&next, &again), message);
    let next = done(&next, &Change::DeleteDatabase { id: DatabaseId([2; 16]) });
    assert_eq!(next.default_database, Some(DATABASE));
}

#[test]
fn unnamed_settings_of_a_database_stay_and_slowing_may_begin_where_refusing_does() {
    let set = |failover, rpo| Change::SetDatabase {
        id: DATABASE,
        failover,
        rpo,
        primary_region: None,
        v8_format: None,
        queue_paused: None,
    };
    let rpo = Rpo { soft_ms: 700, max_ms: 700, ..Rpo::default() };
    let next = done(&cluster(), &set(None, Some(rpo)));
    let next = done(&next, &set(Some(FailoverMode::Manual), None));
    let database = &next.databases[&DATABASE];
    assert_eq!(
        (database.failover, database.rpo, database.primary_region.as_str()),
        (FailoverMode::Manual, rpo, "a")
    );
    let bounds = Rpo::default();
    assert_eq!((bounds.mode, bounds.soft_ms, bounds.max_ms), (crate::RpoMode::Enforce, 500, 1000));
}

#[test]
fn a_token_has_a_hash_a_short_label_and_something_that_it_opens() {
    let create = |label: String, sha256: String, scope| Change::CreateToken {
        token: Token::new(label, sha256, scope, Permissions::ALL),
    };
    let hash = || "ab".repeat(32);
    assert!(cluster().after(&create("x".repeat(200), hash(), TokenScope::All)).is_ok());
    assert_eq!(
        refused(&cluster(), &create("x".repeat(201), hash(), TokenScope::All)),
        "a label has at most 200 bytes"
    );
    for unfit in ["zz".repeat(32), "ab".repeat(33)] {
        let message = "a token is kept as its SHA-256, 64 hex digits";
        assert_eq!(refused(&cluster(), &create(String::new(), unfit, TokenScope::All)), message);
    }
    let scope = |ids: &[DatabaseId]| TokenScope::Databases(ids.iter().copied().collect());
    let message = "a token for no database is of no use";
    assert_eq!(refused(&cluster(), &create(String::new(), hash(), scope(&[]))), message);
    let next = done(&cluster(), &create(String::new(), hash(), scope(&[DATABASE])));
    assert_eq!(next.tokens[&1].scope, scope(&[DATABASE]));
    // Of what one opens besides what there is no more.
    assert!(
        cluster()
            .after(&create(String::new(), hash(), scope(&[DATABASE, DatabaseId([9; 16])])))
            .is_err()
    );
    // A second one is another.
    let next = done(&next, &create(String::new(), "cd".repeat(32), TokenScope::All));
    assert_eq!((next.tokens.len(), next.last_token_id), (2, 2));
    assert_eq!(
        done(&next, &Change::RevokeToken { id: 1 }).tokens.keys().copied().collect::<Vec<_>>(),
        [2]
    );
}

/// An entry of the directory's log stays small by this.
#[test]
fn what_a_controller_writes_is_no_larger_than_was_counted_and_not_much_smaller() {
    let long = "because of what an operator wrote ".repeat(30);
    let seal = |to: Option<&str>, cause: &str| Change::Seal {
        shard: ShardId(u32::MAX),
        epoch: Epoch(u16::MAX),
        to: to.map(|to| to.repeat(20)),
        planned: false,
        since_ms: u64::MAX,
        cause: cause.to_owned(),
    };
    let promote = |region: &str, cause: &str, voters: usize, old: usize, former: usize| {
        let set = |count: usize| -> BTreeSet<NodeId> {
            (0..count).map(|n| NodeId(u64::MAX - n as u64)).collect()
        };
        let mut report = report(u16::MAX, at(u16::MAX, 1 << 40), &region.repeat(20));
        (report.cause, report.from_region) = (cause.to_owned(), region.repeat(20));
        (report.old_voters, report.former_voters) = (set(old), vec![set(old); former]);
        (report.promoted_at_ms, report.sealed_at_ms, report.base_time_ms) =
            (u64::MAX, u64::MAX, u64::MAX);
        Change::Promote {
            shard: ShardId(u32::MAX),
            voters: set(voters),
            preferred_leader: Some(NodeId(u64::MAX)),
            report,
        }
    };
    for change in [
        seal(None, ""),
        seal(Some("region"), ""),
        seal(None, &long),
        seal(Some("region"), &long),
        Change::Activate { shard: SHARD, epoch: Epoch(2) },
        promote("", "", 1, 1, 0),
        promote("region", "", 5, 5, 0),
        promote("", &long, 5, 5, 0),
        promote("region", &long, 5, 5, 8),
        // As it is proposed: the voters before are filled in when it is made.
        promote("region", &long, 40, 0, 0),
    ] {
        let written = serde_json::to_string(&change).unwrap().len();
        assert!(
            (written..=written + 700).contains(&change.size()),
            "{written}, {}: {change:?}",
            change.size()
        );
    }
}

#[test]
fn a_node_that_joins_is_shown_without_what_it_has_to_show() {
    let new = Node { incarnation: Some("5eed".to_owned()), ..node(8, "b", "b3") };
    for change in
        [Change::AddNode { node: new.clone() }, Change::ReplaceNode { old: NodeId(1), new }]
    {
        assert!(!format!("{:?}", change.without_secrets()).contains("5eed"));
    }
    let other = Change::RemoveNode { node: NodeId(3) };
    assert_eq!(other.without_secrets(), other);
}

/// The controller's way, which copies nothing, and that of operators.
#[test]
fn a_change_in_place_is_the_same_change_and_what_is_refused_has_changed_nothing() {
    let seal = |epoch, to: Option<&str>| Change::Seal {
        shard: SHARD,
        epoch: Epoch(epoch),
        to: to.map(str::to_owned),
        planned: false,
        since_ms: 1,
        cause: String::new(),
    };
    let promote = |voters: &[u64]| Change::Promote {
        shard: SHARD,
        voters: ids(voters),
        preferred_leader: None,
        report: report(2, at(1, 5), "b"),
    };
    let mut cluster = cluster();
    for change in [
        seal(1, Some("d")),
        seal(2, None),
        promote(&[4, 5]),
        seal(1, None),
        // Made in part when its voters are found wanting.
        promote(&[4, 6]),
        promote(&[]),
        promote(&[4, 5]),
        Change::Activate { shard: SHARD, epoch: Epoch(2) },
        Change::Activate { shard: ShardId(9), epoch: Epoch(2) },
        Change::ShowLoss {
            shard: SHARD,
            epoch: Epoch(2),
            node: NodeId(1),
            transactions: 3,
            at_most: 4,
            last_time_ms: 9_000,
        },
        Change::ShowLoss {
            shard: SHARD,
            epoch: Epoch(2),
            node: NodeId(1),
            transactions: 3,
            at_most: 4,
            last_time_ms: 9_000,
        },
        Change::SetVoters { shard: SHARD, voters: ids(&[4]) },
        Change::ConfirmVoters { shard: SHARD, epoch: Epoch(2), version: 5 },
        Change::ConfirmVoters { shard: SHARD, epoch: Epoch(2), version: 6 },
        Change::BeginSwitchover { shard: SHARD, to: "c".to_owned() },
        Change::CancelSwitchover { shard: SHARD },
        Change::CancelSwitchover { shard: SHARD },
    ] {
        let (before, expected) = (cluster.clone(), cluster.after(&change));
        let made = cluster.apply(&change);
        assert_eq!(made.clone().map(|()| cluster.clone()), expected, "{change:?}");
        assert_eq!(cluster == before, made.is_err(), "{change:?}: {made:?}");
    }
    assert_eq!(cluster.version, 9);
}
