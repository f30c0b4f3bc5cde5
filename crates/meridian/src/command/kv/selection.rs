//! Keys and ranges from the command line.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use meridian_types::limits::MAX_READ_KEY_BYTES;
use meridian_values::key::prefix_range;
use meridian_values::literal::{self, ParseError};
use meridian_values::{Key, KeyPart};

/// One key.
#[derive(Args)]
pub(super) struct OneKey {
    /// The key: an array, or its parts as words.
    #[arg(required = true, allow_negative_numbers = true, value_name = "KEY")]
    pub(super) words: Vec<String>,
}

impl OneKey {
    pub(super) fn key(&self) -> Result<Key> {
        of_words(&self.words)
    }
}

/// A range of keys: all of them, those below a prefix, or a part of either.
#[derive(Args, Default)]
pub(super) struct Selection {
    /// Parts that the keys begin with and have more behind: an array, or words. Default: all keys.
    #[arg(allow_negative_numbers = true, value_name = "PREFIX")]
    pub(super) words: Vec<String>,
    /// The same, as an array or one word.
    #[arg(long, value_name = "KEY", conflicts_with = "words")]
    pub(super) prefix: Option<String>,
    /// First key.
    #[arg(long, value_name = "KEY")]
    pub(super) start: Option<String>,
    /// Key before which the range ends.
    #[arg(long, value_name = "KEY")]
    pub(super) end: Option<String>,
}

/// The bytes from which a range goes, and up to which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) start: Vec<u8>,
    pub(super) end: Vec<u8>,
}

impl Selection {
    /// `None`: the range is not bounded by a prefix.
    pub(super) fn prefix(&self) -> Result<Option<Key>> {
        match (&self.prefix, self.words.as_slice()) {
            (Some(text), _) => of_option("--prefix", text).map(Some),
            (None, []) => Ok(None),
            (None, words) => of_words(words).map(Some),
        }
    }

    /// The range in words.
    pub(super) fn describe(&self) -> Result<String> {
        let mut text = match self.prefix()? {
            Some(prefix) => format!("that begin with {prefix}"),
            None => "of all".to_owned(),
        };
        for (option, bound, preposition) in
            [("--start", &self.start, "from"), ("--end", &self.end, "before")]
        {
            if let Some(bound) = bound {
                text = format!("{text}, {preposition} {}", of_option(option, bound)?);
            }
        }
        Ok(text)
    }

    pub(super) fn bounds(&self) -> Result<Bounds> {
        let (mut start, mut end) = match self.prefix()? {
            Some(prefix) => prefix_range(&prefix.encode()?),
            // Behind every key that can be written.
            None => (Vec::new(), vec![0xff; MAX_READ_KEY_BYTES]),
        };
        let whole = start.clone()..=end.clone();
        for (option, text, bound) in
            [("--start", &self.start, &mut start), ("--end", &self.end, &mut end)]
        {
            let Some(text) = text else { continue };
            let key = of_option(option, text)?;
            *bound = key.encode()?;
            if !whole.contains(bound) {
                bail!("{option} {key} does not begin with the prefix");
            }
        }
        if end < start {
            bail!("the range ends before it starts: --end is less than --start");
        }
        Ok(Bounds { start, end })
    }
}

/// A key from one argument: an array, or one part.
pub(in crate::command) fn of_option(option: &str, text: &str) -> Result<Key> {
    of_words(&[text.to_owned()]).map_err(|error| anyhow!("{option}: {error}"))
}

pub(super) fn of_words(words: &[String]) -> Result<Key> {
    if let [word] = words
        && word.trim_start().starts_with('[')
    {
        return literal::parse_key(word).map_err(|error| wrong("a key", word, &error));
    }
    let parts = words.iter().map(|word| {
        literal::parse_key_word(word).map_err(|error| wrong("a part of a key", word, &error))
    });
    Ok(Key(parts.collect::<Result<Vec<KeyPart>>>()?))
}

/// The text that was given, with a mark below the place.
pub(super) fn wrong(what: &str, text: &str, error: &ParseError) -> anyhow::Error {
    let before: Vec<char> = text.chars().take(error.at).collect();
    let line = before.iter().filter(|c| **c == '\n').count();
    let column = before.iter().rev().take_while(|c| **c != '\n').count();
    let shown = text.lines().nth(line).unwrap_or_default();
    // Of a long line, the surroundings.
    let skipped = column.saturating_sub(50);
    let shown: String = shown.chars().skip(skipped).take(100).collect();
    let mark = " ".repeat(column - skipped);
    let line = if line > 0 { format!("line {}, ", line + 1) } else { String::new() };
    let place = format!("{line}character {}", column + 1);
    anyhow!("this is not {what}: {}, at {place}\n  {shown}\n  {mark}^", error.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(words: &[&str], start: Option<&str>, end: Option<&str>) -> Result<Bounds> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let (start, end) = (start.map(str::to_owned), end.map(str::to_owned));
        Selection { words, prefix: None, start, end }.bounds()
    }

    #[test]
    fn ranges_are_those_of_deno() {
        let bounds = |start: &[u8], end: &[u8]| Bounds { start: start.to_vec(), end: end.to_vec() };
        assert_eq!(selection(&["a"], None, None).unwrap(), bounds(b"\x02a\0\0", b"\x02a\0\xff"));
        let all = selection(&[], None, None).unwrap();
        assert_eq!((all.start.len(), all.end.len()), (0, MAX_READ_KEY_BYTES));
        assert_eq!(
            selection(&["a"], Some("['a', true]"), None).unwrap(),
            bounds(b"\x02a\0\x27", b"\x02a\0\xff")
        );
        assert_eq!(selection(&[], Some("a"), Some("b")).unwrap(), bounds(b"\x02a\0", b"\x02b\0"));
    }

    #[test]
    fn contradictory_ranges_are_refused() {
        let error =
            |words: &[&str], start, end| selection(words, start, end).unwrap_err().to_string();
        assert_eq!(
            error(&["a"], Some("['b']"), None),
            "--start [ \"b\" ] does not begin with the prefix"
        );
        assert!(error(&[], Some("b"), Some("a")).contains("ends before it starts"));
    }

    #[test]
    fn errors_point_at_the_place() {
        let error = of_words(&["[\"users\", 42n]]".to_owned()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "this is not a key: expected the end, found `]`, at character 15\n  \
             [\"users\", 42n]]\n                ^"
        );
        let error = of_option("--end", "[\n1,\n  oops]").unwrap_err().to_string();
        assert!(error.starts_with("--end: this is not a key: `oops` is no value"), "{error}");
        assert!(error.contains("line 3, character 3\n    oops]\n    ^"), "{error}");
    }
}
