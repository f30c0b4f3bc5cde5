//! Values: random bytes, which no compression makes smaller, or JSON documents like those of an
//! application. A document has an id of its own, so that no value repeats.

use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;

use crate::random::Random;

/// Room for the shortest document of each kind.
pub const MIN_JSON_BYTES: usize = 80;
/// The bytes around the text at a document's end.
const NOTE_BYTES: usize = r#","note":""}"#.len();

const FIRST_NAMES: [&str; 24] = [
    "Anna", "Ben", "Carla", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaito",
    "Lena", "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samuel", "Tomoko", "Ursula",
    "Victor", "Wei", "Zoe",
];
const LAST_NAMES: [&str; 24] = [
    "Alvarez",
    "Bauer",
    "Chen",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lopez",
    "Moreau",
    "Nakamura",
    "Okafor",
    "Patel",
    "Quist",
    "Rossi",
    "Schneider",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Yilmaz",
];
const CITIES: [&str; 12] = [
    "Amsterdam",
    "Berlin",
    "Chicago",
    "Dakar",
    "Frankfurt",
    "Lisbon",
    "Mumbai",
    "Osaka",
    "Paris",
    "Seoul",
    "Sydney",
    "Toronto",
];
const STATES: [&str; 5] = ["open", "paid", "shipped", "delivered", "cancelled"];
const PLANS: [&str; 3] = ["free", "pro", "team"];
const DEVICES: [&str; 5] = ["iPhone", "Android", "Windows", "macOS", "Linux"];
const PAGES: [&str; 8] =
    ["home", "search", "cart", "checkout", "profile", "orders", "help", "settings"];
