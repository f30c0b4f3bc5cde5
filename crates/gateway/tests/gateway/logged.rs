//! The log of the database in memory, as change feeds ask for it.

use std::sync::Mutex;

use meridian_gateway::{Change, Changed, ChangedTransaction, ChangesWanted, NoChanges, Write};
use meridian_types::{DatabaseId, Epoch, MutationKind, Position, Versionstamp, WriteOutcome};
use tokio::sync::watch;

use crate::support::Memory;

#[derive(Default)]
pub(crate) struct Logged {
    log: Mutex<Vec<(DatabaseId, ChangedTransaction)>>,
    /// How the next questions for changes end, the last first.
    pub(crate) no_changes: Mutex<Vec<NoChanges>>,
    /// The questions: behind which versionstamp, and how many bytes.
    pub(crate) asked: Mutex<Vec<(Option<Versionstamp>, usize)>>,
    /// Where the database says that it stands, the next times, before a failover takes that back.
    pub(crate) lost: Mutex<Vec<Versionstamp>>,
    /// Whether questions for many bytes wait.
    pub(crate) holds_large: watch::Sender<bool>,
}

impl Logged {
    pub(crate) fn add(&self, write: &Write, versionstamp: Versionstamp) {
        let change = |mutation: &meridian_types::Mutation| match &mutation.kind {
            MutationKind::Set(value) => {
                let (key, value) = (mutation.key.clone(), value.clone());
                Change::Set { key, value, expire_at_ms: 0 }
            }
            _ => Change::Deleted { key: mutation.key.clone() },
        };
        let changes = write.transaction.mutations.iter().map(change).collect();
        let transaction = ChangedTransaction { versionstamp, changes };
        self.log.lock().unwrap().push((write.database, transaction));
    }
}

impl Memory {
    pub(crate) fn commit(&self, write: &Write) -> WriteOutcome {
        let mut state = self.state.lock().unwrap();
        let (sequence, entries) = &mut *state;
        let failed = write.transaction.checks.iter().zip(0..).filter(|(check, _)| {
            let stored = entries.get(&(write.database, check.key.clone()));
            stored.map(|(_, stamp)| *stamp) != check.versionstamp
        });
        let failed = failed.map(|(_, index)| index).collect::<Vec<u32>>();
        if !failed.is_empty() {
            return WriteOutcome::CheckFailed(failed);
        }
        *sequence += 1;
        let stamp = Versionstamp::new(Position::new(Epoch::FIRST, *sequence), 0);
        for mutation in &write.transaction.mutations {
            let key = (write.database, mutation.key.clone());
            match &mutation.kind {
                MutationKind::Delete => drop(entries.remove(&key)),
                MutationKind::Set(value) => drop(entries.insert(key, (value.clone(), stamp))),
                // Arithmetic is the business of `meridian-txn`.
                _ => {}
            }
        }
        self.logged.add(write, stamp);
        self.queues.settle(&write.transaction.settlements);
        self.commits.send_replace(());
        WriteOutcome::Committed(stamp)
    }

    /// The changes behind `after`, as far as there is room.
    fn logged(&self, wanted: &ChangesWanted, after: Versionstamp) -> Changed {
        let mut changed = Changed { transactions: Vec::new(), reached: after, next_bytes: 0 };
        let mut bytes = 0;
        for (database, transaction) in self.logged.log.lock().unwrap().iter() {
            let stamp = transaction.versionstamp;
            if stamp <= after {
                continue;
            }
            let mut transaction = transaction.clone();
            let mut size = 0;
            transaction.changes.retain(|change| match change {
                Change::Set { key, value, .. } => {
                    size += key.len() + value.data.len();
                    key.starts_with(&wanted.prefix)
                }
                Change::Deleted { key } => key.starts_with(&wanted.prefix),
                _ => true,
            });
            if *database == wanted.database && !transaction.changes.is_empty() {
                if bytes + size > wanted.max_bytes {
                    changed.next_bytes = size;
                    return changed;
                }
                bytes += size;
                changed.transactions.push(transaction);
            }
            changed.reached = Versionstamp::behind(stamp.position());
        }
        changed
    }

    pub(crate) async fn changes_behind(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        let asked = (wanted.after, wanted.max_bytes);
        self.logged.asked.lock().unwrap().push(asked);
        if let Some(no_changes) = self.logged.no_changes.lock().unwrap().pop() {
            return Err(no_changes);
        }
        if wanted.max_bytes > 16 << 10 {
            let mut holds = self.logged.holds_large.subscribe();
            drop(holds.wait_for(|holds| !holds).await);
        }
        let mut commits = self.commits.subscribe();
        let Some(after) = wanted.after else {
            let (transactions, next_bytes) = (Vec::new(), 0);
            let last = Position::new(Epoch::FIRST, self.committed());
            let lost = self.logged.lost.lock().unwrap().pop();
            let reached = lost.unwrap_or_else(|| Versionstamp::behind(last));
            return Ok(Changed { transactions, reached, next_bytes });
        };
        let found = self.logged(&wanted, after);
        if found.reached == after && found.next_bytes == 0 && !wanted.wait.is_zero() {
            drop(tokio::time::timeout(wanted.wait, commits.changed()).await);
            return Ok(self.logged(&wanted, after));
        }
        Ok(found)
    }
}
