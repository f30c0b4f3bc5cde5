//! `meridian kv count`.

use anyhow::Result;
use clap::Args;

use crate::command::operator::format;

use super::connection::Connection;
use super::get::consistency;
use super::output::{Form, Output};
use super::progress::Progress;
use super::scan::Scan;
use super::selection::{Bounds, Selection};
use super::session::Session;

/// Counts keys, all or those of a prefix or range. Each of them is read.
#[derive(Args)]
pub(crate) struct Count {
    #[command(flatten)]
    selection: Selection,
    /// Read from the gateway's own region, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

impl Count {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let bounds = self.selection.bounds()?;
        let mut session = connection.open(consistency(self.eventual)).await?;
        let (count, _) = count(&mut session, bounds).await?;
        let text = match output.form() {
            Form::Json => format!("{{\"keys\":{count}}}"),
            Form::Inspect => count.to_string(),
        };
        output.line(&text)
    }
}

/// How many keys there are, and the last of them.
pub(super) async fn count(session: &mut Session, bounds: Bounds) -> Result<(u64, Vec<u8>)> {
    let mut scan = Scan::new(session, bounds);
    let mut progress = Progress::new();
    let (mut count, mut last): (u64, _) = (0, Vec::new());
    loop {
        let entries = scan.next().await?;
        let Some(entry) = entries.last() else { return Ok((count, last)) };
        last = entry.key.to_vec();
        count += u64::try_from(entries.len())?;
        progress.show(|| format!("{} so far", format::count(count, "key")));
    }
}
