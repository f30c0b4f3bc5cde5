//! Which clusters are refused, with the texts.

use std::collections::BTreeSet;

use meridian_directory::Cluster;
use meridian_types::Epoch;

use super::*;

fn address(port: u64) -> String {
    format!("127.0.0.1:{port}")
}

fn dev<'a>(layout: impl Into<DevLayout<'a>>) -> Result<Cluster, InvalidCluster> {
    layout.into().found(|id| address(4600 + id.0), |id| Some(address(4500 + id.0)))
}

/// 3 + 1 nodes in regions `east` and `west`, data centers `a` to `c`.
fn spec() -> ClusterSpec {
    let node = |id, region: &str, data_center: &str| NodeSpec {
        id: NodeId(id),
        name: format!("{region}-{data_center}"),
        region: region.to_owned(),
        data_center: data_center.to_owned(),
        rpc_address: address(4600 + id),
        kv_address: Some(address(4500 + id)),
    };
    ClusterSpec {
        regions: vec!["east".to_owned(), "west".to_owned()],
        nodes: vec![
            node(1, "east", "a"),
            node(2, "east", "b"),
            node(3, "east", "c"),
            node(4, "west", "a"),
        ],
        shards: vec![ShardSpec {
            id: ShardId(1),
            primary_region: "east".to_owned(),
            voters: None,
            preferred_leader: None,
            allow_weak_quorum: false,
        }],
        databases: vec![DatabaseSpec {
            id: DatabaseId([1; 16]),
            name: "main".to_owned(),
            shard: ShardId(1),
        }],
        default_database: Some("main".to_owned()),
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut ClusterSpec)) -> String {
    let mut spec = spec();
    change(&mut spec);
    spec.found().unwrap_err().to_string()
}

#[track_caller]
fn accepted(change: impl FnOnce(&mut ClusterSpec)) -> Cluster {
    let mut spec = spec();
    change(&mut spec);
    spec.found().unwrap()
}

#[test]
fn dev_cluster_is_as_documented() {
    let cluster = dev(&[3, 2, 1]).unwrap();
    assert_eq!(cluster.regions, ["region-1", "region-2", "region-3"]);
    let names: Vec<_> = cluster.nodes.iter().map(|(id, node)| (id.0, node.name.as_str())).collect();
    let expected = [
        (1, "region-1-a"),
        (2, "region-1-b"),
        (3, "region-1-c"),
        (4, "region-2-a"),
        (5, "region-2-b"),
        (6, "region-3-a"),
    ];
    assert_eq!(names, expected);
    assert_eq!(cluster.nodes[&NodeId(5)].rpc_address, "127.0.0.1:4605");
    for (shard, leader) in [(1, 1), (2, 2)] {
        let shard = &cluster.shards[&ShardId(shard)];
        assert_eq!(shard.epoch, Epoch::FIRST);
        assert_eq!(shard.voters, BTreeSet::from([1, 2, 3].map(NodeId)));
        assert_eq!(shard.preferred_leader, Some(NodeId(leader)));
    }
    assert_eq!(cluster.default_database, Some(DEV_DEFAULT_DATABASE));
    assert_eq!(cluster.shard_of(DEV_DEFAULT_DATABASE).unwrap().0, ShardId(1));
    assert_eq!(cluster.shard_of(DEV_SECOND_DATABASE).unwrap().0, ShardId(2));
    assert_eq!(DEV_SECOND_DATABASE.to_string(), "00000000-0000-4000-8000-000000000002");
}

#[test]
fn voters_that_are_listed_leave_the_others_to_follow() {
    let spare = accepted(|spec| {
        let five = NodeSpec {
            id: NodeId(5),
            name: "spare".to_owned(),
            rpc_address: address(1),
            kv_address: None,
            ..spec.nodes[0].clone()
        };
        spec.nodes.push(five);
        spec.shards[0].voters = Some([3, 5, 2].map(NodeId).to_vec());
    });
    assert_eq!(spare.shards[&ShardId(1)].voters, BTreeSet::from([2, 3, 5].map(NodeId)));
    assert!(spare.is_voter(ShardId(1), NodeId(5)) && !spare.is_voter(ShardId(1), NodeId(1)));
}

