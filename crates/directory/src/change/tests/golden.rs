//! The stored JSON of a cluster and of every change.

use super::*;

/// The stored form of a cluster: to be changed on purpose only, by adding fields with a default.
const GOLDEN: &str = include_str!("golden.json");

fn full() -> Cluster {
    let mut next = cluster();
    next.nodes.retain(|id, _| id.0 <= 5);
    next = done(&next, &Change::RecordIncarnation { node: NodeId(1), incarnation: "00ff".into() });
    let (shard, epoch) = (SHARD, Epoch(1));
    next = done(&next, &Change::SetVoters { shard, voters: ids(&[1, 2]) });
    let cause = "no leader".to_owned();
    next =
        done(&next, &Change::Seal { shard, epoch, to: None, planned: false, since_ms: 1, cause });
    let (voters, report) = (ids(&[4, 5]), report(2, at(1, 50), "b"));
    next =
        done(&next, &Change::Promote { shard, voters, preferred_leader: Some(NodeId(4)), report });
    let epoch = Epoch(2);
    next = done(
        &next,
        &Change::ShowLoss {
            shard,
            epoch,
            node: NodeId(1),
            transactions: 3,
            at_most: 4,
            last_time_ms: 5_100,
        },
    );
    for (n, to) in [(2, "b"), (3, "a")] {
        let database =
            Database { failover: FailoverMode::Manual, ..database(&format!("db{n}"), "a") };
        next = done(
            &next,
            &Change::CreateDatabase { id: DatabaseId([n; 16]), database, own_shard: true },
        );
        let shard = ShardId(n.into());
        next = done(&next, &Change::Activate { shard, epoch: Epoch::FIRST });
        next = done(
            &next,
            &match to {
                "b" => Change::BeginSwitchover { shard, to: to.to_owned() },
                _ => Change::SetVoters { shard, voters: ids(&[1, 3]) },
            },
        );
    }
    let scope = TokenScope::Databases(BTreeSet::from([DATABASE]));
    let (label, sha256) = ("ci".to_owned(), "ab".repeat(32));
    let token = Token {
        expires_at_ms: Some(9),
        created_at_ms: 8,
        ..Token::new(label, sha256, scope, Permissions::READ_ONLY)
    };
    next = done(&next, &Change::CreateToken { token });
    done(
        &next,
        &Change::ForceFailover {
            shard: ShardId(3),
            epoch: Epoch(1),
            to: Some("b".into()),
            since_ms: 2,
            cause: "x".into(),
        },
    )
}

#[test]
fn stored_json_is_golden() {
    let text = serde_json::to_string_pretty(&full()).unwrap();
    assert_eq!(text.trim(), GOLDEN.trim(), "it was:\n{text}");
    assert_eq!(serde_json::from_str::<Cluster>(GOLDEN).unwrap(), full());
}

#[test]
fn fields_that_were_added_may_be_absent() {
    let mut json: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let report = &mut json["shards"]["1"]["reports"][0];
    report.as_object_mut().unwrap().retain(|key, _| key != "old_voters" && key != "former_voters");
    report["loss"].as_object_mut().unwrap().retain(|key, _| key != "shown_by" && key != "at_most");
    json["nodes"]["2"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| key != "incarnation" && key != "removed");
    json["databases"][DATABASE.to_string()]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !["failover", "rpo", "v8_format", "queue_paused"].contains(&key.as_str()));
    json["shards"]["3"].as_object_mut().unwrap().remove("changing").unwrap();
    let read: Cluster = serde_json::from_value(json).unwrap();
    assert!(read.shards[&SHARD].reports[0].old_voters.is_empty());
}

#[test]
fn every_change_survives_being_written_and_read() {
    let (shard, epoch, cause) = (SHARD, Epoch(1), "why".to_owned());
    let to = Some("b".to_owned());
    let token = full().tokens[&1].clone();
    let (name, sha256) = ("ana".to_owned(), "cd".repeat(32));
    let changes = [
        Change::SetWebhook {
            id: DATABASE,
            queue: String::new(),
            settings: webhooks::settings("https://example.com/", Some(1), Some(2)),
        },
        Change::RotateWebhookKey { id: DATABASE, queue: String::new() },
        Change::RemoveWebhook { id: DATABASE, queue: String::new() },
        quotas::set(QuotaOwner::Database(DATABASE), &[(Quota::Keys, 5)], &[Quota::Watches]),
        quotas::set(QuotaOwner::Token(1), &[], &[Quota::Watches]),
        Change::NameCluster { id: "00ff00ff00ff00ff".into() },
        Change::RecordIncarnation { node: NodeId(1), incarnation: "ff".into() },
        Change::Seal {
            shard,
            epoch,
            to: to.clone(),
            planned: true,
            since_ms: 1,
            cause: cause.clone(),
        },
        Change::Promote {
            shard,
            voters: ids(&[4]),
            preferred_leader: None,
            report: report(2, at(1, 5), "b"),
        },
        Change::Activate { shard, epoch },
        Change::ShowLoss {
            shard,
            epoch,
            node: NodeId(1),
            transactions: 2,
            at_most: 2,
            last_time_ms: 3,
        },
        Change::BeginSwitchover { shard, to: "b".into() },
        Change::CancelSwitchover { shard },
        Change::ForceFailover { shard, epoch, to, since_ms: 1, cause },
        Change::AddRegion { name: "d".into() },
        Change::RemoveRegion { name: "d".into() },
        Change::AddNode { node: node(8, "a", "a4") },
        Change::RemoveNode { node: NodeId(8) },
        Change::ReplaceNode { old: NodeId(1), new: node(8, "a", "a1") },
        Change::SetVoters { shard, voters: ids(&[1, 2]) },
        Change::ConfirmVoters { shard, epoch, version: 3 },
        Change::SetDirectoryVoters { voters: ids(&[1, 2]) },
        Change::CreateDatabase { id: DATABASE, database: database("x", "a"), own_shard: true },
        Change::DeleteDatabase { id: DATABASE },
        Change::EndDeletion { id: DATABASE },
        Change::SetDatabase {
            id: DATABASE,
            failover: Some(FailoverMode::Manual),
            rpo: Some(Rpo::default()),
            primary_region: None,
            v8_format: Some(V8Format::AsSent),
            queue_paused: Some(true),
        },
        Change::CreateToken { token },
        Change::RotateToken { id: 1, sha256: "cd".repeat(32), previous_until_ms: Some(9) },
        Change::RevokeToken { id: 1 },
        Change::SetOperatorToken { name, sha256, expires_at_ms: Some(9) },
    ];
    for change in changes {
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change, "{text}");
    }
}
