//! Entries and results on the standard output: as `Deno.inspect` shows them, or as lines of JSON of
//! the form that `@deno/kv-utils` reads.
//!
//! A value that JSON cannot express is in `raw`: the stored bytes in base64url, and their encoding.

use std::io::{BufWriter, ErrorKind, IsTerminal, Stdout, Write};

use anyhow::Result;
use clap::ValueEnum;
use meridian_proto::kv_connect as pb;
use meridian_values::{Key, Stored, inspect, json, v8};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::command) enum Form {
    /// As `Deno.inspect` shows values, with colours on a terminal.
    Inspect,
    /// A line of JSON for each entry.
    Json,
}

pub(in crate::command) struct Output {
    out: BufWriter<Stdout>,
    form: Form,
    colours: bool,
    /// The reader has gone, as `head` does.
    is_closed: bool,
}

impl Output {
    pub(in crate::command) fn new(form: Option<Form>) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let form = form.unwrap_or(if is_terminal { Form::Inspect } else { Form::Json });
        let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        Self { out: BufWriter::new(std::io::stdout()), form, colours, is_closed: false }
    }

    pub(in crate::command) fn form(&self) -> Form {
        self.form
    }

    pub(in crate::command) fn colours(&self) -> bool {
        self.colours
    }

    /// Whether nothing more will be read of what is written.
    pub(in crate::command) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(in crate::command) fn line(&mut self, text: &str) -> Result<()> {
        let written = writeln!(self.out, "{text}");
        self.note(written)
    }

    /// Has the reader see what was written so far.
    pub(in crate::command) fn flush(&mut self) -> Result<()> {
        let flushed = self.out.flush();
        self.note(flushed)
    }

    pub(in crate::command) fn end(mut self) -> Result<()> {
        self.flush()
    }

    fn note(&mut self, written: std::io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.is_closed = true,
            other => other?,
        }
        Ok(())
    }

    /// An entry of a list.
    pub(in crate::command) fn entry(&mut self, entry: &pb::KvEntry) -> Result<()> {
        let text = match self.form {
            Form::Json => json_entry(entry),
            Form::Inspect => {
                let key = match Key::decode(&entry.key) {
                    Ok(key) => inspect::key(&key, self.colours),
                    Err(_) => format!("<bytes {}>", hex(&entry.key)),
                };
                format!("{key} => {}", self.value(entry))
            }
        };
        self.line(&text)
    }

    /// A value by itself.
    pub(in crate::command) fn value(&self, entry: &pb::KvEntry) -> String {
        match stored(entry) {
            Ok(value) => inspect::stored(&value, self.colours),
            Err(why) => format!("<{why}; the value has {} bytes>", entry.value.len()),
        }
    }

    /// The result of a write.
    pub(in crate::command) fn written(&mut self, output: &pb::AtomicWriteOutput) -> Result<()> {
        let versionstamp = hex(&output.versionstamp);
        let text = match self.form {
            Form::Json => format!("{{\"ok\":true,\"versionstamp\":\"{versionstamp}\"}}"),
            Form::Inspect => format!("versionstamp {versionstamp}"),
        };
        self.line(&text)
    }
}

/// The value of an entry, or why it is none.
pub(in crate::command) fn stored(entry: &pb::KvEntry) -> Result<Stored, String> {
    match pb::ValueEncoding::try_from(entry.encoding) {
        Ok(pb::ValueEncoding::VeV8) => match v8::read(&entry.value) {
            Ok(graph) => Ok(Stored::V8(graph)),
            Err(error) => Err(format!("not read as V8 writes values: {error}")),
        },
        Ok(pb::ValueEncoding::VeLe64) => match <[u8; 8]>::try_from(&entry.value[..]) {
            Ok(bytes) => Ok(Stored::U64(u64::from_le_bytes(bytes))),
            Err(_) => Err("a u64 that has not 8 bytes".to_owned()),
        },
        Ok(pb::ValueEncoding::VeBytes) => Ok(Stored::Bytes(entry.value.to_vec())),
        _ => Err(format!("unknown encoding {}", entry.encoding)),
    }
}