#[test]
fn a_dev_cluster_is_checked_too() {
    assert_eq!(dev(&[]).unwrap_err(), InvalidCluster::NoRegions);
    let many = InvalidCluster::TooManyDataCenters { region: "region-2".to_owned(), count: 27 };
    assert_eq!(dev(&[3, 27]).unwrap_err(), many);
    for count in [1, 2, 4] {
        let weak = InvalidCluster::WeakQuorum { shard: ShardId(1), voters: count };
        assert_eq!(dev(&[count, 1]).unwrap_err(), weak);
        let meant =
            dev(DevLayout { allow_weak_quorum: true, ..DevLayout::new(&[count, 1]) }).unwrap();
        assert_eq!(meant.shards[&ShardId(2)].preferred_leader, Some(NodeId(2.min(count as u64))));
        assert!(is_weak(meant.shards[&ShardId(1)].voters.len()));
    }
    let none = InvalidCluster::NoVoters { shard: ShardId(1), region: "region-1".to_owned() };
    assert_eq!(
        dev(DevLayout { allow_weak_quorum: true, ..DevLayout::new(&[0, 3]) }).unwrap_err(),
        none
    );
}

#[test]
fn shards_and_databases_of_a_dev_cluster_take_turns() {
    let cluster = dev(DevLayout { shards: 4, databases: 300, ..DevLayout::new(&[3, 1]) }).unwrap();
    let leaders: Vec<_> = cluster.shards.values().map(|shard| shard.preferred_leader).collect();
    assert_eq!(leaders, [1, 2, 3, 1].map(|leader| Some(NodeId(leader))));
    let databases: Vec<_> =
        cluster.databases.values().map(|one| (one.name.as_str(), one.shard.0)).collect();
    assert_eq!(databases[..3], [("default", 1), ("second", 2), ("database-3", 3)]);
    assert_eq!((databases[299], databases.len()), (("database-300", 4), 300));
    let last = "00000000-0000-4000-8000-00000000012c".parse().unwrap();
    assert_eq!(cluster.databases[&last].name, "database-300");
}

#[test]
fn two_nodes_of_one_data_center_do_not_pass_for_two() {
    assert_eq!(
        refused(|spec| spec.nodes[1].data_center = "a".to_owned()),
        "nodes 1 and 2 are both in data center `a` of region `east`, so they cannot both vote in shard 1: \
         list one voter for each data center in `voters`"
    );
    assert_eq!(
        refused(|spec| spec.nodes[1].rpc_address = "127.0.0.1:4601".to_owned()),
        "127.0.0.1:4601 is both the rpc_address of node 1 and the rpc_address of node 2: \
         one process cannot be two nodes, nor one port serve two purposes"
    );
    assert_eq!(
        refused(|spec| {
            spec.nodes[0].rpc_address = "db.example.com:4601".to_owned();
            spec.nodes[2].rpc_address = "DB.example.com:4602".to_owned();
        }),
        "nodes 1 and 3 are both on host db.example.com, so they are not in two data centers and cannot both vote in shard 1"
    );
    // Outside the voters, a data center and a host may have several nodes.
    accepted(|spec| {
        spec.nodes[0].rpc_address = "db.example.com:4601".to_owned();
        let five = NodeSpec {
            id: NodeId(5),
            name: "five".to_owned(),
            rpc_address: "db.example.com:4602".to_owned(),
            kv_address: None,
            ..spec.nodes[0].clone()
        };
        spec.nodes.push(five);
        spec.shards[0].voters = Some([1, 2, 3].map(NodeId).to_vec());
    });
}

