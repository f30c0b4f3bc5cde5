//! Commit notices, carried by the next entries where these come soon.

use std::pin::pin;
use std::time::Duration;

use futures::future::{self, Either};
use futures::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;

use crate::type_config::TypeConfig;

/// The longest that a commit notice waits for entries to carry it. A strong read at a follower
/// right behind a write, and shipping from there, may be late by as much.
pub(crate) const CARRIED_WITHIN: Duration = Duration::from_millis(1);

/// Leaves out requests that say nothing but how far the log is committed, where a later one of the
/// stream says so in time. While writes flow, that is nearly all of them, and without this they are
/// half of all messages.
///
/// The first request passes at once: it may be a heartbeat or a probe, which are streams of one
/// request. Safe, because openraft takes the answer to a later request for one to all before it.
pub(crate) fn carry_commits(
    requests: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin + Send,
    within: Duration,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send {
    let (first, requests) = (true, requests.fuse());
    futures::stream::unfold((requests, first), move |(mut requests, first)| async move {
        let mut request = requests.next().await?;
        if !first && request.entries.is_empty() {
            let mut ends = pin!(tokio::time::sleep(within));
            while request.entries.is_empty()
                && let Either::Left((Some(later), _)) =
                    future::select(requests.next(), ends.as_mut()).await
            {
                request = later;
            }
        }
        Some((request, (requests, false)))
    })
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use meridian_types::NodeId;
    use openraft::EntryPayload;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::type_config::{Entry, LogId, Vote};

    const HOUR: Duration = Duration::from_secs(3600);

    fn request(committed: u64, entries: &[u64]) -> AppendEntriesRequest<TypeConfig> {
        let leader_id = openraft::impls::leader_id_std::LeaderId::new(1, NodeId(1));
        let id = |index| LogId::new(1.into(), index);
        let entry = |index: &u64| Entry { log_id: id(*index), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote { leader_id, committed: true },
            prev_log_id: None,
            entries: entries.iter().map(entry).collect(),
            leader_commit: Some(id(committed)),
        }
    }

    fn said(request: Option<AppendEntriesRequest<TypeConfig>>) -> Option<(u64, usize)> {
        request
            .map(|request| (request.leader_commit.map_or(0, |id| id.index), request.entries.len()))
    }

    #[tokio::test]
    async fn a_commit_goes_with_the_entries_that_come_soon() {
        let (sends, requests) = mpsc::unbounded();
        let mut carried = pin!(carry_commits(requests, HOUR));
        // A heartbeat or a probe is one such request, whose answer openraft then waits for.
        sends.unbounded_send(request(1, &[])).unwrap();
        assert_eq!(said(carried.next().await), Some((1, 0)));
        for (sent, expected) in [
            (vec![request(2, &[]), request(3, &[4])], (3, 1)),
            (vec![request(4, &[]), request(5, &[]), request(6, &[7, 8])], (6, 2)),
            (vec![request(7, &[9])], (7, 1)),
        ] {
            sent.into_iter().for_each(|request| sends.unbounded_send(request).unwrap());
            assert_eq!(said(carried.next().await), Some(expected));
        }
        sends.unbounded_send(request(8, &[])).unwrap();
        assert!(future::poll_immediate(carried.next()).await.is_none());
        // Nothing is left behind that openraft will say no more of.
        drop(sends);
        assert_eq!(said(carried.next().await), Some((8, 0)));
        assert!(carried.next().await.is_none());
    }

    #[tokio::test]
    async fn a_commit_goes_alone_when_no_entries_come_whatever_else_commits() {
        let (sends, requests) = mpsc::unbounded();
        let mut carried = pin!(carry_commits(requests, Duration::from_millis(10)));
        sends.unbounded_send(request(1, &[2])).unwrap();
        assert_eq!(said(carried.next().await), Some((1, 1)));
        let committing = async {
            for committed in 2.. {
                sends.unbounded_send(request(committed, &[])).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let Either::Right((alone, _)) = future::select(pin!(committing), carried.next()).await
        else {
            panic!()
        };
        assert_eq!(said(alone).map(|(_, entries)| entries), Some(0));
    }
}