pub(in crate::command) fn json_entry(entry: &pb::KvEntry) -> String {
    let (fields, versionstamp) = (json_entry_fields(entry, true), hex(&entry.versionstamp));
    format!("{{{fields},\"versionstamp\":\"{versionstamp}\"}}")
}

/// The key of an entry, and its value if it has one, as fields of an object.
pub(super) fn json_entry_fields(entry: &pb::KvEntry, has_value: bool) -> String {
    let key = match Key::decode(&entry.key) {
        Ok(key) => json::key(&key),
        Err(_) => format!("null,\"rawKey\":\"{}\"", json::base64url(&entry.key)),
    };
    if !has_value {
        return format!("\"key\":{key}");
    }
    let value = json_value(entry);
    format!("\"key\":{key},\"value\":{value}")
}

/// A key that has no value, as a line of JSON.
pub(in crate::command) fn json_without_value(key: &Key) -> String {
    format!("{{\"key\":{},\"value\":null,\"versionstamp\":null}}", json::key(key))
}

/// The value of an entry, and where it is `null` because JSON cannot say it, another field.
pub(in crate::command) fn json_value(entry: &pb::KvEntry) -> String {
    stored(entry).ok().and_then(|value| json::value(&value)).unwrap_or_else(|| {
        let encoding = match pb::ValueEncoding::try_from(entry.encoding) {
            Ok(pb::ValueEncoding::VeV8) => "\"V8\"".to_owned(),
            Ok(pb::ValueEncoding::VeLe64) => "\"LE64\"".to_owned(),
            Ok(pb::ValueEncoding::VeBytes) => "\"BYTES\"".to_owned(),
            _ => entry.encoding.to_string(),
        };
        let data = json::base64url(&entry.value);
        format!("null,\"raw\":{{\"encoding\":{encoding},\"data\":\"{data}\"}}")
    })
}

pub(in crate::command) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &[u8], value: &[u8], encoding: pb::ValueEncoding) -> pb::KvEntry {
        pb::KvEntry {
            key: key.to_vec().into(),
            value: value.to_vec().into(),
            encoding: encoding.into(),
            versionstamp: vec![0, 1, 0, 0, 0, 0, 0, 2, 0, 0].into(),
        }
    }

    #[test]
    fn entries_have_the_form_of_kv_utils_and_what_json_cannot_say_is_raw() {
        let (v8, le64, bytes) =
            (pb::ValueEncoding::VeV8, pb::ValueEncoding::VeLe64, pb::ValueEncoding::VeBytes);
        for (entry, line) in [
            (
                entry(b"\x02a\0", b"\xff\x0fI\x02", v8),
                r#"{"key":[{"type":"string","value":"a"}],"value":{"type":"number","value":1},"versionstamp":"00010000000000020000"}"#,
            ),
            (
                entry(b"", b"\x05\0\0\0\0\0\0\0", le64),
                r#"{"key":[],"value":{"type":"KvU64","value":"5"},"versionstamp":"00010000000000020000"}"#,
            ),
            (
                entry(b"\x99", b"\xff\x0fx", v8),
                r#"{"key":null,"rawKey":"mQ","value":null,"raw":{"encoding":"V8","data":"_w94"},"versionstamp":"00010000000000020000"}"#,
            ),
            (
                entry(b"\x27", b"\x01", bytes),
                r#"{"key":[{"type":"boolean","value":true}],"value":{"type":"Uint8Array","value":"AQ"},"versionstamp":"00010000000000020000"}"#,
            ),
            (
                entry(b"\x27", b"\x01", le64),
                r#"{"key":[{"type":"boolean","value":true}],"value":null,"raw":{"encoding":"LE64","data":"AQ"},"versionstamp":"00010000000000020000"}"#,
            ),
        ] {
            assert_eq!(json_entry(&entry), line);
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_and_no_failure() {
        let broken = entry(b"a", b"\xff\x0fW", pb::ValueEncoding::VeV8);
        let output = Output::new(Some(Form::Inspect));
        assert_eq!(
            output.value(&broken),
            "<not read as V8 writes values: byte 3: 0x57 is no tag of a value that Deno KV stores; the value has 3 bytes>"
        );
    }
}
