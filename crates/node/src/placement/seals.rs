//! A node's promises about the end of epochs, on its disk. The position that it answered when it
//! was sealed is final: the base of the next epoch is chosen by it, so no restart may undo it.

use std::sync::Arc;

use meridian_placement::Seal;
use meridian_storage::schema::{META_FAMILY, seal_key};
use meridian_storage::{Durability, Engine, StorageError, WriteBatch};
use meridian_types::{Epoch, ShardId};

/// The seal of this epoch that was recorded.
pub(crate) fn of(
    engine: &Arc<dyn Engine>,
    shard: ShardId,
    epoch: Epoch,
) -> Result<Option<Seal>, StorageError> {
    Ok(newest(engine, shard)?.filter(|seal| seal.epoch == epoch))
}

/// The newest seal of a shard here. Serves for the epochs before as well. Layout in `meta`: `seal` ‖
/// shard (4 bytes) to epoch (2, big-endian) ‖ planned (1).
pub(crate) fn newest(
    engine: &Arc<dyn Engine>,
    shard: ShardId,
) -> Result<Option<Seal>, StorageError> {
    let Some(stored) = engine.get(META_FAMILY, &seal_key(shard))? else { return Ok(None) };
    match *stored {
        [high, low, planned @ (0 | 1)] => {
            Ok(Some(Seal { epoch: Epoch(u16::from_be_bytes([high, low])), planned: planned == 1 }))
        }
        _ => Err(StorageError::Corruption {
            what: format!("the seal of shard {shard}"),
            detail: format!("{stored:?}"),
        }),
    }
}

/// Writes a seal down, and returns what holds then, as [`Seal::after`] says. It is durable, and may be
/// answered, once a sync that began after this has ended: also where nothing was to be written, which
/// a call that was cancelled before its sync may have left. Blocks.
pub(crate) fn write_down(
    engine: &Arc<dyn Engine>,
    shard: ShardId,
    seal: Seal,
) -> Result<Seal, StorageError> {
    let known = newest(engine, shard)?;
    let holds = seal.after(known);
    // A planned seal may be asked for by several calls, each of which has a write of its own to sync.
    if known != Some(holds) || holds.planned {
        let [high, low] = holds.epoch.0.to_be_bytes();
        let mut writes = WriteBatch::default();
        writes.put(&META_FAMILY.into(), seal_key(shard), vec![high, low, u8::from(holds.planned)]);
        engine.write(writes, Durability::Logged)?;
    }
    Ok(holds)
}

#[cfg(test)]
mod tests {
    use meridian_storage::MemoryEngine;

    use super::*;

    #[test]
    fn a_seal_is_durable_and_only_grows() {
        let memory = Arc::new(MemoryEngine::default());
        let (shard, other) = (ShardId(0x0102_0304), ShardId(2));
        let engine: Arc<dyn Engine> = memory.clone();
        engine.create_family(META_FAMILY).unwrap();
        let seal = |epoch, planned| Seal { epoch: Epoch(epoch), planned };
        assert_eq!(newest(&engine, shard).unwrap(), None);
        for (asked, holds) in [
            (seal(3, true), seal(3, true)),
            (seal(3, true), seal(3, true)),
            (seal(3, false), seal(3, false)),
            (seal(3, true), seal(3, false)),
            (seal(2, false), seal(3, false)),
            (seal(0x0405, true), seal(0x0405, true)),
        ] {
            assert_eq!(write_down(&engine, shard, asked).unwrap(), holds);
            engine.sync().unwrap();
            let after: Arc<dyn Engine> = Arc::new(memory.crash_to_what_is_durable());
            assert_eq!(of(&after, shard, holds.epoch).unwrap(), Some(holds));
            assert_eq!(of(&after, shard, Epoch(9)).unwrap(), None);
            assert_eq!(newest(&after, other).unwrap(), None);
        }
        assert_eq!(
            engine.get(META_FAMILY, &seal_key(shard)).unwrap().unwrap(),
            b"\x04\x05\x01".as_slice()
        );
    }
}
