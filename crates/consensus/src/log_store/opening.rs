//! Repair of a log before its use, whatever the disk did to its end.

use meridian_storage::{GroupLog, HighWater, LogMark, StorageError};

use super::{LogStore, READ_BYTES, log_id_mark, vote_mark};
use crate::type_config::LogId;
use crate::wire;

/// Cuts off what cannot be the end of a log. A log that is then shorter than it had certainly been
/// lost what was acknowledged: its member is marked as having left the group with that much, and so
/// does not vote before its leader has sent it as much again. It is not kept from starting: as a
/// copy it is of use, and no other node can bring its log back.
pub(super) fn repair(log: &GroupLog, high_water: Option<&HighWater>) -> Result<(), StorageError> {
    let mark = high_water.map_or(0, |marks| marks.mark(log.group()));
    cut_at_break(log, mark)?;
    let last = LogStore::last_log_id(log)?;
    let end = last.as_ref().map_or(0, |last| last.index);
    let Some(marks) = high_water.filter(|_| end < mark) else { return Ok(()) };
    tracing::error!(
        group = %log.group(),
        end,
        durable_before = mark,
        "the log ends before what had been durable: the disk lost acknowledged entries. This member does not vote \
         until its leader has sent it as much again"
    );
    // No entry is of a later term than the vote, which is saved first. Whether the vote is still
    // the last one is looked at apart (`LogStore::has_lost_votes`).
    let vote = vote_mark(log)?.map_or(0, |vote| vote.leader_id.term);
    let term = vote.max(last.map_or(0, |last| last.leader_id.term));
    let lost = LogId::new(term.into(), mark);
    if LogStore::left(log)?.is_none_or(|left| left < lost) {
        log.put_mark(LogMark::Left, &prost::Message::encode_to_vec(&wire::log_id_to_wire(&lost)))?;
    }
    // Durably, before the mark that says it in another way goes.
    log.sync()?;
    marks.lower(log.group(), end)
}

/// A vote may have become durable right before the process ended, and not the mark that says so.
/// From here on it counts.
pub(super) fn remember_vote(
    log: &GroupLog,
    high_water: Option<&HighWater>,
) -> Result<(), StorageError> {
    let vote = vote_mark(log)?.map_or(0, |vote| vote.leader_id.term);
    let Some(marks) = high_water.filter(|marks| marks.voted(log.group()) < vote) else {
        return Ok(());
    };
    log.sync()?;
    marks.vote(log.group(), vote)
}

/// Cuts the log before the first entry that does not continue the one before. After a power loss
/// RocksDB may have a later write and not the one before it, where the two were in different files
/// of its log; neither was synced then, so neither was acknowledged:
/// - An index that is missing: what follows a hole is not a log.
/// - A term that goes back: a cut was lost, and what a later leader had cut follows what it sent
///   instead.
fn cut_at_break(log: &GroupLog, mark: u64) -> Result<(), StorageError> {
    let purged = log_id_mark(log, LogMark::Purged)?;
    let mut next = purged.as_ref().map_or(0, |purged| purged.index + 1).max(mark);
    let mut term = purged.map_or(0, |purged| purged.leader_id.term);
    if let Some(before) = next.checked_sub(1)
        && let Some(bytes) = log.get(before)?
    {
        term = LogStore::decode(log.group(), before, bytes)?.log_id.leader_id.term;
    }
    loop {
        let records = log.read(next..u64::MAX, READ_BYTES)?;
        if records.is_empty() {
            return Ok(());
        }
        for (index, bytes) in records {
            let found = LogStore::decode(log.group(), index, bytes)?.log_id.leader_id.term;
            if index != next || found < term {
                tracing::warn!(
                    group = %log.group(), expected = next, found = index, term, found_term = found,
                    "cutting off the end of the log: it does not continue what lies before it"
                );
                match next.checked_sub(1) {
                    Some(last) => log.truncate_after(last)?,
                    None => log.clear()?,
                }
                // As when a log is cut for its leader: before anything takes the place of what was
                // cut.
                return log.sync();
            }
            (next, term) = (index + 1, found);
        }
    }
}
