//! Messages and dead letters, as lines for people and for programs.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meridian_proto::kv_connect as pb;
use meridian_values::{Key, inspect, json};
use serde::Serialize;

use super::api::{Letter, Message, NamedTotals, Page, Totals};
use crate::command::kv::output::{Form, Output, hex, json_value};
use crate::command::operator::format;

const MESSAGES: &str = concat!(
    "ID                        DUE                       STATE                 ",
    "ATTEMPT      SIZE  KEYS"
);
const LETTERS: &str =
    "  NUMBER  ID                        DIED                      ATTEMPTS      SIZE";

/// Above the lines of a list, for people.
pub(super) fn heading(dead: bool) -> &'static str {
    if dead { LETTERS } else { MESSAGES }
}

pub(super) fn message(message: &Message, form: Form, now_ms: u64) -> Result<String> {
    let Message { id, due, attempt, bytes, keys, .. } = message;
    Ok(match form {
        Form::Json => serde_json::to_string(message)?,
        Form::Inspect => {
            let (due, size) = (format::time(*due), format::size(*bytes));
            let state = state(message, now_ms);
            format!("{id}  {due:<24}  {state:<20}  {attempt:>7}  {size:>8}  {keys:>4}")
        }
    })
}

pub(super) fn letter(letter: &Letter, form: Form) -> Result<String> {
    let Letter { number, queue, id, attempts, died, bytes, .. } = letter;
    Ok(match form {
        Form::Json => serde_json::to_string(letter)?,
        Form::Inspect => {
            let (died, size) = (format::time(*died), format::size(*bytes));
            let queue = if queue.is_empty() { String::new() } else { format!("  {queue}") };
            format!("{number:>8}  {id}  {died:<24}  {attempts:>8}  {size:>8}{queue}")
        }
    })
}

fn state(message: &Message, now_ms: u64) -> String {
    if message.leased {
        return "held".to_owned();
    }
    waits(message.due, now_ms)
}

fn waits(due_ms: u64, now_ms: u64) -> String {
    match due_ms.checked_sub(now_ms) {
        Some(left) if left > 0 => format!("in {}", format::duration(left)),
        _ => format!("due for {}", format::duration(now_ms.saturating_sub(due_ms))),
    }
}

/// The figures of a whole queue.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counted<'a> {
    #[serde(flatten)]
    totals: Totals,
    /// When the first message was or is due, held or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_due: Option<u64>,
    paused: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    queues: &'a [NamedTotals],
}

/// Of the queue whose first page this is.
pub(super) fn totals(first: &Page, form: Form, now_ms: u64) -> Result<String> {
    let Page { messages, totals, queues, paused, .. } = first;
    let first_due = messages.first().map(|message| message.due);
    let counted = Counted { totals: *totals, first_due, paused: *paused, queues };
    let Totals { undelivered, leased, dead } = *totals;
    Ok(match form {
        Form::Json => serde_json::to_string(&counted)?,
        Form::Inspect => {
            let waits = first_due.map(|due_ms| format!(", the first {}", waits(due_ms, now_ms)));
            let mut text = format!(
                "{} undelivered, {leased} of them held by listeners{}; {}{}",
                format::count(undelivered, "message"),
                waits.unwrap_or_default(),
                format::count(dead, "dead letter"),
                if *paused { "; the queue is paused" } else { "" }
            );
            for NamedTotals { queue, undelivered, leased } in queues {
                let messages = format::count(*undelivered, "message");
                text.push_str(&format!(
                    "\nqueue {queue}: {messages} undelivered, {leased} of them held by listeners"
                ));
            }
            text
        }
    })
}

