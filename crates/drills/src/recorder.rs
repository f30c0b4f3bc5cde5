//! Recording histories while clients run, and keeping them in files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use meridian_checker::{
    History, HistoryError, Operation, Read, ReadOutcome, Record, Txn, TxnOutcome,
};

/// Identifies a read that was invoked and waits for its answer.
#[derive(Debug)]
#[must_use = "a read without an answer claims nothing"]
pub struct ReadToken(usize);

/// Identifies a transaction that was invoked and waits for its answer.
#[derive(Debug)]
#[must_use = "a transaction without an answer may have committed"]
pub struct TxnToken(usize);

/// Records a history while clients run, from any number of threads and tasks.
///
/// An operation is in the history from its invocation; an operation that is never completed (the
/// client died, its future was dropped) stays there without an answer. A token belongs to the
/// recorder that returned it.
#[derive(Debug)]
pub struct Recorder {
    origin: Instant,
    next_id: AtomicU64,
    records: Mutex<Vec<Record>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    pub fn new() -> Self {
        Self::starting_at(Instant::now())
    }

    /// Times count from `origin`; operations invoked before it have the time 0.
    pub fn starting_at(origin: Instant) -> Self {
        Self { origin, next_id: AtomicU64::new(1), records: Mutex::new(Vec::new()) }
    }

    /// A number that is never returned twice: for transactions, elements and register values.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Call this before the request is sent. The outcome in `read` is ignored.
    pub fn invoke_read(&self, client: u64, read: Read) -> ReadToken {
        ReadToken(
            self.invoke(client, Operation::Read(Read { outcome: ReadOutcome::Unanswered, ..read })),
        )
    }

    /// Call this before the request is sent. The outcome in `txn` is ignored.
    pub fn invoke_txn(&self, client: u64, txn: Txn) -> TxnToken {
        TxnToken(self.invoke(client, Operation::Txn(Txn { outcome: TxnOutcome::Unknown, ..txn })))
    }

    /// Call this when the whole answer has arrived.
    pub fn complete_read(&self, token: ReadToken, outcome: ReadOutcome) {
        let now_ns = self.now_ns();
        if let Some(record) = self.lock().get_mut(token.0)
            && let Operation::Read(read) = &mut record.operation
        {
            record.completed_ns = Some(now_ns);
            read.outcome = outcome;
        }
    }

    /// Call this when the whole answer has arrived. A timeout or a broken connection is
    /// [`TxnOutcome::Unknown`], unless the request surely was never sent.
    pub fn complete_txn(&self, token: TxnToken, outcome: TxnOutcome) {
        let now_ns = self.now_ns();
        if let Some(record) = self.lock().get_mut(token.0)
            && let Operation::Txn(txn) = &mut record.operation
        {
            record.completed_ns = Some(now_ns);
            txn.outcome = outcome;
        }
    }

    /// The history so far.
    pub fn history(&self) -> History {
        History { records: self.lock().clone() }
    }

    pub fn into_history(self) -> History {
        History { records: self.records.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    fn invoke(&self, client: u64, operation: Operation) -> usize {
        let invoked_ns = self.now_ns();
        let mut records = self.lock();
        records.push(Record { client, invoked_ns, completed_ns: None, operation });
        records.len() - 1
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A panic with the lock held leaves whole records: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a history to a new file at `path`, one JSON object a line.
pub fn save(history: &History, path: impl AsRef<Path>) -> Result<(), HistoryError> {
    history.write(File::create(path)?)
}

/// Reads the file of [`save`].
pub fn load(path: impl AsRef<Path>) -> Result<History, HistoryError> {
    History::read(BufReader::new(File::open(path)?))
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position, Versionstamp};

    use super::*;

    #[test]
    fn operations_are_recorded_from_their_invocation() {
        let recorder = Recorder::new();
        let stamp = Versionstamp::new(Position::new(Epoch(1), 1), 0);
        let answered = recorder.invoke_txn(1, Txn::new(recorder.next_id(), vec![], vec![]));
        let _lost = recorder.invoke_txn(2, Txn::new(recorder.next_id(), vec![], vec![]));
        let read = recorder.invoke_read(3, Read::strong("g", vec![]));
        recorder.complete_read(read, ReadOutcome::Entries(vec![]));
        recorder.complete_txn(answered, TxnOutcome::Committed { versionstamp: stamp });

        let history = recorder.history();
        let [first, second, third] = history.records.as_slice() else { panic!("{history:?}") };
        assert!(
            first.completed_ns >= third.completed_ns
                && third.completed_ns >= Some(third.invoked_ns)
        );
        assert!(matches!(
            &first.operation,
            Operation::Txn(Txn { id: 1, outcome: TxnOutcome::Committed { .. }, .. })
        ));
        assert_eq!(second.completed_ns, None);
        assert!(matches!(
            &second.operation,
            Operation::Txn(Txn { id: 2, outcome: TxnOutcome::Unknown, .. })
        ));
        assert_eq!(recorder.into_history(), history);
    }
}
