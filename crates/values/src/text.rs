//! Strings of JavaScript: UTF-16, in which surrogates may be alone.

use std::fmt;

/// A string as JavaScript has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Box<[u16]>);

impl Text {
    pub fn new(units: impl IntoIterator<Item = u16>) -> Self {
        Self(units.into_iter().collect())
    }

    /// Each byte is a character.
    pub fn from_latin1(bytes: &[u8]) -> Self {
        Self::new(bytes.iter().map(|byte| u16::from(*byte)))
    }

    pub fn units(&self) -> &[u16] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The index of an array that the string is, as JavaScript writes it.
    pub fn as_index(&self) -> Option<u32> {
        let digits = &self.0;
        let is_canonical = digits.len() == 1 || digits.first() != Some(&0x30);
        if digits.is_empty() || digits.len() > 10 || !is_canonical {
            return None;
        }
        let index = digits.iter().try_fold(0u32, |index, unit| {
            let digit = unit.checked_sub(0x30).filter(|digit| *digit <= 9)?;
            index.checked_mul(10)?.checked_add(digit.into())
        })?;
        (index < u32::MAX).then_some(index)
    }

    /// Whether one byte is enough for each character.
    pub fn is_latin1(&self) -> bool {
        self.0.iter().all(|unit| *unit <= 0xff)
    }

    /// Whether no surrogate is alone, so that the string can be said in UTF-8.
    pub fn is_well_formed(&self) -> bool {
        char::decode_utf16(self.0.iter().copied()).all(|unit| unit.is_ok())
    }

    /// The string in UTF-8, with a replacement character for each lone surrogate.
    pub fn to_string_lossy(&self) -> String {
        String::from_utf16_lossy(&self.0)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text.encode_utf16())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string_lossy())
    }
}
