//! A database that has used up its quota of what it stores.

use super::*;

#[tokio::test]
async fn what_stores_more_is_rejected_for_good_over_a_quota_and_deletes_and_earlier_writes_are_not()
{
    let leader = Leader::start(Arc::default()).await;
    let rejected = |reply: &WriteReply| matches!(reply.outcome(), Some(WriteOutcome::Rejected(text)) if text.contains("quota"));
    let (before, late) = (new_request_id(), new_request_id());
    let committed = leader.write(before, true, set("k", "1")).await;
    leader.is_full.store(true, Ordering::Relaxed);
    let reply = leader.write(late, true, set("k", "2")).await;
    assert!(rejected(&reply), "{reply:?}");
    let reply = leader.write(new_request_id(), false, add("n", 1)).await;
    assert!(rejected(&reply), "{reply:?}");
    // A write that committed before is told so, and no failed check is hidden.
    assert_eq!(leader.write(before, true, set("k", "1")).await, committed);
    let checks = vec![Check { key: Bytes::from_static(b"k"), versionstamp: None }];
    let checked = Transaction { checks, ..set("k", "3") };
    let reply = leader.write(new_request_id(), false, checked).await;
    assert!(matches!(reply.outcome(), Some(WriteOutcome::CheckFailed(_))), "{reply:?}");
    let delete =
        Mutation { key: Bytes::from_static(b"k"), kind: MutationKind::Delete, expire_at_ms: 0 };
    leader.commit(Transaction { mutations: vec![delete], ..Transaction::default() }).await;
    assert_eq!(leader.value("k"), None);
    // A rejected write stays so, should it come again when there is room.
    leader.is_full.store(false, Ordering::Relaxed);
    let reply = leader.write(late, true, set("k", "2")).await;
    assert!(rejected(&reply), "{reply:?}");
    leader.commit(set("k", "3")).await;
}
