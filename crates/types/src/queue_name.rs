//! Names of queues: a database has one queue without a name, and any that messages are enqueued into
//! by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::DatabaseId;
use crate::limits::MAX_QUEUE_NAME_BYTES;

/// The name of a queue in its database: up to [`MAX_QUEUE_NAME_BYTES`] of UTF-8 without control
/// characters. The default is empty, and that of the unnamed queue, which every database has.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName(
    /// Never an empty text.
    Option<Arc<str>>,
);

impl QueueName {
    /// That of the unnamed queue.
    pub const UNNAMED: Self = Self(None);

    /// Whether it is that of the unnamed queue.
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// Empty for the unnamed queue.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not the name of a queue. It says nothing of the text's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQueueName {
    #[error("The name of a queue exceeds the limit of {MAX_QUEUE_NAME_BYTES} bytes.")]
    TooLong,
    #[error("The name of a queue has a control character.")]
    ControlCharacter,
}

/// An empty text is the name of the unnamed queue.
impl FromStr for QueueName {
    type Err = InvalidQueueName;

    fn from_str(text: &str) -> Result<Self, InvalidQueueName> {
        if text.len() > MAX_QUEUE_NAME_BYTES {
            return Err(InvalidQueueName::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidQueueName::ControlCharacter);
        }
        Ok(Self((!text.is_empty()).then(|| text.into())))
    }
}

/// A queue among those of all databases.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId {
    pub database: DatabaseId,
    pub name: QueueName,
}

/// The unnamed queue of the database.
impl From<DatabaseId> for QueueId {
    fn from(database: DatabaseId) -> Self {
        Self { database, name: QueueName::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_a_short_text_without_control_characters_and_an_empty_one_is_the_default() {
        let parsed = |text: &str| text.parse::<QueueName>();
        for text in ["emails", "a", "e-mails / größer 📮", &"n".repeat(64), &"é".repeat(32)] {
            let name = parsed(text).unwrap();
            assert_eq!((name.as_str(), name.is_default()), (text, false));
        }
        assert_eq!(parsed(""), Ok(QueueName::default()));
        assert!(QueueName::default().is_default() && QueueName::default().as_str().is_empty());
        for text in ["n".repeat(65), "é".repeat(32) + "n"] {
            assert_eq!(parsed(&text), Err(InvalidQueueName::TooLong));
        }
        for text in ["\0", "a\nb", "\u{7f}", "\u{85}", "tab\t"] {
            assert_eq!(parsed(text), Err(InvalidQueueName::ControlCharacter), "{text:?}");
        }
    }
}
