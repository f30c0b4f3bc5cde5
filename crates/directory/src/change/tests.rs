//! The effects of each change, and its refusals.

use meridian_types::{KeyPrefix, Permission, Permissions, Position, V8Format};

use super::*;
use crate::testing::{DATABASE, SHARD, at, cluster, database, node, report};
use crate::{Deletion, Loss, Phase, Token, TokenScope, VoterChange};

mod bounds;
mod golden;
mod quotas;
mod shards;
mod trust;
mod webhooks;

fn refused(cluster: &Cluster, change: &Change) -> String {
    cluster.after(change).expect_err("it was to be refused").0
}

fn done(cluster: &Cluster, change: &Change) -> Cluster {
    let next = cluster.after(change).unwrap_or_else(|refused| panic!("{change:?}: {refused}"));
    assert_eq!(next.version, cluster.version + 1);
    next
}

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[test]
fn a_node_gets_the_next_id_which_is_never_used_again() {
    let mut new = node(8, "b", "b3");
    (new.incarnation, new.removed) = (Some("ff".to_owned()), true);
    let next = done(&cluster(), &Change::AddNode { node: new });
    assert_eq!(next.last_node_id, NodeId(8));
    assert_eq!(next.nodes[&NodeId(8)], node(8, "b", "b3"));
    let next = done(&next, &Change::RemoveNode { node: NodeId(8) });
    assert!(next.nodes[&NodeId(8)].removed);
    assert_eq!(refused(&next, &Change::RemoveNode { node: NodeId(8) }), "node 8 (n8) was removed");
    // Name and addresses are free again, the id is not.
    let next = done(&next, &Change::AddNode { node: node(8, "b", "b3") });
    assert_eq!(next.last_node_id, NodeId(9));
    assert!(next.nodes[&NodeId(8)].removed && !next.nodes[&NodeId(9)].removed);
}

#[test]
fn a_node_that_is_known_or_makes_no_sense_is_refused() {
    let cluster = cluster();
    let refused = |change: &dyn Fn(&mut Node)| {
        let mut new = node(8, "b", "b3");
        change(&mut new);
        refused(&cluster, &Change::AddNode { node: new })
    };
    assert_eq!(refused(&|node| node.name = "n3".into()), "node 3 is called n3 already");
    assert_eq!(refused(&|node| node.region = "d".into()), "there is no region d");
    let taken = "10.0.0.3:7100 is the address of node 3 (n3) already";
    assert_eq!(refused(&|node| node.rpc_address = "10.0.0.3:7100".into()), taken);
    assert_eq!(refused(&|node| node.kv_address = Some("10.0.0.3:7100".into())), taken);
    assert_eq!(refused(&|node| node.name = String::new()), "the name of a node may not be empty");
    let message = "`a/b` cannot name a data center: letters, digits and any of -_. can";
    assert_eq!(refused(&|node| node.data_center = "a/b".into()), message);
    let message = "`10.0.0.8` is not a node's rpc address: host:port is wanted";
    assert_eq!(refused(&|node| node.rpc_address = "10.0.0.8".into()), message);
    let message = "n8 cannot have 10.0.0.8:7100 for both of its addresses";
    assert_eq!(refused(&|node| node.kv_address = Some(node.rpc_address.clone())), message);
}

#[test]
fn a_node_that_votes_is_not_removed() {
    let cluster = cluster();
    let message = "n2 votes in shard 1: set other voters, or replace the node";
    assert_eq!(refused(&cluster, &Change::RemoveNode { node: NodeId(2) }), message);
    let message = "n4 votes in the directory: set other directory voters, or replace the node";
    assert_eq!(refused(&cluster, &Change::RemoveNode { node: NodeId(4) }), message);
    assert_eq!(refused(&cluster, &Change::RemoveNode { node: NodeId(99) }), "there is no node 99");
}

