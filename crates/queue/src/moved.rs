//! The places of messages that have moved lately.

use std::collections::{BTreeMap, VecDeque};

use meridian_types::MessageId;

use crate::event::MessageKey;

/// Messages whose new place is remembered, at most.
const MAX_MOVED: usize = 10_000;

/// Where messages are by now whose delivery failed, or that an operator has moved, so that a success
/// that is reported late finds them. The latest alone: of what was forgotten the message is delivered
/// once more.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    due_ms: BTreeMap<MessageId, u64>,
    oldest_first: VecDeque<MessageId>,
}

impl Moved {
    pub(crate) fn insert(&mut self, key: MessageKey) {
        if self.due_ms.insert(key.id, key.due_ms).is_none() {
            self.oldest_first.push_back(key.id);
        }
        if self.oldest_first.len() > MAX_MOVED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.due_ms.remove(&oldest);
        }
    }

    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.due_ms.contains_key(&id)
    }

    pub(crate) fn due_ms(&self, id: MessageId) -> Option<u64> {
        self.due_ms.get(&id).copied()
    }
}
