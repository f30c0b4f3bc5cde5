//! `meridian kv set`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_kv_client::message::mutation;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use meridian_types::limits::MAX_VALUE_BYTES;
use meridian_values::{Stored, literal, v8};

use crate::command::operator::format;

use super::connection::Connection;
use super::output::Output;
use super::selection::{of_words, wrong};

/// No text of a value is longer: each byte of one takes few characters.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Sets a key to a value, which is written as in a program.
///
/// A VALUE is JSON, JSON5, or what JavaScript has beyond: `undefined`, `42n`, `new Date("2024-05-01")`,
/// `new Map([["a", 1]])`, `new Set([1])`, `/x/g`, `new Uint8Array([1, 2])`, `new Deno.KvU64(5n)`, ...
#[derive(Args)]
pub(crate) struct Set {
    /// The key (an array, or its parts as words), and behind it the value.
    #[arg(required = true, allow_negative_numbers = true, value_names = ["KEY", "VALUE"], num_args = 1..)]
    words: Vec<String>,
    /// Read the value from this file, in the place of VALUE. `-` for the standard input.
    #[arg(long, value_name = "FILE")]
    value_file: Option<PathBuf>,
    /// The value is JSON, and nothing beyond it.
    #[arg(long, conflicts_with_all = ["bytes", "u64"])]
    json: bool,
    /// The value is stored as bytes, as it stands: a Uint8Array to Deno.
    #[arg(long, conflicts_with = "u64")]
    bytes: bool,
    /// The value is a Deno.KvU64, for `sum`, `min` and `max`: a whole number.
    #[arg(long)]
    u64: bool,
    /// Set only if the key has this versionstamp; `none`: only if it has no value.
    #[arg(long, value_name = "VERSIONSTAMP", value_parser = parse_versionstamp)]
    if_versionstamp: Option<Versionstamp>,
    /// Remove the key after this time, such as 90s, 12h or 30d.
    #[arg(long, value_name = "DURATION", value_parser = format::parse_duration)]
    expire_in: Option<Duration>,
}

/// Ten bytes, or none for a key without a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Versionstamp(pub(super) Vec<u8>);

pub(super) fn parse_versionstamp(text: &str) -> Result<Versionstamp, String> {
    if text == "none" {
        return Ok(Versionstamp(Vec::new()));
    }
    let wrong = || "expected the 20 hex digits of a versionstamp, or `none`".to_owned();
    if text.len() != 20 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
    Ok(Versionstamp(number.to_be_bytes().into_iter().skip(6).collect()))
}

impl Set {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let (key, value) = self.key_and_value()?;
        let key = of_words(&key)?.encode()?;
        let (encoding, data) = match self.value(value)? {
            Stored::V8(graph) => (pb::ValueEncoding::VeV8, v8::write(&graph)),
            Stored::U64(integer) => (pb::ValueEncoding::VeLe64, integer.to_le_bytes().to_vec()),
            Stored::Bytes(bytes) => (pb::ValueEncoding::VeBytes, bytes),
        };
        if data.len() > MAX_VALUE_BYTES {
            bail!("the value has {} bytes; {MAX_VALUE_BYTES} are allowed", data.len());
        }
        let mut mutation = mutation(pb::MutationType::MSet, &key, encoding, &data);
        if let Some(after) = self.expire_in {
            let now = Duration::from_millis(format::now_ms());
            mutation.expire_at_ms = i64::try_from(now.saturating_add(after).as_millis())?;
        }
        write_one(connection, output, mutation, self.if_versionstamp).await
    }

    fn key_and_value(&self) -> Result<(Vec<String>, Vec<u8>)> {
        if let Some(path) = &self.value_file {
            let value = read(path)
                .with_context(|| format!("cannot read the value from {}", path.display()))?;
            return Ok((self.words.clone(), value));
        }
        match self.words.split_last() {
            Some((value, key)) if !key.is_empty() => Ok((key.to_vec(), value.clone().into_bytes())),
            _ => bail!("a key and a value are needed: meridian kv set KEY VALUE"),
        }
    }

    fn value(&self, text: Vec<u8>) -> Result<Stored> {
        if self.bytes {
            return Ok(Stored::Bytes(text));
        }
        let text =
            String::from_utf8(text).context("the value is not UTF-8; --bytes takes it as it is")?;
        if self.u64 {
            let digits = text.trim();
            let digits = digits.strip_suffix('n').unwrap_or(digits);
            let integer = digits.parse::<u64>();
            return Ok(Stored::U64(integer.with_context(|| {
                format!("`{digits}` is not a whole number from 0 to {}", u64::MAX)
            })?));
        }
        if self.json
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&text)
        {
            bail!("the value is not JSON: {error}");
        }
        literal::parse(&text).map_err(|error| wrong("a value", &text, &error))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let input: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(path)?),
    };
    input.take(MAX_TEXT_BYTES + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_TEXT_BYTES) {
        bail!("it has more than {MAX_TEXT_BYTES} bytes");
    }
    Ok(text)
}

/// Carries out one mutation, if its key has the versionstamp.
pub(super) async fn write_one(
    connection: &Connection,
    output: &mut Output,
    mutation: pb::Mutation,
    versionstamp: Option<Versionstamp>,
) -> Result<()> {
    let mut session = connection.open(Consistency::Strong).await?;
    let key = mutation.key.clone();
    let check = |Versionstamp(versionstamp)| pb::Check { key, versionstamp: versionstamp.into() };
    let write = pb::AtomicWrite {
        checks: versionstamp.map(check).into_iter().collect(),
        mutations: vec![mutation],
        ..Default::default()
    };
    let written = session.write(write).await?;
    if written.status() == pb::AtomicWriteStatus::AwCheckFailure {
        bail!("nothing was changed: the key has another versionstamp; `meridian kv get` shows it");
    }
    output.written(&written)
}
