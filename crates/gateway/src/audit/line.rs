//! A line of the log: names and what stands for each, in the order in which they were set.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serialize;

/// A line, or a part of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Vec<(&'static str, Field)>);

#[derive(Debug, Clone)]
pub(super) enum Field {
    Word(&'static str),
    Text(String),
    Number(u64),
    Part(f64),
    Truth(bool),
    /// As it stands in the line: a tree of it takes many times as much memory.
    Json(String),
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Line {
    /// Of a gateway, and of now.
    pub(super) fn begun(gateway: &str) -> Self {
        Self::begun_before(gateway, Duration::ZERO)
    }

    /// Of a gateway, and of so long ago.
    pub(super) fn begun_before(gateway: &str, ago: Duration) -> Self {
        let time = Utc::now() - TimeDelta::from_std(ago).unwrap_or_default();
        let mut line = Self(Vec::with_capacity(24));
        line.set("time", text(time));
        line.set("gateway", gateway.to_owned());
        line
    }

    pub(super) fn set(&mut self, name: &'static str, field: impl Into<Field>) {
        let field = field.into();
        match self.0.iter_mut().find(|(set, _)| *set == name) {
            Some((_, set)) => *set = field,
            None => self.0.push((name, field)),
        }
    }

    /// Sets another word, where this one is.
    pub(super) fn replace(&mut self, name: &str, word: &str, by: &'static str) {
        let found = self.0.iter_mut().find(|(set, _)| *set == name);
        if let Some((_, Field::Word(set))) = found
            && *set == word
        {
            *set = by;
        }
    }

    /// Is of now.
    pub(super) fn happens(&mut self) {
        self.set("time", text(Utc::now()));
    }

    /// The same without these, to be kept for long.
    pub(super) fn without(&self, names: &[&str]) -> Self {
        let kept = self.0.iter().filter(|(set, _)| !names.contains(set));
        let mut line = Self(kept.cloned().collect());
        line.0.shrink_to_fit();
        line
    }

    /// With its end.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.encode_part();
        bytes.push(b'\n');
        bytes.shrink_to_fit();
        bytes
    }

    pub(super) fn encode_part(&self) -> Vec<u8> {
        let mut bytes = vec![b'{'];
        for (at, (name, field)) in self.0.iter().enumerate() {
            if at > 0 {
                bytes.push(b',');
            }
            write(&mut bytes, name);
            bytes.push(b':');
            match field {
                Field::Word(word) => write(&mut bytes, word),
                Field::Text(text) => write(&mut bytes, text),
                Field::Number(number) => write(&mut bytes, number),
                Field::Part(part) => write(&mut bytes, part),
                Field::Truth(truth) => write(&mut bytes, truth),
                Field::Json(text) => bytes.extend_from_slice(text.as_bytes()),
            }
        }
        bytes.push(b'}');
        bytes
    }
}

fn write(bytes: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // No map is among the fields, and memory does not refuse to be written.
    drop(serde_json::to_writer(bytes, value));
}

impl From<&'static str> for Field {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Field {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Field {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<f64> for Field {
    fn from(part: f64) -> Self {
        Self::Part(part)
    }
}

impl From<bool> for Field {
    fn from(truth: bool) -> Self {
        Self::Truth(truth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_that_is_set_again_keeps_its_place_and_no_text_ends_the_line() {
        let mut line = Line::default();
        line.set("outcome", "abandoned");
        line.set("database", "a\n\"b\u{7}".to_owned());
        line.replace("outcome", "ok", "refused");
        line.replace("outcome", "abandoned", "committed");
        line.set("bytes", 3u64);
        let line = line.without(&["bytes"]);
        let golden = b"{\"outcome\":\"committed\",\"database\":\"a\\n\\\"b\\u0007\"}\n";
        assert_eq!(line.encode(), golden);
    }
}
