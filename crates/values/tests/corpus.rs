//! Keys and values as Deno stores and prints them: `deno.jsonl`, which `corpus.ts` makes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use meridian_values::{Key, Stored, inspect, json, literal, v8};
use serde::Deserialize;

const CORPUS: &str = include_str!("deno.jsonl");

/// Frames have no colours here.
const OTHER_COLOURS: &[&str] = &["error node frames"];

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Key { name: String, key: String, parts: String },
    Value { name: String, encoding: u8, value: String, plain: String, coloured: String },
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = CORPUS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() > 300);
    cases
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

fn stored(encoding: u8, value: &[u8]) -> Stored {
    match encoding {
        1 => Stored::V8(v8::read(value).unwrap()),
        2 => Stored::U64(u64::from_le_bytes(value.try_into().unwrap())),
        3 => Stored::Bytes(value.to_vec()),
        other => panic!("encoding {other}"),
    }
}

#[test]
fn keys_of_deno_are_read_printed_and_written_to_the_byte() {
    for case in cases() {
        let Case::Key { name, key, parts } = case else { continue };
        let bytes = hex(&key);
        let decoded = Key::decode(&bytes).unwrap();
        assert_eq!(decoded.to_string(), parts, "{name}");
        assert_eq!(decoded.encode().unwrap(), bytes, "{name}");
        assert_eq!(literal::parse_key(&parts).unwrap().encode().unwrap(), bytes, "{name}");
    }
}

#[test]
fn values_print_as_deno_prints_them() {
    let mut different = Vec::new();
    for case in cases() {
        let Case::Value { name, encoding, value, plain, coloured } = case else { continue };
        let stored = stored(encoding, &hex(&value));
        let shown = inspect::stored(&stored, false);
        if shown != plain {
            different.push(format!("{name}:\n{shown}\nin Deno:\n{plain}"));
        }
        let shown = inspect::stored(&stored, true);
        if shown != coloured && !OTHER_COLOURS.contains(&name.as_str()) {
            different.push(format!("{name}, coloured:\n{shown:?}\nin Deno:\n{coloured:?}"));
        }
    }
    let count = different.len();
    assert!(different.is_empty(), "{count} are different:\n{}", different.join("\n\n"));
}

#[test]
fn values_of_deno_are_written_as_format_15_of_the_same_bytes() {
    for case in cases() {
        let Case::Value { name, encoding: 1, value, .. } = case else { continue };
        let bytes = hex(&value);
        let graph = v8::read(&bytes).unwrap();
        let written = v8::write(&graph);
        // By its text, since NaN is not equal to itself.
        let again = v8::read(&written).unwrap();
        assert_eq!(format!("{again:?}"), format!("{graph:?}"), "{name}");
        let portable = v8::portable(bytes.clone().into());
        match name.contains("vast") {
            true => assert_eq!(portable, bytes, "{name}"),
            false => assert_eq!(portable, [&[0xff, 15], &bytes[2..]].concat(), "{name}"),
        }
        // An array that was made with a length is sparse to V8, also once it is full.
        if !name.starts_with("generated") && !name.starts_with("array") {
            assert_eq!(written, portable, "{name}");
        }
    }
}

/// Whatever is typed from what was printed is the same value, where the printed text is a literal.
#[test]
fn printed_values_that_are_literals_are_read_back() {
    let mut read = 0;
    for case in cases() {
        let Case::Value { name, encoding, value, plain, .. } = case else { continue };
        let Ok(again) = literal::parse(&plain) else { continue };
        assert_eq!(inspect::stored(&again, false), plain, "{name}");
        if let (Stored::V8(again), Stored::V8(graph)) = (again, stored(encoding, &hex(&value)))
            && is_exact(&plain)
        {
            assert_eq!(v8::write(&again), v8::write(&graph), "{name}");
        }
        read += 1;
    }
    assert!(read > 80, "{read}");
}

/// Whether a text says all of its value: depth, holes and long lists do not.
fn is_exact(text: &str) -> bool {
    ["empty item", "more item", "more char", "NaN", "Array(", "\u{fffd}"]
        .iter()
        .all(|part| !text.contains(part))
}

#[test]
fn json_of_every_value_is_json() {
    let (mut said, mut unsaid) = (0, 0);
    for case in cases() {
        match case {
            Case::Key { name, key, .. } => {
                let text = json::key(&Key::decode(&hex(&key)).unwrap());
                serde_json::from_str::<serde_json::Value>(&text)
                    .unwrap_or_else(|e| panic!("{name}: {e}: {text}"));
            }
            Case::Value { name, encoding, value, .. } => {
                match json::value(&stored(encoding, &hex(&value))) {
                    Some(text) => {
                        // Lone surrogates are JSON, but no text of Rust's.
                        if !name.contains("surrogate") {
                            serde_json::from_str::<serde_json::Value>(&text)
                                .unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
                        }
                        said += 1;
                    }
                    None => unsaid += 1,
                }
            }
        }
    }
    assert!(said > 250 && unsaid > 20, "{said} {unsaid}");
}

#[test]
fn every_cut_of_every_value_is_refused_or_read_and_never_more() {
    for case in cases() {
        let Case::Value { encoding: 1, value, .. } = case else { continue };
        let bytes = hex(&value);
        let cuts = if bytes.len() > 400 { (bytes.len() - 40)..bytes.len() } else { 0..bytes.len() };
        for cut in cuts {
            drop(v8::read(&bytes[..cut]));
        }
    }
}