#[test]
fn weak_quorum_needs_the_flag() {
    assert_eq!(
        refused(|spec| spec.shards[0].voters = Some([1, 2].map(NodeId).to_vec())),
        "shard 1 has only 2 voters, which cannot commit once either is lost: it needs an odd number of at least 3, \
         each in a data center of its own (set `allow_weak_quorum = true` on the shard if this is meant)"
    );
    assert!(
        refused(|spec| spec.shards[0].voters = Some([1].map(NodeId).to_vec()))
            .starts_with("shard 1 has only 1 voter, so that")
    );
    let four = |spec: &mut ClusterSpec| {
        spec.nodes[3].region = "east".to_owned();
        spec.nodes[3].name = "four".to_owned();
        spec.nodes[3].data_center = "d".to_owned();
    };
    assert!(
        refused(four)
            .starts_with("shard 1 has 4 voters, an even number, which survives no more losses")
    );
    let weak = accepted(|spec| {
        four(spec);
        spec.shards[0].allow_weak_quorum = true;
    });
    assert_eq!(weak.shards[&ShardId(1)].voters.len(), 4);
}

#[test]
fn regions_are_checked() {
    assert_eq!(
        refused(|spec| spec.regions.clear()),
        "there are no regions: `regions` must list at least one"
    );
    assert_eq!(
        refused(|spec| spec.regions[1].clear()),
        "the name of region number 2 of `regions` is empty"
    );
    assert_eq!(
        refused(|spec| spec.regions[1] = "east".to_owned()),
        "region `east` is listed twice"
    );
    assert_eq!(
        refused(|spec| spec.regions[1] = "far west".to_owned()),
        "the name of region number 2 of `regions`, `far west`, is not made of letters, digits, `-`, `_` and `.`"
    );
    // A region may have gateways only.
    accepted(|spec| spec.regions.push("south".to_owned()));
}

#[test]
fn nodes_are_checked() {
    assert_eq!(
        refused(|spec| spec.nodes.clear()),
        "there are no nodes: at least one [[nodes]] is needed"
    );
    assert_eq!(
        refused(|spec| spec.nodes[2].id = NodeId(0)),
        "node `east-c` has id 0: ids of nodes begin at 1"
    );
    assert_eq!(
        refused(|spec| spec.nodes[2].id = NodeId(1)),
        "nodes `east-a` and `east-c` both have id 1"
    );
    assert_eq!(refused(|spec| spec.nodes[2].name.clear()), "the name of node 3 is empty");
    assert_eq!(
        refused(|spec| spec.nodes[2].data_center.clear()),
        "the name of the data center of node 3 is empty"
    );
    assert_eq!(
        refused(|spec| spec.nodes[2].name = "east-a".to_owned()),
        "nodes 1 and 3 are both named `east-a`"
    );
    for name in ["a/b", "..", "a b", "é"] {
        assert_eq!(
            refused(|spec| spec.nodes[2].name = name.to_owned()),
            format!(
                "the name of node 3, `{name}`, is not made of letters, digits, `-`, `_` and `.`"
            )
        );
    }
    assert_eq!(
        refused(|spec| spec.nodes[3].region = "north".to_owned()),
        "node 4 is in region `north`, which is not one of the regions `east`, `west`"
    );
}

#[test]
fn addresses_are_checked() {
    assert_eq!(
        refused(|spec| spec.nodes[1].rpc_address = "somewhere".to_owned()),
        "rpc_address of node 2: `somewhere` is not a host and a port, such as `10.0.0.1:4601`"
    );
    assert_eq!(
        refused(|spec| spec.nodes[1].kv_address = Some("127.0.0.1:0".to_owned())),
        "kv_address of node 2: `127.0.0.1:0` has port 0, which cannot be dialled"
    );
    assert_eq!(
        refused(|spec| spec.nodes[1].rpc_address = "0.0.0.0:4602".to_owned()),
        "rpc_address of node 2: `0.0.0.0:4602` stands for every address of a machine: write the address that others dial"
    );
    assert_eq!(
        refused(|spec| spec.nodes[3].kv_address = Some("127.0.0.1:4604".to_owned())),
        "127.0.0.1:4604 is both the rpc_address of node 4 and the kv_address of node 4: \
         one process cannot be two nodes, nor one port serve two purposes"
    );
    assert!(
        refused(|spec| spec.nodes[3].kv_address = Some("127.0.0.1:4502".to_owned())).starts_with(
            "127.0.0.1:4502 is both the kv_address of node 2 and the kv_address of node 4"
        )
    );
    accepted(|spec| spec.nodes[0].kv_address = None);
}

