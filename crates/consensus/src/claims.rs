//! Checks for claims of other members that cannot be true.
//!
//! Members trust each other: they are one program with one configuration. A bit that flipped, a bug
//! or a member that went mad is to harm no group for good all the same, and some numbers would:
//! behind the last term there is none to be elected in.

use openraft::raft::AppendEntriesRequest;

use crate::type_config::TypeConfig;

/// Terms grow by one with each candidacy. So many of them take years, also of a group that does
/// nothing else.
const MAX_TERM_JUMP: u64 = 1 << 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Implausible {
    #[error(
        "term {claimed} is more than any group can have reached whose term is known here as {known}"
    )]
    Term { claimed: u64, known: u64 },
    #[error("log entry {index} of term {term} does not follow entry {after} in a leader's log")]
    Entry { index: u64, term: u64, after: u64 },
    #[error("log entry {index} has the batch {sequence}, behind the batch {after}")]
    Batch { index: u64, sequence: u64, after: u64 },
}

/// Whether a group whose term is `known` can have reached the term that is claimed.
pub(crate) fn check_term(claimed: u64, known: u64) -> Result<(), Implausible> {
    if claimed > known.saturating_add(MAX_TERM_JUMP) {
        Err(Implausible::Term { claimed, known })
    } else {
        Ok(())
    }
}

/// Whether entries can follow one another, and what they are sent behind, in the log of the leader
/// that they are from. `sequences`: of the batch of each entry, where it has one.
pub(crate) fn check_entries(
    request: &AppendEntriesRequest<TypeConfig>,
    sequences: &[Option<u64>],
) -> Result<(), Implausible> {
    let mut last =
        request.prev_log_id.map_or((0, None), |last| (last.leader_id.term, Some(last.index)));
    let mut batch = None;
    for (entry, sequence) in request.entries.iter().zip(sequences) {
        let (term, index) = (entry.log_id.leader_id.term, entry.log_id.index);
        let (last_term, last_index) = last;
        let follows = last_index.map_or(Some(0), |last| last.checked_add(1)) == Some(index);
        if !follows || term < last_term || term > request.vote.leader_id.term {
            return Err(Implausible::Entry { index, term, after: last_index.unwrap_or(0) });
        }
        last = (term, Some(index));
        if let Some(sequence) = *sequence
            && let Some(after) = batch.replace(sequence)
            && Some(sequence) != after.checked_add(1)
        {
            return Err(Implausible::Batch { index, sequence, after });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use meridian_types::NodeId;
    use openraft::EntryPayload;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::type_config::{Entry, LogId, Vote};

    #[test]
    fn no_group_reaches_a_term_that_is_years_away() {
        for (claimed, known) in
            [(0, 0), (7, 5), (3, 1 << 40), ((1 << 32) + 5, 5), (u64::MAX, u64::MAX)]
        {
            assert_eq!(check_term(claimed, known), Ok(()));
        }
        for (claimed, known) in [(u64::MAX, 5), ((1 << 32) + 6, 5)] {
            assert_eq!(check_term(claimed, known), Err(Implausible::Term { claimed, known }));
        }
    }

    /// A request of a leader of term 3, behind entry 10 of term 2: of terms, indexes and sequences.
    fn check(entries: &[(u64, u64, u64)]) -> Result<(), Implausible> {
        let entry = |(term, index, _): &(u64, u64, u64)| Entry {
            log_id: LogId::new((*term).into(), *index),
            payload: EntryPayload::Blank,
        };
        let sequences: Vec<_> = entries.iter().map(|(.., sequence)| Some(*sequence)).collect();
        let request = AppendEntriesRequest {
            vote: Vote {
                leader_id: openraft::impls::leader_id_std::LeaderId::new(3, NodeId(1)),
                committed: true,
            },
            prev_log_id: Some(LogId::new(2.into(), 10)),
            entries: entries.iter().map(entry).collect(),
            leader_commit: None,
        };
        check_entries(&request, &sequences)
    }

    #[test]
    fn entries_follow_one_another_as_in_a_log() {
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[(2, 11, 5), (2, 12, 6), (3, 13, 7)]), Ok(()));
        for entries in [
            &[(2, 12, 5)][..],
            &[(2, 10, 5)],
            &[(2, u64::MAX, 5)],
            &[(2, 11, 5), (2, 13, 6)],
            &[(1, 11, 5)],
            &[(4, 11, 5)],
            &[(u64::MAX, 11, 5)],
            &[(3, 11, 5), (2, 12, 6)],
        ] {
            assert!(matches!(check(entries), Err(Implausible::Entry { .. })), "{entries:?}");
        }
        // An applier that met a gap would stop its process, and stop again at each start.
        for sequence in [4, 5, 7, u64::MAX] {
            let gap = check(&[(2, 11, 5), (2, 12, sequence)]);
            assert_eq!(gap, Err(Implausible::Batch { index: 12, sequence, after: 5 }));
        }
    }
}
