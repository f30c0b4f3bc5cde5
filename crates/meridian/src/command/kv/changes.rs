//! `meridian kv changes`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use meridian_kv_client::{CallError, Change, ChangeFeed, ChangeLine, ChangesFrom, KvClient};
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use meridian_values::json::{base64url, from_base64url};
use meridian_values::{Key, inspect};

use super::connection::Connection;
use super::output::{Form, Output, hex, json_entry_fields};
use super::selection::of_words;

/// The end of a feed that does not follow.
const TOLD: &str = "told";
/// Until a feed that broke off is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// A feed says every five seconds that it is alive.
const SILENCE: Duration = Duration::from_secs(30);

/// Shows what was committed, transaction by transaction.
///
/// Without --follow it ends with a bookmark: the versionstamp to go on from with --after. With
/// --output json each line is a whole transaction, or a bookmark.
#[derive(Args)]
pub(crate) struct Changes {
    /// Parts that the keys begin with: an array, or words. Default: all keys.
    #[arg(allow_negative_numbers = true, value_name = "PREFIX")]
    words: Vec<String>,
    /// Show what was committed behind this versionstamp; 00000000000000000000 for all that is kept.
    /// Default: from now on.
    #[arg(long, value_name = "VERSIONSTAMP")]
    after: Option<String>,
    /// Go on with what is committed later.
    #[arg(long, short)]
    follow: bool,
}

impl Changes {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let prefix = match self.words.as_slice() {
            [] => String::new(),
            words => base64url(&of_words(words)?.encode()?),
        };
        let session = connection.open(Consistency::Strong).await?;
        let client = session.client().await?;
        let mut after = self.after;
        let mut feed = Some(open(&client, &prefix, after.as_deref(), self.follow).await?);
        loop {
            let line = match &mut feed {
                Some(feed) => tokio::time::timeout(SILENCE, feed.next()).await,
                None => {
                    tokio::time::sleep(PAUSE).await;
                    match open(&client, &prefix, after.as_deref(), self.follow).await {
                        Ok(opened) => feed = Some(opened),
                        Err(CallError::Refused { status, text }) if status != 503 => bail!(text),
                        Err(error) if !self.follow => bail!(error),
                        Err(_) => {}
                    }
                    continue;
                }
            };
            match line {
                Ok(Ok(Some(ChangeLine::End { end, .. }))) if end == TOLD => {
                    if output.form() == Form::Inspect {
                        output.line(&format!("bookmark {}", after.unwrap_or_default()))?;
                    }
                    return Ok(());
                }
                Ok(Ok(Some(ChangeLine::End { message, .. }))) => bail!(message),
                Ok(Ok(Some(ChangeLine::Transaction { versionstamp, changes }))) => {
                    show(output, &versionstamp, &changes)?;
                    after = Some(versionstamp);
                }
                Ok(Ok(Some(ChangeLine::Bookmark { bookmark }))) => {
                    if output.form() == Form::Json {
                        output.line(&format!("{{\"bookmark\":\"{bookmark}\"}}"))?;
                    }
                    after = Some(bookmark);
                }
                // It would begin at a later now.
                Ok(Ok(None) | Err(_)) | Err(_) if after.is_none() => {
                    bail!("the connection broke before the feed said where it begins")
                }
                // Another gateway, or the same one later, goes on behind what was shown.
                Ok(Ok(None) | Err(_)) | Err(_) => {
                    eprintln!("the feed broke off, and is opened again");
                    feed = None;
                }
            }
            output.flush()?;
            if output.is_closed() {
                return Ok(());
            }
        }
    }
}

async fn open(
    client: &KvClient,
    prefix: &str,
    after: Option<&str>,
    follow: bool,
) -> Result<ChangeFeed, CallError> {
    client.changes(&ChangesFrom { prefix, after, follow }).await
}

