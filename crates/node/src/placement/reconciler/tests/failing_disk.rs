//! A disk that fails, or lies, stops the process.

use super::*;

/// Set for the process that is to die.
const CHILD: &str = "MERIDIAN_TEST_FAILING_DISK";

/// The output of a child process until it is aborted; `test` is this test's name.
fn last_words_of_child(test: &str, how: &str) -> String {
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}::{test}"), "--exact", "--nocapture"])
        .env(CHILD, how)
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(6), "{how}: it was not aborted: {:?}\n{out}\n{error}", child.status);
    assert!(!out.contains("it goes on"), "{how}: {out}");
    error.into_owned()
}

#[tokio::test]
async fn corrupt_bytes_in_the_log_stop_the_process() {
    if std::env::var_os(CHILD).is_some() {
        let engine = Arc::new(MemoryEngine::default());
        let before = Process::start(1, Arc::clone(&engine)).await;
        assert!(before.answers_appends().await);
        let mut writes = meridian_storage::WriteBatch::default();
        let key = [&SHARD.0.to_be_bytes()[..], &[0, 1], b"e", &1u64.to_be_bytes()].concat();
        writes.put(
            &meridian_storage::schema::LOG_FAMILY.into(),
            key,
            b"not what was written".to_vec(),
        );
        engine.write(writes, meridian_storage::Durability::Logged).unwrap();
        engine.sync().unwrap();
        Process::start(1, Arc::new(engine.crash(1))).await;
        println!("it goes on");
        return;
    }
    let error = last_words_of_child("corrupt_bytes_in_the_log_stop_the_process", "corrupt");
    assert!(
        error.contains("meridian: fatal: corruption in Entry record 1 of shard 1 epoch 1"),
        "{error}"
    );
}

/// Calls of one kind fail, from a moment on.
#[derive(Default)]
struct Failing(Mutex<Option<Call<'static>>>);

impl Hooks for Failing {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        match self.0.lock().is_some_and(|failing| failing == call) {
            true => Err(StorageError::Engine(format!("IO error: {call:?}"))),
            false => Ok(()),
        }
    }
}

/// A member that has restarted and waits for the directory's word: it follows already.
#[tokio::test]
async fn a_disk_that_fails_under_a_member_stops_the_process() {
    if let Ok(how) = std::env::var(CHILD) {
        let memory = Arc::new(MemoryEngine::default());
        let founding = Process::start(1, Arc::clone(&memory)).await;
        until("a founder votes", async || founding.voter().group.votes()).await;
        let engine = Arc::new(HookedEngine::new(Arc::new(memory.crash(1)), Failing::default()));
        let process = Process::start(1, Arc::clone(&engine)).await;
        let call = if how == "sync" { Call::Sync } else { Call::Write(Durability::Logged) };
        *engine.0.lock() = Some(call);
        // A leader of a later term.
        let asking = tokio::spawn(async move { process.answers_appends().await });
        tokio::time::sleep(Duration::from_secs(20)).await;
        println!("it goes on; did it answer? {}", asking.is_finished());
        return;
    }
    let test = "a_disk_that_fails_under_a_member_stops_the_process";
    let error = last_words_of_child(test, "sync");
    assert!(error.contains("meridian: fatal: storage engine: IO error: Sync"), "{error}");
    let error = last_words_of_child(test, "write");
    assert!(error.contains("meridian: fatal: raft of shard 1 epoch 1 stopped: "), "{error}");
}
