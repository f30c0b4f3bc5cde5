//! `meridian kv watch`.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use meridian_kv_client::WatchMessage;
use meridian_proto::kv_connect as pb;
use meridian_values::{Key, inspect};

use super::connection::Connection;
use super::get::consistency;
use super::output::{Form, Output, json_entry, json_without_value};
use super::selection::{of_option, of_words};

/// A gateway says every five seconds that it is there.
const SILENCE: Duration = Duration::from_secs(20);

/// Shows the values of keys as they are, and again each time that they change, until it is stopped.
///
/// Several keys, up to ten, are arrays, each an argument: '["users", 1]' '["users", 2]'. A key
/// without a value shows as `null`. States between may be left out, the last one never is. A watch that breaks off is
/// opened again.
#[derive(Args)]
pub(crate) struct Watch {
    /// Keys, each an array; or the parts of one key as words.
    #[arg(required = true, allow_negative_numbers = true, value_name = "KEY")]
    words: Vec<String>,
    /// Begin with what the gateway's own region has, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

impl Watch {
    fn keys(&self) -> Result<Vec<Key>> {
        if self.words.iter().all(|word| word.trim_start().starts_with('[')) {
            return self.words.iter().map(|word| of_option("KEY", word)).collect();
        }
        Ok(vec![of_words(&self.words)?])
    }

    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let keys = self.keys()?;
        let encoded: Vec<Bytes> =
            keys.iter().map(|key| Ok(key.encode()?.into())).collect::<Result<_>>()?;
        let mut session = connection.open(consistency(self.eventual)).await?;
        let mut shown: Vec<Option<Bytes>> = vec![None; keys.len()];
        loop {
            let mut watching = session.watch(&encoded).await?;
            while let Ok(Ok(Some(message))) = tokio::time::timeout(SILENCE, watching.next()).await {
                let WatchMessage::News(news) = message else { continue };
                show(&keys, &news, &mut shown, output)?;
                output.flush()?;
                if output.is_closed() {
                    return Ok(());
                }
            }
            eprintln!("the watch broke off, and is opened again");
            session.leave().await;
        }
    }
}

/// Shows the keys that have changed since they were shown.
fn show(
    keys: &[Key],
    news: &pb::WatchOutput,
    shown: &mut [Option<Bytes>],
    output: &mut Output,
) -> Result<()> {
    for ((key, told), shown) in keys.iter().zip(&news.keys).zip(shown) {
        let entry = told.entry_if_changed.as_ref();
        let versionstamp = entry.map(|entry| entry.versionstamp.clone()).unwrap_or_default();
        if !told.changed || *shown == Some(versionstamp.clone()) {
            continue;
        }
        *shown = Some(versionstamp);
        output.line(&match (entry, output.form()) {
            (Some(entry), Form::Json) => json_entry(entry),
            (None, Form::Json) => json_without_value(key),
            (Some(entry), Form::Inspect) => {
                format!("{} => {}", inspect::key(key, output.colours()), output.value(entry))
            }
            (None, Form::Inspect) => format!("{} => null", inspect::key(key, output.colours())),
        })?;
    }
    Ok(())
}
