//! What a node has promised about the end of epochs. The position that it said when it was sealed
//! is final: the base of the next epoch is chosen by it, so no restart may undo it.

use std::sync::Arc;

use meridian_storage::schema::{META_FAMILY, seal_key};
use meridian_storage::{Durability, Engine, StorageError, WriteBatch};
use meridian_types::{Epoch, ShardId};

/// The newest seal of a shard here. Stored as epoch (2, big-endian) ‖ planned (1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) epoch: Epoch,
    /// The leader may finish what it began. Else nothing is taken any more.
    pub(crate) planned: bool,
}

impl Seal {
    /// What was written down of this epoch.
    pub(crate) fn of(
        engine: &Arc<dyn Engine>,
        shard: ShardId,
        epoch: Epoch,
    ) -> Result<Option<Self>, StorageError> {
        Ok(Self::newest(engine, shard)?.filter(|seal| seal.epoch == epoch))
    }

    /// Serves for the epochs before as well.
    pub(crate) fn newest(
        engine: &Arc<dyn Engine>,
        shard: ShardId,
    ) -> Result<Option<Self>, StorageError> {
        let Some(stored) = engine.get(META_FAMILY, &seal_key(shard))? else { return Ok(None) };
        let malformed = || StorageError::Corruption {
            what: format!("the seal of shard {shard}"),
            detail: format!("{stored:?}"),
        };
        match *stored {
            [high, low, planned @ (0 | 1)] => Ok(Some(Self {
                epoch: Epoch(u16::from_be_bytes([high, low])),
                planned: planned == 1,
            })),
            _ => Err(malformed()),
        }
    }

    /// Writes a seal down, and returns what holds then. It is durable, and may be answered, once a
    /// sync that began after this has ended: also where nothing was to be written, which a call
    /// that was cancelled before its sync may have left. Blocks. A seal that takes nothing any more
    /// does not become a planned one, and none goes back to an earlier epoch.
    pub(crate) fn write_down(
        self,
        engine: &Arc<dyn Engine>,
        shard: ShardId,
    ) -> Result<Self, StorageError> {
        let known = Self::newest(engine, shard)?;
        let stays = known.filter(|known| {
            known.epoch > self.epoch || (known.epoch == self.epoch && !known.planned)
        });
        if let Some(known) = stays {
            return Ok(known);
        }
        let [high, low] = self.epoch.0.to_be_bytes();
        let mut writes = WriteBatch::default();
        writes.put(&META_FAMILY.into(), seal_key(shard), vec![high, low, u8::from(self.planned)]);
        engine.write(writes, Durability::Logged)?;
        Ok(self)
    }
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
        assert_eq!(Seal::newest(&engine, shard).unwrap(), None);
        for (asked, holds) in [
            (seal(3, true), seal(3, true)),
            (seal(3, true), seal(3, true)),
            (seal(3, false), seal(3, false)),
            (seal(3, true), seal(3, false)),
            (seal(2, false), seal(3, false)),
            (seal(0x0405, true), seal(0x0405, true)),
        ] {
            assert_eq!(asked.write_down(&engine, shard).unwrap(), holds);
            engine.sync().unwrap();
            let after: Arc<dyn Engine> = Arc::new(memory.crash_to_what_is_durable());
            assert_eq!(Seal::of(&after, shard, holds.epoch).unwrap(), Some(holds));
            assert_eq!(Seal::of(&after, shard, Epoch(9)).unwrap(), None);
            assert_eq!(Seal::newest(&after, other).unwrap(), None);
        }
        assert_eq!(
            engine.get(META_FAMILY, &seal_key(shard)).unwrap().unwrap(),
            b"\x04\x05\x01".as_slice()
        );
    }
}
