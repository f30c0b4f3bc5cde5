//! Strings in quotes, and as names of properties.

use super::style::Style;

/// A string in the first kind of quotes that it does not hold, with what does not print escaped.
pub(super) fn quote(text: &str) -> String {
    let mark = ['"', '\'', '`'].into_iter().find(|mark| !text.contains(*mark)).unwrap_or('"');
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(mark);
    for character in text.chars() {
        match character {
            '\x08' => quoted.push_str("\\b"),
            '\t' => quoted.push_str("\\t"),
            '\n' => quoted.push_str("\\n"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            '\r' => quoted.push_str("\\r"),
            '\\' => quoted.push_str("\\\\"),
            _ if character == mark => quoted.extend(['\\', mark]),
            _ if character.is_control() => escape(character, &mut quoted),
            _ => quoted.push(character),
        }
    }
    quoted.push(mark);
    quoted
}

fn escape(character: char, output: &mut String) {
    output.push_str(&format!("\\x{:02x}", u32::from(character)));
}

/// Text that is shown without quotes: lines stay, everything else that a terminal obeys does not.
pub(super) fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            escape(character, &mut escaped);
        } else {
            escaped.push(character);
        }
    }
    escaped
}

pub(super) fn property_name(name: &str, colours: bool) -> String {
    let is_word = !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match name {
        "__proto__" => "['__proto__']".to_owned(),
        _ if is_word => name.to_owned(),
        _ => Style::String.paint(&quote(name), colours),
    }
}