/// A message with its payload, and its keys if undelivered.
pub(super) fn whole_message(message: &Message, output: &Output, now_ms: u64) -> Result<String> {
    let keys = message.keys_if_undelivered.iter().map(|key| STANDARD.decode(key));
    let keys: Vec<Vec<u8>> = keys.collect::<Result<_, _>>()?;
    let value = value(message.payload.as_deref())?;
    if output.form() == Form::Json {
        let keys: Vec<String> = keys.iter().map(|key| json_key(key)).collect();
        let keys = format!(",\"keysIfUndelivered\":[{}]", keys.join(","));
        return Ok(with_value(serde_json::to_string(message)?, &value, &keys));
    }
    let Message { id, due, attempt, .. } = message;
    let due = format::time(*due);
    let mut text = format!("{id}, due {due} ({}), attempt {attempt}\n", state(message, now_ms));
    text.push_str(&output.value(&value));
    for key in &keys {
        let key = match Key::decode(key) {
            Ok(key) => inspect::key(&key, output.colours()),
            Err(_) => format!("<bytes {}>", hex(key)),
        };
        text.push_str(&format!("\nif undelivered: {key}"));
    }
    Ok(text)
}

/// A dead letter with its payload.
pub(super) fn whole_letter(letter: &Letter, output: &Output) -> Result<String> {
    let value = value(letter.payload.as_deref())?;
    if output.form() == Form::Json {
        return Ok(with_value(serde_json::to_string(letter)?, &value, ""));
    }
    let Letter { number, id, attempts, died, .. } = letter;
    let died = format::time(*died);
    let attempts = format::count((*attempts).into(), "attempt");
    Ok(format!("{number}: {id}, died {died} after {attempts}\n{}", output.value(&value)))
}

/// A payload as a value of the database, by which it is shown.
fn value(payload: Option<&str>) -> Result<pb::KvEntry> {
    let payload = STANDARD.decode(payload.unwrap_or_default())?;
    let encoding = pb::ValueEncoding::VeV8.into();
    Ok(pb::KvEntry { value: payload.into(), encoding, ..Default::default() })
}

/// The fields of an object, and behind them those of its value.
fn with_value(object: String, value: &pb::KvEntry, more: &str) -> String {
    let fields = object.trim_end_matches('}');
    format!("{fields},\"value\":{}{more}}}", json_value(value))
}