const WORDS: [&str; 24] = [
    "please",
    "call",
    "before",
    "delivery",
    "the",
    "customer",
    "asked",
    "for",
    "a",
    "new",
    "invoice",
    "and",
    "gift",
    "wrapping",
    "leave",
    "at",
    "door",
    "with",
    "neighbour",
    "next",
    "week",
    "changed",
    "address",
    "confirmed",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueKind {
    /// Random bytes
    Random,
    /// Documents with ids, names, times and amounts
    Json,
}

impl ValueKind {
    pub fn bytes(self, random: &mut Random, count: usize) -> Bytes {
        let mut value = vec![0; count];
        self.fill(random, &mut value);
        value.into()
    }

    /// Fills the value with new content of its length, which is at least [`MIN_JSON_BYTES`] for
    /// JSON.
    pub fn fill(self, random: &mut Random, value: &mut [u8]) {
        match self {
            Self::Random => random.fill(value),
            Self::Json => {
                let document = document(random, value.len());
                for (byte, from) in value.iter_mut().zip(document.into_bytes()) {
                    *byte = from;
                }
            }
        }
    }
}

/// A document of exactly so many bytes: fields, then entries as long as there is room, then words.
fn document(random: &mut Random, bytes: usize) -> String {
    let (kind, entries, fields) = fields(random);
    let mut text = format!(r#"{{"type":"{kind}","id":"{}""#, uuid(random));
    let fits = |text: &str, more: &str| text.len() + more.len() + NOTE_BYTES <= bytes;
    for field in fields {
        if fits(&text, &field) {
            text.push_str(&field);
        }
    }
    let opening = format!(r#","{entries}":["#);
    let mut next = entry(random, kind);
    if fits(&text, &format!("{opening}{next}]")) {
        text.push_str(&opening);
        text.push_str(&next);
        loop {
            next = format!(",{}", entry(random, kind));
            if !fits(&text, &format!("{next}]")) {
                break;
            }
            text.push_str(&next);
        }
        text.push(']');
    }
    text.push_str(r#","note":""#);
    let end = bytes.saturating_sub(2);
    while text.len() < end {
        text.push_str(pick(random, &WORDS));
        text.push(' ');
    }
    text.truncate(end);
    text.push_str("\"}");
    text
}

/// The kind of a document, the name of its entries, and its fields.
fn fields(random: &mut Random) -> (&'static str, &'static str, Vec<String>) {
    let (first, last) = (pick(random, &FIRST_NAMES), pick(random, &LAST_NAMES));
    let customer = random.below(1_000_000);
    match random.below(3) {
        0 => {
            let email = format!(
                "{}.{}{}@example.com",
                first.to_lowercase(),
                last.to_lowercase(),
                random.below(1000)
            );
            let fields = vec![
                format!(r#","name":"{first} {last}""#),
                format!(r#","email":"{email}""#),
                format!(r#","createdAt":"{}""#, time(random)),
                format!(r#","plan":"{}""#, pick(random, &PLANS)),
                format!(r#","city":"{}""#, pick(random, &CITIES)),
                format!(r#","logins":{}"#, random.below(5000)),
                format!(r#","verified":{}"#, random.below(2) == 0),
            ];
            ("user", "devices", fields)
        }
        1 => {
            let address = [0; 4].map(|_: u8| random.below(256).to_string()).join(".");
            let fields = vec![
                format!(r#","userId":{customer}"#),
                format!(r#","lastSeenAt":"{}""#, time(random)),
                format!(r#","device":"{}""#, pick(random, &DEVICES)),
                format!(r#","ip":"{address}""#),
                format!(r#","startedAt":"{}""#, time(random)),
                format!(r#","userName":"{first} {last}""#),
            ];
            ("session", "pages", fields)
        }
        _ => {
            let fields = vec![
                format!(r#","customerId":{customer}"#),
                format!(r#","status":"{}""#, pick(random, &STATES)),
                format!(r#","total":{}.{:02}"#, random.below(900), random.below(100)),
                format!(r#","createdAt":"{}""#, time(random)),
                format!(r#","currency":"{}""#, pick(random, &["EUR", "USD", "JPY"])),
                format!(
                    r#","shipTo":{{"name":"{first} {last}","city":"{}"}}"#,
                    pick(random, &CITIES)
                ),
            ];
            ("order", "items", fields)
        }
    }
}

fn entry(random: &mut Random, kind: &str) -> String {
    match kind {
        "user" => {
            let (device, id, at) = (pick(random, &DEVICES), random.next_u64(), time(random));
            format!(r#"{{"device":"{device}","token":"{id:016x}","addedAt":"{at}"}}"#)
        }
        "session" => {
            let (page, ms, at) = (pick(random, &PAGES), random.below(3000), time(random));
            format!(r#"{{"page":"/{page}","ms":{ms},"at":"{at}"}}"#)
        }
        _ => {
            let (article, count) = (random.below(100_000), 1 + random.below(5));
            format!(
                r#"{{"sku":"A-{article:05}","count":{count},"price":{}.{:02}}}"#,
                random.below(300),
                random.below(100)
            )
        }
    }
}

fn pick<'a>(random: &mut Random, from: &[&'a str]) -> &'a str {
    let index = random.below(u32::try_from(from.len()).unwrap_or(0));
    from.get(usize::try_from(index).unwrap_or(0)).copied().unwrap_or_default()
}

fn uuid(random: &mut Random) -> String {
    let (high, low) = (random.next_u64(), random.next_u64());
    let variant = (low >> 48) & 0x3fff | 0x8000;
    format!(
        "{:08x}-{:04x}-4{:03x}-{variant:04x}-{:012x}",
        high >> 32,
        high & 0xffff,
        (high >> 16) & 0xfff,
        low << 16 >> 16
    )
}

/// A random time in November 2026.
fn time(random: &mut Random) -> String {
    let [day, hour, minute, second, ms] = [30, 24, 60, 60, 1000].map(|bound| random.below(bound));
    format!("2026-11-{:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_json_of_the_given_length_and_never_repeat() {
        for bytes in [MIN_JSON_BYTES, 81, 127, 128, 200, 333, 1024, 4096] {
            let mut random = Random::new(1, 5);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..300 {
                let mut value = vec![0; bytes];
                ValueKind::Json.fill(&mut random, &mut value);
                let read: serde_json::Value = serde_json::from_slice(&value).unwrap();
                assert!(read["type"].is_string() && read["note"].is_string(), "{read}");
                assert!(seen.insert(value));
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_documents() {
        let documents = |seed| {
            let mut random = Random::new(seed, 5);
            [0; 3].map(|_: u8| document(&mut random, 256))
        };
        assert_eq!(documents(1), documents(1));
        assert_ne!(documents(1), documents(2));
    }
}