fn show(output: &mut Output, versionstamp: &str, changes: &[Change]) -> Result<()> {
    match output.form() {
        Form::Json => output.line(&json(versionstamp, changes)?),
        Form::Inspect => {
            output.line(versionstamp)?;
            for change in changes {
                let key = shown_key(output, change)?;
                let text = match entry(change)? {
                    Some(entry) => format!("  set {key} => {}", output.value(&entry)),
                    None => format!("  {} {key}", change.op),
                };
                output.line(text.trim_end())?;
            }
            Ok(())
        }
    }
}

fn shown_key(output: &Output, change: &Change) -> Result<String> {
    let Some(key) = key(change)? else { return Ok(String::new()) };
    Ok(match Key::decode(&key) {
        Ok(key) => inspect::key(&key, output.colours()),
        Err(_) => format!("<bytes {}>", hex(&key)),
    })
}

fn json(versionstamp: &str, changes: &[Change]) -> Result<String> {
    let mut texts = Vec::with_capacity(changes.len());
    for change in changes {
        let op = &change.op;
        let fields = match (entry(change)?, key(change)?) {
            (Some(entry), _) => format!(",{}", json_entry_fields(&entry, true)),
            (None, Some(key)) => {
                let entry = pb::KvEntry { key: key.into(), ..Default::default() };
                format!(",{}", json_entry_fields(&entry, false))
            }
            (None, None) => String::new(),
        };
        let expires = change.expire_at.map(|at| format!(",\"expireAt\":{at}")).unwrap_or_default();
        texts.push(format!("{{\"op\":\"{op}\"{fields}{expires}}}"));
    }
    Ok(format!("{{\"versionstamp\":\"{versionstamp}\",\"changes\":[{}]}}", texts.join(",")))
}

fn key(change: &Change) -> Result<Option<Vec<u8>>> {
    change.key.as_deref().map(bytes).transpose()
}

/// The entry that a change has set, if it has.
fn entry(change: &Change) -> Result<Option<pb::KvEntry>> {
    let (Some(key), Some(value)) = (key(change)?, &change.value) else { return Ok(None) };
    let encoding = match change.encoding.as_deref() {
        Some("V8") => pb::ValueEncoding::VeV8,
        Some("LE64") => pb::ValueEncoding::VeLe64,
        Some("BYTES") => pb::ValueEncoding::VeBytes,
        _ => pb::ValueEncoding::VeUnspecified,
    };
    Ok(Some(pb::KvEntry {
        key: key.into(),
        value: bytes(value)?.into(),
        encoding: encoding.into(),
        ..Default::default()
    }))
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    match from_base64url(text) {
        Some(bytes) => Ok(bytes),
        None => bail!("the gateway's answer is not the base64url of bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(op: &str, value: Option<(&str, &str)>, key: Option<&str>) -> Change {
        Change {
            op: op.to_owned(),
            key: key.map(str::to_owned),
            encoding: value.map(|(encoding, _)| encoding.to_owned()),
            value: value.map(|(_, value)| value.to_owned()),
            expire_at: value.filter(|(encoding, _)| *encoding == "LE64").map(|_| 9),
        }
    }

    #[test]
    fn transaction_is_a_line_with_keys_and_values_as_entries_have_them() {
        let changes = [
            change("set", Some(("V8", "_w9JAg")), Some("AmEA")),
            change("set", Some(("LE64", "BQAAAAAAAAA")), Some("mQ")),
            change("delete", None, Some("AmEA")),
            change("drop", None, None),
        ];
        let line = json("00010000000000050000", &changes).unwrap();
        assert_eq!(
            line,
            "{\"versionstamp\":\"00010000000000050000\",\"changes\":[\
             {\"op\":\"set\",\"key\":[{\"type\":\"string\",\"value\":\"a\"}],\
             \"value\":{\"type\":\"number\",\"value\":1}},\
             {\"op\":\"set\",\"key\":null,\"rawKey\":\"mQ\",\
             \"value\":{\"type\":\"KvU64\",\"value\":\"5\"},\"expireAt\":9},\
             {\"op\":\"delete\",\"key\":[{\"type\":\"string\",\"value\":\"a\"}]},{\"op\":\"drop\"}]}"
        );
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
        assert!(json("", &[change("delete", None, Some("!"))]).is_err());
    }
}
