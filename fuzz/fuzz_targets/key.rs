//! Keys: a key that is read is written as it was, or in fewer bytes that are read as the same key;
//! its bytes sort as its parts do; and the text that is printed of it is read as the same key.
#![no_main]

use std::cmp::Ordering;

use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{times, within};
use meridian_values::key::prefix_range;
use meridian_values::{Key, KeyPart, inspect, json, literal};

fuzz_target!(|data: &[u8]| {
    let Ok(key) = within(times(192, data.len()), || Key::decode(data)) else { return };
    let written = key.encode().expect("a key that was read fits");
    assert!(written.len() <= data.len());
    let again = Key::decode(&written).expect("a written key is read");
    // By its text, since NaN is not equal to itself.
    assert_eq!(again.to_string(), key.to_string());
    assert_eq!(again.encode().as_ref(), Ok(&written), "one key has one encoding");
    if written != data {
        let has_several =
            |part: &KeyPart| matches!(part, KeyPart::BigInt(_)) || is_nan(part).is_some();
        assert!(key.0.iter().any(has_several), "no part can be said in other bytes");
    }
    for (at, part) in key.0.iter().enumerate() {
        sorts_behind_its_prefix(&key, at);
        if let Some(next) = key.0.get(at + 1) {
            assert_eq!(bytes_of(part).cmp(&bytes_of(next)), compare(part, next), "{key}");
        }
    }
    within(times(1024, data.len()), || {
        inspect::key(&key, true);
        json::key(&key);
    });
    is_read_as_printed(&key, &written);
});

fn bytes_of(part: &KeyPart) -> Vec<u8> {
    Key(vec![part.clone()]).encode().expect("a part that was read fits")
}

/// The sign of a NaN.
fn is_nan(part: &KeyPart) -> Option<bool> {
    match part {
        KeyPart::Number(number) if number.is_nan() => Some(number.is_sign_negative()),
        _ => None,
    }
}

fn compare(a: &KeyPart, b: &KeyPart) -> Ordering {
    let type_of = |part: &KeyPart| match part {
        KeyPart::Bytes(_) => 0,
        KeyPart::Text(_) => 1,
        KeyPart::BigInt(_) => 2,
        KeyPart::Number(_) => 3,
        KeyPart::Bool(_) => 4,
    };
    // All NaNs of a sign are one key.
    let number = |number: f64| if number.is_nan() { f64::NAN.copysign(number) } else { number };
    match (a, b) {
        (KeyPart::Bytes(a), KeyPart::Bytes(b)) => a.cmp(b),
        (KeyPart::Text(a), KeyPart::Text(b)) => a.cmp(b),
        (KeyPart::BigInt(a), KeyPart::BigInt(b)) => a.cmp(b),
        (KeyPart::Number(a), KeyPart::Number(b)) => number(*a).total_cmp(&number(*b)),
        (KeyPart::Bool(a), KeyPart::Bool(b)) => a.cmp(b),
        (a, b) => type_of(a).cmp(&type_of(b)),
    }
}

/// A list by the first `parts` of a key finds the key, and not the prefix itself.
fn sorts_behind_its_prefix(key: &Key, parts: usize) {
    let whole = key.encode().expect("it fits");
    let prefix = Key(key.0[..parts].to_vec()).encode().expect("it fits");
    let (start, end) = prefix_range(&prefix);
    assert!(whole.starts_with(&prefix) && prefix < start);
    assert!(start <= whole && whole < end, "{key} does not lie behind its first {parts} parts");
}

fn is_read_as_printed(key: &Key, written: &[u8]) {
    let text = key.to_string();
    // In the third kind of quotes it would be a variable of a program.
    if text.contains("${") && text.contains('`') {
        return;
    }
    let read = literal::parse_key(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    // A NaN has no sign in print.
    if key.0.iter().all(|part| is_nan(part) != Some(true)) {
        assert_eq!(read.encode().as_deref(), Ok(written), "{text}");
    }
}
