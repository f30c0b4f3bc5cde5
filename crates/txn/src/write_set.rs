//! The effects of the transaction at hand.

use std::collections::HashMap;

use bytes::Bytes;
use meridian_types::Effect;

/// Up to this many effects a scan is cheaper than hashing.
const MAX_SCANNED: usize = 16;

/// The writes of the transaction at hand: the last effect of every key, in the order in which the
/// keys were first written.
pub(crate) struct WriteSet {
    effects: Vec<Effect>,
    /// Where in `effects` a key is, once they are more than [`MAX_SCANNED`].
    index: Option<HashMap<Bytes, usize>>,
}

impl WriteSet {
    pub(crate) fn with_capacity(mutations: usize) -> Self {
        Self { effects: Vec::with_capacity(mutations), index: None }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Effect> {
        self.effects.get(self.find(key)?)
    }

    /// Replaces the effect of the same key, if there is one.
    pub(crate) fn put(&mut self, effect: Effect) {
        if let Some(earlier) = self.find(effect.key()).and_then(|at| self.effects.get_mut(at)) {
            *earlier = effect;
            return;
        }
        if let Some(index) = &mut self.index {
            index.insert(effect.key().clone(), self.effects.len());
        } else if self.effects.len() == MAX_SCANNED {
            let keys = self.effects.iter().chain([&effect]).map(|effect| effect.key().clone());
            self.index = Some(keys.zip(0..).collect());
        }
        self.effects.push(effect);
    }

    pub(crate) fn into_effects(self) -> Vec<Effect> {
        self.effects
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(key).copied(),
            None => self.effects.iter().position(|effect| effect.key() == key),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_types::Effect;

    use super::{MAX_SCANNED, WriteSet};

    #[test]
    fn keeps_the_last_effect_of_each_key_on_both_sides_of_the_index() {
        for keys in [1, MAX_SCANNED, MAX_SCANNED + 1, 3 * MAX_SCANNED] {
            let key = |at: usize| Bytes::from(format!("key {at}"));
            let mut set = WriteSet::with_capacity(0);
            for round in 0..2 {
                for at in 0..keys {
                    let value = crate::number::le64_value(round);
                    set.put(Effect::Put { key: key(at), value, expire_at_ms: round });
                    assert_eq!(set.get(&key(at)).unwrap().key(), &key(at));
                }
            }
            assert!(set.get(b"absent").is_none());
            // A small transaction is not worth one.
            assert_eq!(set.index.is_some(), keys > MAX_SCANNED);
            let effects = set.into_effects();
            assert_eq!(effects.len(), keys);
            for (at, effect) in effects.iter().enumerate() {
                assert!(matches!(effect, Effect::Put { expire_at_ms: 1, .. }));
                assert_eq!(effect.key(), &key(at));
            }
        }
    }
}