#[test]
fn shards_are_checked() {
    assert_eq!(
        refused(|spec| spec.shards.clear()),
        "there are no shards: at least one [[shards]] is needed"
    );
    assert_eq!(
        refused(|spec| spec.shards[0].id = ShardId(0)),
        "a shard has id 0: ids of shards begin at 1"
    );
    assert_eq!(refused(|spec| spec.shards.push(spec.shards[0].clone())), "two shards have id 1");
    assert_eq!(
        refused(|spec| spec.shards[0].primary_region = "north".to_owned()),
        "the primary region of shard 1 is `north`, which is not one of the regions `east`, `west`"
    );
    let none = "shard 1 has no nodes: there is no voter in its primary region";
    assert_eq!(refused(|spec| spec.shards[0].voters = Some(vec![])), format!("{none} `east`"));
    assert_eq!(
        refused(|spec| {
            spec.regions.push("south".to_owned());
            spec.shards[0].primary_region = "south".to_owned();
        }),
        format!("{none} `south`")
    );
    assert_eq!(
        refused(|spec| spec.shards[0].voters = Some([1, 2, 9].map(NodeId).to_vec())),
        "node 9 is to vote in shard 1, but there is no node 9"
    );
    assert_eq!(
        refused(|spec| spec.shards[0].voters = Some([1, 2, 2].map(NodeId).to_vec())),
        "node 2 is listed twice among the voters of shard 1"
    );
    assert_eq!(
        refused(|spec| spec.shards[0].voters = Some([1, 2, 4].map(NodeId).to_vec())),
        "node 4 is to vote in shard 1, but is in region `west` and not in the shard's primary region `east`"
    );
    assert_eq!(
        refused(|spec| spec.shards[0].preferred_leader = Some(NodeId(4))),
        "node 4 is the preferred leader of shard 1, but not one of its voters 1, 2, 3"
    );
}

#[test]
fn databases_are_checked() {
    let id = "01010101-0101-0101-0101-010101010101";
    let other =
        || DatabaseSpec { id: DatabaseId([2; 16]), name: "other".to_owned(), shard: ShardId(1) };
    assert_eq!(
        refused(|spec| spec.databases.clear()),
        "there are no databases: at least one [[databases]] is needed"
    );
    assert_eq!(
        refused(|spec| spec.databases[0].name.clear()),
        format!("the name of database {id} is empty")
    );
    assert_eq!(
        refused(|spec| spec.databases[0].name = "*".to_owned()),
        "the database name `*` is not made of letters, digits, `-`, `_`, `.` and `~`"
    );
    assert_eq!(
        refused(|spec| spec.databases.push(DatabaseSpec { name: "main".to_owned(), ..other() })),
        "two databases are named `main`"
    );
    assert_eq!(
        refused(|spec| spec.databases.push(DatabaseSpec { id: DatabaseId([1; 16]), ..other() })),
        format!("databases `main` and `other` both have id {id}")
    );
    assert_eq!(
        refused(|spec| spec.databases.push(DatabaseSpec { shard: ShardId(7), ..other() })),
        "database `other` is in shard 7, but there is no shard 7"
    );
    assert_eq!(
        refused(|spec| spec.default_database = Some("mian".to_owned())),
        "the default database `mian` is not one of the databases"
    );
    assert_eq!(accepted(|spec| spec.default_database = None).default_database, None);
}