#[test]
fn a_former_voter_is_neither_removed_nor_replaced_before_the_voters_have_changed() {
    let next = done(&cluster(), &Change::AddNode { node: node(8, "a", "a1") });
    let next = done(&next, &Change::SetDirectoryVoters { voters: ids(&[2, 4, 6]) });
    let next = done(&next, &Change::SetVoters { shard: SHARD, voters: ids(&[2, 3, 8]) });
    let new = Node {
        name: "new".into(),
        rpc_address: "10.0.0.9:7100".into(),
        kv_address: None,
        ..node(9, "a", "a1")
    };
    let replace = Change::ReplaceNode { old: NodeId(1), new };
    let message = "n1 still votes in shard 1: wait until its voters have changed";
    assert_eq!(refused(&next, &Change::RemoveNode { node: NodeId(1) }), message);
    assert_eq!(refused(&next, &replace), message);
    let version = next.version;
    let next = done(&next, &Change::ConfirmVoters { shard: SHARD, epoch: Epoch::FIRST, version });
    assert!(done(&next, &replace).nodes[&NodeId(1)].removed);
}

#[test]
fn a_replacement_takes_all_places_of_the_old_node() {
    let mut new = node(1, "a", "a1");
    new.rpc_address = "10.0.0.99:7100".to_owned();
    let next = done(&cluster(), &Change::ReplaceNode { old: NodeId(1), new: new.clone() });
    assert!(next.nodes[&NodeId(1)].removed);
    assert_eq!(next.nodes[&NodeId(8)], new);
    let shard = &next.shards[&SHARD];
    assert_eq!((shard.voters.clone(), shard.preferred_leader), (ids(&[2, 3, 8]), Some(NodeId(8))));
    // A leader that has followed the cluster so far says so by this version.
    let changing = VoterChange { former: vec![ids(&[1, 2, 3])], version: next.version };
    assert_eq!(shard.changing, Some(changing));
    assert_eq!(next.directory_voters, ids(&[4, 6, 8]));
}

#[test]
fn a_replacement_elsewhere_or_in_the_data_center_of_another_voter_is_refused() {
    let cluster = cluster();
    let replace = |region, data_center| Change::ReplaceNode {
        old: NodeId(1),
        new: node(8, region, data_center),
    };
    let message = "n1 is in region a: its replacement has to be there, too";
    assert_eq!(refused(&cluster, &replace("b", "b3")), message);
    let message = "n2 and n8 are both in data center a2: only one may vote";
    assert_eq!(refused(&cluster, &replace("a", "a2")), message);
    let sealing = done(&cluster, &Change::BeginSwitchover { shard: SHARD, to: "b".into() });
    let message = "n1 votes in shard 1, which is not active: wait until it is";
    assert_eq!(refused(&sealing, &replace("a", "a1")), message);
}

#[test]
fn a_cluster_keeps_the_id_that_it_got_first() {
    let name = |id: &str| Change::NameCluster { id: id.to_owned() };
    let next = done(&cluster(), &name("00ff00ff00ff00ff"));
    assert_eq!(next.id.as_deref(), Some("00ff00ff00ff00ff"));
    assert_eq!(
        refused(&next, &name("11ff00ff00ff00ff")),
        "the cluster has an id already, and keeps it"
    );
    for unfit in ["", "00ff", "00ff00ff00ff00fg", "00ff00ff00ff00f."] {
        assert!(
            refused(&cluster(), &name(unfit)).contains("is not the id of a cluster"),
            "{unfit}"
        );
    }
}

#[test]
fn the_first_incarnation_is_recorded_for_good() {
    let record = |incarnation: &str| Change::RecordIncarnation {
        node: NodeId(3),
        incarnation: incarnation.to_owned(),
    };
    let next = done(&cluster(), &record("aa"));
    assert_eq!(next.nodes[&NodeId(3)].incarnation.as_deref(), Some("aa"));
    assert_eq!(refused(&next, &record("aa")), "that is how it is already");
    assert!(
        refused(&next, &record("bb"))
            .starts_with("node 3 (n3) first spoke from another data folder (aa)")
    );
}

