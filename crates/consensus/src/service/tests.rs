use meridian_proto::log;
use meridian_storage::{MemoryEngine, schema::META_FAMILY};
use tonic::Code;

use super::*;
use crate::testing::NoStates;

#[tokio::test]
async fn member_is_made_known_by_itself_and_by_voters_alone() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    engine.create_family(META_FAMILY).unwrap();
    let service = RaftService::new(NodeId(2), Arc::new(NoStates), engine)
        .refusing_others_than_voters(|_, node| [1, 3].map(NodeId).contains(&node));
    let introduces = async |caller: Option<u64>, incarnation: &'static str| {
        let group = Some(raft::Group { shard: 1, epoch: 1, target: 2 });
        let incarnation = incarnation.into();
        let mut request = Request::new(raft::JoinRequest { group, node_id: 1, incarnation });
        if let Some(node) = caller {
            request.extensions_mut().insert(CallingNode(NodeId(node)));
        }
        let answer = raft_server::Raft::join(&service, request).await;
        answer.map(|answer| answer.into_inner().accepted).map_err(|status| status.code())
    };
    // Its own first word would be taken for that of a folder that was wiped.
    assert_eq!(introduces(Some(4), "of another").await, Err(Code::PermissionDenied));
    assert_eq!(introduces(Some(1), "first").await, Ok(true));
    assert_eq!(introduces(Some(3), "first").await, Ok(true));
    assert_eq!(introduces(Some(3), "second").await, Ok(false));
    assert_eq!(introduces(None, "first").await, Ok(true), "calls in the clear prove nothing");
}

/// One whose log is shorter than it was answers no question, and is to be sent what it lacks.
#[test]
fn what_brings_or_follows_anything_is_no_question() {
    let question = raft::AppendRequest { vote: Some(log::Vote::default()), ..Default::default() };
    assert!(is_question(&question));
    let some = Some(log::LogId::default());
    for other in [
        raft::AppendRequest { entries: vec![log::Entry::default()], ..question.clone() },
        raft::AppendRequest { previous: some, ..question.clone() },
        raft::AppendRequest { leader_commit: some, ..question.clone() },
    ] {
        assert!(!is_question(&other), "{other:?}");
    }
}
