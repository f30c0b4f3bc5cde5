//! Snapshots, states that take the place of others, and what reads see meanwhile.

use super::*;
use crate::{StagedState, StateSnapshot};

/// A snapshot of a source's first batch, and a state that it is installed in.
struct Copying {
    source: ShardState,
    snapshot: StateSnapshot,
    twin: Arc<MemoryEngine>,
    target: ShardState,
    _folder: Option<tempfile::TempDir>,
}

impl Copying {
    /// From a source on each kind of engine.
    fn from_all() -> impl Iterator<Item = Self> {
        engines().into_iter().map(|(engine, _folder)| {
            let source = ShardState::open(engine, SHARD).unwrap();
            let first = batch(1, vec![put("a", "1", 0), put("b", "2", 0)]);
            source.apply(&[first], RaftApplied::default()).unwrap();
            let snapshot = source.snapshot().unwrap();
            let second = batch(2, vec![put("a", "changed", 0)]);
            source.apply(&[second], RaftApplied::default()).unwrap();
            let twin = Arc::new(MemoryEngine::default());
            let target = ShardState::open(Arc::clone(&twin) as Arc<dyn Engine>, SHARD).unwrap();
            target.apply(&[batch(1, vec![put("old", "old", 0)])], RaftApplied::default()).unwrap();
            Self { source, snapshot, twin, target, _folder }
        })
    }

    /// The whole snapshot, so many bytes of rows at a time.
    fn staged(&self, max_bytes: usize) -> StagedState {
        let mut staged = self.target.stage().unwrap();
        let mut after = Vec::new();
        loop {
            let rows = self.snapshot.rows(&after, max_bytes).unwrap();
            after = rows.rows.last().unwrap().0.to_vec();
            let last = rows.last;
            staged.add(rows).unwrap();
            if last {
                return staged;
            }
        }
    }

    fn install(&self, staged: StagedState, replace: Replace) -> Result<Applied, StorageError> {
        self.target.install(staged, RaftApplied::default(), replace)
    }

    fn after_crash(&self, seed: u64) -> ShardState {
        ShardState::open(Arc::new(self.twin.crash(seed)), SHARD).unwrap()
    }
}

#[test]
fn a_snapshot_is_of_one_moment_and_installs_whole_or_not_at_all() {
    for copying in Copying::from_all() {
        // However few bytes are asked for, a row comes.
        let staged = copying.staged(0);
        // A crash before the installation finds the old state, a later crash the new.
        for seed in 0..20 {
            let before = copying.after_crash(seed);
            let shown = texts(&before, all(9, false), 0);
            assert!(matches!(shown.as_slice(), [] | [_]), "rows of the snapshot");
            let families = before.engine().families();
            assert_eq!(families.iter().filter(|name| name.starts_with("state-")).count(), 1);
        }
        assert_eq!(copying.install(staged, Replace::Older).unwrap().position.sequence, 1);
        let target = &copying.target;
        assert_eq!(texts(target, all(9, false), 0), ["1", "2"]);
        for seed in 0..20 {
            assert_eq!(texts(&copying.after_crash(seed), all(9, false), 0), ["1", "2"]);
        }
        // The digest goes on from that of the snapshot's history, and is compared from here on.
        let digest = copying.snapshot.applied().digest;
        assert_eq!(target.applied().digest, digest);
        assert_eq!(target.digest_at(target.position()), Some(digest));
    }
}

#[test]
fn of_two_staged_states_the_end_of_one_leaves_the_other_and_the_present_state_alone() {
    for copying in Copying::from_all() {
        let target = &copying.target;
        copying.install(copying.staged(usize::MAX), Replace::Older).unwrap();
        let (first, second) = (target.stage().unwrap(), copying.staged(usize::MAX));
        drop(first);
        copying.install(second, Replace::Older).unwrap();
        assert_eq!(texts(target, all(9, false), 0), ["1", "2"]);
        target.apply(&[batch(2, vec![])], RaftApplied::default()).unwrap();
        assert_eq!(
            target.applied().digest,
            copying.source.applied().digest,
            "the batches of both have the same checksums"
        );
    }
}

#[test]
fn a_state_gives_way_to_a_whole_and_newer_one_or_to_any_where_it_left_the_history() {
    for copying in Copying::from_all() {
        let target = &copying.target;
        copying.install(copying.staged(usize::MAX), Replace::Older).unwrap();
        target.apply(&[batch(2, vec![])], RaftApplied::default()).unwrap();
        let refusal = copying.install(copying.staged(usize::MAX), Replace::Older).unwrap_err();
        assert!(refusal.to_string().contains("is older than"), "{refusal}");
        let refusal = copying.install(target.stage().unwrap(), Replace::Any).unwrap_err();
        assert!(refusal.to_string().contains("rows are missing"), "{refusal}");
        // Also over a crash.
        let raft = RaftApplied { epoch: Some(Epoch(2)), ..RaftApplied::default() };
        let installed =
            target.install(copying.staged(usize::MAX), raft.clone(), Replace::Any).unwrap();
        assert_eq!((installed.position.sequence, &installed.raft), (1, &raft));
        for seed in 0..20 {
            let after = copying.after_crash(seed);
            assert_eq!(after.applied(), installed);
            assert_eq!(ShardState::read_applied(&**after.engine(), SHARD).unwrap(), installed);
        }
    }
}