#[test]
fn regions_come_and_go_while_nothing_is_in_them() {
    let cluster = cluster();
    let add = |name: &str| Change::AddRegion { name: name.to_owned() };
    let remove = |name: &str| Change::RemoveRegion { name: name.to_owned() };
    assert_eq!(refused(&cluster, &add("a")), "region a exists already");
    assert_eq!(
        refused(&cluster, &add("eu west")),
        "`eu west` cannot name a region: letters, digits and any of -_. can"
    );
    let mut next = done(&cluster, &add("d"));
    assert_eq!(next.regions, ["a", "b", "c", "d"]);
    assert_eq!(done(&next, &remove("d")).regions, ["a", "b", "c"]);
    assert_eq!(refused(&next, &remove("c")), "n6 is in region c: remove its nodes first");
    next.databases.get_mut(&DATABASE).unwrap().primary_region = "d".to_owned();
    let message = "database main belongs to region d: set another primary region first";
    assert_eq!(refused(&next, &remove("d")), message);
    next.nodes.retain(|_, node| node.region != "a");
    assert_eq!(refused(&next, &remove("a")), "shard 1 has its primary in region a");
}

#[test]
fn a_region_that_a_shard_is_on_its_way_to_is_not_removed() {
    let mut next = cluster();
    for name in ["d", "e"] {
        next = done(&next, &Change::AddRegion { name: name.to_owned() });
    }
    next = done(&next, &Change::AddNode { node: node(8, "d", "d1") });
    let remove = |name: &str| Change::RemoveRegion { name: name.to_owned() };
    let switchover = Change::BeginSwitchover { shard: SHARD, to: "d".to_owned() };
    let (shard, epoch, to, cause) = (SHARD, Epoch(1), Some("d".to_owned()), String::new());
    let failover = Change::ForceFailover { shard, epoch, to, since_ms: 1, cause };
    for moves in [switchover, failover] {
        let moving = done(&done(&next, &moves), &Change::RemoveNode { node: NodeId(8) });
        assert_eq!(refused(&moving, &remove("d")), "shard 1 is on its way to region d");
        assert_eq!(done(&moving, &remove("e")).regions, ["a", "b", "c", "d"]);
    }
}

#[test]
fn voters_of_the_directory_lie_in_distinct_data_centers() {
    let next = done(&cluster(), &Change::AddNode { node: node(8, "a", "a1") });
    let set = |voters: &[u64]| Change::SetDirectoryVoters { voters: ids(voters) };
    assert_eq!(done(&next, &set(&[2, 5, 7])).directory_voters, ids(&[2, 5, 7]));
    assert_eq!(
        refused(&next, &set(&[1, 8])),
        "n1 and n8 are both in data center a1: only one may vote"
    );
    assert_eq!(refused(&next, &set(&[])), "the directory would have no voters");
    assert_eq!(refused(&next, &set(&[1, 12])), "there is no node 12");
}

#[test]
fn former_voter_of_the_directory_may_lead_it_yet_until_it_votes_again_or_is_removed() {
    let set = |voters: &[u64]| Change::SetDirectoryVoters { voters: ids(voters) };
    let next = done(&cluster(), &set(&[2, 5, 7]));
    assert_eq!(next.former_directory_voters, ids(&[1, 4, 6]));
    assert!([1, 2].iter().all(|id| next.may_vote_in_directory(NodeId(*id))));
    assert!(!next.may_vote_in_directory(NodeId(3)));
    let next = done(&next, &set(&[2, 4, 6]));
    assert_eq!(next.former_directory_voters, ids(&[1, 5, 7]));
    let next = done(&next, &Change::RemoveNode { node: NodeId(7) });
    assert_eq!(next.former_directory_voters, ids(&[1, 5]));
}