fn json_key(key: &[u8]) -> String {
    match Key::decode(key) {
        Ok(key) => json::key(&key),
        Err(_) => json::quoted(&json::base64url(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "000100000000000200000000";

    fn sample() -> Message {
        Message {
            id: ID.to_owned(),
            due: 1_787_227_201_123,
            attempt: 2,
            enqueued: 5,
            bytes: 2048,
            keys: 1,
            leased: false,
            payload: Some("/w9JAg==".to_owned()),
            keys_if_undelivered: vec!["AmEA".to_owned(), "mQ==".to_owned()],
        }
    }

    fn dead() -> Letter {
        Letter {
            number: 17,
            queue: String::new(),
            id: ID.to_owned(),
            attempts: 6,
            enqueued: 5,
            died: 1_787_227_201_123,
            bytes: 9,
            payload: Some("/w8=".to_owned()),
        }
    }

    #[test]
    fn lines_stand_below_their_headings() {
        let columns = |heading: &str, line: &str, ends: &[&str]| {
            for end in ends {
                let at = heading.find(end).unwrap() + end.len();
                assert!(line.is_char_boundary(at) && !line[..at].ends_with(' '), "{end}: {line}");
            }
        };
        let line = message(&sample(), Form::Inspect, 1_787_227_201_000).unwrap();
        assert_eq!(
            line,
            format!(
                "{ID}  2026-08-20T12:00:01.123Z  in 123 ms                   2   2.0 KiB     1"
            )
        );
        columns(heading(false), &line, &["ATTEMPT", "SIZE", "KEYS"]);
        let line = letter(&dead(), Form::Inspect).unwrap();
        assert_eq!(line, format!("      17  {ID}  2026-08-20T12:00:01.123Z         6       9 B"));
        columns(heading(true), &line, &["NUMBER", "ATTEMPTS", "SIZE"]);
        let of_queue = Letter { queue: "emails".to_owned(), ..dead() };
        assert_eq!(letter(&of_queue, Form::Inspect).unwrap(), format!("{line}  emails"));
    }

    #[test]
    fn states_are_those_of_the_moment() {
        let at = |leased, now_ms| state(&Message { leased, due: 10_000, ..sample() }, now_ms);
        assert_eq!(at(true, 10_000), "held");
        assert_eq!(at(false, 10_000), "due for 0 ms");
        assert_eq!(at(false, 12_500), "due for 2.5 s");
        assert_eq!(at(false, 0), "in 10.0 s");
    }

    #[test]
    fn totals_are_shown_with_the_wait_of_the_first_message_and_whether_the_queue_is_paused() {
        let totals = Totals { undelivered: 3, leased: 1, dead: 1 };
        let message = Message { due: 10_000, ..sample() };
        let page = |messages, paused| Page {
            messages,
            dead_letters: vec![],
            totals,
            queues: vec![],
            paused,
            after: None,
        };
        let text = |page: &Page, form| super::totals(page, form, 12_500).unwrap();
        let full = page(vec![message], true);
        assert_eq!(
            text(&full, Form::Inspect),
            "3 messages undelivered, 1 of them held by listeners, the first due for 2.5 s; \
             1 dead letter; the queue is paused"
        );
        assert_eq!(
            text(&full, Form::Json),
            r#"{"undelivered":3,"leased":1,"dead":1,"firstDue":10000,"paused":true}"#
        );
        assert_eq!(
            text(&page(vec![], false), Form::Inspect),
            "3 messages undelivered, 1 of them held by listeners; 1 dead letter"
        );
        let emails = NamedTotals { queue: "emails".to_owned(), undelivered: 2, leased: 1 };
        let named = Page { queues: vec![emails], ..page(vec![], false) };
        assert_eq!(
            text(&named, Form::Inspect),
            "3 messages undelivered, 1 of them held by listeners; 1 dead letter\n\
             queue emails: 2 messages undelivered, 1 of them held by listeners"
        );
        assert_eq!(
            text(&named, Form::Json),
            "{\"undelivered\":3,\"leased\":1,\"dead\":1,\"paused\":false,\"queues\":[\
             {\"queue\":\"emails\",\"undelivered\":2,\"leased\":1}]}"
        );
    }

    #[test]
    fn messages_are_lines_of_json_with_their_values() {
        let fields = format!(
            "{{\"id\":\"{ID}\",\"due\":1787227201123,\"attempt\":2,\"enqueued\":5,\"bytes\":2048,\
             \"keys\":1,\"leased\":false"
        );
        assert_eq!(message(&sample(), Form::Json, 0).unwrap(), format!("{fields}}}"));
        let output = Output::new(Some(Form::Json));
        assert_eq!(
            whole_message(&sample(), &output, 0).unwrap(),
            format!(
                "{fields},\"value\":{{\"type\":\"number\",\"value\":1}},\"keysIfUndelivered\":[\
                 [{{\"type\":\"string\",\"value\":\"a\"}}],\"mQ\"]}}"
            )
        );
        let line = whole_letter(&dead(), &output).unwrap();
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&read["number"], &read["raw"]["data"]), (&17.into(), &"_w8".into()));
    }

    #[test]
    fn whole_messages_are_shown_with_what_is_kept_of_them() {
        let output = Output::new(Some(Form::Inspect));
        let leased = Message { leased: true, ..sample() };
        assert_eq!(
            whole_message(&leased, &output, 0).unwrap(),
            format!(
                "{ID}, due 2026-08-20T12:00:01.123Z (held), attempt 2\n1\n\
                 if undelivered: [ \"a\" ]\nif undelivered: <bytes 99>"
            )
        );
        let letter = whole_letter(&dead(), &output).unwrap();
        let head = format!("17: {ID}, died 2026-08-20T12:00:01.123Z after 6 attempts\n<not read");
        assert!(letter.starts_with(&head), "{letter}");
    }
}
