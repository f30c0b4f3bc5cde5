//! `meridian kv list`.

use anyhow::Result;
use clap::Args;

use super::connection::Connection;
use super::get::consistency;
use super::output::Output;
use super::scan::Scan;
use super::selection::Selection;

/// Lists keys with their values, all or those of a prefix or range.
///
/// Entries are printed as they come, in batches, each of which is read at a time of its own. With
/// --output json each line is an entry that the module @deno/kv-utils reads.
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    selection: Selection,
    /// Number of entries at most.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
    /// From the last key to the first.
    #[arg(long)]
    reverse: bool,
    /// Read from the gateway's own region, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

impl List {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let bounds = self.selection.bounds()?;
        let mut session = connection.open(consistency(self.eventual)).await?;
        let mut scan = Scan::new(&mut session, bounds).reverse(self.reverse).limit(self.limit);
        loop {
            let entries = scan.next().await?;
            for entry in &entries {
                output.entry(entry)?;
            }
            output.flush()?;
            if entries.is_empty() || output.is_closed() {
                return Ok(());
            }
        }
    }
}