#[test]
fn a_database_shares_the_emptiest_shard_of_its_region() {
    let create = |n: u8, region: &str, own_shard| Change::CreateDatabase {
        id: DatabaseId([n; 16]),
        database: database(&format!("db~{n}"), region),
        own_shard,
    };
    let next = done(&cluster(), &create(2, "a", true));
    assert_eq!(next.databases[&DatabaseId([2; 16])].shard, ShardId(2));
    let next = done(&next, &create(3, "a", false));
    assert_eq!(next.databases[&DatabaseId([3; 16])].shard, SHARD);
    let next = done(&next, &create(4, "a", false));
    assert_eq!(next.databases[&DatabaseId([4; 16])].shard, ShardId(2));
    let next = done(&next, &create(5, "b", false));
    let shard = &next.shards[&ShardId(3)];
    assert_eq!(
        (shard.voters.clone(), &shard.phase, shard.epoch),
        (ids(&[4, 5]), &Phase::Forming, Epoch::FIRST)
    );
    assert_eq!(
        (shard.preferred_leader, &shard.bases),
        (Some(NodeId(4)), &vec![(Epoch::FIRST, Position::ZERO)])
    );
    assert_eq!(
        refused(&next, &create(5, "b", false)),
        format!("database {} exists already", DatabaseId([5; 16]))
    );
    assert_eq!(refused(&next, &create(6, "d", false)), "there is no region d");
    let next = done(&next, &Change::AddRegion { name: "d".into() });
    assert_eq!(refused(&next, &create(6, "d", false)), "region d has no nodes");
}

#[test]
fn new_shard_gets_an_odd_number_of_the_least_used_voters() {
    let mut next = cluster();
    for (id, data_center) in [(8, "a4"), (9, "a1")] {
        next = done(&next, &Change::AddNode { node: node(id, "a", data_center) });
    }
    let change = Change::CreateDatabase {
        id: DatabaseId([2; 16]),
        database: database("two", "a"),
        own_shard: true,
    };
    next = done(&next, &change);
    // Nodes 8 and 9 vote nowhere yet; of the other data centers the first.
    assert_eq!(next.shards[&ShardId(2)].voters, ids(&[2, 8, 9]));
    assert_eq!(next.shards[&ShardId(2)].preferred_leader, Some(NodeId(2)));
    // The two of one data center take turns.
    for n in 3..=8 {
        let (id, database) = (DatabaseId([n; 16]), database(&format!("db{n}"), "a"));
        next = done(&next, &Change::CreateDatabase { id, database, own_shard: true });
    }
    let votes = |node| {
        let votes = |shard: &&Shard| shard.voters.contains(&NodeId(node));
        next.shards.values().filter(votes).count()
    };
    assert!(
        votes(1) + votes(9) >= 6 && votes(1).abs_diff(votes(9)) <= 1,
        "{}, {}",
        votes(1),
        votes(9)
    );
    for id in 10..=13 {
        next = done(&next, &Change::AddNode { node: node(id, "a", &format!("a{id}")) });
    }
    assert_eq!(next.would_be_voters("a").len(), 5);
}

#[test]
fn a_database_is_changed_and_deleted_and_its_shard_stays() {
    let cluster = cluster();
    let set = |failover, rpo, primary_region: Option<&str>| Change::SetDatabase {
        id: DATABASE,
        failover,
        rpo,
        primary_region: primary_region.map(str::to_owned),
        v8_format: None,
        queue_paused: None,
    };
    let next = done(&cluster, &set(Some(FailoverMode::Manual), None, Some("b")));
    let changed = &next.databases[&DATABASE];
    assert_eq!((changed.failover, changed.primary_region.as_str()), (FailoverMode::Manual, "b"));
    assert!(!next.fails_over_by_itself(SHARD) && next.fails_over_by_itself(ShardId(9)));
    assert_eq!(refused(&cluster, &set(None, None, None)), "that is how it is already");
    assert_eq!(changed.v8_format, V8Format::Portable);
    let as_sent = Change::SetDatabase {
        id: DATABASE,
        failover: None,
        rpo: None,
        primary_region: None,
        v8_format: Some(V8Format::AsSent),
        queue_paused: None,
    };
    let next = done(&next, &as_sent);
    assert_eq!(next.databases[&DATABASE].v8_format, V8Format::AsSent);
    let paused = |paused| Change::SetDatabase {
        id: DATABASE,
        failover: None,
        rpo: None,
        primary_region: None,
        v8_format: None,
        queue_paused: Some(paused),
    };
    assert_eq!(refused(&next, &paused(false)), "that is how it is already");
    let is_paused = |cluster: &Cluster| cluster.databases[&DATABASE].queue_paused;
    let next = done(&next, &paused(true));
    let next = done(&next, &set(Some(FailoverMode::Auto), None, None));
    assert!(is_paused(&next) && !is_paused(&done(&next, &paused(false))));
    let rpo = Rpo { soft_ms: 2, max_ms: 1, ..Rpo::default() };
    assert_eq!(
        refused(&cluster, &set(None, Some(rpo), None)),
        "writes cannot be slowed from 2 ms and refused from 1 ms on"
    );
    let next = done(&next, &Change::DeleteDatabase { id: DATABASE });
    assert_eq!((next.default_database, next.databases.len(), next.shards.len()), (None, 0, 1));
    assert_eq!(
        refused(&next, &Change::DeleteDatabase { id: DATABASE }),
        format!("there is no database {DATABASE}")
    );
}

