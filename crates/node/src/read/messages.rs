//! The memory of messages on their way to listeners, which take them in their own time: divided
//! among databases, so that the listeners of one do not hold up those of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_memory::{ByteBudget, Held};
use meridian_types::DatabaseId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a part waits for memory before that counts as a want of it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Databases without messages in memory are forgotten beyond so many.
const FORGET: usize = 64;

/// Cheap to clone; clones share the bytes. A database has half of them at most.
#[derive(Clone)]
pub(crate) struct MessageBudget {
    bytes: ByteBudget,
    databases: Arc<Mutex<Databases>>,
}

struct Databases {
    each_bytes: usize,
    free: BTreeMap<DatabaseId, Weak<Semaphore>>,
    forget_at: usize,
}

/// Bytes of messages of one database, given back when this is dropped.
pub(crate) struct HeldForMessages {
    all: Held,
    of_database: OwnedSemaphorePermit,
}

impl MessageBudget {
    pub(crate) fn new(total_bytes: usize) -> Self {
        let bytes = ByteBudget::new("messages", total_bytes);
        let each_bytes = bytes.total_bytes() / 2;
        let databases = Databases { each_bytes, free: BTreeMap::new(), forget_at: FORGET };
        Self { bytes, databases: Arc::new(Mutex::new(databases)) }
    }

    /// Waits for as long as it takes, in the order of asking. More than a database may have is
    /// never had. May be dropped at any await.
    pub(crate) async fn take(&self, database: DatabaseId, bytes: usize) -> HeldForMessages {
        let free = self.databases.lock().free(database);
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        let of_database = match free.acquire_many_owned(count).await {
            Ok(permit) => permit,
            // No budget is ever closed.
            Err(_) => std::future::pending().await,
        };
        loop {
            if let Ok(all) = self.bytes.take(bytes, PATIENCE).await {
                return HeldForMessages { all, of_database };
            }
        }
    }

    /// `None`: the database, or all together, have too much.
    pub(crate) fn take_now(&self, database: DatabaseId, bytes: usize) -> Option<HeldForMessages> {
        let free = self.databases.lock().free(database);
        let of_database = free.try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
        Some(HeldForMessages { all: self.bytes.try_take(bytes).ok()?, of_database })
    }

    #[cfg(test)]
    pub(crate) fn used_bytes(&self) -> usize {
        self.bytes.used_bytes()
    }
}

impl Databases {
    fn free(&mut self, database: DatabaseId) -> Arc<Semaphore> {
        if let Some(free) = self.free.get(&database).and_then(Weak::upgrade) {
            return free;
        }
        if self.free.len() >= self.forget_at {
            self.free.retain(|_, free| free.strong_count() > 0);
            self.forget_at = FORGET.max(2 * self.free.len());
        }
        let free = Arc::new(Semaphore::new(self.each_bytes));
        self.free.insert(database, Arc::downgrade(&free));
        free
    }
}

impl HeldForMessages {
    /// Gives back the bytes held beyond `bytes`, once the true size is known.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        self.all.shrink_to(bytes);
        let beyond = self.of_database.num_permits().saturating_sub(bytes);
        drop(self.of_database.split(beyond));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const TOTAL: usize = 1000;

    fn database(number: u8) -> DatabaseId {
        DatabaseId([number; 16])
    }

    #[tokio::test]
    async fn listeners_that_take_nothing_leave_room_for_those_of_another_database() {
        let budget = MessageBudget::new(TOTAL);
        let take = |number| budget.take(database(number), 200).now_or_never();
        let unread = [take(1).unwrap(), take(1).unwrap()];
        assert!(take(1).is_none() && budget.take_now(database(1), 200).is_none());
        let mut others = [take(2).unwrap(), take(2).unwrap()];
        assert!(budget.take_now(database(3), 200).is_some());
        drop(unread);
        assert!(take(1).is_some(), "it has its own back");
        others.iter_mut().for_each(|held| held.shrink_to(50));
        assert_eq!(budget.used_bytes(), 100);
        let more = budget.take_now(database(2), 400);
        assert!(more.is_some(), "what is not needed is given back to the database as well");
        assert!(take(2).is_none());
    }

    #[test]
    fn databases_without_messages_in_memory_are_forgotten() {
        let budget = MessageBudget::new(TOTAL);
        let held = budget.take_now(database(0), 500);
        for number in 1..=255 {
            drop(budget.take_now(database(number), 1));
        }
        assert!(budget.databases.lock().free.len() <= 2 * FORGET);
        assert!(budget.take_now(database(0), 1).is_none(), "what it holds is not forgotten");
        drop(held);
    }
}
