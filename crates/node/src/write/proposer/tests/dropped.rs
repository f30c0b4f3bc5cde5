use meridian_directory::Change;

use super::*;

fn learn(leader: &Leader, change: &Change) {
    leader.directory.learn(leader.directory.known().cluster.after(change).unwrap()).unwrap();
}

async fn until_dropped(leader: &Leader) {
    let mut applied = leader.group.applied();
    while !leader.state.is_dropped(DATABASE).unwrap() {
        applied.changed().await.unwrap();
    }
}

fn is_refused(reply: &WriteReply) -> bool {
    matches!(reply.outcome(), Some(WriteOutcome::Rejected(text)) if text == "the database was deleted")
}

#[tokio::test]
async fn a_deleted_database_is_dropped_in_the_log_and_nothing_of_it_is_logged_behind_that() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    let id = new_request_id();
    let committed = leader.write(id, false, set("k", "1")).await;
    learn(&leader, &Change::DeleteDatabase { id: DATABASE });
    until_dropped(&leader).await;
    assert_eq!(leader.value("k"), None);
    let late = leader.write(new_request_id(), false, set("k", "2")).await;
    assert!(is_refused(&late), "{late:?}");
    let Some(WriteOutcome::Committed(stamp)) = committed.outcome() else { panic!("{committed:?}") };
    let dropped = stamp.position().next();
    assert_eq!(leader.proposed.load(Ordering::Relaxed), dropped.sequence, "it is dropped once");
    // A caller that does not know yet what became of an earlier write is told.
    assert_eq!(leader.write(id, true, set("k", "1")).await, committed);
    leader.group.shutdown().await;
    // The next leader knows an older directory, in which the database is still there.
    let next = Leader::start(Arc::new(engine.crash(0))).await;
    assert!(next.directory.holds(ShardId(1), DATABASE));
    for retry in [false, true] {
        let late = next.write(new_request_id(), retry, set("k", "3")).await;
        assert!(is_refused(&late), "{late:?}");
    }
    assert_eq!(next.value("k"), None);
}

#[tokio::test]
async fn a_drop_that_a_leader_did_not_come_to_log_is_logged_by_the_next() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(set("k", "1")).await;
    // It has no lease any more: it is not its business.
    leader.directory.seal(ShardId(1), Epoch(1));
    learn(&leader, &Change::DeleteDatabase { id: DATABASE });
    let refused = leader.write(new_request_id(), false, set("k", "2")).await;
    assert!(matches!(refused, WriteReply::NotCommitted(_)), "{refused:?}");
    leader.group.shutdown().await;
    assert!(!leader.state.is_dropped(DATABASE).unwrap());
    let next = Leader::start(Arc::new(engine.crash(0))).await;
    learn(&next, &Change::DeleteDatabase { id: DATABASE });
    until_dropped(&next).await;
    assert_eq!(next.value("k"), None);
}

#[tokio::test]
async fn a_name_can_be_used_again_while_its_first_database_is_deleted() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("k", "1")).await;
    let database = leader.directory.known().cluster.databases[&DATABASE].clone();
    let again = DatabaseId([9; 16]);
    let unknown = leader.write_to(again, new_request_id(), false, set("k", "2")).await;
    assert!(
        matches!(&unknown, WriteReply::NotCommitted(WriteRefusal::UnknownDatabase(_))),
        "{unknown:?}"
    );
    learn(&leader, &Change::DeleteDatabase { id: DATABASE });
    learn(&leader, &Change::CreateDatabase { id: again, database, own_shard: false });
    let written = leader.write_to(again, new_request_id(), false, set("k", "2")).await;
    assert!(matches!(written.outcome(), Some(WriteOutcome::Committed(_))), "{written:?}");
    until_dropped(&leader).await;
    assert_eq!(leader.value("k"), None);
    let all = ReadRange { start: Bytes::new(), end: "z".into(), limit: 9, reverse: false };
    assert_eq!(leader.state.read(again, &[all], 0).unwrap().ranges[0].len(), 1);
}
