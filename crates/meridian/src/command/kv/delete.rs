//! `meridian kv delete`.

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_kv_client::message::delete;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use meridian_types::limits::{MAX_MUTATIONS, MAX_TRANSACTION_BYTES};
use tokio_util::sync::CancellationToken;

use crate::command::operator::format;
use crate::command::{Hangup, asked_to_stop, pieces};

use super::confirm::confirm;
use super::connection::Connection;
use super::count::count;
use super::output::{Form, Output};
use super::progress::Progress;
use super::scan::Scan;
use super::selection::{Bounds, Selection, of_words};
use super::session::Session;
use super::set::{Versionstamp, parse_versionstamp, write_one};

/// Deletes a key, or all keys below a prefix.
///
/// With --prefix, --start or --end the keys are counted first, and deleted only once that is
/// confirmed. They go in batches, each of which is one atomic write; what is stopped half-way goes on
/// when the command is given again. Keys that are written meanwhile may be deleted too.
#[derive(Args)]
pub(crate) struct Delete {
    /// The key: an array, or its parts as words.
    #[arg(
        allow_negative_numbers = true,
        value_name = "KEY",
        required_unless_present_any = ["prefix", "start", "end"],
        conflicts_with_all = ["prefix", "start", "end"]
    )]
    words: Vec<String>,
    /// Delete all keys that begin with these parts and have more behind: an array, or one word.
    #[arg(long, value_name = "KEY")]
    prefix: Option<String>,
    /// Delete from this key on.
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// Delete up to before this key.
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Delete many keys without asking.
    #[arg(long)]
    yes: bool,
    /// Delete the key only if it has this versionstamp.
    #[arg(long, value_name = "VERSIONSTAMP", value_parser = parse_versionstamp, requires = "words", conflicts_with_all = ["prefix", "start", "end"])]
    if_versionstamp: Option<Versionstamp>,
}

impl Delete {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        if !self.words.is_empty() {
            let key = of_words(&self.words)?.encode()?;
            return write_one(connection, output, delete(&key), self.if_versionstamp).await;
        }
        let Self { prefix, start, end, yes, .. } = self;
        let selection = Selection { words: Vec::new(), prefix, start, end };
        let bounds = selection.bounds()?;
        let mut session = connection.open(Consistency::Strong).await?;
        let (found, last) = count(&mut session, bounds.clone()).await?;
        // A key that is written behind the last one was not asked about.
        let bounds = Bounds { end: [&last[..], &[0]].concat(), ..bounds };
        let keys = format!(
            "{} {} at {}",
            format::count(found, "key"),
            selection.describe()?,
            connection.url()?
        );
        let would = format!("{keys} would be deleted; --yes deletes them");
        if found > 0 && !yes && !confirm(&format!("Delete {keys}"), &would)? {
            bail!("nothing was deleted");
        }
        let deleted = if found > 0 { delete_all(&mut session, bounds, found).await? } else { 0 };
        let text = match output.form() {
            Form::Json => format!("{{\"deleted\":{deleted}}}"),
            Form::Inspect => format!("{} deleted", format::count(deleted, "key")),
        };
        output.line(&text)
    }
}

async fn delete_all(session: &mut Session, bounds: Bounds, found: u64) -> Result<u64> {
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        asked_to_stop(Hangup::Stop).await;
        stopping.cancel();
    });
    let mut progress = Progress::new();
    let mut scan = Scan::new(session, bounds);
    let mut deleted: u64 = 0;
    loop {
        let entries = scan.next().await?;
        if entries.is_empty() {
            return Ok(deleted);
        }
        let keys: Vec<&[u8]> = entries.iter().map(|entry| &entry.key[..]).collect();
        for batch in batches(&keys) {
            if stop.is_cancelled() {
                bail!("stopped: {deleted} of {found} keys are deleted; the same command goes on");
            }
            let mutations: Vec<_> = batch.iter().map(|key| delete(key)).collect();
            let write = pb::AtomicWrite { mutations, ..Default::default() };
            let so_far = || format!("{deleted} of {found} keys are deleted");
            scan.session().write(write).await.with_context(so_far)?;
            deleted += u64::try_from(batch.len())?;
            progress.show(|| format!("{deleted} of {} deleted", format::count(found, "key")));
        }
    }
}

/// Keys in pieces that one atomic write takes each.
fn batches<'a>(keys: &'a [&'a [u8]]) -> Vec<&'a [&'a [u8]]> {
    let max_bytes = MAX_TRANSACTION_BYTES as u64 / 2;
    pieces::of(keys, MAX_MUTATIONS / 2, max_bytes, |key| key.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_an_atomic_write_and_lose_no_key() {
        let (short, long) = (vec![1u8; 3], vec![2u8; 2048]);
        let keys: Vec<&[u8]> =
            (0..1000).map(|at| if at % 3 == 0 { &short[..] } else { &long[..] }).collect();
        let batches = batches(&keys);
        assert_eq!(batches.concat(), keys);
        for batch in batches {
            let bytes: usize = batch.iter().map(|key| key.len()).sum();
            assert!(batch.len() <= MAX_MUTATIONS && bytes <= MAX_TRANSACTION_BYTES);
        }
    }
}
