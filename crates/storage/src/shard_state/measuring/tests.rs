use std::sync::Arc;

use bytes::Bytes;
use meridian_types::{
    Batch, CommittedTransaction, Effect, Message, MessageId, QueueEffect, RequestId, ShardId,
    Value, ValueEncoding, Versionstamp,
};

use super::*;
use crate::{Engine, MemoryEngine, RaftApplied, RocksEngine, RocksOptions};

const OF: DatabaseId = DatabaseId([7; 16]);
/// Its keys lie behind those of the other.
const NEIGHBOUR: DatabaseId = DatabaseId([8; 16]);

fn put(key: usize, bytes: usize) -> Effect {
    let value = Value { encoding: ValueEncoding::Bytes, data: vec![1; bytes].into() };
    Effect::Put { key: Bytes::from(format!("{key:05}")), value, expire_at_ms: 0 }
}

fn apply(state: &ShardState, database: DatabaseId, effects: Vec<Effect>) {
    let position = state.position().next();
    let request_id = RequestId(u128::from(position.sequence).to_be_bytes());
    let transactions = vec![CommittedTransaction { request_id, database, effects, refusal: None }];
    let batch = Batch { position, time_ms: 1, transactions };
    state.apply(&[batch.into()], RaftApplied::default()).unwrap();
}

fn size(state: &ShardState, steps: &mut usize) -> StoredSize {
    let mut paced = |_| {
        *steps += 1;
        ControlFlow::Continue(())
    };
    state.stored_size(OF, &mut paced).unwrap()
}

#[test]
fn database_is_measured_over_many_steps_with_its_messages_and_without_its_neighbour() {
    let folder = tempfile::tempdir().unwrap();
    let rocks: Arc<dyn Engine> =
        Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap());
    for engine in [rocks, Arc::new(MemoryEngine::default())] {
        let state = ShardState::open(engine, ShardId(1)).unwrap();
        apply(&state, NEIGHBOUR, vec![put(1, 5000)]);
        assert_eq!(size(&state, &mut 0), StoredSize::default());
        // More rows than in one step, and more bytes.
        apply(&state, OF, (0..20_001).map(|key| put(key, 100)).collect());
        apply(&state, OF, (30_000..30_050).map(|key| put(key, 60_000)).collect());
        let mut steps = 0;
        let all = size(&state, &mut steps);
        assert_eq!(all.keys, 20_051);
        let least = 20_051 * 5 + 20_001 * 100 + 50 * 60_000;
        assert!((least..least + 20_051 * 24).contains(&all.bytes), "{} of {least}", all.bytes);
        assert!(steps > 8, "{steps} steps");
        let id = MessageId { enqueued: Versionstamp([1; 10]), index: 0 };
        let message = Message { payload: vec![1; 3000].into(), ..Message::default() };
        let queue = "".parse().unwrap();
        let message = Effect::Queue(QueueEffect::PutMessage { queue, id, due_ms: 7, message });
        apply(&state, OF, vec![message]);
        let with_message = size(&state, &mut 0);
        assert_eq!(with_message.keys, all.keys);
        assert!(with_message.bytes > all.bytes + 3000);
        apply(
            &state,
            OF,
            (0..20_001)
                .map(|key| Effect::Delete { key: Bytes::from(format!("{key:05}")) })
                .collect(),
        );
        assert_eq!(size(&state, &mut 0).keys, 50);
        let ended = state.stored_size(OF, &mut |_| ControlFlow::Break(()));
        assert!(matches!(ended, Err(StorageError::Cancelled(_))), "{ended:?}");
    }
}
