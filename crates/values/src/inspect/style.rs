//! Colours, as a terminal understands them.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Numbers, bigints and booleans.
    Number,
    String,
    Undefined,
    Null,
    Date,
    RegExp,
    Special,
}

impl Style {
    pub(super) fn paint(self, text: &str, colours: bool) -> String {
        if !colours {
            return text.to_owned();
        }
        let (on, off) = match self {
            Self::Number => (33, 39),
            Self::String => (32, 39),
            Self::Undefined => (90, 39),
            Self::Null => (1, 22),
            Self::Date => (35, 39),
            Self::RegExp => (31, 39),
            Self::Special => (36, 39),
        };
        format!("\x1b[{on}m{text}\x1b[{off}m")
    }
}

/// The text without what [`Style::paint`] adds.
pub(super) fn unpainted(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = behind.split_once('m').map_or("", |(_, behind)| behind);
    }
    plain + rest
}
