use std::time::Duration;

use meridian_storage::{Engine, MemoryEngine, RecordKind};
use meridian_types::{Epoch, ShardId};
use openraft::type_config::TypeConfigExt;

use super::*;
use crate::type_config::EncodedBatch;

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };

/// A disk, and the marks beside it.
struct Disk {
    engine: Arc<MemoryEngine>,
    folder: tempfile::TempDir,
}

impl Disk {
    /// As a founder's: its log begins behind index 0.
    fn new() -> Self {
        let disk = Self { engine: Arc::default(), folder: tempfile::tempdir().unwrap() };
        LogStore::begin_behind(&disk.log(), wire::log_id_to_wire(&id(1, 0))).unwrap();
        disk.engine.sync().unwrap();
        disk
    }

    fn after_crash(engine: MemoryEngine) -> Self {
        Self { engine: Arc::new(engine), folder: tempfile::tempdir().unwrap() }
    }

    fn log(&self) -> GroupLog {
        GroupLog::open(Arc::clone(&self.engine) as Arc<dyn Engine>, GROUP, RecordKind::Entry)
            .unwrap()
    }

    fn marks(&self) -> Arc<HighWater> {
        Arc::new(HighWater::open(self.folder.path().join("high-water")).unwrap())
    }

    /// As a process that starts.
    fn open(&self) -> LogStore {
        let syncer = Syncer::start(Arc::clone(&self.engine) as Arc<dyn Engine>).unwrap();
        LogStore::open(
            self.log(),
            Arc::new(syncer),
            Some(self.marks()),
            &crate::LogCache::default(),
        )
        .unwrap()
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

fn entry((term, index): (u64, u64)) -> Entry {
    Entry { log_id: id(term, index), payload: EntryPayload::Blank }
}

fn write(log: &GroupLog, ids: &[(u64, u64)]) {
    for id in ids {
        let bytes = wire::encode_entry(&entry(*id));
        log.append([(id.1, bytes.as_slice())]).unwrap();
    }
}

fn ids(store: &LogStore) -> Vec<(u64, u64)> {
    let entries = store.read(0, u64::MAX, usize::MAX).unwrap();
    entries.iter().map(|entry| (entry.log_id.leader_id.term, entry.log_id.index)).collect()
}

/// Appends, and waits until that is acknowledged.
async fn append(store: &mut LogStore, ids: &[(u64, u64)]) {
    let (done, acknowledged) = TypeConfig::oneshot();
    store.append(ids.iter().copied().map(entry), IOFlushed::signal(done)).await.unwrap();
    acknowledged.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_does_not_continue_the_log_is_cut_off_and_what_was_committed_there_is_learned_again() {
    for (stored, kept) in [
        // A hole.
        (&[(1, 1), (1, 2), (1, 3), (1, 5), (1, 6), (1, 7)][..], 3),
        // A cut was lost: what the leader of term 2 had sent follows what that of term 3 sent
        // instead.
        (&[(1, 1), (2, 2), (3, 3), (2, 4), (2, 5), (3, 6)], 3),
        (&[(2, 1), (1, 2), (1, 3)], 1),
        // Nothing is wrong.
        (&[(1, 1), (1, 2), (3, 3), (3, 4)], 4),
    ] {
        for mark in [0, 1, kept] {
            let disk = Disk::new();
            write(&disk.log(), stored);
            let committed = wire::log_id_to_wire(&id(3, 7)).encode_to_vec();
            disk.log().put_mark(LogMark::Committed, &committed).unwrap();
            disk.marks().raise(GROUP, mark);
            disk.engine.sync().unwrap();
            let mut store = disk.open();
            assert_eq!(
                disk.engine.unsynced_writes(),
                0,
                "the cut is durable before anything takes its place"
            );
            let kept =
                stored.iter().take(usize::try_from(kept).unwrap()).copied().collect::<Vec<_>>();
            assert_eq!(ids(&store), kept, "{stored:?} behind mark {mark}");
            let (term, index) = *kept.last().unwrap();
            assert_eq!(store.read_committed().await.unwrap(), Some(id(term, index)));
            assert_eq!(store.bounds(), Bounds { first: 1, end: index + 1 });
            assert_eq!(
                LogStore::left(&disk.log()).unwrap(),
                None,
                "nothing that was durable is missing"
            );
        }
    }
}

#[tokio::test]
async fn a_log_shorter_than_its_mark_is_marked_before_it_is_used_also_if_that_crashes() {
    let disk = Disk::new();
    write(&disk.log(), &[(1, 1), (1, 2), (2, 3)]);
    let vote = log::Vote { term: 4, node_id: 2, committed: true };
    disk.log().put_mark(LogMark::Vote, &vote.encode_to_vec()).unwrap();
    disk.engine.sync().unwrap();
    let marks = disk.marks();
    marks.raise(GROUP, 9);
    marks.vote(GROUP, 4).unwrap();
    drop(disk.open());
    // The first open has written down that the log was longer, and its mark is that of the log
    // again.
    assert_eq!(disk.marks().mark(GROUP), 3);
    assert_eq!(disk.engine.unsynced_writes(), 0);
    for engine in (0..20).map(|seed| disk.engine.crash(seed)) {
        let log = GroupLog::open(Arc::new(engine), GROUP, RecordKind::Entry).unwrap();
        assert_eq!(LogStore::left(&log).unwrap(), Some(id(4, 9)));
    }
    // Another loss does not make it less.
    let marks = disk.marks();
    marks.raise(GROUP, 5);
    marks.persist().unwrap();
    drop(disk.open());
    assert_eq!(LogStore::left(&disk.log()).unwrap(), Some(id(4, 9)));
    // One of what it acknowledged since does.
    let marks = disk.marks();
    marks.raise(GROUP, 12);
    marks.persist().unwrap();
    drop(disk.open());
    assert_eq!(LogStore::left(&disk.log()).unwrap(), Some(id(4, 12)));
}

#[tokio::test]
async fn a_cut_is_durable_before_anything_takes_its_place() {
    let disk = Disk::new();
    let mut store = disk.open();
    append(&mut store, &[(1, 1), (2, 2), (2, 3), (2, 4)]).await;
    store.truncate_after(Some(id(1, 1))).await.unwrap();
    // The leader of term 3 goes on, and the power goes. Whatever the disk kept of it: no entry of
    // term 3 follows one of term 2, which that leader did not have.
    write(&disk.log(), &[(3, 2)]);
    write(&disk.log(), &[(3, 3)]);
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let kept = ids(&Disk::after_crash(disk.engine.crash(seed)).open());
        assert!([(1, 1), (3, 2), (3, 3)].starts_with(&kept), "{kept:?} after seed {seed}");
        lengths.insert(kept.len());
    }
    assert_eq!(Vec::from_iter(lengths), [1, 2, 3]);
}

#[test]
fn a_log_that_is_gone_says_how_far_it_went_whatever_a_power_loss_keeps() {
    let disk = Disk::new();
    write(&disk.log(), &[(1, 1), (2, 2)]);
    let vote = log::Vote { term: 2, node_id: 1, committed: true };
    disk.log().put_mark(LogMark::Vote, &vote.encode_to_vec()).unwrap();
    disk.engine.sync().unwrap();
    // The mark beside the database is gone before, see `leave_group`, and the power goes before the
    // fsync.
    LogStore::leave(&disk.log(), Some(id(2, 2))).unwrap();
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let log = Disk::after_crash(disk.engine.crash(seed)).log();
        let (last, left) = (LogStore::last_log_id(&log).unwrap(), LogStore::left(&log).unwrap());
        assert_eq!(last.max(left), Some(id(2, 2)), "after seed {seed}");
        assert!(log.mark(LogMark::Vote).unwrap().is_some());
        kept.insert(left.is_some());
    }
    assert_eq!(Vec::from_iter(kept), [false, true]);
}

#[tokio::test]
async fn what_a_leader_had_cut_off_is_not_taken_for_lost() {
    let disk = Disk::new();
    let mut store = disk.open();
    append(&mut store, &[(1, 1), (1, 2), (1, 3)]).await;
    store.shared.high_water.as_ref().unwrap().persist().unwrap();
    assert_eq!(disk.marks().mark(GROUP), 3);
    store.truncate_after(Some(id(1, 1))).await.unwrap();
    assert_eq!(disk.marks().mark(GROUP), 1);
    assert_eq!((ids(&disk.open()), LogStore::left(&disk.log()).unwrap()), (vec![(1, 1)], None));
}

#[tokio::test]
async fn the_next_process_finds_the_same_bounds() {
    let disk = Disk::new();
    let mut store = disk.open();
    let bounds = |store: &LogStore| {
        assert_eq!(store.bounds(), disk.open().bounds());
        let Bounds { first, end } = store.bounds();
        (first, end)
    };
    assert_eq!(bounds(&store), (1, 1));
    append(&mut store, &[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]).await;
    assert_eq!(bounds(&store), (1, 7));
    store.truncate_after(Some(id(1, 4))).await.unwrap();
    assert_eq!(bounds(&store), (1, 5));
    store.purge(id(1, 2)).await.unwrap();
    assert_eq!(bounds(&store), (3, 5));
    append(&mut store, &[(2, 5)]).await;
    assert_eq!((bounds(&store), ids(&store)), ((3, 6), vec![(1, 3), (1, 4), (2, 5)]));
    // Its leader has sent a snapshot that goes further.
    store.purge(id(2, 8)).await.unwrap();
    assert_eq!(bounds(&store), (9, 9));
    append(&mut store, &[(2, 9)]).await;
    assert_eq!((bounds(&store), ids(&store)), ((9, 10), vec![(2, 9)]));
}

#[tokio::test]
async fn a_batch_that_another_node_sent_is_not_taken_for_a_proposed_one() {
    let mut store = Disk::new().open();
    let batch = |index, proposed_sequence| {
        let batch = EncodedBatch { bytes: Bytes::new(), proposed_sequence };
        Entry { log_id: id(1, index), payload: EntryPayload::Normal(batch) }
    };
    let appended = store.appended();
    for (entries, newest) in [
        (vec![batch(1, 0), entry((1, 2))], (0, 0)),
        (vec![batch(3, 6), batch(4, 7), entry((1, 5))], (1, 7)),
        (vec![batch(6, 8), batch(7, 0)], (1, 8)),
        (vec![batch(8, 0), entry((1, 9))], (1, 8)),
    ] {
        let (done, _acknowledged) = TypeConfig::oneshot();
        store.append(entries, IOFlushed::signal(done)).await.unwrap();
        let Proposed { term, sequence } = *appended.borrow();
        assert_eq!((term, sequence), newest);
    }
}

#[tokio::test]
async fn an_append_is_acknowledged_when_it_is_fsynced_and_not_before() {
    let disk = Disk::new();
    let mut store = disk.open();
    append(&mut store, &[(1, 1)]).await;
    disk.engine.hold_syncs();
    let (done, mut acknowledged) = TypeConfig::oneshot();
    store.append([entry((1, 2))], IOFlushed::signal(done)).await.unwrap();
    assert_eq!(ids(&store), [(1, 1), (1, 2)], "it is readable at once");
    let early = tokio::time::timeout(Duration::from_millis(300), &mut acknowledged).await;
    assert!(early.is_err(), "acknowledged before it is durable");
    assert!(disk.engine.unsynced_writes() > 0);
    disk.engine.release_syncs();
    acknowledged.await.unwrap().unwrap();
    let after = Disk::after_crash(disk.engine.crash_to_what_is_durable());
    assert_eq!(ids(&after.open()), [(1, 1), (1, 2)]);
}

#[tokio::test]
async fn a_vote_is_saved_when_it_is_fsynced_and_not_before() {
    let disk = Disk::new();
    let mut store = disk.open();
    disk.engine.hold_syncs();
    let vote = wire::vote(log::Vote { term: 4, node_id: 2, committed: false });
    let early = tokio::time::timeout(Duration::from_millis(300), store.save_vote(&vote)).await;
    assert!(early.is_err(), "saved before it is durable");
    disk.engine.release_syncs();
    store.save_vote(&vote).await.unwrap();
    let after = Disk::after_crash(disk.engine.crash_to_what_is_durable());
    assert_eq!(after.open().read_vote().await.unwrap(), Some(vote));
}

#[tokio::test]
async fn a_vote_that_is_gone_is_missed_also_if_no_entry_came_of_it() {
    let disk = Disk::new();
    let vote = |term| log::Vote { term, node_id: 2, committed: false };
    let put = |term| {
        disk.log().put_mark(LogMark::Vote, &vote(term).encode_to_vec()).unwrap();
        disk.engine.sync().unwrap();
    };
    let mut store = disk.open();
    store.save_vote(&wire::vote(vote(3))).await.unwrap();
    append(&mut store, &[(3, 1)]).await;
    store.save_vote(&wire::vote(vote(4))).await.unwrap();
    assert_eq!(disk.marks().voted(GROUP), 4, "before another node is told of it");
    assert!(!disk.open().has_lost_votes(0).unwrap());
    put(3);
    for _ in 0..2 {
        assert!(disk.open().has_lost_votes(0).unwrap(), "its vote in term 4 is gone");
    }
    // The process ended when the vote was durable, and the mark was not written yet.
    put(5);
    assert!(!disk.open().has_lost_votes(0).unwrap());
    put(4);
    assert!(
        disk.open().has_lost_votes(0).unwrap(),
        "the process that started since may have told another node of it"
    );
    // It is durable before the mark says so: else a power loss would look like a vote that was
    // given and lost.
    disk.log().put_mark(LogMark::Vote, &vote(6).encode_to_vec()).unwrap();
    drop(disk.open());
    assert_eq!((disk.marks().voted(GROUP), disk.engine.unsynced_writes()), (6, 0));
}

#[tokio::test]
async fn a_disk_that_is_slow_with_the_marks_holds_up_no_append() {
    let disk = Disk::new();
    let mut store = disk.open();
    append(&mut store, &[(1, 1), (1, 2)]).await;
    // The file of marks is not written before this is read.
    let pipe = disk.folder.path().join("high-water.new");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    disk.engine.hold_syncs();
    let (done, acknowledged) = TypeConfig::oneshot();
    store.append([entry((1, 3))], IOFlushed::signal(done)).await.unwrap();
    let marks = store.shared.high_water.clone().unwrap();
    let cut = tokio::spawn(async move { store.truncate_after(Some(id(1, 1))).await });
    let lowered = async {
        while marks.mark(GROUP) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), lowered)
        .await
        .expect("the mark goes back with the log");
    disk.engine.release_syncs();
    let acknowledged = tokio::time::timeout(Duration::from_secs(5), acknowledged).await;
    // It cannot be synced, so the cut fails; what counts is that it ends.
    std::fs::read(&pipe).unwrap();
    drop(cut.await.unwrap());
    assert!(acknowledged.is_ok(), "the thread that syncs all logs waited for the marks");
    assert_eq!(marks.mark(GROUP), 1, "raised by what was cut off");
}
