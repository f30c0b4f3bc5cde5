//! What reads, and questions of a state, see while another takes its place.

use super::*;

/// What happens the next time that the engine is asked for something of the first state family.
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
                "what is not there is asked for again and again"
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
    ("what was flushed", |state| Ok(state.flush()?.position.sequence == 2)),
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
