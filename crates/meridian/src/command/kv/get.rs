//! `meridian kv get`.

use anyhow::Result;
use clap::Args;
use meridian_kv_client::message::point;
use meridian_types::Consistency;

use super::connection::Connection;
use super::output::{Form, Output, hex, json_entry, json_without_value};
use super::selection::OneKey;

/// Shows the value of a key, and its versionstamp.
///
/// A key without a value shows as `null`, with `null` for its versionstamp in JSON.
#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    key: OneKey,
    /// Read from the gateway's own region, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

impl Get {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let key = self.key.key()?;
        let bytes = key.encode()?;
        let mut session = connection.open(consistency(self.eventual)).await?;
        let entry = session.read(point(&bytes)).await?.into_iter().next();
        match (entry, output.form()) {
            (Some(entry), Form::Json) => output.line(&json_entry(&entry)),
            (Some(entry), Form::Inspect) => {
                let value = output.value(&entry);
                output.line(&value)?;
                output.line(&format!("versionstamp {}", hex(&entry.versionstamp)))
            }
            (None, Form::Json) => output.line(&json_without_value(&key)),
            (None, Form::Inspect) => output.line("null"),
        }
    }
}

pub(super) fn consistency(eventual: bool) -> Consistency {
    if eventual { Consistency::Eventual } else { Consistency::Strong }
}