/// An event during the next call of the engine for the first state family.
#[derive(Default)]
struct Meanwhile {
    next: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    asked: AtomicU64,
}

impl Hooks for Meanwhile {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        if let Call::Flush(family) | Call::Get(family) | Call::Scan(family) = call
            && family == schema::state_family(SHARD, 0)
        {
            assert!(
                self.asked.fetch_add(1, Ordering::SeqCst) < 10,
                "an absent family is asked for again and again"
            );
            if let Some(happens) = { self.next.lock().take() } {
                happens();
            }
        }
        Ok(())
    }
}

/// Asks a state for something of its family, and tells whether it is there.
type Question = fn(&ShardState) -> Result<bool, StorageError>;

/// The answer is yes for a state whose second batch puts a key, and drops a database.
const QUESTIONS: [(&str, Question); 4] = [
    ("the flushed position", |state| Ok(state.flush()?.position.sequence == 2)),
    ("a key", |state| Ok(state.at(0).get(DATABASE, b"new")?.is_some())),
    ("a request", |state| Ok(state.request(RequestId([2; 16]))?.is_some())),
    ("which databases are dropped", |state| Ok(!state.dropped_databases()?.is_empty())),
];

#[test]
fn a_read_during_a_replacement_is_answered_by_the_new_state() {
    for (what, question) in QUESTIONS {
        let engine =
            Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Meanwhile::default()));
        let state =
            Arc::new(ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap());
        state.apply(&[batch(1, vec![put("old", "1", 0)])], RaftApplied::default()).unwrap();
        assert!(!question(&state).unwrap(), "{what}");
        let source = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
        let effects = vec![Effect::DropDatabase, put("new", "2", 0)];
        source.apply(&[batch(1, vec![]), batch(2, effects)], RaftApplied::default()).unwrap();
        let replaced = Arc::clone(&state);
        *engine.next.lock() = Some(Box::new(move || {
            let mut staged = replaced.stage().unwrap();
            staged.add(source.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
            replaced.install(staged, RaftApplied::default(), Replace::Older).unwrap();
        }));
        assert!(question(&state).unwrap(), "{what}");
        assert!(engine.next.lock().is_none(), "nothing happened meanwhile");
    }
}

#[test]
fn a_state_whose_family_is_gone_says_so_and_does_not_wait_for_another() {
    for (what, question) in QUESTIONS {
        let engine =
            Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Meanwhile::default()));
        let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
        let family = schema::state_family(SHARD, 0);
        engine.drop_family(&family).unwrap();
        let answer = question(&state);
        assert!(
            matches!(&answer, Err(StorageError::NoFamily(gone)) if *gone == family),
            "{what}: {answer:?}"
        );
    }
}

/// The next sync waits until it is let go.
struct Stalled {
    syncing: std::sync::mpsc::Sender<()>,
    goes_on: parking_lot::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Hooks for Stalled {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        if call == Call::Sync {
            self.syncing.send(()).unwrap();
            self.goes_on.lock().recv().unwrap();
        }
        Ok(())
    }
}

#[test]
fn readers_do_not_wait_for_the_disk_of_an_installation_and_see_the_old_state_until_then() {
    let source = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    source
        .apply(&[batch(1, vec![put("a", "new", 0)]), batch(2, vec![])], RaftApplied::default())
        .unwrap();
    let ((syncing, syncs), (go_on, goes_on)) =
        (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let stalled = Stalled { syncing, goes_on: goes_on.into() };
    let engine = HookedEngine::new(Arc::new(MemoryEngine::default()), stalled);
    let state = Arc::new(ShardState::open(Arc::new(engine), SHARD).unwrap());
    state.apply(&[batch(1, vec![put("a", "old", 0)])], RaftApplied::default()).unwrap();
    let mut staged = state.stage().unwrap();
    staged.add(source.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
    let installing = Arc::clone(&state);
    let installed = std::thread::spawn(move || {
        installing.install(staged, RaftApplied::default(), Replace::Older).unwrap()
    });
    syncs.recv().unwrap();
    let (reading, (read, reads)) = (Arc::clone(&state), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let copied = reading.snapshot().unwrap().applied().position.sequence;
        read.send((texts(&reading, all(9, false), 0), reading.position().sequence, copied))
            .unwrap();
    });
    // A reader that waits would wait for this test.
    let seen = reads.recv_timeout(std::time::Duration::from_secs(20));
    go_on.send(()).unwrap();
    assert_eq!(seen.expect("the reader waits for the disk"), (vec!["old".to_owned()], 1, 1));
    installed.join().unwrap();
    assert_eq!(texts(&state, all(9, false), 0), ["new"]);
}
