//! Characters to words, strings and numbers.

use num_bigint::BigInt;

use crate::graph::Value;
use crate::text::Text;

use super::ParseError;

pub(super) struct Scanner {
    characters: Vec<char>,
    at: usize,
}

impl Scanner {
    pub(super) fn new(text: &str) -> Self {
        Self { characters: text.chars().collect(), at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn peek_behind(&self) -> Option<char> {
        self.characters.get(self.at + 1).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += 1;
        Some(character)
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { at: self.at, reason: reason.into() }
    }

    /// An error: the present character is none of `expected`.
    pub(super) fn unexpected(&self, expected: &str) -> ParseError {
        match self.peek() {
            Some(found) => self.error(format!("expected {expected}, found `{found}`")),
            None => self.error(format!("expected {expected}, and the text ends")),
        }
    }

    /// Skips space and comments.
    pub(super) fn skip_space(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.peek(), self.peek_behind()) {
                (Some(space), _) if space.is_whitespace() || space == '\u{feff}' => self.at += 1,
                (Some('/'), Some('/')) => while self.next().is_some_and(|c| c != '\n') {},
                (Some('/'), Some('*')) => {
                    let start = self.at;
                    self.at += 2;
                    while (self.peek(), self.peek_behind()) != (Some('*'), Some('/')) {
                        if self.next().is_none() {
                            self.at = start;
                            return Err(self.error("the comment has no end"));
                        }
                    }
                    self.at += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Whether the next character is this one, which is then taken.
    pub(super) fn take(&mut self, wanted: char) -> Result<bool, ParseError> {
        self.skip_space()?;
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        Ok(is_there)
    }

    pub(super) fn expect(&mut self, wanted: char) -> Result<(), ParseError> {
        if self.take(wanted)? { Ok(()) } else { Err(self.unexpected(&format!("`{wanted}`"))) }
    }

    /// A word of a program; empty if none is here.
    pub(super) fn word(&mut self) -> String {
        let is_part = |c: &char| c.is_alphanumeric() || *c == '_' || *c == '$';
        let rest = self.characters.iter().skip(self.at);
        let word: String = rest.take_while(|c| is_part(c)).collect();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return String::new();
        }
        self.at += word.chars().count();
        word
    }

    /// A string, from its opening quotes.
    pub(super) fn string(&mut self) -> Result<Text, ParseError> {
        let start = self.at;
        let Some(mark @ ('"' | '\'' | '`')) = self.next() else {
            self.at = start;
            return Err(self.unexpected("a string"));
        };
        let mut units = Vec::new();
        loop {
            match self.next() {
                Some(end) if end == mark => return Ok(Text::new(units)),
                Some('\\') => match self.escape()? {
                    Escaped::Nothing => {}
                    Escaped::Character(c) => push(c, &mut units),
                    Escaped::Unit(unit) => units.push(unit),
                },
                Some('$') if mark == '`' && self.peek() == Some('{') => {
                    return Err(self.error("`${` is not read: there are no variables"));
                }
                Some('\n') if mark != '`' => {
                    self.at -= 1;
                    return Err(self.error("the string ends with the line: write \\n, or use `"));
                }
                Some(c) => push(c, &mut units),
                None => {
                    self.at = start;
                    return Err(self.error("the string has no end"));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<Escaped, ParseError> {
        let character = match self.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('v') => '\x0b',
            Some('0') if !self.peek().is_some_and(|c| c.is_ascii_digit()) => '\0',
            Some('\n') => return Ok(Escaped::Nothing),
            Some('x') => return self.hex(2).map(Escaped::Unit),
            Some('u') if self.peek() == Some('{') => {
                self.at += 1;
                let rest = self.characters.iter().skip(self.at);
                let digits: String = rest.take_while(|c| c.is_ascii_hexdigit()).take(7).collect();
                let character = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                let character = character.ok_or_else(|| self.error("no such character"))?;
                self.at += digits.len();
                self.expect('}')?;
                character
            }
            Some('u') => return self.hex(4).map(Escaped::Unit),
            Some(digit) if digit.is_ascii_digit() => {
                self.at -= 1;
                return Err(self.error("an escape with a digit is not read: write \\x41"));
            }
            Some(other) => other,
            None => return Err(self.error("the string has no end")),
        };
        Ok(Escaped::Character(character))
    }

    fn hex(&mut self, digits: usize) -> Result<u16, ParseError> {
        let text: String = self.characters.iter().skip(self.at).take(digits).collect();
        let unit = u16::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
        let unit = unit.filter(|_| !text.starts_with('+'));
        let unit = unit.ok_or_else(|| self.error(format!("expected {digits} hex digits")))?;
        self.at += digits;
        Ok(unit)
    }

    /// A number or bigint without a sign.
    pub(super) fn number(&mut self) -> Result<Value, ParseError> {
        let start = self.at;
        let radix = match (self.peek(), self.peek_behind()) {
            (Some('0'), Some('x' | 'X')) => 16,
            (Some('0'), Some('o' | 'O')) => 8,
            (Some('0'), Some('b' | 'B')) => 2,
            _ => 10,
        };
        let mut text = String::new();
        if radix != 10 {
            self.at += 2;
        }
        while let Some(c) = self.peek() {
            let signs_exponent =
                radix == 10 && matches!(c, '+' | '-') && text.ends_with(['e', 'E']);
            match c {
                '_' if text.ends_with(|c: char| c.is_digit(radix)) => {}
                _ if c.is_ascii_alphanumeric() || c == '.' || signs_exponent => text.push(c),
                _ => break,
            }
            self.at += 1;
        }
        let value = match text.strip_suffix('n') {
            Some(digits) => {
                let digits =
                    Some(digits).filter(|digits| digits.chars().all(|c| c.is_digit(radix)));
                digits.and_then(|d| BigInt::parse_bytes(d.as_bytes(), radix)).map(Value::BigInt)
            }
            None if radix == 10 => {
                let is_number = text.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
                let has_octal = text.len() > 1
                    && text.starts_with('0')
                    && text.bytes().all(|b| b.is_ascii_digit());
                let number = Some(&text).filter(|_| is_number && !has_octal);
                number.and_then(|text| text.parse().ok()).map(Value::Number)
            }
            None => whole(&text, radix).map(Value::Number),
        };
        value.ok_or_else(|| {
            let shown: String = self.characters.iter().take(self.at).skip(start).collect();
            ParseError { at: start, reason: format!("`{shown}` is no number") }
        })
    }
}

fn push(character: char, units: &mut Vec<u16>) {
    units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
}

/// Digits of another base, as the nearest number.
fn whole(digits: &str, radix: u32) -> Option<f64> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    BigInt::parse_bytes(digits.as_bytes(), radix)?.to_string().parse().ok()
}

enum Escaped {
    Nothing,
    Character(char),
    /// Of a pair, maybe.
    Unit(u16),
}