#[test]
fn a_deletion_is_remembered_until_it_has_ended_and_its_name_is_free_at_once() {
    let next = done(&cluster(), &Change::DeleteDatabase { id: DATABASE });
    assert_eq!(next.deleting[&DATABASE], Deletion { name: "main".to_owned(), shard: SHARD });
    let again =
        |id| Change::CreateDatabase { id, database: database("main", "a"), own_shard: false };
    assert_eq!(refused(&next, &again(DATABASE)), format!("database {DATABASE} is being deleted"));
    let next = done(&next, &again(DatabaseId([7; 16])));
    assert_eq!((next.databases.len(), next.deleting.len()), (1, 1));
    let next = done(&next, &Change::RemoveNode { node: NodeId(7) });
    assert_eq!(
        next.lacking_drop(|node| node != NodeId(5)),
        ids(&[5]),
        "a node that was removed is not waited for"
    );
    let next = done(&next, &Change::EndDeletion { id: DATABASE });
    assert!(next.deleting.is_empty());
    let message = format!("database {DATABASE} is not being deleted");
    assert_eq!(refused(&next, &Change::EndDeletion { id: DATABASE }), message);
}

#[test]
fn tokens_are_numbered_and_revoked() {
    let token = |scope| Token::new("ci".to_owned(), "ab".repeat(32), scope, Permissions::ALL);
    let create = |token| Change::CreateToken { token };
    let next = done(&cluster(), &create(token(TokenScope::All)));
    assert_eq!((next.last_token_id, &next.tokens[&1]), (1, &token(TokenScope::All)));
    let again = refused(&next, &create(token(TokenScope::All)));
    assert_eq!(again, "this token exists already: bring another secret, or have one made");
    let next = done(&next, &Change::RevokeToken { id: 1 });
    assert_eq!(refused(&next, &Change::RevokeToken { id: 1 }), "there is no token 1");
    let unknown = DatabaseId([9; 16]);
    let scope = TokenScope::Databases(BTreeSet::from([unknown]));
    assert_eq!(refused(&next, &create(token(scope))), format!("there is no database {unknown}"));
    let short = Token { sha256: "ab".to_owned(), ..token(TokenScope::All) };
    assert_eq!(refused(&next, &create(short)), "a token is kept as its SHA-256, 64 hex digits");
}

