//! Room for what is kept for one client that has not taken it yet.

use std::fmt;

use bytes::Bytes;

use crate::shares::{Holder, Share, Shares};

/// The share of one client in the bytes of all answers. Cheap to clone.
#[derive(Clone)]
pub struct Room {
    answers: Shares,
    holder: Holder,
}

/// Room that is taken, until this is dropped.
pub struct Kept(Share);

/// There was no room for so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom(pub u64);

impl Room {
    pub(crate) fn new(answers: Shares, holder: Holder) -> Self {
        Self { answers, holder }
    }

    /// Room of so many bytes, which is shared with no other client.
    #[must_use]
    pub fn alone(bytes: u64) -> Self {
        Self::new(Shares::new(bytes), Holder { token: 0, shard: None })
    }

    /// # Errors
    /// [`NoRoom`]: the client's token, or all together, have too much.
    pub fn take(&self, bytes: u64) -> Result<Kept, NoRoom> {
        self.answers.take(self.holder, bytes).map(Kept).ok_or(NoRoom(bytes))
    }
}

impl Kept {
    /// Keeps so many bytes instead.
    ///
    /// # Errors
    /// [`NoRoom`]: as many as before are kept.
    pub fn resize(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.0.resize(bytes).then_some(()).ok_or(NoRoom(bytes))
    }

    /// The bytes that the room was taken for; it is given back with the last of them.
    pub(crate) fn held_with(self, bytes: Bytes) -> Bytes {
        self.0.held_with(bytes)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "room among {} bytes", self.answers.total())
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.amount())
    }
}
