use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use futures::StreamExt;
use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_gateway::Access;
use meridian_storage::{MemoryEngine, RaftApplied, ShardState};
use meridian_types::{
    Batch, CommittedTransaction, Effect, Epoch, Position, RequestId, ShardId, Value, ValueEncoding,
};

use super::*;
use crate::cluster_view::view::Directory;
use crate::testing::no_watches;
use crate::watches::Watches;

const VALUE_BYTES: usize = 10_000;

struct Stage {
    state: Arc<ShardState>,
    watches: Arc<Watches>,
}

impl Stage {
    fn new() -> Self {
        let engine = Arc::new(MemoryEngine::default());
        let state = Arc::new(ShardState::open(engine, ShardId(1)).unwrap());
        let cluster = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None);
        let directory = Directory::new(cluster.unwrap(), Access::default(), None);
        Self { state, watches: no_watches(&Arc::new(directory)) }
    }

    fn write(&self, byte: u8) {
        let position = Position::new(Epoch(1), self.state.position().sequence + 1);
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![byte; VALUE_BYTES].into() };
        let effects = vec![Effect::Put { key: Bytes::from_static(b"a"), value, expire_at_ms: 0 }];
        let request_id = RequestId(u128::from(position.sequence).to_be_bytes());
        let database = DEV_DEFAULT_DATABASE;
        let transactions =
            vec![CommittedTransaction { request_id, database, effects, refusal: None }];
        let batch = Batch { position, time_ms: 1, transactions };
        self.state.apply(&[batch.into()], RaftApplied::default()).unwrap();
    }

    fn sending(&self, budget: &ByteBudget) -> Sending<()> {
        let keys = [Bytes::from_static(b"a")];
        let watcher = self.watches.watch_here(&self.state, DEV_DEFAULT_DATABASE, &keys);
        Sending::new(watcher, budget.clone(), ())
    }
}

async fn sent(sending: &mut Sending<()>) -> u8 {
    let sent = tokio::time::timeout(ROOM_TIMEOUT, sending.next()).await.unwrap();
    let keys = sent.unwrap().unwrap().keys;
    keys[0].entry_if_changed.as_ref().unwrap().value[0]
}

/// The connection asks for more, and there is none.
fn is_quiet(sending: &mut Sending<()>) -> bool {
    sending.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test]
async fn message_counts_until_its_connection_has_room_for_more() {
    let stage = Stage::new();
    stage.write(1);
    let budget = ByteBudget::new("tests", 2 * VALUE_BYTES - 1);
    let mut sending = stage.sending(&budget);
    assert_eq!(sent(&mut sending).await, 1);
    assert!(budget.used_bytes() >= VALUE_BYTES);
    assert!(is_quiet(&mut sending) && budget.used_bytes() >= VALUE_BYTES, "it is handed over");
    assert!(is_quiet(&mut sending) && budget.used_bytes() == 0, "it was taken");
}

#[tokio::test]
async fn watch_without_room_waits_with_nothing_and_tells_the_last_state_then() {
    let stage = Stage::new();
    stage.write(1);
    let budget = ByteBudget::new("tests", 2 * VALUE_BYTES - 1);
    let (mut stuck, mut waiting) = (stage.sending(&budget), stage.sending(&budget));
    assert_eq!(sent(&mut stuck).await, 1);
    let held = budget.used_bytes();
    let before = tokio::time::timeout(std::time::Duration::from_millis(50), waiting.next()).await;
    assert!(before.is_err(), "there is no room");
    stage.write(2);
    drop(stuck);
    assert_eq!(sent(&mut waiting).await, 2);
    stage.write(3);
    assert_eq!(sent(&mut waiting).await, 3, "and goes on");
    assert_eq!(budget.used_bytes(), held);
}