#[test]
fn token_that_is_rotated_has_two_secrets_until_it_is_rotated_again() {
    let hash = |digits: &str| digits.repeat(32);
    let token = Token::new("ci".to_owned(), hash("ab"), TokenScope::All, Permissions::ALL);
    let rotate = |digits: &str, previous_until_ms| Change::RotateToken {
        id: 1,
        sha256: hash(digits),
        previous_until_ms,
    };
    let none = refused(&cluster(), &rotate("cd", None));
    assert_eq!(none, "there is no token 1");
    let made = done(&cluster(), &Change::CreateToken { token });
    let once = done(&made, &rotate("cd", Some(9)));
    let secrets = |cluster: &Cluster| {
        cluster.tokens[&1].hashes().map(|hash| hash[..2].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(secrets(&once), ["cd", "ab"]);
    assert_eq!(once.tokens[&1].previous.as_ref().map(|secret| secret.until_ms), Some(9));
    // The oldest ends, also within its overlap.
    assert_eq!(secrets(&done(&once, &rotate("ef", Some(20)))), ["ef", "cd"]);
    assert_eq!(secrets(&done(&once, &rotate("ef", None))), ["ef"]);
    // No secret is one of two tokens, or comes back.
    for digits in ["ab", "cd", "AB"] {
        assert!(refused(&once, &rotate(digits, None)).starts_with("this token exists already: "));
    }
    let again = Token::new("other".to_owned(), hash("ab"), TokenScope::All, Permissions::ALL);
    let again = refused(&once, &Change::CreateToken { token: again });
    assert!(again.starts_with("this token exists already: "), "{again}");
    assert!(done(&once, &Change::RevokeToken { id: 1 }).tokens.is_empty());
}

#[test]
fn scope_of_a_token_is_of_use_and_bounded() {
    let prefix = |key: &[u8]| KeyPrefix::new(key.to_vec()).unwrap();
    let token = |permissions, prefixes: &[&[u8]]| Change::CreateToken {
        token: Token {
            prefixes: prefixes.iter().map(|key| prefix(key)).collect(),
            ..Token::new("ci".to_owned(), "ab".repeat(32), TokenScope::All, permissions)
        },
    };
    let manages = refused(&cluster(), &token(Permissions::ALL, &[b"\x02a\x00"]));
    assert!(manages.contains("does not have the permission `manage`"), "{manages}");
    let none = refused(&cluster(), &token(Permissions::NONE, &[]));
    assert_eq!(none, "a token without permissions is of no use");
    let many: Vec<[u8; 1]> = (1..=17).map(|byte| [byte]).collect();
    let many: Vec<&[u8]> = many.iter().map(|key| &key[..]).collect();
    let permissions = Permissions::ALL.without(Permission::Manage);
    let refused = refused(&cluster(), &token(permissions, &many));
    assert_eq!(refused, "a token has at most 16 prefixes");
    done(&cluster(), &token(permissions, &many[..16]));
}

#[test]
fn what_people_are_shown_has_no_hash_of_a_token_and_nothing_that_a_node_has_to_show() {
    let hash = "ab".repeat(32);
    let token = |sha256: &str| {
        Token::new("ci".to_owned(), sha256.to_owned(), TokenScope::All, Permissions::ALL)
    };
    let speak = Change::RecordIncarnation { node: NodeId(1), incarnation: "5eed".to_owned() };
    let create = Change::CreateToken { token: token(&hash) };
    let rotate = Change::RotateToken { id: 1, sha256: "ef".repeat(32), previous_until_ms: Some(9) };
    let next = done(
        &done(&done(&done(&cluster(), &speak), &create), &rotate),
        &Change::CreateToken { token: token(&"cd".repeat(32)) },
    );
    let shown =
        |cluster: &Cluster| format!("{cluster:?}{}", serde_json::to_string(cluster).unwrap());

    // A gateway checks tokens, and no node speaks for another.
    let followed = next.for_nodes();
    assert!(shown(&followed).contains(&hash) && !shown(&followed).contains("5eed"));
    assert_eq!(
        followed.nodes[&NodeId(1)].incarnation.as_deref(),
        Some(""),
        "that it has spoken is no secret"
    );
    assert_eq!(followed.nodes[&NodeId(2)].incarnation, None);
    assert!(shown(&followed).contains(&"ef".repeat(32)));
    let inspected = shown(&next.without_secrets(None));
    assert!(!inspected.contains(&hash) && !inspected.contains("5eed"));
    assert!(!inspected.contains(&"ef".repeat(32)));
    // The maker of a token finds it among the others.
    let made = next.without_secrets(Some(&hash));
    assert!(shown(&made).contains(&hash) && !shown(&made).contains(&"cd".repeat(32)));
    for change in [&speak, &create, &rotate] {
        let shown = format!("{:?}", change.without_secrets());
        let secrets = [&hash, "5eed", &"ef".repeat(32)];
        assert!(!secrets.iter().any(|secret| shown.contains(*secret)), "{shown}");
    }
}
